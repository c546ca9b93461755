"""The cost of an architecture in exact integers: one sum over its plan, no network is built.

Conventions, as the papers count:

- `params`: convolution weights, BN gamma and beta, classifier weight and bias;
- `macs`: multiply-adds of convolutions and the classifier for one image (BN, activations, bias and additions are not
  counted); `flops` = 2 * `macs`;
- `activations`: elements written by convolutions and the classifier for one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import Act, Conv, Interleave, Layer, Linear, Norm, Plan, Pool, Residual, plan
from igc_nas.errors import ConfigError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """Exact counts; `macs` and `activations` are for one image."""

    params: int = 0
    macs: int = 0
    activations: int = 0

    @property
    def flops(self) -> int:
        """2 * macs."""
        return 2 * self.macs

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs, self.activations + other.activations)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.params * times, self.macs * times, self.activations * times)

    def as_dict(self) -> dict[str, int]:
        """params, macs, flops and activations by name."""
        return {"params": self.params, "macs": self.macs, "flops": self.flops, "activations": self.activations}


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer of the plan with its output shape and its cost: a row of `igc-nas show`."""

    block: str
    layer: Layer
    shape: Shape
    cost: Cost
    in_shortcut: bool = False


def cost_of(arch: ArchConfig) -> Cost:
    """The cost of an architecture: the sum over its plan."""
    return plan_cost(plan(arch))


def plan_cost(whole: Plan) -> Cost:
    """The sum over a plan. Blocks that repeat at the same shape are counted once and reused."""
    total, shape = Cost(), whole.input
    known: dict[tuple[int, Shape], tuple[Cost, Shape]] = {}
    for block in whole.blocks:
        key = (id(block.layers), shape)
        if key not in known:
            known[key] = layers_cost(block.layers, shape)
        cost, shape = known[key][0], known[key][1]  # type: ignore[assignment]
        total += cost
    return total


def check_side(arch: ArchConfig) -> None:
    """Raise `ConfigError` for images so small that the last stage has less than a pixel.

    A convolution of stride s makes ceil(H / s) of H pixels, which is never less than one: the strides are multiplied.
    """
    total, shape = 1 << 12, (arch.input[0], 1 << 12, 1 << 12)
    for block in plan(arch).blocks:
        _, after = layers_cost(block.layers, shape)
        if len(after) != 3:
            break
        shape = (after[0], after[1], after[2])
    total //= shape[1]
    side = min(arch.input[1:])
    if side < total:
        raise ConfigError(
            f"the strides multiply to {total}: of {side} x {side} pixels the last stage has less than one",
            f"use images of {total} pixels or more",
        )


def layers_cost(layers: Iterable[Layer], shape: Shape) -> tuple[Cost, Shape]:
    """(cost, output shape) of layers in a row behind the input `shape`."""
    params = macs = activations = 0
    for layer in layers:
        if isinstance(layer, Residual):
            shortcut, _ = layers_cost(layer.shortcut, shape)
            cost, shape = layers_cost(layer.body, shape)
            cost += shortcut
        else:
            cost, shape = layer_cost(layer, shape)
        params += cost.params
        macs += cost.macs
        activations += cost.activations
    return Cost(params, macs, activations), shape


_FREE = Cost()


def layer_cost(layer: Layer, shape: Shape) -> tuple[Cost, Shape]:
    """(cost, output shape) of one layer, a `Residual` excepted, behind the input `shape`."""
    match layer:
        case Conv(_, c_in, c_out, kernel, stride, groups):
            _, height, width = shape
            height, width = -(-height // stride), -(-width // stride)
            weights = c_out * (c_in // groups) * kernel * kernel
            return Cost(weights, weights * height * width, c_out * height * width), (c_out, height, width)
        case Norm(_, channels):
            return Cost(params=2 * channels), shape
        case Linear(_, features, classes):
            return Cost(features * classes + classes, features * classes, classes), (classes,)
        case Pool():
            return _FREE, shape[:1]
        case Interleave() | Act():
            return _FREE, shape
        case Residual():
            raise AssertionError("layers_cost opens a residual block")


def rows(whole: Plan) -> Iterator[LayerCost]:
    """Every layer of a plan in order, residual blocks opened, body before shortcut."""
    shape: Shape = whole.input
    for block in whole.blocks:
        for row in _rows(block.name, block.layers, shape, False):
            yield row
            shape = shape if row.in_shortcut else row.shape


def _rows(block: str, layers: tuple[Layer, ...], shape: Shape, in_shortcut: bool) -> Iterator[LayerCost]:
    for layer in layers:
        if isinstance(layer, Residual):
            entry = shape
            for row in _rows(block, layer.body, entry, in_shortcut):
                yield row
                shape = row.shape
            yield from _rows(block, layer.shortcut, entry, True)
        else:
            cost, shape = layer_cost(layer, shape)
            yield LayerCost(block, layer, shape, cost, in_shortcut)
