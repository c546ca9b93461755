from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of, layers_cost, plan_cost, rows
from igc_nas.arch.factors import prime_factors
from igc_nas.arch.layers import Conv, Linear, Norm, SqueezeExcite
from igc_nas.arch.papers import reference
from igc_nas.arch.plan import plan
from igc_nas.arch.stages import Igcv1Stage, Igcv2Stage, Igcv3Stage
from igc_nas.arch.units import igcv1_layers, igcv2_layers, igcv3_layers, stage_layers
from tests.support.builders import architectures

# Counted by the authors' released code or by the papers' closed forms: convolutions, BN gamma and beta, classifier with
# bias; MACs of convolutions and the classifier.
# network, pixels a side, classes, params, MACs
COUNTED = [
    ("regconv-w16-d8", 32, 10, 75_290, 12_239_488),
    ("regconv-w18-d8", 32, 10, 95_068, 15_428_304),
    ("igcv1-l4m8-d8", 32, 10, 78_634, 13_141_248),
    ("igcv1-l24m2-d8", 32, 10, 48_442, 9_881_472),
    ("regconv-w16-d8", 32, 100, 81_140, 12_245_248),
    ("regconv-w18-d8", 32, 100, 101_638, 15_434_784),
    ("igcv1-l4m8-d8", 32, 100, 90_244, 13_152_768),
    ("igcv1-l24m2-d8", 32, 100, 65_812, 9_898_752),
    ("regconv-w16-d20", 32, 10, 269_722, 40_551_040),
    ("regconv-w18-d20", 32, 10, 341_020, 51_260_112),
    ("igcv1-l4m8-d20", 32, 10, 277_546, 42_370_304),
    ("igcv1-l24m2-d20", 32, 10, 155_962, 28_755_840),
    ("regconv-w16-d20", 32, 100, 275_572, 40_556_800),
    ("regconv-w18-d20", 32, 100, 347_590, 51_266_592),
    ("igcv1-l4m8-d20", 32, 100, 289_156, 42_381_824),
    ("igcv1-l24m2-d20", 32, 100, 173_332, 28_773_120),
    ("igcv1-l16m32-d20", 32, 100, 17_711_716, 2_669_355_008),
    ("igcv1-l450m2-d20", 32, 100, 19_351_000, 4_661_812_800),
    ("igcv1-l1m23-d8", 32, 100, 163_285, 25_103_856),
    ("igcv1-l2m16-d8", 32, 100, 163_076, 24_719_872),
    ("igcv1-l3m13-d8", 32, 100, 165_577, 24_875_760),
    ("igcv1-l5m10-d8", 32, 100, 170_450, 25_338_400),
    ("igcv1-l6m9-d8", 32, 100, 169_282, 25_070_688),
    ("igcv1-l12m6-d8", 32, 100, 169_516, 25_022_592),
    ("igcv1-l28m3-d8", 32, 100, 143_992, 22_397_760),
    ("igcv1-l40m2-d8", 32, 100, 127_540, 21_085_440),
    ("igcv1-l64m1-d8", 32, 100, 105_124, 19_424_256),
    ("igcv2-c416-k8-d20", 32, 10, 500_458, 123_339_008),
    ("igcv2-c416-k8-d20", 32, 100, 650_308, 123_488_768),
    ("igcv2-c416-k8-d20", 64, 200, 816_808, 493_622_272),
    ("igcv3-d-imagenet", 224, 1000, 3_491_688, 312_970_176),
    ("igcv3-d-cifar", 32, 10, 2_223_498, 166_064_640),
    ("igcv3-d-cifar", 32, 100, 2_338_788, 166_179_840),
]  # fmt: skip


@pytest.mark.parametrize(("name", "side", "classes", "params", "macs"), COUNTED)
def test_the_papers_networks(name: str, side: int, classes: int, params: int, macs: int) -> None:
    arch = reference(name, classes).arch
    cost = cost_of(ArchConfig.parse(arch.to_dict() | {"input": [3, side, side]}))
    assert (cost.params, cost.macs) == (params, macs)
    assert cost.flops == 2 * macs


@given(architectures())
def test_rows_sum_to_the_cost(arch: ArchConfig) -> None:
    assert sum((row.cost for row in rows(plan(arch))), Cost()) == cost_of(arch) == plan_cost(plan(arch))


@given(architectures())
def test_rows_follow_the_definitions(arch: ArchConfig) -> None:
    """Parameters from the layer alone; MACs and activations from the layer and its output shape."""
    for row in rows(plan(arch)):
        match row.layer:
            case Conv(_, c_in, c_out, kernel, _, groups):
                weights = kernel**2 * c_in * c_out // groups
                pixels = row.shape[1] * row.shape[2]
                assert row.cost == Cost(weights, weights * pixels, c_out * pixels)
                assert row.shape[0] == c_out
            case Linear(_, features, written, bias):
                assert row.cost == Cost((features + bias) * written, features * written, written)
                assert row.shape == (written,)
            case SqueezeExcite(_, channels, squeeze):
                weights, written = 2 * channels * squeeze, channels + squeeze
                assert row.cost == Cost(weights + written, weights, written)
            case Norm(_, channels):
                assert row.cost == Cost(2 * channels)
            case _:
                assert row.cost == Cost()


@given(architectures())
def test_a_side_is_halved_and_rounded_up(arch: ArchConfig) -> None:
    height, width = arch.input[1:]
    for stride in (arch.stem.stride, *(stage.stride for stage in arch.stages)):
        height, width = -(-height // stride), -(-width // stride)
    assert [row.shape[1:] for row in rows(plan(arch)) if len(row.shape) == 3][-1] == (height, width)


KERNELS = st.sampled_from([1, 3, 5])


@given(st.integers(1, 64), st.integers(1, 64), KERNELS)
def test_igcv1_closed_form(L: int, M: int, k: int) -> None:
    G, S = L * M, k * k
    cost, _ = layers_cost(igcv1_layers(Igcv1Stage(L=L, M=M, kernel=k, blocks=1), G, 1), (G, 7, 5))
    T = S * L * M**2 + M * L**2
    assert G**2 * (Fraction(S, L) + Fraction(1, M)) == T
    assert cost == Cost(params=T, macs=T * 7 * 5, activations=2 * G * 7 * 5)


@given(st.integers(1, 16), st.integers(1, 12), st.integers(1, 12))
def test_igcv1_closed_form_of_a_stages_first_block(L: int, M_in: int, M: int) -> None:
    c_in, c_out = L * M_in, L * M
    cost, shape = layers_cost(igcv1_layers(Igcv1Stage(L=L, M=M, blocks=1), c_in, 2), (c_in, 9, 8))
    assert cost.params == 9 * c_out * (c_in // L) + c_out * L
    assert shape == (c_out, 5, 4)


@given(st.integers(2, 40), st.integers(1, 40), KERNELS)
def test_igcv1_is_wider_than_a_regular_convolution_of_its_size(L: int, M: int, k: int) -> None:
    """L / (L - 1) < M * S is when G channels cost less than a regular convolution of as many (IGCV1, section 3.2)."""
    S = k * k
    cost, _ = layers_cost(igcv1_layers(Igcv1Stage(L=L, M=M, kernel=k, blocks=1), L * M, 1), (L * M, 1, 1))
    assert (cost.params < S * (L * M) ** 2) == (Fraction(L, L - 1) < M * S)


@given(st.integers(2, 300), st.data(), KERNELS)
def test_igcv2_closed_form(C: int, data: st.DataObject, k: int) -> None:
    stage = Igcv2Stage(width=C, depth=data.draw(st.integers(2, 1 + len(prime_factors(C)))), kernel=k, blocks=1)
    cost, _ = layers_cost(igcv2_layers(stage, C, 1), (C, 4, 4))
    Q = C * (k * k + sum(stage.channels_per_group))
    assert cost == Cost(Q, 16 * Q, 16 * C * stage.depth)


@pytest.mark.parametrize(
    ("C", "K", "n"), [(64, 64, 1), (144, 12, 2), (174, 6, 3), (184, 4, 4), (192, 3, 5), (186, 2, 8)]
)
def test_igcv2_closed_form_with_equal_factors(C: int, K: int, n: int) -> None:
    """The networks of Figure 3 of IGCV2: equal in size to within 5 %."""
    cost, _ = layers_cost(igcv2_layers(Igcv2Stage(width=C, depth=n + 1, K=K, blocks=1), C, 1), (C, 1, 1))
    assert cost.params == C * (9 + n * K)
    assert cost.params == pytest.approx(4_672, rel=0.05)


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4])
)
def test_igcv3_closed_form(a: int, b: int, t: int, G1: int, G2: int) -> None:
    C, out = 12 * a, 12 * b
    stage = Igcv3Stage(width=out, expand=t, G1=G1, G2=G2, blocks=1)
    cost, _ = layers_cost(igcv3_layers(stage, C, 1), (C, 3, 3))
    weights = C * t * C // G1 + 9 * t * C + t * C * out // G2
    assert cost.params == weights + 2 * (2 * t * C + out)
    assert cost.macs == 9 * weights
    assert cost.activations == 9 * (2 * t * C + out)


@pytest.mark.parametrize(
    ("stage", "shortcut"),
    [
        ({"unit": "igcv1", "L": 8, "M": 3}, 24 * 16 // 8),
        ({"unit": "igcv2", "width": 24, "depth": 3}, 24 * 16 // 8),
        ({"unit": "conv", "width": 24}, 24 * 16),
    ],
)
def test_a_shortcut_that_changes_the_shape_is_counted(stage: dict[str, Any], shortcut: int) -> None:
    """A residual block is two units; the shortcut is a 1x1 convolution (L groups, gcd(in, out), dense) with its BN."""

    def params(in_width: int, residual: bool) -> int:
        config = ArchConfig.parse(
            {"stem": {"width": in_width}, "stage": [stage | {"blocks": 1, "stride": 2, "residual": residual}]}
        ).stages[0]
        return layers_cost(stage_layers(config, in_width)[0], (in_width, 8, 8))[0].params

    assert params(16, True) == params(16, False) + params(24, False) + shortcut + 2 * 24


def test_an_identity_shortcut_is_free() -> None:
    for blocks in (1, 3):
        plain, residual = (
            ArchConfig.parse(
                {"stem": {"width": 24}, "stage": [{"unit": "igcv1", "L": 12, "M": 2, "blocks": n, "residual": kind}]}
            )
            for n, kind in ((2 * blocks, False), (blocks, True))
        )
        assert cost_of(plain) == cost_of(residual)
