"""The evaluation of one trial, cheapest step first: build, measure the latency, train the proxy, score."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import arch_id
from igc_nas.data.datasets import DatasetInfo
from igc_nas.engine.device_lock import DeviceLock, lock_for
from igc_nas.engine.executor import Outcome, Reporter, WorkerSlot
from igc_nas.errors import StudyError
from igc_nas.evaluation.images import Images, load_proxy
from igc_nas.evaluation.latency import Measurer
from igc_nas.evaluation.remote import CommandMeasurer
from igc_nas.evaluation.runtimes import require
from igc_nas.evaluation.training import ProxyTask, train_proxy
from igc_nas.nn.device import Device, configure_torch, find_devices, make_deterministic
from igc_nas.nn.lowering.network_tuner import NetworkTuner, TrainingForm
from igc_nas.nn.lowering.pinned_forms import PinnedForms
from igc_nas.nn.lowering.timing_cache import timing_cache_for
from igc_nas.nn.network import Network, build
from igc_nas.study.records import Latency, Rung, Score, TimeBreakdown, Unfinished
from igc_nas.study.spec import Calibration, Recipe, StudySpec


def evaluator_at(spec: StudySpec, slot: WorkerSlot) -> Evaluator:
    """The evaluator of a worker slot. Raises what `Evaluator` raises."""
    device = find_devices(slot.device)[0]
    if slot.deterministic:
        make_deterministic(device)
    return Evaluator(spec, slot.info, device, slot.threads, lock_for(slot, device), slot.folder, slot.latency_command)


class Evaluator:
    """Evaluates architectures for one study on one device, in the current process.

    `folder` is the study's folder, which keeps the forms that networks are trained in; `latency_command` measures if
    the study's latencies are of another machine.

    Raises `StudyError` if the study's latencies are of another device, `UsageError` if their runtime is missing here,
    `DataError` if its dataset cannot be read.
    """

    def __init__(
        self,
        spec: StudySpec,
        info: DatasetInfo,
        device: Device,
        threads: int,
        lock: DeviceLock,
        folder: Path | None = None,
        latency_command: str | None = None,
    ) -> None:
        self.spec = spec
        self.info = info
        self.device = device
        self.threads = threads
        self.lock = lock
        self._stopwatch = _Stopwatch(lock)
        self.measurer = self._make_measurer(latency_command)
        timings = timing_cache_for(device.name, threads, "training")
        self.tuner = NetworkTuner.of(spec.recipe, device, timings, PinnedForms(folder), lock.pause)
        configure_torch(device, threads)
        self._images: dict[Recipe, tuple[Images, Images]] = {}
        self._images_of(spec.recipe)

    def _images_of(self, recipe: Recipe) -> tuple[Images, Images]:
        """(training images, held-out images) of a recipe, read once."""
        if recipe not in self._images:
            self._images[recipe] = load_proxy(self.info, recipe, self.spec.seed, self.device.torch_device)
        return self._images[recipe]

    def _make_measurer(self, latency_command: str | None) -> Measurer | CommandMeasurer:
        spec, limit = self.spec.latency, self.spec.budget.params
        if spec.remote:
            if latency_command is None:
                raise StudyError(
                    f"the study's latencies are of {spec.device}, measured by a command",
                    "give it with --latency-command",
                )
            return CommandMeasurer(latency_command, spec, limit)
        if self.device.name != spec.device:
            raise StudyError(f"this device is {self.device.name}; the study's latencies are of {spec.device}")
        require(spec.runtime)
        timings = timing_cache_for(self.device.name, spec.threads, "deployment", self.lock.pause)
        return Measurer(spec, self.device, limit, timings, alone=self._alone, pause=self.lock.pause)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self.lock.exclusive(), self._stopwatch.time("measure"):
            yield

    def latency(self, arch: ArchConfig, reference_ms: float | None) -> Latency:
        """Measure an architecture under the study's conditions, alone on the device. Called within `lock.shared`."""
        if isinstance(self.measurer, CommandMeasurer):
            with self.lock.remote(), self._stopwatch.time("measure"):
                return self.measurer(arch, reference_ms)
        configure_torch(self.device, self.spec.latency.threads)
        try:
            return self.measurer(arch, reference_ms)
        finally:
            self.measurer.cache.save()
            configure_torch(self.device, self.threads)

    def calibrate(self) -> Calibration:
        """Measure the feasible architectures with the fewest and the most MACs, and so the reference network."""
        small, large = self.spec.feasible.lightest(), self.spec.feasible.heaviest()
        with self.lock.shared():
            first = self.latency(small, None)
            return Calibration(
                reference_ms=first.reference_ms,
                smallest=self.latency(small, first.reference_ms),
                largest=self.latency(large, first.reference_ms),
            )

    def lowered(self, network: Network, arch: ArchConfig) -> TrainingForm | None:
        """The network in the forms that train fastest; None if the recipe has the factored form.

        Other workers may train at the same time: the forms are timed in turn, and only their order matters.
        """
        return None if self.spec.recipe.forms == "factored" else self.tuner(network, arch_id(arch))

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter | None = None) -> Outcome:
        """Evaluate an architecture, with its progress to `reporter`. Raises what building and training raise."""
        reporter = reporter or Reporter()
        self.lock.on_waiting = reporter.waiting
        self._stopwatch = stopwatch = _Stopwatch(self.lock)
        with self.device.memory_released(), self.lock.shared():
            reporter.step("measuring")
            with stopwatch.time("prepare"):
                latency = self.latency(arch, self.spec.reference_ms)
            score = None
            if self.spec.budget.violation(latency_ms=latency.normalised_ms) <= 0:
                recipe = self.spec.recipe
                score = self._score(arch, recipe, seed, reporter, lambda rung: reporter.should_continue(latency, rung))
        return Outcome(latency, score, stopwatch.spent())

    def train_longer(self, arch: ArchConfig, seed: int, latency: Latency, reporter: Reporter) -> Outcome:
        """Train an architecture, whose latency is known, by the target's recipe."""
        assert self.spec.target is not None
        self.lock.on_waiting = reporter.waiting
        self._stopwatch = stopwatch = _Stopwatch(self.lock)
        with self.device.memory_released(), self.lock.shared():
            score = self._score(arch, self.spec.target.recipe, seed, reporter, lambda _: True)
        return Outcome(latency, score, stopwatch.spent())

    def _score(
        self, arch: ArchConfig, recipe: Recipe, seed: int, reporter: Reporter, should_continue: Callable[[Rung], bool]
    ) -> Score | Unfinished:
        reporter.step("building")
        arch = arch.trained_at(recipe.resolution)
        network = build(arch, seed).to(self.device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        reporter.step("choosing forms")
        with self._stopwatch.time("choose"):
            lowered = self.lowered(network, arch)
        reporter.step("training")
        with self._stopwatch.time("train"):
            train, held_out = self._images_of(recipe)
            task = ProxyTask(train, held_out, recipe, self.info, self.device, self.lock.pause)
            return train_proxy(network, task, seed, lowered, reporter.epoch, should_continue)


class _Stopwatch:
    """Seconds of one evaluation by step. Time spent waiting for other workers counts as waiting only."""

    def __init__(self, lock: DeviceLock) -> None:
        self._lock = lock
        self._waited_s = lock.waited_s
        self._seconds = dict.fromkeys(("prepare", "measure", "choose", "train"), 0.0)

    @contextlib.contextmanager
    def time(self, step: str) -> Iterator[None]:
        """Add the time of the block to `step`, less what is timed or waited within it."""
        began, counted = time.perf_counter(), self._counted_s()
        try:
            yield
        finally:
            self._seconds[step] += time.perf_counter() - began - (self._counted_s() - counted)

    def _counted_s(self) -> float:
        return sum(self._seconds.values()) + self._lock.waited_s

    def spent(self) -> TimeBreakdown:
        """The seconds so far."""
        seconds = {f"{step}_s": round(seconds, 3) for step, seconds in self._seconds.items()}
        return TimeBreakdown(**seconds, wait_s=round(self._lock.waited_s - self._waited_s, 3))
