"""A quiet room: while one process measures, the others that use the same device pause.

Made of file locks, which the system releases when their holder dies. There is a gate, and a seat for every worker. A
worker sits while it works; to sit down it passes the gate. Who measures stands up, closes the gate and waits until
every seat is empty; who works looks at the gate between two steps and stands up while it is closed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class DeviceLock:
    """Seat `seat` of `seats` in a room whose locks are files in `folder`.

    `synchronize` is called before standing up: a GPU has work queued that must be over before another may measure.
    `waited_s` are the seconds that were spent waiting for others, so far.
    """

    def __init__(self, folder: Path, seat: int, seats: int, synchronize: Callable[[], None] = lambda: None) -> None:
        self.waited_s = 0.0
        self._settle = synchronize
        self.waits: Callable[[bool], None] = lambda _: None
        """Hears that we begin to wait for others (True), and that we go on (False)."""
        self._gate = FileLock(folder / "gate.lock", poll_interval=0.005)
        self._seats = [FileLock(folder / f"seat{i}.lock", poll_interval=0.005) for i in range(seats)]
        self._remote = FileLock(folder / "remote.lock", poll_interval=0.02)
        self._own = self._seats[seat]
        self._others = [lock for i, lock in enumerate(self._seats) if i != seat]

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Use the device, standing up for others whenever `pause` is called."""
        self._sit()
        try:
            yield
        finally:
            self._own.release(force=True)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Have the device to ourselves; within `working` the own seat is taken again afterwards."""
        worked = self._own.is_locked
        if worked:
            self._stand()  # two who wait for each other's seat would wait for ever
        try:
            with contextlib.ExitStack() as stack:
                with self._waiting():
                    for lock in (self._gate, *self._others):
                        stack.enter_context(lock)
                yield
        finally:
            if worked:
                self._sit()

    @contextlib.contextmanager
    def remotely(self) -> Iterator[None]:
        """Have another machine to ourselves; the others go on working here."""
        with contextlib.ExitStack() as stack:
            with self._waiting():
                stack.enter_context(self._remote)
            yield

    def pause(self) -> None:
        """Between two steps: wait while somebody measures."""
        try:
            self._gate.acquire(timeout=0)
        except Timeout:
            self._stand()
            self._sit()
        else:
            self._gate.release()

    def _stand(self) -> None:
        self._settle()
        self._own.release(force=True)

    def _sit(self) -> None:
        with self._waiting(), self._gate:
            self._own.acquire()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        self.waits(True)
        try:
            yield
        finally:
            self.waited_s += time.perf_counter() - began
            self.waits(False)
