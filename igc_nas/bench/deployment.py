"""bench deploy: one forward pass in the fastest form against the factored network, in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import geometric_mean, median

import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.bench.report import Report, Row, architectures
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.evaluation.runtimes import runner_for
from igc_nas.nn.cuda_timing import event_timer
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.variants import Variant, mixed_variant, uniform_variants
from igc_nas.nn.network import build
from igc_nas.nn.timing import Race, Timer, round_robin, warmed
from igc_nas.study.spec import WITH_OWN_STREAM, RuntimeName

RACE = Race(rounds=11, cap_s=4.0, tie=0.0, warm_up=3)
ROUNDS, CAP_S = 31, 4.0


def bench_deploy(
    device: Device,
    batches: tuple[int, ...] = (1, 32),
    runtime: RuntimeName = "eager",
    say: Callable[[str], None] = lambda _: None,
    *,
    archs: Mapping[str, ArchConfig] | None = None,
    race: Race = RACE,
    rounds: int = ROUNDS,
) -> Report:
    """Each architecture (None: the benchmark's) at each batch; a race chooses the form, fresh rounds measure it.

    Each timed run follows an untimed one, because the other networks have evicted its data from the caches; on a GPU it
    is the replay of a CUDA graph, as a search times it, but in runtimes `WITH_OWN_STREAM`. The ratio
    is to the factored network in NCHW, torch's default; `times_faster_format` is the ratio to the faster of NCHW and
    channels-last.
    """
    rows: list[Row] = []
    for batch in batches:
        cache = TimingCache()
        for name, arch in (archs or architectures()).items():
            factored, forms, variants = _runs(arch, batch, runtime, device, cache)
            best = race.winner(race.run(forms), size=lambda _: 0)
            fresh = round_robin(factored | {"best": forms[best]}, rounds, CAP_S, warm_up=3)
            rows.append(_row(name, arch, batch, variants[best], {n: median(ms) for n, ms in fresh.items()}))
            say(f"{name} batch {batch}: {rows[-1]['ratio']:.2f}x ({rows[-1]['form']})")
    return Report(
        f"one pass in {runtime}, float32: the best form against the factored network",
        tuple(rows),
        {**conditions_of(device).model_dump(exclude_none=True), "runtime": runtime},
        extra={
            f"geomean_against_the_faster_format_batch_{batch}": geometric_mean(
                [row["times_faster_format"] for row in rows if row["batch"] == batch]
            )
            for batch in batches
        },
    )


def _runs(
    arch: ArchConfig, batch: int, runtime: RuntimeName, device: Device, cache: TimingCache
) -> tuple[dict[str, Timer], dict[str, Timer], dict[str, Variant]]:
    """(timers of the factored network in NCHW and, if eager, channels-last; timers of its forms; the forms)."""
    x = torch.randn(batch, *arch.input, device=device.torch_device)
    nchw = randomize_batchnorm_(build(arch, 0)).eval().to(device.torch_device)
    nhwc = randomize_batchnorm_(build(arch, 0)).eval()
    nhwc.to(device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_nhwc = x.contiguous(memory_format=torch.channels_last)

    def run(module: torch.nn.Module, image: torch.Tensor) -> Timer:
        once = runner_for(runtime, module, image, torch.get_num_threads())
        if device.kind == "cuda" and runtime not in WITH_OWN_STREAM:
            return event_timer(once, device.torch_device, graph=True)
        return warmed(once, device.synchronize)

    factored = {"nchw": run(nchw, x)}
    if runtime == "eager":
        factored["nhwc"] = run(nhwc, x_nhwc)
    variants = {v.name: v for v in (*uniform_variants(nhwc.plan), mixed_variant(nhwc, batch, cache))}
    forms = {name: run(v.module(nhwc, batch, cache, runtime), x_nhwc) for name, v in variants.items()}
    return factored, forms, variants


def _row(name: str, arch: ArchConfig, batch: int, best: Variant, times: Mapping[str, float]) -> Row:
    cost = cost_of(arch)
    return {
        "name": name,
        "group": f"{arch.stages[0].unit} batch {batch}",
        "batch": batch,
        "params": cost.params,
        "macs": cost.macs,
        "deployed_params": best.params,
        "deployed_macs": best.macs,
        "factored_nchw_ms": times["nchw"],
        "factored_channels_last_ms": times.get("nhwc"),
        "best_ms": times["best"],
        "form": best.name,
        "times_faster_format": min(times["nchw"], times.get("nhwc", times["nchw"])) / times["best"],
        "ratio": times["nchw"] / times["best"],
    }
