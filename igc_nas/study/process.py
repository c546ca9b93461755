"""A process by what makes it one: host, boot, pid and when it started. A pid alone is given again to others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from igc_nas.io.records import Frozen

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SAME_START_S = 2.0
"""Two readings of one process's start may differ by so much: it is derived from a clock that is set while it runs."""
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a process to end, and may be answered."""


class Process(Frozen):
    """A process of some machine. `boot` and `started` are None where an older record, or the system, does not say."""

    host: str
    pid: Annotated[int, Field(ge=1)]
    boot: str | None = None
    started: float | None = None
    """Seconds since 1970."""

    @classmethod
    def here(cls) -> Process:
        """This one."""
        return cls(host=socket.gethostname(), pid=os.getpid(), boot=_boot(), started=_start_of(os.getpid()))

    def is_alive(self) -> bool | None:
        """Whether it runs still; None where that cannot be seen from here, because it is another machine's."""
        if self.host != socket.gethostname():
            return None
        if self.boot is not None and self.boot != _boot():
            return False
        started = _start_of(self.pid)
        return started is not None and (self.started is None or abs(started - self.started) <= SAME_START_S)

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back what asks this process to end until the block is over: half of it done would be worse."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    held: list[int] = []
    ours = [number for number in ENDING if signal.getsignal(number) is not None]  # None: not Python's to put back
    before = {number: signal.signal(number, lambda number, _: held.append(number)) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


@cache
def _boot() -> str | None:
    """What tells this boot of the machine from every other."""
    import psutil

    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return f"since {psutil.boot_time():.0f}" if hasattr(psutil, "boot_time") else None


def _start_of(pid: int) -> float | None:
    """When a process of this machine started; None where there is none. A zombie is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 2)
    except (psutil.Error, OSError, OverflowError, ValueError):
        return None
