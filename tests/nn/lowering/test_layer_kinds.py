"""Every kind of layer in any order: deployed and lowered networks compute the factored one, in float64.

The plans are drawn (`tests.support.plans`): normalisations in front of convolutions, bodies that end in activations,
interleaves behind concatenations, branches in branches, hidden layers, convolutions with biases and paddings.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from igc_nas.arch.layers import (
    Act,
    AvgPool,
    Concat,
    Conv,
    Interleave,
    Layer,
    Linear,
    Norm,
    Pool,
    Residual,
    SqueezeExcite,
)
from igc_nas.arch.plan import BlockPlan, Plan
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.nn.lowering.chain import dense, forms_of
from igc_nas.nn.lowering.deployment import DeployedNetwork, kernels_for, set_kernels_
from igc_nas.nn.lowering.parts import chains_in, inference_blocks, training_blocks
from igc_nas.nn.lowering.training import ChainForm, Forward, LoweredForm, LoweredNetwork, plain_form
from igc_nas.nn.lowering.variants import uniform_variants
from igc_nas.nn.network import Network, initialise
from tests.support.plans import CLASSES, plans
from tests.support.shares import examples
from tests.support.tensors import relative_error


def network_of(whole: Plan, dtype: torch.dtype = torch.float64) -> Network:
    """In eval mode, with norms that are not the identity."""
    network = Network(whole).to(dtype)
    initialise(network, torch.Generator().manual_seed(0))
    return randomize_batchnorm_(network).eval().to(memory_format=torch.channels_last)


def images_of(whole: Plan, batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, *whole.input, generator=torch.Generator().manual_seed(batch)).to(dtype)


def small(*layers: Layer, width: int = 8) -> Plan:
    """Some layers between a stem of 8 channels and a classifier behind `width` channels."""
    stem = BlockPlan("stem", (Conv("conv", 3, 8, 3), Norm("norm", 8), Act("relu")))
    end = BlockPlan("classifier", (Pool(), Linear("linear", width, CLASSES)))
    return Plan((3, 6, 5), CLASSES, (stem, BlockPlan("stage1.block1", layers), end))


@given(st.data(), plans())
@examples(40)
@torch.no_grad()
def test_a_deployed_network_is_the_network(data: st.DataObject, whole: Plan) -> None:
    network = network_of(whole)
    chains = {chain.key: chain for _, parts in inference_blocks(whole) for chain in chains_in(parts)}
    forms = {key: data.draw(st.sampled_from(forms_of(chain))) for key, chain in chains.items()}
    deployed = DeployedNetwork(network, forms)
    for batch in (1, 3):
        x = images_of(whole, batch)
        kept = x.clone()
        assert relative_error(deployed(x), network(x)) < 1e-10
        assert relative_error(deployed(x.contiguous(memory_format=torch.channels_last)), network(x)) < 1e-10
        assert torch.equal(x, kept)
    assert not list(deployed.parameters())


@given(st.data(), plans())
@examples(25)
@torch.inference_mode()
def test_every_kernel_of_a_deployed_network_computes_it(data: st.DataObject, whole: Plan) -> None:
    network, x = network_of(whole, torch.float32), images_of(whole, 2, torch.float32)
    deployed = DeployedNetwork(network, {}).to(memory_format=torch.channels_last)
    set_kernels_(deployed, lambda folded: data.draw(st.sampled_from(kernels_for(folded))), 2)
    wanted = network.double()(x.double())
    assert relative_error(deployed(x.contiguous(memory_format=torch.channels_last)).double(), wanted) < 1e-4


def step_of(network: Network, forward: Forward, x: Tensor) -> tuple[Tensor, ...]:
    """(outputs, gradients, running statistics) of one training step."""
    logits = forward(x)
    F.cross_entropy(logits, torch.arange(len(x)) % logits.shape[1]).backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    statistics = [buffer.flatten().double() for buffer in network.buffers()]
    return logits.detach(), torch.cat([gradient.flatten() for gradient in found]), torch.cat(statistics)


@given(plans(), st.booleans(), st.sampled_from(["lowered", "triton", "nchw"]))
@examples(30)
def test_a_training_step_in_a_lowered_form_is_the_factored_one(
    whole: Plan, multiplied: bool, form: LoweredForm
) -> None:
    factored, lowered = network_of(whole).train().to(memory_format=torch.contiguous_format), network_of(whole).train()
    chains = {chain.key: chain for _, parts in training_blocks(whole) for chain in chains_in(parts)}
    forms = {
        key: ChainForm(pieces := dense(chain), (plain_form(chain).algorithms[0],) * len(pieces))
        for key, chain in chains.items()
        if multiplied
    }
    x = images_of(whole, 5)
    wanted = step_of(factored, factored, x)
    found = step_of(lowered, LoweredNetwork(lowered, whole, forms, torch.float64, form), x)
    for some, other in zip(found, wanted, strict=True):
        assert relative_error(some, other) < 1e-7


@given(plans(), st.sampled_from([torch.float32, torch.bfloat16]))
@examples(8)
def test_a_lowered_network_runs_in_the_dtypes_of_recipes(whole: Plan, dtype: torch.dtype) -> None:
    network = network_of(whole, torch.float32).train()
    x = images_of(whole, 5, torch.float32)
    logits = LoweredNetwork(network, whole, {}, dtype, "native")(x)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    wanted = copy.deepcopy(network).double()(x.double()).detach()
    if dtype == torch.float32:  # in bfloat16 BN over five pixels may round to anything
        assert relative_error(logits.detach().double(), wanted) < 1e-3
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


# What was wrong before there were such layers.


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param((Residual((Conv("conv1", 8, 8, 3), Norm("norm", 8), Act("relu"))), Act("relu6")), id="body"),
        pytest.param((Residual((Norm("norm", 8), Act("relu"), Conv("conv1", 8, 8, 3))),), id="norm first"),
        pytest.param((Residual((Conv("conv1", 8, 8, 3),)), Norm("norm", 8), Act("hswish")), id="norm behind a sum"),
        pytest.param((Residual((Act("relu"), Conv("conv1", 8, 8, 3))),), id="activation first"),
        pytest.param((Concat(((Conv("conv1", 8, 4, 3),), (Conv("conv2", 8, 4),))), Interleave(8, 2)), id="shuffle"),
        pytest.param((Conv("conv1", 8, 8), Norm("norm", 8), SqueezeExcite("se", 8, 2), Act("relu")), id="se"),
    ],
)
@torch.no_grad()
def test_layers_in_orders_that_no_igc_has_are_deployed(layers: tuple[Layer, ...]) -> None:
    whole = small(*layers)
    network, x = network_of(whole), images_of(whole, 3)
    assert relative_error(DeployedNetwork(network, {})(x), network(x)) < 1e-12


# Pooling first.


def test_average_pooling_is_computed_before_pointwise_convolutions() -> None:
    """The transition of a DenseNet: a quarter of its MACs remain."""
    whole = small(Norm("norm", 8), Act("relu"), Conv("transition", 8, 4, bias=True), AvgPool(2, 2), width=4)
    factored, folded, *_ = uniform_variants(whole)
    assert factored.macs - folded.macs == 8 * 4 * (6 * 5 - 3 * 2)
    network, x = network_of(whole), images_of(whole, 3)
    with torch.no_grad():
        assert relative_error(DeployedNetwork(network, {})(x), network(x)) < 1e-12


@pytest.mark.parametrize("conv", [Conv("c", 8, 4, 3), Conv("c", 8, 4, 1, 2), Conv("c", 8, 4, padding=1)])
def test_average_pooling_stays_behind_spatial_convolutions(conv: Conv) -> None:
    factored, folded, *_ = uniform_variants(small(conv, AvgPool(2, 2), width=4))
    assert factored.macs == folded.macs


def test_padded_average_pooling_stays_where_it_is() -> None:
    factored, folded, *_ = uniform_variants(small(Conv("c", 8, 4), AvgPool(2, 2, 1), width=4))
    assert factored.macs == folded.macs
