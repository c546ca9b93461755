"""Trainings to the end in worker processes: how fast each will run, then each of them, as evaluations of a search run.

A training that crashes its process, runs out of memory or diverges costs that training only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from igc_nas.arch.cost import cost_of
from igc_nas.data.datasets import DatasetInfo
from igc_nas.engine.device_lock import lock_for
from igc_nas.engine.events import Event, Job, Notice, Progress, Started
from igc_nas.engine.executor import Reporter, TrainingEnded, TrainingTimed, TrialFailed, WorkerSlot
from igc_nas.engine.process_executor import ProcessExecutor
from igc_nas.errors import ConfigError
from igc_nas.evaluation.images import Images, load_test, load_train
from igc_nas.evaluation.latency import Measurer
from igc_nas.evaluation.retraining import CHECKPOINT_EVERY_S, Loader, Retraining, RetrainSpec
from igc_nas.io.files import read_text, write_whole
from igc_nas.nn.device import configure_torch, find_devices, make_deterministic
from igc_nas.nn.lowering.timing_cache import timing_cache_for
from igc_nas.study.finals import Trained
from igc_nas.study.records import Latency
from igc_nas.study.spec import Schedule, StudySpec


@dataclass(frozen=True)
class TrainingJob(Job):
    """A training in `folder`; with `latency_file` the network's latency is measured first, unless the file has it."""

    folder: Path
    latency_file: Path | None = None

    def evaluated_by(self, evaluator: Callable[..., Any], reporter: Any) -> Any:
        """Train."""
        assert isinstance(evaluator, Trainer)
        return evaluator.train(self, reporter)


@dataclass(frozen=True)
class TimingJob(Job):
    """How many images a second a training sees."""

    folder: Path

    def evaluated_by(self, evaluator: Callable[..., Any], reporter: Any) -> Any:
        """Time a few steps."""
        assert isinstance(evaluator, Trainer)
        return evaluator.images_per_s(self, reporter)


@dataclass(frozen=True)
class TrainingPlan:
    """What all trainings have in common. `study` is needed to measure latencies under its conditions."""

    schedule: Schedule
    info: DatasetInfo
    validate: int = 0
    """Training images that are held out and watched."""
    forms_folder: Path | None = None
    """Keeps the forms that networks train in; None: each training's own folder."""
    study: dict[str, Any] | None = None
    """`StudySpec.to_dict`."""
    load_train: Loader = load_train
    load_test: Loader = load_test
    checkpoint_every_s: float = CHECKPOINT_EVERY_S

    def spec(self, job: Job) -> RetrainSpec:
        """What determines the training of a job."""
        return RetrainSpec.parse(
            {
                "arch": job.arch,
                "schedule": self.schedule,
                "dataset": self.info.label,
                "dataset_sha256": self.info.sha256,
                "seed": job.seed,
                "validate": self.validate,
            }
        )


def trainer_at(plan: TrainingPlan, _: None, slot: WorkerSlot) -> Trainer:
    """The trainer of a worker slot."""
    return Trainer(plan, slot)


class Trainer:
    """Trains networks to the end in a worker process. The training images are read once for each image size."""

    def __init__(self, plan: TrainingPlan, slot: WorkerSlot) -> None:
        self.plan = plan
        self.slot = slot
        self.device = find_devices(slot.device)[0]
        self.lock = lock_for(slot, self.device)
        self._images: dict[int, Images] = {}
        if slot.deterministic:
            make_deterministic(self.device)
        configure_torch(self.device, slot.threads)

    def __call__(self, *_: object) -> Any:
        """A trainer takes no job of a search."""
        raise TypeError("a trainer takes trainings")

    def images_per_s(self, job: TimingJob, reporter: Reporter) -> float:
        """Images a second of a job's training."""
        reporter.step("timing")
        self.lock.on_waiting = reporter.waiting
        with self.device.memory_released(), self.lock.shared():
            retraining = self._retraining(job, job.folder)
            if self.plan.forms_folder is None:
                retraining.claim()  # its forms are pinned there
            return retraining.images_per_s()

    def train(self, job: TrainingJob, reporter: Reporter) -> Trained:
        """Train and test. Raises what `Retraining.train` raises."""
        self.lock.on_waiting = reporter.waiting
        with self.device.memory_released(), self.lock.shared():
            latency = self._latency(job, reporter) if job.latency_file else None
            reporter.step("choosing forms")
            retraining = self._retraining(job, job.folder)
            retraining.claim()
            reporter.step("training")
            return retraining.train(reporter.training).model_copy(update={"latency": latency})

    def _retraining(self, job: Job, folder: Path) -> Retraining:
        plan = self.plan

        def load(info: DatasetInfo, side: int, device: Any) -> Images:
            if side not in self._images:
                self._images[side] = plan.load_train(info, side, device)
            return self._images[side]

        return Retraining(
            plan.spec(job),
            plan.info,
            self.device,
            folder,
            plan.forms_folder,
            load,
            plan.load_test,
            self.lock.pause,
            plan.checkpoint_every_s,
        )

    def _latency(self, job: TrainingJob, reporter: Reporter) -> Latency:
        """The latency under the study's conditions: from the file of an earlier training, or measured now, alone."""
        assert job.latency_file is not None
        assert self.plan.study is not None
        if (known := stored_latency(job.latency_file)) is not None:
            return known
        reporter.step("measuring")
        spec = StudySpec.parse(self.plan.study)
        configure_torch(self.device, spec.latency.threads)
        try:
            with timing_cache_for(self.device.name, spec.latency.threads, "deployment", self.lock.pause) as cache:
                measurer = Measurer(
                    spec.latency,
                    self.device,
                    spec.budget.params if spec.budget.violation(cost_of(job.arch)) <= 0 else None,
                    cache,
                    alone=self.lock.exclusive,
                    pause=self.lock.pause,
                )
                latency = measurer(job.arch, spec.reference_ms)
        finally:
            configure_torch(self.device, self.slot.threads)
        job.latency_file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(job.latency_file, latency.model_dump_json(exclude_none=True))
        return latency


def stored_latency(file: Path) -> Latency | None:
    """The latency in a file; None if there is none that can be read."""
    try:
        return Latency.model_validate_json(read_text(file)) if file.is_file() else None
    except (ConfigError, ValidationError):
        return None


@dataclass
class Trainings:
    """Workers for trainings: a context manager. `on_event` takes `Started` and `Progress`."""

    plan: TrainingPlan
    devices: tuple[str, ...]
    workers: int
    threads: int = 1
    on_event: Callable[[Event], None] = lambda _: None
    deterministic: bool = False
    """Whether trainings on a GPU are equal bit for bit, see `igc_nas.nn.device.make_deterministic`."""
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        executor = ProcessExecutor(
            None,
            self.plan.info,
            self.devices,
            self.workers,
            partial(trainer_at, self.plan),
            self.threads,
            deterministic=self.deterministic,
        )
        self._executor = self._stack.enter_context(executor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stack.close()

    def images_per_s(self, jobs: Sequence[TrainingJob]) -> Iterator[tuple[TrainingJob, float | TrialFailed]]:
        """How fast each training will run, or why it fails already when a few steps are timed."""
        timings = [TimingJob(job.number, job.arch, job.seed, job.folder) for job in jobs]
        of = {job.number: job for job in jobs}
        for message in self._messages(timings):
            if isinstance(message, TrainingTimed):
                yield of[message.number], message.images_per_s
            elif isinstance(message, TrialFailed):
                yield of[message.number], message

    def run(self, jobs: Sequence[TrainingJob]) -> Iterator[tuple[TrainingJob, Trained | TrialFailed]]:
        """Train all, in this order, and yield each when it has ended."""
        of = {job.number: job for job in jobs}
        for message in self._messages(jobs):
            if isinstance(message, TrainingEnded):
                yield of[message.number], message.trained
            elif isinstance(message, TrialFailed):
                yield of[message.number], message

    def _messages(self, jobs: Sequence[Job]) -> Iterator[TrainingTimed | TrainingEnded | TrialFailed]:
        left = list(jobs)
        while left or self._executor.running():
            while left and self._executor.idle():
                self.on_event(Started(left[0]))
                self._executor.submit(left.pop(0))
            for message in self._executor.messages(None):
                if isinstance(message, Progress):
                    self.on_event(message if message.notice is None else Notice(message.notice))
                elif isinstance(message, TrainingTimed | TrainingEnded | TrialFailed):
                    yield message
