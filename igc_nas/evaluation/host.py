"""What disturbs a measurement on this machine: other processes, a shared core, a throttled processor."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MOST_NEIGHBOURS = 0.25
"""Cores that other processes may keep busy during a measurement; on a machine of more than five cores 5 % of them."""
LEAST_CPU_SHARE = 0.9
"""A timed thread that ran for less than this share of the time had to share its core."""
LEAST_WATCH_S = 0.2
"""The system counts CPU time in hundredths of a second: over less than this the count is too coarse."""
MEMORY_EVENTS = Path("/proc/vmstat")
THROTTLE_COUNTS = Path("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count")
AVERAGES: Callable[[], tuple[float, ...]] | None = getattr(os, "getloadavg", None)
CPU_FREQUENCY: Callable[[], Any] = getattr(psutil, "cpu_freq", lambda: None)


@dataclass(frozen=True)
class Counters:
    """The clocks and counters of the operating system; a test passes its own."""

    clock: Callable[[], float] = time.perf_counter
    thread_clock: Callable[[], float] = time.thread_time
    process_times: Callable[[], Any] = os.times
    cpu_times: Callable[[], Any] = psutil.cpu_times
    cores: Callable[[], int | None] = psutil.cpu_count
    throttle_counts: Path = THROTTLE_COUNTS

    def busy_s(self) -> float | None:
        """Seconds that all cores together have worked; None where the system does not say."""
        try:
            times = self.cpu_times()
        except (OSError, RuntimeError):
            return None
        return float(times.user + times.system + getattr(times, "nice", 0.0))

    def own_s(self) -> float:
        """CPU seconds of this process, all threads, without its children."""
        own = self.process_times()
        return float(own.user + own.system)

    def throttle_count(self) -> int | None:
        """How often the processor has throttled; None where the system does not say."""
        try:
            return int(self.throttle_counts.read_text())
        except (OSError, ValueError):
            return None


def is_wsl() -> bool:
    """Whether this is Linux in Windows (WSL), a container there included."""
    return "microsoft" in platform.release().lower()


class NoiseMonitor:
    """Reports what has disturbed a measurement since it was made, from the changes of the system's counters."""

    def __init__(self, counters: Counters = Counters()) -> None:
        self._counters = counters
        self._started = counters.clock()
        self._thread = counters.thread_clock()
        self._own = counters.own_s()
        self._busy = counters.busy_s()
        self._throttled = counters.throttle_count()

    def disturbances(self, threads: int = 1) -> tuple[str, ...]:
        """What may have disturbed a measurement since the monitor was made, in words.

        `threads` is the number of CPU threads that were timed. Only a single one is checked for a shared core: of
        several, the calling thread may have waited for the others; with 0 (a GPU) it waits for the device.
        """
        elapsed = self._counters.clock() - self._started
        found = []
        if threads == 1 and (self._counters.thread_clock() - self._thread) / elapsed < LEAST_CPU_SHARE:
            found.append("its processor was shared")
        neighbours = self.neighbours()
        if neighbours is not None and neighbours > max(MOST_NEIGHBOURS, 0.05 * (self._counters.cores() or 1)):
            found.append(f"other processes kept {neighbours:.1f} cores busy")
        if (self._counters.throttle_count() or 0) > (self._throttled or 0):
            found.append("the processor throttled")
        return tuple(found)

    def neighbours(self) -> float | None:
        """Cores that other processes kept busy since the monitor was made, on average; None where it is unknown."""
        elapsed = self._counters.clock() - self._started
        busy = self._counters.busy_s()
        if busy is None or self._busy is None or elapsed < LEAST_WATCH_S:
            return None
        return max(0.0, (busy - self._busy) - (self._counters.own_s() - self._own)) / elapsed


def load(averages: Callable[[], tuple[float, ...]] | None = AVERAGES) -> float | None:
    """The load average over the last minute; None where the system has none."""
    return None if averages is None else round(averages()[0], 2)


def oom_kills() -> int:
    """Processes that the system has killed since it started because memory was short; 0 where it does not say."""
    try:
        counts = dict(line.split() for line in MEMORY_EVENTS.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


def cpu_clock_mhz(frequency: Callable[[], Any] = CPU_FREQUENCY) -> float | None:
    """The processor's clock now; None where the system does not say."""
    try:
        clock = frequency()
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return round(clock.current, 1) if clock and clock.current else None
