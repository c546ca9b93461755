"""Exports a network to ONNX or to torch's exported program, in its fastest form; reads the file back and compares.

Batches of a file may be of any size, images of one size only: a form may contain a bias map of that size
(`igc_nas.nn.lowering.deployment`). The forms race in the system that will run the file: ONNX models in ONNX Runtime, or
in TensorRT on a GPU, exported programs in PyTorch.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from igc_nas.analysis.words import interval_words, noise_words, runtime_words
from igc_nas.arch.config import ArchConfig
from igc_nas.errors import IgcNasError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.host import NoiseMonitor
from igc_nas.evaluation.latency import MOST_ERROR, Measurer
from igc_nas.evaluation.runtimes import contiguous, free_batch, onnx_model, onnx_session, quiet_exporter, require
from igc_nas.io.units import format_count, format_ms
from igc_nas.nn.device import Device, exact_float32
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.variants import Variant, mixed_variant, uniform_variants
from igc_nas.nn.network import Network, build
from igc_nas.nn.timing import LEAST_FOR_INTERVAL, Race, median_interval, round_robin, timed
from igc_nas.study.records import Conditions
from igc_nas.study.spec import LatencySpec

Kind = Literal["onnx", "pt2"]
CHECKED_BATCHES = (1, 3)
TIMES_OWN, MOST_EVER = 3.0, 1e-2
"""Allowed relative error beyond `MOST_ERROR`: this many times the float32 network's own; and the limit in any case."""
HINT = "a form may round too much for these weights; --form folded multiplies nothing out"
RACE_ROUNDS, RACE_CAP_S = 15, 0.4
ROUNDS, CAP_S = 51, 2.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """The time of one pass: median of `n` rounds of `batch` images with its 95 % interval, runtime, conditions."""

    median_ms: float
    low_ms: float
    high_ms: float
    n: int
    batch: int
    runtime: str
    conditions: Conditions
    noise: tuple[str, ...]

    def __str__(self) -> str:
        noisy = f", {noise_words(self.noise)}" if self.noise else ""
        ran = runtime_words(self.runtime, self.batch, self.conditions.threads, self.conditions.device)
        return f"{format_ms(self.median_ms)} ({interval_words(self.low_ms, self.high_ms, self.n)}) in {ran}{noisy}"


@dataclass(frozen=True)
class Graph:
    """A file's content and its form. `error` is the relative error against PyTorch, `timing` None if nothing raced."""

    kind: Kind
    data: bytes
    form: str
    params: int
    macs: int
    error: float
    timing: Timing | None = None
    opset: int | None = None

    def lines(self, factored_params: int) -> list[str]:
        """A summary for the terminal; `factored_params` is the parameter count of the factored network."""
        ratio = self.params / factored_params
        times = f", {ratio:.1f} times as many as the factored network" if ratio > 1.005 else ""
        return [
            f"form     {self.form}: {format_count(self.params)} parameters{times}, {format_count(self.macs)} MACs",
            *([f"time     {self.timing}"] if self.timing else []),
            f"checked  against PyTorch on random images: relative error {self.error:.1e}",
        ]


@dataclass(frozen=True)
class Exporter:
    """Exports networks in the forms that `spec` and `most_params` allow (as for latencies); they race on `device`."""

    spec: LatencySpec
    device: Device
    most_params: int | None
    cache: TimingCache
    say: Say = lambda _: None
    race: Race | None = None
    """None: 15 rounds, for at most 0.4 s per form."""
    opset: int | None = None
    """Of ONNX files; None: the exporter's."""
    fastest: Callable[[], tuple[Variant, Timing]] | None = None
    """Finds the fastest form elsewhere than on this CPU, see `fastest_on_gpu`; None: the forms race here."""

    def __call__(self, kind: Kind, network: Network, form: str, metadata: Mapping[str, str]) -> Graph:
        """The network in the named form, or in the `fastest` allowed one.

        Raises `UsageError` where a package is missing, `IgcNasError` where the exporter fails or where the exported
        network computes another function.
        """
        if kind == "onnx":
            require("onnxruntime", "an ONNX file")
        chosen, timing = self.fastest() if self.fastest and form == "fastest" else (None, None)
        variants = [chosen] if chosen else self._variants(network, form)
        images = torch.randn(2, *network.plan.input, generator=torch.Generator().manual_seed(0))
        make = _ENTRIES[kind] if self.opset is None else partial(_onnx_entry, opset=self.opset)
        entries = {}
        for variant in variants:
            if kind == "onnx":
                self.say(f"exporting the form {variant.name} ...")
            module = variant.module(network, self.spec.batch, self.cache, "onnxruntime")
            entries[variant.name] = make(module, images, self.spec.threads)
        chosen = variants[0]
        if len(variants) > 1:
            equal = [variant for variant in variants if self._is_equal(entries[variant.name], variant, network)]
            chosen, timing = self._fastest(kind, equal or variants, entries, images)
        name = chosen.name
        counts = {"deployed_params": str(chosen.params), "deployed_macs": str(chosen.macs)}
        data, opset = entries[name].data({**metadata, "form": name, **counts})
        try:
            error = difference(_READERS[kind](data, self.spec.threads), network)
        except IgcNasError as failed:
            raise IgcNasError(failed.message, HINT) from None
        return Graph(kind, data, name, chosen.params, chosen.macs, error, timing, opset)

    def _is_equal(self, entry: _Entry, variant: Variant, network: Network) -> bool:
        """Whether a form's rounding error is small enough; if not, say so."""
        try:
            difference(entry.run, network)
        except IgcNasError as error:
            self.say(f"the form {variant.name} is left out: {error.message}")
            return False
        return True

    def _variants(self, network: Network, form: str) -> list[Variant]:
        """The named form alone; for `fastest` all allowed forms, each only once where several are the same."""
        if form == "mixed":
            mixed = mixed_variant(network, self.spec.batch, self.cache, self.most_params)
            self.cache.save()
            return [mixed]
        uniform = uniform_variants(network.plan)
        if form != "fastest":
            return [variant for variant in uniform if variant.name == form]
        measurer = Measurer(self.spec, self.device, self.most_params, self.cache)
        allowed = measurer.variants(network) or uniform[1:2]
        self.cache.save()
        if len(allowed) > 1:  # the exporters fold batch norm, so an exported factored network equals the folded form
            allowed = [variant for variant in allowed if variant.name != "factored"]
        alike = {frozenset(variant.forms.items()): variant for variant in reversed(allowed)}
        return [variant for variant in allowed if alike[frozenset(variant.forms.items())] is variant]

    def _fastest(
        self, kind: Kind, variants: list[Variant], entries: Mapping[str, _Entry], images: Tensor
    ) -> tuple[Variant, Timing]:
        """(the winner of a race, its time in fresh rounds)."""
        x = images[:1].expand(self.spec.batch, -1, -1, -1).contiguous()
        runs = {v.name: timed(lambda entry=entries[v.name]: entry.run(x)) for v in variants}  # type: ignore[misc]
        race = self.race or Race(RACE_ROUNDS, RACE_CAP_S * len(runs))
        by_name = {variant.name: variant for variant in variants}
        chosen = race.winner(race.run(runs), size=lambda name: by_name[name].params)
        monitor = NoiseMonitor()
        samples = round_robin({chosen: runs[chosen]}, ROUNDS, CAP_S, warm_up=3, least=LEAST_FOR_INTERVAL)[chosen]
        noise = monitor.disturbances(self.spec.threads)
        interval = median_interval(samples)
        assert interval is not None
        runtime = _RUNTIMES[kind]()
        conditions = conditions_of(self.device)
        timing = Timing(median(samples), *interval, len(samples), self.spec.batch, runtime, conditions, noise)
        return by_name[chosen], timing


def fastest_on_gpu(
    arch: ArchConfig, spec: LatencySpec, device: Device, most_params: int | None, cache: TimingCache
) -> tuple[Variant, Timing]:
    """The fastest form of an architecture on a GPU by the runtime of `spec`, and its time, as `measure` takes it.

    Raises what `Measurer` raises.
    """
    measurer = Measurer(spec, device, most_params, cache)
    found = measurer(arch)
    network = build(arch, 0).eval().to(device.torch_device)
    chosen = next(variant for variant in measurer.variants(network) if variant.name == found.form)
    cache.save()
    times = (found.median_ms, found.low_ms, found.high_ms, found.n)
    return chosen, Timing(*times, spec.batch, spec.runtime, found.conditions, found.noise)


def difference(run: Callable[[Tensor], Tensor], network: Network) -> float:
    """The largest relative error (norm-wise) of `run` against the network in float32, on batches of random images.

    Raises `IgcNasError` if the error against the network in float64 exceeds 1e-4 plus three times the float32
    network's own, or 1e-2. The allowance depends on the network because a deep one whose BN statistics were never
    computed (an untrained one) amplifies rounding.
    """
    generator = torch.Generator().manual_seed(1)
    exact_network = copy.deepcopy(network).double()
    worst = 0.0
    for batch in CHECKED_BATCHES:
        x = torch.randn(batch, *network.plan.input, generator=generator)
        with torch.inference_mode(), exact_float32():
            wanted, exact = network(x), exact_network(x.double())
        if not wanted.isfinite().all():
            raise IgcNasError("the network's own outputs on random images are not finite: its weights are unusable")
        found = run(x)
        if found.shape != wanted.shape:
            raise IgcNasError(f"the exported network outputs shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
        error = _relative_error(found, exact)
        if not error < min(MOST_ERROR + TIMES_OWN * _relative_error(wanted, exact), MOST_EVER):
            raise IgcNasError(f"the exported network computes another function (relative error {error:.1e})")
        worst = max(worst, _relative_error(found, wanted))
    return worst


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=torch.finfo(torch.float32).tiny))


@dataclass(frozen=True)
class _Entry:
    """A form that may be exported: `run` is what the race times, `data` returns the file's content and ONNX opset."""

    run: Callable[[Tensor], Tensor]
    data: Callable[[Mapping[str, str]], tuple[bytes, int | None]]


def _onnx_entry(module: nn.Module, images: Tensor, threads: int, opset: int | None = None) -> _Entry:
    model = onnx_model(module, images, any_batch=True, opset=opset)
    made = next((o.version for o in model.opset_import if not o.domain), None)
    if opset is not None and made != opset:
        from onnx.defs import onnx_opset_version

        hint = f"use --opset {made} to {onnx_opset_version()}"
        raise IgcNasError(f"the exporter makes opset {made}, not {opset}", hint)
    _clean(model.graph)

    def data(metadata: Mapping[str, str]) -> tuple[bytes, int | None]:
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        model.graph.name = f"igc-nas {metadata['id']}" if "id" in metadata else "igc-nas"
        return model.SerializeToString(), next((o.version for o in model.opset_import if not o.domain), None)

    return _Entry(onnx_session(model.SerializeToString(), threads), data)


def _clean(graph: Any) -> None:
    """Remove the exporter's notes on each node's origin: they contain paths of this machine's source files."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _pt2_entry(module: nn.Module, images: Tensor, threads: int) -> _Entry:
    module = contiguous(module).eval()

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        result: Tensor = module(x)
        return result

    def data(metadata: Mapping[str, str]) -> tuple[bytes, int | None]:
        with quiet_exporter("an exported program"):
            program = torch.export.export(module, (images,), dynamic_shapes=free_batch())
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine's source files
            file = io.BytesIO()
            torch.export.save(program, file, extra_files={"igc-nas.json": json.dumps(dict(metadata), indent=2)})
        return file.getvalue(), None

    return _Entry(run, data)


def _pt2_reader(data: bytes, threads: int) -> Callable[[Tensor], Tensor]:
    # torch.export.load may unpickle, which runs code: only data that this process has just written may be loaded.
    module = torch.export.load(io.BytesIO(data)).module()

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        result: Tensor = module(x)
        return result

    return run


def _onnxruntime_name() -> str:
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__}"


_ENTRIES: dict[Kind, Callable[[nn.Module, Tensor, int], _Entry]] = {"onnx": _onnx_entry, "pt2": _pt2_entry}
_READERS: dict[Kind, Callable[[bytes, int], Callable[[Tensor], Tensor]]] = {"onnx": onnx_session, "pt2": _pt2_reader}
_RUNTIMES: dict[Kind, Callable[[], str]] = {
    "onnx": _onnxruntime_name,
    "pt2": lambda: f"PyTorch {torch.__version__}",
}
