"""Evaluators in worker processes, started by spawn, which exit when their coordinator dies.

Each is connected to the coordinator by a pipe and shares no memory with it, so a worker that crashes costs one trial
only, and one that hangs can be killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from igc_nas.data.datasets import DatasetInfo
from igc_nas.engine.events import Job, Progress
from igc_nas.engine.executor import (
    Calibrate,
    Message,
    Request,
    RungAnswer,
    RungReport,
    RunJob,
    SetSpec,
    TrialFailed,
    Waiting,
    WorkerHandle,
    WorkerSlot,
)
from igc_nas.engine.worker import kill_descendants, kill_orphans, worker_main
from igc_nas.errors import GRAPHS, IgcNasError, UsageError
from igc_nas.evaluation.host import is_wsl, oom_kills
from igc_nas.study.process import uninterrupted
from igc_nas.study.records import Failure
from igc_nas.study.spec import Calibration, StudySpec

NO_GUARD = (
    "worker processes import this script, and it searches while it is imported",
    'put the search under `if __name__ == "__main__":`',
)
UNGUARDED = 87
"""Exit status of a worker whose import of the main script began a search."""
CUBLAS_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""With it cuBLAS is deterministic (its documentation, Results Reproducibility)."""
STARTING = "IGC_NAS_STARTING"
"""Environment variable of a worker that is being started: the pid of its coordinator."""
GRACE_S = 3.0
MOST_STILLBORN = 3
"""The number of workers that may die in a row before they are ready."""
SIGTERM_WAIT_S = 0.5
"""How long to wait for our own SIGTERM after a worker has died of one: a process group usually gets it together."""


@dataclass
class _Worker(WorkerHandle):
    process: SpawnProcess
    pipe: Connection
    index: int
    ooms: int
    """The number of processes that the system had killed for lack of memory when this one was started."""

    def is_on(self, number: int) -> bool:
        """Whether it evaluates trial `number`."""
        return self.job is not None and self.job.number == number

    def send(self, request: Request) -> None:
        """Send a request. That a process has died is noticed when its messages are received."""
        with contextlib.suppress(OSError):
            self.pipe.send(request)

    def submit(self, job: Job) -> None:
        """Start a job; a worker that is not ready yet starts it then."""
        self.assign(job)
        self.send(RunJob(job))


@dataclass
class ProcessExecutor:
    """An `Executor` of `count` processes for a study, spread over `devices` (torch's names).

    Without a study (`spec` is None) its evaluators do other jobs, such as `igc_nas.engine.trainings` has.
    """

    spec: StudySpec | None
    info: DatasetInfo
    devices: tuple[str, ...]
    count: int
    make: Callable[[Any, WorkerSlot], Any]
    """Makes an evaluator for the spec, in the worker's process; a module's function, or a partial of one."""
    threads: int = 1
    folder: Path | None = None
    """The study's folder."""
    latency_command: str | None = None
    trial_timeout_s: float | None = None
    """A trial that takes longer has failed, and its process is killed; None: no limit."""
    deterministic: bool = False
    """Whether results on a GPU are equal bit for bit."""
    _workers: list[_Worker] = field(default_factory=list)
    _stillborn: int = 0
    _graphs: bool = True
    """Whether new workers train by CUDA graphs: not after a trial for which CUDA recorded none."""

    def __enter__(self) -> Self:
        self._imports_main = _imports_main(self.make)
        self._lock_folder = tempfile.TemporaryDirectory(prefix="igc-nas-locks-")
        try:
            for index in range(self.count):
                self._workers.append(self._start(index))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    @uninterrupted()
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for worker in self._workers:
            kill_descendants(worker.process.pid or 0)
            worker.process.terminate()
        until = time.monotonic() + GRACE_S
        for worker in self._workers:
            _join(worker, until - time.monotonic())
        kill_orphans(*(worker.process.pid or 0 for worker in self._workers))
        self._workers.clear()
        self._lock_folder.cleanup()

    def calibrate(self) -> Calibration:
        """Measure the reference and the ends of the latency scale in the first worker, while the others are idle."""
        while waiting := [worker for worker in self._workers if not worker.ready]:
            _raise_if_error(self._receive(waiting[0]))
        worker = self._workers[0]
        worker.send(Calibrate())
        answer = self._receive(worker)
        _raise_if_error(answer)
        if not isinstance(answer, Calibration):
            raise IgcNasError("the worker process died while it measured the latency scale")
        return answer

    def set_spec(self, spec: StudySpec) -> None:
        """Replace the spec of every worker, after the calibration."""
        self.spec = spec
        for worker in self._workers:
            worker.send(SetSpec(spec.to_dict()))

    def idle(self) -> int:
        """The number of workers without a job, including those that are starting."""
        return sum(worker.job is None for worker in self._workers)

    def running(self) -> list[Job]:
        """The jobs that have not ended."""
        return [worker.job for worker in self._workers if worker.job]

    def submit(self, job: Job) -> None:
        """Give a job to an idle worker."""
        next(w for w in self._workers if w.job is None).submit(job)

    def answer(self, number: int, should_continue: bool) -> None:
        """Answer the `RungReport` of trial `number`."""
        for worker in self._workers:
            if worker.is_on(number):
                worker.send(RungAnswer(should_continue))

    def messages(self, timeout: float | None) -> Iterator[Message]:
        """The messages of workers, waiting at most `timeout` seconds for the first one. Replaces dead workers."""
        for pipe in wait([w.pipe for w in self._workers], self._wait_s(timeout)):
            worker = next(w for w in self._workers if w.pipe is pipe)
            answer = self._receive(worker)
            if isinstance(answer, Message):
                yield answer
            else:
                _raise_if_error(answer)
        for worker in [w for w in self._workers if w.left_s(self.trial_timeout_s) == 0.0]:
            yield self._time_out(worker)

    def _wait_s(self, timeout: float | None) -> float | None:
        """How long to wait for a message: at most until a trial times out."""
        limits = [timeout, *(w.left_s(self.trial_timeout_s) for w in self._workers)]
        return min((limit for limit in limits if limit is not None), default=None)

    def _time_out(self, worker: _Worker) -> TrialFailed:
        """Kill a worker whose trial has taken too long, and start another one."""
        assert self.trial_timeout_s is not None
        kill_descendants(worker.process.pid or 0)
        worker.process.kill()
        _join(worker, GRACE_S)
        self._workers[self._workers.index(worker)] = self._start(worker.index)
        return worker.timed_out(self.trial_timeout_s)

    def _receive(self, worker: _Worker) -> Any:
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            return self._replace(worker)
        except Exception:  # not one of our messages: the rest of the pipe cannot be read either
            worker.process.kill()
            return self._replace(worker)
        if isinstance(answer, Waiting | Progress | RungReport) and not worker.is_on(answer.number):
            return None  # from a thread that the evaluator of an earlier trial has left
        worker.update(answer)
        if isinstance(answer, TrialFailed) and answer.failure.kind == "died":  # it has lost its GPU, and ends
            self._graphs = self._graphs and not answer.recorded_no_graph
            self._replace(worker)
        return answer

    def _replace(self, worker: _Worker) -> TrialFailed | IgcNasError | None:
        """Start another process in place of a dead one, whose trial has failed.

        A job that it had not started is given to the new one. Returns an error if too many die before they are ready.
        """
        _join(worker, GRACE_S)
        kill_orphans(worker.process.pid or 0)
        if worker.process.exitcode == -signal.SIGTERM:
            time.sleep(SIGTERM_WAIT_S)
        died = f"the worker process died ({exit_words(worker.process.exitcode)})"
        if worker.process.exitcode == UNGUARDED:
            return UsageError(*NO_GUARD)
        self._stillborn = 0 if worker.ready else self._stillborn + 1
        if self._stillborn >= MOST_STILLBORN:
            return IgcNasError(f"{died} before it could work, {MOST_STILLBORN} times in a row")
        successor = self._start(worker.index)
        self._workers[self._workers.index(worker)] = successor
        if worker.job is None:
            return None
        if not worker.ready:
            successor.submit(worker.job)
            return None
        if worker.process.exitcode == -signal.SIGKILL and oom_kills() > worker.ooms:
            reason = f"{died}, when the system had no memory left"
            return TrialFailed(worker.job.number, reason, Failure(kind="memory", where=worker.step))
        return TrialFailed(worker.job.number, died, Failure(kind="died", where=worker.step))

    def _start(self, index: int) -> _Worker:
        device = self.devices[index % len(self.devices)]
        on_device = [i for i in range(self.count) if self.devices[i % len(self.devices)] == device]
        lock_folder = Path(self._lock_folder.name) / device.replace(":", "")
        lock_folder.mkdir(exist_ok=True)
        slot = WorkerSlot(
            self.info,
            device,
            self.threads,
            lock_folder,
            on_device.index(index),
            len(on_device),
            self.folder,
            self.latency_command,
            self.deterministic,
        )
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker_main,
            args=(theirs, None if self.spec is None else self.spec.to_dict(), slot, self.make),
            name=f"igc-nas worker {index}",
            daemon=True,
        )
        with (
            child_environment(environment(self.threads, self.deterministic, graphs=self._graphs)),
            contextlib.nullcontext() if self._imports_main else without_main(),
        ):
            process.start()
        theirs.close()
        return _Worker(process, ours, index, oom_kills())


def _join(worker: _Worker, grace_s: float) -> None:
    """Wait for a worker to exit, and kill it if it does not within `grace_s` seconds."""
    worker.process.join(max(0.0, grace_s))
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.pipe.close()


def _raise_if_error(answer: object) -> None:
    if isinstance(answer, BaseException):
        raise answer


def environment(threads: int, deterministic: bool = False, *, graphs: bool = True) -> dict[str, str]:
    """Environment variables that a worker needs before it imports torch: idle threads sleep.

    On a GPU memory segments can grow: the tensors' sizes change with every trial, and would fragment fixed ones. (Not
    in WSL: there CUDA refuses the first one, pytorch/pytorch issue 192330.) Without `graphs` it trains without CUDA
    graphs, which the user's own environment may ask for, too.
    """
    wanted = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    if not (is_wsl() or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF")):
        wanted["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if not graphs or GRAPHS in os.environ:
        wanted[GRAPHS] = "0" if not graphs else os.environ[GRAPHS]
    return wanted | (CUBLAS_WORKSPACE if deterministic else {})


@contextlib.contextmanager
def child_environment(wanted: dict[str, str]) -> Iterator[None]:
    """While a child is started: its environment, and SIGINT is ignored."""
    wanted = wanted | {STARTING: str(os.getpid())}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _imports_main(make: Callable[..., Any]) -> bool:
    """Whether workers have to import the main script: it defines the evaluator. Raises `UsageError` if they cannot."""
    try:
        needed = b"__main__" in pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError):
        raise UsageError(
            "the evaluator cannot be sent to worker processes", "make it a function of a module, not a local one"
        ) from None
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if needed and getattr(main, "__spec__", None) is None and (file is None or not Path(file).is_file()):
        raise UsageError(
            "worker processes cannot import the evaluator from a notebook or from standard input",
            "put it into a file and import it",
        )
    return needed


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Start processes that do not import the main script: nothing in it is theirs."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def refuse_while_imported() -> None:
    """Raise `UsageError` in a process that multiprocessing is starting: a search in it would start others.

    One of our own workers ends at once instead, and its coordinator says why.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself checks
        if os.environ.get(STARTING) == str(os.getppid()):
            os._exit(UNGUARDED)
        raise UsageError(*NO_GUARD)


def exit_words(code: int | None) -> str:
    """How a process has ended: the name of the signal, or its exit status."""
    if code is None:
        return "without an exit status"
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
