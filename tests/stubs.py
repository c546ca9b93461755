"""An evaluator for worker processes that invents its numbers, as `searches.evaluate` does, in no time."""

import time
from dataclasses import dataclass

from searches import evaluate, latency

from igc_nas.config import ArchConfig
from igc_nas.executor import Outcome, Seat, Watch
from igc_nas.spec import Calibration, StudySpec


@dataclass
class Stub:
    """Takes `seconds` for each architecture."""

    spec: StudySpec
    seat: Seat
    seconds: float = 0.0

    def calibrate(self) -> Calibration:
        return Calibration(reference_ms=1.0, smallest=latency(0.1), largest=latency(1.0))

    def __call__(self, arch: ArchConfig, seed: int, watch: Watch) -> Outcome:
        watch.doing("measuring")
        measured, score = evaluate(arch, seed)
        watch.doing("training")
        time.sleep(self.seconds)
        for epoch in score.curve:
            watch.epoch(epoch)
        return Outcome(measured, score)


def stub(spec: StudySpec, seat: Seat) -> Stub:
    return Stub(spec, seat)


def slow_stub(spec: StudySpec, seat: Seat) -> Stub:
    return Stub(spec, seat, seconds=0.05)
