"""A readers-writer lock on a device: training shares the device, and a measurement has it alone.

It consists of file locks, which the operating system releases when their holder dies: one for each worker, held while
it works, and a gate, which every worker passes before it takes its own lock. A writer releases its own lock, closes the
gate and waits for the locks of all others; readers look at the gate between two steps and release their lock while it
is closed. (filelock's own readers-writer lock cannot tell a reader that a writer waits.)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

GATE_FILE = "gate.lock"


class DeviceLock:
    """The lock of worker `index` of `workers` that share a device, by files in `folder`.

    `synchronize` is called before the lock is released for a writer: the queued work of a GPU must have ended.
    `waited_s` is the time spent waiting for other workers so far, in seconds.
    """

    def __init__(self, folder: Path, index: int, workers: int, synchronize: Callable[[], None] = lambda: None) -> None:
        self.waited_s = 0.0
        self._synchronize = synchronize
        self.on_waiting: Callable[[bool], None] = lambda _: None
        """Called when a wait for others begins (True) and ends (False)."""
        self._gate = FileLock(folder / GATE_FILE, poll_interval=0.005)
        locks = [FileLock(folder / f"worker{i}.lock", poll_interval=0.005) for i in range(workers)]
        self._remote = FileLock(folder / "remote.lock", poll_interval=0.02)
        self._own = locks[index]
        self._others = [lock for i, lock in enumerate(locks) if i != index]

    @property
    def is_shared(self) -> bool:
        """Whether this worker holds the device with others now."""
        return self._own.is_locked

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Use the device together with others; `pause` lets a writer have it."""
        self._acquire_shared()
        try:
            yield
        finally:
            self._own.release(force=True)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Have the device alone. Within `shared`, the shared lock is released before and taken again afterwards."""
        was_shared = self.is_shared
        if was_shared:
            self._release_shared()  # two writers that hold shared locks would wait for each other for ever
        try:
            with contextlib.ExitStack() as stack:
                with self.waiting():
                    for lock in (self._gate, *self._others):
                        stack.enter_context(lock)
                yield
        finally:
            if was_shared:
                self._acquire_shared()

    @contextlib.contextmanager
    def remote(self) -> Iterator[None]:
        """Have another machine alone, on which a command measures; this device stays shared."""
        with contextlib.ExitStack() as stack:
            with self.waiting():
                stack.enter_context(self._remote)
            yield

    def pause(self) -> None:
        """Called between two steps: wait while another worker measures. Free for a worker that is alone."""
        if not self._others:
            return
        try:
            self._gate.acquire(timeout=0)
        except Timeout:
            self._release_shared()
            self._acquire_shared()
        else:
            self._gate.release()

    def _release_shared(self) -> None:
        self._synchronize()
        self._own.release(force=True)

    def _acquire_shared(self) -> None:
        with self.waiting(), self._gate:
            self._own.acquire()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for others."""
        began = time.perf_counter()
        self.on_waiting(True)
        try:
            yield
        finally:
            self.waited_s += time.perf_counter() - began
            self.on_waiting(False)
