"""Latency of one forward pass, measured so that it can be compared: in rounds with a fixed reference network.

A machine's speed drifts (clocks, neighbours). Each round times the reference network and then the network, so their
ratio is of one moment; the objective is the median ratio times the reference's time when the study was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from igc_nas.config import ArchConfig
from igc_nas.device import Device
from igc_nas.network import build
from igc_nas.record import Latency
from igc_nas.reference import reference
from igc_nas.spec import LatencySpec

REFERENCE = "regconv-w16-d8"
"""The fixed network of every round: regular convolutions only, 12 M MACs, so that no choice of ours moves it."""

WARM_UP_S = 0.15
LEAST_ROUNDS, MOST_ROUNDS = 31, 301
ENOUGH_WIDTH = 0.02
"""An interval narrower than this share of the median is narrow enough."""
NOISY_WIDTH = 0.05
LEAST_CPU_SHARE = 0.9
"""A thread that got less of a CPU than this while it was timed had to share it."""


def measure_latency(
    arch: ArchConfig, spec: LatencySpec, device: Device, reference_ms: float | None = None, cap_s: float = 2.0
) -> Latency:
    """Time an architecture's network (batch, threads, dtype and memory format of `spec`) on `device`.

    At least 31 rounds, then until the 95 % interval of the median ratio is narrower than 2 % of it, or for `cap_s` s.
    `reference_ms` is the study's fixed reference time; None takes this measurement's own. The thread count is the
    process's: call it where `torch.get_num_threads()` is `spec.threads`.
    """
    run = _timer(build(arch, 0), arch.input, spec, device)
    pace = _reference_timer(spec, device)
    _warm_up(run, pace)
    times: list[float] = []
    paces: list[float] = []
    started, on_cpu = time.perf_counter(), time.thread_time()
    while len(times) < MOST_ROUNDS:
        paces.append(pace())
        times.append(run())
        elapsed = time.perf_counter() - started
        if len(times) >= LEAST_ROUNDS and (elapsed > cap_s or (len(times) % 10 == 1 and _narrow(times, paces))):
            break
    share = (time.thread_time() - on_cpu) / (time.perf_counter() - started)
    shared = device.kind == "cpu" and spec.threads == 1 and share < LEAST_CPU_SHARE
    return _latency(times, paces, shared, reference_ms, arch, spec, device)


def _latency(
    times: list[float],
    paces: list[float],
    shared: bool,
    reference_ms: float | None,
    arch: ArchConfig,
    spec: LatencySpec,
    device: Device,
) -> Latency:
    low, high = median_interval(times)
    pace = float(np.median(paces))
    unit = reference_ms or pace
    ratios = _ratios(times, paces)
    ratio, (ratio_low, ratio_high) = float(np.median(ratios)), median_interval(ratios)
    return Latency(
        median_ms=float(np.median(times)),
        low_ms=low,
        high_ms=high,
        normalised_ms=ratio * unit,
        normalised_low_ms=ratio_low * unit,
        normalised_high_ms=ratio_high * unit,
        reference_ms=pace,
        noisy=shared or ratio_high - ratio_low > NOISY_WIDTH * ratio,
        samples_ms=tuple(round(t, 5) for t in times),
        reference_samples_ms=tuple(round(t, 5) for t in paces),
        runtime=spec.runtime,
        batch=spec.batch,
        dtype=spec.dtype,
        memory_format=spec.memory_format,
        input=arch.input,
        conditions=device.conditions(),
    )


def median_interval(samples: list[float], level: float = 0.95, resamples: int = 1000) -> tuple[float, float]:
    """Percentile bootstrap interval of the median (Efron 1979), from a fixed seed."""
    rng = np.random.default_rng(0)
    values = np.asarray(samples)
    medians = np.median(values[rng.integers(len(values), size=(resamples, len(values)))], axis=1)
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _narrow(times: list[float], paces: list[float]) -> bool:
    """Whether the interval of what is to be told, the median ratio, is narrow enough."""
    ratios = _ratios(times, paces)
    low, high = median_interval(ratios, resamples=200)
    return high - low < ENOUGH_WIDTH * float(np.median(ratios))


def _ratios(times: list[float], paces: list[float]) -> list[float]:
    """Network / reference, round by round."""
    return [network / reference for network, reference in zip(times, paces, strict=True)]


def _warm_up(*timers: Callable[[], float]) -> None:
    for timer in timers:
        until = time.perf_counter() + WARM_UP_S
        timer()
        while time.perf_counter() < until:
            timer()


@lru_cache(maxsize=4)
def _reference_timer(spec: LatencySpec, device: Device) -> Callable[[], float]:
    arch = reference(REFERENCE).arch
    return _timer(build(arch, 0), arch.input, spec, device)


def _timer(network: nn.Module, image: tuple[int, int, int], spec: LatencySpec, device: Device) -> Callable[[], float]:
    """A function that runs the network once and returns milliseconds."""
    layout = torch.channels_last if spec.memory_format == "channels_last" else torch.contiguous_format
    network = network.to(device.torch_device, memory_format=layout).eval()  # type: ignore[call-overload]
    x = torch.randn(spec.batch, *image, generator=torch.Generator().manual_seed(0))
    x = x.to(device.torch_device).contiguous(memory_format=layout)
    return _cuda_timer(network, x) if device.kind == "cuda" else _cpu_timer(network, x)


def _cpu_timer(network: nn.Module, x: Tensor) -> Callable[[], float]:
    @torch.inference_mode()
    def once() -> float:
        started = time.perf_counter()
        network(x)
        return (time.perf_counter() - started) * 1000

    return once


def _cuda_timer(network: nn.Module, x: Tensor) -> Callable[[], float]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def once() -> float:
        begin.record()
        network(x)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    return once
