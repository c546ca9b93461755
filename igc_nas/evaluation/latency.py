"""Latency of one forward pass, measured so that it can be compared: in rounds with a fixed reference network.

A machine's speed drifts (clocks, neighbours). Each round times the reference network and then the network, so their
ratio is of one moment; the objective is the median ratio times the reference's time when the study was made.

A network may be deployed in several forms (`igc_nas.nn.lowering.variants`). They race first, in rounds of their own;
the fastest is then measured on fresh samples, because the least of several medians is biased low.

Only what is told needs a quiet device: the race and the rounds. Building the forms, comparing what they compute and
choosing kernels (by times of which nothing is told) may be done beside others who work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.papers import reference
from igc_nas.errors import IgcNasError, InfeasibleError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.host import NoiseMonitor
from igc_nas.evaluation.nvml import energy_per_run, find_gpu
from igc_nas.evaluation.runtimes import CPU_ONLY, prepare
from igc_nas.nn.device import Device, without_tf32
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.variants import Variant, factored_variant, mixed_variant, uniform_variants
from igc_nas.nn.network import Network, build
from igc_nas.nn.timing import median, median_interval, timed
from igc_nas.study.records import Conditions, FormTime, Latency
from igc_nas.study.spec import LatencySpec

REFERENCE = "regconv-w16-d8"
"""The fixed network of every round: regular convolutions only, 12 M MACs, so that no choice of ours moves it."""

WARM_UP_S, MOST_WARM_UP_S = 0.03, 1.0
STABLE = 0.05
"""Warm-up goes on until two stretches of runs in a row have medians that differ by less than this share."""
LEAST_ROUNDS, MOST_ROUNDS = 31, 301
LEAST_S = 0.25
"""Seconds that the rounds take at least: `NoiseMonitor` cannot see other processes over a shorter time."""
RACE_ROUNDS, RACE_CAP_S = 15, 0.4
FIRST_ROUNDS, HOPELESS = 3, 1.5
"""A form that takes so many times as long as the fastest leaves the race after the first rounds; its times are kept."""
SURE_ROUNDS, RARELY = 5, 0.1
"""From so many rounds on, one that is as good as the fastest in less than this share of them leaves it, too."""
TIE = 0.02
"""Forms whose times differ by less than this share are equally fast."""
ENOUGH_WIDTH = 0.03
"""An interval narrower than this share of the median is narrow enough."""
NOISY_WIDTH = 0.05
MOST_ERROR = 1e-4
"""A form whose outputs differ from the factored network's by more than this, norm-wise, is not used."""
L2_BYTES = 256 << 20
"""More than any GPU's L2 cache."""


@dataclass
class Measurer:
    """Measures architectures on one device by one spec. `table` keeps the times of chains from one to the next.

    `most_params` is the budget that a deployed form must obey where the spec says `within-budget`. `alone` is entered
    for what is timed to be told; before, `pause` is called between one form and the next: others may be measuring.
    """

    spec: LatencySpec
    device: Device
    most_params: int | None = None
    table: TimingCache = field(default_factory=TimingCache)
    cap_s: float = 2.0
    energy: bool = False
    alone: Callable[[], AbstractContextManager[None]] = nullcontext
    pause: Callable[[], None] = lambda: None

    def __call__(self, arch: ArchConfig, reference_ms: float | None = None) -> Latency:
        """Time an architecture's network in its fastest allowed form.

        At least 31 rounds in a quarter of a second, then until the 95 % interval of the median ratio is narrower than
        3 % of it, or for `cap_s` seconds. `reference_ms` is the study's fixed reference time; None takes this
        measurement's own. The thread count is the process's: call it where `torch.get_num_threads()` is `spec.threads`.

        Raises `UsageError` for a runtime that is not installed, `IgcNasError` for one that cannot take the network,
        `InfeasibleError` where no form is within the budget.
        """
        runs = self._runs(arch)
        pace = _reference_run(self.spec, self.device)
        with self.alone():
            return self._measured(arch, runs, pace, reference_ms)

    def _measured(self, arch: ArchConfig, runs: Mapping[str, _Run], pace: _Run, reference_ms: float | None) -> Latency:
        watch = NoiseMonitor()
        began = time.perf_counter()
        pace.warm_up()
        if len(runs) > 1:
            forms, name = _raced(runs)
        else:
            forms, name = {}, next(iter(runs))
            runs[name].warm_up()
        times, paces = _rounds(runs[name], pace, began, self.cap_s)
        conditions = conditions_of(self.device)  # at once: a GPU that rests tells nothing of throttling
        disturbances = watch.disturbances(self.spec.threads if self.device.kind == "cpu" else 0)
        return self._latency(arch, runs[name], forms, times, paces, disturbances, conditions, reference_ms)

    def variants(self, network: Network) -> list[Variant]:
        """The forms that the spec allows, the factored network first where it is among them."""
        if self.spec.forms == "factored":
            return [factored_variant(network.plan)]
        most = self.most_params if self.spec.forms == "within-budget" else None
        mixed = mixed_variant(network, self.spec.batch, self.table, most)
        found = [*uniform_variants(network.plan), mixed]
        return [variant for variant in found if most is None or variant.params <= most]

    def _runs(self, arch: ArchConfig) -> dict[str, _Run]:
        """The allowed forms, each ready to run; those that compute what the factored network does."""
        network = randomize_batchnorm_(build(arch, 0)).eval()
        network.to(self.device.torch_device, memory_format=_layout(self.spec))  # type: ignore[call-overload]
        x = _input(arch.input, self.spec, self.device)
        with without_tf32():
            wanted = prepare("eager", network, x, self.spec.threads)()
        runs = {}
        for variant in self.variants(network):
            self.pause()
            run = _Run.of(variant, network, x, self.spec, self.device, self.table)
            if self._computes(run, wanted):
                runs[variant.name] = run
        if not runs:
            fewest = min(variant.params for variant in uniform_variants(network.plan))
            raise InfeasibleError(
                f"no form of the network has at most {self.most_params:,} parameters; the smallest has {fewest:,}"
            )
        return runs

    def _computes(self, run: _Run, wanted: Tensor) -> bool:
        """Whether a form computes what the factored network does. Raises `IgcNasError` where not even that one does."""
        with without_tf32():
            error = float((run.output() - wanted).norm() / wanted.norm())
        if error < MOST_ERROR:
            return True
        if run.variant.name == "factored":
            raise IgcNasError(f"{self.spec.runtime} computes another function (relative error {error:.1e})")
        return False

    def _latency(
        self,
        arch: ArchConfig,
        run: _Run,
        forms: Mapping[str, FormTime],
        times: list[float],
        paces: list[float],
        disturbances: tuple[str, ...],
        conditions: Conditions,
        reference_ms: float | None,
    ) -> Latency:
        low, high = median_interval(times)
        pace = median(paces)
        unit = reference_ms or pace
        ratios = _ratios(times, paces)
        ratio, (ratio_low, ratio_high) = median(ratios), median_interval(ratios)
        noise = [*disturbances]
        if ratio_high - ratio_low > NOISY_WIDTH * ratio:
            noise.append(f"the interval is {100 * (ratio_high - ratio_low) / ratio:.0f} % wide")
        if conditions.throttle:
            noise.append(f"the clocks were held down: {', '.join(conditions.throttle)}")
        return Latency(
            median_ms=median(times),
            low_ms=low,
            high_ms=high,
            normalised_ms=ratio * unit,
            normalised_low_ms=ratio_low * unit,
            normalised_high_ms=ratio_high * unit,
            reference_ms=pace,
            noisy=bool(noise),
            noise=tuple(noise),
            samples_ms=tuple(round(t, 5) for t in times),
            reference_samples_ms=tuple(round(t, 5) for t in paces),
            runtime=self.spec.runtime,
            form=run.variant.name,
            deployed_params=run.variant.params,
            deployed_macs=run.variant.macs,
            weight_bytes=run.weight_bytes,
            forms=dict(forms),
            batch=self.spec.batch,
            dtype=self.spec.dtype,
            memory_format="contiguous" if self.spec.runtime in CPU_ONLY else self.spec.memory_format,
            cuda_graph=self.spec.cuda_graph and self.spec.runtime == "eager",
            cold_cache=self.spec.cold_cache,
            input=arch.input,
            energy_mj=self._energy(run) if self.energy else None,
            conditions=conditions,
        )

    def _energy(self, run: _Run) -> float | None:
        gpu = find_gpu(self.device.uuid) if self.device.uuid else None
        found = energy_per_run(gpu, run.once, self.device.synchronize) if gpu else None
        return found.per_run_mj if found else None


def measure_latency(
    arch: ArchConfig,
    spec: LatencySpec,
    device: Device,
    reference_ms: float | None = None,
    *,
    most_params: int | None = None,
    cap_s: float = 2.0,
) -> Latency:
    """Measure one architecture; see `Measurer`."""
    return Measurer(spec, device, most_params, cap_s=cap_s)(arch, reference_ms)


@dataclass
class _Run:
    """A form of a network, ready to run: `output` runs it once, `time` once in milliseconds."""

    variant: Variant
    weight_bytes: int
    output: Callable[[], Tensor]
    time: Callable[[], float]

    @classmethod
    def of(
        cls, variant: Variant, network: Network, x: Tensor, spec: LatencySpec, device: Device, table: TimingCache
    ) -> _Run:
        """The variant of a network, ready to run on `x`."""
        module = variant.module(network, spec.batch, table, spec.runtime)
        output = prepare(spec.runtime, module, x, spec.threads)
        timer = _cuda_timer(output, spec, device) if device.kind == "cuda" else timed(output)
        held = 4 * variant.params  # float32, whatever a runtime pads or packs
        return cls(variant, held, output, timer)

    def once(self) -> None:
        """Run once, as it is timed."""
        self.time()

    def warm_up(self) -> None:
        """Run until the time is stable, for at most a second."""
        until, last = time.perf_counter() + MOST_WARM_UP_S, 0.0
        while time.perf_counter() < until:
            now = median(self._stretch(WARM_UP_S))
            if abs(now - last) < STABLE * now:
                return
            last = now

    def _stretch(self, seconds: float) -> list[float]:
        until = time.perf_counter() + seconds
        times = [self.time(), self.time(), self.time()]
        while time.perf_counter() < until:
            times.append(self.time())
        return times


def randomize_batchnorm_(network: Network) -> Network:
    """Give every BN statistics and weights that are not the identity's, so that a form that drops them is found out."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                assert tensor is not None
                tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))
    return network


def _raced(runs: Mapping[str, _Run]) -> tuple[dict[str, FormTime], str]:
    """(the times of all forms in interleaved rounds, the slow ones in few; the winner)."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    rivals = dict(runs)
    for run in runs.values():
        run.once()
    until = time.perf_counter() + RACE_CAP_S
    for done in range(RACE_ROUNDS):
        if done >= FIRST_ROUNDS:
            rivals = _rivals(rivals, samples)
            if len(rivals) == 1 or time.perf_counter() > until:
                break
        for name, run in rivals.items():
            samples[name].append(run.time())
    forms = {name: _form_time(run, samples[name]) for name, run in runs.items()}
    return forms, _winner({name: forms[name] for name in rivals})


def _rivals(runs: Mapping[str, _Run], samples: Mapping[str, list[float]]) -> dict[str, _Run]:
    """Those that may still win, all with as many samples."""
    ahead = min(runs, key=lambda name: median(samples[name]))
    return {name: run for name, run in runs.items() if name == ahead or _may_win(samples[name], samples[ahead])}


def _may_win(times: list[float], ahead: list[float]) -> bool:
    """Whether a form is not hopelessly slower than the one ahead, nor slower in nearly every round."""
    if median(times) >= HOPELESS * median(ahead):
        return False
    ratios = _ratios(times, ahead)
    return len(ratios) < SURE_ROUNDS or sum(ratio <= 1 + TIE for ratio in ratios) >= RARELY * len(ratios)


def _winner(forms: Mapping[str, FormTime]) -> str:
    """The fastest form; of those that are hardly slower, the one that holds least."""
    least = min(form.median_ms for form in forms.values())
    close = {name: form for name, form in forms.items() if form.median_ms <= least * (1 + TIE)}
    return min(close, key=lambda name: (close[name].params, close[name].median_ms))


def _form_time(run: _Run, samples: list[float]) -> FormTime:
    low, high = median_interval(samples)
    return FormTime(
        params=run.variant.params,
        macs=run.variant.macs,
        weight_bytes=run.weight_bytes,
        median_ms=median(samples),
        low_ms=low,
        high_ms=high,
    )


def _rounds(run: _Run, pace: _Run, began: float, cap_s: float) -> tuple[list[float], list[float]]:
    """(times of the network, times of the reference), round by round; the measurement `began` before the race."""
    times: list[float] = []
    paces: list[float] = []
    started = time.perf_counter()
    while len(times) < MOST_ROUNDS:
        paces.append(pace.time())
        times.append(run.time())
        now = time.perf_counter()
        if len(times) < LEAST_ROUNDS or now - began < LEAST_S:
            continue
        if now - started > cap_s or (len(times) % 5 == 1 and _narrow(times, paces)):
            break
    return times, paces


def _narrow(times: list[float], paces: list[float]) -> bool:
    """Whether the interval of what is to be told, the median ratio, is narrow enough."""
    ratios = _ratios(times, paces)
    low, high = median_interval(ratios, resamples=200)
    return high - low < ENOUGH_WIDTH * median(ratios)


def _ratios(times: list[float], paces: list[float]) -> list[float]:
    """Network / reference, round by round."""
    return [network / reference for network, reference in zip(times, paces, strict=True)]


@lru_cache(maxsize=4)
def _reference_run(spec: LatencySpec, device: Device) -> _Run:
    """The reference network, eager and factored whatever the spec's forms and runtime are."""
    fixed = spec.model_copy(update={"runtime": "eager", "forms": "factored"})
    arch = reference(REFERENCE).arch
    network = build(arch, 0).eval().to(device.torch_device, memory_format=_layout(spec))  # type: ignore[call-overload]
    return _Run.of(
        factored_variant(network.plan), network, _input(arch.input, fixed, device), fixed, device, TimingCache()
    )


def _input(image: tuple[int, int, int], spec: LatencySpec, device: Device) -> Tensor:
    x = torch.randn(spec.batch, *image, generator=torch.Generator().manual_seed(0))
    return x.to(device.torch_device).contiguous(memory_format=_layout(spec))


def _layout(spec: LatencySpec) -> torch.memory_format:
    return torch.channels_last if spec.memory_format == "channels_last" else torch.contiguous_format


def _cuda_timer(run: Callable[[], Tensor], spec: LatencySpec, device: Device) -> Callable[[], float]:
    """Milliseconds between two events around a run, or around the replay of its captured graph."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    again: Callable[[], object] = _captured(run) if spec.cuda_graph and spec.runtime == "eager" else run
    flood = _flood(device.torch_name) if spec.cold_cache else None

    def once() -> float:
        if flood is not None:
            flood.zero_()
        begin.record()
        again()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    return once


@lru_cache(maxsize=8)
def _flood(device: str) -> Tensor:
    return torch.empty(L2_BYTES, dtype=torch.int8, device=device)


def _captured(run: Callable[[], Tensor]) -> Callable[[], None]:
    """The kernels of a run as a CUDA graph, after a warm-up on a side stream as capturing demands."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay() -> None:
        graph.replay()

    return replay
