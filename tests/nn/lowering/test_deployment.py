"""A deployed network, in any form and by any kernels, computes the network in eval mode and has the reported costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Act, Conv, Interleave, Layer, Linear, Norm, Pool, Residual
from igc_nas.arch.plan import BlockPlan, Plan, plan
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.nn.lowering.chain import Chain, Form, Piece, dense, factored, form_macs, form_params, forms_of
from igc_nas.nn.lowering.deployment import (
    DeployedNetwork,
    FoldedConv,
    Interleaved,
    Kernel,
    PackedConv,
    ProductConv,
    chain_module,
    inference_blocks,
    kernels_for,
    set_kernels_,
)
from igc_nas.nn.lowering.parts import chains_in
from igc_nas.nn.network import Network, build, initialise
from tests.support.builders import divisors
from tests.support.shares import examples
from tests.support.tensors import relative_error

CLASSES = 5
BATCHES = (1, 3)
MOST_ERROR = {torch.double: 1e-12, torch.float32: 1e-4}
Forms = Mapping[str, Form]


def arch(*stages: dict[str, Any], size: tuple[int, int] = (7, 5), **more: Any) -> ArchConfig:
    stem = {"width": 8} | more.pop("stem", {})
    stage = [{"blocks": 1} | stage for stage in stages]
    return ArchConfig.parse({"input": (3, *size), "classes": CLASSES, "stem": stem, "stage": stage} | more)


IGCV1: dict[str, Any] = {"unit": "igcv1", "L": 4, "M": 3}
IGCV2: dict[str, Any] = {"unit": "igcv2", "width": 12, "depth": 3}
IGCV3: dict[str, Any] = {"unit": "igcv3", "width": 8, "expand": 2}
ARCHS = {
    "igcv1": arch(IGCV1 | {"blocks": 2}),
    "igcv1 residual, strided, 5x5": arch(IGCV1 | {"residual": True, "stride": 2, "kernel": 5, "blocks": 2}),
    "igcv1 widening, 1x1": arch(IGCV1 | {"kernel": 1}, IGCV1 | {"L": 2, "M": 9, "stride": 2, "kernel": 1}),
    "igcv1 residual, 1x1 strided": arch(IGCV1 | {"residual": True, "kernel": 1, "stride": 2}, size=(8, 8)),
    "igcv1 of one partition": arch(IGCV1 | {"L": 1, "M": 8}, IGCV1 | {"L": 8, "M": 1, "residual": True}),
    "igcv2 of depth 2": arch(IGCV2 | {"depth": 2, "kernel": 5}),
    "igcv2 of unequal K": arch(IGCV2 | {"blocks": 2}, IGCV2 | {"width": 24, "depth": 4, "stride": 2}),
    "igcv2 of depth 5": arch(IGCV2 | {"width": 24, "depth": 5}),
    "igcv2 of equal K, residual": arch(IGCV2 | {"width": 16, "residual": True, "blocks": 2}),
    "igcv2 of a given K": arch(IGCV2 | {"width": 16, "K": 8, "depth": 4, "stride": 2}, size=(8, 8)),
    "igcv2 residual, strided, 1x1": arch(IGCV2 | {"residual": True, "stride": 2, "kernel": 1}),
    "igcv3": arch(IGCV3 | {"G1": 2, "G2": 2, "blocks": 3}),
    "igcv3 of G1 = 4": arch(IGCV3 | {"G1": 4, "G2": 1, "blocks": 2, "kernel": 5}),
    "igcv3 of G2 = 4, strided": arch(IGCV3 | {"width": 16, "G1": 1, "G2": 4, "blocks": 2, "stride": 2}),
    "igcv3 plain": arch(IGCV3 | {"G1": 4, "G2": 4, "expand": 3, "blocks": 2, "residual": False}),
    "igcv3 of expand 1, 1x1": arch(IGCV3 | {"G1": 2, "G2": 4, "expand": 1, "blocks": 2, "kernel": 1}, size=(8, 8)),
    "down to one pixel, of one channel": arch(IGCV1 | {"stride": 2}, IGCV3 | {"stride": 2}, input=(1, 3, 2)),
    "all units, relu6, a head": arch(
        {"unit": "conv", "width": 12, "residual": True},
        IGCV1 | {"stride": 2, "residual": True},
        IGCV2 | {"residual": True},
        IGCV3 | {"G1": 2, "G2": 4, "blocks": 2},
        stem={"kernel": 5, "activation": "relu6"},
        head={"width": 10, "activation": "relu6"},
    ),
}
EACH = pytest.mark.parametrize("config", ARCHS.values(), ids=ARCHS.keys())
FEW = ("igcv1 residual, strided, 5x5", "igcv2 of unequal K", "igcv3", "all units, relu6, a head")
SOME = pytest.mark.parametrize("config", [ARCHS[name] for name in FEW], ids=FEW)


def network_of(whole: Plan, dtype: torch.dtype = torch.double) -> Network:
    """In eval mode, with norms that are not the identity."""
    network = Network(whole).to(dtype)
    initialise(network, torch.Generator().manual_seed(0))
    return randomize_batchnorm_(network).eval().to(memory_format=torch.channels_last)


def images_of(whole: Plan, batch: int, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.randn(batch, *whole.input, generator=torch.Generator().manual_seed(batch)).to(dtype)


def chains_of(whole: Plan) -> dict[str, Chain]:
    return {chain.key: chain for _, parts in inference_blocks(whole) for chain in chains_in(parts)}


def every_form(whole: Plan) -> Iterator[dict[str, Form]]:
    """Combinations of the chains' forms, so that each form occurs."""
    forms = {key: forms_of(chain) for key, chain in chains_of(whole).items()}
    for turn in range(max(map(len, forms.values()))):
        yield {key: found[turn % len(found)] for key, found in forms.items()}


@st.composite
def cuts(draw: st.DrawFn, chain: Chain) -> Form:
    """Any form: dense pieces of several convolutions; single ones in their own groups or in fewer, wider ones."""
    form: list[Piece] = []
    convs = list(chain.convs)
    while convs:
        most = max(n for n in range(1, len(convs) + 1) if n == 1 or sum(map(is_spatial, convs[:n])) < 2)
        count = draw(st.integers(1, most))
        form.append(Piece(count, draw(divisors(convs[0].groups)) if count == 1 else 1))
        del convs[:count]
    return tuple(form)


def is_spatial(conv: Conv) -> bool:
    return conv.kernel > 1 or conv.stride > 1


def features(network: Network, x: Tensor) -> Tensor:
    """The feature map before the pooling."""
    for module in list(network.children())[:-1]:
        x = module(x)
    return x


@torch.no_grad()
def assert_is_the_network(whole: Plan, forms: Forms, dtype: torch.dtype = torch.double) -> None:
    """Logits and feature maps, for two batch sizes and both memory formats."""
    network = network_of(whole, dtype)
    deployed = DeployedNetwork(network, forms)
    for batch in BATCHES:
        x = images_of(whole, batch, dtype)
        assert relative_error(deployed(x), network(x)) < MOST_ERROR[dtype]
        last = x.contiguous(memory_format=torch.channels_last)
        assert relative_error(deployed.blocks[:-1](last), features(network, x)) < MOST_ERROR[dtype]


# The same function.


@EACH
def test_every_form_computes_the_network(config: ArchConfig) -> None:
    for forms in every_form(plan(config)):
        assert_is_the_network(plan(config), forms)


@EACH
def test_every_form_computes_the_network_in_float32(config: ArchConfig) -> None:
    for forms in every_form(plan(config)):
        assert_is_the_network(plan(config), forms, torch.float32)


@given(st.data())
@examples(60)
def test_any_mixture_of_forms_computes_the_network(data: st.DataObject) -> None:
    whole = plan(ARCHS[data.draw(st.sampled_from(list(ARCHS)))])
    assert_is_the_network(whole, {key: data.draw(cuts(chain)) for key, chain in chains_of(whole).items()})


def test_a_chain_without_a_form_stays_factored() -> None:
    assert_is_the_network(plan(ARCHS["igcv3"]), {})
    deployed = DeployedNetwork(network_of(plan(ARCHS["igcv1"])), {})
    assert [conv.conv.groups for conv in folded(deployed)] == [1, 4, 3, 4, 3]


@st.composite
def layer_runs(draw: st.DrawFn, name: str = "", ends: bool = True) -> tuple[Layer, ...]:
    """Sequences of layers that no unit has: interleaves and norms in any order after a convolution."""
    layers: list[Layer] = []
    between = st.sampled_from([1, 2, 3, 4, 6, 12]).map(lambda groups: Interleave(12, groups))
    count = draw(st.integers(1, 3))
    for number in range(count):
        groups = draw(st.sampled_from([1, 3, 4, 12]))
        layers += [Conv(f"{name}conv{number}", 12, 12, draw(st.sampled_from([1, 3, 5])), 1, groups)]
        for norm in range(draw(st.integers(0, 2))):
            layers += [*draw(st.lists(between, max_size=2)), Norm(f"{name}norm{number}_{norm}", 12)]
        layers += draw(st.lists(between, max_size=2))
        if ends or number < count - 1:
            layers += draw(st.sampled_from([[], [Act("relu")], [Act("relu6")]]))
    return tuple(layers)


@given(st.data(), st.tuples(st.integers(1, 6), st.integers(1, 6)))
@examples(80)
def test_sequences_of_layers_that_no_unit_has_are_deployed(data: st.DataObject, size: tuple[int, int]) -> None:
    """A norm between interleaves; bias maps with norms on either side; sums of such."""
    body, shortcut = data.draw(layer_runs("body", ends=False)), data.draw(layer_runs("shortcut", ends=False))
    blocks = (
        BlockPlan("stem", (Conv("conv", 3, 12), Norm("norm", 12), *data.draw(layer_runs()))),
        BlockPlan("sum", (Residual(body, data.draw(st.sampled_from([(), shortcut]))), Act("relu6"))),
        BlockPlan("end", (Conv("conv", 12, 12, 3, 2),)),
        BlockPlan("classifier", (Pool(), Linear("linear", 12, CLASSES))),
    )
    whole = Plan((3, *size), CLASSES, blocks)
    forms = {key: data.draw(cuts(chain)) for key, chain in chains_of(whole).items()}
    assert_is_the_network(whole, forms)
    assert_kernels_are_the_network(whole, forms, data.draw(st.sampled_from(BATCHES)), drawn_kernels(data))


# Normalisation, biases, permutations.


def folded(module: nn.Module) -> list[FoldedConv]:
    return [found for found in module.modules() if isinstance(found, FoldedConv)]


def test_a_shift_before_a_padded_convolution_is_a_map() -> None:
    """The bias of expand + BN + depthwise differs at the border, where the padding is not shifted."""
    whole = plan(arch(IGCV3 | {"G1": 2, "G2": 2, "kernel": 5}))
    network = network_of(whole)
    forms = {key: dense(chain) for key, chain in chains_of(whole).items()}
    (expanded,) = (conv for conv in folded(DeployedNetwork(network, forms)) if conv.has_map)
    assert expanded.conv == Conv("expand*depthwise", 8, 16, 5)
    assert expanded.bias is not None
    assert expanded.bias.shape == (1, 16, 7, 5)
    zeros, block = torch.zeros(1, 8, 7, 5).double(), network.get_submodule("stage1.block1")
    with torch.no_grad():
        for layer in block.layers[:5]:
            if isinstance(layer, Interleave):
                zeros = nn.ChannelShuffle(layer.groups)(zeros)
            else:
                zeros = block.get_submodule(layer.name)(zeros)
    assert relative_error(expanded.bias, zeros) < 1e-12
    inner, corner = expanded.bias[0, :, 3, 2], expanded.bias[0, :, 0, 0]
    assert relative_error(corner, inner) > 0.1
    forms = {key: factored(chain) for key, chain in chains_of(whole).items()}
    assert not any(conv.has_map for conv in folded(DeployedNetwork(network, forms)))


def test_a_pointwise_piece_has_no_map() -> None:
    whole = plan(arch(IGCV3 | {"G1": 2, "G2": 4, "kernel": 1}))
    forms = {key: dense(chain) for key, chain in chains_of(whole).items()}
    biases = [conv.bias for conv in folded(DeployedNetwork(network_of(whole), forms))]
    assert all(bias is not None and bias.ndim == 1 for bias in biases)


def test_only_normalised_convolutions_have_a_bias() -> None:
    whole = plan(arch(IGCV1))
    stem, primary, secondary = folded(DeployedNetwork(network_of(whole), {}))
    assert primary.bias is None
    assert stem.bias is not None
    assert secondary.bias is not None


def test_a_form_keeps_permutations_only_beside_groups() -> None:
    whole = plan(ARCHS["igcv1"])
    chains = chains_of(whole)

    def kept(forms: Forms) -> list[int]:
        modules = DeployedNetwork(network_of(whole), forms).modules()
        return [module.groups for module in modules if isinstance(module, Interleaved)]

    assert kept({key: factored(chain) for key, chain in chains.items()}) == [4, 3, 4, 3]
    assert kept({key: dense(chain) for key, chain in chains.items()}) == []


def test_the_statistics_eps_and_weights_of_each_norm_are_used() -> None:
    whole = plan(ARCHS["igcv3"])
    forms = {key: dense(chain) for key, chain in chains_of(whole).items()}
    network, x = network_of(whole), images_of(whole, 1)
    for name, norm in network.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            for change in (
                lambda norm: norm.running_mean.add_(1),
                lambda norm: norm.running_var.mul_(2),
                lambda norm: norm.weight.data.mul_(1.5),
                lambda norm: norm.bias.data.sub_(0.5),
                lambda norm: setattr(norm, "eps", 0.1),
            ):
                change(norm)
                with torch.no_grad():
                    assert relative_error(DeployedNetwork(network, forms)(x), network(x)) < 1e-12, name


# A frozen network of its own.


@SOME
def test_deploying_changes_nothing_of_the_network(config: ArchConfig) -> None:
    whole = plan(config)
    network = build(config, seed=2)
    network(images_of(whole, 3, torch.float32)).sum().backward()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    held = [id(tensor) for tensor in (*network.parameters(), *network.buffers())]
    for forms in every_form(whole):
        deployed = DeployedNetwork(network, forms).to(memory_format=torch.channels_last)
        with torch.no_grad():
            set_kernels_(deployed, last_kernel, 1)(images_of(whole, 1, torch.float32))
    assert network.training
    assert [id(tensor) for tensor in (*network.parameters(), *network.buffers())] == held
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(network.parameters(), grads, strict=True))
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@SOME
def test_a_deployed_network_has_no_parameters(config: ArchConfig) -> None:
    whole = plan(config)
    for forms in every_form(whole):
        deployed = DeployedNetwork(build(config, seed=2), forms)
        assert not list(deployed.parameters())
        assert not any(tensor.requires_grad for tensor in deployed.state_dict().values())
        assert not deployed.training
        assert not deployed(images_of(whole, 1, torch.float32)).requires_grad
        assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_further_training_does_not_change_a_deployed_network(dtype: torch.dtype) -> None:
    whole = plan(ARCHS["igcv1"])
    network, x = network_of(whole, dtype), images_of(whole, 1, dtype)
    deployed = DeployedNetwork(network, {})
    before = deployed(x).clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    assert torch.equal(deployed(x), before)


def test_a_state_dict_is_read_back() -> None:
    whole = plan(ARCHS["all units, relu6, a head"])
    forms = {key: dense(chain) for key, chain in chains_of(whole).items()}
    trained, fresh = DeployedNetwork(network_of(whole), forms), DeployedNetwork(Network(whole).double(), forms)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(images_of(whole, 3)), trained(images_of(whole, 3)))


# Kernels.


KernelOf = Callable[[FoldedConv], Kernel]
MODULES = {"conv": FoldedConv, "packed": PackedConv, "matmul": ProductConv}


def last_kernel(folded: FoldedConv) -> Kernel:
    return kernels_for(folded)[-1]


def where_it_can(kernel: Kernel) -> KernelOf:
    return lambda folded: kernel if kernel in kernels_for(folded) else "conv"


def drawn_kernels(data: st.DataObject) -> KernelOf:
    return lambda folded: data.draw(st.sampled_from(kernels_for(folded)))


@torch.inference_mode()
def assert_kernels_are_the_network(
    whole: Plan, forms: Forms, batch: int, kernel_of: KernelOf, layout: torch.memory_format = torch.channels_last
) -> None:
    """At the batch size that it was packed for and at others; the images are not modified."""
    network = network_of(whole, torch.float32)
    module = set_kernels_(DeployedNetwork(network, forms).to(memory_format=layout), kernel_of, batch)
    for other in (*BATCHES, 2):
        x = images_of(whole, other, torch.float32).contiguous(memory_format=layout)
        kept = x.clone()
        assert relative_error(module(x), network(x)) < 1e-4
        assert relative_error(module.blocks[:-1](x), features(network, x)) < 1e-4
        assert torch.equal(x, kept)


@EACH
@pytest.mark.parametrize("kernel", MODULES)
def test_every_kernel_computes_the_network_at_any_batch(config: ArchConfig, kernel: Kernel) -> None:
    whole = plan(config)
    for forms, batch in zip(every_form(whole), itertools.cycle(BATCHES), strict=False):
        for layout in (torch.channels_last, torch.contiguous_format):
            assert_kernels_are_the_network(whole, forms, batch, where_it_can(kernel), layout)


@given(st.data())
@examples(30)
def test_any_mixture_of_kernels_computes_the_network(data: st.DataObject) -> None:
    whole = plan(ARCHS[data.draw(st.sampled_from(list(ARCHS)))])
    forms = {key: data.draw(cuts(chain)) for key, chain in chains_of(whole).items()}
    assert_kernels_are_the_network(whole, forms, data.draw(st.sampled_from(BATCHES)), drawn_kernels(data))


@SOME
def test_each_convolution_runs_by_the_kernel_that_is_named(config: ArchConfig) -> None:
    whole = plan(config)
    for forms in every_form(whole):
        network = network_of(whole, torch.float32)
        wanted = [MODULES[last_kernel(conv)] for conv in folded(DeployedNetwork(network, forms))]
        module = set_kernels_(DeployedNetwork(network, forms), last_kernel, 1)
        ran = [type(m) for m in module.modules() if isinstance(m, PackedConv | ProductConv)]
        assert ran == [kind for kind in wanted if kind is not FoldedConv]
        assert len(folded(module)) == len(wanted)


def test_a_matrix_product_is_offered_for_dense_pointwise_convolutions_only() -> None:
    for config in ARCHS.values():
        for dtype in MOST_ERROR:
            for forms in every_form(plan(config)):
                for found in folded(DeployedNetwork(network_of(plan(config), dtype), forms)):
                    conv, offered = found.conv, kernels_for(found)
                    assert offered[0] == "conv"
                    assert ("matmul" in offered) == (conv.kernel == conv.stride == conv.groups == 1)
                    assert dtype == torch.float32 or "packed" not in offered


# What it holds and executes.


def executed(module: nn.Module, x: Tensor) -> int:
    """Multiply-adds by torch's own count."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // 2


@EACH
def test_a_chain_has_the_parameters_and_macs_of_its_form(config: ArchConfig) -> None:
    whole = plan(config)
    network = network_of(whole, torch.float32)
    for block, parts in inference_blocks(whole):
        for chain in chains_in(parts):
            x = torch.randn(1, chain.convs[0].in_channels, chain.height, chain.width)
            for form in forms_of(chain):
                module = chain_module(network, block, chain, form)
                assert sum(tensor.numel() for tensor in module.state_dict().values()) == form_params(chain, form)
                assert executed(module, x) == form_macs(chain, form)


@torch.no_grad()
def test_a_chain_module_computes_the_network_up_to_there() -> None:
    whole = plan(ARCHS["igcv3"])
    network = network_of(whole)
    stem, *_ = (chain for _, parts in inference_blocks(whole) for chain in chains_in(parts))
    for form in forms_of(stem):
        x = images_of(whole, 3)
        y = chain_module(network, "stem", stem, form)(x)
        assert relative_error(y.relu(), network.get_submodule("stem")(x)) < 1e-12
