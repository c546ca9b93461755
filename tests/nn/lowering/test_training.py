"""Training in any form computes the factored network: logits, gradients, statistics, weights, state_dict."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Act, Conv, Interleave, Layer, Linear, Norm, Pool, Residual
from igc_nas.arch.plan import BlockPlan, Plan, plan
from igc_nas.nn.lowering import training
from igc_nas.nn.lowering.chain import Chain, Piece, forms_of, layout
from igc_nas.nn.lowering.compose import compose
from igc_nas.nn.lowering.convolution import Algorithms, convolve, options
from igc_nas.nn.lowering.parts import chains_in
from igc_nas.nn.lowering.training import ChainForm, LoweredChain, LoweredNetwork, plain_form, training_blocks
from igc_nas.nn.network import Network, build, initialise
from tests.support.builders import divisors
from tests.support.shares import examples
from tests.support.tensors import relative_error

BATCH, CLASSES = 4, 5
MOST_ALGORITHMS = 3
Run = Callable[[Tensor], Tensor]
Forms = Mapping[str, ChainForm]


def arch(*stages: dict[str, Any], size: tuple[int, int] = (8, 8), **more: Any) -> ArchConfig:
    stem = {"width": 8} | more.pop("stem", {})
    stage = [{"blocks": 1} | stage for stage in stages]
    return ArchConfig.parse({"input": (3, *size), "classes": CLASSES, "stem": stem, "stage": stage} | more)


IGCV1: dict[str, Any] = {"unit": "igcv1", "L": 4, "M": 3}
IGCV2: dict[str, Any] = {"unit": "igcv2", "width": 12, "depth": 3}
IGCV3: dict[str, Any] = {"unit": "igcv3", "width": 8, "expand": 2}
ARCHS = {
    "igcv1": arch(IGCV1 | {"blocks": 2}),
    "igcv1 residual, strided, 5x5": arch(
        IGCV1 | {"residual": True, "stride": 2, "kernel": 5, "blocks": 2}, size=(9, 7)
    ),
    "igcv1 widening, 1x1": arch(IGCV1 | {"kernel": 1}, IGCV1 | {"L": 2, "M": 9, "stride": 2, "kernel": 1}, size=(9, 7)),
    "igcv1 residual, 1x1 strided": arch(IGCV1 | {"residual": True, "kernel": 1, "stride": 2}),
    "igcv1 of one partition": arch(IGCV1 | {"L": 1, "M": 8}, IGCV1 | {"L": 8, "M": 1, "residual": True}),
    "igcv2 of depth 2": arch(IGCV2 | {"depth": 2, "kernel": 5}),
    "igcv2 of unequal K": arch(IGCV2 | {"blocks": 2}, IGCV2 | {"width": 24, "depth": 4, "stride": 2}),
    "igcv2 of depth 5": arch(IGCV2 | {"width": 24, "depth": 5}, size=(9, 7)),
    "igcv2 of equal K, residual": arch(IGCV2 | {"width": 16, "residual": True, "blocks": 2}),
    "igcv2 of a given K": arch(IGCV2 | {"width": 16, "K": 8, "depth": 4, "stride": 2}),
    "igcv2 residual, strided, 1x1": arch(IGCV2 | {"residual": True, "stride": 2, "kernel": 1}, size=(9, 7)),
    "igcv3": arch(IGCV3 | {"G1": 2, "G2": 2, "blocks": 3}),
    "igcv3 of G1 = 4": arch(IGCV3 | {"G1": 4, "G2": 1, "blocks": 2, "kernel": 5}, size=(9, 7)),
    "igcv3 of G2 = 4, strided": arch(IGCV3 | {"width": 16, "G1": 1, "G2": 4, "blocks": 2, "stride": 2}),
    "igcv3 plain": arch(IGCV3 | {"G1": 4, "G2": 4, "expand": 3, "blocks": 2, "residual": False}),
    "down to one pixel, of one channel": arch(IGCV1 | {"stride": 2}, IGCV3 | {"stride": 2}, input=(1, 3, 2)),
    "all units, relu6, a head": arch(
        {"unit": "conv", "width": 12, "residual": True},
        IGCV1 | {"stride": 2},
        IGCV2 | {"residual": True},
        IGCV3 | {"G1": 2, "G2": 4, "blocks": 2},
        stem={"kernel": 5, "activation": "relu6"},
        head={"width": 10},
        size=(9, 7),
    ),
}
EACH = pytest.mark.parametrize("config", ARCHS.values(), ids=ARCHS.keys())
FEW = ("igcv1 residual, strided, 5x5", "igcv2 of unequal K", "igcv3", "all units, relu6, a head")
SOME = pytest.mark.parametrize("config", [ARCHS[name] for name in FEW], ids=FEW)

UNUSUAL: tuple[Layer, ...] = (
    Conv("conv", 3, 12, 3),
    Interleave(12, 3),
    Norm("norm", 12),
    Interleave(12, 4),
    Interleave(12, 6),
    Act("relu6"),
    Residual(
        (
            Conv("spatial", 12, 12, 5, 2, groups=4),
            Norm("spatial_norm", 12),
            Interleave(12, 12),
            Interleave(12, 2),
            Conv("mixed", 12, 12, groups=6),
            Interleave(12, 3),
            Interleave(12, 3),
            Act("relu"),
            Conv("last", 12, 12, groups=2),
        ),
        (Conv("shortcut", 12, 12, 1, 2),),
    ),
    Norm("added_norm", 12),
)
"""Adjacent interleaves, interleaves before and after a norm, activations without a norm, a norm after a sum."""


def unusual() -> Plan:
    end = BlockPlan("classifier", (Pool(), Linear("linear", 12, CLASSES)))
    return Plan((3, 9, 7), CLASSES, (BlockPlan("body", UNUSUAL), end))


def network_of(whole: Plan, dtype: torch.dtype = torch.double) -> Network:
    """In channels-last, with norms that differ by channel, so that a wrong permutation shows."""
    network = Network(whole)
    generator = torch.Generator().manual_seed(0)
    initialise(network, generator)
    for norm in norms_of(network):
        for tensor, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5), (norm.running_var, 0.5)):
            nn.init.uniform_(tensor, low, low + 1, generator=generator)
    return network.to(dtype).to(memory_format=torch.channels_last)


def norms_of(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def batch_of(whole: Plan, seed: int = 0, dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, *whole.input, generator=generator).to(dtype)
    return images, torch.randint(CLASSES, (BATCH,), generator=generator)


def chains_of(whole: Plan) -> dict[str, Chain]:
    return {chain.key: chain for _, parts in training_blocks(whole) for chain in chains_in(parts)}


def every_form(whole: Plan, dtype: torch.dtype = torch.double) -> Iterator[dict[str, ChainForm]]:
    """Combinations of the chains' forms, so that each form occurs, by PyTorch's and by the other algorithms."""
    chains = chains_of(whole)
    most = max(len(forms_of(chain)) for chain in chains.values())
    for turn, algorithm in itertools.product(range(most), range(MOST_ALGORITHMS)):
        yield {key: turned(chain, turn, algorithm, dtype) for key, chain in chains.items()}


def turned(chain: Chain, turn: int, algorithm: int, dtype: torch.dtype = torch.double) -> ChainForm:
    """The form and the algorithms of a chain for one combination; shorter lists are cycled."""
    forms = forms_of(chain)
    pieces = forms[turn % len(forms)]
    offered = [options(segment.as_conv, dtype, BATCH * 81).values() for segment in layout(chain, pieces)]
    return ChainForm(pieces, tuple(Algorithms(*(those[algorithm % len(those)] for those in each)) for each in offered))


def step_of(network: Network, run: Run, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """What one training step computes: logits, loss, all gradients, all statistics."""
    images, labels = batch
    network.zero_grad()
    logits = run(images).to(torch.promote_types(images.dtype, torch.float32))
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert all(p.grad is not None for p in network.parameters())
    return {"logits": logits.detach(), "loss": loss.detach(), "gradients": gradients, "statistics": statistics(network)}


@torch.no_grad()
def evaluated(network: Network, run: Run, images: Tensor) -> Tensor:
    network.eval()
    return run(images)


def statistics(network: Network) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in network.buffers()])


def values(network: Network) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in network.state_dict().values()])


def lowered(network: Network, whole: Plan, forms: Forms, dtype: torch.dtype = torch.double) -> LoweredNetwork:
    return LoweredNetwork(network, whole, forms, dtype)


def assert_is_the_factored(whole: Plan, forms: Forms, most: float, dtype: torch.dtype = torch.double) -> None:
    """One step from the same weights has the same outputs, gradients and statistics; then the outputs in eval mode."""
    network, other = network_of(whole, dtype), network_of(whole, dtype)
    run, batch = lowered(other, whole, forms, dtype), batch_of(whole, dtype=dtype)
    true, found = step_of(network, network, batch), step_of(other, run, batch)
    for name in true:
        assert relative_error(found[name], true[name]) < most, name
    assert all(norm.num_batches_tracked == 1 for norm in norms_of(other))
    assert relative_error(evaluated(other, run, batch[0]), evaluated(network, network, batch[0])) < most
    assert torch.equal(statistics(other), found["statistics"])


# Every form of every unit.


@EACH
def test_every_form_computes_the_factored_network(config: ArchConfig) -> None:
    whole = plan(config)
    for forms in every_form(whole):
        assert_is_the_factored(whole, forms, 1e-9)


@SOME
def test_every_form_computes_the_factored_network_in_float32(config: ArchConfig) -> None:
    whole = plan(config)
    for forms in every_form(whole, torch.float32):
        assert_is_the_factored(whole, forms, 1e-4, torch.float32)


@given(st.data())
@examples(40)
def test_any_mixture_of_forms_computes_the_factored_network(data: st.DataObject) -> None:
    whole = plan(ARCHS[data.draw(st.sampled_from(list(ARCHS)))])
    forms = {}
    for key, chain in chains_of(whole).items():
        pieces = data.draw(st.sampled_from([*forms_of(chain), *merged_forms(data, chain)]))
        offered = [options(segment.as_conv, torch.double, BATCH * 81).values() for segment in layout(chain, pieces)]
        algorithms = tuple(Algorithms(*(data.draw(st.sampled_from(c)) for c in choices)) for choices in offered)
        forms[key] = ChainForm(pieces, algorithms)
    assert_is_the_factored(whole, forms, 1e-9)


def merged_forms(data: st.DataObject, chain: Chain) -> list[tuple[Piece, ...]]:
    """Each convolution alone, with any number of its groups merged."""
    return [tuple(Piece(1, data.draw(divisors(conv.groups))) for conv in chain.convs)]


def test_sequences_of_layers_that_no_unit_has_are_lowered() -> None:
    whole = unusual()
    assert_is_the_factored(whole, {}, 1e-9)
    for forms in every_form(whole):
        assert_is_the_factored(whole, forms, 1e-9)


def test_a_chain_without_a_form_runs_factored() -> None:
    whole = plan(ARCHS["igcv1"])
    key, chain = next((key, chain) for key, chain in chains_of(whole).items() if len(chain.convs) > 1)
    assert plain_form(chain) == ChainForm(forms_of(chain)[0], (Algorithms(),) * 2)
    assert_is_the_factored(whole, {key: turned(chain, 1, 1)}, 1e-9)


def test_gradients_reach_the_images() -> None:
    whole = plan(ARCHS["igcv2 of unequal K"])
    for forms in every_form(whole):
        network, (images, labels) = network_of(whole), batch_of(whole)
        found = []
        for run in (network, lowered(network, whole, forms)):
            images = images.detach().requires_grad_()
            found.append(torch.autograd.grad(F.cross_entropy(run(images), labels), images)[0])
        assert relative_error(found[1], found[0]) < 1e-9


@SOME
def test_every_chain_runs_by_its_form(config: ArchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Conv, Algorithms]] = []

    def noted(x: Tensor, weight: Tensor, conv: Conv, use: Algorithms) -> Tensor:
        ran.append((conv, use))
        return convolve(x, weight, conv, use)

    monkeypatch.setattr(training, "convolve", noted)
    whole = plan(config)
    for forms in every_form(whole):
        ran.clear()
        lowered(network_of(whole), whole, forms)(batch_of(whole)[0])
        assert ran == [
            (segment.as_conv, use)
            for _, parts in training_blocks(whole)
            for chain in chains_in(parts)
            for segment, use in zip(layout(chain, forms[chain.key].pieces), forms[chain.key].algorithms, strict=True)
        ]


# Parameters, state_dict, initialisation.


@SOME
def test_a_lowered_network_has_no_parameters_of_its_own(config: ArchConfig) -> None:
    """Initialisation and state_dict are those of the factored network."""
    whole, network = plan(config), build(config, seed=3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    parameters = [id(parameter) for parameter in network.parameters()]
    for forms in every_form(whole):
        run = lowered(network.eval(), whole, forms, torch.float32)
        with torch.inference_mode():
            run(batch_of(whole, dtype=torch.float32)[0])
        assert run.network is network
    assert [id(parameter) for parameter in network.parameters()] == parameters
    after = network.state_dict()
    assert list(after) == list(before) == list(Network(whole).state_dict())
    assert all(torch.equal(after[name], before[name]) for name in before)


def optimizer_of(network: Network) -> torch.optim.Optimizer:
    """As in `igc_nas.evaluation.training`."""
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True, fused=True)


def train(network: Network, run: Run, whole: Plan, steps: range) -> None:
    """Steps of SGD, each on a batch of its own."""
    optimizer = optimizer_of(network.train())
    for step in steps:
        step_of(network, run, batch_of(whole, seed=step))
        optimizer.step()


@SOME
def test_sgd_with_weight_decay_leads_to_the_same_weights(config: ArchConfig) -> None:
    whole = plan(config)
    network = network_of(whole)
    train(network, network, whole, range(3))
    for forms in every_form(whole):
        other = network_of(whole)
        train(other, lowered(other, whole, forms), whole, range(3))
        assert relative_error(values(other), values(network)) < 1e-9


@SOME
def test_training_continues_from_a_state_dict_in_another_form(config: ArchConfig) -> None:
    whole = plan(config)
    straight = network_of(whole)
    train(straight, straight, whole, range(3))
    train(straight, straight, whole, range(3, 5))
    for forms, others in itertools.pairwise([{}, *every_form(whole), {}]):
        first, second = network_of(whole), Network(whole).double()
        train(first, lowered(first, whole, forms), whole, range(3))
        assert second.load_state_dict(first.state_dict())
        train(second, lowered(second, whole, others), whole, range(3, 5))
        assert relative_error(values(second), values(straight)) < 1e-9


# Statistics.


@SOME
def test_cumulative_statistics_are_the_factored_networks(config: ArchConfig) -> None:
    """As when statistics are recalibrated: momentum None, no gradients."""
    whole = plan(config)

    def collected(forms: Forms | None) -> Tensor:
        network = network_of(whole)
        run = network if forms is None else lowered(network, whole, forms)
        for norm in norms_of(network):
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            for seed in range(3):
                run(batch_of(whole, seed)[0])
        assert all(norm.num_batches_tracked == 3 for norm in norms_of(network))
        return statistics(network)

    for forms in every_form(whole):
        assert relative_error(collected(forms), collected(None)) < 1e-9


def test_frozen_norms_and_their_eps_are_the_modules() -> None:
    """`eval()`, momentum and eps of a single norm take effect in the next step."""
    whole = plan(ARCHS["igcv3"])
    results = []
    for lower in (False, True):
        network = network_of(whole)
        run = lowered(network, whole, next(every_form(whole))) if lower else network
        for number, norm in enumerate(norms_of(network)):
            norm.train(number % 2 == 0)
            norm.momentum, norm.eps = 0.3, 0.05
        results.append(step_of(network, run, batch_of(whole)))
    assert all(relative_error(results[1][name], results[0][name]) < 1e-9 for name in results[0])


def test_a_single_value_per_channel_is_refused_as_in_the_factored_network() -> None:
    whole = plan(arch(IGCV1, size=(1, 1)))
    network = network_of(whole)
    images = batch_of(whole)[0][:1]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(images)
    with pytest.raises(ValueError, match="more than one value per channel"):
        lowered(network_of(whole), whole, {})(images)


# Dtypes and memory formats.


@SOME
def test_bfloat16_is_no_further_from_float32_than_autocast(config: ArchConfig) -> None:
    whole, rounding = plan(config), torch.finfo(torch.bfloat16).eps
    batch = batch_of(whole, dtype=torch.float32)

    def error_of(forms: Forms | None) -> dict[str, float]:
        network, true = (network_of(whole, torch.float32) for _ in range(2))
        run = autocast(network) if forms is None else lowered(network, whole, forms, torch.bfloat16)
        found, expected = step_of(network, run, batch), step_of(true, true, batch)
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())
        found["evaluated"] = evaluated(network, run, batch[0])
        expected["evaluated"] = evaluated(true, true, batch[0])
        return {name: relative_error(found[name].double(), expected[name].double()) for name in expected}

    usual = error_of(None)
    for forms in every_form(whole, torch.bfloat16):
        for name, found in error_of(forms).items():
            assert found < 2 * usual[name] + rounding, name


def test_weights_are_multiplied_out_in_float32_and_rounded_once() -> None:
    whole = plan(ARCHS["igcv1"])
    block = network_of(whole, torch.float32).get_submodule("stage1.block1")
    chain = next(chain for chain in chains_of(whole).values() if len(chain.convs) == 2)
    form = ChainForm((Piece(2, 1),), (Algorithms(),))
    x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    factors = [block.get_submodule(conv.name).weight for conv in chain.convs]
    product = compose(layout(chain, form.pieces)[0], factors)
    y = LoweredChain(block, chain, form, torch.bfloat16)(x)
    assert torch.equal(y, F.conv2d(x, product.bfloat16(), padding=1))


def test_the_classifier_stays_in_float32() -> None:
    whole = plan(ARCHS["igcv1"])
    network, (images, _) = network_of(whole, torch.float32), batch_of(whole, dtype=torch.float32)
    assert lowered(network, whole, {}, torch.bfloat16)(images).dtype == torch.float32
    pooled = []
    network.get_submodule("classifier.linear").register_forward_hook(lambda _, args, out: pooled.append(args[0]))
    lowered(network, whole, {}, torch.bfloat16)(images)
    assert pooled[0].dtype == torch.float32
    assert not torch.equal(pooled[0], pooled[0].bfloat16())


def autocast(network: Network) -> Run:
    def run(images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(images.contiguous(memory_format=torch.channels_last))

    return run


def test_images_may_have_either_memory_format() -> None:
    whole = plan(ARCHS["igcv1"])
    for forms in every_form(whole):
        network = network_of(whole).eval()
        run, (images, _) = lowered(network, whole, forms), batch_of(whole)
        with torch.no_grad():
            assert torch.equal(run(images), run(images.contiguous(memory_format=torch.channels_last)))


@pytest.mark.gpu
@EACH
def test_every_form_computes_the_factored_network_on_a_gpu(config: ArchConfig) -> None:
    whole = plan(config)
    network = network_of(whole).cuda()
    images, labels = (tensor.cuda() for tensor in batch_of(whole))
    true = step_of(network, network, (images, labels))
    for forms in every_form(whole):
        other = network_of(whole).cuda()
        found = step_of(other, lowered(other, whole, forms), (images, labels))
        assert all(relative_error(found[name], true[name]) < 1e-9 for name in true)
