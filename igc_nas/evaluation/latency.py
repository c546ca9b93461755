"""Latency of one forward pass, measured so that it can be compared: in rounds with a fixed reference network.

A machine's speed drifts (clocks, other processes). Each round times the reference network and then the network, so both
see the same machine state; the objective is the median of their ratio times the study's fixed reference time.

A network may be deployed in several forms (`igc_nas.nn.lowering.variants`). They race first; the fastest is then timed
in fresh rounds, because the least of several medians is biased low.

Only the race and the final rounds need an idle device; their times are recorded. Building the forms, comparing their
outputs and choosing kernels may run while other processes train: those times only rank alternatives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.papers import reference
from igc_nas.errors import IgcNasError, InfeasibleError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.gpu_noise import GpuNoiseMonitor, monitor_for
from igc_nas.evaluation.host import NoiseMonitor
from igc_nas.evaluation.runtimes import CONTIGUOUS, Runner, runner_for
from igc_nas.nn.cuda_timing import captured, event_timer
from igc_nas.nn.device import Device, exact_float32
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.variants import Variant, factored_variant, mixed_variant, uniform_variants
from igc_nas.nn.network import Network, build
from igc_nas.nn.nvml import energy_per_run, find_gpu
from igc_nas.nn.timing import Race, Timer, median_interval, timed
from igc_nas.study.records import Conditions, FormTime, Latency
from igc_nas.study.spec import WITH_OWN_STREAM, LatencySpec, RuntimeName

REFERENCE = "regconv-w16-d8"
"""The fixed network of every round: regular convolutions only, 12 M MACs; no choice of a form changes its time."""

WARM_UP_S, MOST_WARM_UP_S = 0.03, 1.0
GPU_WARM_UP_S = 0.3
"""An idle GPU needs some tenths of a second to raise its clock; its time may be stable at the low one."""
STABLE = 0.05
"""Warm-up ends when two consecutive windows of runs have medians that differ by less than this share."""
LEAST_ROUNDS, MOST_ROUNDS = 31, 301
LEAST_S = 0.25
"""Least seconds from the first timed run to the last: `NoiseMonitor` sees no other processes in a shorter time."""
RACE = Race(rounds=15, cap_s=0.4)
ENOUGH_WIDTH = 0.03
"""The rounds end when the interval of the median ratio is narrower than this share of it."""
NOISY_WIDTH = 0.05
MOST_ERROR, MOST_TF32_ERROR = 1e-4, 3e-2
"""A form is not used if its outputs differ by more than this from the factored network's (relative, norm-wise)."""
MOST_ROUNDING = {"float16": 4e-2, "bfloat16": 0.2}
"""The same in 16 bits, from the factored network in float32. With values of a CPU, of 1,488 networks of three spaces
none differs by more than 0.017 and 0.13, in TF32 by 0.011; the benchmark's without one of their BN by 0.35 and more."""


@dataclass(frozen=True)
class FormRun:
    """A network in one form, on one input: `output` runs it once. `name` is the form's, or "reference".

    On a GPU `output` is the replay of a CUDA graph, where the spec says so.
    """

    name: str
    variant: Variant
    output: Callable[[], Tensor]
    dtype: torch.dtype = torch.float32

    @property
    def weight_bytes(self) -> int:
        """Of the parameters in their dtype, whatever a runtime pads or packs."""
        return self.dtype.itemsize * self.variant.params


@dataclass(frozen=True)
class RoundSamples:
    """Milliseconds of the network and of the reference network, round by round."""

    network_ms: list[float]
    reference_ms: list[float]

    def ratios(self) -> list[float]:
        """Network / reference of each round."""
        return [network / pace for network, pace in zip(self.network_ms, self.reference_ms, strict=True)]

    def ratio(self) -> float:
        """The median ratio."""
        return median(self.ratios())

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the median ratio."""
        return _interval(self.ratios())

    def width(self) -> float:
        """The interval's width as a share of the median ratio."""
        low, high = self.interval()
        return (high - low) / self.ratio()

    def statistics(self, reference_ms: float | None) -> dict[str, Any]:
        """The fields of a `Latency` that come from the samples; times are normalised to `reference_ms` (None: own)."""
        own = median(self.reference_ms)
        unit = reference_ms or own
        (low, high), (ratio_low, ratio_high) = _interval(self.network_ms), self.interval()
        return {
            "median_ms": median(self.network_ms),
            "low_ms": low,
            "high_ms": high,
            "normalised_ms": self.ratio() * unit,
            "normalised_low_ms": ratio_low * unit,
            "normalised_high_ms": ratio_high * unit,
            "reference_ms": own,
            "samples_ms": tuple(round(ms, 5) for ms in self.network_ms),
            "reference_samples_ms": tuple(round(ms, 5) for ms in self.reference_ms),
        }


def timer_for(run: FormRun, spec: LatencySpec, device: Device) -> Timer:
    """A function that runs a form once and returns its milliseconds: by CUDA events on a GPU, else by the clock.

    Runtimes `WITH_OWN_STREAM` are timed by the clock, their launches included: torch's events are on another stream.
    """
    if device.kind == "cpu" or spec.runtime in WITH_OWN_STREAM:
        return timed(run.output, device.synchronize)
    return event_timer(run.output, device.torch_device, graph=False, cold_cache=spec.cold_cache)


def warm_up(timer: Timer, least_s: float = 0.0) -> None:
    """Run for `least_s` seconds and until the time is stable, for at most a second."""
    started, last = time.perf_counter(), 0.0
    while time.perf_counter() < started + MOST_WARM_UP_S:
        window_end = time.perf_counter() + WARM_UP_S
        times = [timer(), timer(), timer()]
        while time.perf_counter() < window_end:
            times.append(timer())
        now = median(times)
        if abs(now - last) < STABLE * now and time.perf_counter() >= started + least_s:
            return
        last = now


@dataclass(frozen=True)
class Instruments:
    """What a `Measurer` takes its numbers from; a test replaces the machine's by its own."""

    runner: Callable[[RuntimeName, nn.Module, Tensor, int], Runner] = runner_for
    timer: Callable[[FormRun, LatencySpec, Device], Timer] = timer_for
    warm_up: Callable[[Timer, float], None] = warm_up
    race: Race = RACE
    clock: Callable[[], float] = time.perf_counter
    least_s: float = LEAST_S
    monitor: Callable[[Device], NoiseMonitor | GpuNoiseMonitor] = monitor_for
    conditions: Callable[[Device], Conditions] = conditions_of


@dataclass
class Measurer:
    """Measures architectures on one device by one spec. `cache` keeps kernel and chain times between them.

    `most_params` is the parameter budget of a deployed form where the spec says `within-budget`. The context manager
    `alone` is entered for the timing whose results are recorded; before that, `pause` is called between forms, so that
    other processes can measure.
    """

    spec: LatencySpec
    device: Device
    most_params: int | None = None
    cache: TimingCache = field(default_factory=TimingCache)
    cap_s: float = 2.0
    energy: bool = False
    alone: Callable[[], AbstractContextManager[None]] = nullcontext
    pause: Callable[[], None] = lambda: None
    instruments: Instruments = field(default_factory=Instruments)

    def __call__(self, arch: ArchConfig, reference_ms: float | None = None) -> Latency:
        """Time an architecture's network in its fastest allowed form.

        At least 31 rounds and a quarter of a second, then until the 95 % interval of the median ratio is narrower than
        3 % of it, or for `cap_s` seconds. `reference_ms` is the study's fixed reference time; None takes this
        measurement's own. Call it in a process whose `torch.get_num_threads()` equals `spec.threads`.

        Raises `UsageError` for a runtime that is not installed, `IgcNasError` for one that cannot run the network,
        `InfeasibleError` where no form is within the budget.
        """
        runs = {run.name: run for run in self._form_runs(arch)}
        timers = {name: self._timer(run) for name, run in runs.items()}
        pace = self._reference_timer
        with self.alone():
            if self.device.kind == "cuda":
                self.instruments.warm_up(pace, GPU_WARM_UP_S)
            monitor, began = self.instruments.monitor(self.device), self.instruments.clock()
            self.instruments.warm_up(pace, 0.0)
            forms, chosen = self._race(runs, timers)
            samples = self._rounds(timers[chosen], pace, began)
            conditions = self.instruments.conditions(self.device)  # at once: an idle GPU reports no throttling
            disturbances = monitor.disturbances(self.spec.threads)
            noise = noise_reasons(samples, conditions, disturbances)
            run = runs[chosen]
            return Latency(
                **samples.statistics(reference_ms),
                noisy=bool(noise),
                noise=noise,
                form=chosen,
                deployed_params=run.variant.params,
                deployed_macs=run.variant.macs,
                weight_bytes=run.weight_bytes,
                forms=forms,
                **self._setting(),
                input=arch.input,
                energy_mj=self._energy(run) if self.energy else None,
                conditions=conditions,
            )

    def variants(self, network: Network) -> list[Variant]:
        """The forms that the spec allows, the factored network first where it is among them.

        Generated C runs the factored network at the rate of a dense product, so it has no other forms.
        """
        most = self.most_params if self.spec.forms == "within-budget" else None
        if self.spec.forms == "factored" or self.spec.runtime == "native":
            found = [factored_variant(network.plan)]
        else:
            mixed = mixed_variant(network, self.spec.batch, self.cache, most, _dtype(self.spec))
            found = [*uniform_variants(network.plan), mixed]
        return [variant for variant in found if most is None or variant.params <= most]

    def _form_runs(self, arch: ArchConfig) -> list[FormRun]:
        """The allowed forms whose outputs equal the factored network's."""
        network = comparable_network(arch, self.spec, self.device)
        network.to(self.device.torch_device, memory_format=_layout(self.spec))  # type: ignore[call-overload]
        x, dtype = _input(arch.input, self.spec, self.device), _dtype(self.spec)
        with exact_float32():
            wanted = self.instruments.runner("eager", network, x, self.spec.threads)()
        x = x.to(dtype)
        runs = []
        for variant in self.variants(network):
            self.pause()
            if self.spec.runtime == "native":
                module: nn.Module = network
            else:
                module = variant.module(network, self.spec.batch, self.cache, self.spec.runtime, dtype)
            output = self.instruments.runner(self.spec.runtime, module, x, self.spec.threads)
            run = FormRun(variant.name, variant, output, dtype)
            if self._is_equal(run, wanted) and (timed_run := self._as_timed(run, wanted)):
                runs.append(timed_run)
        if not runs:
            native = self.spec.runtime == "native"
            forms = [factored_variant(network.plan)] if native else uniform_variants(network.plan)
            fewest = min(variant.params for variant in forms)
            raise InfeasibleError(
                f"no form of the network has at most {self.most_params:,} parameters; the smallest has {fewest:,}"
            )
        return runs

    def _as_timed(self, run: FormRun, wanted: Tensor) -> FormRun | None:
        """The form as it is timed: on a GPU its graph, whose replay is compared, too.

        None where the GPU has no memory for it, or where it computes another function.
        """
        if not self._captures:
            return run
        try:
            graph = replace(run, output=captured(run.output, self.device.torch_device))
        except torch.OutOfMemoryError:
            if run.name == "factored":
                raise
            return None
        return graph if self._is_equal(graph, wanted, is_graph=True) else None

    @property
    def _captures(self) -> bool:
        return self.device.kind == "cuda" and self.spec.cuda_graph

    def _is_equal(self, run: FormRun, wanted: Tensor, *, is_graph: bool = False) -> bool:
        """Whether a form computes the network's function. Raises `IgcNasError` where the factored one does not.

        A compiled one is compared in TF32, as it is timed: torch.compile would compile it anew without. So is a graph,
        which was captured in TF32. Those `WITH_OWN_STREAM` have a setting of their own, and compute in TF32.
        """
        in_tf32 = is_graph or (self.spec.runtime in ("compile", *WITH_OWN_STREAM) and self.device.kind == "cuda")
        with nullcontext() if in_tf32 else exact_float32():
            error = float((run.output().float() - wanted).norm() / wanted.norm())
        is_equal = error < MOST_ROUNDING.get(self.spec.dtype, MOST_TF32_ERROR if in_tf32 else MOST_ERROR)
        if not is_equal and run.name == "factored":
            what = f"the CUDA graph of {self.spec.runtime}" if is_graph else self.spec.runtime
            raise IgcNasError(f"{what} computes another function (relative error {error:.1e})")
        return is_equal

    def _timer(self, run: FormRun) -> Timer:
        return self.instruments.timer(run, self.spec, self.device)

    @cached_property
    def _reference_timer(self) -> Timer:
        """The reference network, eager and factored whatever the spec's forms and runtime are."""
        spec = self.spec.model_copy(update={"runtime": "eager", "forms": "factored"})
        arch = reference(REFERENCE).arch
        network, dtype = build(arch, 0).eval(), _dtype(spec)
        network.to(self.device.torch_device, dtype, memory_format=_layout(self.spec))  # type: ignore[call-overload]
        x = _input(arch.input, spec, self.device).to(dtype)
        output = self.instruments.runner("eager", network, x, spec.threads)
        if self._captures:
            output = captured(output, self.device.torch_device)
        return self.instruments.timer(FormRun("reference", factored_variant(network.plan), output), spec, self.device)

    def _race(self, runs: Mapping[str, FormRun], timers: Mapping[str, Timer]) -> tuple[dict[str, FormTime], str]:
        """(times of all forms, name of the fastest); no times where there is only one."""
        if len(runs) == 1:
            (name,) = runs
            self.instruments.warm_up(timers[name], 0.0)
            return {}, name
        samples = self.instruments.race.run(timers)
        forms = {name: _form_time(runs[name], found) for name, found in samples.items()}
        return forms, self.instruments.race.winner(samples, lambda name: runs[name].variant.params)

    def _rounds(self, network: Timer, pace: Timer, began: float) -> RoundSamples:
        """Rounds of the reference and the network, until the interval is narrow; `began` is the start of the race."""
        clock, samples = self.instruments.clock, RoundSamples([], [])
        started = clock()
        for done in range(1, MOST_ROUNDS + 1):
            samples.reference_ms.append(pace())
            samples.network_ms.append(network())
            now = clock()
            if done < LEAST_ROUNDS or now - began < self.instruments.least_s:
                continue
            if now - started > self.cap_s or (done % 5 == 1 and samples.width() < ENOUGH_WIDTH):
                break
        return samples

    def _setting(self) -> dict[str, Any]:
        """The fields of a `Latency` that come from the spec."""
        spec = self.spec
        return {
            "runtime": spec.runtime,
            "batch": spec.batch,
            "dtype": spec.dtype,
            "memory_format": "contiguous" if spec.runtime in CONTIGUOUS else spec.memory_format,
            "cuda_graph": spec.cuda_graph,
            "cold_cache": spec.cold_cache,
        }

    def _energy(self, run: FormRun) -> float | None:
        """Millijoules of one run, by runs that are queued without waiting: a GPU that waits between them idles."""
        gpu = find_gpu(self.device.uuid) if self.device.uuid else None
        return energy_per_run(gpu, run.output, self.device.synchronize) if gpu else None


def noise_reasons(samples: RoundSamples, conditions: Conditions, disturbances: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Why a measurement is noisy, in words; empty: it is not. `disturbances` are `NoiseMonitor`'s."""
    reasons = [*disturbances]
    if samples.width() > NOISY_WIDTH:
        reasons.append(f"the interval is {100 * samples.width():.0f} % wide")
    if conditions.throttle:
        reasons.append(f"the clocks were held down: {', '.join(conditions.throttle)}")
    return tuple(reasons)


def comparable_network(arch: ArchConfig, spec: LatencySpec, device: Device) -> Network:
    """The network on the CPU whose forms are compared. Its BN are not the identity.

    Where it is computed with 10 bits of mantissa or fewer, their statistics are those of their inputs: with others the
    outputs of every third network of igcv3_cifar differ in TF32 by more than 1 %, and float16's range is left.
    """
    network = randomize_batchnorm_(build(arch, 0)).eval()
    is_rounded = device.kind == "cuda" or spec.dtype != "float32"
    return settle_batchnorm_(network, arch.input) if is_rounded else network


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


@torch.no_grad()
def settle_batchnorm_(network: Network, image: tuple[int, int, int]) -> Network:
    """Give every BN the statistics of its inputs for random images."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(torch.randn(8, *image, generator=torch.Generator().manual_seed(1)))
    return network.eval()


def _form_time(run: FormRun, samples: list[float]) -> FormTime:
    low, high = median_interval(samples) or (None, None)
    return FormTime(
        params=run.variant.params,
        macs=run.variant.macs,
        weight_bytes=run.weight_bytes,
        median_ms=median(samples),
        low_ms=low,
        high_ms=high,
    )


def _interval(samples: list[float]) -> tuple[float, float]:
    found = median_interval(samples)
    assert found is not None, "rounds are never fewer than LEAST_ROUNDS"
    return found


def _input(image: tuple[int, int, int], spec: LatencySpec, device: Device) -> Tensor:
    x = torch.randn(spec.batch, *image, generator=torch.Generator().manual_seed(0))
    return x.to(device.torch_device).contiguous(memory_format=_layout(spec))


def _dtype(spec: LatencySpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return dtype


def _layout(spec: LatencySpec) -> torch.memory_format:
    return torch.channels_last if spec.memory_format == "channels_last" else torch.contiguous_format
