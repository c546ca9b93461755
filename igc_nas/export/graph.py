"""A network as a file of another system: ONNX, or torch's exported program; in its best form, read back and compared.

Both take batches of any size, of images of one size: a form may hold a bias map of it
(`igc_nas.nn.lowering.deployment`). The forms race as they would run: an ONNX model in ONNX Runtime, an exported program
in PyTorch.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from igc_nas.analysis.words import interval_words, noise_words, runtime_words
from igc_nas.errors import IgcNasError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.host import NoiseMonitor
from igc_nas.evaluation.latency import MOST_ERROR, RACE_CAP_S, RACE_ROUNDS, TIE, Measurer
from igc_nas.evaluation.runtimes import ANY_BATCH, contiguous, onnx_model, onnx_session, quiet_exporter, require
from igc_nas.io.units import format_count, format_ms
from igc_nas.nn.device import Device, without_tf32
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.variants import Variant, mixed_variant, uniform_variants
from igc_nas.nn.network import Network
from igc_nas.nn.timing import median, median_interval, raced, round_robin, timed
from igc_nas.study.records import Conditions
from igc_nas.study.spec import LatencySpec

Kind = Literal["onnx", "pt2"]
CHECKED_BATCHES = (1, 3)
TIMES_OWN, MOST_EVER = 3.0, 1e-2
HINT = "a form may round too much for these weights; --form folded multiplies nothing out"
ROUNDS, CAP_S = 51, 2.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """How long a pass takes: median and 95 % interval of `n` rounds of `batch` images, and what it ran on."""

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
    """A file's content, its form with what it holds and executes, how far it is from PyTorch, how fast it was here."""

    kind: Kind
    data: bytes
    form: str
    params: int
    macs: int
    error: float
    timing: Timing | None = None
    opset: int | None = None

    def lines(self, written: int) -> list[str]:
        """What to say of it; `written` are the parameters of the network as it is written."""
        times = f", {self.params / written:.1f} times as many as it is written" if self.params > 1.005 * written else ""
        return [
            f"form     {self.form}: {format_count(self.params)} parameters{times}, {format_count(self.macs)} MACs",
            *([f"time     {self.timing}"] if self.timing else []),
            f"checked  against PyTorch on random images: relative error {self.error:.1e}",
        ]


@dataclass(frozen=True)
class Exporter:
    """Exports networks in forms that `spec` and `most_params` allow (as a study's latencies), timed on `device`."""

    spec: LatencySpec
    device: Device
    most_params: int | None
    table: TimingCache
    say: Say = lambda _: None

    def __call__(self, kind: Kind, network: Network, form: str, metadata: Mapping[str, str]) -> Graph:
        """The network in a form by name, or the `fastest` allowed one.

        Raises `UsageError` where a package is missing, `IgcNasError` where the exporter fails or computes anything else
        than the network.
        """
        if kind == "onnx":
            require("onnxruntime", "an ONNX file")
        variants = self._variants(network, form)
        images = torch.randn(2, *network.plan.input, generator=torch.Generator().manual_seed(0))
        entries = {}
        for variant in variants:
            if kind == "onnx":
                self.say(f"exporting the form {variant.name} ...")
            module = variant.module(network, self.spec.batch, self.table, "onnxruntime")
            entries[variant.name] = _ENTRIES[kind](module, images, self.spec.threads)
        chosen, timing = variants[0], None
        if len(variants) > 1:
            equal = [variant for variant in variants if self._is_equal(entries[variant.name], variant, network)]
            chosen, timing = self._raced(kind, equal or variants, entries, images)
        name = chosen.name
        told = dict(metadata) | {"form": name, "deployed_params": str(chosen.params), "deployed_macs": str(chosen.macs)}
        data, opset = entries[name].data(told)
        try:
            error = difference(_READERS[kind](data, self.spec.threads), network)
        except IgcNasError as failed:
            raise IgcNasError(failed.message, HINT) from None
        return Graph(kind, data, name, chosen.params, chosen.macs, error, timing, opset)

    def _is_equal(self, entry: _Entry, variant: Variant, network: Network) -> bool:
        """Whether a form may be used; one that rounds too much is said and left out."""
        try:
            difference(entry.run, network)
        except IgcNasError as error:
            self.say(f"the form {variant.name} is left out: {error.message}")
            return False
        return True

    def _variants(self, network: Network, form: str) -> list[Variant]:
        """The forms to choose among: one by name, or those that are allowed and differ."""
        if form == "mixed":
            mixed = mixed_variant(network, self.spec.batch, self.table, self.most_params)
            self.table.save()
            return [mixed]
        uniform = uniform_variants(network.plan)
        if form != "fastest":
            return [variant for variant in uniform if variant.name == form]
        measurer = Measurer(self.spec, self.device, self.most_params, self.table)
        allowed = measurer.variants(network) or uniform[1:2]
        self.table.save()
        if len(allowed) > 1:  # an exporter folds the factored one, too
            allowed = [variant for variant in allowed if variant.name != "factored"]
        alike = {frozenset(variant.forms.items()): variant for variant in reversed(allowed)}
        return [variant for variant in allowed if alike[frozenset(variant.forms.items())] is variant]

    def _raced(
        self, kind: Kind, variants: list[Variant], entries: Mapping[str, _Entry], images: Tensor
    ) -> tuple[Variant, Timing]:
        """(the fastest form; of those that are hardly slower the one that holds least; fresh times of it)."""
        x = images[:1].expand(self.spec.batch, -1, -1, -1).contiguous()
        runs = {v.name: timed(lambda entry=entries[v.name]: entry.run(x)) for v in variants}  # type: ignore[misc]
        times = raced(runs, RACE_ROUNDS, RACE_CAP_S * len(runs))
        least = min(times.values())
        close = [variant for variant in variants if times[variant.name] <= least * (1 + TIE)]
        chosen = min(close, key=lambda variant: (variant.params, times[variant.name]))
        watch = NoiseMonitor()
        samples = round_robin({chosen.name: runs[chosen.name]}, ROUNDS, CAP_S, warm_up=3)[chosen.name]
        noise = watch.disturbances(self.spec.threads)
        low, high = median_interval(samples)
        runtime = _RUNTIMES[kind]()
        conditions = conditions_of(self.device)
        return chosen, Timing(median(samples), low, high, len(samples), self.spec.batch, runtime, conditions, noise)


def difference(run: Callable[[Tensor], Tensor], network: Network) -> float:
    """The largest relative error, norm-wise, of what runs a network, on batches of random images.

    A network whose statistics nobody has taken (an untrained deep one) amplifies rounding. What is allowed is judged in
    float64: so much, and so many times what the network itself is off in float32. Raises `IgcNasError` beyond that.
    """
    generator = torch.Generator().manual_seed(1)
    exactly = copy.deepcopy(network).double()
    worst = 0.0
    for batch in CHECKED_BATCHES:
        x = torch.randn(batch, *network.plan.input, generator=generator)
        with torch.inference_mode(), without_tf32():
            wanted, exact = network(x), exactly(x.double())
        if not wanted.isfinite().all():
            raise IgcNasError("the network's own outputs on random images are not finite: its weights are no good")
        found = run(x)
        if found.shape != wanted.shape:
            raise IgcNasError(f"the exported network writes {tuple(found.shape)}, not {tuple(wanted.shape)}")
        error = _off(found, exact)
        if not error < min(MOST_ERROR + TIMES_OWN * _off(wanted, exact), MOST_EVER):
            raise IgcNasError(f"the exported network computes another function (relative error {error:.1e})")
        worst = max(worst, _off(found, wanted))
    return worst


def _off(found: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=torch.finfo(torch.float32).tiny))


@dataclass(frozen=True)
class _Entry:
    """A form in the race: `run` as it would run; `data` makes the file's content (and says its opset)."""

    run: Callable[[Tensor], Tensor]
    data: Callable[[Mapping[str, str]], tuple[bytes, int | None]]


def _onnx_entry(module: nn.Module, images: Tensor, threads: int) -> _Entry:
    model = onnx_model(module, images, any_batch=True)
    _clean(model.graph)

    def data(metadata: Mapping[str, str]) -> tuple[bytes, int | None]:
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        model.graph.name = f"igc-nas {metadata['id']}" if "id" in metadata else "igc-nas"
        return model.SerializeToString(), next((o.version for o in model.opset_import if not o.domain), None)

    return _Entry(onnx_session(model.SerializeToString(), threads), data)


def _clean(graph: Any) -> None:
    """Drop what the exporter tells of how the graph came about: places in source files of this machine."""
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
            program = torch.export.export(module, (images,), dynamic_shapes=ANY_BATCH)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # places in source files of this machine
            file = io.BytesIO()
            torch.export.save(program, file, extra_files={"igc-nas.json": json.dumps(dict(metadata), indent=2)})
        return file.getvalue(), None

    return _Entry(run, data)


def _pt2_reader(data: bytes, threads: int) -> Callable[[Tensor], Tensor]:
    # What is read is what was written a moment ago: torch.export.load unpickles what a stranger's file tells it to.
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
