"""The parts of a network in order: its chains (`chain`), and the layers between them.

In training a batch normalisation ends a chain, because it needs the statistics of the batch (`training_parts`); at
inference it is an affine step of the chain (`inference_parts`). All that is not linear, or reads several tensors, ends
a chain in both: activations, squeeze-excite, pools, concatenations and splits. A normalisation or an interleave behind
such a layer stays by itself.

Average pooling without padding commutes with pointwise convolutions, biases included: where it follows them (the
transitions of DenseNet) it is moved in front of them, which leaves a fraction of their MACs, a quarter at 2x2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from igc_nas.arch.cost import Cost, layer_cost
from igc_nas.arch.layers import Act, Activation, AvgPool, Branched, Conv, Interleave, Layer, Norm
from igc_nas.arch.plan import Plan
from igc_nas.arch.shapes import Shape, entries, joined
from igc_nas.nn.lowering.chain import Chain, Scale, Step, is_spatial, output_size


@dataclass(frozen=True, slots=True)
class NormAct:
    """Batch normalisation and the activation that follows it, if any.

    `order` are interleaves that follow the normalisation in the plan. They were moved before it, into the chain, so the
    normalisation reads permuted channels.
    """

    norm: Norm
    act: Activation | None = None
    order: tuple[Interleave, ...] = ()


@dataclass(frozen=True, slots=True)
class Branches:
    """A layer with branches, the parts of each branch, and the activation that follows, if any."""

    layer: Branched
    branches: tuple[tuple[Part, ...], ...]
    act: Activation | None = None


@dataclass(frozen=True, slots=True)
class Single:
    """A layer that is no part of a chain, on inputs of `shape`."""

    layer: Layer
    shape: Shape


Part = Chain | NormAct | Branches | Single


def training_parts(layers: tuple[Layer, ...], shape: Shape) -> tuple[tuple[Part, ...], Shape]:
    """(the parts of a sequence of layers, the shape of its output) in training."""
    return _parts(layers, shape, training_parts)


def inference_parts(layers: tuple[Layer, ...], shape: Shape) -> tuple[tuple[Part, ...], Shape]:
    """(the parts of a sequence of layers, the shape of its output) at inference."""
    return _parts(layers, shape, inference_parts)


def training_blocks(whole: Plan) -> list[tuple[str, tuple[Part, ...]]]:
    """(name, training parts) of each block of a plan, each chain with the size of its input image."""
    return _blocks(whole, training_parts)


def inference_blocks(whole: Plan) -> list[tuple[str, tuple[Part, ...]]]:
    """(name, inference parts) of each block of a plan, each chain with the size of its input image."""
    return _blocks(whole, inference_parts)


def chains_in(parts: Sequence[Part]) -> Iterator[Chain]:
    """The chains of `parts` in order, those of branches included."""
    for part in parts:
        if isinstance(part, Chain):
            yield part
        elif isinstance(part, Branches):
            for branch in part.branches:
                yield from chains_in(branch)


def cost_beside_chains(parts: Sequence[Part]) -> Cost:
    """Parameters and MACs of all that is in no chain."""
    total = Cost()
    for part in parts:
        match part:
            case NormAct(norm):
                total += Cost(params=2 * norm.channels)
            case Branches(_, branches):
                total = sum(map(cost_beside_chains, branches), total)
            case Single(layer, shape):
                total += layer_cost(layer, shape)[0]
            case Chain():
                pass
    return total


def pooled_first(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers with each average pooling without padding in front of the pointwise convolutions that it follows."""
    found: list[Layer] = []
    for layer in layers:
        at = len(found)
        while isinstance(layer, AvgPool) and not layer.padding and at and _is_pointwise(found[at - 1]):
            at -= 1
        found.insert(at, layer)
    return tuple(found)


def _is_pointwise(layer: Layer) -> bool:
    return isinstance(layer, Interleave) or (isinstance(layer, Conv) and not is_spatial(layer))


_PartsOf = Callable[[tuple[Layer, ...], Shape], tuple[tuple[Part, ...], Shape]]


def _blocks(whole: Plan, parts_of: _PartsOf) -> list[tuple[str, tuple[Part, ...]]]:
    shape: Shape = whole.input
    found = []
    for block in whole.blocks:
        parts, shape = parts_of(block.layers, shape)
        found.append((block.name, parts))
    return found


def _parts(layers: tuple[Layer, ...], shape: Shape, parts_of: _PartsOf) -> tuple[tuple[Part, ...], Shape]:
    take_chain = _training_chain if parts_of is training_parts else _inference_chain
    parts: list[Part] = []
    queue = deque(pooled_first(layers))
    while queue:
        layer = queue[0]
        if isinstance(layer, Conv) and (take_chain is _inference_chain or _is_usual(layer)):
            chain, order = take_chain(queue, shape)
            parts.append(chain)
            if order:
                parts.append(NormAct(_norm(queue), _act(queue), order))
            shape = (chain.convs[-1].out_channels, *output_size(chain.convs, chain.height, chain.width))
        elif isinstance(layer, Norm):
            parts.append(NormAct(_norm(queue), _act(queue)))
        elif isinstance(layer, Branched):
            queue.popleft()
            found = [parts_of(*branch) for branch in zip(layer.branches, entries(layer, shape), strict=True)]
            shape = joined(layer, [after for _, after in found])
            parts.append(Branches(layer, tuple(branch for branch, _ in found), _act(queue)))
        else:
            queue.popleft()
            if not (isinstance(layer, Interleave) and layer.is_identity):
                parts.append(Single(layer, shape))
            shape = layer_cost(layer, shape)[1]
    return tuple(parts), shape


def _is_usual(conv: Conv) -> bool:
    """Whether a convolution is of the kind that chains of training hold: without bias, padded by kernel // 2."""
    return not conv.bias and conv.pad == conv.kernel // 2 and conv.kernel % 2 == 1


def _training_chain(queue: deque[Layer], shape: Shape) -> tuple[Chain, tuple[Interleave, ...]]:
    """Take (the chain at the head of the queue, the interleaves moved from behind the following BN into it)."""
    steps: list[Step] = []
    while queue and (isinstance(layer := queue[0], Interleave) or (isinstance(layer, Conv) and _is_usual(layer))):
        steps.append(layer)
        queue.popleft()
    order: list[Interleave] = []
    while len(queue) > 1 and isinstance(queue[0], Norm) and isinstance(moved := queue[1], Interleave):
        del queue[1]
        order += [] if moved.is_identity else [moved]
    return Chain(_without_identities((*steps, *order)), *shape[1:]), tuple(order)


def _inference_chain(queue: deque[Layer], shape: Shape) -> tuple[Chain, tuple[Interleave, ...]]:
    """Take the chain at the head of the queue; each BN goes directly behind the convolution that it follows."""
    steps: list[Step] = []
    behind = 0  # interleaves after the last convolution
    while queue and isinstance(layer := queue[0], Conv | Interleave | Norm):
        queue.popleft()
        if isinstance(layer, Norm):
            at = len(steps) - behind
            steps.insert(at, Scale(layer, tuple(steps[at:])))  # type: ignore[arg-type]
        elif isinstance(layer, Conv):
            steps.append(layer)
            behind = 0
        elif not layer.is_identity:
            steps.append(layer)
            behind += 1
    return Chain(tuple(steps), *shape[1:]), ()


def _norm(queue: deque[Layer]) -> Norm:
    layer = queue.popleft()
    assert isinstance(layer, Norm)
    return layer


def _act(queue: deque[Layer]) -> Activation | None:
    if queue and isinstance(layer := queue[0], Act):
        queue.popleft()
        return layer.kind
    return None


def _without_identities(steps: Sequence[Step]) -> tuple[Step, ...]:
    return tuple(step for step in steps if not (isinstance(step, Interleave) and step.is_identity))
