"""Identity of a process: host, boot, pid and start time. A pid alone is reused."""

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
"""Tolerance where start times are compared: they are derived from the system clock, which may be adjusted."""
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask a process to end, and that it can handle."""


class Process(Frozen):
    """A process of some machine. What an older record or the system does not have of its start is None.

    `psutil.Process.is_running` compares the same, but cannot be made from what another process has recorded.
    """

    host: str
    pid: Annotated[int, Field(ge=1)]
    boot: str | None = None
    started: float | None = None
    """Seconds since 1970, by the clock as it is when this is asked."""
    ticks: int | None = None
    """Clock ticks from the boot of the machine to its start, which no setting of the clock changes (Linux)."""

    @classmethod
    def here(cls) -> Process:
        """The current process."""
        pid = os.getpid()
        return cls(host=socket.gethostname(), pid=pid, boot=_boot(), started=_start_of(pid), ticks=_ticks_of(pid))

    def is_alive(self) -> bool | None:
        """Whether it still runs; None for a process of another machine, which cannot be checked from here."""
        if self.host != socket.gethostname():
            return None
        if self.boot is not None and self.boot != _boot():
            return False
        started = _start_of(self.pid)
        if started is None or self.started is None:
            return started is not None
        if self.ticks is not None and (ticks := _ticks_of(self.pid)) is not None:
            return ticks == self.ticks
        return abs(started - self.started) <= SAME_START_S

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay SIGINT, SIGTERM and SIGHUP until the block has ended, so that it is not left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread
        return
    held: list[int] = []
    ours = [number for number in ENDING if signal.getsignal(number) is not None]  # None: not set by Python
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
    """An identifier of this boot of the machine."""
    import psutil

    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return f"since {psutil.boot_time():.0f}" if hasattr(psutil, "boot_time") else None


def _start_of(pid: int) -> float | None:
    """Start time of a process of this machine; None if there is no such process, or it is a zombie."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 2)
    except (psutil.Error, OSError, OverflowError, ValueError):
        return None


def _ticks_of(pid: int) -> int | None:
    """Clock ticks from the boot to the start of a process; None if there is no such process, or no /proc."""
    try:  # the 22nd field; the second is the program's name in parentheses, which may hold spaces and parentheses
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
