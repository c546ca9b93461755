"""ONNX models on a GPU in ONNX Runtime, by its CUDA provider or by TensorRT.

TensorRT builds an engine for each model, which takes from ten seconds to a minute. Engines are kept in the user's cache
folder under the hash of the model, the GPU and the versions: ONNX Runtime's own name of an engine does not tell the
weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from igc_nas.errors import IgcNasError, UsageError
from igc_nas.io.files import cache_dir
from igc_nas.io.text import printable
from igc_nas.nn.c_compiler import why_not_kept

Provider = Literal["CUDAExecutionProvider", "TensorrtExecutionProvider"]
LIBRARIES: dict[Provider, tuple[str, str, str]] = {
    "CUDAExecutionProvider": (
        "the GPU",
        "pip uninstall onnxruntime; pip install onnxruntime-gpu, or measure with --runtime eager",
        "install the build of onnxruntime-gpu for this CUDA and cuDNN",
    ),
    "TensorrtExecutionProvider": (
        "TensorRT",
        "pip uninstall onnxruntime; pip install onnxruntime-gpu tensorrt, or measure with --runtime eager",
        "install the TensorRT that this onnxruntime-gpu was built for, its folder of libraries on LD_LIBRARY_PATH",
    ),
}
"""What a provider runs on; what to do where this build has not the provider, and where its libraries are missing."""


def require_provider(provider: Provider) -> None:
    """Raise `UsageError` where the installed ONNX Runtime is built without a provider."""
    import onnxruntime

    if provider not in (there := onnxruntime.get_available_providers()):
        what = "runs on no NVIDIA GPU" if provider == "CUDAExecutionProvider" else "is built without TensorRT"
        raise UsageError(f"this ONNX Runtime {what}; it has {', '.join(there)}", LIBRARIES[provider][1])


def gpu_session(model: bytes, x: Tensor, provider: Provider) -> Callable[[], Tensor]:
    """A function that runs a model on an image of the GPU, in its dtype: it copies nothing, and waits for its end.

    It keeps the image and the logits, of which the binding has addresses only. Raises `IgcNasError` where ONNX Runtime
    leaves the model, or a part of it, to another provider.
    """
    import onnxruntime

    index = x.device.index or 0
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    settings: dict[str, Any] = {"device_id": index}
    if provider == "TensorrtExecutionProvider":
        settings |= _tensorrt_settings(model, x)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    else:
        settings["cudnn_conv_algo_search"] = "EXHAUSTIVE"
    what, _, way_out = LIBRARIES[provider]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[(provider, settings)])
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise IgcNasError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the network on {what}: "
            f"{printable(lines[0], lines=False)[:200]}",
            way_out,
        ) from error
    if provider not in session.get_providers():
        raise IgcNasError(f"ONNX Runtime {onnxruntime.__version__} does not use {what}", way_out)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    y, dtype = torch.empty(tuple(logits.shape), dtype=x.dtype, device=x.device), str(x.dtype).removeprefix("torch.")
    binding = session.io_binding()
    binding.bind_input(image.name, "cuda", index, dtype, tuple(x.shape), x.data_ptr())
    binding.bind_output(logits.name, "cuda", index, dtype, tuple(y.shape), y.data_ptr())
    return partial(_run, session, binding, x, y)


def _run(session: Any, binding: Any, x: Tensor, y: Tensor) -> Tensor:
    """Run a session whose input x and output y are bound."""
    session.run_with_iobinding(binding)
    return y


def _tensorrt_settings(model: bytes, x: Tensor) -> dict[str, Any]:
    """In the model's dtype, float32 products in TF32. Engines are kept unless `why_engines_are_not_kept`.

    A model in float16 has float16 weights, which TensorRT refuses without kernels in float16.
    """
    import onnxruntime

    settings: dict[str, Any] = {"trt_fp16_enable": True} if x.dtype == torch.float16 else {}
    if why_engines_are_not_kept() is not None:
        return settings
    folder = engine_folder()
    made_for = onnxruntime.__version__, _tensorrt_version(), torch.cuda.get_device_name(x.device)
    kept = folder / hashlib.sha256(model + "\0".join(made_for).encode()).hexdigest()[:32]
    return settings | {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(kept),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }


def _tensorrt_version() -> str:
    """Of the package, `tensorrt` or that for one CUDA; "unknown" where TensorRT was installed in another way."""
    for package in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return "unknown"


def why_engines_are_not_kept() -> str | None:
    """Why `engine_folder` keeps no engines: others may write it, or nobody; None where it does."""
    return why_not_kept(engine_folder(), by_loader=False)


def engine_folder() -> Path:
    """Where TensorRT's engines are kept."""
    return cache_dir() / "tensorrt"
