"""An NVML that is not there: one healthy card, and one whose energy and time are simulated."""

from __future__ import annotations

from collections.abc import Callable

import pynvml

from igc_nas.nn.nvml import energy_per_run, find_gpu

UUID = "3f2a8c1e-0000-4000-8000-0123456789ab"
CLOCK = "nvmlDeviceGetClockInfo"
POWER = "nvmlDeviceGetPowerUsage"
ENERGY = "nvmlDeviceGetTotalEnergyConsumption"
TEMPERATURES = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")


class FakeNvml:
    """A pynvml with one healthy card; a call whose name is in `failing` raises the exception there."""

    NVMLError = pynvml.NVMLError

    def __init__(self, uuid: str = f"GPU-{UUID}") -> None:
        self.uuid = uuid
        self.failing: dict[str, type[Exception]] = {}
        self.called: list[str] = []
        self.energy: Callable[[], int] = lambda: 123_456_789_012
        self.answers = {
            CLOCK: lambda of: {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[of],
            POWER: lambda: 312_500,
            ENERGY: lambda: self.energy(),
            **dict.fromkeys(TEMPERATURES, lambda of: {pynvml.NVML_TEMPERATURE_GPU: 41}[of]),
            **dict.fromkeys(REASONS, lambda: 0x1 | 0x2 | 0x4),
        }

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name not in self.answers:
            raise AttributeError(name)

        def call(handle: str, *args: int) -> int:
            self._note(name)
            assert handle == "the handle"
            return self.answers[name](*args)

        return call

    def nvmlInit(self) -> None:
        self._note("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._note("nvmlDeviceGetHandleByUUID")
        if uuid != self.uuid:
            raise pynvml.NVMLError_NotFound
        return "the handle"

    def _note(self, name: str) -> None:
        self.called.append(name)
        if name in self.failing:
            raise self.failing[name]


class Bench:
    """A simulated card and its clock: work is queued by `run` and done by `synchronize`, or where the queue is full.

    It draws `idle_w` at rest and `busy_w` under load; its counter is written every `step_ms` milliseconds. Whole
    milliseconds and watts make all energies whole millijoules.
    """

    def __init__(
        self, idle_w: int = 70, busy_w: int = 270, run_ms: int = 4, step_ms: int = 100, uuid: str = f"GPU-{UUID}"
    ) -> None:
        self.idle_w, self.busy_w, self.run_ms, self.step_ms = idle_w, busy_w, run_ms, step_ms
        self.now_ms = 37  # not where the counter moves
        self.used_mj = self.written_mj = 5_000_000
        self.queued = self.done = 0
        self.nvml = FakeNvml(uuid)
        self.nvml.energy = lambda: self.written_mj

    def run(self) -> None:
        self.queued += 1
        if self.queued == 8:
            self._work(1)

    def synchronize(self) -> None:
        self._work(self.queued)

    def clock(self) -> float:
        return self.now_ms / 1000

    def sleep(self, seconds: float) -> None:
        self._pass(round(seconds * 1000), self.idle_w)

    def measure(self, **spans: float) -> float | None:
        gpu = find_gpu(self.nvml.uuid, self.nvml)
        assert gpu is not None
        return energy_per_run(gpu, self.run, self.synchronize, clock=self.clock, sleep=self.sleep, **spans)

    def _work(self, runs: int) -> None:
        self.queued -= runs
        self.done += runs
        self._pass(runs * self.run_ms, self.busy_w)

    def _pass(self, ms: int, watts: int) -> None:
        for _ in range(ms):
            self.now_ms += 1
            self.used_mj += watts
            if self.now_ms % self.step_ms == 0:
                self.written_mj = self.used_mj
