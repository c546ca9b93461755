"""The progress of a search, on the terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from igc_nas.analysis.words import candidate_words
from igc_nas.arch.cost import cost_of
from igc_nas.engine.events import Ended, Event, Exhausted, Notice, Opened, Progress, Started
from igc_nas.io.console import console
from igc_nas.io.text import printable
from igc_nas.io.units import format_count, format_seconds
from igc_nas.study.objectives import values
from igc_nas.study.pareto import Front, RunningVolume
from igc_nas.study.records import Candidate, Epoch, Trial
from igc_nas.study.study import Study

LEAST_FOR_ESTIMATE, SAY_LEFT_EVERY = 3, 10
"""The number of ended trials before the remaining time is estimated; a log has the estimate every 10 trials."""


def trial_line(trial: Trial) -> str:
    """A trial that has ended, in one line."""
    head = f"trial {trial.number:>4}  {trial.state:<10}"
    if trial.baseline:
        state = "baseline" if trial.state == "complete" else trial.state
        head = f"trial {trial.number:>4}  {state:<10} {trial.baseline}: "
    if trial.candidate:
        c = candidate_words(trial.candidate)
        noisy = f" {c.noisy}" if c.noisy else ""
        return (
            f"{head} error {c.error:>7}  params {c.params:>7}  MACs {c.macs:>7}  latency {c.latency:>8}{noisy} "
            f"{trial.candidate.latency.form}  {trial.wall_s or 0:5.1f} s  {c.architecture}"
        )
    return f"{head} {trial.reason or ''}"


class StudyProgress:
    """The number of ended trials, the front and the hypervolume of a study, updated trial by trial."""

    def __init__(self, study: Study) -> None:
        self.spec = study.spec
        self.ended = study.ended
        self._front = Front(len(self.spec.front_objectives))
        is_scaled = all(name in self.spec.bounds for name in self.spec.front_objectives)
        self._volume = RunningVolume(len(self.spec.front_objectives)) if is_scaled else None
        for candidate in study.candidates:
            self._join(candidate)

    def add(self, trial: Trial) -> None:
        """Add a trial that has ended, unless it is a baseline."""
        if trial.baseline:
            return
        self.ended += trial.state in ("complete", "pruned")
        if trial.candidate:
            self._join(trial.candidate)

    def _join(self, candidate: Candidate) -> None:
        if self.spec.budget.violation(candidate.cost) <= 0:
            point = values(candidate, self.spec.front_objectives)
            self._front.add(point)
            if self._volume:
                self._volume.add(self.spec.scaled(dict(zip(self.spec.front_objectives, point, strict=True))))

    @property
    def text(self) -> str:
        """The front and its hypervolume in words."""
        volume = f"   hypervolume {self._volume.volume:.4f}" if self._volume else ""
        return f"front {len(self._front)}{volume}"


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
        baselines: int = 0,
        baselines_in_timeout: bool = True,
    ) -> None:
        self._study_progress: StudyProgress | None = None
        self._target = target
        self._timeout_s = timeout_s
        self._quiet = quiet
        self._ends = 0
        """The number of trials of this run that have ended, without infeasible ones and duplicates."""
        self._console = console(stderr=True)
        self._began = self._sampling_since = time.monotonic()
        self._baselines = baselines
        self._baselines_ended = 0
        self._baselines_in_timeout = baselines_in_timeout
        self._running: dict[int, tuple[str, str]] = {}
        self._not_built = 0
        self._live = Live(self, console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
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
                name = f"baseline {job.baseline}  " if job.baseline else ""
                text = f"{name}{format_count(cost.params)} params, {format_count(cost.macs)} MACs  {job.arch}"
                self._running[job.number] = (text, "starting")
            case Progress(number, doing, epoch):
                text, _ = self._running.get(number, ("", ""))
                self._running[number] = (text, self._progress(doing, epoch))
            case Ended(trial):
                self._ended(trial)
            case Exhausted(reason):
                self._say(f"nothing new to try: {reason}")
            case Notice(text):
                self._say(text)

    def _progress(self, doing: str, epoch: Epoch | None) -> str:
        """The step of a running trial, with its images and training accuracy."""
        if epoch is None:
            return doing
        samples = self._study_progress.spec.recipe.samples if self._study_progress else epoch.samples
        return f"{doing}: {epoch.samples:,} of {samples:,} images, accuracy {1 - epoch.train_error:.0%}"

    def _ended(self, trial: Trial) -> None:
        self._running.pop(trial.number, None)
        if self._study_progress:
            self._study_progress.add(trial)
        if trial.baseline:
            self._say(trial_line(trial))
            self._baselines_ended += 1
            self._sampling_since = time.monotonic()
            if not self._baselines_in_timeout:
                self._began = self._sampling_since
        elif trial.state not in ("complete", "pruned", "failed"):
            self._not_built += 1
        else:
            self._say(trial_line(trial))
            self._ends += 1
            if self._ends % SAY_LEFT_EVERY == 0 and (left := self._left()):
                self._say(left)

    def _left(self) -> str:
        """The estimated time for the remaining trials, at the speed of this run."""
        if not (self._target and self._study_progress and self._ends >= LEAST_FOR_ESTIMATE):
            return ""
        missing = max(0, self._target - self._study_progress.ended)
        each = (time.monotonic() - self._sampling_since) / self._ends
        return f"about {format_seconds(missing * each)} left for {missing} trials"

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._console.print(Text(printable(line)), soft_wrap=True)

    def __rich__(self) -> Group:
        done = self._study_progress.ended if self._study_progress else 0
        bars = Table.grid()
        if self._target:
            bars.add_row(ProgressBar(total=self._target, completed=done, width=40))
        lines = Table.grid(padding=(0, 2))
        if self._study_progress is None:
            lines.add_row("starting the workers: loading data, calibrating the latency scale")
        for number, (text, state) in sorted(self._running.items()):
            lines.add_row(f"trial {number}", Text(state), Text(text, overflow="ellipsis", no_wrap=True))
        return Group(Text(self._facts(done)), bars, lines)

    def _facts(self, done: int) -> str:
        spent = time.monotonic() - self._began
        facts = (
            f"trials {done}/{self._target}" if self._target else f"trials {done}",
            f"baselines {self._baselines_ended}/{self._baselines}" if self._baselines else "",
            self._study_progress.text if self._study_progress else "",
            f"{format_seconds(max(0.0, self._timeout_s - spent))} left" if self._timeout_s else format_seconds(spent),
            "" if self._timeout_s else self._left(),
            f"{self._not_built} suggestions not built" if self._not_built else "",
        )
        return "   ".join(filter(None, facts))
