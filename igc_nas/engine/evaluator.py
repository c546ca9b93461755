"""One trial, in order of price: build, measure latency, train the proxy, score."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import arch_id
from igc_nas.data.datasets import DatasetInfo
from igc_nas.engine.device_lock import DeviceLock
from igc_nas.engine.executor import Outcome, Reporter, WorkerSlot
from igc_nas.errors import StudyError
from igc_nas.evaluation.images import load_proxy
from igc_nas.evaluation.latency import Measurer
from igc_nas.evaluation.remote import CommandMeasurer
from igc_nas.evaluation.training import ProxyTask, train_proxy
from igc_nas.nn.device import Device, configure_torch, find_devices
from igc_nas.nn.lowering.network_tuner import NetworkTuner
from igc_nas.nn.lowering.pinned_forms import PinnedForms
from igc_nas.nn.lowering.timing_cache import timing_cache_for
from igc_nas.nn.lowering.training import LoweredNetwork
from igc_nas.nn.network import Network, build
from igc_nas.study.records import Latency, Rung, Score, TimeBreakdown, Unfinished
from igc_nas.study.spec import Calibration, StudySpec


def evaluator_at(spec: StudySpec, seat: WorkerSlot) -> Evaluator:
    """The evaluator of a seat. Raises what `Evaluator` raises."""
    device = find_devices(seat.device)[0]
    room = DeviceLock(seat.room, seat.place, seat.sharing, device.synchronize)
    return Evaluator(spec, seat.info, device, seat.threads, room, seat.folder, seat.latency_command)


class Evaluator:
    """Evaluates architectures for one study on one device, in the process that it is made in.

    `folder` is the study's, which keeps the forms that it trains in; `latency_command` measures where the study's
    latencies are another machine's.

    Raises `StudyError` where the device is not the one that the study's latencies are of, `DataError` for its data.
    """

    def __init__(
        self,
        spec: StudySpec,
        info: DatasetInfo,
        device: Device,
        threads: int,
        room: DeviceLock,
        folder: Path | None = None,
        latency_command: str | None = None,
    ) -> None:
        self.spec = spec
        self.info = info
        self.device = device
        self.threads = threads
        self.room = room
        self._clock = _Clock(room)
        self._measure = self._measurer(latency_command)
        table = timing_cache_for(device.name, threads, "training")
        self._fastest = NetworkTuner.of(spec.recipe, device, table, PinnedForms(folder), room.pause)
        configure_torch(device, threads)
        self.train, self.held_out = load_proxy(info, spec.recipe, spec.seed, device.torch_device)

    def _measurer(self, latency_command: str | None) -> Measurer | CommandMeasurer:
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
        table = timing_cache_for(self.device.name, spec.threads, "deployment", self.room.pause)
        return Measurer(spec, self.device, limit, table, alone=self._alone, pause=self.room.pause)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self.room.measuring(), self._clock.runs("measure"):
            yield

    def latency(self, arch: ArchConfig, reference_ms: float | None) -> Latency:
        """Measure an architecture with the study's conditions, alone on the device. Called within `room.working`."""
        if isinstance(self._measure, CommandMeasurer):
            with self.room.remotely(), self._clock.runs("measure"):
                return self._measure(arch, reference_ms)
        configure_torch(self.device, self.spec.latency.threads)
        try:
            return self._measure(arch, reference_ms)
        finally:
            self._measure.cache.save()
            configure_torch(self.device, self.threads)

    def calibrate(self) -> Calibration:
        """Measure the feasible architectures with the fewest and the most MACs, and so the reference network."""
        small, large = self.spec.feasible.lightest(), self.spec.feasible.heaviest()
        with self.room.working():
            first = self.latency(small, None)
            return Calibration(
                reference_ms=first.reference_ms,
                smallest=self.latency(small, first.reference_ms),
                largest=self.latency(large, first.reference_ms),
            )

    def lowered(self, network: Network, arch: ArchConfig) -> LoweredNetwork | None:
        """How a network is trained fastest; None: factored, as it is written.

        Others may train meanwhile: alternatives take turns, and the choice between them is all that is asked.
        """
        return None if self.spec.recipe.forms == "factored" else self._fastest(network, arch_id(arch))

    def __call__(self, arch: ArchConfig, seed: int, watch: Reporter | None = None) -> Outcome:
        """Evaluate an architecture, telling `watch`. Raises what building, measuring or training raises."""
        watch = watch or Reporter()
        self.room.waits = watch.waits
        self._clock = clock = _Clock(self.room)
        with self.room.working():
            watch.doing("measuring")
            with clock.runs("prepare"):
                latency = self.latency(arch, self.spec.reference_ms)
            score = None
            if self.spec.budget.violation(latency_ms=latency.normalised_ms) <= 0:
                score = self._score(arch, seed, watch, lambda rung: watch.go_on(latency, rung))
        return Outcome(latency, score, clock.spent())

    def _score(self, arch: ArchConfig, seed: int, watch: Reporter, go_on: Callable[[Rung], bool]) -> Score | Unfinished:
        watch.doing("building")
        network = build(arch, seed).to(self.device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        watch.doing("choosing forms")
        with self._clock.runs("choose"):
            lowered = self.lowered(network, arch)
        watch.doing("training")
        with self._clock.runs("train"):
            task = ProxyTask(self.train, self.held_out, self.spec.recipe, self.info, self.device, self.room.pause)
            return train_proxy(network, task, seed, lowered, watch.epoch, go_on)


class _Clock:
    """Seconds of one evaluation by what they are spent on; what waits for others counts as nothing else."""

    def __init__(self, room: DeviceLock) -> None:
        self._room = room
        self._waited_s = room.waited_s
        self._seconds = dict.fromkeys(("prepare", "measure", "choose", "train"), 0.0)

    @contextlib.contextmanager
    def runs(self, what: str) -> Iterator[None]:
        """What is done within is `what`; what is within that again is not counted twice."""
        began, counted = time.perf_counter(), self._counted_s()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - began - (self._counted_s() - counted)

    def _counted_s(self) -> float:
        return sum(self._seconds.values()) + self._room.waited_s

    def spent(self) -> TimeBreakdown:
        """All of it."""
        seconds = {f"{what}_s": round(seconds, 3) for what, seconds in self._seconds.items()}
        return TimeBreakdown(**seconds, wait_s=round(self._room.waited_s - self._waited_s, 3))
