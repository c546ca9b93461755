"""Run by `test_triton_norm.py` in a process of its own: Triton reads TRITON_INTERPRET when it is imported.

The kernels, in the interpreter or without TRITON_INTERPRET=1 on a GPU, are compared with PyTorch in float64; the first
line that fails ends the process with a traceback.
"""

from __future__ import annotations

import copy
import os
from typing import NamedTuple

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Activation, Interleave
from igc_nas.nn.lowering import triton_norm
from igc_nas.nn.lowering.chain import forms_of
from igc_nas.nn.lowering.convolution import Algorithms
from igc_nas.nn.lowering.parts import chains_in, training_blocks
from igc_nas.nn.lowering.training import ChainForm, LoweredNetwork
from igc_nas.nn.lowering.triton_norm import TritonNorm
from igc_nas.nn.network import Network, activate, build, interleave

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Relative error, norm-wise: sums in float32, then one rounding to the dtype."""
MOMENTUM = 0.3


class Case(NamedTuple):
    """One normalisation: `order` and `behind` are as in `TritonNorm`; the offset is in standard deviations."""

    channels: int
    groups: tuple[int, ...]
    moved: int
    size: tuple[int, int, int]
    act: Activation | None
    dtype: torch.dtype
    offset: float
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    channels = draw(st.sampled_from([1, 2, 6, 12, 16, 33, 48, 130]))
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    groups = tuple(draw(st.lists(st.sampled_from(divisors), max_size=3)))
    size = draw(st.tuples(st.integers(2, 3), st.integers(2, 9), st.integers(3, 9)))
    act = draw(st.sampled_from([None, "relu", "relu6", "hswish"]))
    dtype = draw(st.sampled_from([*ROUNDING]))
    offset = draw(st.sampled_from([0.0, 3.0, 100.0]))
    return Case(channels, groups, draw(st.integers(0, len(groups))), size, act, dtype, offset, draw(st.integers(0, 99)))


def interleaved(x: Tensor, steps: tuple[Interleave, ...]) -> Tensor:
    for step in steps:
        x = interleave(x, step.groups)
    return x


def near(found: Tensor, wanted: Tensor, most: float) -> None:
    error = (found.double() - wanted.double()).norm()
    assert error <= most * wanted.double().norm() + 1e-6 * wanted.numel() ** 0.5, (error, wanted.norm())


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(cases())
@example(Case(16, (4, 2), 1, (9, 60, 60), "relu6", torch.float32, 3.0, 0))  # several tiles in a part
@example(Case(48, (), 0, (2, 5, 5), "relu", torch.float32, 1000.0, 0))
def the_kernels_are_the_definition(case: Case) -> None:
    """Outputs, gradients and running statistics, where the interleaves are left to BN, and where they are not."""
    torch.manual_seed(case.seed)
    steps = tuple(Interleave(case.channels, g) for g in case.groups)
    norm = nn.BatchNorm2d(case.channels, momentum=MOMENTUM)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 3)
    wide = copy.deepcopy(norm).double()
    x = torch.randn(case.size[0], case.channels, *case.size[1:]) + case.offset
    x = x.to(case.dtype).contiguous(memory_format=torch.channels_last)
    before, order = steps[: len(steps) - case.moved], steps[len(steps) - case.moved :]

    for is_left in (True, False):
        ours, theirs = copy.deepcopy(norm), copy.deepcopy(wide)
        image, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        assert triton_norm.fits(image)
        run = TritonNorm(ours, case.act, order, steps if is_left else ())
        y = run(image if is_left else interleaved(image, steps).contiguous(memory_format=torch.channels_last), MOMENTUM)
        wanted = interleaved(activate(theirs(interleaved(exact, before)), case.act), order)
        assert y.dtype == case.dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        grad = torch.randn_like(y)
        y.backward(grad)
        wanted.backward(grad.double())
        # An input of the activation at its bend may round to the other side.
        pairs = [(y, wanted), (image.grad, exact.grad), (ours.weight.grad, theirs.weight.grad)]
        pairs += [(ours.bias.grad, theirs.bias.grad)]
        most = ROUNDING[case.dtype] * (1 + case.offset / 10)
        for found, right in pairs:
            assert found is not None
            assert right is not None
            near(found, right, most)
        near(ours.running_mean, theirs.running_mean, 1e-6)  # type: ignore[arg-type]
        near(ours.running_var, theirs.running_var, 1e-5 * (1 + case.offset))  # type: ignore[arg-type]
        ours.eval(), theirs.eval()
        found = run(image if is_left else interleaved(image, steps), 0.0)
        near(found, interleaved(activate(theirs(interleaved(exact, before)), case.act), order), most)


def nan_stays_nan() -> None:
    """A diverged training is seen."""
    for act in (None, "relu", "relu6", "hswish"):
        x = torch.zeros(2, 16, 2, 2).contiguous(memory_format=torch.channels_last)
        x[0, 3] = float("nan")
        y = TritonNorm(nn.BatchNorm2d(16), act, (), ())(x, 0.1)
        assert y[:, 3].isnan().all()
        assert not y[:, :3].isnan().any()


STAGES = {
    12: {"unit": "igcv1", "L": 6, "M": 2, "blocks": 2},
    16: {"unit": "igcv2", "width": 16, "depth": 2, "blocks": 1},
    8: {"unit": "igcv3", "width": 8, "expand": 2, "blocks": 2},
}
"""By the width of the stem."""


def a_network_in_this_form_is_the_network() -> None:
    """Logits, gradients and buffers of a step in every form of its chains, then an evaluation."""
    for width, stage in STAGES.items():
        arch = ArchConfig.parse({"input": (3, 6, 6), "stem": {"width": width}, "stage": [stage]})
        with torch.device("cpu"):  # its generator's
            network = build(arch, 0)
        network.to(torch.get_default_device())
        for place in (0, -1):
            forms = {}
            for _, parts in training_blocks(network.plan):
                for chain in chains_in(parts):
                    pieces = forms_of(chain)[place]
                    forms[chain.key] = ChainForm(pieces, (Algorithms(),) * len(pieces))
            ours, wide = copy.deepcopy(network), copy.deepcopy(network).double()
            run = LoweredNetwork(ours, network.plan, forms, torch.float32, "triton")
            assert run.form == "triton"
            x = torch.randn(4, 3, 6, 6)
            for found, wanted in zip(after_a_step(ours, run, x), after_a_step(wide, wide, x.double()), strict=True):
                near(found, wanted, 1e-3)


def after_a_step(network: Network, run: object, x: Tensor) -> list[Tensor]:
    logits = run(x)  # type: ignore[operator]
    F.cross_entropy(logits, torch.arange(len(x)) % 10).backward()
    grads = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    buffers = [buffer.clone() for buffer in network.buffers()]
    network.eval()
    return [logits.detach(), *grads, *buffers, run(x).detach()]  # type: ignore[operator]


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") != "1":
        torch.set_default_device("cuda")
    the_kernels_are_the_definition()
    nan_stays_nan()
    a_network_in_this_form_is_the_network()
