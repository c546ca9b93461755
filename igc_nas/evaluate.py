"""One trial, in order of price: build, measure latency, train the proxy, score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from igc_nas.config import ArchConfig
from igc_nas.data import load_proxy
from igc_nas.dataset import DatasetInfo
from igc_nas.device import Device, prepare
from igc_nas.errors import StudyError
from igc_nas.latency import measure_latency
from igc_nas.network import build
from igc_nas.record import Epoch, Latency, Score
from igc_nas.room import QuietRoom
from igc_nas.spec import Calibration, StudySpec
from igc_nas.train import train_proxy


@dataclass(frozen=True)
class Outcome:
    """What an evaluation gave. Without a score the latency was over the budget, and nothing was trained."""

    latency: Latency
    score: Score | None


class Evaluator:
    """Evaluates architectures for one study on one device, in the process that it is made in.

    Raises `StudyError` where the device is not the one that the study's latencies are of, `DataError` for its data.
    """

    def __init__(self, spec: StudySpec, info: DatasetInfo, device: Device, threads: int, room: QuietRoom) -> None:
        self.spec = spec
        self.info = info
        self.device = device
        self.threads = threads
        self.room = room
        if device.name != spec.latency.device:
            raise StudyError(f"this device is {device.name}; the study's latencies are of {spec.latency.device}")
        prepare(device, threads)
        self.train, self.held_out = load_proxy(info, spec.recipe, spec.seed, device.torch_device)

    def latency(self, arch: ArchConfig, reference_ms: float | None) -> Latency:
        """Measure an architecture with the study's conditions, alone on the device."""
        with self.room.measuring():
            prepare(self.device, self.spec.latency.threads)
            try:
                return measure_latency(arch, self.spec.latency, self.device, reference_ms)
            finally:
                prepare(self.device, self.threads)

    def calibrate(self) -> Calibration:
        """Measure the feasible architectures with the fewest and the most MACs, and so the reference network."""
        small, large = self.spec.feasible.lightest(), self.spec.feasible.heaviest()
        first = self.latency(small, None)
        return Calibration(
            reference_ms=first.reference_ms,
            smallest=self.latency(small, first.reference_ms),
            largest=self.latency(large, first.reference_ms),
        )

    def __call__(self, arch: ArchConfig, seed: int, on_epoch: Callable[[Epoch], None] = lambda _: None) -> Outcome:
        """Evaluate an architecture. Raises what building, measuring or training raises."""
        latency = self.latency(arch, self.spec.reference_ms)
        limit = self.spec.budget.latency_ms
        if limit is not None and latency.normalised_ms > limit:
            return Outcome(latency, None)
        pause = self.room.pause
        with self.room.working():
            network = build(arch, seed)
            score = train_proxy(
                network, self.train, self.held_out, self.spec.recipe, self.info, self.device, seed, pause, on_epoch
            )
        return Outcome(latency, score)
