"""The parts of a network in order: its chains (`chain`), and the layers between them.

In training a batch normalisation ends a chain, because it needs the statistics of the batch (`training_parts`); at
inference it is an affine step of the chain (`inference_parts`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from igc_nas.arch.layers import Act, Activation, Conv, Interleave, Layer, Linear, Norm, Pool, Residual
from igc_nas.arch.plan import Plan
from igc_nas.nn.lowering.chain import Chain, Scale, Step


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
    """body(x) + shortcut(x), then the activation; an empty shortcut is the identity."""

    body: tuple[Part, ...]
    shortcut: tuple[Part, ...]
    act: Activation | None = None


Part = Chain | NormAct | Branches | Act | Pool | Linear


def training_parts(layers: tuple[Layer, ...], height: int, width: int) -> tuple[tuple[Part, ...], int, int]:
    """(the parts of a sequence of layers, the height and width of its output) in training."""
    parts: list[Part] = []
    queue = deque(layers)
    while queue:
        match queue[0]:
            case Conv():
                chain, order = _training_chain(queue, height, width)
                parts.append(chain)
                if order:
                    parts.append(NormAct(_norm(queue), _act(queue), order))
                height, width = _output_size(chain)
            case Norm():
                parts.append(NormAct(_norm(queue), _act(queue)))
            case Residual():
                branches, height, width = _branches(queue, height, width, training_parts)
                parts.append(branches)
            case _:
                parts.append(_plain(queue))
    return tuple(parts), height, width


def inference_parts(layers: tuple[Layer, ...], height: int, width: int) -> tuple[tuple[Part, ...], int, int]:
    """(the parts of a sequence of layers, the height and width of its output) at inference."""
    parts: list[Part] = []
    queue = deque(layers)
    while queue:
        match queue[0]:
            case Conv():
                chain = _inference_chain(queue, height, width)
                parts.append(chain)
                height, width = _output_size(chain)
            case Residual():
                branches, height, width = _branches(queue, height, width, inference_parts)
                parts.append(branches)
            case _:
                parts.append(_plain(queue))
    return tuple(parts), height, width


def training_blocks(whole: Plan) -> list[tuple[str, tuple[Part, ...]]]:
    """(name, training parts) of each block of a plan, each chain with the size of its input image."""
    return _blocks(whole, training_parts)


def inference_blocks(whole: Plan) -> list[tuple[str, tuple[Part, ...]]]:
    """(name, inference parts) of each block of a plan, each chain with the size of its input image."""
    return _blocks(whole, inference_parts)


def _blocks(whole: Plan, parts_of: _PartsOf) -> list[tuple[str, tuple[Part, ...]]]:
    _, height, width = whole.input
    found = []
    for block in whole.blocks:
        parts, height, width = parts_of(block.layers, height, width)
        found.append((block.name, parts))
    return found


def chains_in(parts: Sequence[Part]) -> Iterator[Chain]:
    """The chains of `parts` in order, those of residual branches included."""
    for part in parts:
        if isinstance(part, Chain):
            yield part
        elif isinstance(part, Branches):
            yield from chains_in(part.body)
            yield from chains_in(part.shortcut)


def _training_chain(queue: deque[Layer], height: int, width: int) -> tuple[Chain, tuple[Interleave, ...]]:
    """Take (the chain at the head of the queue, the interleaves moved from behind the following BN into it)."""
    steps: list[Step] = []
    while queue and isinstance(layer := queue[0], Conv | Interleave):
        steps.append(layer)
        queue.popleft()
    order: list[Interleave] = []
    while len(queue) > 1 and isinstance(queue[0], Norm) and isinstance(moved := queue[1], Interleave):
        del queue[1]
        order += [] if moved.is_identity else [moved]
    return Chain(_without_identities((*steps, *order)), height, width), tuple(order)


def _inference_chain(queue: deque[Layer], height: int, width: int) -> Chain:
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
    return Chain(tuple(steps), height, width)


def _output_size(chain: Chain) -> tuple[int, int]:
    height, width = chain.height, chain.width
    for conv in chain.convs:
        height, width = -(-height // conv.stride), -(-width // conv.stride)
    return height, width


def _branches(queue: deque[Layer], height: int, width: int, parts_of: _PartsOf) -> tuple[Branches, int, int]:
    residual = queue.popleft()
    assert isinstance(residual, Residual)
    body, after_height, after_width = parts_of(residual.body, height, width)
    shortcut, _, _ = parts_of(residual.shortcut, height, width)
    return Branches(body, shortcut, _act(queue)), after_height, after_width


_PartsOf = Callable[[tuple[Layer, ...], int, int], tuple[tuple[Part, ...], int, int]]


def _norm(queue: deque[Layer]) -> Norm:
    layer = queue.popleft()
    assert isinstance(layer, Norm)
    return layer


def _act(queue: deque[Layer]) -> Activation | None:
    if queue and isinstance(layer := queue[0], Act):
        queue.popleft()
        return layer.kind
    return None


def _plain(queue: deque[Layer]) -> Part:
    layer = queue.popleft()
    assert isinstance(layer, Act | Pool | Linear), "a chain starts with a convolution"
    return layer


def _without_identities(steps: Sequence[Step]) -> tuple[Step, ...]:
    return tuple(step for step in steps if not (isinstance(step, Interleave) and step.is_identity))
