"""Batch normalisation and depthwise convolution in C (`kernels/`), compiled at first use for the machine's processor.

PyTorch's CPU kernels make six passes over the image for BN and its activation, where four are enough, and in bfloat16
spend most of their time on conversions: nearly half of a training step. Without a C compiler PyTorch's kernels are
used; a study records which of the two trained a network. The kernels are called by ctypes with the tensors' addresses.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from igc_nas.arch.layers import Activation, Conv
from igc_nas.nn.c_compiler import CompilerError, kernels_here, load

KERNELS = Path(__file__).parent / "kernels"
SOURCES = ("vectors.h", "norm.c", "depthwise.c")
FLAGS = ("-O3", "-ffp-contract=fast", "-w")
COMPILE_S = 60.0
WIDTH = 16
"""Channels in a vector; as WIDTH in kernels/vectors.h."""
DOUBLES: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
ACTS: dict[Activation | None, int] = {None: 0, "relu": 1, "relu6": 2}


def available() -> bool:
    """Whether the kernels can be compiled and loaded on this machine."""
    return all(library(dtype) is not None for dtype in (torch.float32, torch.bfloat16))


def fits(x: Tensor) -> bool:
    """Whether the kernels can read an image: on the CPU, channels-last, float32 or bfloat16, and its pixels fill rows
    of whole vectors (`_period`)."""
    return (
        x.device.type == "cpu"
        and x.numel() > 0
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() // x.shape[1] % _period(x.shape[1]) == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def fits_depthwise(conv: Conv, dtype: torch.dtype) -> bool:
    """Whether the kernels can compute a convolution: depthwise, 3x3 or 5x5, channels in whole vectors."""
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel in (3, 5)
        and conv.in_channels % WIDTH == 0
        and dtype in (torch.float32, torch.bfloat16)
    )


def depthwise(x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """The depthwise convolution of a channels-last image. Only if `available()` and `fits_depthwise(conv, x.dtype)`."""
    n, channels, height, width = x.shape
    size = -(-height // conv.stride), -(-width // conv.stride)
    return _depthwise(x, _taps(weight), conv.kernel, conv.stride, 1, (n, channels, *size))


def depthwise_input(grad: Tensor, x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """The gradient of the input: `grad` with its pixels `stride` apart, convolved with the rotated weight."""
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


class BatchStats(NamedTuple):
    """The parameters, running statistics and constants of a batch normalisation. Tensors are of shape (channels,).

    `mean` and `var` are the running statistics; normalising a batch updates them in place, by `momentum`.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    momentum: float
    eps: float


def norm_act(x: Tensor, stats: BatchStats, act: Activation | None) -> Tensor:
    """Batch normalisation by the batch's own statistics, then the activation.

    The tensors of `stats` are float32 and contiguous. Only if `available()` and `fits(x)`.
    """
    y: Tensor = _NormAct.apply(x, act, *stats)  # type: ignore[no-untyped-call]
    return y


class _NormAct(torch.autograd.Function):
    """`stats` comes as separate arguments: autograd sees no tensor inside a tuple."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: Activation | None, *stats: Any) -> Tensor:
        weight, bias, mean, var, momentum, eps = BatchStats(*stats)
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
        return dx, None, dweight, dbias, None, None, None, None


def _image(x: Tensor) -> tuple[int, int, int, int]:
    """Address, pixels, channels, period."""
    channels = x.shape[1]
    return x.data_ptr(), x.numel() // channels, channels, _period(channels)


def _floats(count: int) -> Tensor:
    """Uninitialised float32 on the CPU, whatever torch's default dtype and device are."""
    return torch.empty(count, dtype=torch.float32, device="cpu")


def _period(channels: int) -> int:
    """The least number of pixels whose channels fill whole vectors; the kernels read them as one row."""
    return WIDTH // math.gcd(channels, WIDTH)


def _kernels(dtype: torch.dtype) -> ctypes.CDLL:
    kernels = library(dtype)
    assert kernels is not None
    return kernels


def _checked(failed: Any, function: Any, arguments: Any) -> Any:
    if failed:
        raise MemoryError("no memory for the zero-padded copy of an image")


@cache
def library(dtype: torch.dtype, timeout_s: float = COMPILE_S) -> ctypes.CDLL | None:
    """The kernels for float32 or bfloat16, loaded once per process.

    None if they cannot be compiled within `timeout_s` seconds, or cannot be loaded.
    """
    texts = [(KERNELS / name).read_text().replace('#include "vectors.h"\n', "") for name in SOURCES]
    text = "\n".join([*(["#define BF16"] if dtype == torch.bfloat16 else []), *texts])
    try:
        return _declared(load(text, kernels_here(), FLAGS, timeout_s=timeout_s, leave_failed=False))
    except (CompilerError, AttributeError):  # AttributeError: the library lacks one of the functions
        return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """`library` with the signatures of its functions, so that ctypes checks every argument."""
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
