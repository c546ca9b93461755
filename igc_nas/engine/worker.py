"""The evaluator's side of the conversation: what runs in a worker's process, or in an actor on a cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from igc_nas.arch.config import ArchConfig
from igc_nas.engine.events import Job, Progress
from igc_nas.engine.executor import (
    READY,
    Evaluating,
    MakeEvaluator,
    Message,
    Outcome,
    Reporter,
    RungReport,
    TrialCompleted,
    TrialFailed,
    TrialPruned,
    Waiting,
    WorkerSlot,
)
from igc_nas.errors import DivergedError, IgcNasError
from igc_nas.io.records import Frozen, first_problem
from igc_nas.study.records import Epoch, Failure, FailureKind, Latency, Rung, Score, TimeBreakdown, Unfinished
from igc_nas.study.spec import Calibration, StudySpec

PACKAGE = Path(__file__).parents[1]
OUT_OF_MEMORY = ("defaultcpuallocator", "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")
SEAMS = ("worker.py", "coordinator.py")
"""Where evaluators are called from: an error that came no further is theirs."""
MOST_SAID = 10_000
"""Characters of an error that are looked at."""
PARENT_GONE = 86
"""Exit status of a worker whose coordinator is gone."""
MARK = "IGC_NAS_WORKER"
"""The variable by which what a worker has started is known: the coordinator's pid and the worker's."""

F_ = TypeVar("F_", bound=Frozen)


class AloneError(EOFError):
    """The coordinator is gone."""


class Channel(Protocol):
    """The evaluator's end of a connection to its executor: a pipe, or what works like one."""

    def send(self, word: Any, /) -> None:
        """Say something."""
        ...

    def recv(self) -> Any:
        """The executor's next word."""
        ...


def run_job(evaluator: Evaluating, job: Job, say: Callable[[Any], None], ask: Callable[[RungReport], bool]) -> Message:
    """Evaluate a job, saying how far it is and asking at rungs; what goes wrong is the message, not an error.

    Raises `AloneError` where nobody does any more.
    """
    doing, since, to_stop = "building", 0.0, False

    def tell(word: Any) -> None:
        with _listened_to():
            say(word)

    def begin(what: str) -> None:
        nonlocal doing
        doing = str(what)
        tell(Progress(job.number, doing))

    def epoch(point: Epoch) -> None:
        tell(Progress(job.number, doing, _whole(point, Epoch)))

    def waits(begins: bool) -> None:
        nonlocal since
        if begins:
            since = time.monotonic()
        tell(Waiting(job.number, None if begins else time.monotonic() - since))

    def go_on(latency: Latency, rung: Rung) -> bool:
        nonlocal to_stop
        at = RungReport(job.number, _whole(latency, Latency), _whole(rung, Rung))
        with _listened_to():
            to_stop = not ask(at)
        return not to_stop

    try:
        outcome = evaluator(job.arch, job.seed, Reporter(begin, epoch, go_on, waits))
        doing = "returning"
        message = _message(job.number, outcome)
        if isinstance(message, TrialPruned) and not to_stop:
            raise TypeError("the evaluator gave up a training that was to go on")
        return message
    except AloneError:
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return failed(job.number, error, doing)


@contextlib.contextmanager
def _listened_to() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise AloneError from error


def _message(number: int, outcome: Outcome) -> Message:
    """What an evaluator returned, made of our own records: others could be read by nobody."""
    if not isinstance(outcome, Outcome):
        raise TypeError(f"the evaluator returned {type(outcome).__name__}, not an Outcome")
    latency = _whole(outcome.latency, Latency)
    spent = None if outcome.spent is None else _whole(outcome.spent, TimeBreakdown)
    if isinstance(outcome.score, Unfinished):
        return TrialPruned(number, latency, _whole(outcome.score, Unfinished), spent)
    return TrialCompleted(number, latency, None if outcome.score is None else _whole(outcome.score, Score), spent)


def _whole(record: object, kind: type[F_]) -> F_:
    """The record, validated: `model_copy` and `model_construct` are not. Raises `TypeError`, `ValidationError`."""
    if not isinstance(record, kind):
        raise TypeError(f"the evaluator gave {type(record).__name__}, not {kind.__name__}")
    try:
        return kind.model_validate(record.model_dump(by_alias=True, warnings=False))
    except ValidationError as error:
        raise error.with_traceback(None) from None  # it was found here, wherever in pydantic


def calibrated(evaluator: Evaluating) -> Calibration | IgcNasError:
    """The evaluator's calibration, or why it has none."""
    try:
        return _whole(evaluator.calibrate(), Calibration)
    except Exception as error:
        return to_igc_error(error)


def to_igc_error(error: Exception) -> IgcNasError:
    """An error as one that people can read, and that can cross to another process."""
    if not isinstance(error, IgcNasError):
        return IgcNasError(reason_of(error))
    ours = next(kind for kind in type(error).__mro__ if kind.__module__ == IgcNasError.__module__)
    return ours(error.message, error.hint)  # type: ignore[no-any-return]


def failed(number: int, error: BaseException, doing: str) -> TrialFailed:
    """A trial that ended with an error."""
    return TrialFailed(number, reason_of(error), Failure(kind=_kind(error), where=f"{doing}{_place(error)}"))


def reason_of(error: BaseException) -> str:
    """Why a trial failed, on one line, in characters that a file can hold."""
    words = " ".join(_said(error)[:MOST_SAID].split())[:300]
    return words.encode(errors="replace").decode()


def _said(error: BaseException) -> str:
    if isinstance(error, IgcNasError):
        return error.message
    if isinstance(error, ValidationError):
        return first_problem(error, error.title)
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _kind(error: BaseException) -> FailureKind:
    if isinstance(error, DivergedError) or _not_finite(error):
        return "diverged"
    if isinstance(error, MemoryError) or any(words in _said(error).lower() for words in OUT_OF_MEMORY):
        return "memory"
    return "refused" if isinstance(error, IgcNasError) else "error"


def _not_finite(error: BaseException) -> bool:
    return isinstance(error, ValidationError) and any(entry["type"] == "finite_number" for entry in error.errors())


def _place(error: BaseException) -> str:
    """The innermost line of ours that the error passed through, ` (train.py:101 in epoch)`; else the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).parent.is_relative_to(PACKAGE) and Path(f.filename).name not in SEAMS]
    if not frames:
        return ""
    at = (ours or frames)[-1]
    return f" ({Path(at.filename).name}:{at.lineno} in {at.name})"


def serve(line: Channel, spec: dict[str, Any], make: Callable[[StudySpec], Evaluating]) -> None:
    """An evaluator's life: be made, say so, evaluate what comes until the line is cut. Else say why it is not made."""
    try:
        evaluator = make(StudySpec.parse(spec))
    except Exception as error:
        line.send(to_igc_error(error))
        return  # whoever reads this raises it
    with contextlib.suppress(EOFError, OSError):  # the coordinator is gone
        line.send(READY)
        while True:
            _serve(line, evaluator)


def _serve(line: Channel, evaluator: Evaluating) -> None:
    """One word of the executor."""

    def ask(at: RungReport) -> bool:
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
        line.send(run_job(evaluator, Job(number, ArchConfig.parse(arch), seed), line.send, ask))


def job_message(job: Job) -> tuple[str, object]:
    """A job as an evaluator is told of it."""
    return "job", (job.number, job.arch.to_dict(), job.seed)


# In a process that was spawned.


def worker_main(pipe: Connection, spec: dict[str, Any], seat: WorkerSlot, make: MakeEvaluator) -> None:
    """A worker's life: make the evaluator, say so, evaluate what comes, end with the coordinator.

    A terminal tells all of its processes of Ctrl-C, and that it is closed: the coordinator is the one that answers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.environ[MARK] = f"{os.getppid()}/{os.getpid()}"
    _end_with_parent()
    serve(pipe, spec, lambda spec: make(spec, seat))


def _end_with_parent() -> None:
    """Leave at once when the coordinator is gone, however it went, and take along what was started here."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        kill_descendants(os.getpid())
        os._exit(PARENT_GONE)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def kill_orphans(*pids: int) -> None:
    """Kill what workers of this process had started that are dead themselves, so that it is nobody's child now."""
    import psutil

    marks = {f"{os.getpid()}/{pid}" for pid in pids}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) in marks:
                process.kill()


def kill_descendants(pid: int) -> None:
    """Kill what a process has started: a latency command outlives a worker that is killed in the middle of one."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
