"""bench deploy --runtime native: generated C against the fastest runtime that a competent user would deploy on.

Every runtime takes turns in one process on the factored network: eager PyTorch in NCHW and in channels-last, ONNX
Runtime, OpenVINO; those that are not installed are named. The machine's peak is that of multiply-adds in registers,
measured by a loop of the same vectors.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from statistics import geometric_mean, median

import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.bench.report import Report, Row, architectures
from igc_nas.errors import UsageError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.evaluation.runtimes import require, runner_for
from igc_nas.nn.codegen.build import load
from igc_nas.nn.device import Device
from igc_nas.nn.network import build
from igc_nas.nn.timing import Timer, round_robin, warmed
from igc_nas.study.spec import RuntimeName

ROUNDS, CAP_S = 31, 4.0
SUMS = 12
"""Independent sums of the peak's loop: more than a multiply-add's latency times what a cycle begins."""
PEERS: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")

FMA_LOOP = """\
typedef float vec __attribute__((vector_size({bytes})));

float fma_loop(long n)
{{
    vec {names}, x = {{1.0f}}, y = {{0.5f}};
    for (long i = 0; i < n; ++i) {{
{body}
    }}
    return ({sums})[0];
}}
"""


def bench_native(
    device: Device,
    batches: tuple[int, ...] = (1, 32),
    say: Callable[[str], None] = lambda _: None,
    *,
    archs: Mapping[str, ArchConfig] | None = None,
    rounds: int = ROUNDS,
) -> Report:
    """Each architecture (None: the benchmark's) at each batch, one thread; the ratio is best peer / native.

    Raises `UsageError` without a C compiler, or on another device than a CPU.
    """
    require("native")
    if device.kind != "cpu":
        raise UsageError("the runtime native runs on a CPU", "add --device cpu")
    peers, missing = _installed()
    peak = peak_gmacs()
    rows: list[Row] = []
    for batch in batches:
        for name, arch in (archs or architectures()).items():
            times = round_robin(_timers(arch, batch, peers, device), rounds, CAP_S, warm_up=3)
            rows.append(_row(name, arch, batch, {runtime: median(ms) for runtime, ms in times.items()}, peak))
            say(f"{name} batch {batch}: {rows[-1]['ratio']:.2f}x {rows[-1]['best_peer']}, {rows[-1]['gmac_s']} GMAC/s")
    return Report(
        "one pass of the factored network in float32: the fastest peer against generated C",
        tuple(rows),
        {**conditions_of(device).model_dump(exclude_none=True), "peak_gmac_s": round(peak, 1), "missing": missing},
        extra={
            f"geomean_vs_eager_factored_batch_{batch}": geometric_mean(
                [row["eager_nchw_ms"] / row["native_ms"] for row in rows if row["batch"] == batch]
            )
            for batch in batches
        },
    )


def _installed() -> tuple[list[RuntimeName], str]:
    found, missing = [], []
    for runtime in PEERS:
        try:
            require(runtime)
            found.append(runtime)
        except UsageError:
            missing.append(runtime)
    return found, ", ".join(missing) or "none"


@torch.inference_mode()
def _timers(arch: ArchConfig, batch: int, peers: list[RuntimeName], device: Device) -> dict[str, Timer]:
    x = torch.randn(batch, *arch.input)
    network = randomize_batchnorm_(build(arch, 0)).eval()
    nhwc = randomize_batchnorm_(build(arch, 0)).eval()
    nhwc.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def timer(runtime: RuntimeName, module: torch.nn.Module, image: torch.Tensor) -> Timer:
        return warmed(runner_for(runtime, module, image, 1), device.synchronize)

    return {
        "native": timer("native", network, x),
        "eager_nchw": timer("eager", network, x),
        "eager_nhwc": timer("eager", nhwc, x.contiguous(memory_format=torch.channels_last)),
        **{peer: timer(peer, network, x) for peer in peers},
    }


def _row(name: str, arch: ArchConfig, batch: int, times: Mapping[str, float], peak: float) -> Row:
    cost = cost_of(arch)
    peers = {runtime: ms for runtime, ms in times.items() if runtime != "native"}
    best = min(peers, key=peers.__getitem__)
    rate = cost.macs * batch / times["native"] / 1e6
    return {
        "name": name,
        "group": f"{arch.stages[0].unit} batch {batch}",
        "batch": batch,
        "macs": cost.macs,
        **{f"{runtime}_ms": round(ms, 4) for runtime, ms in times.items()},
        "best_peer": best,
        "gmac_s": round(rate, 1),
        "share_of_peak": round(rate / peak, 3),
        "ratio": peers[best] / times["native"],
    }


def peak_gmacs() -> float:
    """Multiply-adds a second, in 10^9, of one thread whose operands are all in registers; the best vector length's."""
    return max(_peak(lanes) for lanes in (8, 16))


def _peak(lanes: int) -> float:
    sums = [f"a{k}" for k in range(SUMS)]
    text = FMA_LOOP.format(
        bytes=4 * lanes,
        names=", ".join(f"{name} = {{{number}.0f}}" for number, name in enumerate(sums)),  # alike, they would be one
        body="\n".join(f"        {name} = {name} * y + x;" for name in sums),
        sums=" + ".join(sums),
    )
    loop = load(text).fma_loop
    loop.argtypes, loop.restype = [ctypes.c_long], ctypes.c_float
    count, best = 1_000_000, 0.0
    for _ in range(5):
        started = time.perf_counter()
        loop(count)
        best = max(best, SUMS * lanes * count / (time.perf_counter() - started) / 1e9)
    return best
