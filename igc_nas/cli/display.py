"""What a terminal shows: tables on stdout, the progress of a search on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from igc_nas.arch.cost import Row, cost_of
from igc_nas.arch.plan import Act, Conv, Interleave, Layer, Linear, Norm, Pool
from igc_nas.data.datasets import is_synthetic
from igc_nas.engine.events import Ended, Event, Exhausted, Noticed, Opened, Progress, Started
from igc_nas.io.resources import search_command, study_argument
from igc_nas.io.units import format_count, format_ms, format_seconds, printable
from igc_nas.study.lock import Owner, Running
from igc_nas.study.objectives import values
from igc_nas.study.pareto import Front, RunningVolume
from igc_nas.study.records import Candidate, Epoch, Trial, deployed_text
from igc_nas.study.status import Status
from igc_nas.study.study import Study

WIDE = 200
LEAST_FOR_ESTIMATE, SAY_LEFT_EVERY = 3, 10
"""Trials that must have ended before the rest is estimated; how often a log is told of it."""


def console(*, stderr: bool = False) -> Console:
    """A console for stdout (data) or stderr (progress); a pipe is wide, so that no cell is cut."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else WIDE)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = ()) -> Table:
    """A plain table; numbers to the right, the columns named in `left` to the left."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_left = column in left
        made.add_column(column, justify="left" if is_left else "right", no_wrap=not is_left, overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def candidate_cells(candidate: Candidate) -> list[str]:
    """A candidate as the cells of `CANDIDATE_COLUMNS`."""
    latency = candidate.latency
    low, high = latency.normalised_interval_ms
    return [
        str(candidate.trial),
        f"{100 * candidate.score.error:.2f}",
        format_count(candidate.cost.params),
        format_count(candidate.cost.macs),
        format_ms(latency.normalised_ms).removesuffix(" ms") + (" noisy" if latency.noisy else ""),
        f"{low:.3g}-{high:.3g}",
        deployed_text(candidate),
        str(candidate.arch),
    ]


CANDIDATE_COLUMNS = (
    "trial",
    "error %",
    "params",
    "MACs",
    "latency ms",
    "95 %",
    "runs as",
    "architecture",
)


def front_table(study: Study, front: Sequence[Candidate], objectives: Sequence[str]) -> Group:
    """The front of a study, with what its numbers are of."""
    spec = study.spec
    volume = study.hypervolume(objectives)
    title = (
        f"{spec.name}: front of {len(front)} of {len(study.candidates)} candidates by {', '.join(objectives)}"
        f"; data: {data_label(spec.dataset)}"
        + ("" if volume is None else f"; hypervolume {volume:.4f}")
        + f"\nlatency: {spec.latency.runtime}, batch {spec.latency.batch}, {spec.latency.threads} thread(s), "
        f"{spec.latency.dtype}, on {spec.latency.device}; runs as: form, its parameters, MACs and weights"
    )
    cells = map(candidate_cells, front)
    return Group(Text(printable(title)), table(CANDIDATE_COLUMNS, cells, left=("runs as", "architecture")))


def data_label(dataset: str) -> str:
    """The dataset's label, loud where it is synthetic."""
    return f"{dataset} (SYNTHETIC: says nothing about CIFAR)" if is_synthetic(dataset) else dataset


def plan_table(title: str, rows: Iterable[Row]) -> Group:
    """A plan layer by layer: what it is, the shape it writes, parameters and MACs."""
    columns = ("block", "layer", "shape", "params", "MACs")
    cells = (
        (
            row.block,
            ("shortcut: " if row.in_shortcut else "") + layer_text(row.layer),
            " x ".join(map(str, row.shape)),
            f"{row.cost.params:,}",
            f"{row.cost.macs:,}",
        )
        for row in rows
    )
    return Group(Text(printable(title)), table(columns, cells, left=("block", "layer")))


def layer_text(layer: Layer) -> str:
    """One layer in words."""
    match layer:
        case Conv(name, c_in, c_out, kernel, stride, groups):
            text = f"{name}: conv {kernel}x{kernel} {c_in}->{c_out}"
            return text + (f" groups {groups}" if groups > 1 else "") + (f" stride {stride}" if stride > 1 else "")
        case Interleave(_, groups):
            return f"interleave({groups})" + (" = identity" if layer.is_identity else "")
        case Norm(name, _):
            return f"{name}: batch norm"
        case Act(kind):
            return kind
        case Pool():
            return "global average pool"
        case Linear(name, features, classes):
            return f"{name}: linear {features}->{classes} with bias"
    raise AssertionError(layer)


def trial_line(trial: Trial) -> str:
    """One line for a trial that has ended."""
    head = f"trial {trial.number:>4}  {trial.state:<10}"
    if trial.candidate:
        c = trial.candidate
        noisy = " noisy" if c.latency.noisy else ""
        return (
            f"{head} error {100 * c.score.error:5.2f} %  params {format_count(c.cost.params):>7}  "
            f"MACs {format_count(c.cost.macs):>7}  latency {format_ms(c.latency.normalised_ms):>8}{noisy} "
            f"{c.latency.form}  {trial.wall_s or 0:5.1f} s  {c.arch}"
        )
    return f"{head} {trial.reason or ''}"


class Standing:
    """How far a study is: what has ended, its front and its hypervolume, as trials end one by one."""

    def __init__(self, study: Study) -> None:
        self.spec = study.spec
        self.ended = study.ended
        self._front = Front(len(self.spec.objectives))
        is_scaled = all(name in self.spec.bounds for name in self.spec.objectives)
        self._volume = RunningVolume(len(self.spec.objectives)) if is_scaled else None
        for candidate in study.candidates:
            self._join(candidate)

    def add(self, trial: Trial) -> None:
        """Take a trial that has ended."""
        self.ended += trial.state in ("complete", "stopped")
        if trial.candidate:
            self._join(trial.candidate)

    def _join(self, candidate: Candidate) -> None:
        if self.spec.over_budget(candidate.cost) is None:
            point = values(candidate, self.spec.objectives)
            self._front.add(point)
            if self._volume:
                self._volume.add(self.spec.scaled(dict(zip(self.spec.objectives, point, strict=True))))

    @property
    def text(self) -> str:
        """For the line of facts."""
        volume = f"   hypervolume {self._volume.volume:.4f}" if self._volume else ""
        return f"front {len(self._front)}{volume}"


class SearchDisplay:
    """Shows a search as it runs: live on a terminal, one line per completed or failed trial otherwise.

    A context manager whose `show` takes the events of `search`.
    """

    def __init__(self, target: int | None, timeout_s: float | None, *, quiet: bool = False) -> None:
        self._standing: Standing | None = None
        self._target = target
        self._timeout_s = timeout_s
        self._quiet = quiet
        self._ends = 0
        """Trials of this run that have ended with something to show."""
        self._console = console(stderr=True)
        self._began = time.monotonic()
        self._running: dict[int, tuple[str, str]] = {}
        self._unfit = 0
        self._live = Live(console=self._console, refresh_per_second=2, get_renderable=self._render, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """Take an event."""
        match event:
            case Opened(study):
                self._standing = Standing(study)
            case Started(job):
                cost = cost_of(job.arch)
                text = f"{format_count(cost.params)} params, {format_count(cost.macs)} MACs  {job.arch}"
                self._running[job.number] = (text, "starting")
            case Progress(number, doing, epoch):
                text, _ = self._running.get(number, ("", ""))
                self._running[number] = (text, self._progress(doing, epoch))
            case Ended(trial):
                self._ended(trial)
            case Exhausted(reason):
                self._say(f"nothing new to try: {reason}")
            case Noticed(text):
                self._say(text)

    def _progress(self, doing: str, epoch: Epoch | None) -> str:
        """How far a running trial is: its epoch, and its accuracy on the images that it is trained on."""
        if epoch is None:
            return doing
        samples = self._standing.spec.recipe.samples if self._standing else epoch.samples
        return f"{doing}: {epoch.samples:,} of {samples:,} images, accuracy {1 - epoch.train_error:.0%}"

    def _ended(self, trial: Trial) -> None:
        self._running.pop(trial.number, None)
        if self._standing:
            self._standing.add(trial)
        if trial.state not in ("complete", "stopped", "failed"):
            self._unfit += 1
        else:
            self._say(trial_line(trial))
            self._ends += 1
            if self._ends % SAY_LEFT_EVERY == 0 and (left := self._left()):
                self._say(left)

    def _left(self) -> str:
        """How long the trials that are left will take, as fast as those of this run went."""
        if not (self._target and self._standing and self._ends >= LEAST_FOR_ESTIMATE):
            return ""
        missing = max(0, self._target - self._standing.ended)
        each = (time.monotonic() - self._began) / self._ends
        return f"about {format_seconds(missing * each)} left for {missing} trials"

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._console.print(Text(printable(line)), soft_wrap=True)

    def _render(self) -> Group:
        done = self._standing.ended if self._standing else 0
        bars = Table.grid()
        if self._target:
            bars.add_row(ProgressBar(total=self._target, completed=done, width=40))
        lines = Table.grid(padding=(0, 2))
        if self._standing is None:
            lines.add_row("starting the workers: loading data, calibrating the latency scale")
        for number, (text, state) in sorted(self._running.items()):
            lines.add_row(f"trial {number}", Text(state), Text(text, overflow="ellipsis", no_wrap=True))
        return Group(Text(self._facts(done)), bars, lines)

    def _facts(self, done: int) -> str:
        spent = time.monotonic() - self._began
        facts = (
            f"trials {done}/{self._target}" if self._target else f"trials {done}",
            self._standing.text if self._standing else "",
            f"{format_seconds(max(0.0, self._timeout_s - spent))} left" if self._timeout_s else format_seconds(spent),
            "" if self._timeout_s else self._left(),
            f"{self._unfit} suggestions not built" if self._unfit else "",
        )
        return "   ".join(filter(None, facts))


def status_lines(status: Status) -> list[str]:
    """How a study stands, for people."""
    study, owner = status.study, status.owner
    volume = study.hypervolume()
    ran = ", ".join(f"{count} {state}" for state, count in sorted(status.counts.items()))
    front = f"{len(study.front())} of {len(study.candidates)} candidates"
    head = [
        f"study     {study.spec.name}" + (f", in {study.folder}" if study.folder else ""),
        f"data      {data_label(study.spec.dataset)}",
        f"searched  {_owner_words(owner)}",
        f"trials    {ran or 'none yet'}",
        f"front     {front}" + ("" if volume is None else f"; hypervolume {volume:.4f}"),
    ]
    running = [f"running   {_running_words(trial, far)}" for trial, far in status.running]
    waiting = [f"waits     trial {trial.number}  {trial.arch}" for trial in status.interrupted]
    failed = [f"failed    {failure_words(trial)}" for trial in status.failed]
    commands = [f"  {command}" for command in status.next_commands()]
    return [*head, *running, *waiting, *failed, *(["", "next:", *commands] if commands else [])]


def _owner_words(owner: Owner | None) -> str:
    if owner is None:
        return "by nobody now"
    seen = (
        "" if owner.process.is_alive() else f", last seen {owner.seen} (another machine: it cannot be seen from here)"
    )
    return f"by {owner.process}, since {owner.since}{seen}"


def _running_words(trial: Trial, far: Running | None) -> str:
    doing = far.doing if far else "running"
    if far and far.samples is not None and far.train_error is not None:
        doing += f", {far.samples:,} images, accuracy {1 - far.train_error:.0%}"
    return f"trial {trial.number}  {doing}; by {trial.process}, since {trial.started}  {trial.arch}"


def trial_lines(study: Study, trial: Trial) -> list[str]:
    """What became of a trial; of one that failed, how to have it tried again."""
    wall = "" if trial.wall_s is None else f", {trial.wall_s:.1f} s"
    lines = [f"{trial.state} in {study.spec.name}" + (f", begun {trial.started}{wall}" if trial.started else "")]
    if trial.state == "failed":
        argument = study_argument(study.folder, study.spec.name)
        again = f"{search_command(study.folder, study.spec.name)} --first {argument}:{trial.number}"
        return [*lines, failure_words(trial), f"to try it again: {again}"]
    return [*lines, trial_line(trial)]


def failure_words(trial: Trial) -> str:
    """Why a trial failed, and where."""
    failure = "" if trial.failure is None else f"{trial.failure.kind}, {trial.failure.where}: "
    return f"trial {trial.number}  {failure}{trial.reason or 'no reason is recorded'}"
