"""Shapes through a plan: (channels, height, width) of one image, (features,) behind the pooling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from igc_nas.arch.layers import (
    AvgPool,
    Branched,
    Conv,
    DualPath,
    Flatten,
    Layer,
    Linear,
    MaxPool,
    Pool,
    Residual,
    Select,
    Split,
    Subsample,
)

Shape = tuple[int, ...]


def layers_shape(layers: Iterable[Layer], shape: Shape) -> Shape:
    """The output shape of layers in a row behind the input `shape`."""
    for layer in layers:
        if isinstance(layer, Branched):
            shape = joined(layer, list(map(layers_shape, layer.branches, entries(layer, shape))))
        else:
            shape = layer_shape(layer, shape)
    return shape


def layer_shape(layer: Layer, shape: Shape) -> Shape:
    """The output shape of one layer without branches behind the input `shape`."""
    match layer:
        case Conv():
            kernel, stride, pad = layer.kernel, layer.stride, layer.pad
            return layer.out_channels, _side(shape[1], kernel, stride, pad), _side(shape[2], kernel, stride, pad)
        case MaxPool(kernel, stride, padding) | AvgPool(kernel, stride, padding):
            return shape[0], _side(shape[1], kernel, stride, padding), _side(shape[2], kernel, stride, padding)
        case Subsample(stride, before, after):
            return shape[0] + before + after, -(-shape[1] // stride), -(-shape[2] // stride)
        case Select(_, _, out):
            return (out, *shape[1:])
        case Pool():
            return shape[:1]
        case Flatten():
            return (prod(shape),)
        case Linear(_, _, out):
            return (out,)
        case _:
            return shape


def _side(pixels: int, kernel: int, stride: int, padding: int) -> int:
    return (pixels + 2 * padding - kernel) // stride + 1


def entries(layer: Branched, shape: Shape) -> tuple[Shape, ...]:
    """The input shapes of a layer's branches, for the layer's input `shape`."""
    if isinstance(layer, Split):
        return (layer.channels, *shape[1:]), (shape[0] - layer.channels, *shape[1:])
    return (shape,) * len(layer.branches)


def joined(layer: Branched, outputs: Sequence[Shape]) -> Shape:
    """The output shape of a layer whose branches put out `outputs`."""
    if isinstance(layer, Residual):
        return outputs[0]
    channels = sum(shape[0] for shape in outputs) - (layer.channels if isinstance(layer, DualPath) else 0)
    return channels, *outputs[0][1:]
