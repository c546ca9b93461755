"""The training step in C computes the network's step: outputs, gradients and statistics against float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.nn.c_compiler import compiler
from igc_nas.nn.lowering.training import factored_forward
from igc_nas.nn.network import Network, build
from igc_nas.nn.training_step.network import NativeStep
from igc_nas.nn.training_step.ways import Unsupported
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import Feasible
from igc_nas.space.search_space import SearchSpace
from tests.support.shares import examples, some
from tests.support.tuning import ARCHS, EACH

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")

SPACES = ("tiny", "igc_cifar", "igcv1_cifar", "igcv2_cifar", "igcv3_cifar", "igc_table")
LANES = st.sampled_from([8, 16])


def network_of(arch: ArchConfig, seed: int = 0) -> Network:
    return build(arch, seed).to(memory_format=torch.channels_last).train()


def native(network: Network, dtype: torch.dtype = torch.float32, lanes: int = 8) -> NativeStep:
    return NativeStep(network, network.plan, dtype, lanes)


def images_for(network: Network, batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, *network.plan.input, generator=torch.Generator().manual_seed(seed))


def outcome(network: nn.Module, forward: object, x: Tensor) -> dict[str, Tensor]:
    """Outputs, all gradients, all running statistics of one step, in float64."""
    logits = forward(x)  # type: ignore[operator]
    F.cross_entropy(logits, torch.arange(len(x)) % logits.shape[1]).backward()
    gradients = [p.grad.flatten().double() for p in network.parameters() if p.grad is not None]
    assert len(gradients) == len(list(network.parameters()))
    statistics = torch.cat([b.flatten().double() for b in network.buffers()])
    return {"logits": logits.detach().double(), "gradients": torch.cat(gradients), "statistics": statistics}


def errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted}


@cache
def drawable(space: str) -> Feasible:
    budget = Budget() if space == "tiny" else Budget(params=200_000, macs=10_000_000)
    return Feasible(SearchSpace.load(space, 7), budget)


@pytest.mark.parametrize("space", some(SPACES, "tiny", "igc_cifar"))
@examples(4)
@given(seed=st.integers(0, 2**32), lanes=LANES, size=st.tuples(st.integers(5, 19), st.integers(5, 19)))
def test_drawn_architectures_against_float64(space: str, seed: int, lanes: int, size: tuple[int, int]) -> None:
    drawn = drawable(space).draw(np.random.default_rng(seed))
    network = network_of(ArchConfig.parse(drawn.to_dict() | {"input": [1 + seed % 4, *size]}), seed % 1000)
    x = images_for(network, 2 + seed % 3, seed % 1000)
    exact, single = copy.deepcopy(network).double(), copy.deepcopy(network)
    wanted, torchs = outcome(exact, exact, x.double()), outcome(single, single, x)
    found = errors(outcome(network, native(network, lanes=lanes), x), wanted)
    allowed = errors(torchs, wanted)
    for name, error in found.items():
        assert error <= max(1e-5, 4 * allowed[name]), name  # a ReLU that opens by rounding opens for torch as well


@EACH
def test_bfloat16_is_as_close_as_autocast(config: ArchConfig) -> None:
    network = network_of(config)
    x = images_for(network, 6)
    exact, single = copy.deepcopy(network).double(), copy.deepcopy(network)
    wanted = outcome(exact, exact, x.double())
    allowed = errors(outcome(single, factored_forward(single, "cpu", torch.bfloat16), x), wanted)
    found = errors(outcome(network, native(network, torch.bfloat16), x), wanted)
    assert all(error < 2 * allowed[name] for name, error in found.items())
    assert all(error > 1e-5 for error in found.values()), "this is not bfloat16"


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_is_deterministic(config: ArchConfig, dtype: torch.dtype) -> None:
    def trained() -> list[Tensor]:
        network = network_of(config)
        step = native(network, dtype)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        for seed in range(3):
            optimizer.zero_grad()
            F.cross_entropy(step(images_for(network, 5, seed)), torch.arange(5)).backward()
            optimizer.step()
        return list(network.state_dict().values())

    assert all(torch.equal(one, other) for one, other in zip(trained(), trained(), strict=True))


@EACH
def test_evaluation_in_parts_equals_the_network(config: ArchConfig) -> None:
    """More images than a training batch run in parts; running statistics stay."""
    network = network_of(config)
    step = native(network)
    outcome(network, step, images_for(network, 3))
    network.eval()
    before = [buffer.clone() for buffer in network.buffers()]
    x = images_for(network, 8, 1)
    with torch.no_grad():
        found, wanted = step(x), network(x)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert all(torch.equal(one, other) for one, other in zip(before, network.buffers(), strict=True))


def test_a_cumulative_average_of_statistics() -> None:
    network = network_of(ARCHS["igcv3"])
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    other = copy.deepcopy(network)
    step = native(other)
    with torch.no_grad():
        for seed in range(3):
            network(images_for(network, 4, seed))
            step(images_for(network, 4, seed))
    for one, another in zip(network.buffers(), other.buffers(), strict=True):
        assert torch.allclose(one.double(), another.double(), rtol=1e-5, atol=1e-6)


def test_batches_of_several_sizes() -> None:
    network = network_of(ARCHS["igcv2"])
    step = native(network)
    for batch in (3, 7, 2, 40):
        exact = copy.deepcopy(network).double()
        exact.zero_grad()
        network.zero_grad()
        x = images_for(network, batch, batch)
        wanted = outcome(exact, exact, x.double())
        assert errors(outcome(network, step, x), wanted)["gradients"] < 1e-5


def test_nan_stays_nan() -> None:
    network = network_of(ARCHS["igcv1"])
    x = images_for(network, 3)
    x[0, 0, 0, 0] = torch.nan
    assert native(network)(x).isnan().all()


def test_misuse_is_refused() -> None:
    network = network_of(ARCHS["igcv1"])
    with pytest.raises(Unsupported, match="float16"):
        native(network, torch.float16)
    step = native(network)
    x = images_for(network, 3)
    first = step(x).sum()
    step(x)
    with pytest.raises(RuntimeError, match="activations of this batch are gone"):
        first.backward()
    with pytest.raises(ValueError, match="no gradient of its images"):
        step(x.requires_grad_())
    with pytest.raises(ValueError, match=r"images of \(3, 9, 9\)"):
        step(torch.zeros(1, 3, 9, 9))
    small = replace(network.plan, input=(3, 1, 1))
    with pytest.raises(ValueError, match="more than one value per channel"):
        NativeStep(network, small, torch.float32)(torch.zeros(1, 3, 1, 1))
