"""A plan as a program of row operations, each convolution with the channel order in which its lanes have equal work.

    along outputs    lanes are outputs of one group: each input is broadcast; any input order; the output is group-major
    along groups     lanes are groups: output o of every group adds weight * input i of the same lane; both lane-major

IGCV1's primary and secondary convolution take one each, and what one writes is what the other reads; so do IGCV2's
factors. A depthwise convolution takes any order and keeps it. Where the orders do not meet, a row is permuted: which
way to run each convolution is chosen by dynamic programming over the blocks with a count of vector instructions.

A convolution of kernel 1 and stride 1 reads the row that the one before it has just written, while that row is in
the first-level cache; what is read with a frame of zeros, or later, lies in a whole image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Literal

from igc_nas.arch.layers import Act, Conv, Interleave, Layer, Linear, Norm, Pool, Residual
from igc_nas.arch.plan import BlockPlan, Plan
from igc_nas.errors import IgcNasError
from igc_nas.nn.codegen.orders import Order, group_major, interleaved, lane_major

Way = Literal["outputs", "groups"]
PERMUTE_COST = 1.5
"""Vector instructions that permuting one float of a row costs about: it is loaded and stored as a scalar."""


@dataclass(frozen=True)
class Image:
    """A tensor of one image: `height` x `width` pixels of `depth` floats, within a frame of `frame` zero pixels."""

    height: int
    width: int
    depth: int
    frame: int = 0

    @property
    def stride(self) -> int:
        """Floats from one row to the next."""
        return (self.width + 2 * self.frame) * self.depth

    @property
    def floats(self) -> int:
        """Floats with the frame."""
        return (self.height + 2 * self.frame) * self.stride


@dataclass(frozen=True)
class ConvRow:
    """One output row of a convolution, with its epilogue: `act(conv(x) + bias [+ add])`.

    `name` and `norm` are names in the network's state_dict (`stage1.block1.primary`); `norm_order` has the logical
    channel that the batch norm knows each output position by.
    """

    name: str
    conv: Conv
    way: Way
    source: Order
    target: Order
    norm: str | None = None
    norm_order: Order = ()
    add: bool = False
    act: str | None = None
    bias: bool = False
    """A bias of its own: the classifier's."""


@dataclass(frozen=True)
class PermuteRow:
    """A row in another order."""

    source: Order
    target: Order


RowOp = ConvRow | PermuteRow


@dataclass(frozen=True)
class Segment:
    """Row operations in a pipeline: the first reads image `source`, the last writes image `target`.

    `add`: the image whose row the last convolution adds.
    """

    source: int
    target: int
    ops: tuple[RowOp, ...]
    add: int | None = None


@dataclass(frozen=True)
class PoolOp:
    """Global average: image `source` to the single pixel `target`."""

    source: int
    target: int


@dataclass(frozen=True)
class Program:
    """Images by number, and what is done in order. Image 0 is the input, the last one holds the logits."""

    lanes: int
    images: tuple[Image, ...]
    steps: tuple[Segment | PoolOp, ...]
    classes: int


class UnsupportedLayerError(IgcNasError):
    """Generated C has no code for a layer, or not where it stands."""


def program(plan: Plan, lanes: int) -> Program:
    """The program of a plan for vectors of `lanes` floats. Raises `UnsupportedLayerError` with block and layer."""
    for block in plan.blocks[:-1]:
        _check(block.layers, block.name)
    return _Builder(plan, lanes).built()


def _check(layers: tuple[Layer, ...], block: str) -> None:
    """Raise `UnsupportedLayerError` for a kind of layer, or a variety of it, that has no code."""
    for layer in layers:
        match layer:
            case Conv():
                has_code = layer.kernel % 2 == 1 and layer.pad == layer.kernel // 2 and not layer.bias
            case Act(kind):
                has_code = kind in ("relu", "relu6")
            case Residual():
                has_code = True
                _check(layer.body, block)
                _check(layer.shortcut, block)
            case _:
                has_code = isinstance(layer, Interleave | Norm)
        if not has_code:
            raise _unsupported(layer, block)


# Which way each convolution runs.


@dataclass(frozen=True)
class _Trace:
    """A block's layers walked in one choice of ways: what it costs per input pixel, and the order that it ends in."""

    cost: float
    order: Order


def _ways(conv: Conv) -> tuple[Way, ...]:
    size_in, size_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    if size_in == size_out == 1:
        return ("groups",)
    return ("outputs",) if conv.groups == 1 else ("outputs", "groups")


def merged(conv: Conv, lanes: int) -> tuple[int, int, int]:
    """(groups, inputs and outputs of a group), with neighbours that share a vector taken as one group.

    Small groups would leave lanes empty, here and in every layer that keeps the order: a depthwise convolution after
    groups of 4 would work on twice as many vectors of 8. Between merged groups the weights are 0.
    """
    size_in, size_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    most = max(1, lanes // size_out)
    together = max(n for n in range(1, most + 1) if conv.groups % n == 0)
    return conv.groups // together, size_in * together, size_out * together


def _conv_orders(conv: Conv, way: Way, order: Order, lanes: int) -> tuple[Order, Order]:
    """(the order that the convolution reads, the order that it writes)."""
    size_in, size_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    if way == "outputs":
        groups, _, outputs = merged(conv, lanes)
        return order, group_major(groups, outputs, lanes)
    if size_in == size_out == 1 and len(order) % lanes == 0:
        return order, order
    return lane_major(conv.groups, size_in, lanes), lane_major(conv.groups, size_out, lanes)


def _conv_cost(conv: Conv, way: Way, order: Order, lanes: int) -> tuple[float, Order]:
    source, target = _conv_orders(conv, way, order, lanes)
    inputs = merged(conv, lanes)[1] if way == "outputs" else conv.in_channels // conv.groups
    terms = inputs * conv.kernel**2
    work = len(target) / lanes * (terms + 1.0) / conv.stride**2
    return work + (PERMUTE_COST * len(source) if source != order else 0.0), target


def _convs(layers: tuple[Layer, ...]) -> Iterator[Conv]:
    for layer in layers:
        if isinstance(layer, Conv):
            yield layer
        elif isinstance(layer, Residual):
            yield from _convs(layer.body)
            yield from _convs(layer.shortcut)


def _walk(layers: tuple[Layer, ...], ways: Iterator[Way], order: Order, lanes: int) -> _Trace:
    cost, scale = 0.0, 1.0
    for layer in layers:
        match layer:
            case Conv():
                work, order = _conv_cost(layer, next(ways), order, lanes)
                cost += work * scale
                scale /= layer.stride**2
            case Interleave(_, groups):
                order = interleaved(order, groups)
            case Residual(body, shortcut):
                inner = _walk(body, ways, order, lanes)
                other = _walk(shortcut, ways, order, lanes) if shortcut else _Trace(0.0, order)
                cost += (inner.cost + other.cost) * scale
                cost += PERMUTE_COST * len(inner.order) * scale if other.order != inner.order else 0.0
                order = inner.order
            case _:
                pass
    return _Trace(cost, order)


@lru_cache(maxsize=4096)
def _choices(layers: tuple[Layer, ...], order: Order, lanes: int) -> dict[Order, tuple[float, tuple[Way, ...]]]:
    """For each order that a block can end in: the least cost, and the ways that have it."""
    found: dict[Order, tuple[float, tuple[Way, ...]]] = {}
    for ways in product(*map(_ways, _convs(layers))):
        trace = _walk(layers, iter(ways), order, lanes)
        if trace.order not in found or trace.cost < found[trace.order][0]:
            found[trace.order] = (trace.cost, ways)
    return found


def _best_ways(plan: Plan, start: Order, lanes: int) -> list[tuple[Way, ...]]:
    """The ways of each block's convolutions, by dynamic programming over the orders at the blocks' borders."""
    states: dict[Order, tuple[float, list[tuple[Way, ...]]]] = {start: (0.0, [])}
    scale = 1.0
    for block in plan.blocks[:-1]:
        after: dict[Order, tuple[float, list[tuple[Way, ...]]]] = {}
        for order, (cost, chosen) in states.items():
            for end, (more, ways) in _choices(block.layers, order, lanes).items():
                total = cost + more * scale
                if end not in after or total < after[end][0]:
                    after[end] = (total, [*chosen, ways])
        states = after
        scale /= _stride(block.layers) ** 2
    return min(states.values(), key=lambda state: state[0])[1]


def _stride(layers: tuple[Layer, ...]) -> int:
    found = 1
    for layer in layers:
        if isinstance(layer, Conv):
            found *= layer.stride
        elif isinstance(layer, Residual):
            found *= _stride(layer.body)
    return found


# The program.


class _Builder:
    def __init__(self, plan: Plan, lanes: int) -> None:
        self.plan = plan
        self.lanes = lanes
        channels, height, width = plan.input
        self.order: Order = tuple(range(channels))
        """Of what `pending` writes, or else of image `here`, as the layer that comes next names the channels."""
        self.images = [Image(height, width, channels)]
        self.steps: list[Segment | PoolOp] = []
        self.here = 0
        self.pending: list[RowOp] = []
        """Row operations on image `here` that have no target yet."""

    def built(self) -> Program:
        ways = _best_ways(self.plan, self.order, self.lanes)
        for block, chosen in zip(self.plan.blocks[:-1], ways, strict=True):
            self._layers(block.layers, block.name, iter(chosen))
        self._classifier(self.plan.blocks[-1])
        return Program(self.lanes, tuple(self.images), tuple(self.steps), self.plan.classes)

    def _layers(self, layers: tuple[Layer, ...], block: str, ways: Iterator[Way]) -> None:
        for at, layer in enumerate(layers):
            match layer:
                case Conv():
                    self._conv(layer, block, next(ways))
                case Interleave(_, groups):
                    self.order = interleaved(self.order, groups)
                case Norm(name):
                    self._epilogue(layer, block, norm=f"{block}.{name}", norm_order=self.order)
                case Act(kind):
                    if not (at and isinstance(layers[at - 1], Residual)):
                        self._epilogue(layer, block, act=kind)
                case Residual():
                    following = layers[at + 1] if at + 1 < len(layers) else None
                    self._residual(layer, block, ways, following.kind if isinstance(following, Act) else None)
                case _:
                    raise _unsupported(layer, block)

    def _conv(self, conv: Conv, block: str, way: Way) -> None:
        source, target = _conv_orders(conv, way, self.order, self.lanes)
        if source != self.order:
            self.pending.append(PermuteRow(self.order, source))
            self.order = source
        if conv.kernel > 1 or conv.stride > 1:
            self._settle()
            read = self.images[self.here]
            self.images[self.here] = replace(read, frame=max(read.frame, conv.kernel // 2))
        self.pending.append(ConvRow(f"{block}.{conv.name}", conv, way, source, target))
        self.order = target

    def _epilogue(self, layer: Layer, block: str, **changes: object) -> None:
        """Add a layer to the epilogue of the last convolution."""
        last = self.pending[-1] if self.pending else None
        if not isinstance(last, ConvRow):
            raise _unsupported(layer, block)
        self.pending[-1] = replace(last, **changes)  # type: ignore[arg-type]

    def _settle(self, add: int | None = None) -> int:
        """Write what is pending into an image, which is `here` from now on."""
        if self.pending:
            height, width = self.images[self.here].height, self.images[self.here].width
            for op in self.pending:
                if isinstance(op, ConvRow):
                    height, width = -(-height // op.conv.stride), -(-width // op.conv.stride)
            self.images.append(Image(height, width, len(self.order)))
            self.steps.append(Segment(self.here, len(self.images) - 1, tuple(self.pending), add))
            self.pending, self.here = [], len(self.images) - 1
        return self.here

    def _residual(self, layer: Residual, block: str, ways: Iterator[Way], act: str | None) -> None:
        start, order = self._settle(), self.order
        chosen = tuple(next(ways) for _ in _convs(layer.body))
        end = _walk(layer.body, iter(chosen), order, self.lanes).order
        self._layers(layer.shortcut, block, ways)
        if self.order != end:
            self.pending.append(PermuteRow(self.order, end))
            self.order = end
        added = self._settle()
        self.here, self.order = start, order
        self._layers(layer.body, block, iter(chosen))
        self._epilogue(layer, block, add=True, act=act)
        self._settle(added)

    def _classifier(self, block: BlockPlan) -> None:
        match block.layers:
            case (Pool(), Linear(bias=True) as linear):
                pass
            case _:
                raise _unsupported(block.layers[-1], block.name)
        source = self._settle()
        self.images.append(Image(1, 1, self.images[source].depth))
        self.here = len(self.images) - 1
        self.steps.append(PoolOp(source, self.here))
        conv = Conv(linear.name, linear.in_features, linear.out_features)
        target = group_major(1, linear.out_features, self.lanes)
        name = f"{block.name}.{linear.name}"
        self.pending = [ConvRow(name, conv, "outputs", self.order, target, bias=True)]
        self.order = target
        self._settle()


def _unsupported(layer: Layer, block: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"{block}: generated C has no code for the layer {layer!r:.120}", "--latency-runtime eager runs every layer"
    )
