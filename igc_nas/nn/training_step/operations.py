"""The operations of a training step as `kernels/step.c` reads them: ctypes structures, field by field those in C."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

Address, Int, Long, Double = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_double


class Area(ctypes.Structure):
    """Float32 scratch: pixel (y, x) of image n is at `at + n * image + y * row + x * pixel`, without its frame."""

    _fields_ = [("at", Address), ("image", Long), *((name, Int) for name in ("row", "pixel", "height", "width"))]


class View(ctypes.Structure):
    """A stored tensor as it is read: act(x * scale + offset); plain where scale is null."""

    _fields_ = [*((name, Address) for name in ("x", "scale", "offset", "mean")), ("act", Int)]


class LoadView(ctypes.Structure):
    """A view into scratch."""

    _fields_ = [("source", View), ("to", Area)]


class LoadGradient(ctypes.Structure):
    """The gradient of a convolution's output, from that behind its batch norm, into scratch."""

    _fields_ = [*((name, Address) for name in ("g", "x", "scale", "slope", "constant")), ("to", Area)]


class Product(ctypes.Structure):
    """A convolution, or the gradient of its input, from scratch to scratch."""

    _fields_ = [
        ("source", Area),
        ("to", Area),
        *((name, Address) for name in ("offsets", "targets", "weights")),
        *((name, Int) for name in ("tiles", "terms", "vectors", "pixels", "kind")),
        *((name, Int) for name in ("height", "width", "in_row", "in_pixel", "out_row", "out_pixel", "flat")),
    ]


class WeightGradient(ctypes.Structure):
    """The gradient of a convolution's weights, in the layout of its product's weights."""

    _fields_ = [
        ("of", Address),
        ("out", Area),
        ("gradient", Address),
        *((name, Int) for name in ("out_row", "out_pixel", "flat")),
    ]


class Permute(ctypes.Structure):
    """Scratch in another order of channels."""

    _fields_ = [("source", Area), ("to", Area), ("order", Address)]


class Store(ctypes.Structure):
    """Scratch as a tensor, with the sums for a batch norm."""

    _fields_ = [("source", Area), *((name, Address) for name in ("to", "shift", "sum", "square"))]


class StoreGradient(ctypes.Structure):
    """Scratch as the gradient of a view."""

    _fields_ = [
        ("source", Area),
        ("to", Address),
        ("of", View),
        ("sum", Address),
        ("product", Address),
        ("add", Int),
        ("last", Int),
    ]


class LoadSumGradient(ctypes.Structure):
    """The gradient behind the activation of a residual sum, into scratch."""

    _fields_ = [("g", Address), ("sum", Address), ("act", Int), ("to", Area)]


class LoadPoolGradient(ctypes.Structure):
    """The gradient of the means over pixels, spread over the pixels, into scratch."""

    _fields_ = [("pooled", Address), ("channel", Address), ("channels", Int), ("to", Area)]


class NormOp(ctypes.Structure):
    """A batch norm: its sums over the batch into scale and offset, and the same for its gradient."""

    _fields_ = [
        *((name, Address) for name in ("channel", "weight", "bias", "running_mean", "running_var")),
        *((name, Address) for name in ("shift", "mean", "inverse", "scale", "offset", "slope", "constant")),
        *((name, Address) for name in ("sum", "square", "grad_sum", "grad_product", "grad_weight", "grad_bias")),
        ("momentum", Double),
        ("eps", Double),
        ("pixels", Long),
        ("depth", Int),
        ("training", Int),
    ]


class SumViews(ctypes.Structure):
    """act(a + b) as a tensor."""

    _fields_ = [("a", View), ("b", View), ("to", Address), ("image", Long), ("depth", Int), ("act", Int)]


class Pool(ctypes.Structure):
    """The means of a view over its pixels, in the logical order of channels."""

    _fields_ = [
        ("source", View),
        ("pooled", Address),
        ("channel", Address),
        ("channels", Int),
        ("depth", Int),
        ("pixels", Long),
    ]


class Pack(ctypes.Structure):
    """A weight into the layout of a product."""

    _fields_ = [*((name, Address) for name in ("source", "to", "index")), ("count", Long)]


class PackPairs(Pack):
    """The same, two places for each entry, as a pair of bfloat16."""


class Pair(ctypes.Structure):
    """Scratch as pairs of bfloat16: each float and the one `step` floats behind it."""

    _fields_ = [("source", Address), ("to", Address), ("floats", Long), ("step", Long)]


class ChannelPairs(ctypes.Structure):
    """Scratch without a frame as pairs of neighbouring channels, in half the place."""

    _fields_ = [("source", Address), ("to", Address), ("floats", Long)]


class Unpack(ctypes.Structure):
    """A gradient in the layout of a product into that of its weight."""

    _fields_ = [*((name, Address) for name in ("source", "to", "index")), ("count", Long)]


class Zero(ctypes.Structure):
    """Memory set to zero."""

    _fields_ = [("at", Address), ("bytes", Long)]


class Blocks(ctypes.Structure):
    """Operations done for `at_a_time` images, then for the next ones."""

    _fields_ = [("operations", Address), ("count", Int), ("at_a_time", Int)]


class Operation(ctypes.Structure):
    """One operation: what kind, and where its structure is."""

    _fields_ = [("kind", Int), ("what", Address)]


class NormGradient(NormOp):
    """The same structure as `NormOp`, by the kind that says so."""


KINDS: tuple[type[ctypes.Structure], ...] = (
    LoadView, LoadGradient, Product, WeightGradient, Permute, Store, StoreGradient, LoadSumGradient,
    LoadPoolGradient, NormOp, NormGradient, SumViews, Pool, Pack, Unpack, Zero, Blocks, Pair, PackPairs, ChannelPairs,
)  # fmt: skip
"""In the order of the enum in C."""


class Operations:
    """A list of operations as an array in C. It keeps alive what they refer to."""

    def __init__(self) -> None:
        self._items: list[ctypes.Structure] = []
        self._array: Any = None

    def add(self, operation: ctypes.Structure) -> None:
        """Append an operation."""
        self._items.append(operation)
        self._array = None

    @property
    def array(self) -> Any:
        """The array; its address and length are those that C is given."""
        if self._array is None:
            entries = [Operation(KINDS.index(type(item)), ctypes.addressof(item)) for item in self._items]
            self._array = (Operation * len(entries))(*entries)
        return self._array

    def __len__(self) -> int:
        return len(self._items)


def blocks(operations: Sequence[ctypes.Structure], at_a_time: int) -> tuple[Blocks, Operations]:
    """Operations for a few images at a time, and the list that must be kept as long as they are used."""
    listed = Operations()
    for operation in operations:
        listed.add(operation)
    return Blocks(ctypes.addressof(listed.array), len(listed), at_a_time), listed
