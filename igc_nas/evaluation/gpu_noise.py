"""What disturbs a measurement on a GPU: other processes that compute on it, changing or lowered clocks."""

from __future__ import annotations

import os
import time

import psutil

from igc_nas.evaluation.host import NoiseMonitor
from igc_nas.nn.device import Device
from igc_nas.nn.nvml import Gpu, find_gpu

MOST_SM_USE = 5
"""Percent of the GPU's multiprocessor time that another process may use during a measurement."""
CLOCK_CHANGE = 0.05
"""A change of the SM clock by more than this share means that the GPU was not warm, or has throttled."""


class GpuNoiseMonitor:
    """Reports what has disturbed a measurement on a GPU since it was made, by NVML.

    The machine's CPUs do not count: a graph of kernels runs without them. What NVML cannot say is not reported. Make it
    when the GPU is warm: the clock of an idle one is low, and a sample of NVML covers up to a second before its time.
    """

    def __init__(self, gpu: Gpu | None, pid: int | None = None, workers: set[int] | None = None) -> None:
        """`workers` are processes that pause now (None: all that this one's parent has started)."""
        self._gpu = gpu
        self._pid = os.getpid() if pid is None else pid
        self._workers = workers
        self._since_us = time.time_ns() // 1000
        self._clock_mhz = gpu.state().sm_clock_mhz if gpu else None
        self._throttled = gpu.throttled_ns() if gpu else {}

    def disturbances(self, threads: int = 0) -> tuple[str, ...]:
        """What may have disturbed a measurement since the monitor was made, in words; `threads` is not used."""
        if self._gpu is None:
            return ()
        found = []
        if others := self._busy_others(self._gpu):
            found.append(f"{others} other process{'es' if others > 1 else ''} computed on the GPU")
        clock = self._gpu.state().sm_clock_mhz
        if clock and self._clock_mhz and abs(clock - self._clock_mhz) > CLOCK_CHANGE * max(clock, self._clock_mhz):
            found.append(f"the GPU's clock went from {self._clock_mhz} to {clock} MHz")
        now = self._gpu.throttled_ns()
        if grown := [reason for reason, ns in now.items() if ns > self._throttled.get(reason, ns)]:
            found.append(f"the GPU's clocks were lowered: {', '.join(grown)}")
        return tuple(found)

    def _busy_others(self, gpu: Gpu) -> int:
        """Other processes with more than `MOST_SM_USE` % of the GPU.

        Workers of the same search pause while this one measures; samples may still show what they did before. In a
        container NVML has the host's process ids: then one of the busy ones is taken for this process.
        """
        use = gpu.sm_use(self._since_us)
        busy = {pid for pid, percent in use.items() if percent > MOST_SM_USE}
        if self._pid not in use:
            return max(0, len(busy) - 1)
        others = busy - {self._pid}
        return len(others - (_siblings() if others and self._workers is None else self._workers or set()))


def _siblings() -> set[int]:
    """The processes that this one's parent has started, such as the other workers of a search."""
    try:
        return {process.pid for process in psutil.Process(os.getppid()).children()}
    except (psutil.Error, OSError):
        return set()


def monitor_for(device: Device) -> NoiseMonitor | GpuNoiseMonitor:
    """The monitor of what disturbs measurements on a device."""
    if device.kind == "cpu":
        return NoiseMonitor()
    return GpuNoiseMonitor(find_gpu(device.uuid) if device.uuid else None)
