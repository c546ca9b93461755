"""An NVIDIA GPU's clocks, temperature, power and throttling, and the energy of one run, through NVML (nvidia-ml-py).

Read only: no clock, limit or mode is ever set. Every NVML call can fail (no driver, an old one, a card without that
sensor, no permission); its value is then None, never 0, and no exception is raised. A MIG instance, a part of a card,
has no sensors of its own: clocks, temperature, power and energy are then its whole card's. pynvml is imported when a
GPU is looked for; torch is not imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

# Constants of NVML's binary interface: an old pynvml may not define the names.
SM_CLOCK, MEMORY_CLOCK = 1, 2
TEMPERATURE_OF_GPU = 0
MIG_ENABLED = 1

NO_THROTTLING = 0x1 | 0x2
"""Clock event reasons that are not throttling: the GPU is idle; an application has set the clocks."""
THROTTLING = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clock",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Clock event reasons that lower the clocks, by their bit. One cause may set two bits."""

THROTTLED_NS = {"sw_power_cap": 74, "sync_boost": 76, "sw_thermal": 269, "hw_thermal": 270, "hw_power_brake": 271}
"""Field identifiers of the counters of nanoseconds with lowered clocks, by reason."""

COMPUTE_MODES = {0: "DEFAULT", 1: "EXCLUSIVE_THREAD", 2: "PROHIBITED", 3: "EXCLUSIVE_PROCESS"}
"""How many processes may compute on a GPU: any number, one, none, one. Clusters set it; CUDA refuses all others."""

FAULTS = {
    4: "this user may not open it",
    11: "the GPU raises no interrupts",
    15: "the GPU is lost until the machine is restarted",
    16: "the GPU waits for a reset",
    17: "the operating system blocks the GPU",
    18: "its library has another version than its kernel module, until the machine is restarted",
}
"""Errors at the start of NVML on a machine with a GPU; without one the library or the driver's module is missing."""

NO_SAMPLES = (0, 6)
"""What pynvml raises for a GPU without samples of the use by processes: NVML_SUCCESS, NVML_ERROR_NOT_FOUND."""

POLL_S = 0.001
LONGEST_TICK_S = 0.5
"""The driver updates its energy counter every 20 to 100 ms; without an update in this time it is not working."""
IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class GpuState:
    """A GPU's state at one moment; None for what cannot be measured.

    `power_w` is the whole board's, on many cards a mean over the last second. `throttle` names the reasons for lowered
    clocks; empty: the clocks are not lowered.
    """

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    throttle: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A handle of one GPU, from `find_gpu`; of the whole card where the GPU is a MIG instance of it."""

    nvml: Any
    handle: Any
    is_mig: bool = False

    def state(self) -> GpuState:
        """Clocks, temperature, power and throttling now. Never raises."""
        milliwatts = self._read("nvmlDeviceGetPowerUsage")
        reasons = self._read("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        return GpuState(
            sm_clock_mhz=self._read("nvmlDeviceGetClockInfo", of=SM_CLOCK),
            memory_clock_mhz=self._read("nvmlDeviceGetClockInfo", of=MEMORY_CLOCK),
            temperature_c=self._read("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature", of=TEMPERATURE_OF_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
            throttle=None if reasons is None else throttling(reasons),
        )

    def energy_mj(self) -> int | None:
        """Energy that the board has used since the driver was loaded, in millijoules (since Volta). Never raises."""
        return self._read("nvmlDeviceGetTotalEnergyConsumption")

    def compute_mode(self) -> str | None:
        """Which processes may compute on it, one of `COMPUTE_MODES`. Never raises."""
        mode = self._read("nvmlDeviceGetComputeMode")
        return None if mode is None else COMPUTE_MODES.get(mode, f"mode {mode}")

    def free_memory(self) -> int | None:
        """Bytes of its memory that no process has now; None for a MIG instance, too. Never raises."""
        with suppress(self.nvml.NVMLError, AttributeError):
            return None if self.is_mig else int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).free)
        return None

    def throttled_ns(self) -> dict[str, int]:
        """Nanoseconds with lowered clocks since the driver was loaded, by reason; without what NVML cannot say."""
        found = {}
        with suppress(self.nvml.NVMLError, AttributeError):
            fields = self.nvml.nvmlDeviceGetFieldValues(self.handle, list(THROTTLED_NS.values()))
            for reason, value in zip(THROTTLED_NS, fields, strict=True):
                if value.nvmlReturn == 0:
                    found[reason] = int(value.value.ullVal)
        return found

    def says_use(self) -> bool:
        """Whether it can say `sm_use`."""
        try:
            self.nvml.nvmlDeviceGetProcessUtilization(self.handle, 0)
        except self.nvml.NVMLError as error:
            return getattr(error, "value", None) in NO_SAMPLES
        except AttributeError:
            return False
        return True

    def sm_use(self, since_us: int) -> dict[int, int]:
        """Percent of the multiprocessors' time by process id, the highest sample since a time of the system's clock.

        Empty where NVML cannot say (MIG, WSL).
        """
        use: dict[int, int] = {}
        with suppress(self.nvml.NVMLError, AttributeError):
            for sample in self.nvml.nvmlDeviceGetProcessUtilization(self.handle, since_us):
                if sample.timeStamp > since_us:
                    use[int(sample.pid)] = max(use.get(int(sample.pid), 0), int(sample.smUtil))
        return use

    def _read(self, *names: str, of: int | None = None) -> int | None:
        """The value of the first function that works: NVML has renamed them, and no version has all names."""
        for name in names:
            with suppress(self.nvml.NVMLError, AttributeError):
                return int(getattr(self.nvml, name)(self.handle, *(() if of is None else (of,))))
        return None


@dataclass(frozen=True, slots=True)
class InstalledGpus:
    """The GPUs that the driver knows, whatever torch can use.

    `driver` is its version, `cuda` the version of CUDA that it is for, (12, 4); None if it does not say.
    """

    driver: str | None
    names: tuple[str, ...]
    cuda: tuple[int, int] | None = None


def installed_gpus(nvml: Any = None) -> InstalledGpus | None:
    """The GPUs that NVML lists; None where NVML or its driver is missing, or it lists none."""
    nvml = nvml or _pynvml()
    names: list[str] = []
    driver = cuda = None
    with suppress(nvml.NVMLError, AttributeError):
        _start(nvml)
        with suppress(nvml.NVMLError, AttributeError):
            driver = str(nvml.nvmlSystemGetDriverVersion())
            version = int(nvml.nvmlSystemGetCudaDriverVersion())
            cuda = version // 1000, version % 1000 // 10
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        names.extend(str(nvml.nvmlDeviceGetName(handle)) for handle in handles)
    return InstalledGpus(driver, tuple(names), cuda) if names else None


def driver_fault(nvml: Any = None) -> str | None:
    """Why the driver of a GPU that is there does not work, one of `FAULTS`; None where it does, or there is none."""
    nvml = nvml or _pynvml()
    try:
        _start(nvml)
    except nvml.NVMLError as error:
        return FAULTS.get(getattr(error, "value", 0))
    return None


def _pynvml() -> Any:
    import pynvml

    return pynvml


def find_gpu(uuid: str, nvml: Any = None) -> Gpu | None:
    """The GPU with this UUID, for a MIG instance its card; None where NVML, its driver or the GPU is missing.

    `uuid` is NVML's ("GPU-...", "MIG-...") or torch's, which has no prefix:
    `str(torch.cuda.get_device_properties(0).uuid)`. `nvml` is the module pynvml or, in tests, a fake.
    """
    nvml = nvml or _pynvml()
    names = (uuid,) if uuid.startswith(("GPU-", "MIG-")) else (f"GPU-{uuid}", f"MIG-{uuid}")
    with suppress(nvml.NVMLError, AttributeError):
        _start(nvml)
        for name in names:
            with suppress(nvml.NVMLError):
                return _with_sensors(nvml, nvml.nvmlDeviceGetHandleByUUID(name))
    return None


def _with_sensors(nvml: Any, handle: Any) -> Gpu:
    """The GPU of a handle. A card in MIG mode computes in its instances only: its handle stands for one of them."""
    is_mig = False
    with suppress(nvml.NVMLError, AttributeError):
        is_mig = bool(nvml.nvmlDeviceIsMigDeviceHandle(handle))
        if is_mig:
            handle = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        else:
            is_mig = nvml.nvmlDeviceGetMigMode(handle)[0] == MIG_ENABLED
    return Gpu(nvml, handle, is_mig)


@cache
def _start(nvml: Any) -> None:
    """Start NVML once per process. `cache` keeps no exception: a failed start is tried again."""
    nvml.nvmlInit()


def throttling(reasons: int) -> tuple[str, ...]:
    """Names of the throttling reasons in NVML's bit mask, lowest bit first; `unknown_0x...` for an unknown bit."""
    bits = (1 << i for i in range(reasons.bit_length()))
    return tuple(THROTTLING.get(bit, f"unknown_{bit:#x}") for bit in bits if bit & reasons & ~NO_THROTTLING)


def energy_per_run(
    gpu: Gpu,
    run: Callable[[], object],
    synchronize: Callable[[], None],
    window_s: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Millijoules of one `run()` above idle: of the whole board, with the work of other processes on it.

    By the driver's counter: `IDLE_S` seconds of idling, then runs for at least `window_s`, of which the mean is taken.

    `run` may queue its work, `synchronize` waits until all of it is done. Warm up first: a cold idle GPU draws less
    power than a warm one. Both phases begin and end at an update of the counter, so that its coarse steps cause no
    error. None if the counter cannot be read, does not advance or goes backwards, or if the energy above idle is not
    positive. Exceptions of `run` and `synchronize` are passed on.
    """
    assert window_s > 0
    synchronize()
    if (rest := _tick(gpu, clock, sleep)) is None:
        return None
    sleep(IDLE_S)
    if (begin := _tick(gpu, clock, sleep)) is None:
        return None
    runs = 0
    while not runs or clock() - begin.at_s < window_s:
        run()
        runs += 1
    synchronize()
    if (end := _tick(gpu, clock, sleep)) is None or not rest.mj < begin.mj < end.mj:
        return None
    idle_mw = (begin.mj - rest.mj) / (begin.at_s - rest.at_s)
    elapsed_s = end.at_s - begin.at_s
    net_mj = end.mj - begin.mj - idle_mw * elapsed_s
    return net_mj / runs if net_mj > 0 else None


class _Reading(NamedTuple):
    at_s: float
    mj: int


def _tick(gpu: Gpu, clock: Callable[[], float], sleep: Callable[[float], None]) -> _Reading | None:
    """The next update of the counter (time, value); None if it cannot be read, does not advance or goes backwards."""
    first, started_s = gpu.energy_mj(), clock()
    while first is not None and clock() - started_s < LONGEST_TICK_S:
        now = gpu.energy_mj()
        if now is None:
            return None
        if now > first:
            return _Reading(clock(), now)
        sleep(POLL_S)
    return None
