"""The papers' networks by name, with the accuracies that the papers print.

    igcv1-l24m2-d20        plain IGCV1, any L, M and D = 3n + 2; M doubles from stage to stage (released code)
    igcv1-l24m2-d20-res    residual IGCV1, D = 6n + 2: two units around each shortcut
    regconv-w16-d20        regular convolutions of width W, 2W, 4W, as IGCV1 compares with
    igcv2-c416-k8-d20      IGCV2*: K channels per group in two 1x1 layers of every block (fits the printed size; the
                           paper's own body was not available, so the layout is a hypothesis)
    igcv3-d-cifar, igcv3-d-imagenet    IGCV3-D 1.0x, G1 = G2 = 2 (released code)

Printed accuracies are those of the papers' long trainings (400 epochs), not comparable with a proxy's.

`figures` returns the figures in which the papers rank networks of equal size; each point is an architecture to train:

    IGCV1 Figure 3 (i), (ii)    plain IGCV1, (L, M) with blocks of about 4,672 and 17,536 weights; mean of 5 runs
    IGCV2 Figure 3              IGCV2*, (C, K, n): C channels, n pointwise layers of K channels per group; about 4,672
                                weights a block; read off the plot, +-0.05 points

All accuracies are on CIFAR-100, of long trainings. The captions give neither depth nor the widths of later stages: here
the nets have D = 8 (a 3x3 stem, three stages of two blocks, strides 1, 2, 2). IGCV1's L stays and M doubles, as in the
released code; IGCV2's C doubles while K and n stay. So blocks are of equal size in the first stage only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import arch_id
from igc_nas.arch.stages import Igcv1Stage
from igc_nas.errors import ConfigError
from igc_nas.io.text import nearest

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)
IGCV1, IGCV2, IGCV3 = "arXiv 1707.02725", "arXiv 1804.06202", "arXiv 1806.00178"


@dataclass(frozen=True, slots=True)
class Reference:
    """A network of the papers. `printed_error` is test error (0 to 1) by dataset, where the paper prints one."""

    name: str
    arch: ArchConfig
    paper: str
    printed_error: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True)
class Printed:
    """What a paper prints for a network, and where."""

    source: str
    error: Mapping[str, float]


# IGCV1, Figure 3: accuracy (%) on CIFAR-100 by (L, M), nets of equal block size; the caption gives no depth, 8 fits.
_FIGURE_3 = {
    "(i)": {
        (1, 23): 51.11, (2, 16): 53.28, (3, 13): 55.09, (5, 10): 56.28, (6, 9): 57.22, (12, 6): 60.31, (28, 3): 63.21,
        (40, 2): 63.89, (64, 1): 63.07,
    },
    "(ii)": {
        (1, 44): 61.10, (2, 31): 61.70, (4, 22): 63.05, (12, 12): 65.05, (14, 11): 65.36, (23, 8): 66.59,
        (28, 7): 67.04, (41, 5): 67.93, (64, 3): 68.08, (85, 2): 68.13, (128, 1): 67.13,
    },
}  # fmt: skip

PRINTED: dict[str, Printed] = {
    "igcv1-l16m32-d20": Printed("IGCV1, Table 7", {"cifar10": 0.0337, "cifar100": 0.1931}),
    "igcv1-l450m2-d20": Printed("IGCV1, Table 7", {"cifar10": 0.0325, "cifar100": 0.1925}),
    "igcv1-l32m26-d20": Printed("IGCV1, Table 7", {"cifar10": 0.0331, "cifar100": 0.1875}),
    "igcv2-c416-k8-d20": Printed("IGCV2, IGCV2*-C416", {"cifar10": 0.0549, "cifar100": 0.2295}),
    "igcv3-d-cifar": Printed("IGCV3, IGCV3-D 1.0x", {"cifar10": 0.0504, "cifar100": 0.2205}),
    "igcv3-d-imagenet": Printed("IGCV3, IGCV3-D 1.0x", {"imagenet": 0.278}),
} | {
    f"igcv1-l{L}m{M}-d8": Printed(f"IGCV1, Figure 3 {part}, mean of 5 runs", {"cifar100": round(1 - accuracy / 100, 6)})
    for part, points in _FIGURE_3.items()
    for (L, M), accuracy in points.items()
}

_IGCV1 = re.compile(r"igcv1-l([0-9]{1,5})m([0-9]{1,5})-d([0-9]{1,3})(-res)?", re.ASCII)
_REGCONV = re.compile(r"regconv-w([0-9]{1,5})-d([0-9]{1,3})", re.ASCII)
_IGCV2 = re.compile(r"igcv2-c([0-9]{1,5})-k([0-9]{1,5})-d([0-9]{1,3})", re.ASCII)
PATTERNS = (
    "igcv1-l{L}m{M}-d{D}",
    "igcv1-l{L}m{M}-d{D}-res",
    "regconv-w{W}-d{D}",
    "igcv2-c{C}-k{K}-d{D}",
    "igcv3-d-cifar",
    "igcv3-d-imagenet",
)


def is_reference(name: str) -> bool:
    """Whether a name looks like that of a reference network."""
    return name.startswith(("igcv1-", "igcv2-", "igcv3-", "regconv-")) and not name.endswith(".toml")


def reference(name: str, classes: int | None = None) -> Reference:
    """A network of the papers by name; `classes` defaults to 10 (1000 for ImageNet's). Raises `ConfigError`."""
    arch, paper = _build(name)
    if classes is None:
        classes = 1000 if arch.input == IMAGENET else 10
    printed = PRINTED.get(name, Printed("", {}))
    return Reference(name, arch.with_classes(classes), paper, printed.error, printed.source)


def _build(name: str) -> tuple[ArchConfig, str]:
    if match := _IGCV1.fullmatch(name):
        L, M, D = (int(group) for group in match.groups()[:3])
        return _network(name, _igcv1(name, L, M, D, residual=match[4] is not None), L * M), IGCV1
    if match := _REGCONV.fullmatch(name):
        W, D = int(match[1]), int(match[2])
        count = _blocks(name, D, 3)
        return _network(name, [{"unit": "conv", "width": W << i, "blocks": count} for i in range(3)], W), IGCV1
    if match := _IGCV2.fullmatch(name):
        C, K, D = (int(group) for group in match.groups())
        count = _blocks(name, D, 3)
        stages = [{"unit": "igcv2", "width": C << i, "depth": 3, "K": K, "blocks": count} for i in range(3)]
        return _network(name, stages, C), IGCV2
    if name == "igcv3-d-cifar":
        return _igcv3_d(CIFAR, (1, 1, 1, 2, 2, 1, 1, 1)), IGCV3
    if name == "igcv3-d-imagenet":
        return _igcv3_d(IMAGENET, (2, 1, 2, 2, 2, 1, 2, 1)), IGCV3
    otherwise, known = f"named networks: {', '.join(PATTERNS)}", [*PRINTED, *PATTERNS]
    if any(pattern.fullmatch(f"{name}-d20") for pattern in (_IGCV1, _REGCONV, _IGCV2)):
        known.insert(0, f"{name}-d20")  # only the depth is missing
    raise ConfigError(f"unknown network {name!r:.80}", nearest(name, known, otherwise, 0.75))


def _igcv1(name: str, L: int, M: int, D: int, *, residual: bool) -> list[dict[str, object]]:
    blocks = _blocks(name, D, 6 if residual else 3)
    return [{"unit": "igcv1", "L": L, "M": M << i, "blocks": blocks, "residual": residual} for i in range(3)]


def _blocks(name: str, depth: int, per: int) -> int:
    if depth < per + 2 or (depth - 2) % per:
        near = max(per + 2, depth - (depth - 2) % per)
        raise ConfigError(f"{name}: the depth is {per} * n + 2; {depth} is not", f"use d{near} or d{near + per}")
    return (depth - 2) // per


def _network(name: str, stages: list[dict[str, object]], width: int) -> ArchConfig:
    for stage, stride in zip(stages, (1, 2, 2), strict=True):
        stage["stride"] = stride
    return ArchConfig.parse({"stem": {"width": width}, "stage": stages}, name)


def _igcv3_d(image: tuple[int, int, int], strides: tuple[int, ...]) -> ArchConfig:
    """IGCV3, Table 2: (expand, width, blocks) of each stage; the t = 1 block keeps its expansion convolution."""
    rows = ((1, 16, 1), (6, 24, 4), (6, 32, 6), (6, 64, 8), (6, 96, 6), (6, 160, 6), (6, 320, 1))
    stem_stride, *stage_strides = strides
    stages = [
        {"unit": "igcv3", "expand": t, "width": c, "blocks": n, "stride": s, "G1": 2, "G2": 2}
        for (t, c, n), s in zip(rows, stage_strides, strict=True)
    ]
    stem = {"width": 32, "stride": stem_stride, "activation": "relu6"}
    return ArchConfig.parse({"input": image, "stem": stem, "stage": stages, "head": {"width": 1280}})


DATASET = "cifar100"
CLASSES = 100

# IGCV2, Figure 3: accuracy (%) on CIFAR-100 by (C, K, n), read off the plot.
_IGCV2_FIGURE_3 = {
    (64, 64, 1): 62.8, (144, 12, 2): 65.05, (174, 6, 3): 65.33, (184, 4, 4): 65.08, (192, 3, 5): 64.27,
    (186, 2, 8): 60.31,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """A network of a figure, with the accuracy that the paper prints (0 to 1); `label` uses the paper's letters."""

    label: str
    arch: ArchConfig
    accuracy: float

    @property
    def id(self) -> str:
        """The canonical id of the network."""
        return arch_id(self.arch)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure's networks, in its order."""

    name: str
    paper: str
    note: str
    points: tuple[Point, ...]


def figures(classes: int = CLASSES) -> tuple[Figure, ...]:
    """The figures, their networks with `classes` classes (the papers' have 100)."""
    ours = "D = 8 and the later stages' widths are ours"
    mean = f"mean of 5 runs; {ours}"
    return (
        Figure("IGCV1 Figure 3 (i)", IGCV1, mean, _igcv1_points("IGCV1, Figure 3 (i),", classes)),
        Figure("IGCV1 Figure 3 (ii)", IGCV1, mean, _igcv1_points("IGCV1, Figure 3 (ii),", classes)),
        Figure("IGCV2 Figure 3", IGCV2, f"read off the plot, +-0.05 points; {ours}", _igcv2_points(classes)),
    )


def _igcv1_points(source: str, classes: int) -> tuple[Point, ...]:
    points = []
    for name, printed in PRINTED.items():
        if printed.source.startswith(source):
            arch = reference(name, classes).arch
            first = arch.stages[0]
            assert isinstance(first, Igcv1Stage)
            points.append(Point(f"L={first.L} M={first.M}", arch, round(1 - printed.error[DATASET], 6)))
    return tuple(points)


def _igcv2_points(classes: int) -> tuple[Point, ...]:
    return tuple(
        Point(f"C={C} K={K} n={n}", _igcv2_arch(C, K, n).with_classes(classes), round(accuracy / 100, 6))
        for (C, K, n), accuracy in _IGCV2_FIGURE_3.items()
    )


def _igcv2_arch(C: int, K: int, n: int) -> ArchConfig:
    stages = [
        {"unit": "igcv2", "width": C << i, "depth": n + 1, "K": K, "blocks": 2, "stride": stride}
        for i, stride in enumerate((1, 2, 2))
    ]
    return ArchConfig.parse({"stem": {"width": C}, "stage": stages}, f"IGCV2 Figure 3, C={C} K={K} n={n}")
