"""Latency: what is measured is what is reported, with its conditions; drift cancels; sharing is noticed."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from igc_nas import latency as module
from igc_nas.config import ArchConfig
from igc_nas.device import Device, cpu_name, find_devices
from igc_nas.errors import UsageError
from igc_nas.latency import measure_latency, median_interval
from igc_nas.spec import LatencySpec

CPU = Device("cpu", "cpu", "test")
SPEC = LatencySpec(device="test")
SMALL = ArchConfig.parse({"stem": {"width": 8, "stride": 4}, "stage": [{"unit": "conv", "width": 8, "blocks": 1}]})
LARGE = ArchConfig.parse({"stem": {"width": 32}, "stage": [{"unit": "conv", "width": 64, "blocks": 4}]})


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_measurement_says_what_it_is_of() -> None:
    found = measure_latency(SMALL, SPEC, CPU, cap_s=0.3)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert found.n == len(found.samples_ms) == len(found.reference_samples_ms) >= module.LEAST_ROUNDS
    assert found.median_ms == pytest.approx(np.median(found.samples_ms), rel=1e-3)
    assert (found.runtime, found.batch, found.dtype, found.input) == ("eager", 1, "float32", (3, 32, 32))
    assert (found.conditions.device, found.conditions.threads, found.conditions.torch) == ("test", 1, torch.__version__)


def test_a_network_with_fifty_times_the_macs_is_slower() -> None:
    assert (
        measure_latency(LARGE, SPEC, CPU, cap_s=0.3).median_ms
        > 2 * measure_latency(SMALL, SPEC, CPU, cap_s=0.3).median_ms
    )


def scripted(monkeypatch: pytest.MonkeyPatch, network_ms: list[float], reference_ms: list[float]) -> None:
    """Timers that read their times from lists, for ever."""
    monkeypatch.setattr(module, "_timer", lambda *_: itertools.cycle(network_ms).__next__)
    monkeypatch.setattr(module, "_reference_timer", lambda *_: itertools.cycle(reference_ms).__next__)
    monkeypatch.setattr(module, "_warm_up", lambda *_: None)
    monkeypatch.setattr(module, "LEAST_CPU_SHARE", 0.0)  # this machine may be busy; the script is not


def test_a_drift_that_both_networks_see_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    drift = [1 + 0.01 * i for i in range(100)]
    scripted(monkeypatch, [2.0 * d for d in drift], [4.0 * d for d in drift])
    found = measure_latency(SMALL, SPEC, CPU, reference_ms=4.0, cap_s=0.0)
    assert found.normalised_ms == pytest.approx(2.0)
    assert found.normalised_interval_ms == pytest.approx((2.0, 2.0))
    assert found.median_ms > 2.1
    assert found.low_ms < found.high_ms
    assert not found.noisy


def test_what_the_networks_do_not_share_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [1 + (7 * i % 97) / 97 for i in range(97)], [1.0])
    found = measure_latency(SMALL, SPEC, CPU, cap_s=0.0)
    low, high = found.normalised_interval_ms
    assert low < found.normalised_ms < high
    assert found.noisy


def test_without_a_study_the_reference_is_this_measurements_own(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [3.0], [1.5])
    found = measure_latency(SMALL, SPEC, CPU)
    assert (found.normalised_ms, found.reference_ms, found.median_ms) == (3.0, 1.5, 3.0)


def test_rounds_stop_when_the_interval_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [2.0], [1.0])
    assert measure_latency(SMALL, SPEC, CPU).n == module.LEAST_ROUNDS
    scripted(monkeypatch, [1 + (7 * i % 97) / 97 for i in range(97)], [1.0])
    assert measure_latency(SMALL, SPEC, CPU).n == module.MOST_ROUNDS


def test_a_thread_that_had_to_share_its_core_is_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [2.0], [1.0])
    monkeypatch.setattr(module, "LEAST_CPU_SHARE", 0.9)
    monkeypatch.setattr(module.time, "thread_time", lambda: 0.0)
    assert measure_latency(SMALL, SPEC, CPU).noisy


@given(st.lists(st.floats(0.01, 100), min_size=5, max_size=60))
def test_the_interval_holds_the_median_and_repeats(samples: list[float]) -> None:
    low, high = median_interval(samples)
    assert min(samples) <= low <= np.median(samples) <= high <= max(samples)
    assert (low, high) == median_interval(samples)


def test_the_interval_covers_the_true_median() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = median_interval(list(rng.exponential(1.0, 40)), resamples=300)
        hits += low <= np.log(2) <= high
    assert 175 <= hits <= 200


def test_devices_by_name() -> None:
    assert find_devices("cpu")[0] == Device("cpu", "cpu", cpu_name())
    for text in ("gpu", "cuda:x", "cuda:-1", "CPU", "", "cuda:1234", "cpu;rm"):
        with pytest.raises(UsageError):
            find_devices(text)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_asking_for_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        find_devices("cuda")
    assert find_devices("auto")[0].kind == "cpu"


@pytest.mark.gpu
def test_latency_on_a_gpu() -> None:
    device = find_devices("cuda")[0]
    found = measure_latency(LARGE, LatencySpec(device=device.name), device, cap_s=1.0)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
