"""Which way each convolution of a network runs, and in which order the stem writes, so that little is permuted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from igc_nas.arch.layers import Act, Conv, Interleave, Layer, Norm, Residual
from igc_nas.arch.plan import BlockPlan
from igc_nas.nn.codegen.orders import Order, group_major, interleaved, lane_major
from igc_nas.nn.codegen.program import Way, conv_orders, conv_ways, merged
from igc_nas.nn.training_step.layout import ConvStep, input_order

PERMUTE_COST = 2.0
"""Vector instructions that permuting one float costs about."""
MOST_STATES = 32
"""Orders that are followed at a time, the cheapest ones."""

States = dict[Order, tuple[float, tuple[Way, ...]]]
"""For each order that the layers so far can end in: the least cost, and the ways of the convolutions that have it."""


class Unsupported(Exception):  # noqa: N818 - an answer
    """The plan has something that the kernels do not compute."""


def best_ways(stem: BlockPlan, blocks: Sequence[BlockPlan], lanes: int) -> tuple[Order, tuple[Way, ...]]:
    """(the order in which the stem's dense convolution writes, the ways of the other convolutions in order).

    By dynamic programming over the orders between layers. Raises `Unsupported`.
    """
    conv, *others = stem.layers
    if not isinstance(conv, Conv) or conv.groups > 1 or not all(isinstance(layer, Norm | Act) for layer in others):
        raise Unsupported("a stem of another kind than one dense convolution")
    width = conv.out_channels
    orders = {group_major(1, width, lanes)}
    orders |= {lane_major(g, width // g, lanes) for g in range(lanes // 2, width) if width % g == 0}
    layers = tuple(layer for block in blocks for layer in block.layers)
    found = []
    for start in sorted(orders):
        cost, ways = min(_explored(layers, {start: (0.0, ())}, lanes).values())
        found.append((cost, start, ways))
    _, start, ways = min(found)
    return start, ways


def _explored(layers: tuple[Layer, ...], states: States, lanes: int) -> States:
    """The states behind `layers`; costs are for each of their input pixels."""
    scale = 1.0  # input pixels of a layer, as a share of the first one's
    for layer in layers:
        after: States = {}
        for order, (cost, ways) in states.items():
            for end, more, chosen in _steps(layer, order, lanes):
                total = cost + more * scale
                if end not in after or total < after[end][0]:
                    after[end] = (total, ways + chosen)
        states = dict(sorted(after.items(), key=lambda state: state[1][0])[:MOST_STATES])
        scale /= _stride(layer) ** 2
    return states


def _steps(layer: Layer, order: Order, lanes: int) -> list[tuple[Order, float, tuple[Way, ...]]]:
    """(order, cost, ways) of each way that a layer may go from an order."""
    match layer:
        case Conv():
            return [(*step_cost(layer, way, order, lanes), (way,)) for way in conv_ways(layer)]
        case Interleave(_, groups):
            return [(interleaved(order, groups), 0.0, ())]
        case Norm() | Act():
            return [(order, 0.0, ())]
        case Residual(body, shortcut):
            entry: States = {order: (0.0, ())}
            others = _explored(shortcut, entry, lanes)
            return [
                (end, cost + more + (0.0 if end == other else 3 * PERMUTE_COST * len(end)), ways + chosen)
                for end, (cost, ways) in _explored(body, entry, lanes).items()
                for other, (more, chosen) in others.items()
            ]
        case _:
            raise Unsupported(f"{type(layer).__name__} before the classifier")


def _stride(layer: Layer) -> int:
    if isinstance(layer, Residual):
        found = 1
        for inner in layer.body:
            found *= _stride(inner)
        return found
    return layer.stride if isinstance(layer, Conv) else 1


@lru_cache(maxsize=65_536)
def step_cost(conv: Conv, way: Way, order: Order, lanes: int) -> tuple[Order, float]:
    """(the order of the output, vector instructions of a training step for each input pixel)."""
    source, target = conv_orders(conv, way, order, lanes)
    step = ConvStep("", conv, way, source, target)
    inputs = merged(conv, lanes)[1] if way == "outputs" else conv.in_channels // conv.groups
    cost = 3 * len(target) / lanes * (inputs * conv.kernel**2 + 1) / conv.stride**2
    if source != order:
        cost += 2 * PERMUTE_COST * len(source)
    if input_order(step, lanes) != source:
        cost += PERMUTE_COST * len(source)
    return target, cost
