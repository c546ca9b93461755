"""GPU telemetry: units and names; a failing call loses its own value only; energy by the counter."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from igc_nas.nn import nvml as module
from igc_nas.nn.nvml import GpuState, find_gpu, throttling
from tests.support.nvml import CLOCK, ENERGY, POWER, REASONS, TEMPERATURES, UUID, Bench, FakeNvml

HEALTHY = GpuState(
    sm_clock_mhz=1980, memory_clock_mhz=2619, temperature_c=41, power_w=312.5, throttle=("sw_power_cap",)
)
ERRORS = (*sorted(pynvml.NVMLError.__subclasses__(), key=lambda error: error.__name__), AttributeError)

# Finding a GPU.


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        (UUID, f"GPU-{UUID}"),
        (f"GPU-{UUID}", f"GPU-{UUID}"),
        (UUID, f"MIG-{UUID}"),  # torch says a slice's UUID without a prefix, too
        (f"MIG-{UUID}", f"MIG-{UUID}"),
    ],
)
def test_a_gpu_is_found_by_its_uuid(wanted: str, there: str) -> None:
    gpu = find_gpu(wanted, FakeNvml(there))
    assert gpu is not None
    assert gpu.state() == HEALTHY


@pytest.mark.parametrize("wanted", ["", UUID[::-1], f"MIG-{UUID}", "GPU-"])
def test_a_gpu_of_another_uuid_is_not_found(wanted: str) -> None:
    assert find_gpu(wanted, FakeNvml()) is None


class Instance(FakeNvml):
    """A MIG instance, of which NVML knows no more than its card."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        super().nvmlDeviceGetHandleByUUID(uuid)
        return "the instance"

    def nvmlDeviceIsMigDeviceHandle(self, handle: str) -> int:
        return handle == "the instance"

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:
        self._note("nvmlDeviceGetDeviceHandleFromMigDeviceHandle")
        return "the handle"

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        assert handle == "the handle", "NVML refuses an instance"
        return [1, 1]


def test_a_mig_instance_has_the_sensors_of_its_card() -> None:
    gpu = find_gpu(UUID, Instance(f"MIG-{UUID}"))
    assert gpu is not None
    assert gpu.is_mig
    assert gpu.state() == HEALTHY
    assert gpu.energy_mj() == 123_456_789_012
    assert gpu.sm_use(0) == {}


def test_a_card_in_mig_mode_stands_for_its_instance() -> None:
    """Where torch says the card's UUID instead of the instance's."""
    nvml = FakeNvml()
    nvml.nvmlDeviceIsMigDeviceHandle = lambda handle: 0  # type: ignore[attr-defined]
    for mode, is_mig in (([1, 1], True), ([0, 1], False)):
        nvml.nvmlDeviceGetMigMode = lambda handle, mode=mode: mode  # type: ignore[attr-defined]
        gpu = find_gpu(UUID, nvml)
        assert gpu is not None
        assert gpu.is_mig is is_mig
        assert gpu.state() == HEALTHY


def test_an_instance_whose_card_cannot_be_found_says_nothing() -> None:
    nvml = Instance(f"MIG-{UUID}")
    nvml.failing = dict.fromkeys(
        ("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", CLOCK, POWER, *TEMPERATURES, *REASONS),
        pynvml.NVMLError_NoPermission,
    )
    gpu = find_gpu(UUID, nvml)
    assert gpu is not None
    assert gpu.is_mig
    assert gpu.state() == GpuState(None, None, None, None, None)


def test_nvml_is_started_once() -> None:
    nvml = FakeNvml()
    assert find_gpu(UUID, nvml) == find_gpu(UUID, nvml) is not None
    assert nvml.called.count("nvmlInit") == 1


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_a_failed_start_of_nvml_is_tried_again(name: str, error: type[Exception]) -> None:
    nvml = FakeNvml()
    nvml.failing = {name: error}
    assert find_gpu(UUID, nvml) is None
    assert nvml.called.count("nvmlInit") == 1
    nvml.failing = {}
    assert find_gpu(UUID, nvml) is not None


def test_the_real_nvml_does_not_find_a_missing_gpu() -> None:
    assert find_gpu(UUID) is None


@pytest.mark.gpu
def test_a_real_gpu_has_a_state() -> None:
    torch = pytest.importorskip("torch")
    gpu = find_gpu(str(torch.cuda.get_device_properties(0).uuid))
    assert gpu is not None
    assert gpu.state() != GpuState(None, None, None, None, None)


def test_the_module_imports_neither_pynvml_nor_torch() -> None:
    heavy = "{'torch', 'pynvml', 'numpy', 'pydantic'}"
    code = f"import sys, igc_nas.nn.nvml; print(sorted({heavy} & sys.modules.keys()))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Its state.


def lost(*names: str, error: type[Exception]) -> tuple[GpuState, int | None]:
    """The state of a card whose calls of these names fail."""
    nvml = FakeNvml()
    nvml.failing = dict.fromkeys(names, error)
    gpu = find_gpu(UUID, nvml)
    assert gpu is not None
    return gpu.state(), gpu.energy_mj()


def test_a_healthy_card_has_all_values() -> None:
    assert lost(error=Exception) == (HEALTHY, 123_456_789_012)


@pytest.mark.parametrize("error", ERRORS)
def test_a_failing_call_loses_its_own_value_only(error: type[Exception]) -> None:
    energy = 123_456_789_012
    assert lost(CLOCK, error=error) == (replace(HEALTHY, sm_clock_mhz=None, memory_clock_mhz=None), energy)
    assert lost(POWER, error=error) == (replace(HEALTHY, power_w=None), energy)
    assert lost(*TEMPERATURES, error=error) == (replace(HEALTHY, temperature_c=None), energy)
    assert lost(*REASONS, error=error) == (replace(HEALTHY, throttle=None), energy)
    assert lost(ENERGY, error=error) == (HEALTHY, None)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", [*TEMPERATURES, *REASONS])
def test_one_of_two_names_of_a_function_is_enough(name: str, error: type[Exception]) -> None:
    assert lost(name, error=error) == (HEALTHY, 123_456_789_012)


@pytest.mark.parametrize("name", [CLOCK, POWER, ENERGY, *TEMPERATURES, *REASONS])
def test_an_old_pynvml_lacks_functions(name: str) -> None:
    nvml = FakeNvml()
    for each in next((pair for pair in (TEMPERATURES, REASONS) if name in pair), (name,)):
        del nvml.answers[each]
    gpu = find_gpu(UUID, nvml)
    assert gpu is not None
    missing = [value for value in (gpu.energy_mj(), *vars_of(gpu.state())) if value is None]
    assert len(missing) == (2 if name == CLOCK else 1)


def vars_of(state: GpuState) -> tuple[object, ...]:
    return tuple(getattr(state, name) for name in state.__slots__)


@pytest.mark.parametrize("clock", [module.SM_CLOCK, module.MEMORY_CLOCK])
def test_one_clock_can_be_missing(clock: int) -> None:
    nvml = FakeNvml()
    both = nvml.answers[CLOCK]

    def one(of: int) -> int:
        if of == clock:
            raise pynvml.NVMLError_NotSupported
        return both(of)

    nvml.answers[CLOCK] = one
    gpu = find_gpu(UUID, nvml)
    assert gpu is not None
    name = "sm_clock_mhz" if clock == module.SM_CLOCK else "memory_clock_mhz"
    assert gpu.state() == replace(HEALTHY, **{name: None})


def test_a_programming_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        lost(POWER, error=ZeroDivisionError)


@pytest.mark.parametrize(
    ("reasons", "names"),
    [
        (0, ()),
        (0x1, ()),
        (0x3, ()),
        (0x4, ("sw_power_cap",)),
        (0x8 | 0x80, ("hw_slowdown", "hw_power_brake")),
        (0x1 | 0x20 | 0x40, ("sw_thermal", "hw_thermal")),
        (0x10 | 0x100, ("sync_boost", "display_clock")),
        (0x4 | 1 << 40 | 1 << 63, ("sw_power_cap", "unknown_0x10000000000", "unknown_0x8000000000000000")),
    ],
)
def test_throttling_by_name(reasons: int, names: tuple[str, ...]) -> None:
    assert throttling(reasons) == names


def test_every_reason_that_nvml_knows_has_a_name() -> None:
    known = pynvml.nvmlClocksEventReasonAll | pynvml.nvmlClocksThrottleReasonAll
    assert not any(name.startswith("unknown") for name in throttling(known))
    assert throttling(pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown) == ("hw_power_brake",)
    assert throttling(pynvml.nvmlClocksEventReasonSwThermalSlowdown) == ("sw_thermal",)
    assert throttling(pynvml.nvmlClocksEventReasonApplicationsClocksSetting) == ()


# Energy.


@pytest.mark.parametrize("step_ms", [1, 20, 100, 333])
def test_energy_per_run_is_above_idle_and_exact_despite_coarse_steps(step_ms: int) -> None:
    bench = Bench(step_ms=step_ms)
    assert bench.measure() == pytest.approx((270 - 70) * 4)
    assert bench.done > 400
    assert 3.0 <= bench.clock() <= 3.1 + 4 * step_ms / 1000


def test_the_window_is_the_callers() -> None:
    bench = Bench()
    assert bench.measure(window_s=0.5) is not None
    assert 1.5 < bench.clock() < 2.0


def test_runs_longer_than_the_window() -> None:
    assert Bench(run_ms=3000).measure(window_s=0.2) == pytest.approx(200 * 3000)


def test_a_short_window_has_one_run() -> None:
    bench = Bench()
    standing = bench.clock
    bench.clock = lambda: (bench.sleep(0.001), standing())[1]  # reading it takes time, as reading a real one does
    assert bench.measure(window_s=1e-9) is not None
    assert bench.done == 1


def test_work_that_is_queued_before_does_not_count() -> None:
    bench = Bench()
    bench.queued = 5
    assert bench.measure() == pytest.approx((270 - 70) * 4)


@pytest.mark.parametrize("busy_w", [70, 60])
def test_a_load_that_is_not_above_idle_has_no_energy(busy_w: int) -> None:
    assert Bench(busy_w=busy_w).measure() is None


def test_a_counter_that_does_not_advance_gives_no_energy() -> None:
    bench = Bench(step_ms=10**9)
    assert bench.measure() is None
    assert bench.done == 0
    assert bench.clock() < 1


@pytest.mark.parametrize("after", [1.5, 2.0, 3.0])
def test_a_counter_that_stops_during_the_runs_gives_no_energy(after: float) -> None:
    bench = Bench()
    last = bench.written_mj

    def stuck() -> int:
        nonlocal last
        if bench.clock() < after:
            last = bench.written_mj
        return last

    bench.nvml.energy = stuck
    assert bench.measure() is None


@pytest.mark.parametrize("at", [0.05, 0.5, 1.12, 1.5, 3.15])
def test_a_counter_that_goes_backwards_gives_no_energy(at: float) -> None:
    bench = Bench()  # a driver that is loaded again counts from 0
    bench.nvml.energy = lambda: bench.written_mj - (4_900_000 if bench.clock() >= at else 0)
    assert bench.measure() is None


def failing_reading(number: int, error: type[Exception]) -> tuple[float | None, int]:
    """A measurement whose reading `number` of the counter fails, and how many readings it took."""
    bench = Bench()
    count = 0

    def energy() -> int:
        nonlocal count
        count += 1
        if count == number:
            raise error
        return bench.written_mj

    bench.nvml.energy = energy
    return bench.measure(), count


def test_a_failing_reading_gives_no_energy() -> None:
    found, readings = failing_reading(0, AttributeError)
    assert found is not None
    for number in range(1, readings + 1):
        assert failing_reading(number, pynvml.NVMLError_GpuIsLost) == (None, number)


@pytest.mark.parametrize("error", ERRORS)
def test_errors_of_nvml_are_not_raised(error: type[Exception]) -> None:
    assert failing_reading(3, error) == (None, 3)


def test_a_counter_that_cannot_be_read_costs_no_time() -> None:
    bench = Bench()
    bench.nvml.failing = {ENERGY: pynvml.NVMLError_NotSupported}
    assert bench.measure() is None
    assert (bench.now_ms, bench.done) == (37, 0)


def test_exceptions_of_the_run_are_raised() -> None:
    bench = Bench()
    bench.run = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        bench.measure()
