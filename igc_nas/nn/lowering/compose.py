"""Multiplying out: the weights of a segment's convolutions and interleaves as the weight of one convolution.

Weights are of shape (out channels, taps, in channels), taps = kernel * kernel, the memory order of a channels-last
weight. All steps are differentiable: gradients flow back into the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from igc_nas.arch.layers import Conv, Interleave
from igc_nas.nn.lowering.chain import Segment


def compose(segment: Segment, weights: Sequence[Tensor]) -> Float[Tensor, "out in_per_group k k"]:
    """The weight of the convolution that computes a segment, from the weights of the segment's convolutions.

    Its dtype and memory format are those of `weights`; differentiable.
    """
    first, *_ = segment.convs
    factors = iter(weights)
    leading: list[Interleave] = []
    product: Tensor | None = None
    kernel = 1
    for step in segment.steps:
        if isinstance(step, Interleave):
            if product is None:
                leading.append(step)
            else:
                product = rows_interleaved(product, step)
        elif isinstance(step, Conv):
            kernel = max(kernel, step.kernel)
            factor = next(factors)
            product = _embedded(factor, step, segment.groups) if product is None else _applied(factor, step, product)
    assert product is not None
    for step in reversed(leading):
        product = _columns_interleaved(product, step)
    out, per_group = segment.as_conv.out_channels, first.in_channels // segment.groups
    return product.view(out, kernel, kernel, per_group).permute(0, 3, 1, 2)


def rows_interleaved(rows: Tensor, step: Interleave) -> Tensor:
    """The first dimension of a tensor, permuted as an interleave permutes channels."""
    rest = rows.shape[1:]
    return rows.reshape(step.groups, step.channels // step.groups, *rest).transpose(0, 1).reshape(-1, *rest)


def rows_restored(rows: Tensor, step: Interleave) -> Tensor:
    """The inverse of `rows_interleaved`."""
    rest = rows.shape[1:]
    return rows.reshape(step.channels // step.groups, step.groups, *rest).transpose(0, 1).reshape(-1, *rest)


def _columns_interleaved(product: Tensor, step: Interleave) -> Tensor:
    """The weight of "interleave, then `product`": the columns in the channel order before the interleave."""
    out, taps, channels = product.shape
    columns = product.reshape(out, taps, channels // step.groups, step.groups)
    return columns.transpose(2, 3).reshape(out, taps, channels)


def _embedded(weight: Tensor, conv: Conv, groups: int) -> Tensor:
    """A grouped weight as one in fewer groups: block-diagonal within each."""
    out, per_group = conv.out_channels, conv.in_channels // conv.groups
    taps = weight.permute(0, 2, 3, 1).reshape(out, -1, per_group)
    if groups == conv.groups:
        return taps
    blocks = taps.reshape(groups, conv.groups // groups, out // conv.groups, taps.shape[1], per_group)
    wide: Tensor = _BlockDiagonal.apply(blocks)  # type: ignore[no-untyped-call]
    return wide.view(out, taps.shape[1], conv.in_channels // groups)


def _applied(weight: Tensor, conv: Conv, product: Tensor) -> Tensor:
    """The weight of "`product`, then a grouped convolution"; at most one of the two is larger than 1x1."""
    g, out, per_group = conv.groups, conv.out_channels, conv.in_channels // conv.groups
    if conv.kernel == 1:
        _, taps, columns = product.shape
        mixed = torch.bmm(weight.reshape(g, out // g, per_group), product.reshape(g, per_group, taps * columns))
        return mixed.view(out, taps, columns)
    taps = conv.kernel**2
    rows = weight.permute(0, 2, 3, 1).reshape(g, out // g * taps, per_group)
    return torch.bmm(rows, product.reshape(g, per_group, -1)).view(out, taps, -1)


class _BlockDiagonal(torch.autograd.Function):
    """(g, blocks, out, taps, in) -> (g, blocks, out, taps, blocks, in), zero where the two block indices differ.

    A function of its own, because its gradient needs nothing but the diagonal.
    """

    @staticmethod
    def forward(ctx: Any, blocks: Tensor) -> Tensor:
        g, count, out, taps, per_group = blocks.shape
        wide = blocks.new_zeros(g, count, out, taps, count, per_group)
        wide.diagonal(0, 1, 4).copy_(blocks.movedim(1, -1))
        return wide

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.diagonal(0, 1, 4).movedim(-1, 1)
