"""BN, its activation and the interleave behind it as Triton kernels (`kernels/norm_triton.py`), for trainings on a GPU.

PyTorch runs the three as kernels of their own: they are 59 to 65 % of the bytes that a training step moves. These
kernels read the image twice and write it once each way; an interleave only changes where a value is stored. A form
with them is used where whole captured steps were timed faster on the GPU (`network_tuner`). They have not been run on
a GPU: their results are checked in Triton's interpreter on a CPU, and that they compile, for sm_75, sm_80 and sm_90.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from igc_nas.arch.layers import Activation, Interleave
from igc_nas.io.text import one_line
from igc_nas.nn.lowering.compose import rows_interleaved, rows_restored
from igc_nas.nn.lowering.native import BatchStats
from igc_nas.nn.network import activate_

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_PIXELS = 2**31 - 2**23
"""Pixels are counted in 32 bits, elements in 64."""
TILE = 4096
"""Elements of one program's tile."""
MOST_CHANNELS = 128
"""Channels of one program's tile."""
MOST_TEXT = 300
"""Characters of an error of Triton, which may hold a whole kernel."""


class TritonError(RuntimeError):
    """Triton could not be imported, or could not compile or launch a kernel."""


def available() -> bool:
    """Whether Triton is installed."""
    spec = find_spec("triton")
    return spec is not None and spec.origin is not None  # a folder of that name has no origin


def fits(x: Tensor) -> bool:
    """Whether the kernels can read an image: on a GPU, channels-last, in `DTYPES`; on a CPU by Triton's interpreter."""
    return (
        x.dtype in DTYPES
        and 0 < x.numel() // x.shape[1] < MOST_PIXELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")
    )


class TritonNorm:
    """BN of `module`, the activation, then `behind`, interleaves that the convolution before it left undone.

    `order` are interleaves that stand behind BN in the plan and were moved before it (`parts.NormAct`): the last of
    `behind` if there are any, else part of the convolution's weights. Images that do not fit, and evaluation, run by
    PyTorch.
    """

    def __init__(
        self,
        module: nn.BatchNorm2d,
        act: Activation | None,
        order: tuple[Interleave, ...],
        behind: tuple[Interleave, ...],
    ) -> None:
        self.module, self.act = module, act
        ids = torch.arange(module.num_features)
        before = behind[: len(behind) - len(order)]
        moved = _interleaved(ids, behind)
        # The image's channel of each parameter, and of each channel of the output.
        of_parameters = _interleaved(ids, before) if behind else _restored(ids, order)
        device = module.weight.device
        self._moved = moved.to(device) if behind else None
        self._source = of_parameters.argsort().to(device, torch.int32)
        self._target = moved.argsort().to(device, torch.int32)

    def __call__(self, x: Tensor, momentum: float) -> Tensor:
        """The output; in training also updates the running statistics, by `momentum`."""
        module = self.module
        assert module.running_mean is not None
        assert module.running_var is not None
        stats = BatchStats(module.weight, module.bias, module.running_mean, module.running_var, momentum, module.eps)
        if module.training and fits(x):
            y: Tensor = _TritonNorm.apply(x, self._source, self._target, self.act, *stats)  # type: ignore[no-untyped-call]
            return y
        return self._by_torch(x, stats)

    def _by_torch(self, x: Tensor, stats: BatchStats) -> Tensor:
        weight, bias, mean, var = (rows.index_select(0, self._source) for rows in stats[:4])
        training = self.module.training
        y = activate_(F.batch_norm(x, mean, var, weight, bias, training, stats.momentum, stats.eps), self.act)
        if training:
            with torch.no_grad():
                stats.mean.index_copy_(0, self._source.long(), mean)
                stats.var.index_copy_(0, self._source.long(), var)
        if self._moved is None:
            return y
        return y.index_select(1, self._moved).contiguous(memory_format=torch.channels_last)


def _interleaved(rows: Tensor, steps: tuple[Interleave, ...]) -> Tensor:
    for step in steps:
        rows = rows_interleaved(rows, step)
    return rows


def _restored(rows: Tensor, steps: tuple[Interleave, ...]) -> Tensor:
    for step in reversed(steps):
        rows = rows_restored(rows, step)
    return rows


class _TritonNorm(torch.autograd.Function):
    """`stats` comes as separate arguments: autograd sees no tensor inside a tuple."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor, act: Activation | None, *stats: Any) -> Tensor:
        weight, bias, running_mean, running_var, momentum, eps = BatchStats(*stats)
        y = torch.empty_like(x)
        with _launching(x) as kernels:
            cut = _Cut(x, kernels.MOST_PARTS, kernels.ADDED_CHANNELS)
            sums, kept = cut.floats(cut.parts, 2), cut.floats(4)
            kernels.part_statistics[cut.part_grid](x, sums, *cut.sizes, cut.per_part, *cut.tile)
            kernels.batch_statistics[cut.adding_grid](
                sums, source, weight, bias, running_mean, running_var, momentum, eps, kept,
                *cut.sizes, cut.per_part, cut.parts, kernels.MOST_PARTS, kernels.ADDED_CHANNELS,
            )  # fmt: skip
            kernels.normalise[cut.grid](x, y, kept, target, *cut.sizes, act, *cut.tile)
        ctx.save_for_backward(x, kept, source, target)
        ctx.act = act
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, source, target = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        with _launching(x) as kernels:
            cut = _Cut(x, kernels.MOST_PARTS, kernels.ADDED_CHANNELS)
            sums, slopes, by_weight, by_bias = cut.floats(cut.parts, 2), cut.floats(2), cut.floats(), cut.floats()
            kernels.part_gradients[cut.part_grid](
                grad, x, kept, target, sums, *cut.sizes, cut.per_part, ctx.act, *cut.tile
            )
            kernels.batch_gradients[cut.adding_grid](
                sums, source, kept, by_weight, by_bias, slopes,
                *cut.sizes, cut.parts, kernels.MOST_PARTS, kernels.ADDED_CHANNELS,
            )  # fmt: skip
            kernels.input_gradient[cut.grid](grad, x, kept, slopes, target, dx, *cut.sizes, ctx.act, *cut.tile)
        return dx, None, None, None, by_weight, by_bias, None, None, None, None


class _Cut:
    """How an image is cut into tiles and parts, and the grids of the kernels."""

    def __init__(self, x: Tensor, most_parts: int, added_channels: int) -> None:
        channels = x.shape[1]
        pixels = x.numel() // channels
        width = min(MOST_CHANNELS, max(16, 1 << (channels - 1).bit_length()))
        height = TILE // width
        tiles = -(-pixels // height)
        self.sizes, self.tile = (pixels, channels), (height, width)
        self.per_part = -(-tiles // most_parts) * height
        self.parts = -(-pixels // self.per_part)
        across = -(-channels // width)
        self.grid, self.part_grid = (tiles, across), (self.parts, across)
        self.adding_grid = (-(-channels // added_channels),)
        self._empty = x.new_empty((0,), dtype=torch.float32)

    def floats(self, *shape: int) -> Tensor:
        """Uninitialised float32 of (*shape, channels)."""
        return self._empty.new_empty((*shape, self.sizes[1]))


@contextlib.contextmanager
def _launching(x: Tensor) -> Iterator[Any]:
    """The kernels, for launches on the image's device. Raises `TritonError` for what Triton raises, its import too."""
    try:
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            yield _kernels()
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # Triton has no common class: its compilers' errors, OSError, RuntimeError of a launch
        raise TritonError(f"{type(error).__name__}: {one_line(error, MOST_TEXT)}") from error


@cache
def _kernels() -> ModuleType:
    from igc_nas.nn.lowering.kernels import norm_triton

    return norm_triton
