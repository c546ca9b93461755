import pytest

from igc_nas.arch.config import Igcv1Stage, Igcv2Stage
from igc_nas.arch.papers import CLASSES, Figure, Point, figures
from igc_nas.arch.plan import Conv, plan

SIZES = {"IGCV1 Figure 3 (i)": 4672, "IGCV1 Figure 3 (ii)": 17_536, "IGCV2 Figure 3": 4672}
POINTS = [
    pytest.param(figure, point, id=f"{figure.name} {point.label}") for figure in figures() for point in figure.points
]


def block_weights(point: Point, block: str) -> int:
    """Convolution weights of a block."""
    (layers,) = (found.layers for found in plan(point.arch).blocks if found.name == block)
    convs = [layer for layer in layers if isinstance(layer, Conv)]
    return sum(c.kernel**2 * c.in_channels * c.out_channels // c.groups for c in convs)


def test_the_figures_are_these() -> None:
    assert {figure.name: len(figure.points) for figure in figures()} == {
        "IGCV1 Figure 3 (i)": 9,
        "IGCV1 Figure 3 (ii)": 11,
        "IGCV2 Figure 3": 6,
    }


@pytest.mark.parametrize(("figure", "point"), POINTS)
def test_blocks_of_the_first_stage_are_of_the_printed_size(figure: Figure, point: Point) -> None:
    size = SIZES[figure.name]
    assert block_weights(point, "stage1.block1") == block_weights(point, "stage1.block2")
    assert abs(block_weights(point, "stage1.block2") - size) <= 0.025 * size


@pytest.mark.parametrize(("figure", "point"), POINTS)
def test_the_layout_is_the_plain_one_of_depth_8(figure: Figure, point: Point) -> None:
    arch = point.arch
    assert (arch.input, arch.classes, arch.stem.width) == ((3, 32, 32), 100, arch.stages[0].width)
    assert [(s.blocks, s.stride, s.residual, s.kernel) for s in arch.stages] == [
        (2, 1, False, 3),
        (2, 2, False, 3),
        (2, 2, False, 3),
    ]
    assert [s.width // arch.stem.width for s in arch.stages] == [1, 2, 4]
    if figure.name.startswith("IGCV1"):
        assert len({s.L for s in arch.stages if isinstance(s, Igcv1Stage)}) == 1
    else:
        assert len({(s.K, s.depth) for s in arch.stages if isinstance(s, Igcv2Stage)}) == 1
    assert 0.5 < point.accuracy < 0.7


def test_points_are_as_printed() -> None:
    found = {(figure.name, point.label): point.accuracy for figure in figures() for point in figure.points}
    assert found["IGCV1 Figure 3 (i)", "L=40 M=2"] == 0.6389
    assert found["IGCV1 Figure 3 (ii)", "L=85 M=2"] == 0.6813
    assert found["IGCV2 Figure 3", "C=174 K=6 n=3"] == 0.6533
    for figure in figures()[:2]:
        assert max(figure.points, key=lambda point: point.accuracy).label.endswith("M=2")


@pytest.mark.parametrize("classes", [10, CLASSES])
def test_all_networks_differ(classes: int) -> None:
    points = [point for figure in figures(classes) for point in figure.points]
    assert len({point.id for point in points}) == len(points) == 26
    assert {point.arch.classes for point in points} == {classes}
