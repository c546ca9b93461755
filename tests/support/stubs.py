"""Evaluators for worker processes: with invented numbers, as of `searches.evaluate`, and with faults."""

import contextlib
import ctypes
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.engine.executor import Outcome, Reporter, WorkerSlot
from igc_nas.errors import CaptureError, ConfigError, DivergedError, IgcNasError
from igc_nas.io.fallbacks import FallbackWarning
from igc_nas.study.records import Latency, Rung, Unfinished
from igc_nas.study.spec import Calibration, Recipe, StudySpec
from tests.support.searches import evaluate, latency, score


@dataclass
class Stub:
    """Takes `seconds` for each architecture."""

    spec: StudySpec
    slot: WorkerSlot
    seconds: float = 0.0

    def calibrate(self) -> Calibration:
        return Calibration(reference_ms=1.0, smallest=latency(0.1), largest=latency(1.0))

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        reporter.step("measuring")
        measured, score = evaluate(arch, seed)
        reporter.step("training")
        time.sleep(self.seconds)
        for epoch in score.curve:
            reporter.epoch(epoch)
        return Outcome(measured, score)


def stub(spec: StudySpec, slot: WorkerSlot) -> Stub:
    return Stub(spec, slot)


def slow_stub(spec: StudySpec, slot: WorkerSlot) -> Stub:
    return Stub(spec, slot, seconds=0.05)


def endless(spec: StudySpec, slot: WorkerSlot) -> Stub:
    return Stub(spec, slot, seconds=600)


class LosesContext(Stub):
    """The study's second trial makes an illegal memory access: every later CUDA call of its process fails."""

    lost = False

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        assert self.slot.folder is not None
        counted = self.slot.folder / "trials.txt"
        with counted.open("a") as file:
            file.write("x")
        self.lost = self.lost or counted.stat().st_size == 2
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().__call__(arch, seed, reporter)


def loses_context(spec: StudySpec, slot: WorkerSlot) -> LosesContext:
    return LosesContext(spec, slot)


@dataclass
class FallsBack(Stub):
    """On its machine something does not work; after its first trial CUDA records no graph, where it is to."""

    calls: int = 0

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        from igc_nas.nn.cuda_timing import trains_in_graphs  # with torch, which no other stub's process needs

        warnings.warn("Triton does not work on Fake GPU", FallbackWarning, stacklevel=1)
        self.calls += 1
        if self.calls > 1 and trains_in_graphs():
            raise CaptureError("CUDA error: operation not permitted when stream is capturing")
        return super().__call__(arch, seed, reporter)


def falls_back(spec: StudySpec, slot: WorkerSlot) -> FallsBack:
    return FallsBack(spec, slot)


def notes_determinism(spec: StudySpec, slot: WorkerSlot) -> Stub:
    """Leaves in the study's folder what its process was asked for."""
    assert slot.folder is not None
    (slot.folder / "noted").write_text(f"{slot.deterministic} {os.environ.get('CUBLAS_WORKSPACE_CONFIG')}")
    return Stub(spec, slot)


class WithCommand(Stub):
    """Runs a command for each trial in another session, as `--latency-command` does."""

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        with subprocess.Popen(["sleep", "600"], start_new_session=True) as sleep:  # noqa: S607
            try:
                return super().__call__(arch, seed, reporter)
            finally:
                sleep.kill()


def with_command(spec: StudySpec, slot: WorkerSlot) -> WithCommand:
    return WithCommand(spec, slot, seconds=0.02)


def endless_with_command(spec: StudySpec, slot: WorkerSlot) -> WithCommand:
    return WithCommand(spec, slot, seconds=600)


class WaitsForOthers(Stub):
    """Reports that it waits, for longer than a trial may take."""

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        for _ in range(2):
            reporter.waiting(True)
            time.sleep(self.seconds)
            reporter.waiting(False)
        return super().__call__(arch, seed, reporter)


def waits_for_others(spec: StudySpec, slot: WorkerSlot) -> WaitsForOthers:
    return WaitsForOthers(spec, slot, seconds=1.5)


class SlowToCalibrate(Stub):
    """Calibrates without end, after it has created a file."""

    def calibrate(self) -> Calibration:
        assert self.slot.folder is not None
        (self.slot.folder / "calibrating").touch()
        time.sleep(600)
        return super().calibrate()


def slow_to_calibrate(spec: StudySpec, slot: WorkerSlot) -> SlowToCalibrate:
    return SlowToCalibrate(spec, slot)


class OutOfMemory(Stub):
    """Fails as torch does without memory, each time with the same message."""

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        _no_memory_for_torch(arch, reporter)


def out_of_memory(spec: StudySpec, slot: WorkerSlot) -> OutOfMemory:
    return OutOfMemory(spec, slot)


# Faults of a trial, by name.

Fault = Callable[[ArchConfig, Reporter], Any]


class UnpicklableError(Exception):
    """Cannot be pickled, because it holds a lock, and has no message."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __str__(self) -> str:
        raise RuntimeError("no words")


class CannotCrossError(IgcNasError):
    """Can be pickled, but not unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two} do not fit")


def _raise(error: BaseException) -> Fault:
    def fault(arch: ArchConfig, reporter: Reporter) -> NoReturn:
        raise error

    return fault


def _no_memory_for_torch(arch: ArchConfig, reporter: Reporter) -> NoReturn:
    reporter.step("training")
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4096000000000 bytes. Error code 12 (Cannot allocate memory)"
    )


def _segfault(arch: ArchConfig, reporter: Reporter) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def _abort(arch: ArchConfig, reporter: Reporter) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def _hang(arch: ArchConfig, reporter: Reporter) -> None:
    reporter.step("training")
    time.sleep(600)


def _hang_with_the_gil(arch: ArchConfig, reporter: Reporter) -> None:
    ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the GIL


def _unfinished(arch: ArchConfig, reporter: Reporter) -> Outcome:
    measured, score = evaluate(arch, 0)
    return Outcome(measured, Unfinished(rungs=(Rung(samples=50, error=0.5, loss=1.0),), curve=score.curve, train_s=0.0))


def _changed(part: str, **changes: Any) -> Fault:
    """An outcome whose record was changed without validation."""

    def fault(arch: ArchConfig, reporter: Reporter) -> Outcome:
        measured, score = evaluate(arch, 0)
        if part == "latency":
            return Outcome(measured.model_copy(update=changes), score)
        return Outcome(measured, score.model_copy(update=changes))

    return fault


def _recursion(arch: ArchConfig, reporter: Reporter) -> None:
    _recursion(arch, reporter)


FAULTS: dict[str, Fault] = {
    "diverged": _raise(DivergedError("the training loss is nan after epoch 1", "lower lr in the recipe")),
    "memory": _raise(MemoryError()),
    "memory of torch": _no_memory_for_torch,
    "segfault": _segfault,
    "exit": lambda arch, reporter: os._exit(3),
    "abort": _abort,
    "kill": lambda arch, reporter: os.kill(os.getpid(), signal.SIGKILL),
    "hang": _hang,
    "hang with the GIL": _hang_with_the_gil,
    "stopped by a signal": lambda arch, reporter: os.kill(os.getpid(), signal.SIGSTOP),
    "build": _raise(ConfigError("groups (=4) must divide width (=30)", "use 28 or 32")),
    "recursion": _recursion,
    "no words": _raise(UnpicklableError()),
    "cannot cross": _raise(CannotCrossError(1, 2)),
    "many words": _raise(RuntimeError("a line of words\n" * 2**16)),
    "hostile words": _raise(RuntimeError("\udcff\x00\x1b[2J\u202e")),
    "Ctrl-C": _raise(KeyboardInterrupt()),
    "sys.exit": lambda arch, reporter: sys.exit("enough"),
    "end of file": _raise(EOFError("Ran out of input")),
    "no outcome": lambda arch, reporter: evaluate(arch, 0),
    "nothing": lambda arch, reporter: None,
    "an outcome of words": lambda arch, reporter: Outcome("fast", "good"),  # type: ignore[arg-type]
    "a progress of words": lambda arch, reporter: reporter.epoch("halfway"),  # type: ignore[arg-type]
    "pruned unasked": _unfinished,
    "nan error": _changed("score", error=float("nan")),
    "inf loss": _changed("score", loss=float("inf")),
    "inf latency": _changed("latency", normalised_ms=float("inf")),
    "negative latency": _changed("latency", normalised_ms=-1.0),
    "a lock in the score": _changed("score", form=threading.Lock()),
}


class Faulty(Stub):
    """Has the next fault of the study's `faults.txt`, one name per line, and no fault after the last."""

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        reporter.step("building")
        assert self.slot.folder is not None
        path = self.slot.folder / "faults.txt"
        names = path.read_text().splitlines() if path.exists() else []
        if names:
            path.write_text("\n".join(names[1:]))
            return FAULTS[names[0]](arch, reporter)
        return super().__call__(arch, seed, reporter)


def faulty(spec: StudySpec, slot: WorkerSlot) -> Faulty:
    return Faulty(spec, slot)


class Talkative(Stub):
    """Leaves a thread that reports progress of a trial that has ended."""

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        outcome = super().__call__(arch, seed, reporter)

        def talk() -> None:
            with contextlib.suppress(Exception):
                for _ in range(20):
                    time.sleep(0.005)
                    reporter.step("training")

        threading.Thread(target=talk, daemon=True).start()
        time.sleep(0.02)
        return outcome


def talkative(spec: StudySpec, slot: WorkerSlot) -> Talkative:
    return Talkative(spec, slot)


class LateBloomers(Stub):
    """Larger networks are a little worse after the recipe's training, and better after a longer one."""

    def __call__(self, arch: ArchConfig, seed: int, reporter: Reporter) -> Outcome:
        return self._trained(arch, self.spec.recipe, evaluate(arch, seed)[0], 0.01)

    def train_longer(self, arch: ArchConfig, seed: int, latency: Latency, reporter: Reporter) -> Outcome:
        assert self.spec.target is not None
        return self._trained(arch, self.spec.target.recipe, latency, -0.06)

    def _trained(self, arch: ArchConfig, recipe: Recipe, latency: Latency, slope: float) -> Outcome:
        time.sleep(self.seconds)
        chance = int(arch_id(arch)[:4], 16) / 16**4
        own = score(0.4 + slope * math.log(cost_of(arch).params / 700) + 0.004 * chance)
        return Outcome(latency, own.model_copy(update={"samples": recipe.samples, "held_out": 50_000}))


def late_bloomers(spec: StudySpec, slot: WorkerSlot) -> LateBloomers:
    return LateBloomers(spec, slot)
