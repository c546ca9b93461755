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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import prod
from typing import Literal

from igc_nas.arch.layers import (
    Act,
    AvgPool,
    Branched,
    Concat,
    Conv,
    DualPath,
    Flatten,
    Interleave,
    Layer,
    Linear,
    MaxPool,
    Named,
    Norm,
    Pool,
    PRelu,
    Residual,
    Select,
    Split,
    SqueezeExcite,
    Subsample,
)
from igc_nas.arch.plan import BlockPlan, Plan
from igc_nas.errors import IgcNasError
from igc_nas.nn.codegen.orders import (
    PAD,
    Order,
    aligned,
    concatenated,
    group_major,
    interleaved,
    lane_major,
    part,
    positions,
    width,
)
from igc_nas.nn.codegen.shuffles import permute_cost
from igc_nas.nn.lowering.chain import is_spatial, output_size
from igc_nas.nn.lowering.parts import pooled_first

Way = Literal["outputs", "groups"]
MOST_CHOICES, MOST_STATES = 1024, 16
"""Choices of ways that are compared in a block; orders that are kept from one block to the next."""


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
    def start(self) -> int:
        """The place of the first pixel within the frame."""
        return self.frame * (self.stride + self.depth)

    @property
    def floats(self) -> int:
        """Floats with the frame."""
        return (self.height + 2 * self.frame) * self.stride


@dataclass(frozen=True)
class ConvRow:
    """One output row of a convolution, with its epilogue: `act(conv(x) + bias [+ row of image add])`.

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
    add: int | None = None
    act: str | None = None
    bias: bool = False
    """A bias of its own, beside that of the norm."""


@dataclass(frozen=True)
class GatherRow:
    """A row in another order, or some of its channels: for each position of `target` that of the source, or PAD for 0.

    `depth`: floats of a source pixel.
    """

    depth: int
    table: Order
    target: Order


@dataclass(frozen=True)
class SelectRow:
    """Channels of a row by an index that is data: position p of `target` reads channel index[target[p]] of `source`."""

    name: str
    source: Order
    target: Order


@dataclass(frozen=True)
class ScaleRow:
    """act(x * factor + shift) by a batch norm that folds into no convolution; or PReLU with the slopes of `slope`.

    `norm` and `slope` are names in the state_dict; without both it is the activation alone.
    """

    target: Order
    norm: str | None = None
    slope: str | None = None
    act: str | None = None


@dataclass(frozen=True)
class ElementRow:
    """act(x + the row of image `other`), or act(x * its only pixel): sums of branches, and squeeze-excite."""

    target: Order
    other: int
    kind: Literal["add", "multiply"]
    act: str | None = None


RowOp = ConvRow | GatherRow | SelectRow | ScaleRow | ElementRow


@dataclass(frozen=True)
class Segment:
    """Row operations in a pipeline: the first reads image `source`, the last writes image `target`."""

    source: int
    target: int
    ops: tuple[RowOp, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        """The images that are read."""
        others = [op.other for op in self.ops if isinstance(op, ElementRow)]
        added = [op.add for op in self.ops if isinstance(op, ConvRow) and op.add is not None]
        return (self.source, *others, *added)


@dataclass(frozen=True)
class _ImageOp:
    """Reads image `source` alone, and writes image `target`."""

    source: int
    target: int

    @property
    def reads(self) -> tuple[int, ...]:
        """The images that are read."""
        return (self.source,)


@dataclass(frozen=True)
class PoolOp(_ImageOp):
    """Global average: image `source` to the single pixel `target`."""


@dataclass(frozen=True)
class WindowOp(_ImageOp):
    """The maximum or the mean of windows; zeros around the image count for the mean, not for the maximum."""

    kind: Literal["max", "mean"]
    kernel: int
    stride: int
    padding: int


@dataclass(frozen=True)
class FlattenOp(_ImageOp):
    """All pixels of image `source` as the one pixel of image `target`."""


@dataclass(frozen=True)
class Piece:
    """Channels of an image in a joined one, from position `at` on; added to what is there, or in its place."""

    source: int
    table: Order
    at: int
    adds: bool = False


@dataclass(frozen=True)
class JoinOp:
    """Channels of several images in one: concatenations, and the sum of a dual path."""

    pieces: tuple[Piece, ...]
    target: int

    @property
    def reads(self) -> tuple[int, ...]:
        """The images that are read."""
        return tuple(piece.source for piece in self.pieces)


Operation = Segment | PoolOp | WindowOp | FlattenOp | JoinOp


@dataclass(frozen=True)
class Program:
    """Images by number, and what is done in order. Image 0 is the input, the last one holds the logits."""

    lanes: int
    images: tuple[Image, ...]
    steps: tuple[Operation, ...]
    classes: int


class UnsupportedLayerError(IgcNasError):
    """Generated C has no code for a network: it does not end in a number for each class."""


def program(plan: Plan, lanes: int) -> Program:
    """The program of a plan for vectors of `lanes` floats. Raises `UnsupportedLayerError`."""
    blocks = tuple(BlockPlan(block.name, pooled_first(block.layers)) for block in plan.blocks)
    return _Builder(replace(plan, blocks=blocks), lanes).built()


# Which way each convolution runs.


@dataclass(frozen=True)
class _Trace:
    """A block's layers walked in one choice of ways: what it costs per input pixel, and the order that it ends in."""

    cost: float
    order: Order


def conv_ways(conv: Conv) -> tuple[Way, ...]:
    """The ways that a convolution may run."""
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


def conv_orders(conv: Conv, way: Way, order: Order, lanes: int) -> tuple[Order, Order]:
    """(the order that the convolution reads, the order that it writes)."""
    size_in, size_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    if way == "outputs":
        groups, _, outputs = merged(conv, lanes)
        return order, group_major(groups, outputs, lanes)
    if size_in == size_out == 1 and len(order) % lanes == 0:
        return order, order
    return lane_major(conv.groups, size_in, lanes), lane_major(conv.groups, size_out, lanes)


def _conv_cost(conv: Conv, way: Way, order: Order, lanes: int) -> tuple[float, Order]:
    source, target = conv_orders(conv, way, order, lanes)
    inputs = merged(conv, lanes)[1] if way == "outputs" else conv.in_channels // conv.groups
    terms = inputs * conv.kernel**2
    work = len(target) / lanes * (terms + 1.0) / conv.stride**2
    return work + (permute_cost(order, source, lanes) if source != order else 0.0), target


def _convs(layers: tuple[Layer, ...]) -> Iterator[Conv]:
    for layer in layers:
        if isinstance(layer, Conv):
            yield layer
        elif isinstance(layer, Branched):
            for branch in layer.branches:
                yield from _convs(branch)


def _walk(layers: tuple[Layer, ...], ways: Iterator[Way], order: Order, lanes: int) -> _Trace:
    cost, scale = 0.0, 1.0
    for layer in layers:
        match layer:
            case Conv():
                work, order = _conv_cost(layer, next(ways), order, lanes)
                cost += work * scale
                scale /= layer.stride**2
            case Residual() | Concat() | Split() | DualPath():
                traces = [
                    _walk(branch, ways, entry, lanes)
                    for branch, entry in zip(layer.branches, _entries(layer, order, lanes), strict=True)
                ]
                cost += sum(trace.cost for trace in traces) * scale
                ends = [trace.order for trace in traces]
                if isinstance(layer, Residual) and ends[0] != ends[1]:
                    cost += permute_cost(ends[1], ends[0], lanes) * scale
                order = _joined(layer, ends, lanes)
            case _:
                order = _order_after(layer, order, lanes)
                scale /= layer.stride**2 if isinstance(layer, MaxPool | AvgPool | Subsample) else 1
    return _Trace(cost, order)


def _order_after(layer: Layer, order: Order, lanes: int) -> Order:
    """The order that a layer which is no convolution writes."""
    match layer:
        case Interleave(_, groups):
            return interleaved(order, groups)
        case Select(_, _, out):
            return group_major(1, out, lanes)
        case Subsample(_, before, after) if before or after:
            end = before + width(order)
            moved = tuple(c if c == PAD else c + before for c in aligned(order, lanes))
            return (*moved, *aligned((*range(before), *range(end, end + after)), lanes))
        case Linear(_, _, out):
            return group_major(1, out, lanes)
        case Interleave() | Flatten():
            return order
        case _:
            return aligned(order, lanes)


def _entries(layer: Branched, order: Order, lanes: int) -> tuple[Order, ...]:
    """The orders that a layer's branches read."""
    if not isinstance(layer, Split):
        return (order,) * len(layer.branches)
    return part(order, 0, layer.channels, lanes), part(order, layer.channels, width(order), lanes)


def _joined(layer: Branched, ends: Sequence[Order], lanes: int) -> Order:
    """The order of a layer's output, for the orders that its branches end in."""
    if isinstance(layer, Residual):
        return aligned(ends[0], lanes)
    if not isinstance(layer, DualPath):
        return concatenated(tuple(ends), lanes)
    (body, shortcut), shared = ends, layer.channels
    rests = (part(end, shared, width(end), lanes) for end in (shortcut, body))
    return concatenated((part(body, 0, shared, lanes), *rests), lanes)


@lru_cache(maxsize=4096)
def _choices(layers: tuple[Layer, ...], order: Order, lanes: int) -> dict[Order, tuple[float, tuple[Way, ...]]]:
    """For each order that a block can end in: the least cost, and the ways that have it."""
    found: dict[Order, tuple[float, tuple[Way, ...]]] = {}
    offered = list(map(conv_ways, _convs(layers)))
    for at in range(len(offered) - 1, -1, -1):
        if prod(map(len, offered)) > MOST_CHOICES:
            offered[at] = offered[at][:1]
    for ways in product(*offered):
        trace = _walk(layers, iter(ways), order, lanes)
        if trace.order not in found or trace.cost < found[trace.order][0]:
            found[trace.order] = (trace.cost, ways)
    return found


def _best_ways(plan: Plan, start: Order, lanes: int) -> list[tuple[Way, ...]]:
    """The ways of each block's convolutions, by dynamic programming over the orders at the blocks' borders.

    Where blocks only add channels (CondenseNet), every choice so far is in the order: the `MOST_STATES` best are kept.
    """
    states: dict[Order, tuple[float, list[tuple[Way, ...]]]] = {start: (0.0, [])}
    scale = 1.0
    for block in plan.blocks:
        after: dict[Order, tuple[float, list[tuple[Way, ...]]]] = {}
        for order, (cost, chosen) in states.items():
            for end, (more, ways) in _choices(block.layers, order, lanes).items():
                total = cost + more * scale
                if end not in after or total < after[end][0]:
                    after[end] = (total, [*chosen, ways])
        states = dict(sorted(after.items(), key=lambda state: state[1][0])[:MOST_STATES])
        scale /= _stride(block.layers) ** 2
    return min(states.values(), key=lambda state: state[0])[1]


def _stride(layers: tuple[Layer, ...]) -> int:
    found = 1
    for layer in layers:
        if isinstance(layer, Conv | MaxPool | AvgPool | Subsample):
            found *= layer.stride
        elif isinstance(layer, Branched):
            found *= _stride(layer.branches[0])
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
        self.steps: list[Operation] = []
        self.here = 0
        self.pending: list[RowOp] = []
        """Row operations on image `here` that have no target yet."""

    def built(self) -> Program:
        ways = _best_ways(self.plan, self.order, self.lanes)
        for block, chosen in zip(self.plan.blocks, ways, strict=True):
            self._layers(block.layers, block.name, iter(chosen))
        here = self.images[self._settle()]
        if here.height * here.width > 1 or width(self.order) != self.plan.classes:
            raise UnsupportedLayerError(
                f"{self.plan.blocks[-1].name}: generated C is of networks that end in a number per class",
                "--latency-runtime eager runs every network",
            )
        self._reorder(aligned(tuple(range(self.plan.classes)), self.lanes))
        self._settle()
        return Program(self.lanes, tuple(self.images), tuple(self.steps), self.plan.classes)

    def _layers(self, layers: tuple[Layer, ...], block: str, ways: Iterator[Way]) -> None:
        for layer in layers:
            name = f"{block}.{layer.name}" if isinstance(layer, Named) else block
            match layer:
                case Conv():
                    self._conv(layer, name, next(ways))
                case Interleave():
                    pass
                case Norm():
                    self._norm(name)
                case Act(kind):
                    self._act(kind)
                case PRelu():
                    self._align()
                    self.pending.append(ScaleRow(self.order, slope=name))
                case SqueezeExcite():
                    self._squeeze_excite(layer, name)
                case Select(_, _, out):
                    self.pending.append(SelectRow(name, self.order, group_major(1, out, self.lanes)))
                case MaxPool(kernel, stride, padding):
                    self._window("max", kernel, stride, padding)
                case AvgPool(kernel, stride, padding):
                    self._window("mean", kernel, stride, padding)
                case Subsample():
                    self._subsample(layer)
                case Pool():
                    self._pool()
                case Flatten():
                    self._flatten()
                case Linear():
                    self._linear(Conv(layer.name, layer.in_features, layer.out_features, bias=layer.bias), name)
                case Residual():
                    self._residual(layer, block, ways)
                case Concat() | Split() | DualPath():
                    self._joined(layer, block, ways)
            if not isinstance(layer, Conv | Linear | Branched | Flatten):
                self.order = _order_after(layer, self.order, self.lanes)

    # Within a pipeline.

    def _conv(self, conv: Conv, name: str, way: Way) -> None:
        source, target = conv_orders(conv, way, self.order, self.lanes)
        if self.pending and isinstance(last := self.pending[-1], ConvRow) and last.add is not None:
            self._settle()  # the images of both branches are free before a wider one is written
        self._reorder(source)
        if is_spatial(conv):
            self._settle()
            read = self.images[self.here]
            self.images[self.here] = replace(read, frame=max(read.frame, conv.pad))
        self.pending.append(ConvRow(name, conv, way, source, target, bias=conv.bias))
        self.order = target

    def _linear(self, conv: Conv, name: str) -> None:
        target = group_major(1, conv.out_channels, self.lanes)
        self.pending.append(ConvRow(name, conv, "outputs", self.order, target, bias=conv.bias))
        self.order = target

    def _norm(self, name: str) -> None:
        last = self.pending[-1] if self.pending else None
        if isinstance(last, ConvRow) and last.norm is None and last.act is None and last.add is None:
            self.pending[-1] = replace(last, norm=name, norm_order=self.order)
        else:
            self._align()
            self.pending.append(ScaleRow(self.order, norm=name))

    def _act(self, kind: str) -> None:
        last = self.pending[-1] if self.pending else None
        fuses = kind != "sigmoid"  # it has no vectors
        if fuses and isinstance(last, ConvRow | ScaleRow | ElementRow) and last.act is None:
            self.pending[-1] = replace(last, act=kind)
        else:
            self._align()
            self.pending.append(ScaleRow(self.order, act=kind))

    def _reorder(self, order: Order) -> None:
        """Bring the channels into an order that has them all."""
        if order != self.order:
            self.pending.append(GatherRow(len(self.order), _table(self.order, order), order))
            self.order = order

    def _align(self) -> None:
        """Whole vectors: only the image that is given has none."""
        self._reorder(aligned(self.order, self.lanes))

    def _settle(self) -> int:
        """Write what is pending into an image, which is `here` from now on."""
        if self.pending:
            height, width = self.images[self.here].height, self.images[self.here].width
            height, width = output_size([op.conv for op in self.pending if isinstance(op, ConvRow)], height, width)
            self._wrote(Segment(self.here, len(self.images), tuple(self.pending)), height, width)
        return self.here

    def _wrote(self, step: Operation, height: int, width: int) -> int:
        """Take a step up whose target is a new image of the present order."""
        self.images.append(Image(height, width, len(self.order)))
        self.steps.append(step)
        self.pending, self.here = [], len(self.images) - 1
        return self.here

    # Whole images.

    def _window(self, kind: Literal["max", "mean"], kernel: int, stride: int, padding: int) -> None:
        self._align()
        source = self._settle()
        image = self.images[source]
        like = Conv("", 1, 1, kernel, stride, padding=padding)
        step = WindowOp(source, len(self.images), kind, kernel, stride, padding)
        self._wrote(step, *output_size([like], image.height, image.width))

    def _subsample(self, layer: Subsample) -> None:
        if layer.stride > 1:
            self._window("max", 1, layer.stride, 0)
        if layer.before or layer.after:
            after, depth = _order_after(layer, self.order, self.lanes), len(self.order)
            self.pending.append(GatherRow(depth, (*range(depth), *(PAD,) * (len(after) - depth)), after))

    def _pool(self) -> None:
        self._align()
        source = self._settle()
        self._wrote(PoolOp(source, len(self.images)), 1, 1)

    def _flatten(self) -> None:
        """Pixels one behind the other: feature c * H * W + y * W + x lies where channel c of pixel (y, x) does."""
        source = self._settle()
        size = self.images[source].height * self.images[source].width
        self.order = tuple(PAD if c == PAD else c * size + pixel for pixel in range(size) for c in self.order)
        self._wrote(FlattenOp(source, len(self.images)), 1, 1)

    def _squeeze_excite(self, layer: SqueezeExcite, name: str) -> None:
        self._align()
        source, order = self._settle(), self.order
        self._pool()
        self._linear(Conv("", layer.channels, layer.squeeze, bias=layer.bias), f"{name}.reduce")
        self._act("relu")
        self._linear(Conv("", layer.squeeze, layer.channels, bias=layer.bias), f"{name}.expand")
        self._act(layer.gate)
        self._reorder(order)
        gates = self._settle()
        self.here = source
        self.pending.append(ElementRow(order, gates, "multiply"))

    # Branches.

    def _residual(self, layer: Residual, block: str, ways: Iterator[Way]) -> None:
        start, order = self._settle(), self.order
        chosen = tuple(next(ways) for _ in _convs(layer.body))
        end = aligned(_walk(layer.body, iter(chosen), order, self.lanes).order, self.lanes)
        self._layers(layer.shortcut, block, ways)
        self._reorder(end)
        added = self._settle()
        self.here, self.order = start, order
        self._layers(layer.body, block, iter(chosen))
        self._align()
        last = self.pending[-1] if self.pending else None
        if isinstance(last, ConvRow) and last.act is None and last.add is None:
            self.pending[-1] = replace(last, add=added)
        else:
            self.pending.append(ElementRow(self.order, added, "add"))

    def _joined(self, layer: Branched, block: str, ways: Iterator[Way]) -> None:
        start, order = self._settle(), self.order
        ends: list[_End] = []
        first = 0
        for branch, entry in zip(layer.branches, _entries(layer, order, self.lanes), strict=True):
            self.here, self.order = start, order
            if isinstance(layer, Split):
                read = GatherRow(len(order), _table(order, entry, first), entry)
                self.order, first = entry, layer.channels
                if not branch:
                    ends.append(_End(start, entry, read.table))
                    continue
                self.pending.append(read)
            self._layers(branch, block, ways)
            ends.append(_End(self._settle(), self.order, tuple(range(len(self.order)))))
        image = self.images[ends[0].image]
        self.order = _joined(layer, [end.order for end in ends], self.lanes)
        pieces = _dual_pieces(layer, ends, self.lanes) if isinstance(layer, DualPath) else _pieces(ends, self.lanes)
        self._wrote(JoinOp(pieces, len(self.images)), image.height, image.width)


@dataclass(frozen=True)
class _End:
    """What a branch puts out: the channels of `order`, at the positions `table` of an image."""

    image: int
    order: Order
    table: Order


def _table(source: Order, target: Order, first: int = 0) -> Order:
    """Where the channels of `target`, counted from channel `first` on, lie in `source`."""
    where = positions(source)
    return tuple(PAD if c == PAD else where[c + first] for c in target)


def _pieces(ends: Sequence[_End], lanes: int) -> tuple[Piece, ...]:
    found: list[Piece] = []
    at = 0
    for end in ends:
        found.append(Piece(end.image, aligned(end.table, lanes), at))
        at += len(found[-1].table)
    return tuple(found)


def _dual_pieces(layer: DualPath, ends: Sequence[_End], lanes: int) -> tuple[Piece, ...]:
    body, shortcut = ends
    shared = part(body.order, 0, layer.channels, lanes)
    sum_of = [Piece(end.image, _table(end.order, shared), 0, end is body) for end in (shortcut, body)]
    at = len(shared)
    for end in (shortcut, body):
        rest = part(end.order, layer.channels, width(end.order), lanes)
        if rest:
            sum_of.append(Piece(end.image, _table(end.order, rest, layer.channels), at))
        at += len(rest)
    return tuple(sum_of)
