"""The plan: an architecture as layers in order. Cost, network, tables and exports are computed from it.

A new unit needs one more function here, which returns its layers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import lru_cache
from math import gcd

from igc_nas.arch.config import (
    ArchConfig,
    ConvStage,
    Head,
    Igcv1Stage,
    Igcv2Stage,
    Igcv3Stage,
    StageConfig,
    Stem,
)
from igc_nas.arch.layers import (
    Act,
    Concat,
    Conv,
    DualPath,
    Interleave,
    Layer,
    Linear,
    Norm,
    Pool,
    Residual,
    Split,
)


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
        first, rest = stage_layers(stage, in_width)
        blocks.append(BlockPlan(f"stage{number}.block1", first))
        blocks.extend(BlockPlan(f"stage{number}.block{i}", rest) for i in range(2, stage.blocks + 1))
    blocks.extend(end_blocks(arch.stages[-1].width, arch.head, arch.classes))
    return Plan(arch.input, arch.classes, tuple(blocks))


@lru_cache(maxsize=65_536)
def stage_layers(stage: StageConfig, in_width: int) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """(layers of the stage's first block, layers of each further block).

    Only the first block sees `in_width` channels and the stage's stride; the further ones keep the width.
    """
    return _block(stage, in_width, stage.stride, True), _block(stage, stage.width, 1, False)


def _block(stage: StageConfig, in_width: int, stride: int, first: bool) -> tuple[Layer, ...]:
    if isinstance(stage, Igcv3Stage):
        body = igcv3_layers(stage, in_width, stride)
        return (Residual(body),) if stage.residual and not first else body
    if not stage.residual:
        return (*unit_layers(stage, in_width, stride), Norm("norm", stage.width), Act("relu"))
    body = (
        *unit_layers(stage, in_width, stride, "1"),
        Norm("norm1", stage.width),
        Act("relu"),
        *unit_layers(stage, stage.width, 1, "2"),
        Norm("norm2", stage.width),
    )
    return Residual(body, _shortcut(stage, in_width, stride)), Act("relu")


def unit_layers(stage: StageConfig, in_width: int, stride: int, suffix: str = "") -> tuple[Layer, ...]:
    """The layers of one IGCV1, IGCV2 or regular unit: convolutions and interleaves, nothing nonlinear between them."""
    match stage:
        case Igcv1Stage():
            return igcv1_layers(stage, in_width, stride, suffix)
        case Igcv2Stage():
            return igcv2_layers(stage, in_width, stride, suffix)
        case ConvStage():
            return (Conv(f"conv{suffix}", in_width, stage.width, stage.kernel, stride),)
        case Igcv3Stage():
            raise AssertionError("an IGCV3 unit is three chains with BN between them")


def igcv1_layers(stage: Igcv1Stage, in_width: int, stride: int, suffix: str = "") -> tuple[Layer, ...]:
    """IGCV1 (section 3.1): x' = P W^d P^T W^p x, with L primary and M secondary groups."""
    width = stage.width
    return (
        Conv(f"primary{suffix}", in_width, width, stage.kernel, stride, groups=stage.L),
        Interleave(width, stage.L),
        Conv(f"secondary{suffix}", width, width, groups=stage.M),
        Interleave(width, stage.M),
    )


def igcv2_layers(stage: Igcv2Stage, in_width: int, stride: int, suffix: str = "") -> tuple[Layer, ...]:
    """IGCV2 (section 3.2): y = prod_l (P_l W_l) x, the first factor depthwise and spatial, the others 1x1.

    Interleave(C / K_l) follows layer l: then one path joins each pair of channels and the order is restored, for
    unequal K as well.
    """
    width = stage.width
    layers: list[Layer] = [
        Conv(f"depthwise{suffix}", in_width, width, stage.kernel, stride, groups=gcd(in_width, width))
    ]
    for number, k in enumerate(stage.channels_per_group, start=1):
        name = f"pointwise{suffix}_{number}" if suffix else f"pointwise{number}"
        layers += [Conv(name, width, width, groups=width // k), Interleave(width, width // k)]
    return tuple(layers)


def igcv3_layers(stage: Igcv3Stage, in_width: int, stride: int) -> tuple[Layer, ...]:
    """IGCV3 (section 3.1): expand (G1), interleave(G1), depthwise, project (G2); ReLU6 only after the depthwise."""
    inner = stage.expand * in_width
    return (
        Conv("expand", in_width, inner, groups=stage.G1),
        Norm("expand_norm", inner),
        Interleave(inner, stage.G1),
        Conv("depthwise", inner, inner, stage.kernel, stride, groups=inner),
        Norm("depthwise_norm", inner),
        Act("relu6"),
        Conv("project", inner, stage.width, groups=stage.G2),
        Norm("project_norm", stage.width),
    )


def _shortcut(stage: StageConfig, in_width: int, stride: int) -> tuple[Layer, ...]:
    if stride == 1 and in_width == stage.width:
        return ()
    match stage:
        case Igcv1Stage():
            groups = stage.L
        case Igcv2Stage():
            groups = gcd(in_width, stage.width)
        case _:
            groups = 1
    return Conv("shortcut", in_width, stage.width, 1, stride, groups), Norm("shortcut_norm", stage.width)


def stem_layers(stem: Stem, in_channels: int) -> tuple[Layer, ...]:
    """The stem: convolution, BN, activation."""
    conv = Conv("conv", in_channels, stem.width, stem.kernel, stem.stride)
    return conv, Norm("norm", stem.width), Act(stem.activation)


def end_blocks(features: int, head: Head | None, classes: int) -> tuple[BlockPlan, ...]:
    """The blocks behind the last stage's `features` channels: the head, if there is one, pooling and the classifier."""
    blocks: tuple[BlockPlan, ...] = ()
    if head:
        conv = Conv("conv", features, head.width)
        blocks = (BlockPlan("head", (conv, Norm("norm", head.width), Act(head.activation))),)
        features = head.width
    return (*blocks, BlockPlan("classifier", (Pool(), Linear("linear", features, classes))))


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
