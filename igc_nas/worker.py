"""The evaluator's side of the conversation: what runs in a worker's process, or in an actor on a cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from igc_nas.config import ArchConfig
from igc_nas.errors import DivergedError, IgcNasError
from igc_nas.events import Job, Progress
from igc_nas.executor import AtRung, Evaluating, Failed, Halted, MakeEvaluator, Measured, Message, Outcome, Seat, Watch
from igc_nas.record import Failure, FailureKind, Latency, Rung, Unfinished
from igc_nas.spec import Calibration, StudySpec

PACKAGE = Path(__file__).parent
OUT_OF_MEMORY = ("defaultcpuallocator", "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")
SEAMS = ("worker.py", "coordinator.py")
"""Where evaluators are called from: an error that came no further is theirs."""
PARENT_GONE = 86
"""Exit status of a worker whose coordinator is gone."""
READY = "ready"
"""The first word of an evaluator that is made."""


class Line(Protocol):
    """The evaluator's end of a connection to its executor: a pipe, or what works like one."""

    def send(self, word: Any, /) -> None:
        """Say something."""
        ...

    def recv(self) -> Any:
        """The executor's next word."""
        ...


@dataclass(frozen=True)
class Waits:
    """A worker waits for others, or does no longer and has waited `waited_s`: that is not its trial's time."""

    number: int
    waited_s: float | None = None


def evaluated(evaluator: Evaluating, job: Job, say: Callable[[Any], None], ask: Callable[[AtRung], bool]) -> Message:
    """Evaluate a job, saying how far it is and asking at rungs; what goes wrong is the message, not an error.

    Raises `EOFError` where nobody listens any more.
    """
    doing, since = "building", 0.0

    def begin(what: str) -> None:
        nonlocal doing
        doing = what
        say(Progress(job.number, what))

    def waits(begins: bool) -> None:
        nonlocal since
        if begins:
            since = time.monotonic()
        say(Waits(job.number, None if begins else time.monotonic() - since))

    def go_on(latency: Latency, rung: Rung) -> bool:
        return ask(AtRung(job.number, latency, rung))

    watch = Watch(begin, lambda epoch: say(Progress(job.number, doing, epoch)), go_on, waits)
    try:
        return _message(job.number, evaluator(job.arch, job.seed, watch))
    except EOFError:
        raise
    except Exception as error:
        return failed(job.number, error, doing)


def _message(number: int, outcome: Outcome) -> Message:
    if isinstance(outcome.score, Unfinished):
        return Halted(number, outcome.latency, outcome.score, outcome.spent)
    return Measured(number, outcome.latency, outcome.score, outcome.spent)


def calibrated(evaluator: Evaluating) -> Calibration | IgcNasError:
    """The evaluator's calibration, or why it has none."""
    try:
        return evaluator.calibrate()
    except Exception as error:
        return as_ours(error)


def as_ours(error: Exception) -> IgcNasError:
    """An error that has crossed a process as one that people can read."""
    return error if isinstance(error, IgcNasError) else IgcNasError(reason_of(error))


def failed(number: int, error: Exception, doing: str) -> Failed:
    """A trial that ended with an error."""
    return Failed(number, reason_of(error), Failure(kind=_kind(error), where=f"{doing}{_place(error)}"))


def reason_of(error: Exception) -> str:
    """Why a trial failed, on one line."""
    text = error.message if isinstance(error, IgcNasError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def _kind(error: Exception) -> FailureKind:
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
        return "memory"
    return "refused" if isinstance(error, IgcNasError) else "error"


def _place(error: Exception) -> str:
    """The innermost line of ours that the error passed through, ` (train.py:101 in epoch)`; else the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).parent.is_relative_to(PACKAGE) and Path(f.filename).name not in SEAMS]
    if not frames:
        return ""
    at = (ours or frames)[-1]
    return f" ({Path(at.filename).name}:{at.lineno} in {at.name})"


def attend(line: Line, spec: dict[str, Any], make: Callable[[StudySpec], Evaluating]) -> None:
    """An evaluator's life: be made, say so, evaluate what comes until the line is cut. Else say why it is not made."""
    try:
        evaluator = make(StudySpec.parse(spec))
    except Exception as error:
        line.send(as_ours(error))
        return  # whoever reads this raises it
    line.send(READY)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _serve(line, evaluator)


def _serve(line: Line, evaluator: Evaluating) -> None:
    """One word of the executor."""

    def ask(at: AtRung) -> bool:
        line.send(at)
        _, answer = line.recv()
        return bool(answer)

    kind, value = line.recv()
    if kind == "spec":
        evaluator.spec = StudySpec.parse(value)
    elif kind == "calibrate":
        line.send(calibrated(evaluator))
    else:
        number, arch, seed = value
        line.send(evaluated(evaluator, Job(number, ArchConfig.parse(arch), seed), line.send, ask))


def job_word(job: Job) -> tuple[str, object]:
    """A job as an evaluator is told of it."""
    return "job", (job.number, job.arch.to_dict(), job.seed)


# In a process that was spawned.


def work(pipe: Connection, spec: dict[str, Any], seat: Seat, make: MakeEvaluator) -> None:
    """A worker's life: make the evaluator, say so, evaluate what comes, end with the coordinator."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _end_with_parent()
    attend(pipe, spec, lambda spec: make(spec, seat))


def _end_with_parent() -> None:
    """Leave at once when the coordinator is gone, however it went, and take along what was started here."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        kill_descendants(os.getpid())
        os._exit(PARENT_GONE)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def kill_descendants(pid: int) -> None:
    """Kill what a process has started: a latency command outlives a worker that is killed in the middle of one."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
