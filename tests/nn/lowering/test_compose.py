"""Multiplying out: the product computes what its factors do in order, and its gradients are those of the factors."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from math import gcd
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from igc_nas.arch.layers import Conv, Interleave
from igc_nas.arch.stages import ConvStage, Igcv1Stage, Igcv2Stage, Igcv3Stage, StageConfig
from igc_nas.arch.units import igcv2_layers, stage_layers
from igc_nas.nn.lowering.chain import Chain, Form, Piece, Segment, factored, forms_of, layout
from igc_nas.nn.lowering.compose import compose, rows_interleaved, rows_restored
from igc_nas.nn.lowering.parts import chains_in, training_parts
from tests.support.builders import divisors
from tests.support.shares import examples

KERNELS_AND_STRIDES = ((3, 1), (3, 2), (5, 1), (1, 1), (1, 2))


def stages() -> Iterator[tuple[int, StageConfig]]:
    """(input width, stage) for every unit, of equal, growing and shrinking widths."""
    for kernel, stride in KERNELS_AND_STRIDES:
        common: dict[str, Any] = {"blocks": 1, "kernel": kernel, "stride": stride}
        for L, M in ((1, 6), (2, 3), (3, 2), (4, 4), (4, 6), (6, 1), (12, 2)):
            yield L * M, Igcv1Stage(L=L, M=M, **common)
            yield 2 * L, Igcv1Stage(L=L, M=M, residual=True, **common)
        for width, depth in ((6, 2), (12, 3), (16, 3), (16, 5), (24, 3), (24, 4), (24, 5), (30, 4)):
            yield width, Igcv2Stage(width=width, depth=depth, **common)
            yield 8, Igcv2Stage(width=width, depth=depth, residual=True, **common)
        yield 16, Igcv2Stage(width=16, depth=4, K=8, **common)
        for G1, G2 in itertools.product((1, 2, 4), repeat=2):
            yield 8, Igcv3Stage(width=12, expand=3, G1=G1, G2=G2, **common)
        yield 5, ConvStage(width=7, **common)


def chains() -> list[Chain]:
    """Each distinct training chain of these stages, on a few pixels, and chains that no unit has."""
    found = {
        chain.key: chain
        for (in_width, stage), size in zip(stages(), itertools.cycle([(4, 4), (5, 3), (1, 6), (1, 1)]), strict=False)
        for chain in chains_in(training_parts(stage_layers(stage, in_width)[0], (in_width, *size))[0])
    }
    narrow, wide = Conv("narrow", 6, 12, groups=3), Conv("wide", 12, 12, groups=2)
    two, three, four = (Interleave(12, groups) for groups in (2, 3, 4))
    strided, spatial = Conv("strided", 12, 12, 1, 2, 4), Conv("spatial", 12, 8, 3, 1, 4)
    return [
        *found.values(),
        Chain((narrow, two, three, wide, four, three), 4, 5),
        Chain((narrow, two, spatial), 5, 4),
        Chain((narrow, three, strided, two, wide, four, spatial), 5, 7),
        Chain((spatial, Conv("last", 8, 8, 1, 2, 2), Interleave(8, 2)), 5, 7),
        Chain((wide, two, strided, three, replace(strided, groups=3)), 9, 7),
    ]


CHAINS = chains()


@st.composite
def cuts(draw: st.DrawFn, chain: Chain) -> Form:
    """Any form: dense pieces of several convolutions; single ones in their own groups or in fewer, wider ones."""
    form: list[Piece] = []
    convs = list(chain.convs)
    while convs:
        most = max(count for count in range(1, len(convs) + 1) if count == 1 or spatial(convs[:count]) < 2)
        count = draw(st.integers(1, most))
        form.append(Piece(count, draw(divisors(convs[0].groups)) if count == 1 else 1))
        del convs[:count]
    return tuple(form)


def spatial(convs: list[Conv]) -> int:
    return sum(conv.kernel > 1 or conv.stride > 1 for conv in convs)


def weights_of(chain: Chain, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(c.out_channels, c.in_channels // c.groups, c.kernel, c.kernel) for c in chain.convs]
    return [torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_() for shape in shapes]


def image_of(chain: Chain) -> Tensor:
    shape = (2, chain.convs[0].in_channels, chain.height, chain.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double).requires_grad_()


def convolution(x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    return F.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, conv.groups)


def step_by_step(chain: Chain, x: Tensor, weights: list[Tensor]) -> Tensor:
    """The chain, layer by layer."""
    factors = iter(weights)
    for step in chain.steps:
        x = convolution(x, next(factors), step) if isinstance(step, Conv) else shuffled(x, step)
    return x


def by_form(chain: Chain, form: Form, x: Tensor, weights: list[Tensor]) -> Tensor:
    factors = iter(weights)
    for segment in layout(chain, form):
        x = convolution(x, compose(segment, [next(factors) for _ in segment.convs]), segment.as_conv)
        for step in segment.after:
            x = shuffled(x, step)
    assert next(factors, None) is None
    return x


def shuffled(x: Tensor, step: Interleave) -> Tensor:
    return torch.nn.ChannelShuffle(step.groups)(x)


def error(found: list[Tensor], true: list[Tensor]) -> float:
    """The relative error of the norm of all tensors together, because the norm of one may be 0."""
    one, other = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (found, true))
    return ((one - other).norm() / other.norm()).item()


def assert_computes_the_chain(chain: Chain, form: Form) -> None:
    x, weights = image_of(chain), weights_of(chain)
    true, found = step_by_step(chain, x, weights), by_form(chain, form, x, weights)
    assert found.shape == true.shape
    assert error([found], [true]) < 1e-12
    grad = torch.randn(true.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    sources = [x, *weights]
    assert error([*torch.autograd.grad(found, sources, grad)], [*torch.autograd.grad(true, sources, grad)]) < 1e-12


def test_every_form_computes_its_chain() -> None:
    for chain in CHAINS:
        for form in forms_of(chain):
            assert_computes_the_chain(chain, form)


@given(st.data())
@examples(300)
def test_every_cut_computes_its_chain(data: st.DataObject) -> None:
    chain = data.draw(st.sampled_from(CHAINS))
    assert_computes_the_chain(chain, data.draw(cuts(chain)))


@given(st.sampled_from([12, 16, 24]), st.integers(2, 4), st.sampled_from([1, 2]), st.sampled_from([4, 8, 12]))
def test_a_depthwise_and_a_pointwise_are_one_grouped_convolution(
    width: int, depth: int, stride: int, in_width: int
) -> None:
    """IGCV2 has no interleave between its first two factors, so their product has the groups of the second."""
    stage = Igcv2Stage(width=width, depth=depth, blocks=1)
    chain = Chain(igcv2_layers(stage, in_width, stride), 5, 6)
    first, second, *rest = chain.convs
    groups = gcd(first.groups, second.groups)
    assert_computes_the_chain(chain, (Piece(2, groups), *(Piece(1, conv.groups) for conv in rest)))


def test_a_pointwise_convolution_before_a_spatial_one() -> None:
    """As in IGCV3 at inference."""
    chain = Chain((Conv("expand", 4, 12, groups=2), Interleave(12, 2), Conv("depthwise", 12, 12, 5, 2, 12)), 9, 7)
    assert_computes_the_chain(chain, (Piece(2, 1),))


def test_a_single_convolution_keeps_its_weight() -> None:
    for chain in CHAINS:
        for segment, weight in zip(layout(chain, factored(chain)), weights_of(chain), strict=True):
            if segment.steps == segment.convs:
                assert torch.equal(compose(segment, [weight]), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_of_channels_last_weights_is_one_in_their_dtype(dtype: torch.dtype) -> None:
    for chain in CHAINS:
        weights = [weight.to(dtype, memory_format=torch.channels_last) for weight in weights_of(chain)]
        for form in forms_of(chain):
            factors = iter(weights)
            for segment in layout(chain, form):
                found, conv = compose(segment, [next(factors) for _ in segment.convs]), segment.as_conv
                assert found.shape == (conv.out_channels, conv.in_channels // conv.groups, conv.kernel, conv.kernel)
                assert found.is_contiguous(memory_format=torch.channels_last)
                assert found.dtype == dtype


@given(st.data())
def test_a_wider_group_is_block_diagonal(data: st.DataObject) -> None:
    g, out, per_group = (data.draw(st.integers(1, n)) for n in (6, 3, 3))
    wide = data.draw(divisors(g))
    conv = Conv("conv", g * per_group, g * out, groups=g)
    weight = torch.randn(g * out, per_group, 1, 1)
    merged = compose(Segment((conv,), (), wide, 1, 1), [weight])[:, :, 0, 0].chunk(wide)
    blocks = weight[:, :, 0, 0].chunk(g)
    assert torch.equal(torch.block_diag(*merged), torch.block_diag(*blocks))


def test_gradients_are_the_derivatives() -> None:
    chain = Chain(igcv2_layers(Igcv2Stage(width=6, depth=3, blocks=1), 4, 1), 3, 3)
    for groups, count in ((1, 3), (1, 1), (2, 1)):
        (segment, *_) = layout(chain, (Piece(count, groups), *(Piece(1, c.groups) for c in chain.convs[count:])))
        weights = weights_of(chain)[:count]
        assert torch.autograd.gradcheck(lambda *factors, segment=segment: compose(segment, factors), weights)


@given(st.data())
def test_rows_are_interleaved_as_channels_and_restored(data: st.DataObject) -> None:
    g, per_group = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    step = Interleave(g * per_group, g)
    rows = torch.arange(g * per_group * 6.0).view(g * per_group, 2, 3)
    moved = rows_interleaved(rows, step)
    assert torch.equal(moved, shuffled(rows[None], step)[0])
    assert torch.equal(rows_restored(moved, step), rows)
    assert torch.equal(rows_restored(rows_interleaved(rows[:, 0, 0], step), step), rows[:, 0, 0])
