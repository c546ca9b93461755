"""Trainings to the end, on the terminal: a bar, images a second, accuracy and the time left of each, and of all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from igc_nas.engine.events import Event, Notice, Progress, Started
from igc_nas.engine.trainings import TimingJob
from igc_nas.io.console import NotebookLive, console, live
from igc_nas.io.text import printable
from igc_nas.io.units import format_seconds
from igc_nas.study.finals import TrainingProgress

NAME_WIDTH = 16


@dataclass
class _Row:
    name: str
    doing: str = "starting"
    progress: TrainingProgress | None = None


class TrainingDisplay:
    """Shows trainings as they run: live on a terminal; in a log one line for each epoch.

    A context manager whose `show` takes the events of `Trainings`. `names` are the jobs' names by number, `seconds`
    the estimated ones of each whole training. With `is_alone`, one training is shown, and its epochs on a terminal too.
    """

    def __init__(self, names: Mapping[int, str], *, workers: int = 1, is_alone: bool = False) -> None:
        self.names = names
        self.seconds: dict[int, float] = {}
        self._workers = workers
        self._is_alone = is_alone
        self._rows: dict[int, _Row] = {}
        self._ended: set[int] = set()
        self._notices: set[str] = set()
        self._console = console()
        self._live = live(self, self._console)

    def __enter__(self) -> Self:
        if self._console.is_terminal or isinstance(self._live, NotebookLive):
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Started(job):
                self._rows[job.number] = _Row(self.names[job.number], "timing" if isinstance(job, TimingJob) else "")
            case Progress(number, doing, _, progress) if number in self._rows:
                row = self._rows[number]
                before, row.doing = row.progress, doing
                if progress is not None:
                    row.progress = progress
                    self._say_epoch(row.name, before, progress)
            case Notice(text) if text not in self._notices:
                self._notices.add(text)
                self.say(text)
        if isinstance(self._live, NotebookLive):
            self._live.update()

    def _say_epoch(self, name: str, before: TrainingProgress | None, now: TrainingProgress) -> None:
        """A line when an epoch has ended; the first one says where a training continues."""
        if before is None and now.images and now.images < now.total:
            self.say(f"{name}: continues after {now.images:,} of {now.total:,} images")
        done = now.images * now.epochs // now.total
        if before is None or done == before.images * before.epochs // before.total or not done:
            return
        if self._is_alone or not self._console.is_terminal:
            left = "" if now.left_s is None or done == now.epochs else f", {format_seconds(now.left_s)} left"
            self.say(
                f"{name}: epoch {done}/{now.epochs}, {accuracy_words(now)}, {now.images_per_s:,.0f} images/s{left}"
            )

    def timed(self, seconds: Mapping[int, float]) -> None:
        """The estimated seconds of each training; those without one are not trained."""
        self.seconds = dict(seconds)
        self.names = {number: name for number, name in self.names.items() if number in seconds}
        self._rows.clear()

    def ended(self, number: int, line: str) -> None:
        """A job has ended, which `line` says."""
        self._rows.pop(number, None)
        self._ended.add(number)
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        if isinstance(self._live, NotebookLive):
            self._live.say(printable(line))
        else:
            self._console.print(Text(printable(line)), soft_wrap=True)

    def left_s(self) -> float | None:
        """Estimated seconds until all have ended."""
        return time_left([self._left_of(number) for number in self.names if number not in self._ended], self._workers)

    def _left_of(self, number: int) -> float:
        row = self._rows.get(number)
        if row and row.progress and row.progress.left_s is not None:
            return row.progress.left_s
        return self.seconds.get(number, 0.0)

    def __rich__(self) -> Group:
        lines = Table.grid(padding=(0, 1))
        for row in self._rows.values():
            lines.add_row(*self._cells(row))
        if self._is_alone:
            return Group(lines)
        left = self.left_s()
        text = f"trained {len(self._ended)} of {len(self.names)}" + (f", {format_seconds(left)} left" if left else "")
        return Group(Text(text), lines)

    def _cells(self, row: _Row) -> tuple[Text | ProgressBar, ...]:
        name = Text(printable(row.name), overflow="ellipsis", no_wrap=True)
        name.truncate(NAME_WIDTH, overflow="ellipsis")
        now = row.progress
        if now is None:
            return (name, Text(row.doing or "starting"))
        return (
            name,
            Text(f"{now.epoch}/{now.epochs}"),
            ProgressBar(total=now.total, completed=now.images, width=12),
            Text(f"{now.images_per_s:,.0f} img/s" if now.images_per_s else ""),
            Text(accuracy_words(now, short=True)),
            Text(_left_words(now)),
        )


def _left_words(now: TrainingProgress) -> str:
    """`3 min 20 s left`; after the last image the network is tested."""
    if now.images == now.total:
        return "testing"
    return "" if now.left_s is None else f"{format_seconds(now.left_s)} left"


def accuracy_words(now: TrainingProgress, *, short: bool = False) -> str:
    """The accuracies of a training under way: `training accuracy 61.2 %, held-out 64.0 %`."""
    parts = []
    if now.train_error is not None:
        parts.append(f"{'train' if short else 'training accuracy'} {100 * (1 - now.train_error):.1f} %")
    if now.held_out_error is not None:
        parts.append(f"held-out {100 * (1 - now.held_out_error):.1f} %")
    return (" " if short else ", ").join(parts)


def time_left(seconds: list[float], workers: int) -> float | None:
    """Seconds until `workers` have done jobs of so many seconds each, the longest first; None without jobs."""
    ends = [0.0] * max(1, workers)
    for one in sorted(seconds, reverse=True):
        ends[ends.index(min(ends))] += one
    return max(ends) if seconds else None


def clock_in(seconds: float) -> str:
    """The time of day in so many seconds: `14:05`; with the day if it is another one."""
    then = time.localtime(time.time() + seconds)
    return time.strftime("%H:%M" if then.tm_yday == time.localtime().tm_yday else "%a %H:%M", then)
