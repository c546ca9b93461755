"""bench train: training steps as a study runs them against the fastest that a user of PyTorch would run.

The baselines are the factored network in NCHW and in channels-last, in float32 and in bfloat16 by autocast, eager and
by torch.compile, and in float16 where a recipe takes it. All variants of a network take turns in one process. On a CPU
a step's time is that of its thread, and the least of the rounds counts: other processes add to neither. On a GPU ours
is the replay of a CUDA graph, as a study trains; the baselines' kernels are launched one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import product
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.bench.report import Report, Row, architectures
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.fastest_dtype import DTYPES, fastest_dtype
from igc_nas.nn.lowering.network_tuner import NetworkTuner, step_timer
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.training import factored_forward
from igc_nas.nn.network import build
from igc_nas.nn.timing import Timer, round_robin, timed
from igc_nas.study.defaults import default_recipe
from igc_nas.study.spec import DtypeName, Recipe

ROUNDS, CAP_S = 9, 12.0
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SHORT: dict[DtypeName, str] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
REFERENCE = "nchw_fp32_eager"
"""The baseline that reports before 0.2 compared with."""


def bench_train(
    device: Device,
    batch: int | None = None,
    resolution: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    *,
    compiled: bool = True,
    archs: Mapping[str, ArchConfig] | None = None,
) -> Report:
    """Time whole training steps (forward, backward, optimizer) by the device's default recipe, in its dtype.

    `ratio` is the fastest baseline / ours. `compiled`: with baselines by torch.compile, which takes a minute or more
    for each network; their compilation is not in the times, and its seconds are in the report. `archs`: None means
    those of the benchmark.
    """
    own = fastest_dtype(device)
    changes = {"batch": batch, "resolution": resolution}
    recipe = default_recipe(device.kind, dtype=own.dtype, **{k: v for k, v in changes.items() if v})
    cache, rows = TimingCache(), []
    problems: dict[str, str] = {}
    for name, arch in (archs or architectures()).items():
        rows.append(_row(name, arch, recipe, device, cache, compiled, problems))
        row = rows[-1]
        say(f"{name}: {row['ratio']:.2f}x {row['best_baseline']} ({row['form']}, {row['gmac_s']} GMAC/s)")
    return Report(
        f"training steps in {own}, batch {recipe.batch} at {recipe.resolution} px: the fastest baseline against ours",
        tuple(rows),
        {
            **conditions_of(device).model_dump(exclude_none=True),
            "batch": recipe.batch,
            "resolution": recipe.resolution,
            "torch_compile": "; ".join(f"{k}: {v}" for k, v in problems.items()) or ("yes" if compiled else "left out"),
        },
        extra={
            f"geomean_vs_{REFERENCE}": geometric_mean([row[f"{REFERENCE}_ms"] / row["ours_ms"] for row in rows]),
            "compile_s": round(sum(row["compile_s"] for row in rows), 1),
        },
    )


def _row(
    name: str,
    arch: ArchConfig,
    recipe: Recipe,
    device: Device,
    cache: TimingCache,
    compiled: bool,
    problems: dict[str, str],
) -> Row:
    form, ours = _ours(arch, recipe, device, cache)
    runs: dict[str, Timer] = {"ours": ours}
    compile_s = 0.0
    if compiled:
        torch.compiler.reset()
    for layout, dtype, eager in product(LAYOUTS, dict.fromkeys((*DTYPES, recipe.dtype)), (True, False)):
        if not eager and not compiled:
            continue
        variant = f"{layout}_{SHORT[dtype]}_{'eager' if eager else 'compile'}"
        run = _baseline(arch, recipe, device, LAYOUTS[layout], dtype, compiled=not eager)
        started = time.perf_counter()
        try:
            run()
        except Exception as problem:  # inductor raises whatever its compiler does
            if eager:
                raise
            problems[variant] = " ".join(str(problem).split())[:80]
            continue
        compile_s += 0.0 if eager else time.perf_counter() - started
        runs[variant] = run
    times = {variant: min(ms) for variant, ms in round_robin(runs, ROUNDS, CAP_S, warm_up=2, least=3).items()}
    baselines = {variant: ms for variant, ms in times.items() if variant != "ours"}
    best = min(baselines, key=baselines.__getitem__)
    cost, scale = cost_of(arch), (recipe.resolution / arch.input[1]) ** 2
    return {
        "name": name,
        "group": str(arch.stages[0].unit),
        "params": cost.params,
        "form": form,
        **{f"{variant}_ms": round(ms, 3) for variant, ms in times.items()},
        "best_baseline": best,
        "gmac_s": round(3 * cost.macs * scale * recipe.batch / times["ours"] / 1e6, 1),
        "compile_s": round(compile_s, 1),
        "ratio": baselines[best] / times["ours"],
    }


def _ours(arch: ArchConfig, recipe: Recipe, device: Device, cache: TimingCache) -> tuple[str, Timer]:
    layout = torch.channels_last
    network = build(arch, 0).to(device.torch_device, memory_format=layout).train()  # type: ignore[call-overload]
    lowered = NetworkTuner.of(recipe, device, cache)(network, arch_id(arch))
    forward = lowered or factored_forward(network, device.kind, getattr(torch, recipe.dtype))
    step = _step(network, forward, recipe, device, layout)
    return ("factored" if lowered is None else lowered.form), (
        _timer(step, device) if device.kind == "cpu" else step_timer(step, device)
    )


def _baseline(
    arch: ArchConfig, recipe: Recipe, device: Device, layout: torch.memory_format, dtype: DtypeName, compiled: bool
) -> Timer:
    network = build(arch, 0).to(device.torch_device, memory_format=layout).train()  # type: ignore[call-overload]
    module: Any = torch.compile(network) if compiled else network
    forward = factored_forward(module, device.kind, getattr(torch, dtype))
    return _timer(_step(network, forward, recipe, device, layout), device)


def _step(
    network: nn.Module, forward: Callable[[Tensor], Tensor], recipe: Recipe, device: Device, layout: torch.memory_format
) -> Callable[[], None]:
    x = torch.randn(recipe.batch, 3, recipe.resolution, recipe.resolution, device=device.torch_device)
    x = x.contiguous(memory_format=layout)
    labels = torch.zeros(recipe.batch, dtype=torch.int64, device=device.torch_device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )

    def step() -> None:
        F.cross_entropy(forward(x).float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _timer(step: Callable[[], None], device: Device) -> Timer:
    one_thread = device.kind == "cpu" and torch.get_num_threads() == 1
    return timed(step, device.synchronize, time.thread_time if one_thread else time.perf_counter)
