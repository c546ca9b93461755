"""Kernels in C, compiled in a moment by the machine's C compiler for its own processor, called by address.

Torch's CPU kernels take BN and the activation in six passes over the image where four do, and in bfloat16 spend most of
their time on conversions: nearly half of a training step. Where there is no C compiler the torch kernels remain; what a
network was trained with is recorded.
"""

from __future__ import annotations

import ctypes
import math
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from igc_nas.arch.config import Activation
from igc_nas.arch.plan import Conv

SOURCES = ("norm.c", "depthwise.c")
FLAGS = ("-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
COMPILE_S = 60.0
WIDTH = 16
DOUBLES: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
ACTS: dict[Activation | None, int] = {None: 0, "relu": 1, "relu6": 2}


def available() -> bool:
    """Whether the kernels can be had on this machine."""
    return all(_library(dtype) is not None for dtype in (torch.float32, torch.bfloat16))


def fits(x: Tensor) -> bool:
    """Whether the kernels take an image: on the CPU, channels-last, of a dtype that they know, pixels in whole rows."""
    return (
        x.device.type == "cpu"
        and x.numel() > 0
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() // x.shape[1] % _period(x.shape[1]) == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def fits_depthwise(conv: Conv, dtype: torch.dtype) -> bool:
    """Whether the kernels take a convolution: depthwise, 3x3 or 5x5, whole vectors of channels."""
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel in (3, 5)
        and conv.in_channels % WIDTH == 0
        and dtype in (torch.float32, torch.bfloat16)
    )


def depthwise(x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """The convolution of a channels-last image; call it where `available` and `fits_depthwise`."""
    n, channels, height, width = x.shape
    size = -(-height // conv.stride), -(-width // conv.stride)
    return _depthwise(x, _taps(weight), conv.kernel, conv.stride, 1, (n, channels, *size))


def depthwise_input(grad: Tensor, x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """The gradient of the input: a convolution of the gradient, a stride apart, with the turned weight."""
    return _depthwise(grad, _taps(weight.flip(2, 3)), conv.kernel, 1, conv.stride, x.shape)


def depthwise_weight(grad: Tensor, x: Tensor, conv: Conv) -> Tensor:
    """The gradient of the weight, in float32."""
    n, channels, height, width = x.shape
    sums = torch.zeros(conv.kernel**2, channels, dtype=torch.float32, device="cpu")
    kernels = _kernels(x.dtype)
    kernels.depthwise_weights(
        x.data_ptr(), n, height, width, channels, conv.kernel, conv.stride, grad.data_ptr(), *grad.shape[2:],
        sums.data_ptr(),
    )  # fmt: skip
    return sums.view(conv.kernel, conv.kernel, channels, 1).permute(2, 3, 0, 1)


def _depthwise(
    images: Tensor, taps: Tensor, kernel: int, stride: int, spread: int, shape: tuple[int, ...] | torch.Size
) -> Tensor:
    n, channels, height, width = images.shape
    out = torch.empty(shape, dtype=images.dtype, device="cpu", memory_format=torch.channels_last)
    kernels = _kernels(images.dtype)
    kernels.depthwise(
        images.data_ptr(), n, height, width, channels, kernel, stride, spread, taps.data_ptr(), *out.shape[2:],
        out.data_ptr(),
    )  # fmt: skip
    return out


def _taps(weight: Tensor) -> Tensor:
    """A depthwise weight as (taps, channels) in float32."""
    return weight.permute(2, 3, 0, 1).float().reshape(-1, weight.shape[0]).contiguous()


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
    act: Activation | None,
) -> Tensor:
    """BN on the batch's statistics and the activation behind it; `mean` and `var`, the running ones, are updated.

    All but `x` are float32 and contiguous. Call it where `available` and `fits`.
    """
    y: Tensor = _Node.apply(x, weight, bias, mean, var, momentum, eps, act)  # type: ignore[no-untyped-call]
    return y


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        momentum: float,
        eps: float,
        act: Activation | None,
    ) -> Tensor:
        kernels = _kernels(x.dtype)
        wide = x.shape[1] * _period(x.shape[1])
        y, kept, work = torch.empty_like(x), _floats(4 * wide), torch.zeros(4 * wide, **DOUBLES)
        around = weight.data_ptr(), bias.data_ptr(), mean.data_ptr(), var.data_ptr()
        kernels.forward(*_image(x), *around, momentum, eps, ACTS[act], y.data_ptr(), kept.data_ptr(), work.data_ptr())
        ctx.save_for_backward(x, kept)
        ctx.act = act
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept = ctx.saved_tensors
        kernels = _kernels(x.dtype)
        grad = grad.contiguous(memory_format=torch.channels_last)
        wide = x.shape[1] * _period(x.shape[1])
        dx, work = torch.empty_like(x), torch.zeros(4 * wide, **DOUBLES)
        dweight, dbias = _floats(x.shape[1]), _floats(x.shape[1])
        results = dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr()
        kernels.backward(grad.data_ptr(), *_image(x), kept.data_ptr(), ACTS[ctx.act], *results, work.data_ptr())
        return dx, dweight, dbias, None, None, None, None, None


def _image(x: Tensor) -> tuple[int, int, int, int]:
    """Address, pixels, channels, period."""
    channels = x.shape[1]
    return x.data_ptr(), x.numel() // channels, channels, _period(channels)


def _floats(count: int) -> Tensor:
    """Memory for C, whatever torch's default dtype and device are."""
    return torch.empty(count, dtype=torch.float32, device="cpu")


def _period(channels: int) -> int:
    """How many pixels make a row that `WIDTH` divides."""
    return WIDTH // math.gcd(channels, WIDTH)


def _kernels(dtype: torch.dtype) -> ctypes.CDLL:
    kernels = _library(dtype)
    assert kernels is not None
    return kernels


def _checked(failed: Any, function: Any, arguments: Any) -> Any:
    if failed:
        raise MemoryError("no memory for the frame of an image")


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for a dtype; None where they cannot be compiled or loaded."""
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))
    except ValueError:
        return None
    if not compiler or shutil.which(compiler[0]) is None:
        return None
    sources = [str(Path(__file__).parent / "kernels" / name) for name in SOURCES]
    defines = ["-DBF16"] if dtype == torch.bfloat16 else []
    with tempfile.TemporaryDirectory(prefix="igc-nas-kernels-") as folder:
        target = Path(folder) / "kernels.so"
        for processor in FOR_THIS_PROCESSOR:
            command = [*compiler, *FLAGS, *processor, *defines, "-o", str(target), *sources]
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMPILE_S, check=False
                )
                if done.returncode == 0:
                    return _declared(ctypes.CDLL(str(target)))
            except (OSError, AttributeError):  # AttributeError: a library without our kernels
                continue
            except subprocess.TimeoutExpired:
                return None
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with its signatures, so that every argument is checked."""
    at, count, number, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_double
    image = [at, count, count, count]
    signatures = {
        "forward": [*image, at, at, at, at, real, real, number, at, at, at],
        "backward": [at, *image, at, number, at, at, at, at],
        "depthwise": [at, *[count] * 7, at, count, count, at],
        "depthwise_weights": [at, *[count] * 6, at, count, count, at],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    for function in (library.depthwise, library.depthwise_weights):
        function.restype, function.errcheck = number, _checked
    return library
