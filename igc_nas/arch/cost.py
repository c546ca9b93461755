"""The cost of an architecture in exact integers: one sum over its plan, no network is built.

`Cost` says what counts. SE's linear layers do; BN, activations, pools, biases and additions are no MACs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import (
    Act,
    Branched,
    Concat,
    Conv,
    DualPath,
    Interleave,
    Layer,
    Linear,
    Norm,
    PRelu,
    Residual,
    Split,
    SqueezeExcite,
)
from igc_nas.arch.plan import Plan, plan
from igc_nas.arch.shapes import Shape, entries, joined, layer_shape, layers_shape
from igc_nas.errors import ConfigError, UsageError


@dataclass(frozen=True, slots=True)
class Cost:
    """Exact counts, as the papers count.

    `params`: weights and biases of convolutions and linear layers, BN's gamma and beta, slopes of PReLU. `macs`:
    multiply-adds of convolutions and linear layers for one image, `flops` twice that. `activations`: the numbers that
    these layers write for one image.
    """

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
    branch: str = ""
    """`shortcut`, `branch 2`, ...; "" on the main path."""


def cost_of(arch: ArchConfig) -> Cost:
    """The cost of an architecture for one image of its `input`: the sum over its plan."""
    return plan_cost(plan(arch))


def plan_cost(whole: Plan) -> Cost:
    """The sum over a plan. Blocks that repeat at the same shape are counted once and reused."""
    total, shape = _NOTHING, whole.input
    known: dict[tuple[int, Shape], tuple[_Counts, Shape]] = {}
    for block in whole.blocks:
        key = (id(block.layers), shape)
        if key not in known:
            known[key] = _counts(block.layers, shape)
        counts, shape = known[key][0], known[key][1]  # type: ignore[assignment]
        total = total[0] + counts[0], total[1] + counts[1], total[2] + counts[2]
    return Cost(*total)


def reads_square_colour(arch: ArchConfig) -> bool:
    """Whether a network's input is that of square colour images, as trainings have them."""
    return arch.input[0] == 3 and arch.input[1] == arch.input[2]


def check_input(arch: ArchConfig) -> None:
    """Raise `UsageError` for a network whose input is not that of square colour images."""
    if not reads_square_colour(arch):
        raise UsageError(
            f"the network's input is {' x '.join(map(str, arch.input))}; images are square, of 3 channels",
            "set input = [3, 32, 32] in its file",
        )


def check_side(arch: ArchConfig) -> None:
    """Raise `ConfigError` for images so small that the last stage has less than a pixel.

    A convolution of stride s makes ceil(H / s) of H pixels, which is never less than one: the strides are multiplied.
    """
    total = 1 << 12
    shape: Shape = (arch.input[0], total, total)
    for block in plan(arch).blocks:
        if block.name in ("head", "classifier"):
            break
        shape = layers_shape(block.layers, shape)
    total //= shape[1]
    side = min(arch.input[1:])
    if side < total:
        raise ConfigError(
            f"the strides multiply to {total}: of {side} x {side} pixels the last stage has less than one",
            f"use images of {total} pixels or more",
        )


def layers_cost(layers: Iterable[Layer], shape: Shape) -> tuple[Cost, Shape]:
    """(cost, output shape) of layers in a row behind the input `shape`."""
    counts, out = _counts(layers, shape)
    return Cost(*counts), out


def layer_cost(layer: Layer, shape: Shape) -> tuple[Cost, Shape]:
    """(cost, output shape) of one layer without branches behind the input `shape`."""
    counts, out = _layer_counts(layer, shape)
    return Cost(*counts), out


_Counts = tuple[int, int, int]
"""params, macs, activations: plain tuples while they are added up, which is most of a new architecture's time."""
_NOTHING: _Counts = (0, 0, 0)
_FREE = (Act, Interleave)  # a union in isinstance would be made anew for each layer


def _counts(layers: Iterable[Layer], shape: Shape) -> tuple[_Counts, Shape]:
    params = macs = activations = 0
    for layer in layers:
        if isinstance(layer, Norm):  # most layers are of these kinds
            params += 2 * layer.channels
            continue
        if isinstance(layer, _FREE):
            continue
        if isinstance(layer, Branched):
            outputs = []
            for branch, entry in zip(layer.branches, entries(layer, shape), strict=True):
                more, out = _counts(branch, entry) if branch else (_NOTHING, entry)
                outputs.append(out)
                params, macs, activations = params + more[0], macs + more[1], activations + more[2]
            shape = joined(layer, outputs)
            continue
        more, shape = _layer_counts(layer, shape)
        params, macs, activations = params + more[0], macs + more[1], activations + more[2]
    return (params, macs, activations), shape


def _layer_counts(layer: Layer, shape: Shape) -> tuple[_Counts, Shape]:
    out = layer_shape(layer, shape)
    match layer:
        case Conv():
            weights = layer.out_channels * (layer.in_channels // layer.groups) * layer.kernel**2
            written = layer.out_channels * out[1] * out[2]
            return (weights + (layer.out_channels if layer.bias else 0), weights * out[1] * out[2], written), out
        case Norm(_, channels):
            return (2 * channels, 0, 0), out
        case Linear(_, features, written, bias):
            return (features * written + (written if bias else 0), features * written, written), out
        case SqueezeExcite(_, channels, squeeze, _, bias):
            weights, written = 2 * channels * squeeze, channels + squeeze
            return (weights + (written if bias else 0), weights, written), out
        case PRelu(_, channels):
            return (channels, 0, 0), out
        case _:
            return _NOTHING, out


def rows(whole: Plan) -> Iterator[LayerCost]:
    """Every layer of a plan in order, layers with branches opened, a body before its shortcut.

    A `Concat`, `Split` or `DualPath` has a row of its own behind its branches, with the shape that they join to.
    """
    shape: Shape = whole.input
    for block in whole.blocks:
        shape = yield from _rows(block.name, block.layers, shape, "")


def _rows(block: str, layers: tuple[Layer, ...], shape: Shape, branch: str) -> Generator[LayerCost, None, Shape]:
    for layer in layers:
        if isinstance(layer, Branched):
            outputs = []
            for name, part, entry in zip(branch_names(layer), layer.branches, entries(layer, shape), strict=True):
                outputs.append((yield from _rows(block, part, entry, name or branch)))
            shape = joined(layer, outputs)
            if not isinstance(layer, Residual):
                yield LayerCost(block, layer, shape, Cost(), branch)
        else:
            cost, shape = layer_cost(layer, shape)
            yield LayerCost(block, layer, shape, cost, branch)
    return shape


def branch_names(layer: Branched) -> tuple[str, ...]:
    """What tables call a layer's branches; "" is the main path."""
    match layer:
        case Residual() | DualPath():
            return "", "shortcut"
        case Split():
            return "first part", "second part"
        case Concat(branches):
            return tuple(f"branch {number}" for number in range(1, len(branches) + 1))
