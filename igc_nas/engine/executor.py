"""The interface between a coordinator and its evaluators, which run in processes of this machine or on a cluster.

An executor manages the evaluators. The coordinator submits jobs to it, reads messages from it and answers each report
of a rung. An executor sends its evaluators requests (`Request`); an evaluator sends messages back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from igc_nas.arch.config import ArchConfig
from igc_nas.data.datasets import DatasetInfo
from igc_nas.engine.events import Job, Progress
from igc_nas.errors import NO_GRAPH
from igc_nas.io.units import format_seconds
from igc_nas.study.finals import Trained, TrainingProgress
from igc_nas.study.records import Epoch, Failure, Latency, Rung, Score, TimeBreakdown, Unfinished
from igc_nas.study.spec import Calibration, StudySpec

ExecutorName = Literal["processes", "ray"]


@dataclass(frozen=True)
class WorkerSlot:
    """The resources of an evaluator: a device, threads, and its share of the device.

    It is number `index` (from 0) of `workers_on_device` evaluators, which share a CPU by file locks in `lock_folder`, a
    GPU by those of its own folder (see `igc_nas.engine.device_lock`).
    """

    info: DatasetInfo
    device: str
    """torch's name."""
    threads: int
    lock_folder: Path
    index: int = 0
    workers_on_device: int = 1
    folder: Path | None = None
    """The study's folder."""
    latency_command: str | None = None
    deterministic: bool = False
    """Whether the process's results on a GPU are to be equal bit for bit."""


@dataclass(frozen=True)
class Outcome:
    """The result of an evaluation. `score` is None if the latency was over the budget, so that nothing was trained.

    It is `Unfinished` if the training was pruned at a rung.
    """

    latency: Latency
    score: Score | Unfinished | None
    spent: TimeBreakdown | None = None


class Reporter:
    """Takes the progress of one evaluation. This one ignores it, and lets every training continue."""

    def step(self, name: str) -> None:
        """A step begins: "measuring", "choosing forms", "training"."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch of the training has ended."""

    def training(self, progress: TrainingProgress) -> None:
        """How far a training to the end is."""

    def notice(self, text: str) -> None:
        """Something of this machine does not work, and another way is taken."""

    def should_continue(self, latency: Latency, rung: Rung) -> bool:
        """Whether the training continues after this rung."""
        return True

    def waiting(self, is_waiting: bool) -> None:
        """The evaluation begins to wait until others release the device (True), or has stopped waiting (False)."""


class Evaluating(Protocol):
    """An evaluator: `igc_nas.engine.evaluator.Evaluator`, or one of your own."""

    spec: StudySpec
    """Replaced once, by the spec with the latency scale, after the calibration."""

    def calibrate(self) -> Calibration:
        """Measure the reference and the ends of the latency scale."""
        ...

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        """Evaluate an architecture. An exception is recorded as the reason why the trial failed."""
        ...


MakeEvaluator = Callable[[StudySpec, WorkerSlot], Evaluating]
"""Makes an evaluator, in the evaluator's process. It is pickled, so it must be a module-level function."""


# Requests: what an executor sends to an evaluator.


@dataclass(frozen=True)
class RunJob:
    """Evaluate an architecture; the answer is a `TrialCompleted`, `TrialPruned` or `TrialFailed`."""

    job: Job


@dataclass(frozen=True)
class Calibrate:
    """Measure the latency scale; the answer is a `Calibration` or an `IgcNasError`."""


@dataclass(frozen=True)
class SetSpec:
    """Use another spec from now on. `spec` is `StudySpec.to_dict`: a `StudySpec` would be sent with its caches."""

    spec: dict[str, Any]


@dataclass(frozen=True)
class RungAnswer:
    """The answer to a `RungReport`."""

    should_continue: bool


Request = RunJob | Calibrate | SetSpec | RungAnswer


# Messages: what an evaluator sends to its executor.


@dataclass(frozen=True)
class TrialCompleted:
    """A trial has ended. `score` is None if its latency was over the budget."""

    number: int
    latency: Latency
    score: Score | None
    spent: TimeBreakdown | None = None


@dataclass(frozen=True)
class RungReport:
    """A training has reached a rung and waits for `Executor.answer`."""

    number: int
    latency: Latency
    rung: Rung


@dataclass(frozen=True)
class TrialPruned:
    """A training was pruned at a rung."""

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

    @property
    def recorded_no_graph(self) -> bool:
        """Whether CUDA recorded no graph of its training step: processes that are started then train without."""
        return self.reason.startswith(NO_GRAPH)


@dataclass(frozen=True)
class TrainingTimed:
    """How fast a training to the end will run."""

    number: int
    images_per_s: float


@dataclass(frozen=True)
class TrainingEnded:
    """A training to the end has been tested."""

    number: int
    trained: Trained


@dataclass(frozen=True)
class Waiting:
    """A worker begins to wait for others (`waited_s` is None), or has waited `waited_s`, which no timeout counts."""

    number: int
    waited_s: float | None = None


READY = "ready"
"""The first message of an evaluator, once it is constructed."""

Message = Progress | RungReport | TrialCompleted | TrialPruned | TrialFailed | TrainingTimed | TrainingEnded


class Executor(Protocol):
    """Evaluators for one study. A context manager, which ends all of them."""

    def __enter__(self) -> Self:
        """Start the evaluators."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End the evaluators."""
        ...

    def calibrate(self) -> Calibration:
        """Measure the latency scale in one evaluator while the others are idle. Raises the evaluator's error."""
        ...

    def set_spec(self, spec: StudySpec) -> None:
        """Replace the spec of every evaluator, after the calibration."""
        ...

    def idle(self) -> int:
        """The number of evaluators without a job."""
        ...

    def running(self) -> list[Job]:
        """The jobs that have not ended."""
        ...

    def submit(self, job: Job) -> None:
        """Give a job to an idle evaluator."""
        ...

    def answer(self, number: int, should_continue: bool) -> None:
        """Answer the `RungReport` of trial `number`."""
        ...

    def messages(self, timeout: float | None) -> Iterator[Message]:
        """The messages of evaluators, waiting at most `timeout` seconds for the first one.

        A dead evaluator is replaced, and its trial ends with `TrialFailed`. Raises an error that concerns all
        evaluators.
        """
        ...


@dataclass
class JobTimer:
    """The time spent on a job, without the time in which it waited for other evaluators."""

    began: float | None = None
    waited_s: float = 0.0
    is_waiting: bool = False

    def spent_s(self, now: float) -> float:
        """Seconds up to `now`, including those of a wait that has not ended."""
        return 0.0 if self.began is None else now - self.began - self.waited_s

    def update(self, message: Waiting) -> None:
        """Begin or end a wait."""
        self.is_waiting = message.waited_s is None
        self.waited_s += message.waited_s or 0.0


@dataclass(kw_only=True)
class WorkerHandle:
    """One evaluator, as its executor tracks it."""

    ready: bool = False
    job: Job | None = None
    step: str = "starting"
    timer: JobTimer = field(default_factory=JobTimer)
    now: Callable[[], float] = time.monotonic

    def assign(self, job: Job) -> None:
        """Set its job, whose time begins when the evaluator is ready."""
        self.job, self.step, self.timer = job, "starting", JobTimer(self.now() if self.ready else None)

    def update(self, message: object) -> None:
        """Update the state of the evaluator by a message of its own."""
        match message:
            case str() if message == READY:
                self.ready, self.timer.began = True, self.now()
            case Waiting():
                self.timer.update(message)
            case Progress():
                self.step = message.doing
            case TrialCompleted() | TrialPruned() | TrialFailed() | TrainingTimed() | TrainingEnded():
                self.job = None

    def left_s(self, limit_s: float | None) -> float | None:
        """Seconds until its job exceeds `limit_s`; None if nothing limits it now."""
        if limit_s is None or self.job is None or self.timer.began is None or self.timer.is_waiting:
            return None
        return max(0.0, limit_s - self.timer.spent_s(self.now()))

    def timed_out(self, limit_s: float) -> TrialFailed:
        """The failure of its job, which has exceeded `limit_s`."""
        assert self.job is not None
        reason = f"it took longer than {format_seconds(limit_s)} (--trial-timeout)"
        return TrialFailed(self.job.number, reason, Failure(kind="timeout", where=self.step))
