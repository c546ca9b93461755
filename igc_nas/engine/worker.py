"""The evaluator's side of an executor: what runs in a worker process, or in an actor on a cluster."""

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

from igc_nas.engine.events import Job, Progress
from igc_nas.engine.executor import (
    READY,
    Calibrate,
    Evaluating,
    Message,
    Outcome,
    Reporter,
    Request,
    RungAnswer,
    RungReport,
    RunJob,
    SetSpec,
    TrainingEnded,
    TrainingTimed,
    TrialCompleted,
    TrialFailed,
    TrialPruned,
    Waiting,
    WorkerSlot,
)
from igc_nas.errors import LOOK_AT_GPU, CaptureError, DivergedError, IgcNasError
from igc_nas.io.fallbacks import fallbacks_to
from igc_nas.io.records import Frozen, first_problem
from igc_nas.io.text import one_line
from igc_nas.study.finals import Trained, TrainingProgress
from igc_nas.study.records import Epoch, Failure, FailureKind, Latency, Rung, Score, TimeBreakdown, Unfinished
from igc_nas.study.spec import Calibration, StudySpec

PACKAGE = Path(__file__).parents[1]
OUT_OF_MEMORY = (
    "defaultcpuallocator",
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
)
CONTEXT_LOST = (
    "AcceleratorError",
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "_STATUS_EXECUTION_FAILED",
    "_STATUS_INTERNAL_ERROR",
)
"""Words of errors after which every further CUDA call of the process fails, unless they are of `OUT_OF_MEMORY`."""
SEAMS = ("worker.py", "coordinator.py", "events.py")
"""The modules that call evaluators: an error with no deeper frame of ours comes from an evaluator of the user."""
MOST_TEXT = 10_000
"""The number of characters of an error message that are read."""
MOST_NOTICE = 500
PARENT_GONE = 86
"""Exit status of a worker whose coordinator is gone."""
MARK = "IGC_NAS_WORKER"
"""Environment variable of all that a worker starts: `COORDINATOR_PID/WORKER_PID`."""

F_ = TypeVar("F_", bound=Frozen)


class AloneError(EOFError):
    """The coordinator has ended."""


class Channel(Protocol):
    """The evaluator's end of the connection to its executor: a pipe, or two queues."""

    def send(self, message: Any, /) -> None:
        """Send a message to the executor."""
        ...

    def recv(self) -> Any:
        """Wait for the executor's next request."""
        ...


class JobReporter(Reporter):
    """Sends the progress of one job to the executor. Its methods raise `AloneError` when the coordinator has ended."""

    def __init__(self, job: Job, channel: Channel) -> None:
        self._number = job.number
        self._channel = channel
        self._waiting_since = 0.0
        self.current_step = "building"
        self.is_pruned = False

    def step(self, name: str) -> None:
        """Send the name of the step that begins."""
        self.current_step = str(name)
        self._send(Progress(self._number, self.current_step))

    def epoch(self, epoch: Epoch) -> None:
        """Send the end of an epoch."""
        self._send(Progress(self._number, self.current_step, validated(epoch, Epoch)))

    def training(self, progress: TrainingProgress) -> None:
        """Send how far a training to the end is."""
        self._send(Progress(self._number, self.current_step, training=validated(progress, TrainingProgress)))

    def notice(self, text: str) -> None:
        """Send what the user is to know about this machine."""
        self._send(Progress(self._number, self.current_step, notice=one_line(text, MOST_NOTICE)))

    def waiting(self, is_waiting: bool) -> None:
        """Send that the evaluator begins to wait, or how long it has waited."""
        if is_waiting:
            self._waiting_since = time.monotonic()
        self._send(Waiting(self._number, None if is_waiting else time.monotonic() - self._waiting_since))

    def should_continue(self, latency: Latency, rung: Rung) -> bool:
        """Send a rung, and wait for the answer."""
        self._send(RungReport(self._number, validated(latency, Latency), validated(rung, Rung)))
        with _coordinator_lives():
            answer = self._channel.recv()
        assert isinstance(answer, RungAnswer)
        self.is_pruned = not answer.should_continue
        return answer.should_continue

    def _send(self, message: Message | Waiting) -> None:
        with _coordinator_lives():
            self._channel.send(message)


@contextlib.contextmanager
def _coordinator_lives() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise AloneError from error


def run_job(evaluator: Evaluating, job: Job, channel: Channel) -> Message:
    """Evaluate a job. An error of the evaluator is returned as `TrialFailed`.

    Raises `AloneError` when the coordinator has ended.
    """
    reporter = JobReporter(job, channel)
    try:
        with fallbacks_to(reporter.notice):
            outcome = job.evaluated_by(evaluator, reporter)
        reporter.current_step = "returning"
        message = _message(job.number, outcome)
        if isinstance(message, TrialPruned) and not reporter.is_pruned:
            raise TypeError("the evaluator pruned a training that was to continue")
        return message
    except AloneError:
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return failed(job.number, error, reporter.current_step)


def _message(number: int, outcome: Outcome | Trained | float) -> Message:
    """The evaluator's result as records of igc_nas only, which the coordinator can unpickle."""
    if isinstance(outcome, float):
        return TrainingTimed(number, outcome)
    if isinstance(outcome, Trained):
        return TrainingEnded(number, validated(outcome, Trained))
    if not isinstance(outcome, Outcome):
        raise TypeError(f"the evaluator returned {type(outcome).__name__}, not an Outcome")
    latency = validated(outcome.latency, Latency)
    spent = None if outcome.spent is None else validated(outcome.spent, TimeBreakdown)
    if isinstance(outcome.score, Unfinished):
        return TrialPruned(number, latency, validated(outcome.score, Unfinished), spent)
    return TrialCompleted(number, latency, None if outcome.score is None else validated(outcome.score, Score), spent)


def validated(record: object, kind: type[F_]) -> F_:
    """Validate a record: `model_copy` and `model_construct` do not. Raises `TypeError`, `ValidationError`."""
    if not isinstance(record, kind):
        raise TypeError(f"the evaluator gave {type(record).__name__}, not {kind.__name__}")
    try:
        return kind.model_validate(record.model_dump(by_alias=True, warnings=False))
    except ValidationError as error:
        raise error.with_traceback(None) from None  # without pydantic's own frames


def calibrated(evaluator: Evaluating) -> Calibration | IgcNasError:
    """The evaluator's calibration, or the error that it raised."""
    try:
        return validated(evaluator.calibrate(), Calibration)
    except Exception as error:
        return to_igc_error(error)


def to_igc_error(error: Exception) -> IgcNasError:
    """An error as one of ours, which has a readable message and can be pickled."""
    if not isinstance(error, IgcNasError):
        is_of_gpu = any(words in _text(error) for words in CONTEXT_LOST)
        return IgcNasError(reason_of(error), LOOK_AT_GPU if is_of_gpu else None)
    ours = next(kind for kind in type(error).__mro__ if kind.__module__ == IgcNasError.__module__)
    return ours(error.message, error.hint)  # type: ignore[no-any-return]


def failed(number: int, error: BaseException, step: str) -> TrialFailed:
    """The message for a trial that ended with an error in `step`."""
    return TrialFailed(number, reason_of(error), Failure(kind=_kind(error), where=f"{step}{_place(error)}"))


def reason_of(error: BaseException) -> str:
    """Why a trial failed: one line of at most 300 characters that can be encoded as UTF-8."""
    line = " ".join(_text(error)[:MOST_TEXT].split())[:300]
    return line.encode(errors="replace").decode()


def _text(error: BaseException) -> str:
    if isinstance(error, IgcNasError):
        return error.message
    if isinstance(error, ValidationError):
        return first_problem(error, error.title)
    try:
        text = str(error)
        if text.startswith("CUDA error"):  # behind its first line torch says how to debug kernels
            return text.partition("\n")[0]
        return f"{type(error).__name__}: {text}"
    except Exception:
        return type(error).__name__


def _kind(error: BaseException) -> FailureKind:
    if isinstance(error, DivergedError) or _not_finite(error):
        return "diverged"
    if isinstance(error, MemoryError) or any(words in _text(error).lower() for words in OUT_OF_MEMORY):
        return "memory"
    if isinstance(error, CaptureError) or any(words in _text(error) for words in CONTEXT_LOST):
        return "died"
    return "refused" if isinstance(error, IgcNasError) else "error"


def _not_finite(error: BaseException) -> bool:
    return isinstance(error, ValidationError) and any(entry["type"] == "finite_number" for entry in error.errors())


def _place(error: BaseException) -> str:
    """The innermost frame of igc_nas in the traceback, ` (training.py:101 in epoch)`; without one, the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).parent.is_relative_to(PACKAGE) and Path(f.filename).name not in SEAMS]
    if not frames:
        return ""
    at = (ours or frames)[-1]
    return f" ({Path(at.filename).name}:{at.lineno} in {at.name})"


def serve(channel: Channel, spec: dict[str, Any] | None, make: Callable[[Any], Any]) -> None:
    """Make an evaluator, send `READY` or the error, and serve requests until the connection ends.

    Returns after a trial that lost the CUDA context: only a new process can use the GPU again.
    """
    try:
        evaluator = make(None if spec is None else StudySpec.parse(spec))
    except Exception as error:
        channel.send(to_igc_error(error))
        return
    with contextlib.suppress(EOFError, OSError):  # the coordinator has ended
        channel.send(READY)
        while True:
            request: Request = channel.recv()
            match request:
                case RunJob(job):
                    message = run_job(evaluator, job, channel)
                    channel.send(message)
                    if isinstance(message, TrialFailed) and message.failure.kind == "died":
                        return
                case Calibrate():
                    channel.send(calibrated(evaluator))
                case SetSpec(changed):
                    evaluator.spec = StudySpec.parse(changed)
                case RungAnswer():
                    raise AssertionError("no training is at a rung")


# In a spawned process.


def worker_main(
    pipe: Connection, spec: dict[str, Any] | None, slot: WorkerSlot, make: Callable[[Any, WorkerSlot], Any]
) -> None:
    """The main function of a worker process: serve requests until the coordinator ends."""
    depend_on_parent()
    serve(pipe, spec, lambda spec: make(spec, slot))


def depend_on_parent() -> None:
    """Let the parent of this process, which multiprocessing has started, decide when it ends.

    SIGINT and SIGHUP are ignored: a terminal sends them to all of its processes, and the parent handles them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.environ[MARK] = f"{os.getppid()}/{os.getpid()}"
    lock_progress_bars_by_thread()
    _end_with_parent()


def lock_progress_bars_by_thread() -> None:
    """Keep tqdm, which torch's exporters draw with, from taking a semaphore of the system.

    A worker that is ended by a signal would leave it, and Python would warn of a leak at the coordinator's end.
    """
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _end_with_parent() -> None:
    """Exit at once when the coordinator has ended, in whatever way, and kill all that was started here."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        kill_descendants(os.getpid())
        os._exit(PARENT_GONE)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def kill_orphans(*pids: int) -> None:
    """Kill what dead workers of this process, by their pids, had started: it is no longer a child of any of them."""
    import psutil

    marks = {f"{os.getpid()}/{pid}" for pid in pids}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) in marks:
                process.kill()


def kill_descendants(pid: int) -> None:
    """Kill the descendants of a process: a latency command outlives a worker that is killed while it runs."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
