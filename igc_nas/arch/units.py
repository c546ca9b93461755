"""The layers of the units: one function for each, from a stage's record to the layers of a block.

Further blocks of a stage see the width that it has by then, and stride 1.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from math import gcd

from igc_nas.arch.config import Head, Stem
from igc_nas.arch.layers import (
    Act,
    AvgPool,
    Concat,
    Conv,
    DualPath,
    Flatten,
    Interleave,
    Layer,
    Linear,
    MaxPool,
    Norm,
    Pool,
    PRelu,
    Residual,
    Select,
    Split,
    SqueezeExcite,
    Subsample,
)
from igc_nas.arch.shapes import Shape, layers_shape
from igc_nas.arch.stages import (
    AnyActivation,
    BottleneckStage,
    BsconvStage,
    ConvStage,
    DenseStage,
    DualPathStage,
    Igcv1Stage,
    Igcv2Stage,
    Igcv3Stage,
    InvertedStage,
    Pooling,
    SeparableStage,
    ShuffleV1Stage,
    ShuffleV2Stage,
    SqueezeExcitation,
    StageConfig,
    XceptionStage,
)

Layers = tuple[Layer, ...]


@lru_cache(maxsize=65_536)
def stage_blocks(stage: StageConfig, in_width: int) -> tuple[Layers, ...]:
    """The layers of each block of a stage. Blocks that are equal share one tuple, but where the width grows."""
    if isinstance(stage, DenseStage):
        return _dense_blocks(stage, in_width)
    if isinstance(stage, DualPathStage):
        return _dual_path_blocks(stage, in_width)
    first, rest = stage_layers(stage, in_width)
    return first, *(rest,) * (stage.blocks - 1)


@lru_cache(maxsize=65_536)
def stage_layers(stage: StageConfig, in_width: int) -> tuple[Layers, Layers]:
    """(layers of the stage's first block, layers of each further block), where all blocks have the stage's width.

    Only the first block sees `in_width` channels and the stage's stride; the further ones keep the width. Of a stage
    that grows, the second block stands for the further ones.
    """
    if isinstance(stage, DenseStage | DualPathStage):
        blocks = stage_blocks(stage, in_width)
        return blocks[0], blocks[min(1, len(blocks) - 1)]
    return _block(stage, in_width, stage.stride, True), _block(stage, stage.width, 1, False)


def _block(stage: StageConfig, in_width: int, stride: int, first: bool) -> Layers:
    match stage:
        case Igcv3Stage():
            body = igcv3_layers(stage, in_width, stride)
            return (Residual(body),) if stage.residual and not first else body
        case InvertedStage():
            return inverted_layers(stage, in_width, stride)
        case SeparableStage():
            return separable_layers(stage, in_width, stride)
        case ShuffleV1Stage():
            return shufflenetv1_layers(stage, in_width, stride)
        case ShuffleV2Stage():
            return shufflenetv2_layers(stage, in_width, stride)
        case XceptionStage():
            return xception_layers(stage, in_width, stride)
        case _ if stage.residual:
            return residual_layers(stage, in_width, stride)
        case _:
            return plain_layers(stage, in_width, stride)


def activation(kind: AnyActivation, name: str, channels: int) -> Act | PRelu:
    """An activation; `name` and `channels` are those of PReLU's slopes."""
    return PRelu(name, channels) if kind == "prelu" else Act(kind)


def squeeze_excite(stage: StageConfig, channels: int) -> Layers:
    """SE over a stage's `channels`, if it has any."""
    return _se(stage.squeeze_excitation, channels)


def _se(se: SqueezeExcitation | None, channels: int) -> Layers:
    return (SqueezeExcite("se", channels, se.squeeze(channels), se.gate, se.bias),) if se else ()


def _activated(stage: StageConfig, default: AnyActivation, name: str, channels: int) -> Layers:
    """The activation of a stage and its SE, which stands behind it, or in front of it where the stage says so."""
    act, se = activation(stage.activation or default, name, channels), squeeze_excite(stage, channels)
    before = stage.squeeze_excitation is not None and stage.squeeze_excitation.before_activation
    return (*se, act) if before else (act, *se)


def plain_layers(stage: StageConfig, in_width: int, stride: int) -> Layers:
    """One unit (or a bottleneck's three convolutions), each part with BN and activation, then SE and pooling."""
    parts = _parts(stage, in_width, stride)
    layers: list[Layer] = []
    normed = not (isinstance(stage, ConvStage) and stage.norm is False)
    for number, (part, channels) in enumerate(parts, start=1):
        suffix = str(number) if len(parts) > 1 else ""
        layers += [*part, *([Norm(f"norm{suffix}", channels)] if normed else [])]
        layers.append(activation(stage.activation or "relu", f"act{suffix}", channels))
    layers += squeeze_excite(stage, parts[-1][1])
    if isinstance(stage, ConvStage) and stage.pool:
        layers.append(pooling(stage.pool))
    return tuple(layers)


def residual_layers(stage: StageConfig, in_width: int, stride: int) -> Layers:
    """Two units, or a bottleneck's three convolutions, around a shortcut (ResNet, section 3.3).

    With `preact` BN and activation stand in front of each (arXiv 1603.05027); where the shape changes, the first of
    them are shared with the shortcut.
    """
    kind = stage.activation or "relu"
    parts = _parts(stage, in_width, stride)
    width = parts[-1][1]
    se, shortcut = squeeze_excite(stage, width), _shortcut(stage, in_width, width, stride)
    if not getattr(stage, "preact", None):
        body: list[Layer] = []
        for number, (part, channels) in enumerate(parts, start=1):
            body += [*part, Norm(f"norm{number}", channels), activation(kind, f"act{number}", channels)]
        norm = [Norm("shortcut_norm", width)] if shortcut and isinstance(shortcut[0], Conv) else []
        return Residual((*body[:-1], *se), (*shortcut, *norm)), activation(kind, "act", width)
    head: Layers = (Norm("norm1", in_width), activation(kind, "act1", in_width))
    rest: list[Layer] = [*parts[0][0]]
    for number, ((_, channels), (part, _)) in enumerate(pairwise(parts), start=2):
        rest += [Norm(f"norm{number}", channels), activation(kind, f"act{number}", channels), *part]
    if shortcut:
        return (*head, Residual((*rest, *se), shortcut))
    return (Residual((*head, *rest, *se)),)


def _parts(stage: StageConfig, in_width: int, stride: int) -> list[tuple[Layers, int]]:
    """(layers, output channels) of what has a BN of its own in a block: units, or a bottleneck's convolutions."""
    width = stage.width
    if isinstance(stage, BottleneckStage):
        inner = stage.inner
        return [
            ((Conv("reduce", in_width, inner),), inner),
            ((Conv("conv", inner, inner, stage.kernel, stride, stage.groups),), inner),
            ((Conv("expand", inner, width),), width),
        ]
    if not stage.residual:
        return [(unit_layers(stage, in_width, stride), width)]
    return [(unit_layers(stage, in_width, stride, "1"), width), (unit_layers(stage, width, 1, "2"), width)]


def unit_layers(stage: StageConfig, in_width: int, stride: int, suffix: str = "") -> Layers:
    """The layers of one IGCV1, IGCV2, BSConv or regular unit; but for BSConv-S nothing nonlinear is between them."""
    match stage:
        case Igcv1Stage():
            return igcv1_layers(stage, in_width, stride, suffix)
        case Igcv2Stage():
            return igcv2_layers(stage, in_width, stride, suffix)
        case ConvStage():
            groups, bias = stage.groups or 1, bool(stage.bias)
            return (Conv(f"conv{suffix}", in_width, stage.width, stage.kernel, stride, groups, bias=bias),)
        case BsconvStage():
            return bsconv_layers(in_width, stage.width, stage.kernel, stride, stage.reduce, suffix)
    raise AssertionError(f"{stage.unit} is not one unit of linear layers")


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
    """IGCV3 (section 3.1): expand (G1), interleave(G1), depthwise, project (G2); ReLU6 only after the depthwise.

    SE follows the depthwise convolution's activation, as in MobileNetV3.
    """
    inner = stage.expand * in_width
    return (
        Conv("expand", in_width, inner, groups=stage.G1),
        Norm("expand_norm", inner),
        Interleave(inner, stage.G1),
        Conv("depthwise", inner, inner, stage.kernel, stride, groups=inner),
        Norm("depthwise_norm", inner),
        activation(stage.activation or "relu6", "depthwise_act", inner),
        *squeeze_excite(stage, inner),
        Conv("project", inner, stage.width, groups=stage.G2),
        Norm("project_norm", stage.width),
    )


def bsconv_layers(in_width: int, width: int, kernel: int, stride: int, reduce: int | None, suffix: str = "") -> Layers:
    """BSConv-U: 1x1, depthwise; BSConv-S: 1x1 to C / reduce, BN, 1x1, BN, depthwise (arXiv 2003.13549, section 3)."""
    depthwise = Conv(f"depthwise{suffix}", width, width, kernel, stride, groups=width)
    if reduce is None:
        return Conv(f"pointwise{suffix}", in_width, width), depthwise
    inner = min(in_width, max(4, -(-in_width // reduce)))  # the public code's least number is 4
    return (
        Conv(f"reduce{suffix}", in_width, inner),
        Norm(f"reduce{suffix}_norm", inner),
        Conv(f"pointwise{suffix}", inner, width),
        Norm(f"pointwise{suffix}_norm", width),
        depthwise,
    )


def separable_layers(stage: SeparableStage, in_width: int, stride: int) -> Layers:
    """MobileNetV1 (section 3.1): depthwise, BN, activation, 1x1, BN, activation."""
    kind = stage.activation or "relu"
    between = (Norm("depthwise_norm", in_width), activation(kind, "depthwise_act", in_width))
    return (
        Conv("depthwise", in_width, in_width, stage.kernel, stride, groups=in_width),
        *(() if stage.linear else between),
        Conv("pointwise", in_width, stage.width),
        Norm("pointwise_norm", stage.width),
        *_activated(stage, "relu", "pointwise_act", stage.width),
    )


def inverted_layers(stage: InvertedStage, in_width: int, stride: int) -> Layers:
    """MobileNetV2 (section 3.3) and V3 (section 5): expand, depthwise, SE, linear 1x1; the identity added."""
    inner, width = stage.inner_width(in_width), stage.width
    expand: Layers = ()
    if inner != in_width or stage.always_expand:
        act = activation(stage.activation or "relu6", "expand_act", inner)
        expand = (Conv("expand", in_width, inner), Norm("expand_norm", inner), act)
    body = (
        *expand,
        Conv("depthwise", inner, inner, stage.kernel, stride, groups=inner),
        Norm("depthwise_norm", inner),
        *_activated(stage, "relu6", "depthwise_act", inner),
        Conv("project", inner, width),
        Norm("project_norm", width),
    )
    if not stage.residual or stride > 1 or (in_width != width and not stage.project):
        return body
    shortcut = () if in_width == width else (Conv("shortcut", in_width, width), Norm("shortcut_norm", width))
    return (Residual(body, shortcut),)


def _dense_blocks(stage: DenseStage, in_width: int) -> tuple[Layers, ...]:
    kind, width = stage.activation or "relu", stage.entry_width(in_width)
    transition: Layers = ()
    if stage.transition:
        norm, act = Norm("transition_norm", in_width), activation(kind, "transition_act", in_width)
        transition = (norm, act, Conv("transition", in_width, width))
    if stage.stride > 1:
        transition = (*transition, AvgPool(2, 2))
    blocks = [dense_layers(stage, width + number * stage.growth) for number in range(stage.blocks)]
    return (*transition, *blocks[0]), *blocks[1:]


def dense_layers(stage: DenseStage, width: int) -> Layers:
    """DenseNet (section 3): the input, then `growth` channels computed from it; CondenseNet's with groups."""
    kind, growth, groups = stage.activation or "relu", stage.growth, stage.groups
    branch: list[Layer] = [Select("select", width, width)] if stage.select else []
    if stage.bottleneck:
        inner = stage.bottleneck * growth
        branch += [Norm("norm1", width), activation(kind, "act1", width)]
        branch += [Conv("reduce", width, inner, groups=groups)]
        branch += [Interleave(inner, groups)] if groups > 1 else []
        width = inner
    branch += [Norm("norm", width), activation(kind, "act", width)]
    branch += [Conv("conv", width, growth, stage.kernel, groups=groups), *squeeze_excite(stage, growth)]
    return (Concat(((), tuple(branch))),)


def _dual_path_blocks(stage: DualPathStage, in_width: int) -> tuple[Layers, ...]:
    first, width = dual_path_layers(stage, in_width, stage.stride, True), stage.width + 2 * stage.growth
    rest = (dual_path_layers(stage, width + number * stage.growth, 1, False) for number in range(stage.blocks - 1))
    return first, *rest


def dual_path_layers(stage: DualPathStage, in_width: int, stride: int, first: bool) -> Layers:
    """DPN (section 4): `width` channels summed as in a residual block, the others appended as in a dense one."""
    kind, d, growth = stage.activation or "relu", stage.width, stage.growth
    if stage.inner is None:
        return _norm_first_dual_path(stage, in_width, stride, first)
    inner, out = stage.inner, d + growth
    body = (
        *(Conv("reduce", in_width, inner), Norm("norm1", inner), activation(kind, "act1", inner)),
        Conv("conv", inner, inner, stage.kernel, stride, stage.groups),
        *(Norm("norm2", inner), activation(kind, "act2", inner)),
        *(Conv("expand", inner, out), Norm("norm3", out), *squeeze_excite(stage, out)),
    )
    shortcut = (Conv("shortcut", in_width, out, 1, stride), Norm("shortcut_norm", out)) if first else ()
    written = d + 2 * growth if first else in_width + growth
    return DualPath(d, body, shortcut), activation(kind, "act", written)


def _norm_first_dual_path(stage: DualPathStage, in_width: int, stride: int, first: bool) -> Layers:
    kind, kernel = stage.activation or "relu", stage.kernel
    head: Layers = (Norm("norm1", in_width), activation(kind, "act1", in_width))
    out = stage.width if first else stage.width + stage.growth
    body: Layers = (
        Conv("conv1", in_width, out, kernel, stride),
        *(Norm("norm2", out), activation(kind, "act2", out)),
        *(Conv("conv2", out, out, kernel), *squeeze_excite(stage, out)),
    )
    if not first:
        return (DualPath(stage.width, (*head, *body)),)
    summed = (*head, Residual(body, (Conv("shortcut", in_width, out, 1, stride),)))
    return (Concat((summed, (Conv("dense", in_width, 2 * stage.growth, kernel, stride),))),)


def shufflenetv1_layers(stage: ShuffleV1Stage, in_width: int, stride: int) -> Layers:
    """ShuffleNetV1 (section 3.2, Figure 2): grouped 1x1, interleave, depthwise, grouped 1x1."""
    kind, inner, bias = stage.activation or "relu", stage.inner, bool(stage.bias)
    out = stage.width if stride == 1 else stage.width - in_width
    groups = stage.input_groups or stage.groups
    depthwise_act = (activation(kind, "act2", inner),) if stage.depthwise_activation else ()
    body = (
        *(Conv("reduce", in_width, inner, groups=groups, bias=bias), Norm("norm1", inner)),
        *(activation(kind, "act1", inner), Interleave(inner, groups)),
        Conv("depthwise", inner, inner, stage.kernel, stride, groups=inner, bias=bias),
        *(Norm("norm2", inner), *depthwise_act),
        *(Conv("expand", inner, out, groups=stage.groups, bias=bias), Norm("norm3", out), *squeeze_excite(stage, out)),
    )
    pooled: Layers = (AvgPool(3, stride, 1),)
    pair = (body, pooled) if stage.pool_last else (pooled, body)
    joined = Residual(body) if stride == 1 else Concat(pair)
    return joined, activation(kind, "act", stage.width)


def shufflenetv2_layers(stage: ShuffleV2Stage, in_width: int, stride: int) -> Layers:
    """ShuffleNetV2 (section 3.2, Figure 3 c, d)."""
    kind, half = stage.activation or "relu", stage.width // 2
    keeps = stride == 1 and in_width == stage.width
    entering = half if keeps else in_width
    branch = (
        *(Conv("reduce", entering, half), Norm("norm1", half), activation(kind, "act1", half)),
        *(Conv("depthwise", half, half, stage.kernel, stride, groups=half), Norm("norm2", half)),
        *(Conv("expand", half, half), Norm("norm3", half), activation(kind, "act3", half)),
        *squeeze_excite(stage, half),
    )
    if keeps:
        return Split(half, (), branch), Interleave(stage.width, 2)
    other = (
        Conv("shortcut_depthwise", in_width, in_width, stage.kernel, stride, groups=in_width),
        Norm("shortcut_norm1", in_width),
        *(Conv("shortcut", in_width, half), Norm("shortcut_norm2", half), activation(kind, "shortcut_act", half)),
    )
    return Concat((other, branch)), Interleave(stage.width, 2)


def xception_layers(stage: XceptionStage, in_width: int, stride: int) -> Layers:
    """Xception (section 4, Figure 5): ReLU, depthwise, 1x1, BN several times around a shortcut."""
    kind, width = stage.activation or "relu", stage.width
    body: list[Layer] = []
    channels = in_width
    for number in range(1, stage.depth + 1):
        out = in_width if stage.late and number < stage.depth else width
        body += [activation(kind, f"act{number}", channels)]
        body += [Conv(f"depthwise{number}", channels, channels, stage.kernel, groups=channels)]
        body += [Conv(f"pointwise{number}", channels, out), Norm(f"norm{number}", out)]
        channels = out
    if stride == 1 and in_width == width:
        return (Residual((*body, *squeeze_excite(stage, width))),)
    shortcut = (Conv("shortcut", in_width, width, 1, stride, bias=True), Norm("shortcut_norm", width))
    return (Residual((*body, MaxPool(3, stride, 1), *squeeze_excite(stage, width)), shortcut),)


def _shortcut(stage: StageConfig, in_width: int, width: int, stride: int) -> Layers:
    """A residual block's shortcut without its BN; () for the identity."""
    if stride == 1 and in_width == width:
        return ()
    if getattr(stage, "shortcut", None) == "pad":
        before = (width - in_width) // 2
        return (Subsample(stride, before, width - in_width - before),)
    match stage:
        case Igcv1Stage():
            groups = stage.L
        case Igcv2Stage():
            groups = gcd(in_width, width)
        case _:
            groups = 1
    return (Conv("shortcut", in_width, width, 1, stride, groups),)


def pooling(pool: Pooling) -> MaxPool | AvgPool:
    """Local pooling as a layer."""
    return (MaxPool if pool.kind == "max" else AvgPool)(pool.kernel, pool.stride, pool.padding)


def stem_layers(stem: Stem, in_channels: int) -> Layers:
    """The stem: convolution, BN, activation, pooling."""
    conv: Layers = (
        Conv(
            *("conv", in_channels, stem.width, stem.kernel, stem.stride),
            padding=stem.padding,
            bias=bool(stem.bias),
        ),
    )
    if stem.unit == "bsconv":
        conv = bsconv_layers(in_channels, stem.width, stem.kernel, stem.stride, stem.reduce)
    return (
        *((Norm("input_norm", in_channels),) if stem.input_norm else ()),
        *conv,
        *(() if stem.norm is False else (Norm("norm", stem.width),)),
        *(() if stem.activation == "none" else (activation(stem.activation, "act", stem.width),)),
        *((pooling(stem.pool),) if stem.pool else ()),
    )


def end_layers(shape: Shape, head: Head | None, classes: int) -> tuple[tuple[str, Layers], ...]:
    """(name, layers) of the blocks behind the last stage's output of `shape`: the head (if any) and the classifier.

    The sides of the map matter only where `head.reads_map`.
    """
    if head is None:
        return (("classifier", (Pool(), Linear("linear", shape[0], classes))),)
    layers = head_layers(shape, head)
    features = layers_shape(layers, shape)
    blocks = (("head", layers),) if layers else ()
    return *blocks, ("classifier", _classifier(features, head, classes))


def head_layers(shape: Shape, head: Head) -> Layers:
    """The layers between the last stage and the pooling: BN and activation, 1x1 convolution, SE, GDC."""
    channels, side = shape[0], shape[1]
    layers: list[Layer] = []
    if head.norm:
        layers += [Norm("input_norm", channels), activation(head.activation, "input_act", channels)]
    if head.width:
        channels = head.width
        layers += [Conv("conv", shape[0], channels), Norm("norm", channels)]
        layers += [activation(head.activation, "act", channels), *_se(head.squeeze_excitation, channels)]
    if head.pool == "gdc":
        layers += [Conv("gdc", channels, channels, side, groups=channels, padding=0), Norm("gdc_norm", channels)]
    return tuple(layers)


def _classifier(shape: Shape, head: Head, classes: int) -> Layers:
    """Pooling, hidden layers and the linear layer; of an embedding a 1x1 convolution and BN instead."""
    channels = shape[0]
    if head.embedding:
        return Conv("conv", channels, classes), Norm("norm", classes), Flatten()
    layers: list[Layer] = [Flatten() if head.reads_map else Pool()]
    (features,) = layers_shape(layers, shape)
    if head.select:
        layers.append(Select("select", features, head.select))
        features = head.select
    for number, width in enumerate(head.hidden or (), start=1):
        layers += [Linear(f"hidden{number}", features, width, head.hidden_bias is not False), Act(head.hidden_act)]
        features = width
    return (*layers, Linear("linear", features, classes))
