"""A readers-writer lock on a device: training shares the device, and a measurement has it alone.

It consists of file locks, which the operating system releases when their holder dies: one for each worker, held while
it works, and a gate, which every worker passes before it takes its own lock. A writer releases its own lock, closes the
gate and waits for the locks of all others; readers look at the gate between two steps and release their lock while it
is closed. (filelock's own readers-writer lock cannot tell a reader that a writer waits.)

The workers of one run share a CPU by files of the run. A GPU is shared by all workers of this user on this machine, of
whatever run, by files that are named after its UUID: another search on the same GPU pauses while one measures.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from igc_nas.engine.executor import WorkerSlot

if TYPE_CHECKING:
    from igc_nas.nn.device import Device

GATE_FILE = "gate.lock"
POLL_S = 0.005
SEATS = 64
"""The most workers that share a GPU at a time; more of them wait for a seat."""
GPU_LOOK_S = 0.02
"""How often a worker on a GPU looks at the gate: a look takes about 0.1 ms, and a step of a small network 2 ms."""


def lock_for(slot: WorkerSlot, device: Device) -> DeviceLock:
    """The lock of a worker slot on its device."""
    if device.uuid is None:
        return DeviceLock(slot.lock_folder, slot.index, slot.workers_on_device, device.synchronize)
    return DeviceLock(gpu_folder(device.uuid), None, SEATS, device.synchronize, GPU_LOOK_S)


def gpu_folder(uuid: str) -> Path:
    """The folder of the lock files of a GPU, one for each user: made if it is not there."""
    folder = Path(tempfile.gettempdir()) / f"igc-nas-locks-{os.getuid()}" / uuid
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


class DeviceLock:
    """The lock of worker `index` of `workers` that share a device, by files in `folder`.

    Without an index (None) it takes any free one of the `workers` places. `synchronize` is called before the lock is
    released for a writer: the queued work of a GPU must have ended. `look_s` is the least time between two looks of
    `pause` at the gate. `waited_s` is the time spent waiting for other workers so far, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        index: int | None,
        workers: int,
        synchronize: Callable[[], None] = lambda: None,
        look_s: float = 0.0,
    ) -> None:
        self.waited_s = 0.0
        self._synchronize = synchronize
        self._look_s, self._looked_at = look_s, -look_s
        self.on_waiting: Callable[[bool], None] = lambda _: None
        """Called when a wait for others begins (True) and ends (False)."""
        self._gate = FileLock(folder / GATE_FILE, poll_interval=POLL_S)
        locks = [FileLock(folder / f"worker{i}.lock", poll_interval=POLL_S) for i in range(workers)]
        self._remote = FileLock(folder / "remote.lock", poll_interval=0.02)
        self._places = locks if index is None else [locks[index]]
        self._own = self._places[0]
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
        if not self._others or time.monotonic() - self._looked_at < self._look_s:
            return
        self._looked_at = time.monotonic()
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
            self._own = self._free_place()

    def _free_place(self) -> FileLock:
        """The first of the places that no other worker has, acquired."""
        while True:
            for place in self._places:
                with contextlib.suppress(Timeout):
                    place.acquire(timeout=0)
                    return place
            time.sleep(POLL_S)

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
