"""Runtimes: each computes the network's function, names missing packages, and runs on the given threads."""

import logging
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from igc_nas.arch.config import ArchConfig
from igc_nas.errors import IgcNasError, UsageError
from igc_nas.evaluation import runtimes
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.evaluation.runtimes import CONTIGUOUS, CPU_ONLY, EXTRA, PACKAGES, RUNTIMES, onnx_bytes, require, runner_for
from igc_nas.nn.lowering.variants import uniform_variants
from igc_nas.nn.network import Network, build
from igc_nas.study.spec import RuntimeName
from tests.support.builders import one_line

ARCH = ArchConfig.parse(
    {
        "input": (3, 12, 12),
        "stem": {"width": 8},
        "stage": [
            {"unit": "igcv1", "L": 4, "M": 2, "blocks": 1, "residual": True},
            {"unit": "igcv3", "width": 12, "expand": 2, "G1": 2, "G2": 2, "blocks": 2, "stride": 2, "residual": True},
        ],
    }
)
FORMS = ("factored", "folded", "semidense", "dense")
CLOSE = 1e-4


@pytest.fixture(scope="module")
def network() -> Network:
    return randomize_batchnorm_(build(ARCH, 0)).eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    image = torch.randn(2, *ARCH.input, generator=torch.Generator().manual_seed(1))
    return image.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def wanted(network: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x)


def deployed(network: Network, form: str) -> nn.Module:
    """The network in a form that every runtime takes: not packed for one of them."""
    if form == "factored":
        return network
    from igc_nas.nn.lowering.deployment import DeployedNetwork

    (variant,) = (found for found in uniform_variants(network.plan) if found.name == form)
    return DeployedNetwork(network, variant.forms)


def off(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm())


def test_the_runtimes_are_those_of_a_study() -> None:
    from typing import get_args

    assert set(RUNTIMES) == set(get_args(RuntimeName))
    assert {*EXTRA, "native"} == set(CONTIGUOUS) < set(RUNTIMES)
    assert set(CPU_ONLY) < set(CONTIGUOUS)


def installed(monkeypatch: pytest.MonkeyPatch, missing: str | None = None) -> None:
    """All packages that a runtime may need can be imported, except the missing one."""
    for package in {package for packages in PACKAGES.values() for package in packages}:
        monkeypatch.setitem(sys.modules, package, None if package == missing else SimpleNamespace())


Export = Callable[[Callable[..., Any]], None]


@pytest.fixture
def export_by(monkeypatch: pytest.MonkeyPatch) -> Export:
    """Replaces torch's ONNX exporter; all packages are there."""
    installed(monkeypatch)
    return lambda export: monkeypatch.setattr(torch.onnx, "export", export)


@pytest.fixture
def compile_by(monkeypatch: pytest.MonkeyPatch) -> Export:
    """Replaces torch's compiler."""
    return lambda compiler: monkeypatch.setattr(torch, "compile", compiler)


# Outputs.


@pytest.mark.parametrize("form", FORMS)
def test_eager_computes_the_network(form: str, network: Network, x: Tensor, wanted: Tensor) -> None:
    assert off(runner_for("eager", deployed(network, form), x, 1)(), wanted) < CLOSE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler's own
@pytest.mark.parametrize("form", FORMS)
def test_compile_computes_the_network(form: str, network: Network, x: Tensor, wanted: Tensor) -> None:
    assert off(runner_for("compile", deployed(network, form), x, 1)(), wanted) < CLOSE


ALL_BUT_TWO_ARE_SLOW = ["factored", "dense", *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[1:3])]


@pytest.mark.parametrize("form", ALL_BUT_TWO_ARE_SLOW)
@pytest.mark.parametrize("runtime", PACKAGES)
def test_exported_networks_compute_the_network(
    runtime: RuntimeName, form: str, network: Network, x: Tensor, wanted: Tensor
) -> None:
    pytest.importorskip(runtime)
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")  # openvino does not need it: see below
    run = runner_for(runtime, deployed(network, form), x, 1)
    first = run().clone()
    assert off(first, wanted) < CLOSE
    assert torch.equal(run(), first), "and again"


def test_eager_is_inference(x: Tensor) -> None:
    module = build(ARCH, 0).train()
    found = runner_for("eager", module, x, 1)()
    assert not module.training, "statistics of the batch are for training"
    assert found.is_inference()


def test_it_runs_once_for_each_call(x: Tensor) -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    module = Counting()
    run = runner_for("eager", module, x, 1)
    assert module.calls == 0
    assert torch.equal(run(), x)
    run()
    assert module.calls == 2


# Missing packages.


@pytest.mark.parametrize("runtime", CPU_ONLY)
def test_exported_networks_run_on_a_cpu_only(runtime: RuntimeName) -> None:
    on_a_gpu: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    with pytest.raises(UsageError) as raised:
        runner_for(runtime, nn.Identity(), on_a_gpu, 1)
    assert one_line(raised) == f"the runtime {runtime} is measured on a CPU only"
    assert "--device cpu" in str(raised.value.hint)


def test_tensorrt_runs_on_a_gpu_only(x: Tensor) -> None:
    with pytest.raises(UsageError, match="the runtime tensorrt is measured on an NVIDIA GPU only"):
        runner_for("tensorrt", nn.Identity(), x, 1)


@pytest.mark.parametrize("runtime", ["eager", "compile"])
def test_torch_needs_no_extra(runtime: RuntimeName, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxruntime", "openvino", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
    require(runtime)


@pytest.mark.parametrize(
    ("runtime", "package", "command"),
    [
        ("onnxruntime", "onnxruntime", "pip install 'igc-nas[onnx]'"),
        ("onnxruntime", "onnxscript", "pip install 'igc-nas[onnx]'"),
        ("openvino", "openvino", "pip install 'igc-nas[openvino]'"),
        ("openvino", "onnxscript", "pip install 'igc-nas[openvino]'"),
    ],
)
def test_a_missing_extra_is_named_with_its_command(
    runtime: RuntimeName, package: str, command: str, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, missing=package)
    for ask in (lambda: require(runtime), lambda: runner_for(runtime, nn.Identity(), x, 1)):
        with pytest.raises(UsageError) as raised:
            ask()
        assert one_line(raised) == f"the runtime {runtime} needs the package {package}"
        assert raised.value.hint == command


@pytest.mark.parametrize("runtime", PACKAGES)
def test_a_missing_package_is_found_before_anything_is_exported(
    runtime: RuntimeName, x: Tensor, monkeypatch: pytest.MonkeyPatch, export_by: Export
) -> None:
    export_by(lambda *_, **__: pytest.fail("exported for nothing"))
    image: Any = SimpleNamespace(device=SimpleNamespace(type="cuda")) if runtime == "tensorrt" else x
    for package in PACKAGES[runtime]:
        monkeypatch.setitem(sys.modules, package, None)
        for ask in (lambda: require(runtime), lambda: runner_for(runtime, nn.Identity(), image, 1)):
            with pytest.raises(UsageError, match=f"the runtime {runtime} needs the package {package}"):
                ask()
        monkeypatch.setitem(sys.modules, package, SimpleNamespace())
    require(runtime)


def test_openvino_needs_no_onnxruntime(x: Tensor, monkeypatch: pytest.MonkeyPatch, export_by: Export) -> None:
    export_by(_exported)
    installed(monkeypatch, missing="onnxruntime")
    monkeypatch.setitem(sys.modules, "openvino", FakeOpenvino())
    assert runner_for("openvino", nn.Identity(), x, 1)().shape == x.shape


# Errors of exporters and compilers.


def _exported(*_: object, **__: object) -> Any:
    return SimpleNamespace(model_proto=SimpleNamespace(SerializeToString=lambda: b"onnx"))


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


def test_an_export_that_fails_is_an_error(x: Tensor, export_by: Export) -> None:
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    export_by(_raising(ValueError("unsupported operator " + "x" * 1000)))
    with pytest.raises(IgcNasError) as raised:
        onnx_bytes(nn.Identity(), x)
    assert one_line(raised).startswith("torch could not export the network to ONNX: unsupported operator xxx")
    assert logger.level == before


def test_an_export_error_of_many_lines_is_reported_in_one(x: Tensor, export_by: Export) -> None:
    text = "Failed to export the model with torch.export. \x1b[96mThis is step 1/3\x1b[0m of exporting.\nNext steps:\n-"
    export_by(_raising(RuntimeError(text)))
    with pytest.raises(IgcNasError) as raised:
        onnx_bytes(nn.Identity(), x)
    one_line(raised)


def test_an_export_leaves_the_log_as_it_was(x: Tensor, export_by: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("torch.onnx")
    levels = []

    def export(*_: object, **__: object) -> Any:
        levels.append(logger.level)
        return _exported()

    export_by(export)
    monkeypatch.setattr(logger, "level", logging.INFO)
    assert onnx_bytes(nn.Identity(), x) == b"onnx"
    assert (levels, logger.level) == ([logging.ERROR], logging.INFO)


def test_a_compiler_that_fails_is_an_error(x: Tensor, compile_by: Export) -> None:
    failing = _raising(RuntimeError("\nInvalidCxxCompiler: No working C++ compiler found\nset TORCHDYNAMO_VERBOSE=1\n"))
    compile_by(lambda *_, **__: failing)
    with pytest.raises(IgcNasError) as raised:
        runner_for("compile", nn.Identity(), x, 1)
    assert one_line(raised) == "torch.compile failed: InvalidCxxCompiler: No working C++ compiler found"
    assert "--latency-runtime eager" in str(raised.value.hint)


def test_a_compiler_that_fails_without_a_message_is_an_error(x: Tensor, compile_by: Export) -> None:
    compile_by(lambda *_, **__: _raising(AssertionError()))
    with pytest.raises(IgcNasError):
        runner_for("compile", nn.Identity(), x, 1)


def test_compiling_is_over_before_anything_is_timed(x: Tensor, compile_by: Export) -> None:
    calls = []
    compile_by(lambda module, **options: lambda x: calls.append(options) or x)
    run = runner_for("compile", nn.Identity(), x, 1)
    assert calls == [{"dynamic": False}]
    run()
    assert len(calls) == 2


# Threads.


class FakeOpenvino:
    """Notes its arguments in `calls`; returns its input."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def Core(self) -> Any:
        return SimpleNamespace(read_model=lambda model: model, compile_model=self._compile)

    def _compile(self, model: bytes, device: str, settings: dict[str, Any]) -> Any:
        self.calls.append((model, device, settings))
        request = SimpleNamespace(infer=lambda images: [images[0]])
        return SimpleNamespace(create_infer_request=lambda: request)


class FakeOnnxruntime:
    """The same."""

    class SessionOptions:
        pass

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def InferenceSession(self, model: bytes, options: Any, providers: list[str]) -> Any:
        self.calls.append((model, vars(options), providers))
        name = SimpleNamespace(name="image")
        return SimpleNamespace(get_inputs=lambda: [name], run=lambda names, feed: [feed["image"]])


@pytest.mark.parametrize("threads", [1, 3])
def test_onnxruntime_runs_on_the_given_threads(
    threads: int, x: Tensor, export_by: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeOnnxruntime()
    export_by(_exported)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    assert torch.equal(runner_for("onnxruntime", nn.Identity(), x, threads)(), x)
    ((model, options, providers),) = fake.calls
    assert (model, providers) == (b"onnx", ["CPUExecutionProvider"])
    assert (options["intra_op_num_threads"], options["inter_op_num_threads"]) == (threads, 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_openvino_runs_on_the_given_threads_in_float32(
    threads: int, x: Tensor, export_by: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeOpenvino()
    export_by(_exported)
    monkeypatch.setitem(sys.modules, "openvino", fake)
    assert torch.equal(runner_for("openvino", nn.Identity(), x, threads)(), x)
    ((model, device, settings),) = fake.calls
    assert (model, device) == (b"onnx", "CPU")
    assert (settings["INFERENCE_NUM_THREADS"], settings["NUM_STREAMS"]) == (threads, 1)
    assert settings["INFERENCE_PRECISION_HINT"] == "f32"


def test_a_runtime_is_looked_up_by_its_name(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runtimes.RUNTIMES, "eager", lambda module, x, threads: lambda: x * threads)
    assert torch.equal(runner_for("eager", nn.Identity(), x, 5)(), x * 5)
