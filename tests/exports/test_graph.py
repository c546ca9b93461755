"""A network as ONNX or as torch's exported program: the network in the form that is said, for any batch."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.errors import IgcNasError, UsageError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.exports import graph
from igc_nas.exports.destination import FORMS
from igc_nas.exports.graph import Exporter, Kind, _Entry, difference
from igc_nas.nn.device import find_devices
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.variants import uniform_variants
from igc_nas.nn.network import Network, build
from igc_nas.nn.timing import Race
from igc_nas.study.lookup import load_architecture
from igc_nas.study.spec import LatencySpec
from tests.support.builders import one_line
from tests.support.shares import some
from tests.support.tensors import relative_error

ARCH = ArchConfig.parse(
    {
        "input": (3, 12, 10),
        "classes": 5,
        "stem": {"width": 8},
        "stage": [
            {"unit": "igcv1", "L": 4, "M": 2, "blocks": 1, "residual": True},
            {"unit": "igcv3", "width": 12, "expand": 2, "blocks": 2, "stride": 2},
        ],
    }
)
METADATA = {"id": "0123456789ab", "name": "a test"}


@pytest.fixture(scope="module")
def network() -> Network:
    return randomize_batchnorm_(build(ARCH, 0)).eval()


def exporter(forms: str = "any", most_params: int | None = None, **changes: Any) -> Exporter:
    device = find_devices("cpu")[0]
    spec = LatencySpec.parse({"device": device.name, "runtime": "onnxruntime", "forms": forms, "input": ARCH.input})
    return Exporter(spec, device, most_params, TimingCache(), **changes)


@pytest.fixture(scope="module", params=["onnx", pytest.param("pt2")])
def made(request: pytest.FixtureRequest, network: Network) -> graph.Graph:
    """The dense form, with bias maps, as a file."""
    if request.param == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    return exporter()(request.param, network, "dense", METADATA)


def runs(kind: Kind, data: bytes) -> Callable[[Tensor], Tensor]:
    """As a user runs it, without our help."""
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(data)
        return lambda x: torch.from_numpy(session.run(["logits"], {"image": x.numpy()})[0])
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda x: module(x).detach()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_file_computes_the_network_for_any_batch(batch: int, made: graph.Graph, network: Network) -> None:
    x = torch.randn(batch, *ARCH.input)
    with torch.no_grad():
        wanted = network(x)
    assert relative_error(runs(made.kind, made.data)(x), wanted) < 1e-5
    assert made.error < 1e-5


def test_a_file_says_what_it_is_and_of_which_form(made: graph.Graph, network: Network) -> None:
    dense = next(variant for variant in uniform_variants(network.plan) if variant.name == "dense")
    assert (made.form, made.params, made.macs) == ("dense", dense.params, dense.macs)
    told = METADATA | {"form": "dense", "deployed_params": str(dense.params), "deployed_macs": str(dense.macs)}
    if made.kind == "onnx":
        import onnx

        model = onnx.load_from_string(made.data)
        assert {prop.key: prop.value for prop in model.metadata_props} == told
        onnx.checker.check_model(model)
        (image,) = model.graph.input
        sizes = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
        assert (image.name, sizes) == ("image", ["batch", *ARCH.input])
        assert made.opset == model.opset_import[0].version
        assert sum(t.name is not None and len(t.dims) == 4 for t in model.graph.initializer) >= 4
    else:
        extra = {"igc-nas.json": ""}
        torch.export.load(io.BytesIO(made.data), extra_files=extra)
        assert json.loads(extra["igc-nas.json"]) == told
    (form, checked) = made.lines(cost_of(ARCH).params)
    assert "dense" in form
    assert "times as many" in form
    assert "relative error" in checked


@pytest.mark.parametrize("opset", some([11, 50], 50))
def test_an_opset_that_is_not_made_is_an_error_of_one_line(
    opset: int, network: Network, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    with pytest.raises(IgcNasError, match=rf"the exporter makes opset \d+, not {opset}") as raised:
        exporter(opset=opset)("onnx", network, "folded", METADATA)
    least, newest = (int(word) for word in str(raised.value.hint).removeprefix("use --opset ").split(" to "))
    assert 11 < least < newest == onnx.defs.onnx_opset_version() < 50
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [], "the converter's traceback"
    assert capfd.readouterr().err == ""


def test_a_file_tells_nothing_of_the_machine_that_made_it(made: graph.Graph) -> None:
    parts = [made.data]
    if made.kind == "pt2":
        with zipfile.ZipFile(io.BytesIO(made.data)) as archive:
            parts = [archive.read(name) for name in archive.namelist()]
    for part in parts:
        for word in (b"site-packages", b".py", str(Path(graph.__file__).parents[2]).encode()):
            assert word not in part


def test_an_exported_program_has_no_pickled_weight(made: graph.Graph) -> None:
    """`torch.export.load` unpickles those that say so; ours are plain bytes, and the sample input is weights only."""
    if made.kind != "pt2":
        return
    with zipfile.ZipFile(io.BytesIO(made.data)) as archive:
        configs = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith("_config.json")]
        assert [entry for config in configs for entry in config["config"].values() if entry["use_pickle"]] == []
        (sample,) = (name for name in archive.namelist() if "sample_inputs" in name)
        torch.load(io.BytesIO(archive.read(sample)), weights_only=True)


def test_an_exported_program_needs_nothing_of_ours(made: graph.Graph, tmp_path: Path) -> None:
    if made.kind != "pt2":
        return
    (tmp_path / "model.pt2").write_bytes(made.data)
    code = (
        "import sys; sys.modules['igc_nas'] = None\nimport torch\n"
        "print(tuple(torch.export.load('model.pt2').module()(torch.zeros(3, 3, 12, 10)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "(3, 5)\n"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_every_form_can_be_written(kind: Kind, form: str, network: Network) -> None:
    found = exporter()(kind, network, form, METADATA)
    assert form in ("fastest", found.form)
    x = torch.randn(4, *ARCH.input)
    with torch.no_grad():
        assert relative_error(runs(kind, found.data)(x), network(x)) < 1e-4
    assert (found.timing is not None) == (form == "fastest")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["igcv1-l4m8-d8", "igcv2-c16-k8-d8", "igcv3-d-cifar"])
def test_the_papers_networks_can_be_written(name: str) -> None:
    network = randomize_batchnorm_(build(load_architecture(name), 0)).eval()
    for kind in ("onnx", "pt2"):
        assert exporter()(kind, network, "semidense", METADATA).error < 1e-2


def test_the_exporters_say_nothing(network: Network, capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.getLogger("torch.onnx").level
    exporter()("pt2", network, "folded", METADATA)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx").level == level


# Which form.


def entries(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Exporters that only run the module; what was asked for."""
    asked: list[nn.Module] = []

    def entry(module: nn.Module, images: Tensor, threads: int) -> _Entry:
        asked.append(module)
        return _Entry(torch.inference_mode()(module), lambda metadata: (json.dumps(dict(metadata)).encode(), None))

    monkeypatch.setitem(graph._ENTRIES, "onnx", entry)
    monkeypatch.setitem(graph._READERS, "onnx", lambda data, threads: torch.inference_mode()(asked[0]))
    monkeypatch.setattr(graph, "require", lambda *_: None)
    monkeypatch.setitem(graph._RUNTIMES, "onnx", lambda: "a fake")
    return asked


class Scripted(Race):
    """A race with given times; forms that are not named take 2 ms."""

    def __init__(self, times: Mapping[str, float]) -> None:
        super().__init__(rounds=3, cap_s=1.0)
        object.__setattr__(self, "given", times)

    def run(self, runs: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
        return {name: [self.given.get(name, 2.0)] * 3 for name in runs}


def test_the_fastest_is_chosen_among_forms_that_differ(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, said = entries(monkeypatch), []
    found = exporter(say=said.append, race=Scripted({"dense": 1.0}))("onnx", network, "fastest", METADATA)
    assert found.form == "dense"
    assert found.timing.n == graph.ROUNDS
    assert found.timing.runtime == "a fake"
    assert json.loads(found.data)["form"] == "dense"
    assert 3 <= len(asked) <= 4
    assert network not in asked, "an exporter folds the factored form"
    assert said[0] == "exporting the form folded ..."
    assert "(95 % interval" in found.lines(1)[1]


def test_of_equally_fast_forms_the_smallest_is_taken(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch)
    race = Scripted({"folded": 1.01, "dense": 1.0})
    assert exporter(race=race)("onnx", network, "fastest", METADATA).form == "folded"


def test_forms_obey_the_study_s_budget(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = entries(monkeypatch)
    most = cost_of(ARCH).params
    found = exporter("within-budget", most)("onnx", network, "fastest", METADATA)
    assert found.params <= most
    factored = exporter("factored")("onnx", network, "fastest", METADATA)
    assert (factored.form, asked[-1], factored.timing) == ("factored", network, None)
    nothing_fits = exporter("within-budget", 10)("onnx", network, "fastest", METADATA)
    assert nothing_fits.form == "folded"
    named = exporter("within-budget", most)("onnx", network, "dense", METADATA)
    assert named.form == "dense", "whoever names a form gets it"


def test_a_form_that_rounds_too_much_is_left_out(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch)
    said: list[str] = []
    honest = graph._ENTRIES["onnx"]

    def entry(module: nn.Module, images: Tensor, threads: int) -> _Entry:
        made = honest(module, images, threads)
        if not said[-1].startswith("exporting the form dense"):
            return made
        return _Entry(lambda x: made.run(x) * 1.01, made.data)

    monkeypatch.setitem(graph._ENTRIES, "onnx", entry)
    found = exporter(say=said.append)("onnx", network, "fastest", METADATA)
    assert found.form != "dense"
    assert any(line.startswith("the form dense is left out: ") for line in said)


# What goes wrong.


def test_what_amplifies_rounding_is_judged_by_its_own() -> None:
    """Fifty blocks whose statistics nobody has taken: 2e-3 in float32 is the network's own, ten times that is not."""
    deep = randomize_batchnorm_(build(load_architecture("igcv3-d-cifar"), 0)).eval()
    dense = next(variant for variant in uniform_variants(deep.plan) if variant.name == "semidense")
    lowered = torch.inference_mode()(dense.module(deep, 1, TimingCache(), "onnxruntime"))
    assert difference(lowered, deep) > graph.MOST_ERROR
    with pytest.raises(IgcNasError, match="another function"):
        difference(lambda x: lowered(x) * 1.02, deep)


def test_weights_that_overflow_are_found_out(network: Network) -> None:
    broken = build(ARCH, 0).eval()
    with torch.no_grad():
        broken.classifier.linear.weight.fill_(3e38)
        broken.stem.norm.bias.fill_(1e10)
    with pytest.raises(IgcNasError, match="not finite: its weights are unusable"):
        difference(torch.inference_mode()(broken), broken)


def test_a_file_of_another_function_is_not_written(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch)
    for wrong, message in (
        (lambda x: network(x) * 1.001, "another function"),
        (lambda x: network(x) * float("nan"), "another function"),
        (lambda x: network(x)[:1], r"outputs shape \(1, 5\), not \(3, 5\)"),
    ):
        monkeypatch.setitem(graph._READERS, "onnx", lambda data, threads, wrong=wrong: torch.inference_mode()(wrong))
        with pytest.raises(IgcNasError, match=message) as raised:
            exporter()("onnx", network, "folded", METADATA)
        one_line(raised)
    assert difference(torch.inference_mode()(network), network) == 0


def test_an_exporter_that_fails_is_an_error_of_one_line(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no\nsuch operator")

    monkeypatch.setattr(torch.export, "export", fails)
    with pytest.raises(IgcNasError, match="torch could not export the network to an exported program: no") as raised:
        exporter()("pt2", network, "folded", METADATA)
    one_line(raised)


def test_a_missing_extra_is_named_with_its_command(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="an ONNX file needs the package onnxruntime") as raised:
        exporter()("onnx", network, "folded", METADATA)
    assert raised.value.hint == "pip install 'igc-nas[onnx]'"


def test_noise_is_said() -> None:
    conditions: Any = SimpleNamespace(threads=1, device="a CPU")
    text = str(graph.Timing(1.5, 1.4, 1.6, 51, 1, "ONNX Runtime", conditions, ("its processor was shared",)))
    assert text == (
        "1.50 ms (95 % interval 1.400 to 1.600, n = 51) in ONNX Runtime, batch 1, 1 thread, on a CPU, "
        "NOISY: its processor was shared"
    )


def test_the_form_that_is_fastest_on_a_gpu_is_exported(network: Network) -> None:
    """Here only the file is made and checked: `tests/gpu` has the race."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    semidense = next(variant for variant in uniform_variants(network.plan) if variant.name == "semidense")
    timing = graph.Timing(0.1, 0.09, 0.11, 31, 1, "tensorrt", conditions_of(find_devices("cpu")[0]), ())
    found = exporter(fastest=lambda: (semidense, timing))("onnx", network, "fastest", METADATA)
    assert (found.form, found.params, found.timing) == ("semidense", semidense.params, timing)
    assert "in tensorrt, batch 1" in "\n".join(found.lines(1))
