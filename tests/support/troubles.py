"""Evaluators for actors on a cluster: they write down where they run, and the seed selects a fault."""

import os
import signal
import sys
import time
from pathlib import Path

from igc_nas.arch.config import ArchConfig
from igc_nas.engine.executor import Outcome, Reporter, WorkerSlot
from igc_nas.errors import StudyError
from igc_nas.study.records import Unfinished
from igc_nas.study.spec import StudySpec
from tests.support.searches import RUNGS, evaluate, evaluate_on_the_way
from tests.support.stubs import Stub

KIND = "IGC_NAS_TEST_KIND"
"""The device that a node of the test's cluster pretends to have."""
FINE, RAISES, HANGS, KILLS, LEAVES, RUNG, NO_MEMORY = range(7)


def note(slot: WorkerSlot, word: str) -> None:
    """Leave a file named by this process and the word in the study's folder, which is the same for all nodes here."""
    assert slot.folder is not None
    (slot.folder / f"{os.getpid()}-{word}").write_text(os.environ["RAY_RAYLET_PID"])


def noted(folder: Path, word: str = "*") -> dict[int, int]:
    """The processes that have left such a note, with their node's raylet."""
    return {int(path.name.split("-")[0]): int(path.read_text()) for path in folder.glob(f"*-{word}")}


class Troubled(Stub):
    """Takes a moment, in which it may be killed."""

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        reporter.step("training")
        match seed:
            case 1:
                raise ValueError("no such thing")
            case 2:
                time.sleep(600)
            case 3:
                os.kill(os.getpid(), signal.SIGKILL)
            case 4:
                sys.exit(3)
            case 5:
                return self._with_rungs(arch, seed, reporter)
            case 6:
                raise MemoryError("that was too much")
        note(self.slot, "at-work")
        time.sleep(self.seconds)
        return Outcome(*evaluate(arch, seed))

    def _with_rungs(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        measured, score = evaluate_on_the_way(arch, seed)
        for place, rung in enumerate(score.rungs, start=1):
            if not reporter.should_continue(measured, rung):
                return Outcome(measured, Unfinished(rungs=score.rungs[:place], curve=score.curve, train_s=0.1))
        assert len(score.rungs) == len(RUNGS)
        return Outcome(measured, score)


def troubled(spec: StudySpec, slot: WorkerSlot) -> Troubled:
    """Refuses the device of a node that pretends to have another, as our own evaluator does."""
    kind = os.environ.get(KIND, "stub")
    if kind != spec.latency.device:
        raise StudyError(f"this device is {kind}; the study's latencies are of {spec.latency.device}")
    note(slot, "seated")
    return Troubled(spec, slot, seconds=0.3)
