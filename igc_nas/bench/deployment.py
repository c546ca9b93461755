"""bench deploy: one forward pass in the best form against the factored network, in float32."""

from __future__ import annotations

from collections.abc import Callable
from statistics import geometric_mean

import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.bench.report import Report, Row, architectures
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.evaluation.runtimes import prepare
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.variants import mixed_variant, uniform_variants
from igc_nas.nn.network import build
from igc_nas.nn.timing import median, round_robin, warmed
from igc_nas.study.spec import RuntimeName

RACE_ROUNDS, ROUNDS, CAP_S = 11, 31, 4.0


def bench_deploy(
    device: Device,
    batches: tuple[int, ...] = (1, 32),
    runtime: RuntimeName = "eager",
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Each benchmark architecture at each batch; the form is chosen in rounds of its own, then measured afresh.

    A turn is a run to warm the caches, which the others have emptied, and a run that is timed. The ratio is to the
    factored network in NCHW, torch's default; what it is to the faster of NCHW and channels-last stands beside it.
    """
    rows: list[Row] = []
    for batch in batches:
        table = TimingCache()
        for name, arch in architectures().items():
            rows.append(_row(name, arch, batch, runtime, device, table))
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


@torch.inference_mode()
def _row(name: str, arch: ArchConfig, batch: int, runtime: RuntimeName, device: Device, table: TimingCache) -> Row:
    x = torch.randn(batch, *arch.input, device=device.torch_device)
    network = randomize_batchnorm_(build(arch, 0)).eval().to(device.torch_device)
    last = randomize_batchnorm_(build(arch, 0)).eval().to(device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_last = x.contiguous(memory_format=torch.channels_last)

    def run(module: torch.nn.Module, image: torch.Tensor) -> Callable[[], float]:
        return warmed(prepare(runtime, module, image, torch.get_num_threads()), device.synchronize)

    runs = {"nchw": run(network, x)}
    if runtime == "eager":
        runs["nhwc"] = run(last, x_last)
    variants = [*uniform_variants(network.plan), mixed_variant(last, batch, table)]
    forms = {v.name: run(v.module(last, batch, table, runtime), x_last) for v in variants}
    raced = {n: median(times) for n, times in round_robin(forms, RACE_ROUNDS, CAP_S, warm_up=3).items()}
    best = min(raced, key=lambda form: raced[form])
    fresh = round_robin(runs | {"best": forms[best]}, ROUNDS, CAP_S, warm_up=3)
    times = {n: median(samples) for n, samples in fresh.items()}
    factored = min(ms for n, ms in times.items() if n != "best")
    chosen = next(v for v in variants if v.name == best)
    cost = cost_of(arch)
    return {
        "name": name,
        "group": f"{arch.stages[0].unit} batch {batch}",
        "batch": batch,
        "params": cost.params,
        "macs": cost.macs,
        "deployed_params": chosen.params,
        "deployed_macs": chosen.macs,
        "factored_nchw_ms": times["nchw"],
        "factored_channels_last_ms": times.get("nhwc"),
        "best_ms": times["best"],
        "form": best,
        "times_faster_format": factored / times["best"],
        "ratio": times["nchw"] / times["best"],
    }
