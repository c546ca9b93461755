"""Latency on a GPU: forms captured and timed on its own stream and clock, noise by NVML."""

import copy
import itertools
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import pynvml
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef

from igc_nas.analysis.words import MIG
from igc_nas.arch.config import ArchConfig
from igc_nas.bench.deployment import bench_deploy
from igc_nas.bench.latency import bench_latency, drawn_architectures
from igc_nas.bench.report import architectures
from igc_nas.cli.loading import engine_notices
from igc_nas.cli.measure import latency_lines
from igc_nas.engine.doctor import examine
from igc_nas.errors import IgcNasError, UsageError
from igc_nas.evaluation.gpu_noise import GpuNoiseMonitor
from igc_nas.evaluation.gpu_session import gpu_session
from igc_nas.evaluation.latency import (
    MOST_ROUNDING,
    MOST_TF32_ERROR,
    Instruments,
    Measurer,
    comparable_network,
    randomize_batchnorm_,
    settle_batchnorm_,
)
from igc_nas.evaluation.runtimes import check_dtype, check_runtime
from igc_nas.exports.graph import fastest_on_gpu
from igc_nas.nn.cuda_timing import captured, event_timer
from igc_nas.nn.device import Device, find_devices
from igc_nas.nn.lowering.deployment import DeployedNetwork
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.variants import uniform_variants
from igc_nas.nn.network import build
from igc_nas.nn.nvml import THROTTLED_NS, Gpu, energy_per_run
from igc_nas.study.spec import DtypeName, LatencySpec, RuntimeName
from tests.gpu.builders import EACH, GPU, SMALL, on_gpu
from tests.support.commands import Command
from tests.support.fake_cuda import Record, fake_cuda, recording
from tests.support.nvml import ENERGY, Bench, FakeNvml
from tests.support.searches import spec
from tests.support.shares import some

SPEC = LatencySpec(device="Fake GPU", forms="any", cuda_graph=True)


@EACH
def test_every_form_is_captured_and_timed(arch: ArchConfig, gpu: Record) -> None:
    spec = SPEC.model_copy(update={"cold_cache": arch == SMALL["igcv1"]})
    found = Measurer(spec, find_devices("cuda")[0], cap_s=0.05)(arch)
    assert set(found.forms) == {"factored", "folded", "semidense", "dense", "mixed"}
    assert found.cuda_graph
    assert gpu.cpu_only == []
    assert min(gpu.captured) > 0


def test_chains_are_timed_as_the_network_is(gpu: Record) -> None:
    """In graphs, by events: no wait for the device but that for the end of an event."""
    Measurer(SPEC, find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert not [place for reason, place in gpu.waits if reason == "synchronize"]


@pytest.mark.parametrize("cold_cache", [False, True])
def test_a_time_is_that_of_the_kernels_alone(cold_cache: bool, gpu: Record) -> None:
    """Queued work is in front of the first event, so that the GPU does not wait there for the host to submit them."""
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda._sleep", lambda _: done.append("busy"))
        patch.setattr(torch.cuda.CUDAGraph, "replay", lambda _: done.append("replay"))
        real = torch.cuda.Event.record
        patch.setattr(torch.cuda.Event, "record", lambda self: (done.append("event"), real(self))[1])
        patch.setattr(torch.Tensor, "zero_", lambda self: done.append("flood" if self.nbytes > 1 << 27 else "small"))
        event_timer(lambda: None, GPU, graph=True, cold_cache=cold_cache)()
    assert done == [*(["flood"] if cold_cache else []), "busy", "event", "replay", "event"]


def test_benches_measure_as_a_search_does(gpu: Record) -> None:
    """In graphs, by events."""
    measured: list[LatencySpec] = []

    def stop(self: Measurer, *_: object) -> None:
        measured.append(self.spec)
        raise StopIteration

    with mock.patch.object(Measurer, "__call__", stop), pytest.raises(StopIteration):
        bench_latency(find_devices("cuda")[0], archs=[SMALL["igcv1"]])
    assert measured[0].cuda_graph
    report = bench_deploy(find_devices("cuda")[0], (1,), archs={"one": SMALL["igcv1"]}, rounds=3)
    assert report.rows[0]["best_ms"] == report.rows[0]["factored_nchw_ms"] == 1.0, "by the fake GPU's events"
    assert min(gpu.captured) > 0


def test_measuring_has_cudnn_search_for_what_is_timed_only(gpu: Record) -> None:
    """Forms are folded and compared without searches; those of the reference, its images of batch 1, are used."""
    Measurer(SPEC, find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert {search.image[0] for search in gpu.searches} == {1}
    assert {search.dtype for search in gpu.searches} == {torch.float32}
    assert {search.tf32 for search in gpu.searches} == {True}


@EACH
def test_deployed_networks_lie_on_the_gpu(arch: ArchConfig, gpu: Record) -> None:
    network = on_gpu(arch).eval()
    for variant in uniform_variants(network.plan)[1:]:
        deployed = DeployedNetwork(network, variant.forms)
        assert {buffer.device for buffer in deployed.buffers()} == {GPU}
        assert {buffer.dtype for buffer in deployed.buffers()} == {torch.float32}
        with torch.inference_mode():
            assert deployed(torch.zeros(2, 3, 32, 32, device=GPU)).device == GPU


def test_the_second_gpu_is_timed_on_its_own_stream(cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(count=2) as record:
        device = find_devices("cuda:1")[0]
        recorded: list[int] = []
        real = torch.cuda.Event.record
        monkeypatch.setattr(
            torch.cuda.Event, "record", lambda self, *_: (recorded.append(record.current_device), real(self))[1]
        )
        Measurer(LatencySpec(device=device.name, cuda_graph=True), device, cap_s=0.05)(SMALL["igcv1"])
        assert set(recorded) == {1}
        assert record.current_device == 0


@pytest.mark.parametrize("dtype", some(["bfloat16", "float16"], "bfloat16"))
def test_a_batch_is_timed_in_16_bits(dtype: DtypeName, gpu: Record) -> None:
    """Every form, its chains and the reference network, of a batch in the dtype; the outputs are compared in it."""
    spec = SPEC.model_copy(update={"dtype": dtype, "batch": 32})
    found = Measurer(spec, find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert (found.dtype, found.batch) == (dtype, 32)
    assert set(found.forms) == {"factored", "folded", "semidense", "dense", "mixed"}
    assert found.per_image_ms == found.median_ms / 32
    assert found.weight_bytes == 2 * (found.deployed_params or 0)
    assert {(search.dtype, search.image[0]) for search in gpu.searches} == {(getattr(torch, dtype), 32)}
    assert gpu.cpu_only == []


TOLERANCES = [*itertools.product(MOST_ROUNDING, ["igcv1-l24m2", "igcv2-c48-d4-res", "igcv3-c32-t4-k5-plain"])]


@pytest.mark.parametrize("case", some(TOLERANCES, *TOLERANCES[::2]), ids=" ".join)
def test_the_tolerance_of_16_bits_knows_rounding_from_another_function(case: tuple[str, str]) -> None:
    """By values of the CPU: each form is within it, a network without one of its BN is not."""
    dtype, name = case
    most = MOST_ROUNDING[dtype]
    arch = architectures()[name]
    network = settle_batchnorm_(randomize_batchnorm_(build(arch, 0)), arch.input)
    x = torch.randn(2, *arch.input, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = network(x)

        def difference(module: nn.Module) -> float:
            module = copy.deepcopy(module).to(getattr(torch, dtype))
            return float((module(x.to(getattr(torch, dtype))).float() - wanted).norm() / wanted.norm())

        assert difference(network) < most
        for variant in uniform_variants(network.plan)[1:]:
            assert difference(DeployedNetwork(network, variant.forms)) < most
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        norms[len(norms) // 2].reset_running_stats()
        assert difference(network) > most


def in_tf32(network: nn.Module) -> nn.Module:
    """The network on a CPU, with images and weights of its products rounded to 10 bits of mantissa as on a GPU."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = rounded(module.weight.data)
            module.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))
    return network


def test_the_tolerance_of_tf32_knows_rounding_from_another_function() -> None:
    """A network of igc_cifar that multiplied it beyond, before its BN had the statistics of their inputs."""
    arch = drawn_architectures(32, seed=0)[31]
    network = comparable_network(arch, SPEC, Device("cuda", "cuda:0", "a GPU"))
    x = torch.randn(1, *arch.input, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = network(x)

        def difference(module: nn.Module) -> float:
            return float((module(x) - wanted).norm() / wanted.norm())

        assert difference(in_tf32(network)) < MOST_TF32_ERROR / 2
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        norms[len(norms) // 2].reset_running_stats()
        assert difference(network) > MOST_TF32_ERROR


def test_compiled_forms_are_checked_as_they_are_timed(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """In graphs, and in TF32: in another precision torch.compile would compile each a second time.

    torch.compile of torch 2.10 reads the older flag of products, too.
    """
    precisions: list[str] = []
    older: list[bool] = []

    class Compiled(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            precisions.append(torch.backends.cudnn.conv.fp32_precision)
            result: torch.Tensor = self.module(x)
            return result

    def compiled(module: nn.Module, **_: Any) -> nn.Module:
        older.append(torch.backends.cuda.matmul.allow_tf32)
        return Compiled(module)

    monkeypatch.setattr(torch, "compile", compiled)
    spec = SPEC.model_copy(update={"runtime": "compile"})
    found = Measurer(spec, find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert found.cuda_graph
    assert set(found.forms) == {"factored", "folded", "semidense", "dense", "mixed"}
    assert set(precisions) == {"tf32"}
    assert set(older) == {True}


def test_16_bits_are_for_a_gpu_and_for_pytorch() -> None:
    check_dtype("float32", "native", "cpu")
    check_dtype("bfloat16", "compile", "cuda")
    with pytest.raises(UsageError, match="latencies in bfloat16 are measured on a GPU only"):
        check_dtype("bfloat16", "eager", "cpu")
    check_dtype("float16", "tensorrt", "cuda")
    with pytest.raises(UsageError, match="the runtime onnxruntime measures in float32 and float16"):
        check_dtype("bfloat16", "onnxruntime", "cuda")


class Session:
    """A session of an ONNX Runtime that has the CUDA provider; it writes nothing.

    It has addresses of what is bound, and keeps no tensor.
    """

    made: ClassVar[list[Any]] = []
    uses: ClassVar[list[str]] = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    memory: ClassVar[list[StorageWeakRef]] = []

    def __init__(self, model: bytes, options: Any, providers: Any) -> None:
        assert model.startswith(b"\x08"), "an ONNX model"
        self.bound: list[tuple[Any, ...]] = []
        self.providers, self.runs, self.options = providers, 0, options
        Session.made.append(self)

    def get_providers(self) -> list[str]:
        return self.uses

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="image", shape=[1, 3, 32, 32])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="logits", shape=[1, 10])]

    def io_binding(self) -> Any:
        return SimpleNamespace(bind_input=self.bind, bind_output=self.bind)

    def bind(self, *arguments: Any) -> None:
        self.bound.append(arguments)

    def run_with_iobinding(self, binding: Any) -> None:
        assert not any(self.memory[entry[5]].expired() for entry in self.bound), "a tensor that is bound was freed"
        self.runs += 1

    @classmethod
    def address(cls, tensor: torch.Tensor) -> int:
        cls.memory.append(StorageWeakRef(tensor.untyped_storage()))
        return len(cls.memory) - 1


@pytest.fixture
def onnxruntime_gpu(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    """An onnxruntime-gpu that is not there."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr("igc_nas.evaluation.runtimes.onnx_bytes", lambda module, x: bytes([8, len(x)]))
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda self: Session.address(self), raising=False)
    Session.made.clear()
    Session.memory.clear()
    return Session


def test_onnx_runtime_measures_on_the_gpu(gpu: Record, onnxruntime_gpu: type[Session]) -> None:
    """Tensors of the GPU are bound, float32 in NCHW; its launches are in the time, so no graph is recorded."""
    spec = LatencySpec(device="Fake GPU", forms="any", runtime="onnxruntime")
    found = Measurer(spec, find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert found.runtime == "onnxruntime"
    assert found.memory_format == "contiguous"
    assert not found.cuda_graph
    session = onnxruntime_gpu.made[0]
    assert session.providers[0][0] == "CUDAExecutionProvider"
    assert [entry[:5] for entry in session.bound] == [
        ("image", "cuda", 0, "float32", (1, 3, 32, 32)),
        ("logits", "cuda", 0, "float32", (1, 10)),
    ]
    assert max(made.runs for made in onnxruntime_gpu.made) > 31


@pytest.mark.parametrize("runtime", some(["onnxruntime", "tensorrt"], "tensorrt"))
def test_onnx_models_run_in_float16(
    runtime: RuntimeName, gpu: Record, onnxruntime_gpu: type[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, input and output are float16; TensorRT may use its kernels for it."""
    provider = "TensorrtExecutionProvider" if runtime == "tensorrt" else "CUDAExecutionProvider"
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [provider])
    monkeypatch.setattr(onnxruntime_gpu, "uses", [provider])
    dtypes: set[torch.dtype] = set()

    def exported(module: nn.Module, x: torch.Tensor) -> bytes:
        dtypes.update({x.dtype, *(t.dtype for t in module.state_dict().values() if t.is_floating_point())})
        return bytes([8, len(dtypes)])

    monkeypatch.setattr("igc_nas.evaluation.runtimes.onnx_bytes", exported)
    spec = LatencySpec(device="Fake GPU", forms="any", runtime=runtime, dtype="float16", batch=4)
    found = Measurer(spec, find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert (found.dtype, found.weight_bytes) == ("float16", 2 * (found.deployed_params or 0))
    assert dtypes == {torch.float16}
    session = onnxruntime_gpu.made[0]
    assert [entry[3] for entry in session.bound] == ["float16", "float16"]
    assert session.providers[0][1].get("trt_fp16_enable") is (True if runtime == "tensorrt" else None)


def test_an_onnx_runtime_that_uses_no_gpu_is_refused(
    gpu: Record, onnxruntime_gpu: type[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = LatencySpec(device="Fake GPU", runtime="onnxruntime")
    measurer = Measurer(spec, find_devices("cuda")[0], cap_s=0.05)
    monkeypatch.setattr(onnxruntime_gpu, "uses", ["CPUExecutionProvider"])
    with pytest.raises(IgcNasError, match="does not use the GPU"):
        measurer(SMALL["igcv1"])
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match="runs on no NVIDIA GPU; it has CPUExecutionProvider"):
        measurer(SMALL["igcv1"])


def test_tensorrt_measures_on_the_gpu(
    gpu: Record, onnxruntime_gpu: type[Session], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Engines are kept by the model with its weights, where only the user writes; no node is left to a CPU."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime_gpu, "uses", ["TensorrtExecutionProvider", "CPUExecutionProvider"])
    models = iter(range(99))
    monkeypatch.setattr("igc_nas.evaluation.runtimes.onnx_bytes", lambda module, x: bytes([8, next(models)]))
    spec = LatencySpec(device="Fake GPU", forms="any", runtime="tensorrt")
    found = Measurer(spec, find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert (found.runtime, found.memory_format, found.cuda_graph) == ("tensorrt", "contiguous", False)
    ((name, settings),) = onnxruntime_gpu.made[0].providers
    assert name == "TensorrtExecutionProvider"
    engines = [session.providers[0][1]["trt_engine_cache_path"] for session in onnxruntime_gpu.made]
    assert len(set(engines)) == len(engines) > 3
    assert {Path(engine).parent for engine in engines} == {tmp_path / "cache" / "tensorrt"}
    assert settings["trt_timing_cache_path"] == str(tmp_path / "cache" / "tensorrt")
    for session in onnxruntime_gpu.made:
        assert session.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert engine_notices("tensorrt") == []
    (tmp_path / "cache" / "tensorrt").chmod(0o777)
    onnxruntime_gpu.made.clear()
    Measurer(spec, find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert onnxruntime_gpu.made[0].providers == [("TensorrtExecutionProvider", {"device_id": 0})]
    assert engine_notices("onnxruntime") == []
    (line,) = engine_notices("tensorrt")
    assert "tensorrt: others may write it; IGC_NAS_CACHE names" in line


def test_an_export_takes_the_fastest_form_of_the_gpu(
    gpu: Record, onnxruntime_gpu: type[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime_gpu, "uses", ["TensorrtExecutionProvider"])
    spec = LatencySpec(device="Fake GPU", forms="any", runtime="tensorrt")
    chosen, timing = fastest_on_gpu(SMALL["igcv1"], spec, find_devices("cuda")[0], None, TimingCache())
    assert chosen.name in ("factored", "folded", "semidense", "dense", "mixed")
    assert "in tensorrt, batch 1, 1 thread, on Fake GPU" in str(timing)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "onnx", "--untrained", "--runtime", "tensorrt"), "add --device cuda"),
        (("--format", "c", "--untrained", "--device", "cuda"), "where the forms of an ONNX or pt2 file race"),
        (("--format", "onnx", "--untrained", "--device", "cuda"), "no CUDA device is visible to torch"),
    ],
)
def test_an_export_for_a_gpu_says_what_it_lacks(
    options: tuple[str, ...], words: str, cli: Command, tmp_path: Path
) -> None:
    answer = cli("export", "igcv1-l24m2-d8", *options, "-o", tmp_path / "net")
    assert answer.status == 2
    assert words in answer.err


@pytest.mark.parametrize("changed", ["nothing", "the GPU", "TensorRT", "ONNX Runtime"])
def test_an_engine_is_of_one_gpu_and_of_the_versions(
    changed: str, gpu: Record, onnxruntime_gpu: type[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder that no code may be loaded from: an engine is read, not loaded."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime_gpu, "uses", ["TensorrtExecutionProvider"])
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    x = torch.zeros(1, 3, 32, 32, device=GPU)
    gpu_session(b"\x08", x, "TensorrtExecutionProvider")
    if changed == "the GPU":
        monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Another GPU")
    elif changed == "TensorRT":
        monkeypatch.setattr("importlib.metadata.version", lambda _: "99.0")
    elif changed == "ONNX Runtime":
        monkeypatch.setattr("onnxruntime.__version__", "0.1")
    gpu_session(b"\x08", x, "TensorrtExecutionProvider")
    one, other = (session.providers[0][1]["trt_engine_cache_path"] for session in onnxruntime_gpu.made)
    assert (one == other) == (changed == "nothing")


def test_what_tensorrt_lacks_is_said(
    gpu: Record, onnxruntime_gpu: type[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    measurer = Measurer(LatencySpec(device="Fake GPU", runtime="tensorrt"), find_devices("cuda")[0], cap_s=0.05)
    with pytest.raises(UsageError, match="is built without TensorRT; it has CUDAExecutionProvider, CPU") as raised:
        measurer(SMALL["igcv1"])
    assert "pip install onnxruntime-gpu tensorrt" in str(raised.value.hint)
    (found,) = (finding for finding in examine().findings if finding.topic == "runtime tensorrt")
    assert found.value == "missing"
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["TensorrtExecutionProvider"])
    with pytest.raises(IgcNasError, match="does not use TensorRT") as lacking:
        measurer(SMALL["igcv1"])
    assert "LD_LIBRARY_PATH" in str(lacking.value.hint)

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("This session contains graph nodes that are assigned to the default CPU EP, but fallback")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(IgcNasError, match="cannot run the network on TensorRT: This session contains"):
        measurer(SMALL["igcv1"])


def test_tensorrt_is_for_picks_on_a_gpu(cli: Command) -> None:
    """A search does not build engines."""
    study = spec()
    check_runtime(study)
    with pytest.raises(UsageError, match="a search does not measure by the runtime tensorrt") as raised:
        check_runtime(study.model_copy(update={"latency": LatencySpec(device="GPU", runtime="tensorrt")}))
    assert "igc-nas measure STUDY:N --runtime tensorrt" in str(raised.value.hint)
    answer = cli("measure", "igcv1-l24m2-d8", "--runtime", "tensorrt", "--device", "cpu")
    assert answer.status == 2
    assert "the runtime tensorrt is measured on an NVIDIA GPU only" in answer.err


def test_energy_is_that_of_replays_that_are_queued(gpu: Record) -> None:
    """On a simulated card: waiting between two passes would let it idle, and launches one by one are another load."""
    (device,) = find_devices("cuda")
    bench, waits = Bench(uuid=f"GPU-{device.uuid}"), []

    def energy(*arguments: Any) -> Any:
        gpu.clear()
        found = energy_per_run(*arguments, clock=bench.clock, sleep=bench.sleep)
        waits.extend(gpu.waits)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", bench.nvml)
        patch.setattr("igc_nas.evaluation.latency.energy_per_run", energy)
        patch.setattr(torch.cuda.CUDAGraph, "replay", lambda _: bench.run())
        patch.setattr("torch.cuda.synchronize", lambda _: (gpu.wait("synchronize"), bench.synchronize()))
        spec = SPEC.model_copy(update={"forms": "factored"})
        found = Measurer(spec, device, cap_s=0.05, energy=True)(SMALL["igcv1"])
        assert found.energy_mj == pytest.approx((bench.busy_w - bench.idle_w) * bench.run_ms)
        bench.nvml.failing = {ENERGY: pynvml.NVMLError_NotSupported}
        assert Measurer(spec, device, cap_s=0.05, energy=True)(SMALL["igcv1"]).energy_mj is None
    assert [reason for reason, _ in waits] == ["synchronize"] * 3, "before, after; and before what is not counted"
    assert bench.done > 400


def test_a_mig_instance_is_said(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sensors are the card's, which the measurement records and `measure` and `doctor` say."""
    monkeypatch.setitem(sys.modules, "pynvml", Instances())
    found = Measurer(SPEC, find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert found.conditions.mig
    assert found.conditions.clock_mhz == 1980
    assert "a MIG instance: clocks" in "\n".join(latency_lines(found, SMALL["igcv1"]))
    (sensors,) = (finding for finding in examine().findings if finding.topic == "cuda:0 sensors")
    assert sensors.value.startswith(f"{MIG}; without temperature, power")


def test_in_wsl_what_nvml_cannot_say_is_no_noise(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows clocks there, but neither processes nor counters (CUDA on WSL User Guide, WSL 2 Support Constraints)."""
    monkeypatch.setattr("platform.release", lambda: "5.15.153.1-microsoft-standard-WSL2")
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(f"GPU-{find_devices('cuda')[0].uuid}"))
    found = Measurer(SPEC.model_copy(update={"forms": "factored"}), find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert found.conditions.clock_mhz == 1980
    assert [reason for reason in found.noise if "clocks were held down: sw_power_cap" not in reason] == []
    (sensors,) = (finding for finding in examine().findings if finding.topic == "cuda:0 sensors")
    assert sensors.value == "without the use by other processes, as usual in WSL"
    assert sensors.problem is None


def test_a_gpu_for_one_process_is_said(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(f"GPU-{find_devices('cuda')[0].uuid}")
    nvml.answers["nvmlDeviceGetComputeMode"] = lambda: pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (mode,) = (finding for finding in examine().findings if finding.topic == "cuda:0 mode")
    assert (mode.value, mode.problem) == ("EXCLUSIVE_PROCESS", "one process has this GPU: one worker uses it")


# Noise.


class Sensors:
    """A pynvml that says what processes compute, and counts lowered clocks."""

    NVMLError = pynvml.NVMLError

    def __init__(self, **sm_use: int) -> None:
        self.sm_use = {int(pid.removeprefix("pid")): percent for pid, percent in sm_use.items()}
        self.clock = 1980
        self.throttled = 0

    def nvmlDeviceGetClockInfo(self, handle: str, of: int) -> int:
        return self.clock

    def nvmlDeviceGetProcessUtilization(self, handle: str, since_us: int) -> list[Any]:
        return [SimpleNamespace(pid=p, smUtil=u, timeStamp=since_us + 1) for p, u in self.sm_use.items()]

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[int]) -> list[Any]:
        return [
            SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(ullVal=self.throttled if f == 74 else 0))
            for f in fields
        ]


class Instances(Sensors):
    """The card of a MIG instance: NVML has no use of processes for it."""

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not uuid.startswith("MIG-"):
            raise pynvml.NVMLError_NotFound
        return "instance"

    def nvmlDeviceIsMigDeviceHandle(self, handle: str) -> int:
        return 1

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:
        return "card"

    def nvmlDeviceGetClockInfo(self, handle: str, of: int) -> int:
        assert handle == "card"
        return self.clock

    def nvmlDeviceGetProcessUtilization(self, handle: str, since_us: int) -> list[Any]:
        raise pynvml.NVMLError_NotSupported


def monitored(sensors: Any, pid: int = 7, workers: set[int] | None = None) -> GpuNoiseMonitor:
    return GpuNoiseMonitor(Gpu(sensors, "handle"), pid, workers or set())


def test_a_quiet_gpu_has_no_noise() -> None:
    assert monitored(Sensors(pid7=95, pid8=3)).disturbances() == ()
    assert GpuNoiseMonitor(None).disturbances() == ()


def test_a_neighbour_on_the_gpu_is_noise() -> None:
    assert monitored(Sensors(pid7=60, pid8=40)).disturbances() == ("1 other process computed on the GPU",)


def test_a_worker_that_pauses_is_no_noise() -> None:
    """NVML's sample may reach back to what it did before this one had the GPU alone."""
    assert monitored(Sensors(pid7=60, pid8=40), workers={7, 8}).disturbances() == ()
    assert monitored(Sensors(pid7=60, pid8=40, pid9=20), workers={7, 8}).disturbances()


def test_a_gpu_that_was_idle_is_warm_before_it_is_watched(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock rises meanwhile, which is no noise."""
    sensors = Sensors()
    sensors.clock = 345

    def warm_up(timer: Any, least_s: float) -> None:
        sensors.clock = 1980

    instruments = Instruments(warm_up=warm_up, monitor=lambda _: monitored(sensors))
    found = Measurer(SPEC, find_devices("cuda")[0], cap_s=0.05, instruments=instruments)(SMALL["igcv1"])
    assert not [reason for reason in found.noise if "clock" in reason]


@pytest.mark.parametrize("form", ["factored", "dense"])
def test_a_graph_that_computes_another_function_is_not_timed(
    form: str, gpu: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay that is timed is compared, not only the run that was captured."""
    forms = iter(("factored", "folded", "semidense", "dense", "mixed", "reference"))

    def differ(by: float) -> None:
        monkeypatch.setattr(recording, "SMALL", by)

    def wrong(run: Any, device: torch.device) -> Any:
        replay, name = captured(run, device), next(forms)
        return lambda: (differ(1.0 if name == form else 1e-6), replay())[1]

    monkeypatch.setattr("igc_nas.evaluation.latency.captured", wrong)
    measurer = Measurer(SPEC, find_devices("cuda")[0], cap_s=0.05, pause=lambda: differ(1e-6))
    if form == "factored":
        with pytest.raises(IgcNasError, match="the CUDA graph of eager computes another function"):
            measurer(SMALL["igcv1"])
    else:
        assert set(measurer(SMALL["igcv1"]).forms) == {"factored", "folded", "semidense", "mixed"}


def test_a_form_whose_graph_finds_no_memory_is_not_timed(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter(range(9))

    def full(run: Any, device: torch.device) -> Any:
        if next(runs) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return captured(run, device)

    monkeypatch.setattr("igc_nas.evaluation.latency.captured", full)
    found = Measurer(SPEC, find_devices("cuda")[0], cap_s=0.05)(SMALL["igcv1"])
    assert set(found.forms) == {"factored", "folded", "dense", "mixed"}


@pytest.mark.parametrize(("sensors", "noisy"), [(Sensors(pid4001=95), False), (Sensors(pid4001=50, pid4002=45), True)])
def test_in_a_container_one_busy_process_is_this_one(sensors: Sensors, noisy: bool) -> None:
    assert bool(monitored(sensors).disturbances()) is noisy


def test_clocks_that_change_or_are_lowered_are_noise() -> None:
    sensors = Sensors(pid7=95)
    monitor = monitored(sensors)
    sensors.clock, sensors.throttled = 1410, 5_000_000
    assert monitor.disturbances() == (
        "the GPU's clock went from 1980 to 1410 MHz",
        "the GPU's clocks were lowered: sw_power_cap",
    )


def test_a_gpu_that_says_nothing_has_no_noise() -> None:
    assert monitored(SimpleNamespace(NVMLError=pynvml.NVMLError)).disturbances() == ()


def test_the_counters_are_those_of_nvml() -> None:
    names = {
        "sw_power_cap": "SW_POWER_CAP",
        "sync_boost": "SYNC_BOOST",
        "sw_thermal": "SW_THERM_SLOWDOWN",
        "hw_thermal": "HW_THERM_SLOWDOWN",
        "hw_power_brake": "HW_POWER_BRAKE_SLOWDOWN",
    }
    for reason, field in THROTTLED_NS.items():
        assert getattr(pynvml, f"NVML_FI_DEV_CLOCKS_EVENT_REASON_{names[reason]}") == field
