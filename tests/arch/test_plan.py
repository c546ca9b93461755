from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.factors import balanced_factors, prime_factors
from igc_nas.arch.layers import Conv, Interleave, Layer, Linear, Norm, Residual
from igc_nas.arch.plan import BlockPlan, arch_id, plan
from igc_nas.arch.stages import Igcv1Stage, Igcv2Stage, Igcv3Stage
from igc_nas.arch.units import igcv1_layers, igcv2_layers, igcv3_layers
from tests.support.builders import architectures

Paths = NDArray[np.float64]


def paths(layers: tuple[Layer, ...]) -> Paths:
    """(out, in): how many ways lead from an input channel to an output channel; convolutions as 0-1 matrices."""
    total: Paths | None = None
    for layer in layers:
        if isinstance(layer, Conv | Interleave):
            matrix = matrix_of(layer)
            total = matrix if total is None else matrix @ total
    assert total is not None
    return total


def matrix_of(layer: Conv | Interleave) -> Paths:
    if isinstance(layer, Conv):
        block = np.ones((layer.out_channels // layer.groups, layer.in_channels // layer.groups))
        return np.kron(np.eye(layer.groups), block)
    return np.eye(layer.channels)[interleaved(layer)]


def interleaved(layer: Interleave) -> NDArray[np.int64]:
    """Where each output channel comes from, as the papers draw it: read the groups as rows, write the columns."""
    return np.arange(layer.channels).reshape(layer.groups, -1).T.ravel()


@given(st.integers(1, 12), st.integers(1, 12))
def test_the_interleave_law(g: int, per_group: int) -> None:
    source = interleaved(Interleave(g * per_group, g))
    for i in range(g):
        for j in range(per_group):
            assert source[j * g + i] == i * per_group + j
    assert Interleave(g * per_group, g).is_identity == bool(np.all(source == np.arange(g * per_group)))


@given(st.integers(1, 16), st.integers(1, 16))
def test_igcv1_joins_each_pair_by_one_path_and_restores_the_order(L: int, M: int) -> None:
    layers = igcv1_layers(Igcv1Stage(L=L, M=M, blocks=1), L * M, 1)
    assert np.all(paths(layers) == 1)
    assert np.array_equal(paths(tuple(layer for layer in layers if isinstance(layer, Interleave))), np.eye(L * M))


def test_igcv1_gives_each_secondary_group_one_channel_of_every_partition() -> None:
    L, M = 4, 3
    partition = np.repeat(np.arange(L), M)
    seen = partition[interleaved(Interleave(L * M, L))].reshape(M, L)
    assert np.array_equal(np.sort(seen, axis=1), np.tile(np.arange(L), (M, 1)))


@given(st.data())
def test_strict_igcv2_joins_each_pair_by_one_path_and_restores_the_order(data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 128))
    depth = data.draw(st.integers(2, 1 + len(prime_factors(width))))
    layers = igcv2_layers(Igcv2Stage(width=width, depth=depth, blocks=1), width, 1)
    assert np.all(paths(layers) == 1)
    assert np.array_equal(paths(tuple(layer for layer in layers if isinstance(layer, Interleave))), np.eye(width))


@pytest.mark.parametrize("factors", [(8, 6), (4, 4, 3), (10, 6), (5, 4, 3), (12, 8), (6, 4, 4)])
def test_strict_igcv2_with_unequal_factors(factors: tuple[int, ...]) -> None:
    width = int(np.prod(factors))
    assert balanced_factors(width, len(factors)) == factors
    layers = igcv2_layers(Igcv2Stage(width=width, depth=len(factors) + 1, blocks=1), width, 1)
    assert [layer.groups for layer in layers if isinstance(layer, Conv)] == [width, *(width // k for k in factors)]
    assert np.all(paths(layers) == 1)


@pytest.mark.parametrize(
    ("C", "K", "n", "least", "most"),
    [
        (64, 8, 2, 1, 1),
        (512, 8, 3, 1, 1),
        (64, 4, 3, 1, 1),
        (144, 12, 2, 1, 1),
        (174, 6, 3, 1, 2),
        (184, 4, 4, 1, 2),
        (192, 3, 5, 1, 2),
        (186, 2, 8, 1, 2),
        (416, 8, 3, 1, 2),
        (128, 8, 3, 4, 4),
        (256, 8, 3, 2, 2),
        (416, 8, 2, 0, 1),
        (128, 8, 2, 0, 1),
    ],
)
def test_igcv2_with_a_given_k_meets_the_condition_where_the_width_allows(
    C: int, K: int, n: int, least: int, most: int
) -> None:
    counts = paths(igcv2_layers(Igcv2Stage(width=C, depth=n + 1, K=K, blocks=1), C, 1))
    assert (counts.min(), counts.max()) == (least, most)


@pytest.mark.parametrize(
    ("C", "t", "G1", "G2"), [(24, 6, 2, 2), (16, 4, 4, 2), (8, 2, 4, 4), (32, 6, 1, 1), (6, 3, 2, 3)]
)
def test_igcv3_is_complementary_in_the_loose_sense(C: int, t: int, G1: int, G2: int) -> None:
    layers = igcv3_layers(Igcv3Stage(width=C, expand=t, G1=G1, G2=G2, blocks=1), C, 1)
    assert np.all(paths(layers) == t * C / (G1 * G2))


@given(architectures())
def test_layers_fit_together(arch: ArchConfig) -> None:
    width = arch.input[0]
    for block in plan(arch).blocks:
        width = _width_after(block.layers, width)
    assert width == arch.classes


def _width_after(layers: tuple[Layer, ...], width: int) -> int:
    for layer in layers:
        match layer:
            case Conv(_, c_in, c_out, _, _, groups):
                assert (c_in, c_in % groups, c_out % groups) == (width, 0, 0)
                width = c_out
            case Norm(_, channels):
                assert channels == width
            case Interleave(channels, groups):
                assert (channels, channels % groups) == (width, 0)
            case Linear(_, features, classes):
                assert features == width
                width = classes
            case Residual(body, shortcut):
                after = _width_after(body, width)
                assert _width_after(shortcut, width) == after
                width = after
    return width


def test_the_names_of_weights_are_unique() -> None:
    for residual in (False, True):
        stage = {"blocks": 2, "stride": 2, "residual": residual}
        arch = _arch(
            {"unit": "igcv1", "L": 4, "M": 2, **stage},
            {"unit": "igcv2", "width": 16, "depth": 4, **stage},
            {"unit": "igcv3", "width": 8, "expand": 2, **stage},
        )
        names = [f"{block.name}.{name}" for block in plan(arch).blocks for name in _names(block.layers)]
        assert len(set(names)) == len(names)


def _names(layers: tuple[Layer, ...]) -> list[str]:
    found = []
    for layer in layers:
        if isinstance(layer, Residual):
            found += _names(layer.body) + _names(layer.shortcut)
        elif isinstance(layer, Conv | Norm | Linear):
            found.append(layer.name)
    return found


def test_blocks_are_named_by_stage() -> None:
    arch = _arch({"unit": "conv", "width": 8, "blocks": 2}, {"unit": "conv", "width": 8, "blocks": 1})
    assert [block.name for block in plan(arch).blocks] == [
        "stem",
        "stage1.block1",
        "stage1.block2",
        "stage2.block1",
        "classifier",
    ]
    assert all(isinstance(block, BlockPlan) for block in plan(arch).blocks)


def test_igcv3_adds_the_identity_behind_a_stages_first_block_only() -> None:
    arch = _arch({"unit": "igcv3", "width": 16, "expand": 2, "blocks": 3})
    adds = [any(isinstance(layer, Residual) for layer in block.layers) for block in plan(arch).blocks]
    assert adds == [False, False, True, True, False]


def _arch(*stages: dict[str, Any], **changes: Any) -> ArchConfig:
    return ArchConfig.parse({"stem": {"width": 16}, "stage": list(stages)} | changes)


V1 = {"unit": "igcv1", "L": 16, "M": 1, "blocks": 2}
V2 = {"unit": "igcv2", "width": 16, "depth": 2, "blocks": 2}
V3 = {"unit": "igcv3", "width": 16, "expand": 2, "blocks": 1}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (V1, V2),
        (V1 | {"residual": True}, V2 | {"residual": True}),
        (V1 | {"stride": 2, "kernel": 5}, V2 | {"stride": 2, "kernel": 5}),
        (V2 | {"depth": 3}, V2 | {"depth": 3, "K": 4}),
        (V2, V2 | {"K": 16}),
        (V3, V3 | {"residual": False}),
        (V3, V3 | {"G1": 2, "G2": 2, "kernel": 3, "stride": 1}),
    ],
)
def test_all_configurations_of_a_network_have_one_id(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert arch_id(_arch(one)) == arch_id(_arch(other))


DIFFERENT = [
    _arch(V1),
    *(
        _arch(V1 | change)
        for change in ({"kernel": 5}, {"stride": 2}, {"stride": 4}, {"blocks": 3}, {"residual": True})
    ),
    *(_arch(V1 | change) for change in ({"M": 2}, {"L": 8}, {"L": 8, "M": 2}, {"L": 4, "M": 4}, {"L": 2, "M": 8})),
    *(_arch(V2 | change) for change in ({"depth": 3}, {"depth": 3, "K": 8}, {"K": 8}, {"width": 24}, {"width": 32})),
    _arch(V3),
    _arch(V3 | {"blocks": 2}),
    _arch(V3 | {"blocks": 2, "residual": False}),
    *(
        _arch(V3 | change)
        for change in ({"G1": 1}, {"G2": 1}, {"G1": 1, "G2": 1}, {"G1": 4}, {"expand": 3}, {"kernel": 5})
    ),
    _arch({"unit": "conv", "width": 16, "blocks": 2}),
    _arch({"unit": "conv", "width": 16, "blocks": 2, "residual": True}),
    _arch(V1, V1),
    _arch(V1, V3),
    _arch(V3, V1),
    _arch(V1, classes=100),
    _arch(V1, input=[1, 32, 32]),
    _arch(V1, input=[3, 64, 64]),
    _arch(V1, input=[3, 32, 64]),
    _arch(V1, head={"width": 64}),
    _arch(V1, head={"width": 64, "activation": "relu"}),
    _arch(V1, stem={"width": 32}),
    _arch(V1, stem={"width": 16, "kernel": 5}),
    _arch(V1, stem={"width": 16, "stride": 2}),
    _arch(V1, stem={"width": 16, "activation": "relu6"}),
]


def test_different_networks_have_different_ids() -> None:
    ids = [arch_id(arch) for arch in DIFFERENT]
    assert len(set(ids)) == len(ids)
    assert all(len(name) == 12 and set(name) <= set("0123456789abcdef") for name in ids)


def test_the_id_of_a_network_never_changes() -> None:
    assert arch_id(_arch(V1)) == "231a46c195ab"
    assert arch_id(_arch(V3, V2, head={"width": 64})) == "c26bcce2243d"


@pytest.mark.parametrize("L", [1, 2, 4, 8, 16])
def test_igcv1_is_igcv2_of_depth_2_where_m_is_1_and_only_there(L: int) -> None:
    v1 = _arch({"unit": "igcv1", "L": L, "M": 16 // L, "blocks": 2})
    assert (arch_id(v1) == arch_id(_arch(V2))) == (L == 16)


@given(architectures())
def test_the_id_does_not_depend_on_the_text(arch: ArchConfig) -> None:
    assert arch_id(ArchConfig.from_toml(arch.to_toml())) == arch_id(arch)
    assert arch_id(arch.with_classes(arch.classes + 1)) != arch_id(arch)
