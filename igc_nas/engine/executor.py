"""What a coordinator and its evaluators say to each other, wherever those are: in processes here, or on a cluster.

An executor is where evaluators sit. The coordinator submits jobs to it, reads messages from it and answers those that
ask whether a training goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from igc_nas.arch.config import ArchConfig
from igc_nas.data.datasets import DatasetInfo
from igc_nas.engine.events import Job, Progress
from igc_nas.io.units import format_seconds
from igc_nas.study.records import Epoch, Failure, Latency, Rung, Score, TimeBreakdown, Unfinished
from igc_nas.study.spec import Calibration, StudySpec

ExecutorName = Literal["processes", "ray"]


@dataclass(frozen=True)
class WorkerSlot:
    """Where an evaluator works: a device, its threads, and whom it shares the device with.

    `place` of `sharing` evaluators on that device, which keep quiet for each other through files in `room`.
    """

    info: DatasetInfo
    device: str
    """torch's name."""
    threads: int
    room: Path
    place: int = 0
    sharing: int = 1
    folder: Path | None = None
    """The study's."""
    latency_command: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What an evaluation gave. Without a score the latency was over the budget, and nothing was trained.

    `score` is `Unfinished` where the training was stopped at a rung.
    """

    latency: Latency
    score: Score | Unfinished | None
    spent: TimeBreakdown | None = None


@dataclass(frozen=True)
class Reporter:
    """Whom an evaluation tells how far it is; the default is nobody, and every training goes on."""

    doing: Callable[[str], None] = lambda _: None
    """What is begun: "measuring", "choosing forms", "training"."""
    epoch: Callable[[Epoch], None] = lambda _: None
    go_on: Callable[[Latency, Rung], bool] = lambda latency, rung: True
    waits: Callable[[bool], None] = lambda _: None
    """True: from here on it waits for others, who use the device. False: no longer."""


class Evaluating(Protocol):
    """An evaluator: `igc_nas.engine.evaluator.Evaluator`, or one of your own."""

    spec: StudySpec

    def calibrate(self) -> Calibration:
        """Measure the reference and the ends of the latency scale."""
        ...

    def __call__(self, arch: ArchConfig, seed: int, watch: Reporter) -> Outcome:
        """Evaluate an architecture; raises what goes wrong."""
        ...


MakeEvaluator = Callable[[StudySpec, WorkerSlot], Evaluating]
"""Makes an evaluator in the process that it will work in; to get there it is pickled, so it is a module's function."""


@dataclass(frozen=True)
class TrialCompleted:
    """A trial has ended. Without a score its latency was over the budget."""

    number: int
    latency: Latency
    score: Score | None
    spent: TimeBreakdown | None = None


@dataclass(frozen=True)
class RungReport:
    """A training has reached a rung and waits to hear whether it goes on (`Executor.answer`)."""

    number: int
    latency: Latency
    rung: Rung


@dataclass(frozen=True)
class TrialPruned:
    """A training was stopped at a rung."""

    number: int
    latency: Latency
    training: Unfinished
    spent: TimeBreakdown | None = None


@dataclass(frozen=True)
class TrialFailed:
    """A trial could not be evaluated."""

    number: int
    reason: str
    failure: Failure = field(default_factory=lambda: Failure(kind="error", where="evaluating"))


Message = Progress | RungReport | TrialCompleted | TrialPruned | TrialFailed


class Executor(Protocol):
    """Evaluators for one study. A context manager: at its end all of them are gone."""

    def __enter__(self) -> Self:
        """Start the evaluators."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End them."""
        ...

    def calibrate(self) -> Calibration:
        """Have one evaluator measure the scale while the others are idle. Raises what keeps it from that."""
        ...

    def tell_spec(self, spec: StudySpec) -> None:
        """Give every evaluator the spec as it is now (after calibration)."""
        ...

    def idle(self) -> int:
        """How many evaluators wait for a job."""
        ...

    def running(self) -> list[Job]:
        """The jobs under way."""
        ...

    def submit(self, job: Job) -> None:
        """Give a job to an idle evaluator."""
        ...

    def answer(self, number: int, go_on: bool) -> None:
        """Tell the evaluator that is at a rung with trial `number` whether to go on."""
        ...

    def messages(self, timeout: float | None) -> Iterator[Message]:
        """What evaluators have to say, waiting at most `timeout` seconds for the first word.

        A dead evaluator's trial has `TrialFailed`, and another one is in its place. Raises what no evaluator can live
        with.
        """
        ...


@dataclass
class JobTimer:
    """How long a job has been worked on, without the time in which it waited for others."""

    began: float | None = None
    waited_s: float = 0.0
    waits: bool = False

    def spent_s(self, now: float) -> float:
        """Seconds up to `now`, as far as they are known: those of a wait that has not ended are counted."""
        return 0.0 if self.began is None else now - self.began - self.waited_s

    def hear(self, word: Waiting) -> None:
        """Take in that the evaluator waits, or that it does no longer."""
        self.waits = word.waited_s is None
        self.waited_s += word.waited_s or 0.0


@dataclass(kw_only=True)
class WorkerHandle:
    """One evaluator, from its executor's side."""

    ready: bool = False
    job: Job | None = None
    doing: str = "starting"
    clock: JobTimer = field(default_factory=JobTimer)

    def begin(self, job: Job) -> None:
        """Note a job. Its time begins when the evaluator is ready."""
        self.job, self.doing, self.clock = job, "starting", JobTimer(time.monotonic() if self.ready else None)

    def hear(self, word: object) -> None:
        """Take in what the evaluator says."""
        if word == READY:
            self.ready, self.clock.began = True, time.monotonic()
        elif isinstance(word, Waiting):
            self.clock.hear(word)
        elif isinstance(word, Progress):
            self.doing = word.doing
        elif isinstance(word, TrialCompleted | TrialPruned | TrialFailed):
            self.job = None

    def left_s(self, limit_s: float | None) -> float | None:
        """Seconds until its job has taken longer than `limit_s`; None: no end is in sight."""
        if limit_s is None or self.job is None or self.clock.began is None or self.clock.waits:
            return None
        return max(0.0, limit_s - self.clock.spent_s(time.monotonic()))

    def too_long(self, limit_s: float) -> TrialFailed:
        """What becomes of its job when that has taken longer than `limit_s`."""
        assert self.job is not None
        reason = f"it took longer than {format_seconds(limit_s)} (--trial-timeout)"
        return TrialFailed(self.job.number, reason, Failure(kind="timeout", where=self.doing))


READY = "ready"
"""The first word of an evaluator that is made."""


@dataclass(frozen=True)
class Waiting:
    """A worker waits for others, or does no longer and has waited `waited_s`: that is not its trial's time."""

    number: int
    waited_s: float | None = None
