"""Evaluators in processes of their own, started by spawn; they end by themselves when their coordinator dies.

The coordinator talks to each over a pipe and never shares memory with it, so a worker that crashes takes one trial with
it and nothing else, and one that hangs can be killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from igc_nas.data.datasets import DatasetInfo
from igc_nas.engine.events import Job, Progress
from igc_nas.engine.executor import (
    MakeEvaluator,
    Message,
    RungReport,
    TrialCompleted,
    TrialFailed,
    TrialPruned,
    Waiting,
    WorkerHandle,
    WorkerSlot,
)
from igc_nas.engine.worker import job_message, kill_descendants, kill_orphans, worker_main
from igc_nas.errors import IgcNasError
from igc_nas.evaluation.host import oom_kills
from igc_nas.study.process import uninterrupted
from igc_nas.study.records import Failure
from igc_nas.study.spec import Calibration, StudySpec

GRACE_S = 3.0
MOST_STILLBORN = 3
HEED_S = 0.5
"""Whoever ends a worker by SIGTERM ends all of a group's processes, mostly: so long we wait for our own."""


@dataclass
class _Worker(WorkerHandle):
    process: SpawnProcess
    pipe: Connection
    place: int
    ooms: int
    """Processes that the system had killed for want of memory when this one was started."""

    def is_on(self, number: int) -> bool:
        """Whether it works on trial `number`."""
        return self.job is not None and self.job.number == number

    def send(self, kind: str, value: object) -> None:
        """Send a word. A process that has died is noticed where its answer is awaited."""
        with contextlib.suppress(OSError):
            self.pipe.send((kind, value))

    def take(self, job: Job) -> None:
        """Begin a job, or have it wait for a process that is starting up."""
        self.begin(job)
        self.send(*job_message(job))


@dataclass
class ProcessExecutor:
    """An `Executor` of `count` processes for a study, spread over `devices` (torch's names)."""

    spec: StudySpec
    info: DatasetInfo
    devices: tuple[str, ...]
    count: int
    make: MakeEvaluator
    threads: int = 1
    folder: Path | None = None
    """The study's folder."""
    latency_command: str | None = None
    trial_timeout_s: float | None = None
    """A trial that is worked on for longer has failed, and its process is killed; None: never."""
    _workers: list[_Worker] = field(default_factory=list)
    _stillborn: int = 0

    def __enter__(self) -> Self:
        self._room = tempfile.TemporaryDirectory(prefix="igc-nas-room-")
        try:
            for place in range(self.count):
                self._workers.append(self._start(place))
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
            _bury(worker, until - time.monotonic())
        kill_orphans(*(worker.process.pid or 0 for worker in self._workers))
        self._workers.clear()
        self._room.cleanup()

    def calibrate(self) -> Calibration:
        """Measure the reference and the ends of the latency scale in the first worker, before the others work."""
        while waiting := [worker for worker in self._workers if not worker.ready]:
            _raise_if_error(self._receive(waiting[0]))
        worker = self._workers[0]
        worker.send("calibrate", None)
        answer = self._receive(worker)
        _raise_if_error(answer)
        if not isinstance(answer, Calibration):
            raise IgcNasError("the worker process died while it measured the latency scale")
        return answer

    def tell_spec(self, spec: StudySpec) -> None:
        """Give every worker the spec as it is now (after calibration)."""
        self.spec = spec
        for worker in self._workers:
            worker.send("spec", spec.to_dict())

    def idle(self) -> int:
        """How many workers wait for a job (those that are still starting up are among them)."""
        return sum(worker.job is None for worker in self._workers)

    def running(self) -> list[Job]:
        """The jobs under way."""
        return [worker.job for worker in self._workers if worker.job]

    def submit(self, job: Job) -> None:
        """Give a job to an idle worker."""
        next(w for w in self._workers if w.job is None).take(job)

    def answer(self, number: int, go_on: bool) -> None:
        """Tell the worker that is at a rung with trial `number` whether to go on."""
        for worker in self._workers:
            if worker.is_on(number):
                worker.send("go_on", go_on)

    def messages(self, timeout: float | None) -> Iterator[Message]:
        """What workers have to say, waiting at most `timeout` seconds for the first word. Replaces the dead."""
        for pipe in wait([w.pipe for w in self._workers], self._patience(timeout)):
            worker = next(w for w in self._workers if w.pipe is pipe)
            answer = self._receive(worker)
            if isinstance(answer, Progress | RungReport | TrialCompleted | TrialPruned | TrialFailed):
                yield answer
            else:
                _raise_if_error(answer)
        for worker in [w for w in self._workers if w.left_s(self.trial_timeout_s) == 0.0]:
            yield self._give_up(worker)

    def _patience(self, timeout: float | None) -> float | None:
        """How long to wait for a word: no longer than until a trial's time is over."""
        limits = [timeout, *(w.left_s(self.trial_timeout_s) for w in self._workers)]
        return min((limit for limit in limits if limit is not None), default=None)

    def _give_up(self, worker: _Worker) -> TrialFailed:
        """End a worker whose trial has taken too long, and start another in its place."""
        assert self.trial_timeout_s is not None
        kill_descendants(worker.process.pid or 0)
        worker.process.kill()
        _bury(worker, GRACE_S)
        self._workers[self._workers.index(worker)] = self._start(worker.place)
        return worker.too_long(self.trial_timeout_s)

    def _receive(self, worker: _Worker) -> Any:
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            return self._replace(worker)
        except Exception:  # no word of ours: whatever else is in this pipe cannot be understood, either
            worker.process.kill()
            return self._replace(worker)
        if isinstance(answer, Waiting | Progress | RungReport) and not worker.is_on(answer.number):
            return None  # a thread that its evaluator has left behind
        worker.hear(answer)
        return answer

    def _replace(self, worker: _Worker) -> TrialFailed | IgcNasError | None:
        """Start another process in the place of a dead one; what it was working on has failed.

        A job that it had not begun is the next one's; processes that die again and again before they can work are
        an error.
        """
        _bury(worker, GRACE_S)
        kill_orphans(worker.process.pid or 0)
        if worker.process.exitcode == -signal.SIGTERM:
            time.sleep(HEED_S)
        died = f"the worker process died ({_exit(worker.process.exitcode)})"
        self._stillborn = 0 if worker.ready else self._stillborn + 1
        if self._stillborn >= MOST_STILLBORN:
            return IgcNasError(f"{died} before it could work, {MOST_STILLBORN} times in a row")
        successor = self._start(worker.place)
        self._workers[self._workers.index(worker)] = successor
        if worker.job is None:
            return None
        if not worker.ready:
            successor.take(worker.job)
            return None
        if worker.process.exitcode == -signal.SIGKILL and oom_kills() > worker.ooms:
            reason = f"{died}, when the system had no memory left"
            return TrialFailed(worker.job.number, reason, Failure(kind="memory", where=worker.doing))
        return TrialFailed(worker.job.number, died, Failure(kind="died", where=worker.doing))

    def _start(self, place: int) -> _Worker:
        device = self.devices[place % len(self.devices)]
        sharing = [p for p in range(self.count) if self.devices[p % len(self.devices)] == device]
        room = Path(self._room.name) / device.replace(":", "")
        room.mkdir(exist_ok=True)
        seat = WorkerSlot(
            self.info,
            device,
            self.threads,
            room,
            sharing.index(place),
            len(sharing),
            self.folder,
            self.latency_command,
        )
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker_main,
            args=(theirs, self.spec.to_dict(), seat, self.make),
            name=f"igc-nas worker {place}",
            daemon=True,
        )
        with _child_environment(self.threads):
            process.start()
        theirs.close()
        return _Worker(process, ours, place, oom_kills())


def _bury(worker: _Worker, grace_s: float) -> None:
    """Wait for a worker that ends; kill it where it does not."""
    worker.process.join(max(0.0, grace_s))
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.pipe.close()


def _raise_if_error(answer: object) -> None:
    if isinstance(answer, BaseException):
        raise answer


@contextlib.contextmanager
def _child_environment(threads: int) -> Iterator[None]:
    """What a child must have before it imports torch: threads that sleep when idle, and no Ctrl-C of its own."""
    wanted = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
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


def _exit(code: int | None) -> str:
    if code is None:
        return "without an exit status"
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
