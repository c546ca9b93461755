"""Runtimes that a deployed network can run on. Each turns a module and its input into a function without arguments.

eager        PyTorch without a compiler, in inference mode
compile      torch.compile
onnxruntime  exported to ONNX, run by ONNX Runtime          pip install 'igc-nas[onnx]'; on a GPU onnxruntime-gpu
tensorrt     exported to ONNX, run by TensorRT in ONNX Runtime, GPU only; not for a search: it builds engines
openvino     exported to ONNX, run by OpenVINO, CPU only     pip install 'igc-nas[openvino]'
native       generated C, compiled by `$CC` or cc, one thread of a CPU; the factored network only; the default there
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Branched, Layer
from igc_nas.arch.plan import BlockPlan, Plan, plan
from igc_nas.arch.shapes import layers_shape
from igc_nas.arch.units import end_layers, stage_layers
from igc_nas.errors import IgcNasError, UsageError
from igc_nas.evaluation.gpu_session import Provider, gpu_session, require_provider
from igc_nas.io.text import printable
from igc_nas.nn.c_compiler import NO_COMPILER, compiler, load
from igc_nas.nn.codegen.program import UnsupportedLayerError, program
from igc_nas.nn.codegen.target import PORTABLE, tuned_here
from igc_nas.nn.device import Device, Kind
from igc_nas.nn.network import Network
from igc_nas.space.search_space import SearchSpace
from igc_nas.study.spec import WITH_OWN_STREAM, DtypeName, RuntimeName, StudySpec

Runner = Callable[[], Tensor]
"""Runs a network once on a fixed input and returns its output."""
PACKAGES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxscript"),
    "tensorrt": ("onnxruntime", "onnxscript"),
    "openvino": ("openvino", "onnxscript"),
}
EXTRA = {"onnxruntime": "onnx", "tensorrt": "onnx", "openvino": "openvino"}
MOST_COMPILED = 1_000_000
"""Networks that torch.compile may compile in one process; by default it is eight for one `forward`."""
CPU_ONLY = ("openvino", "native")
CONTIGUOUS = (*WITH_OWN_STREAM, *CPU_ONLY)
"""Runtimes that take images in NCHW, whatever the layout of the others is."""


def runner_for(runtime: RuntimeName, module: nn.Module, x: Tensor, threads: int) -> Runner:
    """A function that runs `module` once on `x` (images x 3 x height x width) and returns its output.

    Raises `UsageError` where a package is missing or the runtime does not support x's device, `IgcNasError` where the
    runtime cannot compile or export the network.
    """
    check_device(runtime, x.device.type)
    return RUNTIMES[runtime](module.eval(), x, threads)


def require(runtime: RuntimeName, who: str | None = None) -> None:
    """Raise `UsageError` with the pip command if a package of a runtime is missing.

    The message names `who` needs the package; by default the runtime. `native` needs a C compiler instead.
    """
    if runtime == "native" and compiler() is None:
        raise UsageError(f"{who or 'the runtime native'} needs a C compiler", NO_COMPILER)
    for package in PACKAGES.get(runtime, ()):
        try:
            importlib.import_module(package)
        except ImportError:
            raise UsageError(
                f"{who or f'the runtime {runtime}'} needs the package {package}",
                f"pip install 'igc-nas[{EXTRA[runtime]}]'",
            ) from None


def check_device(runtime: RuntimeName, kind: str) -> None:
    """Raise `UsageError` for a runtime that does not run on a kind of device."""
    if runtime in CPU_ONLY and kind != "cpu":
        raise UsageError(
            f"the runtime {runtime} is measured on a CPU only", "add --device cpu, or use eager or compile"
        )
    if runtime == "tensorrt" and kind == "cpu":
        raise UsageError("the runtime tensorrt is measured on an NVIDIA GPU only", "use --runtime onnxruntime")


def check_dtype(dtype: DtypeName, runtime: RuntimeName, kind: Kind) -> None:
    """Raise `UsageError` for latencies in 16 bits on a CPU, or by a runtime that has no kernels for them."""
    if dtype == "float32":
        return
    if kind == "cpu":
        raise UsageError(f"latencies in {dtype} are measured on a GPU only", "leave out --latency-dtype")
    if dtype == "bfloat16" and runtime in WITH_OWN_STREAM:  # ONNX Runtime has no convolution in it
        raise UsageError(f"the runtime {runtime} measures in float32 and float16", "use float16, or eager or compile")
    if runtime not in ("eager", "compile", *WITH_OWN_STREAM):
        raise UsageError(f"the runtime {runtime} measures in float32 only", "use eager or compile")


def default_runtime(
    device: Device, *, threads: int = 1, forms: str | None = None, plans: Iterable[Plan] = ()
) -> tuple[RuntimeName, str]:
    """(the runtime of latencies where none is asked for, why that is not generated C although the device is a CPU).

    It is generated C where a C compiler is there, one thread is measured, multiplied-out `forms` are not asked for, and
    each layer of the `plans` has code; else eager PyTorch.
    """
    if device.deployment_runtime != "native":
        return "eager", f"there is no C compiler for native C: {NO_COMPILER}" if device.kind == "cpu" else ""
    if threads != 1:
        return "eager", "native C uses one thread"
    if forms not in (None, "factored"):
        return "eager", "native C runs factored networks only"
    try:
        for each in plans:
            program(each, PORTABLE.lanes)
    except UnsupportedLayerError as error:
        return "eager", error.message
    return "native", ""


def check_runtime(spec: StudySpec, enqueued: Iterable[ArchConfig] = ()) -> None:
    """Raise `UsageError` or `UnsupportedLayerError` where latencies of a study cannot be measured on this machine.

    `enqueued` are architectures outside of the study's space.
    """
    runtime = spec.latency.runtime
    if spec.latency.remote or runtime == "eager":
        return
    if runtime == "tensorrt":
        raise UsageError(
            "a search does not measure by the runtime tensorrt: it builds an engine for each form of each network",
            "search with --latency-runtime eager, then measure picks: igc-nas measure STUDY:N --runtime tensorrt",
        )
    try:
        require(runtime, f"study {spec.name}, whose latencies are of the runtime {runtime},")
        if runtime == "native":
            load("int igc_nas_probe;\n")
    except IgcNasError as error:
        way_out = "for latencies in eager PyTorch, start another study: --study NAME --latency-runtime eager"
        raise UsageError(error.message, f"{error.hint}; {way_out}") from None
    if runtime == "native":
        for each in (*unit_plans(spec.search_space), *map(plan, enqueued)):
            program(each, PORTABLE.lanes)


def unit_plans(space: SearchSpace) -> Iterator[Plan]:
    """For each kind of block that a space's stages may have, in layers, and each head, one small network with them."""
    seen: set[object] = set()
    for stage in space.stages:
        for option in stage.options:
            first, rest = stage_layers(option, option.width)
            for head in space.heads:
                kinds = (_kinds((*first, *rest)), head)
                if kinds not in seen:
                    seen.add(kinds)
                    at = f"stage{stage.number}.block"
                    blocks = (BlockPlan(f"{at}1", first), BlockPlan(f"{at}2", rest))
                    shape = layers_shape((*first, *rest), (option.width, 8, 8))
                    ends = end_layers(shape, head, space.classes)
                    yield Plan((option.width, 8, 8), space.classes, (*blocks, *(BlockPlan(*end) for end in ends)))


def _kinds(layers: Iterable[Layer]) -> tuple[object, ...]:
    return tuple(
        (type(layer), *map(_kinds, layer.branches))
        if isinstance(layer, Branched)
        else (type(layer), getattr(layer, "kind", None))
        for layer in layers
    )


def onnx_bytes(module: nn.Module, x: Tensor) -> bytes:
    """The network as a serialised ONNX model for inputs of x's shape; otherwise like `onnx_model`."""
    model: bytes = onnx_model(module, x).SerializeToString()
    return model


def onnx_model(module: nn.Module, x: Tensor, any_batch: bool = False, opset: int | None = None) -> Any:
    """The network as an ONNX `ModelProto` with input `image` and output `logits`, by torch's dynamo exporter.

    The batch size is x's, or free with `any_batch`; `opset` is the version of ONNX's operators, None: the exporter's.
    Call `require` first: the packages are assumed to be installed. Raises `IgcNasError` where the exporter fails.
    """
    batch: dict[str, Any] = {"dynamic_shapes": free_batch()} if any_batch else {}
    with quiet_exporter("ONNX"):
        program = torch.onnx.export(
            contiguous(module),
            (x,),
            dynamo=True,
            opset_version=opset,
            external_data=False,
            verbose=False,
            input_names=["image"],
            output_names=["logits"],
            **batch,
        )
    assert program is not None
    return program.model_proto


def free_batch() -> tuple[dict[int, Any]]:
    """The shapes of an export in which the first dimension of the one input is free."""
    return ({0: torch.export.Dim("batch")},)  # loads SymPy, which takes a worker half a second


def contiguous(module: nn.Module) -> nn.Module:
    """A copy in NCHW: the exporters surround every interleave of channels-last weights with transpositions."""
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


@contextlib.contextmanager
def quiet_exporter(what: str) -> Iterator[None]:
    """Silence the warnings and logs of torch's exporters; turn an error of theirs into a one-line `IgcNasError`."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise IgcNasError(f"torch could not export the network to {what}: {_first_line(error)}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0], lines=False)[:200]


def _eager(module: nn.Module, x: Tensor, threads: int) -> Runner:
    @torch.inference_mode()
    def run() -> Tensor:
        result: Tensor = module(x)
        return result

    return run


def _compiled(module: nn.Module, x: Tensor, threads: int) -> Runner:
    # All networks share one code object (`Deployed.forward`). Above the limit torch would silently run eagerly.
    limits: Any = torch._dynamo.config
    limits.recompile_limit = limits.accumulated_recompile_limit = MOST_COMPILED
    limits.fail_on_recompile_limit_hit = True
    compiled: Any = torch.compile(module, dynamic=False)
    run = _eager(compiled, x, threads)
    try:
        run()
    except Exception as error:
        raise IgcNasError(
            f"torch.compile failed: {_first_line(error)}",
            "it needs a C++ compiler; --latency-runtime eager needs none",
        ) from error
    return run


def _onnxruntime(module: nn.Module, x: Tensor, threads: int) -> Runner:
    require("onnxruntime")
    if x.is_cuda:
        return _on_gpu(module, x, "CUDAExecutionProvider")
    x = x.contiguous()
    run = onnx_session(onnx_bytes(module, x), threads)
    return lambda: run(x)


def _tensorrt(module: nn.Module, x: Tensor, threads: int) -> Runner:
    require("tensorrt")
    return _on_gpu(module, x, "TensorrtExecutionProvider")


def _on_gpu(module: nn.Module, x: Tensor, provider: Provider) -> Runner:
    require_provider(provider)
    x = x.contiguous()
    return gpu_session(onnx_bytes(copy.deepcopy(module).cpu(), x.cpu()), x, provider)


def onnx_session(model: bytes, threads: int) -> Callable[[Tensor], Tensor]:
    """A function that runs an ONNX model in ONNX Runtime on the CPU: images to logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _openvino(module: nn.Module, x: Tensor, threads: int) -> Runner:
    require("openvino")
    model = onnx_bytes(module, x.contiguous())
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    feed = x.contiguous().numpy()
    return lambda: torch.from_numpy(request.infer([feed])[0])


def _native(module: nn.Module, x: Tensor, threads: int) -> Runner:
    require("native")
    if not isinstance(module, Network):
        raise UsageError("the runtime native runs factored networks only")
    if threads != 1:
        raise UsageError(f"the runtime native uses one thread, not {threads}", "--threads 1")
    run = tuned_here(module).bound(x.contiguous().numpy())
    return lambda: torch.from_numpy(run())


RUNTIMES: dict[RuntimeName, Callable[[nn.Module, Tensor, int], Runner]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "openvino": _openvino,
    "native": _native,
}
