"""Evaluators in processes of their own, started by spawn; they end by themselves when their coordinator dies.

The coordinator talks to each over a pipe and never shares memory with it, so a worker that crashes takes one trial with
it and nothing else.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igc_nas.config import ArchConfig
from igc_nas.dataset import DatasetInfo
from igc_nas.errors import IgcNasError
from igc_nas.events import Job, Progress
from igc_nas.record import Latency, Rung, Score, Unfinished
from igc_nas.room import QuietRoom
from igc_nas.spec import Calibration, StudySpec

if TYPE_CHECKING:
    from igc_nas.evaluate import Evaluator

GRACE_S = 3.0
MOST_STILLBORN = 3


@dataclass(frozen=True)
class Measured:
    """A trial has ended. Without a score its latency was over the budget."""

    number: int
    latency: Latency
    score: Score | None


@dataclass(frozen=True)
class AtRung:
    """A training has reached a rung and waits to hear whether it goes on (`Workers.answer`)."""

    number: int
    latency: Latency
    rung: Rung


@dataclass(frozen=True)
class Halted:
    """A training was stopped at a rung."""

    number: int
    latency: Latency
    training: Unfinished


@dataclass(frozen=True)
class Failed:
    """A trial could not be evaluated."""

    number: int
    reason: str


Message = Progress | AtRung | Measured | Halted | Failed


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    seat: int
    ready: bool = False
    job: Job | None = None


@dataclass
class Workers:
    """`count` worker processes for a study, spread over `devices` (torch's names). Use as a context manager."""

    spec: StudySpec
    info: DatasetInfo
    devices: tuple[str, ...]
    count: int
    threads: int = 1
    folder: Path | None = None
    """The study's folder."""
    latency_command: str | None = None
    _workers: list[_Worker] = field(default_factory=list)
    _stillborn: int = 0

    def __enter__(self) -> Workers:
        self._folder = tempfile.TemporaryDirectory(prefix="igc-nas-room-")
        try:
            for seat in range(self.count):
                self._workers.append(self._start(seat))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(GRACE_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers.clear()
        self._folder.cleanup()

    def calibrate(self) -> Calibration:
        """Measure the reference and the ends of the latency scale in the first worker, before the others work."""
        while waiting := [worker for worker in self._workers if not worker.ready]:
            self._raise_if_error(self._receive(waiting[0]))
        worker = self._workers[0]
        _send(worker, "calibrate", None)
        answer = self._receive(worker)
        self._raise_if_error(answer)
        if not isinstance(answer, Calibration):
            raise IgcNasError("the worker process died while it measured the latency scale")
        return answer

    def tell_spec(self, spec: StudySpec) -> None:
        """Give every worker the spec as it is now (after calibration)."""
        self.spec = spec
        for worker in self._workers:
            _send(worker, "spec", spec.to_dict())

    def idle(self) -> int:
        """How many workers wait for a job (those that are still starting up are among them)."""
        return sum(worker.job is None for worker in self._workers)

    def running(self) -> list[Job]:
        """The jobs under way."""
        return [worker.job for worker in self._workers if worker.job]

    def submit(self, job: Job) -> None:
        """Give a job to an idle worker."""
        worker = next(w for w in self._workers if w.job is None)
        worker.job = job
        _send(worker, "job", (job.number, job.arch.to_dict(), job.seed))

    def answer(self, number: int, go_on: bool) -> None:
        """Tell the worker that is at a rung with trial `number` whether to go on."""
        for worker in self._workers:
            if worker.job and worker.job.number == number:
                _send(worker, "go_on", go_on)

    def messages(self, timeout: float | None) -> Iterator[Message]:
        """What workers have to say, waiting at most `timeout` seconds for the first word. Replaces the dead."""
        for pipe in wait([w.pipe for w in self._workers], timeout):
            worker = next(w for w in self._workers if w.pipe is pipe)
            answer = self._receive(worker)
            if isinstance(answer, Progress | AtRung):
                yield answer
            elif isinstance(answer, Measured | Halted | Failed):
                worker.job = None
                yield answer
            else:
                self._raise_if_error(answer)

    def _receive(self, worker: _Worker) -> Any:
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            return self._replace(worker)
        if answer == "ready":
            worker.ready = True
        return answer

    def _replace(self, worker: _Worker) -> Failed | IgcNasError | None:
        """Start another process in the place of a dead one; what it was working on has failed.

        A job that it had not begun is the next one's; processes that die again and again before they can work are
        an error.
        """
        worker.process.join(GRACE_S)
        worker.pipe.close()
        died = f"the worker process died ({_exit(worker.process.exitcode)})"
        self._stillborn = 0 if worker.ready else self._stillborn + 1
        if self._stillborn >= MOST_STILLBORN:
            return IgcNasError(f"{died} before it could work, {MOST_STILLBORN} times in a row")
        successor = self._start(worker.seat)
        self._workers[self._workers.index(worker)] = successor
        if worker.job is None:
            return None
        if worker.ready:
            return Failed(worker.job.number, died)
        successor.job = worker.job
        _send(successor, "job", (worker.job.number, worker.job.arch.to_dict(), worker.job.seed))
        return None

    @staticmethod
    def _raise_if_error(answer: object) -> None:
        if isinstance(answer, BaseException):
            raise answer

    def _start(self, seat: int) -> _Worker:
        device = self.devices[seat % len(self.devices)]
        sharing = [s for s in range(self.count) if self.devices[s % len(self.devices)] == device]
        room = Path(self._folder.name) / device.replace(":", "")
        room.mkdir(exist_ok=True)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work,
            args=(
                theirs,
                self.spec.to_dict(),
                self.info,
                device,
                self.threads,
                room,
                sharing.index(seat),
                len(sharing),
                self.folder,
                self.latency_command,
            ),
            name=f"igc-nas worker {seat}",
            daemon=True,
        )
        with _child_environment(self.threads):
            process.start()
        theirs.close()
        return _Worker(process, ours, seat)


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


def _send(worker: _Worker, kind: str, value: object) -> None:
    """Send a word to a worker. One that has died is noticed where its answer is awaited."""
    with contextlib.suppress(OSError):
        worker.pipe.send((kind, value))


def _exit(code: int | None) -> str:
    if code is None:
        return "without an exit status"
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


# In the worker's process.


def _work(
    pipe: Connection,
    spec: dict[str, Any],
    info: DatasetInfo,
    device: str,
    threads: int,
    room: Path,
    seat: int,
    seats: int,
    folder: Path | None,
    latency_command: str | None,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    from igc_nas.device import find_devices
    from igc_nas.evaluate import Evaluator

    try:
        found = find_devices(device)[0]
        quiet = QuietRoom(room, seat, seats, found.settle)
        evaluator = Evaluator(StudySpec.parse(spec), info, found, threads, quiet, folder, latency_command)
    except Exception as error:
        pipe.send(error if isinstance(error, IgcNasError) else IgcNasError(reason_of(error)))
        return  # whoever reads this raises it
    pipe.send("ready")
    while True:
        try:
            kind, value = pipe.recv()
        except EOFError:
            return
        if kind == "spec":
            evaluator.spec = StudySpec.parse(value)
        elif kind == "calibrate":
            pipe.send(_calibrate(evaluator))
        else:
            number, arch, seed = value
            pipe.send(_evaluate(evaluator, Job(number, ArchConfig.parse(arch), seed), pipe))


def _calibrate(evaluator: Evaluator) -> Calibration | IgcNasError:
    try:
        return evaluator.calibrate()
    except Exception as error:
        return error if isinstance(error, IgcNasError) else IgcNasError(reason_of(error))


def _evaluate(evaluator: Evaluator, job: Job, pipe: Connection) -> Message:
    def go_on(latency: Latency, rung: Rung) -> bool:
        pipe.send(AtRung(job.number, latency, rung))
        _, answer = pipe.recv()
        return bool(answer)

    try:
        outcome = evaluator(job.arch, job.seed, lambda epoch: pipe.send(Progress(job.number, epoch)), go_on)
    except EOFError:
        raise
    except Exception as error:
        return Failed(job.number, reason_of(error))
    if isinstance(outcome.score, Unfinished):
        return Halted(job.number, outcome.latency, outcome.score)
    return Measured(job.number, outcome.latency, outcome.score)


def reason_of(error: Exception) -> str:
    """Why a trial failed, on one line."""
    text = error.message if isinstance(error, IgcNasError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def _end_with_parent() -> None:
    """Leave at once when the coordinator is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
