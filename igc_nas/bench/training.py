"""bench train: training steps in the tuned forms against the factored network in float32 and NCHW."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.bench.report import Report, Row, architectures
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.network_tuner import NetworkTuner
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.training import factored_forward
from igc_nas.nn.network import build
from igc_nas.nn.timing import round_robin, timed
from igc_nas.study.defaults import default_recipe
from igc_nas.study.spec import DtypeName, Recipe

ROUNDS, CAP_S = 9, 6.0
DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")


def bench_train(
    device: Device, batch: int | None = None, resolution: int | None = None, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Time whole training steps (multiplying out, forward, backward, optimizer) by the device's default recipe.

    There are rows for both dtypes; those in the device's fastest dtype are judged.
    """
    own = device.fast_dtype
    changes = {"batch": batch, "resolution": resolution}
    recipe = default_recipe(device.kind, dtype=own, **{k: v for k, v in changes.items() if v})
    caches = {dtype: TimingCache() for dtype in DTYPES}
    rows: list[Row] = []
    for name, arch in architectures().items():
        for row in _rows(name, arch, recipe, device, caches):
            rows.append(row)
            say(f"{row['name']} {row['dtype']}: {row['ratio']:.2f}x ({row['form']})")
    return Report(
        f"training steps, batch {recipe.batch} at {recipe.resolution} px: chosen forms against factored float32 NCHW",
        tuple(rows),
        {**conditions_of(device).model_dump(exclude_none=True), "batch": recipe.batch, "resolution": recipe.resolution},
        tuple(sorted({row["group"] for row in rows if row["dtype"] == own})),
    )


def _rows(
    name: str, arch: ArchConfig, recipe: Recipe, device: Device, caches: dict[DtypeName, TimingCache]
) -> list[Row]:
    """One architecture: the factored network in NCHW and channels-last, and the tuned forms in each dtype."""
    runs = {"nchw": _factored(arch, recipe, device, torch.contiguous_format)}
    runs["nhwc"] = _factored(arch, recipe, device, torch.channels_last)
    forms = {}
    for dtype, cache in caches.items():
        forms[dtype], runs[dtype] = _tuned(arch, recipe.model_copy(update={"dtype": dtype}), device, cache)
    times = {name: median(samples) for name, samples in round_robin(runs, ROUNDS, CAP_S, warm_up=2).items()}
    cost = cost_of(arch)
    unit = arch.stages[0].unit
    return [
        {
            "name": name,
            "group": f"{unit} {dtype}",
            "dtype": dtype,
            "params": cost.params,
            "factored_ms": times["nchw"],
            "factored_channels_last_ms": times["nhwc"],
            "chosen_ms": times[dtype],
            "form": forms[dtype],
            "ratio": times["nchw"] / times[dtype],
        }
        for dtype in caches
    ]


def _factored(arch: ArchConfig, recipe: Recipe, device: Device, layout: torch.memory_format) -> Callable[[], float]:
    network = build(arch, 0).to(device.torch_device, memory_format=layout).train()  # type: ignore[call-overload]
    return _step_timer(network, network, recipe, device, layout)


def _tuned(arch: ArchConfig, recipe: Recipe, device: Device, cache: TimingCache) -> tuple[str, Callable[[], float]]:
    layout = torch.channels_last
    network = build(arch, 0).to(device.torch_device, memory_format=layout).train()  # type: ignore[call-overload]
    lowered = NetworkTuner.of(recipe, device, cache)(network, arch_id(arch))
    forward = lowered or factored_forward(network, device.kind, getattr(torch, recipe.dtype))
    run = _step_timer(network, forward, recipe, device, layout)
    return ("factored" if lowered is None else lowered.form), run


def _step_timer(
    network: nn.Module, forward: Callable[[Tensor], Tensor], recipe: Recipe, device: Device, layout: torch.memory_format
) -> Callable[[], float]:
    x = torch.randn(recipe.batch, 3, recipe.resolution, recipe.resolution, device=device.torch_device)
    x = x.contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (recipe.batch,), device=device.torch_device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )

    def step() -> None:
        F.cross_entropy(forward(x).float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, device.synchronize)
