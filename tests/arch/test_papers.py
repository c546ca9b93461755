"""The papers' networks by name, and the networks of the papers' figures."""

import pytest

from igc_nas.arch.layers import Conv
from igc_nas.arch.papers import CLASSES, PRINTED, Figure, Point, figures, is_reference, reference
from igc_nas.arch.plan import arch_id, plan
from igc_nas.arch.stages import Igcv1Stage, Igcv2Stage
from igc_nas.errors import ConfigError
from tests.support.builders import one_line


@pytest.mark.parametrize("name", PRINTED)
def test_every_network_with_a_printed_accuracy_can_be_built(name: str) -> None:
    network = reference(name)
    assert is_reference(name)
    assert network.name == name
    assert network.paper.startswith("arXiv ")
    assert network.source.split(",")[0] in ("IGCV1", "IGCV2", "IGCV3")
    assert network.printed_error
    assert all(0 < error < 1 for error in network.printed_error.values())
    assert network.arch.classes == (1000 if name.endswith("imagenet") else 10)
    assert reference(name, 100).arch == network.arch.with_classes(100)


def test_names_follow_the_papers_letters() -> None:
    arch = reference("igcv1-l24m2-d20").arch
    assert [(stage.L, stage.M, stage.blocks) for stage in arch.stages if isinstance(stage, Igcv1Stage)] == [
        (24, 2, 6),
        (24, 4, 6),
        (24, 8, 6),
    ]
    assert str(reference("igcv1-l8m4-d20-res").arch) == (
        "32 | igcv1 L8 M4 k3 x3 res | igcv1 L8 M8 k3 x3 s2 res | igcv1 L8 M16 k3 x3 s2 res"
    )
    assert str(reference("igcv2-c416-k8-d20").arch).startswith("416 | igcv2 C416 d3 K8 k3 x6 | ")
    assert str(reference("regconv-w16-d8").arch) == "16 | conv C16 k3 x2 | conv C32 k3 x2 s2 | conv C64 k3 x2 s2"
    assert arch_id(reference("igcv3-d-cifar").arch) != arch_id(reference("igcv3-d-imagenet", 10).arch)


def test_a_network_without_a_printed_accuracy_has_none() -> None:
    network = reference("igcv1-l24m2-d20")
    assert (dict(network.printed_error), network.source) == ({}, "")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("igcv3-d-cifr", "did you mean igcv3-d-cifar?"),
        ("igcv3-d-imagnet", "did you mean igcv3-d-imagenet?"),
        ("igcv2-c416-k8d20", "did you mean igcv2-c416-k8-d20?"),
        ("igcv1-l16m32d20", "did you mean igcv1-l16m32-d20?"),
        ("igcv1-l24m2", "did you mean igcv1-l24m2-d20?"),
        ("resnet20", "named networks: igcv1-l{L}m{M}-d{D}"),
        ("", "named networks: igcv1-l{L}m{M}-d{D}"),
        ("x" * 10_000, "named networks: igcv1-l{L}m{M}-d{D}"),
        ("../igcv3-d-cifar/x", ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        reference(name)
    assert one_line(raised).startswith("unknown network ")
    assert (raised.value.hint or "").startswith(hint)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("igcv1-l24m2-d21", "use d20 or d23"),
        ("igcv1-l24m2-d22", "use d20 or d23"),
        ("igcv1-l24m2-d2", "use d5 or d8"),
        ("igcv1-l24m2-d0", "use d5 or d8"),
        ("igcv1-l24m2-d23-res", "use d20 or d26"),
        ("igcv1-l24m2-d2-res", "use d8 or d14"),
        ("regconv-w16-d18", "use d17 or d20"),
        ("igcv2-c416-k8-d19", "use d17 or d20"),
    ],
)
def test_an_impossible_depth_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="the depth is"):
        reference(name)
    with pytest.raises(ConfigError) as raised:
        reference(name)
    assert raised.value.hint == hint
    wrong, right = name.removesuffix("-res").rpartition("-")[2], hint.split()[1]
    assert reference(name.replace(wrong, right)).arch.stages


@pytest.mark.parametrize(
    "name",
    [
        "igcv1-l0m2-d8",
        "igcv1-l2m0-d8",
        "igcv1-l99999m99999-d8",
        "regconv-w0-d8",
        "regconv-w65536-d8",
        "regconv-w16-d998",
        "igcv2-c416-k0-d20",
        "igcv2-c416-k7-d20",
        "igcv2-c0-k8-d20",
        "igcv1-l\u0663m2-d20",
        "igcv1-l-3m2-d20",
        "igcv1-l24m2-d20\n",
        " igcv1-l24m2-d20",
        "IGCV1-L24M2-D20",
        "igcv1-l24m2-d8-RES",
        "igcv1-l999999m1-d8",
    ],
)
def test_an_impossible_network_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        reference(name)
    one_line(raised)


@pytest.mark.parametrize("classes", [0, -1, 10**9])
def test_classes_out_of_range_are_refused(classes: int) -> None:
    with pytest.raises(ConfigError, match="classes"):
        reference("igcv3-d-cifar", classes)


# Figures.

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
def test_the_networks_of_the_figures_are_plain_of_depth_8(figure: Figure, point: Point) -> None:
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


def test_the_accuracies_of_the_figures_are_as_printed() -> None:
    found = {(figure.name, point.label): point.accuracy for figure in figures() for point in figure.points}
    assert found["IGCV1 Figure 3 (i)", "L=40 M=2"] == 0.6389
    assert found["IGCV1 Figure 3 (ii)", "L=85 M=2"] == 0.6813
    assert found["IGCV2 Figure 3", "C=174 K=6 n=3"] == 0.6533
    for figure in figures()[:2]:
        assert max(figure.points, key=lambda point: point.accuracy).label.endswith("M=2")


@pytest.mark.parametrize("classes", [10, CLASSES])
def test_the_networks_of_the_figures_are_distinct(classes: int) -> None:
    points = [point for figure in figures(classes) for point in figure.points]
    assert len({point.id for point in points}) == len(points) == 26
    assert {point.arch.classes for point in points} == {classes}
