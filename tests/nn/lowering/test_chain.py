"""Parts keep every layer of the plan; forms cut chains; sizes and counts of forms are those of the cost model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import LayerCost, layers_cost, plan_cost, rows
from igc_nas.arch.layers import Act, Conv, Interleave, Layer, Norm, Residual
from igc_nas.arch.plan import Plan, plan
from igc_nas.arch.shapes import Shape
from igc_nas.arch.stages import Igcv1Stage, Igcv2Stage, Igcv3Stage, StageConfig
from igc_nas.arch.units import stage_layers
from igc_nas.nn.lowering.chain import (
    MOST_TIMES_MACS,
    WIDEST_GROUP,
    Chain,
    ConvKey,
    Form,
    Piece,
    Scale,
    Step,
    dense,
    factored,
    form_key,
    form_macs,
    forms_of,
    layout,
    segment_macs,
    segment_weights,
    semidense,
)
from igc_nas.nn.lowering.parts import (
    Branches,
    NormAct,
    Part,
    Single,
    chains_in,
    cost_beside_chains,
    inference_parts,
    training_parts,
)
from tests.support.builders import architectures

PartsOf = Callable[[tuple[Layer, ...], Shape], tuple[tuple[Part, ...], Shape]]
EITHER = pytest.mark.parametrize("parts_of", [training_parts, inference_parts])


def read_back(parts: Sequence[Part]) -> tuple[Layer, ...]:
    """The layers from which parts were made, in the plan's order."""
    layers: list[Layer] = []
    for part in parts:
        match part:
            case Chain(steps):
                layers += unscaled(steps)
            case NormAct(norm, act, order):
                moved = layers[len(layers) - len(order) :]
                assert tuple(moved) == order
                layers[len(layers) - len(order) :] = [norm, *moved, *acts(act)]
            case Branches(Residual(), (body, shortcut), act):
                layers += [Residual(read_back(body), read_back(shortcut)), *acts(act)]
            case Single(layer):
                layers.append(layer)
    return tuple(layers)


def unscaled(steps: Sequence[Step]) -> list[Layer]:
    """Steps with each `Scale` turned back into its norm, after the interleaves in `behind`."""
    layers: list[Layer] = []
    norms: list[tuple[int, Norm]] = []
    for step in steps:
        if isinstance(step, Scale):
            norms.append((len(layers) + len(step.behind), step.norm))
            assert isinstance(layers[-1], Conv)
        else:
            layers.append(step)
    for at, norm in reversed(norms):
        layers.insert(at, norm)
    return layers


def acts(kind: str | None) -> list[Act]:
    return [Act(kind)] if kind else []  # type: ignore[arg-type]


def moving(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Layers without identity interleaves."""
    return tuple(
        Residual(moving(layer.body), moving(layer.shortcut)) if isinstance(layer, Residual) else layer
        for layer in layers
        if not (isinstance(layer, Interleave) and layer.is_identity)
    )


def blocks_of(whole: Plan, parts_of: PartsOf) -> Iterator[tuple[str, tuple[Part, ...]]]:
    shape: Shape = whole.input
    for block in whole.blocks:
        parts, shape = parts_of(block.layers, shape)
        yield block.name, parts


def named_chains(whole: Plan, parts_of: PartsOf) -> list[tuple[str, Chain]]:
    return [(name, chain) for name, parts in blocks_of(whole, parts_of) for chain in chains_in(parts)]


def chains_of(stage: StageConfig, in_width: int, parts_of: PartsOf = training_parts, side: int = 8) -> list[Chain]:
    first, _ = stage_layers(stage, in_width)
    return list(chains_in(parts_of(first, (in_width, side, side))[0]))


def conv_rows(whole: Plan) -> dict[tuple[str, str], LayerCost]:
    """The cost model's row of each convolution."""
    return {(row.block, row.layer.name): row for row in rows(whole) if isinstance(row.layer, Conv)}


@st.composite
def layer_runs(draw: st.DrawFn) -> tuple[Layer, ...]:
    """Sequences of layers that no unit has: several interleaves after a convolution, with or without BN."""
    width, layers = 12, []
    interleaves = st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]).map(lambda g: Interleave(width, g)), max_size=3)
    for number in range(draw(st.integers(1, 4))):
        groups, kernel = draw(st.sampled_from([1, 3, 4, 12])), draw(st.sampled_from([1, 3]))
        layers += [Conv(f"conv{number}", width, width, kernel, draw(st.sampled_from([1, 2])), groups)]
        layers += draw(interleaves)
        if draw(st.booleans()):
            layers += [Norm(f"norm{number}", width), *draw(interleaves)]
        layers += draw(st.sampled_from([[], [Act("relu")], [Act("relu6")]]))
    return tuple(layers)


# Parts.


@EITHER
@given(arch=architectures())
def test_parts_read_back_are_the_plan(parts_of: PartsOf, arch: ArchConfig) -> None:
    whole = plan(arch)
    for block, (_, parts) in zip(whole.blocks, blocks_of(whole, parts_of), strict=True):
        assert read_back(parts) == moving(block.layers)


@EITHER
@given(layers=layer_runs())
def test_parts_of_any_sequence_of_layers_read_back(parts_of: PartsOf, layers: tuple[Layer, ...]) -> None:
    parts, _ = parts_of(layers, (12, 9, 7))
    assert read_back(parts) == moving(layers)


@EITHER
@given(layers=layer_runs(), height=st.integers(1, 9), width=st.integers(1, 9))
def test_the_output_size_is_the_cost_models(
    parts_of: PartsOf, layers: tuple[Layer, ...], height: int, width: int
) -> None:
    parts, written = parts_of((*layers, Residual(layers)), (12, height, width))
    assert written == layers_cost((*layers, Residual(layers)), (12, height, width))[1]
    assert isinstance(parts[-1], Branches)


@given(layers=layer_runs())
def test_a_chain_ends_at_bn_in_training_and_not_before_a_nonlinearity_at_inference(layers: tuple[Layer, ...]) -> None:
    for parts_of, ends in ((training_parts, Norm | Act), (inference_parts, Act)):
        chains = list(chains_in(parts_of(layers, (12, 8, 8))[0]))
        starts = [
            at
            for at, layer in enumerate(moving(layers))
            if isinstance(layer, Conv) and (at == 0 or ended(moving(layers)[:at], ends))
        ]
        assert len(chains) == len(starts)
        assert all(isinstance(chain.steps[0], Conv) for chain in chains)


def ended(before: Sequence[Layer], ends: object) -> bool:
    """Whether a chain has ended since the last convolution of `before`."""
    last = max(at for at, layer in enumerate(before) if isinstance(layer, Conv))
    return any(isinstance(layer, ends) for layer in before[last:])  # type: ignore[arg-type]


def test_an_igcv3_interleave_is_moved_before_its_norm_in_training() -> None:
    stage = Igcv3Stage(width=8, expand=3, G1=2, G2=4, blocks=1)
    expand, norm, depthwise, *_ = training_parts(stage_layers(stage, 8)[0], (8, 8, 8))[0]
    assert isinstance(expand, Chain)
    assert expand.steps[1:] == (Interleave(24, 2),)
    assert norm == NormAct(Norm("expand_norm", 24), None, (Interleave(24, 2),))
    assert isinstance(depthwise, Chain)


def test_an_igcv3_block_is_two_chains_at_inference() -> None:
    stage = Igcv3Stage(width=8, expand=3, G1=2, G2=4, blocks=1)
    found = chains_of(stage, 8, inference_parts)
    assert [[conv.name for conv in chain.convs] for chain in found] == [["expand", "depthwise"], ["project"]]
    assert found[0].steps[1] == Scale(Norm("expand_norm", 24))


def test_a_norm_after_an_interleave_moves_to_the_convolution_at_inference() -> None:
    (chain,) = chains_of(Igcv1Stage(L=4, M=3, blocks=1), 12, inference_parts)
    assert [type(step) for step in chain.steps] == [Conv, Interleave, Conv, Scale, Interleave]
    assert chain.steps[3] == Scale(Norm("norm", 12), (Interleave(12, 3),))


# Sizes and counts.


@EITHER
@given(arch=architectures())
def test_chains_and_their_segments_have_the_cost_models_sizes(parts_of: PartsOf, arch: ArchConfig) -> None:
    whole = plan(arch)
    known = conv_rows(whole)
    for block, chain in named_chains(whole, parts_of):
        for form in forms_of(chain):
            channels, height, width = chain.convs[0].in_channels, chain.height, chain.width
            for segment in layout(chain, form):
                conv = segment.as_conv
                assert (conv.in_channels, segment.height, segment.width) == (channels, height, width)
                channels, height, width = known[block, segment.convs[-1].name].shape
                assert conv.out_channels == channels
                assert (height, width) == (-(-segment.height // conv.stride), -(-segment.width // conv.stride))


@EITHER
@given(arch=architectures())
def test_the_factored_form_costs_what_the_plan_costs(parts_of: PartsOf, arch: ArchConfig) -> None:
    whole = plan(arch)
    known, total = conv_rows(whole), 0
    for block, chain in named_chains(whole, parts_of):
        for segment in layout(chain, factored(chain)):
            (conv,) = segment.convs
            assert segment.as_conv == conv
            cost = known[block, conv.name].cost
            assert (segment_weights(segment), segment_macs(segment)) == (cost.params, cost.macs)
        total += form_macs(chain, factored(chain))
    beside = sum(cost_beside_chains(parts).macs for _, parts in blocks_of(whole, parts_of))
    assert total + beside == plan_cost(whole).macs


# Forms.


@EITHER
@given(arch=architectures())
def test_every_form_covers_its_chain_in_order(parts_of: PartsOf, arch: ArchConfig) -> None:
    for _, chain in named_chains(plan(arch), parts_of):
        for form in forms_of(chain):
            segments = layout(chain, form)
            assert tuple(step for segment in segments for step in (*segment.steps, *segment.after)) == chain.steps
            assert [(len(segment.convs), segment.groups) for segment in segments] == [
                (piece.convs, piece.groups) for piece in form
            ]


@EITHER
@given(arch=architectures(), layers=layer_runs())
def test_every_form_can_be_multiplied_out(parts_of: PartsOf, arch: ArchConfig, layers: tuple[Layer, ...]) -> None:
    """A segment has at most one spatial or strided convolution; a grouped one has no interleave."""
    for chain in (
        *(chain for _, chain in named_chains(plan(arch), parts_of)),
        *chains_in(parts_of(layers, (12, 9, 7))[0]),
    ):
        for form in forms_of(chain):
            for segment in layout(chain, form):
                assert segment.convs[0].groups % segment.groups == 0
                assert sum(conv.kernel > 1 or conv.stride > 1 for conv in segment.convs) <= 1
                assert segment.groups == 1 or len(segment.steps) - len(scales(segment.steps)) == 1
                assert not (segment.groups == 1 and segment.after)


def scales(steps: Sequence[Step]) -> list[Scale]:
    return [step for step in steps if isinstance(step, Scale)]


@EITHER
@given(arch=architectures())
def test_forms_are_distinct_and_bounded_the_factored_one_first(parts_of: PartsOf, arch: ArchConfig) -> None:
    for _, chain in named_chains(plan(arch), parts_of):
        found = forms_of(chain)
        assert found[0] == factored(chain)
        assert len(set(found)) == len(found)
        assert {semidense(chain), dense(chain)} - set(found) == {
            form
            for form in (semidense(chain), dense(chain))
            if form_macs(chain, form) > MOST_TIMES_MACS * form_macs(chain, found[0])
        }
        assert all(form_macs(chain, form) <= MOST_TIMES_MACS * form_macs(chain, found[0]) for form in found)


def test_a_form_of_too_many_macs_is_left_out() -> None:
    (chain,) = chains_of(Igcv2Stage(width=1024, depth=6, blocks=1), 1024)
    assert form_macs(chain, dense(chain)) > MOST_TIMES_MACS * form_macs(chain, factored(chain))
    assert dense(chain) not in forms_of(chain)
    assert semidense(chain) in forms_of(chain)
    for groups, tried in ((MOST_TIMES_MACS, True), (MOST_TIMES_MACS + 1, False)):
        alone = Chain((Conv("conv", groups, groups, groups=groups),), 1, 1)
        assert ((Piece(1, 1),) in forms_of(alone)) == tried


def describe(chain: Chain, form: Form) -> str:
    """A form as text: `3x3/24 + 1x1` is a 3x3 convolution in 24 groups, then a dense 1x1."""
    convs = (segment.as_conv for segment in layout(chain, form))
    return " + ".join(f"{c.kernel}x{c.kernel}" + (f"/{c.groups}" if c.groups > 1 else "") for c in convs)


def descriptions(stage: StageConfig, in_width: int, parts_of: PartsOf = training_parts) -> list[list[str]]:
    return [[describe(chain, form) for form in forms_of(chain)] for chain in chains_of(stage, in_width, parts_of)]


def test_the_forms_of_the_papers_units() -> None:
    assert descriptions(Igcv1Stage(L=24, M=2, blocks=1), 48) == [
        ["3x3/24 + 1x1/2", "3x3/24 + 1x1", "3x3/3 + 1x1", "3x3"]
    ]
    assert descriptions(Igcv2Stage(width=48, depth=3, blocks=1), 48) == [
        ["3x3/48 + 1x1/6 + 1x1/8", "3x3/48 + 1x1", "3x3"]
    ]
    expand, depthwise, project = descriptions(Igcv3Stage(width=8, expand=2, blocks=1, kernel=5), 8)
    assert (expand, depthwise, project) == (["1x1/2", "1x1"], ["5x5/16"], ["1x1/2", "1x1"])
    assert descriptions(Igcv3Stage(width=8, expand=2, blocks=1), 8, inference_parts)[0] == [
        "1x1/2 + 3x3/16",
        "1x1 + 3x3/16",
        "3x3",
    ]


def test_a_strided_shortcut_may_be_dense() -> None:
    *_, shortcut = chains_of(Igcv1Stage(L=4, M=4, blocks=1, stride=2, residual=True), 8)
    assert [describe(shortcut, form) for form in forms_of(shortcut)] == ["1x1/4", "1x1"]
    assert layout(shortcut, dense(shortcut))[0].as_conv == replace(shortcut.convs[0], groups=1)


@given(L=st.integers(1, 48), M=st.integers(1, 20))
def test_narrow_groups_are_merged_to_the_narrowest_that_fill_a_vector(L: int, M: int) -> None:
    (chain,) = chains_of(Igcv1Stage(L=L, M=M, blocks=1), L * M)
    enough = [groups for groups in range(1, L + 1) if L % groups == 0 and M * L // groups >= WIDEST_GROUP]
    groups = L if M == 1 else max(enough, default=1)
    assert (Piece(1, groups), Piece(1, 1)) in forms_of(chain) or form_macs(chain, (Piece(1, groups), Piece(1, 1))) > (
        MOST_TIMES_MACS * form_macs(chain, factored(chain))
    )


def test_interleaves_go_into_the_dense_pieces_beside_them() -> None:
    (chain,) = chains_of(Igcv1Stage(L=4, M=3, blocks=1), 12)
    primary, there, secondary, back = chain.steps
    assert [s.after for s in layout(chain, factored(chain))] == [(there,), (back,)]
    grouped, wide = layout(chain, semidense(chain))
    assert (grouped.steps, grouped.after, wide.steps, wide.after) == ((primary,), (), (there, secondary, back), ())
    wide, grouped = layout(chain, (Piece(1, 1), Piece(1, 3)))
    assert (wide.steps, wide.after, grouped.steps, grouped.after) == ((primary, there), (), (secondary,), (back,))


# Keys.


@given(arch=architectures())
def test_a_key_is_the_chain_without_names(arch: ArchConfig) -> None:
    chains = [chain for _, chain in named_chains(plan(arch), training_parts)]
    nameless = {
        replace(chain, steps=tuple(replace(s, name="") if isinstance(s, Conv) else s for s in chain.steps))
        for chain in chains
    }
    assert len({chain.key for chain in chains}) == len(nameless)


def test_a_key_as_text() -> None:
    (chain,) = chains_of(Igcv1Stage(L=4, M=3, blocks=1, stride=2), 8, inference_parts)
    assert chain.key == "c3s2g4i8o12-p4of12-c1g3i12o12-b-p3of12@8x8"
    assert str(ConvKey(Conv("any", 8, 12, 3, 1, 4), 6, 5)) == "c3s1g4i8o12@6x5"
    assert form_key((Piece(1, 4), Piece(2, 1))) == "1g4/2g1"
