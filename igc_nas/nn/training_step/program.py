"""A plan as the operations of a training step: forward, and backward from the gradient of the pooled features.

A *view* is a stored tensor as its readers see it: a convolution's output behind its batch norm and activation, or a
residual sum. Between two batch norms lies a chain of convolutions; a few images at a time go through it in scratch.
What is stored: the output of each convolution, each residual sum, and their gradients. A view's activation is computed
again whenever it is read.

    forward   chain: view -> scratch -> ... -> output + sums over the batch; batch norm: sums -> scale, offset
    backward  batch norm: sums -> how the gradient passes it; chain: gradient -> scratch -> weight gradients, the
              gradient of the view that the chain reads + its sums over the batch
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from igc_nas.arch.layers import Act, Activation, Conv, Interleave, Layer, Linear, Norm, Pool, Residual
from igc_nas.arch.plan import Plan
from igc_nas.nn.codegen.orders import PAD, Order, interleaved, positions
from igc_nas.nn.codegen.program import Way, conv_orders, merged
from igc_nas.nn.training_step import layout
from igc_nas.nn.training_step import operations as ops
from igc_nas.nn.training_step.layout import ConvStep
from igc_nas.nn.training_step.ways import Unsupported, best_ways

SCRATCH_BYTES = 320 * 1024
"""What the scratch of the images that go through a chain together should take: a part of a second-level cache."""
MOST_IMAGES = 16
ALIGN = 64
PAIR_COST = 8.0
"""Vector instructions that making a vector of pairs costs about."""
CHANNEL_PAIR_COST = 4.0
STEM_WAY: Way = "outputs"
ACTS: dict[Activation | None, int] = {None: 0, "relu": 1, "relu6": 2}


@dataclass(frozen=True)
class PermuteStep:
    """Channels in another order."""

    source: Order
    target: Order


Step = ConvStep | PermuteStep


@dataclass(eq=False)
class Stored:
    """A stored tensor of (images, height, width, depth) and its gradient."""

    height: int
    width: int
    depth: int
    data: Tensor
    grad: Tensor

    @property
    def image(self) -> int:
        """Elements of an image."""
        return self.height * self.width * self.depth


@dataclass(eq=False)
class Normed:
    """A batch norm in the physical order: its module, and the memory of its statistics, (depth,) each."""

    module: nn.BatchNorm2d
    op: ops.NormOp
    backward: ops.NormGradient
    kept: list[object]


@dataclass(eq=False)
class Seen:
    """A view: `order` names the channels at its positions. `uses` counts its readers, `written` those that have added
    to its gradient."""

    of: Stored
    order: Order
    norm: Normed | None = None
    act: Activation | None = None
    needs_grad: bool = True
    uses: int = 0
    written: int = 0


@dataclass(eq=False)
class ChainNode:
    """Convolutions with nothing nonlinear between them: `between` are the stored outputs of all but the last."""

    source: Seen
    steps: list[Step]
    between: list[Stored]
    out: Stored
    norm: Normed | None = None


@dataclass(eq=False)
class SumNode:
    """act(a + b)."""

    a: Seen
    b: Seen
    out: Seen
    act: Activation | None


@dataclass
class Weight:
    """A convolution's parameter, and the operations that read it and write its gradient."""

    module: nn.Conv2d
    strides: tuple[int, ...]
    packs: list[ops.Pack] = field(default_factory=list)
    unpacks: list[ops.Unpack] = field(default_factory=list)


class Scratch:
    """Places for the images that go through one node together, one behind the other."""

    def __init__(self) -> None:
        self.areas: list[ops.Area] = []
        self.framed = False

    def area(self, like: Stored, frame: int = 0) -> ops.Area:
        """A place for pixels as those of `like` within a frame of zeros; its address follows from `placed`."""
        row = (like.width + 2 * frame) * like.depth
        area = ops.Area(4 * frame * (row + like.depth), (like.height + 2 * frame) * row, row, like.depth)
        area.height, area.width = like.height, like.width
        self.areas.append(area)
        self.framed = self.framed or frame > 0
        return area

    def placed(self) -> tuple[int, int]:
        """(images that fit together, floats that they take); sets the offsets, in bytes from the scratch's start."""
        images = SCRATCH_BYTES // (4 * sum(area.image for area in self.areas))
        images = max(1, min(MOST_IMAGES, images))
        at = 0
        for area in self.areas:
            area.at = 4 * at + (area.at or 0)
            at += images * area.image
            at += -at % (ALIGN // 4)
        return images, at


class StepProgram:
    """The operations for batches of at most `batch` images, and the memory that they work in.

    `network` gives the modules by the names in `plan`. `pairs`: whether the kernels multiply pairs of bfloat16; they
    are used where that saves more than making the pairs costs. Raises `Unsupported`.
    """

    def __init__(
        self, network: nn.Module, plan: Plan, batch: int, dtype: torch.dtype, lanes: int, pairs: bool = False
    ) -> None:
        self.network, self.plan, self.batch, self.dtype, self.lanes = network, plan, batch, dtype, lanes
        self.pairs = pairs
        self.forward, self.backward = ops.Operations(), ops.Operations()
        self.weights: list[Weight] = []
        self.norms: list[Normed] = []
        self.nodes: list[ChainNode | SumNode] = []
        self.readers: list[ops.LoadView] = []
        """What reads the input images: their address is set for each batch."""
        self._kept: list[object] = []
        self._in_scratch: list[tuple[ctypes.Structure, str]] = []
        self._pair_ops: list[ops.Pair | ops.ChannelPairs] = []
        self._scratch_floats = 0
        self._gradients: list[tuple[ops.WeightGradient, ops.Unpack]] = []
        self._gradient_floats = 0
        self._unpacks: list[ops.Unpack] = []
        self.pool, self.pool_gradient = self._build()
        self._emit_forward()
        self._emit_backward()
        self._place()

    # The graph.

    def _build(self) -> tuple[ops.Pool, ops.LoadPoolGradient]:
        channels, height, width = self.plan.input
        image = self._stored(height, width, channels, stored=False)
        view = Seen(image, tuple(range(channels)), needs_grad=False)
        stem, *rest = self.plan.blocks[:-1]
        order, chosen = best_ways(stem, rest, self.lanes)
        view = self._layers(stem.layers, stem.name, view, iter([STEM_WAY]), order)
        ways = iter(chosen)
        for block in rest:
            view = self._layers(block.layers, block.name, view, ways)
        last = self.plan.blocks[-1].layers
        if not (isinstance(last[0], Pool) and all(isinstance(layer, Linear) for layer in last[1:])):
            raise Unsupported("a classifier of another kind than pooling and one layer")
        if view.order == () or not view.needs_grad:
            raise Unsupported("no convolution")
        view.uses += 1
        self._last = view
        channel = self._table(view.order)
        features = sum(c != PAD for c in view.order)
        of = view.of
        self.features = features
        pool = ops.Pool(self._view(view), None, channel, features, of.depth, of.height * of.width)
        return pool, ops.LoadPoolGradient(None, channel, features)

    def _layers(
        self, layers: tuple[Layer, ...], block: str, view: Seen, ways: Iterator[Way], target: Order | None = None
    ) -> Seen:
        at = 0
        while at < len(layers):
            layer = layers[at]
            if isinstance(layer, Conv):
                end = at
                while end < len(layers) and isinstance(layers[end], Conv | Interleave):
                    end += 1
                view = self._chain(layers[at:end], block, view, ways, target)
                at = end
                continue
            if isinstance(layer, Interleave):
                if at == 0 or view.uses:
                    raise Unsupported("an interleave of a tensor that others read, too")
                view.order = interleaved(view.order, layer.groups)
            elif isinstance(layer, Norm):
                self._norm(layer, block, view)
            elif isinstance(layer, Act):
                if view.norm is None or view.act or view.uses or layer.kind not in ACTS:
                    raise Unsupported("an activation that follows no batch norm, or another one than ReLU and ReLU6")
                view.act = layer.kind
            elif isinstance(layer, Residual):
                following = layers[at + 1] if at + 1 < len(layers) else None
                act = following.kind if isinstance(following, Act) else None
                view = self._residual(layer, block, view, ways, act)
                if act not in ACTS:
                    raise Unsupported(f"{act} behind a sum")
                at += act is not None
            else:
                raise Unsupported(f"{type(layer).__name__} before the classifier")
            at += 1
        return view

    def _chain(
        self, layers: tuple[Layer, ...], block: str, view: Seen, ways: Iterator[Way], dense_target: Order | None = None
    ) -> Seen:
        steps: list[Step] = []
        order = view.order
        for layer in layers:
            if isinstance(layer, Interleave):
                order = interleaved(order, layer.groups)
                continue
            assert isinstance(layer, Conv)
            if layer.bias or layer.pad != layer.kernel // 2 or layer.kernel % 2 == 0:
                raise Unsupported("a convolution with a bias, or with another padding than kernel // 2")
            way = next(ways)
            source, target = conv_orders(layer, way, order, self.lanes)
            target = dense_target or target
            if source != order:
                steps.append(PermuteStep(order, source))
            steps.append(ConvStep(f"{block}.{layer.name}", layer, way, source, target))
            order = target
        return self._node(view, steps, order)

    def _node(self, view: Seen, steps: list[Step], order: Order) -> Seen:
        height, width = view.of.height, view.of.width
        outputs = []
        for step in steps:
            if isinstance(step, ConvStep):
                height, width = -(-height // step.conv.stride), -(-width // step.conv.stride)
            outputs.append(self._stored(height, width, len(step.target)))
        view.uses += 1
        self.nodes.append(ChainNode(view, steps, outputs[:-1], outputs[-1]))
        return Seen(outputs[-1], order)

    def _norm(self, layer: Norm, block: str, view: Seen) -> None:
        node = self.nodes[-1] if self.nodes else None
        if view.norm or view.uses or not isinstance(node, ChainNode) or node.out is not view.of:
            raise Unsupported("a batch norm that follows no convolution")
        module = self.network.get_submodule(f"{block}.{layer.name}")
        if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None or not module.affine:
            raise Unsupported("a batch norm without parameters or statistics")
        depth = view.of.depth
        floats = torch.zeros(7, depth, dtype=torch.float32, device="cpu")
        doubles = torch.zeros(4, depth, dtype=torch.float64, device="cpu")
        op = ops.NormOp(
            channel=self._table(view.order), eps=module.eps, pixels=view.of.height * view.of.width, depth=depth
        )
        for name, row in zip(("shift", "mean", "inverse", "scale", "offset", "slope", "constant"), floats, strict=True):
            setattr(op, name, row.data_ptr())
        for name, row in zip(("sum", "square", "grad_sum", "grad_product"), doubles, strict=True):
            setattr(op, name, row.data_ptr())
        backward = ops.NormGradient.from_buffer(op)
        view.norm = node.norm = Normed(module, op, backward, [floats, doubles])
        self.norms.append(view.norm)

    def _residual(self, layer: Residual, block: str, view: Seen, ways: Iterator[Way], act: Activation | None) -> Seen:
        body = self._layers(layer.body, block, view, ways)
        shortcut = self._layers(layer.shortcut, block, view, ways) if layer.shortcut else view
        if shortcut.order != body.order:
            shortcut = self._node(shortcut, [PermuteStep(shortcut.order, body.order)], body.order)
        of = body.of
        out = Seen(self._stored(of.height, of.width, of.depth), body.order)
        body.uses += 1
        shortcut.uses += 1
        self.nodes.append(SumNode(body, shortcut, out, act))
        return out

    # Memory.

    def _stored(self, height: int, width: int, depth: int, stored: bool = True) -> Stored:
        shape = (self.batch if stored else 0, height, width, depth)
        data, grad = (torch.empty(shape, dtype=self.dtype, device="cpu") for _ in range(2))
        return Stored(height, width, depth, data, grad)

    def _table(self, values: object) -> int:
        """The address of an array of int32 that is kept."""
        array = np.ascontiguousarray(values, np.int32)
        self._kept.append(array)
        return int(array.ctypes.data)

    def _view(self, view: Seen) -> ops.View:
        norm = view.norm.op if view.norm else None
        found = ops.View(view.of.data.data_ptr() or None, act=ACTS[view.act])
        if norm:
            found.scale, found.offset, found.mean = norm.scale, norm.offset, norm.mean
        return found

    # The operations.

    def _emit_forward(self) -> None:
        for norm in self.norms:
            self.forward.add(ops.Zero(norm.op.sum, 2 * 8 * norm.op.depth))
        for node in self.nodes:
            if isinstance(node, ChainNode):
                self._forward_chain(node)
            else:
                of = node.out.of
                operation = ops.SumViews(self._view(node.a), self._view(node.b), of.data.data_ptr(), of.image, of.depth)
                operation.act = ACTS[node.act]
                self.forward.add(operation)
        self.forward.add(self.pool)

    def _forward_chain(self, node: ChainNode) -> None:
        scratch = Scratch()
        outputs = [*node.between, node.out]
        areas = [
            scratch.area(stored, _frame(step)) for stored, step in zip(self._inputs(node), node.steps, strict=True)
        ]
        areas.append(scratch.area(node.out))
        in_pairs = {
            at: scratch.area(stored, _frame(step))
            for at, (stored, step) in enumerate(zip(self._inputs(node), node.steps, strict=True))
            if isinstance(step, ConvStep) and self._pairs_pay(layout.forward_taps(step.conv), step, step.source)
        }
        halves = {
            at: scratch.area(replace(stored, depth=stored.depth // 2))
            for at, (stored, step) in enumerate(zip(self._inputs(node), node.steps, strict=True))
            if isinstance(step, ConvStep) and self._channel_pairs_pay(step, layout.forward_vectors(step, self.lanes))
        }
        images, floats = scratch.placed()
        inner: list[ctypes.Structure] = [self._load(node.source, areas[0])]
        for at, (step, stored) in enumerate(zip(node.steps, outputs, strict=True)):
            source, to = areas[at], areas[at + 1]
            if isinstance(step, PermuteStep):
                inner.append(self._permute(step.source, step.target, source, to))
            else:
                if at in in_pairs:
                    inner.append(self._pair(source, in_pairs[at], source.pixel, images, _frame(step)))
                if at in halves:
                    inner.append(self._channel_pairs(source, halves[at], images))
                read = halves.get(at, in_pairs.get(at, source))
                inner += self._forward_products(step, read, to, at in in_pairs, at in halves)
            inner.append(self._store(stored, to, node.norm if stored is node.out else None))
        self._blocks(self.forward, inner, scratch, images, floats)
        if node.norm:
            self.forward.add(node.norm.op)

    def _inputs(self, node: ChainNode) -> list[Stored]:
        return [node.source.of, *node.between]

    def _load(self, view: Seen, to: ops.Area) -> ops.LoadView:
        operation = ops.LoadView(self._view(view), to)
        self._in_scratch.append((operation, "to"))
        if not view.of.data.numel():
            self.readers.append(operation)
        return operation

    def _store(self, stored: Stored, source: ops.Area, norm: Normed | None) -> ops.Store:
        operation = ops.Store(source, stored.data.data_ptr())
        if norm:
            operation.shift, operation.sum, operation.square = norm.op.shift, norm.op.sum, norm.op.square
        self._in_scratch.append((operation, "source"))
        return operation

    def _permute(self, source: Order, target: Order, at: ops.Area, to: ops.Area) -> ops.Permute:
        where = positions(source)
        operation = ops.Permute(at, to, self._table([-1 if c == PAD else where[c] for c in target]))
        self._in_scratch += [(operation, "source"), (operation, "to")]
        return operation

    def _pairs_pay(self, taps: list[layout.Tap], step: ConvStep, source: Order) -> bool:
        """Whether a product of pairs of taps saves more multiplications than `PAIR_COST` for each float of scratch."""
        saved = len(taps) - len(layout.paired(taps))
        return (
            self.pairs
            and saved * self._inputs_of(step) * len(step.target) > PAIR_COST * len(source) * step.conv.stride**2
        )

    def _channel_pairs_pay(self, step: ConvStep, vectors: list[layout.Vector]) -> bool:
        """The same for pairs of channels, in a product of `vectors` of a 1x1 convolution."""
        if not self.pairs or step.way != "outputs" or step.conv.kernel > 1 or step.conv.stride > 1:
            return False
        saved = len(vectors[0].sources) / 2 * len(vectors) * self.lanes
        read = max(len(step.source), len(step.target))
        return saved > CHANNEL_PAIR_COST * read and layout.in_channel_pairs(vectors)

    def _channel_pairs(self, source: ops.Area, to: ops.Area, images: int) -> ops.ChannelPairs:
        operation = ops.ChannelPairs(source.at or 0, to.at or 0, images * source.image)
        self._pair_ops.append(operation)
        return operation

    def _inputs_of(self, step: ConvStep) -> int:
        """Inputs that an output is a sum of, for each tap."""
        if step.way == "outputs":
            return merged(step.conv, self.lanes)[1]
        return step.conv.in_channels // step.conv.groups

    def _pair(self, source: ops.Area, to: ops.Area, step: int, images: int, frame: int) -> ops.Pair:
        """All of the scratch, from the first image's frame on, as pairs with what is `step` floats behind."""
        begin = 4 * frame * (source.row + source.pixel)
        operation = ops.Pair((source.at or 0) - begin, (to.at or 0) - begin, images * source.image, step)
        self._pair_ops.append(operation)
        return operation

    def _forward_products(
        self, step: ConvStep, source: ops.Area, to: ops.Area, in_pairs: bool, halved: bool
    ) -> Iterator[ops.Product]:
        vectors, taps = layout.forward_vectors(step, self.lanes), layout.forward_taps(step.conv)
        weight, used = self._weight(step), layout.paired(taps) if in_pairs else taps
        for table in layout.tables(
            vectors, used, step.conv, weight.strides, source.row, source.pixel, channel_pairs=halved
        ):
            product = self._product(step, table, source, to, step.conv.stride, 1, in_pairs or halved)
            product.height, product.width = to.height, to.width
            self._packed(self.forward, product, table, weight)
            yield product

    def _product(
        self,
        step: ConvStep,
        table: layout.Tables,
        source: ops.Area,
        to: ops.Area,
        stride_in: int,
        stride_out: int,
        in_pairs: bool,
    ) -> ops.Product:
        tiles, vectors = table.targets.shape
        product = ops.Product(source, to, self._table(table.offsets), self._table(table.targets))
        product.tiles, product.terms, product.vectors = tiles, table.offsets.shape[1], vectors
        product.kind = int(step.way == "outputs") + 2 * in_pairs
        product.in_row, product.in_pixel = stride_in * source.row, stride_in * source.pixel
        product.out_row, product.out_pixel = stride_out * to.row, stride_out * to.pixel
        product.flat = int(step.conv.kernel == step.conv.stride == 1 and _is_flat(source) and _is_flat(to))
        product.pixels = layout.pixels_of(vectors, to.width * (to.height * MOST_IMAGES if product.flat else 1))
        self._in_scratch += [(product, "source"), (product, "to")]
        return product

    def _packed(self, to: ops.Operations, product: ops.Product, table: layout.Tables, weight: Weight) -> None:
        in_pairs = table.index.ndim == 2
        count = len(table.index)
        packed = torch.empty(max(1, count), dtype=torch.float32, device="cpu")
        self._kept.append(packed)
        product.weights = packed.data_ptr()
        kind = ops.PackPairs if in_pairs else ops.Pack
        pack = kind(None, packed.data_ptr(), self._table(table.index), count)
        weight.packs.append(pack)
        to.add(pack)

    def _weight(self, step: ConvStep) -> Weight:
        module = self.network.get_submodule(step.name)
        assert isinstance(module, nn.Conv2d)
        found = next((weight for weight in self.weights if weight.module is module), None)
        if found is None:
            found = Weight(module, module.weight.stride())
            self.weights.append(found)
        return found

    def _emit_backward(self) -> None:
        for norm in self.norms:
            self.backward.add(ops.Zero(norm.op.grad_sum, 2 * 8 * norm.op.depth))
        self._gradient_zero = ops.Zero()
        self.backward.add(self._gradient_zero)
        scratch = Scratch()
        area = scratch.area(self._last.of)
        images, floats = scratch.placed()
        self.pool_gradient.to = area
        self._in_scratch.append((self.pool_gradient, "to"))
        self._blocks(
            self.backward, [self.pool_gradient, self._store_gradient(self._last, area)], scratch, images, floats
        )
        for node in reversed(self.nodes):
            if isinstance(node, ChainNode):
                self._backward_chain(node)
            else:
                self._backward_sum(node)
        for unpack in self._unpacks:
            self.backward.add(unpack)

    def _backward_sum(self, node: SumNode) -> None:
        scratch = Scratch()
        of = node.out.of
        area = scratch.area(of)
        images, floats = scratch.placed()
        load = ops.LoadSumGradient(of.grad.data_ptr(), of.data.data_ptr(), ACTS[node.act], area)
        self._in_scratch.append((load, "to"))
        stores = [self._store_gradient(view, area) for view in (node.a, node.b)]
        self._blocks(self.backward, [load, *stores], scratch, images, floats)

    def _store_gradient(self, view: Seen, source: ops.Area) -> ops.StoreGradient:
        view.written += 1
        last = int(view.written == view.uses)
        operation = ops.StoreGradient(source, view.of.grad.data_ptr(), self._view(view))
        if view.norm:
            operation.sum, operation.product = view.norm.op.grad_sum, view.norm.op.grad_product
        operation.add, operation.last = int(view.written > 1), last
        self._in_scratch.append((operation, "source"))
        return operation

    def _backward_chain(self, node: ChainNode) -> None:
        scratch = Scratch()
        inputs = self._inputs(node)
        frames = [0, *map(_frame, node.steps)]
        areas = [scratch.area(stored, _frame(step)) for stored, step in zip(inputs, node.steps, strict=True)]
        needed = [node.source.needs_grad, *[True] * len(node.steps)]
        gradients = [scratch.area(stored, frame) for stored, frame in zip([*inputs, node.out], frames, strict=True)]
        compact = {
            at: scratch.area(inputs[at])
            for at, step in enumerate(node.steps)
            if isinstance(step, ConvStep) and needed[at]
            and layout.input_vectors(step, self.lanes)[1] != step.source
        }  # fmt: skip
        for at, area in compact.items():
            step = node.steps[at]
            assert isinstance(step, ConvStep)
            depth = len(layout.input_vectors(step, self.lanes)[1])
            area.row, area.pixel, area.image = area.width * depth, depth, area.height * area.width * depth
        reads, writes = self._backward_pairs(node, scratch, needed)
        halves = {
            at: scratch.area(replace(stored, depth=stored.depth // 2))
            for at, (stored, step) in enumerate(zip([*node.between, node.out], node.steps, strict=True))
            if isinstance(step, ConvStep) and needed[at]
            and self._channel_pairs_pay(step, layout.input_vectors(step, self.lanes)[0])
        }  # fmt: skip
        images, floats = scratch.placed()
        inner: list[ctypes.Structure] = [self._load_gradient(node, gradients[-1])]
        for at in range(len(node.steps) - 1, -1, -1):
            step, source, grad, to = node.steps[at], areas[at], gradients[at + 1], gradients[at]
            if isinstance(step, PermuteStep):
                inner.append(self._permute(step.target, step.source, grad, to))
                continue
            view = node.source if at == 0 else Seen(inputs[at], step.source)
            inner.append(self._load(view, source))
            paired_grad = writes.get(at)
            if paired_grad is not None:
                inner.append(self._pair(grad, paired_grad, grad.pixel, images, _frame(step)))
            if at in reads:
                assert paired_grad is not None
                inner.append(self._pair(source, reads[at], step.conv.stride * source.pixel, images, _frame(step)))
                inner += self._weight_gradients(step, reads[at], paired_grad, in_pairs=True)
            else:
                inner += self._weight_gradients(step, source, grad, in_pairs=False)
            if at in halves:
                inner.append(self._channel_pairs(grad, halves[at], images))
            if needed[at]:
                inner += self._input_products(
                    step, halves.get(at, grad), paired_grad, to, compact.get(at), at in halves
                )
        if node.source.needs_grad:
            inner.append(self._store_gradient(node.source, gradients[0]))
        if node.norm:
            self.backward.add(node.norm.backward)
        self._blocks(self.backward, inner, scratch, images, floats)

    def _backward_pairs(
        self, node: ChainNode, scratch: Scratch, needed: list[bool]
    ) -> tuple[dict[int, ops.Area], dict[int, ops.Area]]:
        """Scratch for pairs: of the inputs of steps whose weight gradients are of pairs, and of outputs' gradients.

        A weight gradient pairs adjacent pixels of a row, of which an odd one needs a zero behind it.
        """
        reads, writes = {}, {}
        outputs = [*node.between, node.out]
        for at, step in enumerate(node.steps):
            if not isinstance(step, ConvStep) or not self.pairs:
                continue
            frame, out, conv = _frame(step), outputs[at], step.conv
            outs, ins = len(step.target), len(step.source) * conv.stride**2
            saved = self._inputs_of(step) * conv.kernel**2 * outs / 2
            if (frame or out.width % 2 == 0) and saved > PAIR_COST * (ins + outs):
                reads[at] = scratch.area(self._inputs(node)[at], frame)
            inverse = self._pairs_pay(layout.forward_taps(conv), step, step.target) and needed[at] and conv.kernel > 1
            if at in reads or inverse:
                writes[at] = scratch.area(out, frame)
        return reads, writes

    def _load_gradient(self, node: ChainNode, to: ops.Area) -> ops.LoadGradient:
        operation = ops.LoadGradient(node.out.grad.data_ptr(), node.out.data.data_ptr(), to=to)
        if node.norm:
            norm = node.norm.op
            operation.scale, operation.slope, operation.constant = norm.scale, norm.slope, norm.constant
        self._in_scratch.append((operation, "to"))
        return operation

    def _weight_gradients(
        self, step: ConvStep, source: ops.Area, grad: ops.Area, *, in_pairs: bool
    ) -> Iterator[ops.WeightGradient]:
        vectors, taps = layout.forward_vectors(step, self.lanes), layout.forward_taps(step.conv)
        weight = self._weight(step)
        for table in layout.tables(vectors, taps, step.conv, weight.strides, source.row, source.pixel):
            product = self._product(step, table, source, grad, step.conv.stride, 1, in_pairs)
            product.height, product.width = grad.height, grad.width
            self._kept.append(product)
            gradient = ops.WeightGradient(ctypes.addressof(product), grad, 4 * self._gradient_floats)
            gradient.out_row, gradient.out_pixel, gradient.flat = grad.row, grad.pixel, product.flat
            unpack = ops.Unpack(4 * self._gradient_floats, None, self._table(table.index), table.index.size)
            self._gradient_floats += table.index.size
            self._gradients.append((gradient, unpack))
            self._in_scratch.append((gradient, "out"))
            weight.unpacks.append(unpack)
            self._unpacks.append(unpack)
            yield gradient

    def _input_products(
        self,
        step: ConvStep,
        grad: ops.Area,
        paired_grad: ops.Area | None,
        to: ops.Area,
        compact: ops.Area | None,
        halved: bool,
    ) -> Iterator[ctypes.Structure]:
        vectors, order = layout.input_vectors(step, self.lanes)
        weight, stride = self._weight(step), step.conv.stride
        out = to if compact is None else compact
        for y in range(min(stride, out.height)):
            for x in range(min(stride, out.width)):
                taps: list[layout.Tap] | list[layout.TapPair] = layout.input_taps(step.conv, y, x)
                in_pairs = paired_grad is not None and len(taps) > 1
                if in_pairs:
                    taps = layout.paired(layout.input_taps(step.conv, y, x))
                source = paired_grad if in_pairs and paired_grad is not None else grad
                for table in layout.tables(
                    vectors,
                    taps,
                    step.conv,
                    weight.strides,
                    grad.row,
                    grad.pixel,
                    transposed=True,
                    channel_pairs=halved,
                ):
                    product = self._product(step, table, source, out, 1, stride, in_pairs or halved)
                    product.height, product.width = -(-(out.height - y) // stride), -(-(out.width - x) // stride)
                    product.to.at = (product.to.at or 0) + 4 * (y * out.row + x * out.pixel)
                    self._packed(self.backward, product, table, weight)
                    yield product
        if compact is not None:
            yield self._permute(order, step.source, compact, to)

    def _blocks(
        self, to: ops.Operations, inner: list[ctypes.Structure], scratch: Scratch, images: int, floats: int
    ) -> None:
        self._scratch_floats = max(self._scratch_floats, floats)
        if scratch.framed:
            zero = ops.Zero(None, 4 * floats)
            self._in_scratch.append((zero, ""))
            to.add(zero)
        block, listed = ops.blocks(inner, images)
        self._kept.append(listed)
        to.add(block)

    def _place(self) -> None:
        """Allocate scratch and gradients, and set the addresses of what lies in them."""
        self._scratch = torch.zeros(self._scratch_floats + ALIGN // 4, dtype=torch.float32, device="cpu")
        start = self._scratch.data_ptr()
        start += -start % ALIGN
        for pair in self._pair_ops:
            pair.source, pair.to = (pair.source or 0) + start, (pair.to or 0) + start
        for operation, name in self._in_scratch:
            area = getattr(operation, name) if name else operation
            area.at = (area.at or 0) + start
        self._gradient = torch.zeros(max(1, self._gradient_floats), dtype=torch.float32, device="cpu")
        start = self._gradient.data_ptr()
        self._gradient_zero.at, self._gradient_zero.bytes = start, 4 * self._gradient_floats
        for gradient, unpack in self._gradients:
            gradient.gradient = (gradient.gradient or 0) + start
            unpack.source = (unpack.source or 0) + start


def _frame(step: Step) -> int:
    """Pixels of the frame that a step reads around its input; its gradient's input has the same."""
    return step.conv.kernel // 2 if isinstance(step, ConvStep) else 0


def _is_flat(area: ops.Area) -> bool:
    """Whether all images are one sequence of pixels."""
    return bool(area.row == area.width * area.pixel and area.image == area.height * area.row)
