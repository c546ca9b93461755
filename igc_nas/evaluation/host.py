"""What the machine does while something is timed: neighbours that compute, clocks that fall."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil

MOST_NEIGHBOURS = 0.25
"""Cores that other processes may keep busy while we measure, on a small machine; on a large one 5 % of its cores."""
LEAST_CPU_SHARE = 0.9
"""A thread that got less of a CPU than this while it was timed had to share it."""
LEAST_WATCH_S = 0.2
"""The system counts in hundredths of a second: over less than this it says nothing about neighbours."""
MEMORY_EVENTS = Path("/proc/vmstat")
THROTTLE_COUNTS = Path("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count")


class NoiseMonitor:
    """Looks at the machine from its making to `disturbances`."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._thread = time.thread_time()
        self._own = _own_s()
        self._busy = _busy_s()
        self._throttled = _throttle_count()

    def disturbances(self, threads: int = 1) -> tuple[str, ...]:
        """What may have spoiled a measurement of `threads` threads since the start, in words."""
        elapsed = time.perf_counter() - self._started
        found = []
        if threads == 1 and (time.thread_time() - self._thread) / elapsed < LEAST_CPU_SHARE:
            found.append("its processor was shared")
        neighbours = self.neighbours()
        if neighbours is not None and neighbours > max(MOST_NEIGHBOURS, 0.05 * (psutil.cpu_count() or 1)):
            found.append(f"other processes kept {neighbours:.1f} cores busy")
        if (_throttle_count() or 0) > (self._throttled or 0):
            found.append("the processor throttled")
        return tuple(found)

    def neighbours(self) -> float | None:
        """Cores that other processes kept busy since the start; None where that cannot be said."""
        elapsed = time.perf_counter() - self._started
        busy = _busy_s()
        if busy is None or self._busy is None or elapsed < LEAST_WATCH_S:
            return None
        return max(0.0, (busy - self._busy) - (_own_s() - self._own)) / elapsed


def load() -> float | None:
    """The load average over the last minute, where the system says it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def oom_kills() -> int:
    """How many processes the system has killed since it started because memory was short; 0 where it does not say."""
    try:
        counts = dict(line.split() for line in MEMORY_EVENTS.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


def cpu_clock_mhz() -> float | None:
    """The processor's clock now, where the system says it."""
    try:
        clock = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return round(clock.current, 1) if clock and clock.current else None


def _busy_s() -> float | None:
    """Seconds that all processors together have worked."""
    try:
        times: Any = psutil.cpu_times()
    except (OSError, RuntimeError):
        return None
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def _own_s() -> float:
    own = os.times()
    return own.user + own.system


def _throttle_count() -> int | None:
    try:
        return int(THROTTLE_COUNTS.read_text())
    except (OSError, ValueError):
        return None
