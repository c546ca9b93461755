"""The progress of a search, on the terminal."""

from __future__ import annotations

import datetime
import math
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from igc_nas.arch.cost import cost_of
from igc_nas.engine.events import Ended, Event, Exhausted, LongerJob, Notice, Opened, Progress, Started
from igc_nas.io.console import NotebookLive, console, live
from igc_nas.io.text import one_line, printable, wrapped
from igc_nas.io.units import fixed_count, format_count, format_seconds
from igc_nas.study.objectives import values
from igc_nas.study.pareto import Front, RunningVolume
from igc_nas.study.records import Candidate, Epoch, Trial
from igc_nas.study.study import Study

TENTHS, LAST = 10, 10
LEAST_FOR_ESTIMATE, SAY_LEFT_EVERY = 3, 10
"""The number of ended trials before the remaining time is estimated; a log has the estimate every 10 trials."""


def trial_line(trial: Trial, width: int | None = None) -> str:
    """A trial that has ended, in one line; with a `width` without what it has no room for."""
    name = f"baseline {trial.baseline}  " if trial.baseline else longer_words(trial)
    if trial.candidate is None:
        line = f"trial {trial.number:>4}  {name}{trial.state}: {one_line(trial.reason or '', 1000)}"
        return line if width is None or len(line) <= width else line[: width - 3] + "..."
    c = trial.candidate
    took = f" {trial.wall_s or 0:5.1f} s"
    params, macs = f"  params {fixed_count(c.cost.params):>7}", f"  MACs {fixed_count(c.cost.macs):>7}"
    latency = f"  {c.latency.normalised_ms:6.3f} ms" + (" noisy" if c.latency.noisy else "      ")
    head = f"trial {trial.number:>4}  {name}error {100 * c.score.error:5.2f} %"
    whole = f"{head}{params}{macs}{latency}{took}"
    if width is None:
        return f"{whole}  {c.latency.form}  {c.arch}"
    lines = f"{whole}  {c.latency.form}  {c.arch}", whole, f"{head}{params}{latency}", f"{head}{params}", head
    return next((line for line in lines if len(line.rstrip()) <= width), head)


def longer_words(trial: Trial) -> str:
    """`trial 7 for longer, 40,000 images  `; empty for a trial that is no longer training."""
    if trial.longer_of is None:
        return ""
    images = f", {trial.candidate.score.samples:,} images" if trial.candidate else ""
    return f"trial {trial.longer_of} for longer{images}  "


class StudyProgress:
    """The number of ended trials, the front and the hypervolume of a study, updated trial by trial."""

    def __init__(self, study: Study) -> None:
        self.spec = study.spec
        self.ended = study.ended
        self.best = [math.inf] * TENTHS
        """The least error of the candidates in each tenth of the budget."""
        self._front = Front(len(self.spec.front_objectives))
        self._joined: deque[bool] = deque(maxlen=LAST)
        """Of the last candidates, whether each joined the front."""
        is_scaled = all(name in self.spec.bounds for name in self.spec.front_objectives)
        self._volume = RunningVolume(len(self.spec.front_objectives)) if is_scaled else None
        for candidate in study.candidates:
            self._join(candidate)

    def add(self, trial: Trial) -> None:
        """Add a trial that has ended, unless it is a baseline or a longer training."""
        if trial.is_aside:
            return
        self.ended += trial.state in ("complete", "pruned")
        if trial.candidate:
            self._join(trial.candidate)

    def _join(self, candidate: Candidate) -> None:
        if self.spec.is_within_budget(candidate):
            if self._budget:
                tenth = min(TENTHS - 1, int(TENTHS * candidate.cost.as_dict()[self._budget[0]] / self._budget[1]))
                self.best[tenth] = min(self.best[tenth], candidate.score.error)
            point = values(candidate, self.spec.front_objectives)
            self._joined.append(self._front.add(point))
            if self._volume:
                self._volume.add(self.spec.scaled(dict(zip(self.spec.front_objectives, point, strict=True))))

    @property
    def _budget(self) -> tuple[str, int] | None:
        """(params or macs, the limit of the budget on it); None without one."""
        limits = (("params", self.spec.budget.params), ("macs", self.spec.budget.macs))
        return next(((name, limit) for name, limit in limits if limit is not None), None)

    def best_lines(self, width: int = 80) -> list[str]:
        """The least error so far within each tenth of the budget: a line of limits above a line of errors.

        Fifths on less than 80 columns, nothing on less than 45.
        """
        if self._budget is None or width < 45:
            return []
        name, limit = self._budget
        step = 1 if width >= 80 else 2
        tops = [f"{format_count(limit * number // TENTHS):>6}" for number in range(step, TENTHS + 1, step)]
        best = [min(self.best[first : first + step]) for first in range(0, TENTHS, step)]
        errors = ["     -" if error == math.inf else f"{100 * error:6.1f}" for error in best]
        return [f"{'MACs' if name == 'macs' else name} to {' '.join(tops)}", f"best %    {' '.join(errors)}"]

    @property
    def facts(self) -> list[str]:
        """The front, how it grows, and its hypervolume, in words."""
        grows = f" ({sum(self._joined)} of the last {LAST} joined it)" if len(self._joined) == LAST else ""
        volume = [f"hypervolume {self._volume.volume:.4f}"] if self._volume else []
        return [f"front {len(self._front)}{grows}", *volume]


def _packed(facts: Sequence[str], width: int) -> list[str]:
    """Facts side by side, on as many lines as they need."""
    lines = [""]
    for fact in facts:
        longer = f"{lines[-1]}   {fact}" if lines[-1] else fact
        lines[-1:] = [longer] if len(longer) <= width else [lines[-1], fact]
    return lines


def _one_line(text: str) -> Text:
    return Text(printable(text, lines=False), no_wrap=True, overflow="ellipsis")


class SearchDisplay:
    """Shows a search as it runs: live on a terminal, one line per completed or failed trial otherwise.

    A context manager whose `show` takes the events of `search`.
    """

    def __init__(
        self,
        target: int | None,
        timeout_s: float | None,
        *,
        quiet: bool = False,
        ended: int = 0,
        baselines: int = 0,
    ) -> None:
        """`ended` trials of a study that is continued are known before it is open.

        The time limit begins when the `baselines` have ended.
        """
        self._known = ended
        self._study_progress: StudyProgress | None = None
        self._target = target
        self._timeout_s = timeout_s
        self._quiet = quiet
        self._ends = 0
        """The number of trials of this run that have ended, without infeasible ones and duplicates."""
        self._console = console()
        self._began = time.monotonic()
        self._baselines = baselines
        self._baselines_ended = 0
        self._running: dict[int, tuple[str, str]] = {}
        self._longer: set[int] = set()
        """The running trials that are longer trainings."""
        self._not_built = 0
        self._live = live(self, self._console)

    def __enter__(self) -> Self:
        if (self._console.is_terminal or isinstance(self._live, NotebookLive)) and not self._quiet:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Opened(study):
                self._study_progress = StudyProgress(study)
            case Started(job):
                cost = cost_of(job.arch)
                name = (
                    f"baseline {job.baseline}  " if job.baseline else "longer  " if isinstance(job, LongerJob) else ""
                )
                text = f"{name}{format_count(cost.params)} params, {format_count(cost.macs)} MACs  {job.arch}"
                self._running[job.number] = (text, "starting")
                if isinstance(job, LongerJob):
                    self._longer.add(job.number)
            case Progress(number, doing, epoch):
                text, _ = self._running.get(number, ("", ""))
                self._running[number] = (text, self._progress(number, doing, epoch))
            case Ended(trial):
                self._ended(trial)
            case Exhausted(reason):
                self._say(f"nothing new to try: {reason}")
            case Notice(text):
                self._say(text)
        if isinstance(self._live, NotebookLive):
            self._live.update()

    def _progress(self, number: int, doing: str, epoch: Epoch | None) -> str:
        """The step of a running trial, with its images and the error on them."""
        if epoch is None:
            return doing
        samples = epoch.samples
        if self._study_progress:
            samples = self._study_progress.spec.recipe_of(longer=number in self._longer).samples
        return f"{doing}: {epoch.samples:,} of {samples:,} images, training error {100 * epoch.train_error:.0f} %"

    def _ended(self, trial: Trial) -> None:
        self._running.pop(trial.number, None)
        if self._study_progress:
            self._study_progress.add(trial)
        if trial.baseline:
            self._say(trial_line(trial, self._width))
            self._baselines_ended += 1
            self._began = time.monotonic()
        elif trial.longer_of is not None:
            self._say(trial_line(trial, self._console.width if self._console.is_terminal else None))
        elif trial.state not in ("complete", "pruned", "failed"):
            self._not_built += 1
        else:
            self._say(trial_line(trial, self._width))
            self._ends += 1
            if self._ends % SAY_LEFT_EVERY == 0 and (left := self._left()):
                self._say(left)

    @property
    def _width(self) -> int | None:
        """Characters of a line; None where no line has to end."""
        if isinstance(self._live, NotebookLive):
            return self._live.WIDTH
        return self._console.width if self._console.is_terminal else None

    def _left(self) -> str:
        """The estimated time for the remaining trials, at the speed of this run."""
        if not (self._target and self._study_progress and self._ends >= LEAST_FOR_ESTIMATE):
            return ""
        each = (time.monotonic() - self._began) / self._ends
        left = max(0, self._target - self._study_progress.ended) * each
        if self._timeout_s is not None and (time_left := self._timeout_s - (time.monotonic() - self._began)) < left:
            return f"{format_seconds(max(0.0, time_left))} left by the time limit, {_ends_at(time_left)}"
        return f"about {format_seconds(left)} left, {_ends_at(left)}"

    def _say(self, line: str) -> None:
        if isinstance(self._live, NotebookLive):
            self._live.say(printable(line))
        elif not self._quiet:
            for part in wrapped([printable(line)], self._width):
                self._console.print(Text(part), soft_wrap=True, highlight=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        progress = self._study_progress
        done = progress.ended if progress else self._known
        facts = _packed(self._facts(done), options.max_width)
        lines: list[str] = []
        bar = Table.grid()
        if self._target:
            bar.add_row(ProgressBar(total=self._target, completed=done, width=40))
        if progress is None:
            waited = format_seconds(time.monotonic() - self._began)
            lines.append(f"starting the workers: loading data, calibrating the latency scale ({waited})")
        else:
            lines += [*_packed(progress.facts, options.max_width), *progress.best_lines(options.max_width)]
        running = [f"trial {number:>4}  {state}  {text}" for number, (text, state) in sorted(self._running.items())]
        yield Group(*map(_one_line, facts), bar, *map(_one_line, [*lines, *running]))

    def _facts(self, done: int) -> list[str]:
        spent = time.monotonic() - self._began
        facts = [
            f"trials {done}/{self._target}" if self._target else f"trials {done}",
            f"baselines {self._baselines_ended}/{self._baselines}" if self._baselines else "",
            f"{3600 * self._ends / spent:,.0f} trials/h" if self._ends >= LEAST_FOR_ESTIMATE else "",
            self._left() or self._time_left(spent),
            f"{self._not_built} suggestions not built" if self._not_built else "",
        ]
        return list(filter(None, facts))

    def _time_left(self, spent: float) -> str:
        """The time that is left before the limit, or that was spent."""
        if self._timeout_s is None:
            return format_seconds(spent)
        left = self._timeout_s - spent
        return f"at most {format_seconds(max(0.0, left))} left, {_ends_at(left)}"


def _ends_at(left_s: float) -> str:
    """`ends 21:40`; with the day where it is another one."""
    now = datetime.datetime.now()
    end = now + datetime.timedelta(seconds=max(0.0, left_s))
    return f"ends {end:%H:%M}" if end.date() == now.date() else f"ends {end:%a %H:%M}"
