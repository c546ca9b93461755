"""The figures in which the papers rank networks of equal size, point by point, as architectures to train.

    IGCV1 Figure 3 (i), (ii)    plain IGCV1, (L, M) with blocks of about 4,672 and 17,536 weights; mean of 5 runs
    IGCV2 Figure 3              IGCV2*, (C, K, n): C channels, n pointwise layers of K channels per group; about 4,672
                                weights a block; read off the plot, +-0.05 points

All accuracies are on CIFAR-100, of long trainings. The captions give neither depth nor the widths of later stages: here
the nets have D = 8 (a 3x3 stem, three stages of two blocks, strides 1, 2, 2). IGCV1's L stays and M doubles, as in the
released code; IGCV2's C doubles while K and n stay. So blocks are of equal size in the first stage, not behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from igc_nas.arch.config import ArchConfig, Igcv1Stage
from igc_nas.arch.papers import IGCV1, IGCV2, PRINTED, reference
from igc_nas.arch.plan import arch_id

DATASET = "cifar100"
CLASSES = 100

# IGCV2, Figure 3: accuracy (%) on CIFAR-100 by (C, K, n), read off the plot.
_IGCV2_FIGURE_3 = {
    (64, 64, 1): 62.8, (144, 12, 2): 65.05, (174, 6, 3): 65.33, (184, 4, 4): 65.08, (192, 3, 5): 64.27,
    (186, 2, 8): 60.31,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """A network of a figure; `accuracy` is what the paper prints, 0 to 1. `label` has the paper's letters."""

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
    return (
        Figure("IGCV1 Figure 3 (i)", IGCV1, f"mean of 5 runs; {ours}", _igcv1("IGCV1, Figure 3 (i),", classes)),
        Figure("IGCV1 Figure 3 (ii)", IGCV1, f"mean of 5 runs; {ours}", _igcv1("IGCV1, Figure 3 (ii),", classes)),
        Figure("IGCV2 Figure 3", IGCV2, f"read off the plot, +-0.05 points; {ours}", _igcv2(classes)),
    )


def _igcv1(source: str, classes: int) -> tuple[Point, ...]:
    points = []
    for name, printed in PRINTED.items():
        if printed.source.startswith(source):
            arch = reference(name, classes).arch
            first = arch.stages[0]
            assert isinstance(first, Igcv1Stage)
            points.append(Point(f"L={first.L} M={first.M}", arch, round(1 - printed.error[DATASET], 6)))
    return tuple(points)


def _igcv2(classes: int) -> tuple[Point, ...]:
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
