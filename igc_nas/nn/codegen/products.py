"""A network with its chains multiplied out, for generated C: does that gain what it gains in other runtimes?

The factored network runs at the rate of a dense product, so it should not; `igc-nas bench deploy --runtime native`
measures it. A chain here ends at a batch norm, which is folded into the last convolution before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import torch

from igc_nas.arch.layers import Conv, Interleave, Layer, Residual
from igc_nas.arch.plan import BlockPlan, Plan
from igc_nas.nn.codegen.pack import Floats, Tensors
from igc_nas.nn.lowering.chain import Chain, Form, layout
from igc_nas.nn.lowering.compose import compose


def multiplied_out_plan(plan: Plan, tensors: Tensors, pick: Callable[[Chain], Form]) -> tuple[Plan, dict[str, Floats]]:
    """The plan and the tensors of the same function, with each chain in the form that `pick` names."""
    found = dict(tensors)
    blocks = [
        BlockPlan(block.name, tuple(_layers(block.layers, block.name, found, pick))) for block in plan.blocks[:-1]
    ]
    return Plan(plan.input, plan.classes, (*blocks, plan.blocks[-1])), found


def _layers(
    layers: tuple[Layer, ...], block: str, tensors: dict[str, Floats], pick: Callable[[Chain], Form]
) -> Iterator[Layer]:
    for linear, run in groupby(layers, lambda layer: isinstance(layer, Conv | Interleave)):
        if linear:
            yield from _chain(tuple(run), block, tensors, pick)
            continue
        for layer in run:
            if isinstance(layer, Residual):
                body, shortcut = (tuple(_layers(branch, block, tensors, pick)) for branch in layer.branches)
                yield Residual(body, shortcut)
            else:
                yield layer


def _chain(
    steps: tuple[Layer, ...], block: str, tensors: dict[str, Floats], pick: Callable[[Chain], Form]
) -> Iterator[Layer]:
    kept = [step for step in steps if isinstance(step, Conv | Interleave)]
    first = next((at for at, step in enumerate(kept) if isinstance(step, Conv)), len(kept))
    yield from kept[:first]
    if any(isinstance(step, Conv) and (step.bias or step.padding is not None) for step in kept) or first == len(kept):
        yield from kept[first:]
        return
    chain = Chain(tuple(kept[first:]), 1, 1)
    for segment in layout(chain, pick(chain)):
        weights = [torch.from_numpy(tensors[f"{block}.{conv.name}.weight"]) for conv in segment.convs]
        tensors[f"{block}.{segment.as_conv.name}.weight"] = compose(segment, weights).contiguous().numpy()
        yield segment.as_conv
        yield from segment.after
