"""The dtype that a recipe takes by default: on a CPU the one in which a step of a small network takes less time.

A processor's flags do not say it: without AMX bfloat16 may be the faster one, by the memory that it saves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.network_tuner import NetworkTuner
from igc_nas.nn.lowering.timing_cache import Times, TimingCache, timing_cache_for
from igc_nas.nn.lowering.training import factored_forward
from igc_nas.nn.network import Network, build
from igc_nas.nn.timing import round_robin, timed
from igc_nas.study.spec import DtypeName, Schedule

DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")
BATCH, RESOLUTION = 32, 16
"""As in a CPU's default recipe."""
ROUNDS, CAP_S = 9, 2.0
TIMED = ArchConfig.parse(
    {
        "input": (3, RESOLUTION, RESOLUTION),
        "stem": {"width": 32},
        "stage": [
            {"unit": "igcv1", "L": 8, "M": 4, "blocks": 1},
            {"unit": "igcv2", "width": 64, "depth": 3, "stride": 2, "blocks": 1},
            {"unit": "igcv3", "width": 64, "expand": 2, "G1": 2, "G2": 2, "stride": 2, "blocks": 1},
        ],
    }
)
"""A small network of all three units."""


@dataclass(frozen=True, slots=True)
class FastestDtype:
    """The dtype, and what a step of `TIMED` took in each, in milliseconds; empty where none was timed (CUDA)."""

    dtype: DtypeName
    step_ms: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.step_ms:
            return self.dtype
        times = ", ".join(f"{ms:.1f} ms in {dtype}" for dtype, ms in self.step_ms.items())
        return f"{self.dtype}: a step of a small network takes {times}"


def fastest_dtype(device: Device, forms: str = "fastest", threads: int = 1) -> FastestDtype:
    """The dtype in which networks train fastest with `forms` (`fastest` or `factored`), by `threads` threads of a CPU.

    The times are kept in the cache of the trainings on this device.
    """
    if device.kind != "cpu":
        return FastestDtype(device.fast_dtype)
    cache = timing_cache_for(device.name, threads, "training")
    with cache:
        key = f"dtype of {forms} forms b{BATCH} @{RESOLUTION}"
        times = cache.get(key, DTYPES, lambda: _times(device, forms, threads, cache))
    return FastestDtype(min(DTYPES, key=lambda dtype: times[dtype]), {dtype: times[dtype] for dtype in DTYPES})


def _times(device: Device, forms: str, threads: int, cache: TimingCache) -> Times:
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = {dtype: timed(_step(device, forms, dtype, cache)) for dtype in DTYPES}
        return {dtype: min(ms) for dtype, ms in round_robin(runs, ROUNDS, CAP_S, warm_up=2).items()}
    finally:
        torch.set_num_threads(usual)


def _step(device: Device, forms: str, dtype: DtypeName, cache: TimingCache) -> Callable[[], None]:
    network = build(TIMED, 0).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    forward = _forward(network, device, forms, dtype, cache)
    images = torch.randn(BATCH, *TIMED.input, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(BATCH, dtype=torch.int64)

    def step() -> None:
        F.cross_entropy(forward(images).float(), labels).backward()  # type: ignore[no-untyped-call]
        network.zero_grad(set_to_none=True)

    return step


def _forward(
    network: Network, device: Device, forms: str, dtype: DtypeName, cache: TimingCache
) -> Callable[[Tensor], Tensor]:
    schedule = Schedule(epochs=1, batch=BATCH, lr=0.1, dtype=dtype, forms="fastest")
    lowered = None
    if forms != "factored":
        lowered = NetworkTuner(schedule, RESOLUTION, device, cache)(network, "dtype")
    return lowered or factored_forward(network, "cpu", getattr(torch, dtype))
