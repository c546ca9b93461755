"""The kernels of norm.c, compiled in a moment by the machine's C compiler for its own processor, called by address.

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

from igc_nas.config import Activation

SOURCE = Path(__file__).with_name("norm.c")
FLAGS = ("-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
COMPILE_S = 60.0
WIDTH = 16
ACTS: dict[Activation | None, int] = {None: 0, "relu": 1, "relu6": 2}


def available() -> bool:
    """Whether the kernels can be had on this machine."""
    return all(_library(dtype) is not None for dtype in (torch.float32, torch.bfloat16))


def fits(x: Tensor) -> bool:
    """Whether the kernels take an image: on the CPU, channels-last, of a dtype that they know, pixels in whole rows."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() // x.shape[1] % _period(x.shape[1]) == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


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
        kernels = _library(x.dtype)
        assert kernels is not None
        wide = x.shape[1] * _period(x.shape[1])
        y, kept, work = torch.empty_like(x), torch.empty(4 * wide), torch.zeros(4 * wide, dtype=torch.float64)
        around = weight.data_ptr(), bias.data_ptr(), mean.data_ptr(), var.data_ptr()
        kernels.forward(*_image(x), *around, momentum, eps, ACTS[act], y.data_ptr(), kept.data_ptr(), work.data_ptr())
        ctx.save_for_backward(x, kept)
        ctx.act = act
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept = ctx.saved_tensors
        kernels = _library(x.dtype)
        assert kernels is not None
        grad = grad.contiguous(memory_format=torch.channels_last)
        wide = x.shape[1] * _period(x.shape[1])
        dx, work = torch.empty_like(x), torch.zeros(4 * wide, dtype=torch.float64)
        dweight, dbias = torch.empty(x.shape[1]), torch.empty(x.shape[1])
        results = dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr()
        kernels.backward(grad.data_ptr(), *_image(x), kept.data_ptr(), ACTS[ctx.act], *results, work.data_ptr())
        return dx, dweight, dbias, None, None, None, None, None


def _image(x: Tensor) -> tuple[int, int, int, int]:
    """Address, pixels, channels, period."""
    channels = x.shape[1]
    return x.data_ptr(), x.numel() // channels, channels, _period(channels)


def _period(channels: int) -> int:
    """How many pixels make a row that `WIDTH` divides."""
    return WIDTH // math.gcd(channels, WIDTH)


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for a dtype; None where they cannot be compiled or loaded."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        return None
    defines = ["-DBF16"] if dtype == torch.bfloat16 else []
    with tempfile.TemporaryDirectory(prefix="igc-nas-kernels-") as folder:
        target = Path(folder) / "norm.so"
        for processor in FOR_THIS_PROCESSOR:
            command = [*compiler, *FLAGS, *processor, *defines, "-o", str(target), str(SOURCE)]
            try:
                done = subprocess.run(command, capture_output=True, timeout=COMPILE_S, check=False)
                if done.returncode == 0:
                    return _declared(ctypes.CDLL(str(target)))
            except (OSError, subprocess.TimeoutExpired):
                continue
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with its signatures, so that every argument is checked."""
    at, count, number, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_double
    image = [at, count, count, count]
    signatures = {
        "forward": [*image, at, at, at, at, real, real, number, at, at, at],
        "backward": [at, *image, at, number, at, at, at, at],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library
