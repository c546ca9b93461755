"""The plan: an architecture as layers in order. Cost, network, tables and exports are computed from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import lru_cache

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Act, Concat, Conv, DualPath, Interleave, Layer, Linear, Norm, Pool, Residual, Split
from igc_nas.arch.units import end_layers, stage_blocks, stem_layers


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Layers with a name of their own in tables and in a state_dict: `stem`, `stage2.block1`, `head`, `classifier`."""

    name: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The blocks in order of computation, for images of `input` = (channels, height, width) and `classes` classes."""

    input: tuple[int, int, int]
    classes: int
    blocks: tuple[BlockPlan, ...]


def plan(arch: ArchConfig) -> Plan:
    """The plan of an architecture. Equal blocks share one tuple of layers."""
    blocks = [BlockPlan("stem", stem_layers(arch.stem, arch.input[0]))]
    for number, stage, in_width in arch.with_input_widths():
        of_blocks = enumerate(stage_blocks(stage, in_width), start=1)
        blocks.extend(BlockPlan(f"stage{number}.block{i}", layers) for i, layers in of_blocks)
    end = end_layers((arch.features, *arch.map_sides), arch.head, arch.classes)
    return Plan(arch.input, arch.classes, (*blocks, *(BlockPlan(name, layers) for name, layers in end)))


def arch_id(arch: ArchConfig) -> str:
    """The canonical id: 12 hex digits over the normalised plan, its input and its classes.

    Names and identity interleaves are left out, so configurations that build the same network have the same id; equal
    ids have equal parameters, MACs and training.
    """
    whole = plan(arch)
    layers = [normalised(block.layers) for block in whole.blocks]
    text = json.dumps([whole.input, whole.classes, layers], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=65_536)
def normalised(layers: tuple[Layer, ...]) -> tuple[object, ...]:
    """Layers as plain nested tuples without names and without identity interleaves.

    Fields that came later (padding, biases) are in a tuple only where they differ from their defaults: ids stay.
    """
    out: list[object] = []
    for layer in layers:
        match layer:
            case Conv(_, c_in, c_out, kernel, stride, groups):
                padding = () if layer.pad == kernel // 2 else (("padding", layer.pad),)
                out.append(("conv", c_in, c_out, kernel, stride, groups, *padding, *(("bias",) if layer.bias else ())))
            case Interleave(channels, groups):
                if not layer.is_identity:
                    out.append(("interleave", channels, groups))
            case Norm(_, channels):
                out.append(("norm", channels))
            case Act(kind):
                out.append(("act", kind))
            case Pool():
                out.append(("pool",))
            case Linear(_, features, features_out, bias):
                out.append(("linear", features, features_out, *(() if bias else ("no bias",))))
            case Residual(body, shortcut):
                out.append(("residual", normalised(body), normalised(shortcut)))
            case Concat(branches):
                out.append(("concat", *map(normalised, branches)))
            case Split(channels, first, second):
                out.append(("split", channels, normalised(first), normalised(second)))
            case DualPath(channels, body, shortcut):
                out.append(("dual path", channels, normalised(body), normalised(shortcut)))
            case _:
                values = (getattr(layer, field.name) for field in fields(layer) if field.name != "name")
                out.append((type(layer).__name__, *values))
    return tuple(out)
