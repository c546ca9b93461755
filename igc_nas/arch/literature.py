"""The literature's networks by name: the baselines that a front is compared with.

Each is the network that its paper or the named public code builds for 32 x 32 images, unless its name says otherwise,
and has its parameters and multiply-adds exactly. Papers from MobileNet on print no CIFAR networks; for those the forms
of public code stand, where several exist under a name of their own: `-bs` is that of BSConv's authors
(zeiss-microscopy/BSConv), `-kuangliu` that of kuangliu/pytorch-cifar, `-wei` that of weiaicunzai/pytorch-cifar100.

Printed errors are those of long trainings under recipes of their own, test set, not comparable with a proxy's. Errors
that were chosen on the test set are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.papers import Printed, Reference
from igc_nas.arch.stages import divisible
from igc_nas.errors import ConfigError
from igc_nas.io.text import nearest

Json = dict[str, Any]
NORM_FIRST: Json = {"norm": False, "activation": "none"}
"""The stem of a pre-activation network."""
LAST_NORM: Json = {"norm": True, "activation": "relu"}
"""The head of a pre-activation network."""
IMAGENET = {"input": (3, 224, 224), "classes": 1000}


@dataclass(frozen=True, slots=True)
class Family:
    """Networks that share a pattern of names; `build` takes a name and the named groups of `regex` as text."""

    regex: str
    build: Callable[..., Json]
    paper: str


def plain(name: str, depth: str) -> Json:
    """A ResNet without shortcuts: (depth - 2) / 3 convolutions in each of three stages."""
    blocks = _blocks(name, int(depth), 6, 2) * 2
    return _three(16, [{"unit": "conv", "width": width, "blocks": blocks} for width in (16, 32, 64)])


def resnet(name: str, depth: str, se: str, option: str = "", nobias: str = "") -> Json:
    """ResNet (section 4.2): basic blocks, 6n + 2 layers; shortcuts `a` pad, `b` are 1x1 convolutions.

    With SE (SENet) of ratio 16 at the end of each body.
    """
    shortcut = {"shortcut": "pad"} if option == "a" else {}
    blocks = _blocks(name, int(depth), 6, 2)
    stage = {"unit": "conv", "blocks": blocks, "residual": True, **shortcut, **_se16(se, nobias)}
    return _three(16, [{**stage, "width": width} for width in (16, 32, 64)])


def preresnet(name: str, depth: str, se: str) -> Json:
    """Pre-activation ResNet (arXiv 1603.05027): basic blocks, bottlenecks for its 164 and 1001 layers."""
    if depth in ("164", "1001"):
        blocks = _blocks(name, int(depth), 9, 2)
        stage: Json = {"unit": "bottleneck", "blocks": blocks, "preact": True, **_se16(se)}
        stages = [{**stage, "width": 4 * inner, "inner": inner} for inner in (16, 32, 64)]
    else:
        blocks = _blocks(name, int(depth), 6, 2)
        stage = {"unit": "conv", "blocks": blocks, "residual": True, "preact": True, **_se16(se)}
        stages = [{**stage, "width": width} for width in (16, 32, 64)]
    return _three(16, stages, stem=NORM_FIRST, head=LAST_NORM)


def wide_resnet(name: str, depth: str, width: str, se: str = "", bsconv: str = "") -> Json:
    """Wide ResNet (arXiv 1605.07146): pre-activation, 6n + 4 layers, widths 16k, 32k, 64k."""
    blocks, k = _blocks(name, int(depth), 6, 4), _number(name, "the width", int(width), 1, 64)
    unit = {"blocks": blocks, "residual": True, "preact": True, **_bsconv(bsconv), **_se16(se)}
    stages = [{**unit, "width": k * base} for base in (16, 32, 64)]
    return _three(16, stages, stem=NORM_FIRST | _bsconv_stem(bsconv), head=LAST_NORM)


def bsconv_resnet(name: str, depth: str, bsconv: str) -> Json:
    """ResNet with option B whose 3x3 convolutions are BSConvs."""
    unit = {"blocks": _blocks(name, int(depth), 6, 2), "residual": True, **_bsconv(bsconv)}
    return _three(16, [{**unit, "width": width} for width in (16, 32, 64)], stem=_bsconv_stem(bsconv))


def resnext(name: str, depth: str, cardinality: str, width: str, kuangliu: str) -> Json:
    """ResNeXt (section 5.3): bottlenecks of C groups of d channels, output widths 256, 512, 1024."""
    c, d = int(cardinality), int(width)
    blocks = _blocks(name, int(depth), 9, 2)
    outputs = [2 * c * d << i for i in range(3)] if kuangliu else [256, 512, 1024]
    stages = [
        {"unit": "bottleneck", "blocks": blocks, "width": out, "inner": c * d << i, "groups": c}
        for i, out in enumerate(outputs)
    ]
    return _three(64, stages, stem={"kernel": 1} if kuangliu else {})


def densenet(name: str, depth: str, growth: str, kind: str = "", pytorchcv: str = "") -> Json:
    """DenseNet (section 3): three dense blocks; B: bottlenecks of 4k, C: transitions that halve the channels.

    16 channels enter the first block, 2k with bottlenecks (the paper's counts); pytorchcv's always halve, and take 2k.
    """
    k = _number(name, "the growth rate", int(growth), 1, 4096)
    bottleneck = "b" in kind
    blocks = _blocks(name, int(depth), 6 if bottleneck else 3, 4)
    width = first = 2 * k if bottleneck or pytorchcv else 16
    stages: list[Json] = []
    for number in range(3):
        stage: Json = {"unit": "dense", "blocks": blocks, "growth": k} | ({"bottleneck": 4} if bottleneck else {})
        if number:
            width = width // 2 if "c" in kind or pytorchcv else width
            stage |= {"transition": width, "stride": 2}
        stages.append(stage)
        width += blocks * k
    return {"stem": {"width": first, **NORM_FIRST}, "stage": stages, "head": LAST_NORM}


def condensenet(name: str, depth: str) -> Json:
    """CondenseNet as converted (arXiv 1711.09224): growth 8, 16, 32 (182 layers: 12, 24, 48), groups of 4.

    The learned indices are data: a new network has fixed ones. Half of the features reach the classifier.
    """
    blocks = _blocks(name, int(depth), 6, 2)
    first = 12 if depth == "182" else 8
    dense = {"unit": "dense", "blocks": blocks, "bottleneck": 4, "groups": 4, "select": True}
    stages = [{**dense, "growth": first << i, "stride": 2 if i else 1} for i in range(3)]
    features = 2 * first + blocks * 7 * first
    stem = {"width": 2 * first, **NORM_FIRST}
    return {"stem": stem, "stage": stages, "head": LAST_NORM | {"select": features // 2}}


def mobilenetv1(name: str, multiplier: str, bs: str) -> Json:
    """MobileNetV1 (arXiv 1704.04861): kuangliu's strides (last map 2x2), or those of BSConv's authors (4x4)."""
    m = _multiplier(name, multiplier)
    runs = ((64, 1, 1), (128, 2, 1 if bs else 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))
    stages = [
        {"unit": "separable", "width": int(width * m), "blocks": blocks, "stride": stride}
        for width, blocks, stride in runs
    ]
    return {"stem": {"width": int(32 * m), **_on_image(bs)}, "stage": stages}


V2_ROWS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
"""(expansion, width, blocks): arXiv 1801.04381, Table 2."""


def mobilenetv2(name: str, multiplier: str = "1", form: str = "", gdc: str = "") -> Json:
    """MobileNetV2 (Table 2), in chenyaofo's form for CIFAR, or in one of other authors.

    `igcv3` is that of IGCV3's authors with the strides proved for IGCV3: an inference, they published none. With `gdc`
    a global depthwise convolution (MobileFaceNet) stands for the pooling.
    """
    m = _multiplier(name, multiplier)
    strides = {"": (1, 1, 2, 2, 1, 2, 1), "bs": (1, 1, 2, 2, 1, 2, 1), "igcv3": (1, 1, 2, 2, 1, 1, 1)}
    widths = [int(width * m) if form == "bs" else divisible(width * m, 8) for _, width, _ in V2_ROWS]
    own: Json = {"always_expand": True} if form else {}
    own |= {"activation": "relu", "project": True} if form == "kuangliu" else {}
    stages = [
        {"unit": "inverted", "expand": t, "width": width, "blocks": blocks, "stride": stride, **own}
        for (t, _, blocks), width, stride in zip(V2_ROWS, widths, strides.get(form, strides[""]), strict=True)
    ]
    act = "relu" if form == "kuangliu" else "relu6"
    first, last = (int(32 * m), 1280) if form == "bs" else (divisible(32 * m, 8), divisible(1280 * max(1.0, m), 8))
    head = {"width": last, "activation": act} | ({"pool": "gdc"} if gdc else {})
    return {"stem": {"width": first, "activation": act, **_on_image(form == "bs")}, "stage": stages, "head": head}


V3_SMALL = (
    (3, 16, 16, "se", "relu", 2), (3, 72, 24, "", "relu", 2), (3, 88, 24, "", "relu", 1),
    (5, 96, 40, "se", "hswish", 2), (5, 240, 40, "se", "hswish", 1), (5, 240, 40, "se", "hswish", 1),
    (5, 120, 48, "se", "hswish", 1), (5, 144, 48, "se", "hswish", 1), (5, 288, 96, "se", "hswish", 2),
    (5, 576, 96, "se", "hswish", 1), (5, 576, 96, "se", "hswish", 1),
)  # fmt: skip
V3_LARGE = (
    (3, 16, 16, "", "relu", 1), (3, 64, 24, "", "relu", 2), (3, 72, 24, "", "relu", 1), (5, 72, 40, "se", "relu", 2),
    (5, 120, 40, "se", "relu", 1), (5, 120, 40, "se", "relu", 1), (3, 240, 80, "", "hswish", 2),
    (3, 200, 80, "", "hswish", 1), (3, 184, 80, "", "hswish", 1), (3, 184, 80, "", "hswish", 1),
    (3, 480, 112, "se", "hswish", 1), (3, 672, 112, "se", "hswish", 1), (5, 672, 160, "se", "hswish", 2),
    (5, 960, 160, "se", "hswish", 1), (5, 960, 160, "se", "hswish", 1),
)  # fmt: skip
"""(kernel, inner width, width, SE, activation, stride) of each block: arXiv 1905.02244, Tables 1 and 2."""


def mobilenetv3(name: str, size: str, multiplier: str = "1", bs: str = "", imagenet: str = "") -> Json:
    """MobileNetV3 (Tables 1, 2), in ShowLo's form for CIFAR, that of BSConv's authors, or as it is for ImageNet.

    For CIFAR the stem and the first block of stride 2 have stride 1. BSConv's authors leave the hidden layer out.
    """
    m = _multiplier(name, multiplier)
    se: Json = {"ratio": 4, "gate": "hsigmoid"}
    if imagenet:
        se["divisor"] = 8
    elif not bs:
        se |= {"bias": False, "before_activation": True}
    rows = V3_SMALL if size == "small" else V3_LARGE
    first_stride = next(number for number, row in enumerate(rows) if row[-1] == 2)
    stages: list[Json] = []
    for number, (kernel, inner, width, has_se, act, stride) in enumerate(rows):
        stage: Json = {"unit": "inverted", "inner": int(inner * m), "width": int(width * m), "blocks": 1}
        stage |= {"kernel": kernel, "activation": act}
        stage |= {"se": se} if has_se else {}
        stage |= {"always_expand": True} if bs else {}
        stages.append(stage | {"stride": stride if imagenet or number != first_stride else 1})
    last, hidden = (576, 1024) if size == "small" else (960, 1280)
    head: Json = {"width": last, "activation": "hswish"}
    if bs:
        head |= {"se": se} if size == "small" else {}
    else:
        head |= {"hidden": (hidden,)} | ({} if imagenet else {"hidden_bias": False})
    stem = {"width": int(16 * m), "activation": "hswish", "stride": 2 if imagenet else 1, **_on_image(bs)}
    return (IMAGENET if imagenet else {}) | {"stem": stem, "stage": stages, "head": head}


def dpn(name: str, depth: str) -> Json:
    """DPN (arXiv 1707.01629) in kuangliu's form for CIFAR: 26 or 92 layers, 32 groups."""
    of_depth = {"26": (2, 2, 2, 2), "92": (3, 4, 20, 3)}
    blocks = of_depth[_one_of(name, "the depth", depth, of_depth, "dpn{}")]
    growth = (16, 32, 24, 128)
    stages = [
        {"unit": "dualpath", "width": 256 << i, "inner": 96 << i, "groups": 32, "growth": growth[i], "blocks": n}
        for i, n in enumerate(blocks)
    ]
    for stage in stages[1:]:
        stage["stride"] = 2
    return {"stem": {"width": 64}, "stage": stages}


def dualpathnet(name: str, depth: str, width: str) -> Json:
    """What is known as DPN-28-10: Queequeg92/DualPathNet's wide ResNet with a dense path; not of the DPN paper."""
    blocks, k = _blocks(name, int(depth), 6, 4), _number(name, "the width", int(width), 1, 64)
    stages = [{"unit": "dualpath", "width": 16 * k << i, "growth": 16 << i, "blocks": blocks} for i in range(3)]
    return _three(16, stages, stem=NORM_FIRST, head=LAST_NORM)


def shufflenetv1(name: str, groups: str, wei: str) -> Json:
    """ShuffleNetV1 (arXiv 1707.01083) in kuangliu's form (2 or 3 groups), or weiaicunzai's (3 groups)."""
    widths = {"3": 240} if wei else {"2": 200, "3": 240}
    g = int(_one_of(name, "the number of groups", groups, widths, f"shufflenetv1-g{{}}{wei}"))
    first, counts = widths[groups], (4, 8, 4)
    own: Json = {"bias": True} if wei else {"pool_last": True, "depthwise_activation": True}
    stages: list[Json] = []
    entering = 24
    for number, count in enumerate(counts):
        width = first << number
        common: Json = {"unit": "shufflenetv1", "width": width, "groups": g, **own}
        inner = width // 4 if wei else (width - entering) // 4
        first_groups = {"input_groups": 1} if number == 0 and not wei else {}
        stages.append({**common, "blocks": 1, "stride": 2, "inner": inner, **first_groups})
        stages.append({**common, "blocks": count - 1, "inner": width // 4})
        entering = width
    return {"stem": {"width": 24, **({"bias": True} if wei else {"kernel": 1})}, "stage": stages}


SHUFFLE_WIDTHS = {
    "0.5": (48, 96, 192, 1024), "1.0": (116, 232, 464, 1024), "1.5": (176, 352, 704, 1024),
    "2.0": (244, 488, 976, 2048),
}  # fmt: skip
"""Widths of the stages and the head by multiplier: arXiv 1807.11164, Table 5."""


def shufflenetv2(name: str, multiplier: str) -> Json:
    """ShuffleNetV2 (arXiv 1807.11164, Table 5) in chenyaofo's form for CIFAR: stem of stride 1, no max-pool."""
    m = f"{float(multiplier):.1f}" if float(multiplier) * 2 % 1 == 0 else multiplier
    *widths, last = SHUFFLE_WIDTHS[_one_of(name, "the multiplier", m, SHUFFLE_WIDTHS, "shufflenetv2-x{}")]
    stages = [
        {"unit": "shufflenetv2", "width": width, "blocks": blocks, "stride": 2}
        for width, blocks in zip(widths, (4, 8, 4), strict=True)
    ]
    return {"stem": {"width": 24}, "stage": stages, "head": {"width": last, "activation": "relu"}}


def xception(name: str) -> Json:
    """Xception (arXiv 1610.02357) in weiaicunzai's form for CIFAR: last map 4x4."""
    unit = {"unit": "xception", "blocks": 1}
    tail = {"unit": "separable", "blocks": 1, "linear": True}
    stages: list[Json] = [
        {"unit": "conv", "width": 64, "blocks": 1},
        *({**unit, "width": width, "stride": stride} for width, stride in ((128, 2), (256, 2), (728, 1))),
        {**unit, "width": 728, "blocks": 8, "depth": 3},
        {**unit, "width": 1024, "stride": 2, "late": True},
        *({**tail, "width": width} for width in (1536, 2048)),
    ]
    return {"stem": {"width": 32}, "stage": stages}


def mobilefacenet(name: str) -> Json:
    """MobileFaceNet (arXiv 1804.07573, Table 1): faces of 112 x 112 to a vector of 128 numbers, by GDC."""
    rows = ((1, 64, 1, 2), (2, 64, 4, 1), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
    prelu = {"activation": "prelu"}
    stages: list[Json] = [{"unit": "separable", "width": 128, "blocks": 1, **prelu}]
    stages += [
        {"unit": "inverted", "expand": t, "width": width, "blocks": blocks, "stride": stride, **prelu}
        for t, width, blocks, stride in rows
    ]
    head = {"width": 512, "pool": "gdc", "embedding": True, **prelu}
    stem = {"width": 64, "stride": 2, **prelu}
    return {"input": (3, 112, 112), "classes": 128, "stem": stem, "stage": stages, "head": head}


def alexnet(name: str) -> Json:
    """AlexNet with its grouped convolutions, for ImageNet images of 227 x 227, without response normalisation."""
    pool = {"kind": "max", "kernel": 3, "stride": 2}
    conv = {"unit": "conv", "blocks": 1, "bias": True, "norm": False}
    stem = {"width": 96, "kernel": 11, "stride": 4, "padding": 0, "bias": True, "norm": False, "pool": pool}
    stages: list[Json] = [
        {**conv, "width": 256, "kernel": 5, "groups": 2, "pool": pool},
        {**conv, "width": 384},
        {**conv, "width": 384, "groups": 2},
        {**conv, "width": 256, "groups": 2, "pool": pool},
    ]
    head = {"pool": "flatten", "hidden": (4096, 4096), "activation": "relu"}
    return {"input": (3, 227, 227), "classes": 1000, "stem": stem, "stage": stages, "head": head}


_N = "[0-9]{1,5}"
_M = r"[0-9]{1,4}(?:\.[0-9]{1,4})?"
FAMILIES = {
    "plain{n}": Family(rf"plain(?P<depth>{_N})", plain, "arXiv 1512.03385"),
    "resnet{n}-a": Family(rf"(?P<se>se-)?resnet(?P<depth>{_N})-(?P<option>a|b)", resnet, "arXiv 1512.03385"),
    "se-resnet{n}": Family(rf"(?P<se>se-)resnet(?P<depth>{_N})(?P<nobias>-nobias)?", resnet, "arXiv 1709.01507"),
    "preresnet{n}": Family(rf"(?P<se>se-)?preresnet(?P<depth>{_N})", preresnet, "arXiv 1603.05027"),
    "wrn-{d}-{w}": Family(rf"(?P<se>se-)?wrn-?(?P<depth>{_N})-(?P<width>{_N})", wide_resnet, "arXiv 1605.07146"),
    "wrn-{d}-{w}-bsconv-s": Family(
        rf"wrn-?(?P<depth>{_N})-(?P<width>{_N})-bsconv-(?P<bsconv>u|s)", wide_resnet, "arXiv 2003.13549"
    ),
    "resnet{n}-bsconv-s": Family(rf"resnet(?P<depth>{_N})-bsconv-(?P<bsconv>u|s)", bsconv_resnet, "arXiv 2003.13549"),
    "resnext{n}-{C}x{d}d": Family(
        rf"resnext(?P<depth>{_N})-(?P<cardinality>{_N})x(?P<width>{_N})d(?P<kuangliu>-kuangliu)?",
        resnext,
        "arXiv 1611.05431",
    ),
    "densenet-{L}-{k}": Family(
        rf"densenet-(?P<depth>{_N})-(?P<growth>{_N})(?P<pytorchcv>-pytorchcv)?", densenet, "arXiv 1608.06993"
    ),
    "densenet-bc-{L}-{k}": Family(
        rf"densenet-(?P<kind>bc|b|c)-(?P<depth>{_N})-(?P<growth>{_N})", densenet, "arXiv 1608.06993"
    ),
    "condensenet-{L}": Family(rf"condensenet-(?P<depth>{_N})", condensenet, "arXiv 1711.09224"),
    "mobilenetv1-x{m}": Family(rf"mobilenetv1(?P<bs>-bs)?-x(?P<multiplier>{_M})", mobilenetv1, "arXiv 1704.04861"),
    "mobilenetv2-x{m}": Family(
        rf"mobilenetv2(?:-(?P<form>bs))?-x(?P<multiplier>{_M})", mobilenetv2, "arXiv 1801.04381"
    ),
    "mobilenetv2-igcv3": Family(r"mobilenetv2-(?P<form>kuangliu|igcv3)(?P<gdc>-gdc)?", mobilenetv2, "arXiv 1801.04381"),
    "mobilenetv3-small": Family(
        r"mobilenetv3-(?P<size>small|large)(?P<imagenet>-imagenet)?", mobilenetv3, "arXiv 1905.02244"
    ),
    "mobilenetv3-small-bs-x{m}": Family(
        rf"mobilenetv3-(?P<size>small|large)(?P<bs>-bs)-x(?P<multiplier>{_M})", mobilenetv3, "arXiv 1905.02244"
    ),
    "dpn92": Family(rf"dpn(?P<depth>{_N})", dpn, "arXiv 1707.01629"),
    "dualpathnet{d}-{w}": Family(rf"dualpathnet(?P<depth>{_N})-(?P<width>{_N})", dualpathnet, "Queequeg92/DualPathNet"),
    "shufflenetv1-g{g}": Family(rf"shufflenetv1-g(?P<groups>{_N})(?P<wei>-wei)?", shufflenetv1, "arXiv 1707.01083"),
    "shufflenetv2-x{m}": Family(rf"shufflenetv2-x(?P<multiplier>{_M})", shufflenetv2, "arXiv 1807.11164"),
    "xception": Family("xception", xception, "arXiv 1610.02357"),
    "mobilefacenet-112": Family("mobilefacenet-112", mobilefacenet, "arXiv 1804.07573"),
    "alexnet-groups-imagenet": Family("alexnet-groups-imagenet", alexnet, "Krizhevsky et al., NIPS 2012"),
}
"""By the pattern of their names, as messages show it."""


NAMES = (
    "plain20", "plain44", "plain110", "resnet20-a", "resnet44-a", "resnet56-a", "resnet20-b", "resnet32-b",
    "resnet110-b", "resnet56-b", "preresnet110", "resnext29-1x64d", "resnext29-32x4d", "resnext29-8x64d",
    "resnext29-16x64d", "resnext29-2x64d-kuangliu", "densenet-40-12", "densenet-100-12", "densenet-100-24",
    "densenet-bc-100-12", "densenet-bc-250-24", "densenet-bc-190-40", "densenet-40-12-pytorchcv",
    "densenet-b-100-12", "se-resnet20", "se-resnet110", "se-resnet56", "se-resnet20-nobias", "se-preresnet110",
    "se-preresnet164", "se-wrn16-8", "mobilenetv1-x0.5", "mobilenetv1-x0.75", "mobilenetv1-x1.0",
    "mobilenetv1-bs-x0.25", "mobilenetv1-bs-x0.75", "mobilenetv1-bs-x0.5", "mobilenetv1-bs-x1.0",
    "mobilenetv2-kuangliu", "mobilenetv2-x0.5", "mobilenetv2-x1.0", "mobilenetv2-x0.75", "mobilenetv2-x1.4",
    "mobilenetv2-bs-x0.5", "mobilenetv2-bs-x1.0", "mobilenetv2-bs-x0.25", "mobilenetv2-igcv3",
    "mobilenetv3-small", "mobilenetv3-large", "mobilenetv3-small-bs-x1.0", "mobilenetv3-large-bs-x0.5",
    "mobilenetv3-small-bs-x0.5", "mobilenetv3-large-bs-x1.0", "mobilenetv3-small-imagenet", "dpn92",
    "dualpathnet28-10", "shufflenetv1-g2", "shufflenetv1-g3-wei", "shufflenetv2-x0.5", "shufflenetv2-x1.5",
    "shufflenetv2-x1.0", "shufflenetv2-x2.0", "xception", "condensenet-50", "condensenet-86", "condensenet-110",
    "condensenet-122", "condensenet-182", "mobilefacenet-112", "mobilenetv2-igcv3-gdc",
    "alexnet-groups-imagenet", "resnet56-bsconv-s", "resnet110-bsconv-s", "wrn-28-2-bsconv-s",
    "wrn-40-3-bsconv-s", "wrn-16-2-bsconv-s", "wrn-16-2-bsconv-u", "wrn-16-8-bsconv-s", "wrn-28-2-bsconv-u",
    "wrn-28-4-bsconv-s", "wrn-28-6-bsconv-s", "wrn-28-8-bsconv-s", "wrn-40-1-bsconv-u", "wrn-40-2-bsconv-s",
    "wrn-40-4-bsconv-s", "wrn-40-6-bsconv-s",
)  # fmt: skip
"""The networks that were compared with their papers and public code, layer by layer or by their printed sizes."""

_SOURCES: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "arXiv 1512.03385, Table 6": {
        "resnet20-a": (8.75, None), "resnet44-a": (7.17, None), "resnet56-a": (6.97, None),
    },
    "chenyaofo/pytorch-cifar-models, README": {
        "resnet20-b": (7.40, 31.17), "resnet32-b": (6.47, 29.84), "resnet56-b": (None, 27.37),
        "mobilenetv2-x0.5": (7.12, None), "mobilenetv2-x0.75": (None, 26.39), "mobilenetv2-x1.0": (6.21, 25.80),
        "mobilenetv2-x1.4": (None, 24.02), "shufflenetv2-x0.5": (9.87, None), "shufflenetv2-x1.0": (None, 27.61),
        "shufflenetv2-x1.5": (6.45, 26.09), "shufflenetv2-x2.0": (None, 24.65),
    },
    "arXiv 1709.01507v4, Tables 4 and 5": {
        "preresnet110": (6.37, 26.88), "preresnet164": (5.46, 24.33), "wrn-16-8": (4.27, 20.43),
        "se-preresnet110": (5.21, 23.85), "se-preresnet164": (4.39, 21.31), "se-wrn16-8": (3.88, 19.14),
    },
    "arXiv 1611.05431, Table 7, mean of 10 runs": {
        "resnext29-8x64d": (None, 17.77), "resnext29-16x64d": (3.58, None),
    },
    "kuangliu/pytorch-cifar, README": {
        "resnext29-2x64d-kuangliu": (5.18, None), "mobilenetv2-kuangliu": (5.57, None), "dpn92": (4.84, None),
    },
    "arXiv 1608.06993, Table 2": {
        "densenet-40-12": (5.24, None), "densenet-100-12": (None, 20.20), "densenet-100-24": (None, 19.25),
        "densenet-bc-100-12": (4.51, None), "densenet-bc-250-24": (None, 17.60), "densenet-bc-190-40": (3.46, None),
    },
    "moskomule/senet.pytorch, README": {"se-resnet20-nobias": (7.0, None)},
    "zeiss-microscopy/BSConv, README": {
        "mobilenetv1-bs-x0.25": (8.83, None), "mobilenetv1-bs-x0.5": (None, 28.39),
        "mobilenetv1-bs-x0.75": (6.49, None), "mobilenetv1-bs-x1.0": (None, 25.42),
        "mobilenetv2-bs-x0.25": (None, 32.11), "mobilenetv2-bs-x0.5": (7.45, None),
        "mobilenetv2-bs-x1.0": (6.09, None), "mobilenetv3-small-bs-x0.5": (None, 33.17),
        "mobilenetv3-small-bs-x1.0": (7.43, 27.07), "mobilenetv3-large-bs-x0.5": (6.70, None),
        "mobilenetv3-large-bs-x1.0": (None, 24.91), "resnet56-bsconv-s": (None, 31.28),
        "resnet110-bsconv-s": (None, 28.85), "wrn-16-2-bsconv-s": (8.44, 31.38), "wrn-16-2-bsconv-u": (8.17, None),
        "wrn-16-8-bsconv-s": (5.07, 22.82), "wrn-28-2-bsconv-s": (None, 28.45), "wrn-28-2-bsconv-u": (6.61, None),
        "wrn-28-4-bsconv-s": (5.19, 23.78), "wrn-28-6-bsconv-s": (4.90, 21.82), "wrn-28-8-bsconv-s": (4.56, 20.51),
        "wrn-40-1-bsconv-u": (7.93, 31.02), "wrn-40-2-bsconv-s": (6.45, 26.81), "wrn-40-3-bsconv-s": (None, 24.17),
        "wrn-40-4-bsconv-s": (5.02, 23.03), "wrn-40-6-bsconv-s": (4.34, 21.58),
    },
    "IGCV3, Table 2": {"mobilenetv2-igcv3": (None, 22.91)},
    "ShowLo/MobileNetV3, README, mean of 5 runs": {"mobilenetv3-small": (7.03, None)},
    "Queequeg92/DualPathNet, README": {"dualpathnet28-10": (3.65, None)},
    "weiaicunzai/pytorch-cifar100, README": {"shufflenetv1-g3-wei": (None, 29.94), "xception": (None, 25.07)},
    "ShichenLiu/CondenseNet, README": {
        "condensenet-50": (6.22, None), "condensenet-86": (5.06, 23.64), "condensenet-110": (4.63, None),
        "condensenet-122": (4.48, None), "condensenet-182": (3.76, 18.47),
    },
}  # fmt: skip
"""Printed test errors in %, on CIFAR-10 and CIFAR-100."""

DATASETS = ("cifar10", "cifar100")
PRINTED: dict[str, Printed] = {
    name: Printed(source, {data: round(e / 100, 6) for data, e in zip(DATASETS, errors, strict=True) if e})
    for source, names in _SOURCES.items()
    for name, errors in names.items()
}


def is_literature(name: str) -> bool:
    """Whether a name looks like that of a network of the literature."""
    return re.match(_PREFIX, name) is not None and not name.endswith(".toml") and "/" not in name and ":" not in name


_PREFIX = (
    "(?:se-)?(?:pre)?resnet|plain[0-9]|(?:se-)?wrn-?[0-9]|resnext|densenet|condensenet|mobilenet|mobilefacenet"
    "|dpn[0-9]|dualpathnet|shufflenet|xception|alexnet"
)


def literature(name: str, classes: int | None = None) -> Reference:
    """A network of the literature by name; `classes` defaults to its images', usually 10. Raises `ConfigError`."""
    for family in FAMILIES.values():
        if match := re.fullmatch(family.regex, name, re.ASCII):
            given = {key: value or "" for key, value in match.groupdict().items()}
            arch = ArchConfig.parse(family.build(name, **given), name)
            printed = PRINTED.get(name, Printed("", {}))
            found = arch if classes is None else arch.with_classes(classes)
            return Reference(name, found, family.paper, printed.error, printed.source)
    patterns = ", ".join(FAMILIES)
    raise ConfigError(
        f"unknown network {name!r:.80}",
        nearest(name, [*NAMES, *FAMILIES], f"networks of the literature: {patterns}", 0.6),
    )


def _blocks(name: str, depth: int, per: int, plus: int) -> int:
    """Blocks of a stage of a network of depth `per` * n + `plus`."""
    if depth < per + plus or (depth - plus) % per or depth > 256 * per:
        least = depth - (depth - plus) % per
        near = [text for text in (least, least + per) if per + plus <= text <= 256 * per] or [per + plus]
        names = " or ".join(name.replace(str(depth), str(other), 1) for other in near)
        raise ConfigError(f"{name:.80}: the depth is {per} * n + {plus}; {depth} is not", f"use {names}")
    return (depth - plus) // per


def _number(name: str, what: str, number: int, least: int, most: int) -> int:
    if not least <= number <= most:
        raise ConfigError(f"{name:.80}: {what} is from {least} to {most}; {number} is not")
    return number


def _multiplier(name: str, text: str) -> float:
    if not 0.125 <= float(text) <= 8:
        raise ConfigError(f"{name:.80}: the width multiplier is from 0.125 to 8; {text} is not")
    return float(text)


def _one_of(name: str, what: str, given: str, allowed: Mapping[str, object], pattern: str) -> str:
    if given not in allowed:
        names = " or ".join(pattern.format(value) for value in allowed)
        raise ConfigError(f"{name:.80}: {what} is one of {', '.join(allowed)}; {given} is not", f"use {names}")
    return given


def _three(first: int, stages: list[Json], stem: Json | None = None, head: Json | None = None) -> Json:
    """Three stages of strides 1, 2, 2 behind a 3x3 stem of `first` channels."""
    for stage, stride in zip(stages, (1, 2, 2), strict=True):
        stage["stride"] = stride
    return {"stem": {"width": first} | (stem or {}), "stage": stages} | ({"head": head} if head else {})


def _se16(se: str, nobias: str = "") -> Json:
    """SE of SENet's ratio on CIFAR (section 6.3)."""
    if not se:
        return {}
    return {"se": {"ratio": 16, "bias": False} if nobias else 16}


def _bsconv(kind: str) -> Json:
    """The unit of residual stages: regular convolutions, BSConv-U, or BSConv-S with p = 1/4."""
    return {"unit": "bsconv" if kind else "conv"} | ({"reduce": 4} if kind == "s" else {})


def _bsconv_stem(kind: str) -> Json:
    return {"input_norm": True, **_bsconv(kind)} if kind else {}


def _on_image(bs: object) -> Json:
    """BN on the image, which BSConv's authors have in every network."""
    return {"input_norm": True} if bs else {}
