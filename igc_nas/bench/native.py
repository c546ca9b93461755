"""bench deploy --runtime native: generated C against the fastest runtime that a competent user would deploy on.

Every runtime takes turns in one process on the factored network: eager PyTorch in NCHW and in channels-last, ONNX
Runtime, OpenVINO, ExecuTorch; those that are not installed are named. The machine's peak is that of multiply-adds in
registers, measured by a loop of the same vectors.

`ratio` is of medians of wall time. On a machine that others use, too, processes wait for a core: `cpu_ratio` is of the
least processor time of a pass, all threads of the process counted.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import geometric_mean, median
from typing import Any

import numpy as np
import torch

from igc_nas.analysis.ranking import RESAMPLES
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.bench.executorch import executorch_runner, require_executorch
from igc_nas.bench.latency import drawn_architectures
from igc_nas.bench.report import Report, Row, architectures
from igc_nas.errors import UsageError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.evaluation.runtimes import require, runner_for
from igc_nas.nn.c_compiler import load
from igc_nas.nn.codegen.build import compiled
from igc_nas.nn.codegen.emit import source
from igc_nas.nn.codegen.products import multiplied_out_plan
from igc_nas.nn.codegen.program import program
from igc_nas.nn.codegen.target import network_tensors, target_here
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.chain import dense, semidense
from igc_nas.nn.network import build
from igc_nas.nn.timing import Race, round_robin
from igc_nas.samplers.cross_validation import spearman
from igc_nas.study.spec import RuntimeName

ROUNDS, CAP_S = 31, 4.0
RACE = Race(rounds=31, cap_s=2.0)
SUMS = 12
"""Independent sums of the peak's loop: more than a multiply-add's latency times what a cycle begins."""
PEERS: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
MOST_WEIGHT_BYTES = 1 << 26
"""Multiplied-out forms with more weights are not compiled: the widest networks have a hundred times theirs."""

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
    multiplied_out: bool = False,
    archs: Mapping[str, ArchConfig] | None = None,
    rounds: int = ROUNDS,
) -> Report:
    """Each architecture (None: the benchmark's) at each batch, one thread; the ratio is best peer / native.

    With `multiplied_out` its chains are also multiplied out and compiled: `times_multiplied_out` is the time of the
    factored network by that of the fastest such form, above 1 where multiplying out wins.

    Raises `UsageError` without a C compiler, or on another device than a CPU.
    """
    _require_cpu(device)
    peers, missing = installed_peers()
    peak = peak_gmacs()
    rows: list[Row] = []
    for batch in batches:
        for name, arch in (archs or architectures()).items():
            clocks = {runtime: _Clock(run) for runtime, run in _runs(arch, batch, peers).items()}
            wall = round_robin(clocks, rounds, CAP_S, warm_up=2)
            row = _row(name, arch, batch, {runtime: median(ms) for runtime, ms in wall.items()}, peak)
            cpu = {runtime: min(clock.cpu_ms) for runtime, clock in clocks.items()}
            row |= {"cpu_ratio": _ratio(cpu), "cpu_vs_eager_factored": cpu["eager_nchw"] / cpu["native"]}
            if multiplied_out and batch == 1:
                row |= {"times_multiplied_out": times_multiplied_out(arch)}
            rows.append(row)
            say(f"{name} batch {batch}: {row['ratio']:.2f}x {row['best_peer']}, {row['gmac_s']} GMAC/s")
    return Report(
        "one pass of the factored network in float32: the fastest peer against generated C",
        tuple(rows),
        {**conditions_of(device).model_dump(exclude_none=True), "peak_gmac_s": round(peak, 1), "missing": missing},
        extra=_extra(rows, batches, multiplied_out),
    )


def _extra(rows: list[Row], batches: tuple[int, ...], multiplied_out: bool) -> dict[str, float]:
    found = {}
    for batch in batches:
        own = [row for row in rows if row["batch"] == batch]
        eager = [row["eager_nchw_ms"] / row["native_ms"] for row in own]
        found[f"geomean_vs_eager_factored_batch_{batch}"] = geometric_mean(eager)
        found[f"geomean_cpu_ratio_batch_{batch}"] = geometric_mean([row["cpu_ratio"] for row in own])
        found[f"geomean_cpu_vs_eager_factored_batch_{batch}"] = geometric_mean(
            [row["cpu_vs_eager_factored"] for row in own]
        )
        found[f"min_cpu_ratio_batch_{batch}"] = min(row["cpu_ratio"] for row in own)
    if multiplied_out:
        found["most_times_multiplied_out"] = max(row.get("times_multiplied_out") or 0.0 for row in rows)
    return found


class _Clock:
    """A timer of a run: returns its milliseconds of wall time, and keeps those of the processor."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run
        self.cpu_ms: list[float] = []

    def __call__(self) -> float:
        self.run()  # untimed: the other runtimes have evicted its data from the caches
        cpu, wall = time.process_time(), time.perf_counter()
        self.run()
        found = (time.perf_counter() - wall) * 1000
        self.cpu_ms.append((time.process_time() - cpu) * 1000)
        return found


def _require_cpu(device: Device) -> None:
    require("native")
    if device.kind != "cpu":
        raise UsageError("the runtime native runs on a CPU", "add --device cpu")


def installed_peers() -> tuple[list[str], str]:
    """(the peers that are installed, the names of the others)."""
    checks: dict[str, Callable[[], None]] = {peer: partial(require, peer) for peer in PEERS}
    checks["executorch"] = require_executorch
    found, missing = [], []
    for name, check in checks.items():
        try:
            check()
            found.append(name)
        except UsageError:
            missing.append(name)
    return found, ", ".join(missing) or "none"


@torch.inference_mode()
def _runs(arch: ArchConfig, batch: int, peers: list[str]) -> dict[str, Callable[[], object]]:
    x = torch.randn(batch, *arch.input)
    network = randomize_batchnorm_(build(arch, 0)).eval()
    nhwc = randomize_batchnorm_(build(arch, 0)).eval()
    nhwc.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    runs: dict[str, Callable[[], object]] = {
        "native": runner_for("native", network, x, 1),
        "eager_nchw": runner_for("eager", network, x, 1),
        "eager_nhwc": runner_for("eager", nhwc, x.contiguous(memory_format=torch.channels_last), 1),
    }
    for peer in peers:
        if peer == "executorch":
            runs[peer] = executorch_runner(network, x)
        else:
            runs[peer] = runner_for(peer, network, x, 1)  # type: ignore[arg-type]
    return runs


def _ratio(times: Mapping[str, float]) -> float:
    return min(ms for runtime, ms in times.items() if runtime != "native") / times["native"]


def _row(name: str, arch: ArchConfig, batch: int, times: Mapping[str, float], peak: float) -> dict[str, Any]:
    cost = cost_of(arch)
    rate = cost.macs * batch / times["native"] / 1e6
    return {
        "name": name,
        "group": f"{arch.stages[0].unit} batch {batch}",
        "batch": batch,
        "macs": cost.macs,
        **{f"{runtime}_ms": round(ms, 4) for runtime, ms in times.items()},
        "best_peer": min((runtime for runtime in times if runtime != "native"), key=times.__getitem__),
        "gmac_s": round(rate, 1),
        "share_of_peak": round(rate / peak, 3),
        "ratio": _ratio(times),
    }


def times_multiplied_out(arch: ArchConfig) -> float | None:
    """The factored network's time by that of its fastest multiplied-out form, both in C; None where that is too large.

    The forms are those of the other runtimes: every chain dense, and only its pointwise convolutions multiplied out.
    Least processor times of passes in turns.
    """
    network = randomize_batchnorm_(build(arch, 0)).eval()
    target, tensors = target_here(), network_tensors(network)
    made = {"factored": source(program(network.plan, target.lanes), tensors, target.registers)}
    for name, pick in {"semidense": semidense, "dense": dense}.items():
        plan, products = multiplied_out_plan(network.plan, tensors, pick)
        text = source(program(plan, target.lanes), products, target.registers)
        if text.weights.nbytes <= MOST_WEIGHT_BYTES:
            made[name] = text
    image = torch.randn(1, *arch.input).numpy()
    clocks = {name: _Clock(compiled(text).bound(image)) for name, text in made.items()}
    RACE.run(clocks)
    least = {name: min(clock.cpu_ms) for name, clock in clocks.items()}
    own = least.pop("factored")
    return own / min(least.values()) if least else None


def bench_rank(device: Device, count: int = 40, say: Callable[[str], None] = lambda _: None) -> Report:
    """Do latencies in generated C rank `count` architectures of igc_cifar as their MACs, and as ONNX Runtime, do?

    Spearman's rank correlations with 95 % percentile bootstrap intervals over the architectures; a row's ratio is ONNX
    Runtime's time by that of generated C (least processor times of passes in turns, batch 1, one thread).

    Raises `UsageError` without a C compiler or ONNX Runtime, or on another device than a CPU.
    """
    _require_cpu(device)
    require("onnxruntime")
    rows: list[Row] = []
    for arch in drawn_architectures(count, 0):
        x, network = torch.randn(1, *arch.input), randomize_batchnorm_(build(arch, 0)).eval()
        clocks = {name: _Clock(runner_for(name, network, x, 1)) for name in ("native", "onnxruntime")}
        round_robin(clocks, ROUNDS, CAP_S, warm_up=2)
        native, onnx = (min(clocks[name].cpu_ms) for name in ("native", "onnxruntime"))
        cost = {"params": cost_of(arch).params, "macs": cost_of(arch).macs}
        times = {"native_ms": round(native, 4), "onnxruntime_ms": round(onnx, 4)}
        rows.append({"name": arch_id(arch), "group": "igc_cifar", **cost, **times, "ratio": onnx / native})
        say(f"{len(rows)}/{count} {native:.3f} ms, ONNX Runtime {onnx:.3f} ms")
    others = [("native_ms", other) for other in ("macs", "params", "onnxruntime_ms")]
    pairs = (*others, ("onnxruntime_ms", "macs"))
    return Report(
        f"rank correlation of latencies over {count} architectures",
        tuple(rows),
        conditions_of(device).model_dump(exclude_none=True),
        extra={f"spearman {a}, {b}": _spearman([r[a] for r in rows], [r[b] for r in rows]) for a, b in pairs},
    )


def _spearman(a: list[float], b: list[float]) -> dict[str, float | None]:
    """Spearman's correlation and its 95 % interval."""
    first, second = np.array(a, float), np.array(b, float)
    drawn = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    found = [spearman(first[rows], second[rows]) for rows in drawn]
    low, high = np.quantile([value for value in found if value is not None], (0.025, 0.975))
    return {"rho": spearman(first, second), "low": float(low), "high": float(high), "n": len(a)}


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
