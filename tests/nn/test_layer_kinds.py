"""Every kind of layer computes, in output and gradients, what a statement of it in plain torch does; so its cost."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from igc_nas.arch.cost import layers_cost
from igc_nas.arch.layers import (
    Act,
    AvgPool,
    Concat,
    Conv,
    DualPath,
    Flatten,
    Interleave,
    Layer,
    Linear,
    MaxPool,
    Norm,
    Pool,
    PRelu,
    Residual,
    Select,
    Split,
    SqueezeExcite,
    Subsample,
)
from igc_nas.nn.network import Block, initialise

SHAPE = (6, 9, 8)
Weights = dict[str, Tensor]


def conv(weights: Weights, name: str, x: Tensor, **options: int) -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **options)


def squeeze_excite(weights: Weights, x: Tensor) -> Tensor:
    mean = x.flatten(2).mean(2)
    inner = torch.clamp(mean @ weights["se.reduce.weight"].T + weights["se.reduce.bias"], min=0)
    factors = 1 / (1 + torch.exp(-(inner @ weights["se.expand.weight"].T + weights["se.expand.bias"])))
    return torch.einsum("nchw,nc->nchw", x, factors)


def squeeze_excite_hard(weights: Weights, x: Tensor) -> Tensor:
    mean = x.flatten(2).mean(2)
    inner = torch.clamp(mean @ weights["se.reduce.weight"].T, min=0)
    factors = torch.clamp(inner @ weights["se.expand.weight"].T + 3, 0, 6) / 6
    return torch.einsum("nchw,nc->nchw", x, factors)


def dual_path(weights: Weights, x: Tensor) -> Tensor:
    body, shortcut = conv(weights, "body", x), conv(weights, "short", x)  # 4 + 3 and 4 + 1 channels
    summed = [body[:, c] + shortcut[:, c] for c in range(4)]
    return torch.stack([*summed, shortcut[:, 4], *(body[:, c] for c in range(4, 7))], 1)


def subsample(_: Weights, x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 11, 5, 4, dtype=x.dtype)
    y[:, 2:8] = x[:, :, [0, 2, 4, 6, 8]][..., [0, 2, 4, 6]]
    return y


CASES: dict[str, tuple[tuple[Layer, ...], Callable[[Weights, Tensor], Tensor]]] = {
    "conv with bias, unpadded": (
        (Conv("a", 6, 4, 4, 2, 2, padding=0, bias=True),),
        lambda w, x: conv(w, "a", x, stride=2, groups=2),
    ),
    "global depthwise convolution": (
        (Conv("a", 6, 6, 8, groups=6, padding=0), Flatten()),
        lambda w, x: torch.stack([(x[:, :, r : r + 8] * w["a.weight"][:, 0]).sum((2, 3)) for r in (0, 1)], 2).flatten(
            1
        ),
    ),
    "hswish": ((Act("hswish"),), lambda w, x: x * torch.clamp(x + 3, 0, 6) / 6),
    "prelu": ((PRelu("p", 6),), lambda w, x: torch.where(x > 0, x, x * w["p.weight"][:, None, None])),
    "squeeze-excite": ((SqueezeExcite("se", 6, 2),), squeeze_excite),
    "squeeze-excite, hard": ((SqueezeExcite("se", 6, 3, "hsigmoid", bias=False),), squeeze_excite_hard),
    "max pool": (
        (MaxPool(3, 2, 1),),
        lambda w, x: F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5)),
    ),
    "average pool": (
        (AvgPool(3, 2, 1),),
        lambda w, x: F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).sum((4, 5)) / 9,
    ),
    "subsample": ((Subsample(2, 2, 3),), subsample),
    "select": ((Select("s", 6, 4),), lambda w, x: x[:, [0, 1, 3, 4]]),
    "concat": (
        (Concat(((), (Act("relu"), Conv("a", 6, 3)))),),
        lambda w, x: torch.cat([x, conv(w, "a", x.clamp(min=0))], 1),
    ),
    "split": (
        (Split(2, (), (Act("relu"), Conv("a", 4, 4, 3))), Interleave(6, 2)),
        lambda w, x: torch.cat([x[:, :2], conv(w, "a", x[:, 2:].clamp(min=0), padding=1)], 1)[:, [0, 3, 1, 4, 2, 5]],
    ),
    "dual path": ((DualPath(4, (Conv("body", 6, 7),), (Conv("short", 6, 5),)),), dual_path),
    "activation at the head of a residual body": (
        (Residual((Act("relu"), Conv("a", 6, 6))),),
        lambda w, x: x + conv(w, "a", x.clamp(min=0)),
    ),
    "hidden layer": (
        (Pool(), Linear("hidden", 6, 5, bias=False), Act("hswish"), Linear("linear", 5, 3)),
        lambda w, x: (
            F.hardswish(x.mean((2, 3)) @ w["hidden.weight"].T) @ w["linear.weight"].T + w["linear.bias"]
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_layers_compute_their_definition_and_its_gradients(case: str) -> None:
    layers, statement = CASES[case]
    torch.manual_seed(0)
    block = Block(layers).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, *SHAPE, dtype=torch.double, requires_grad=True)
    weights = dict(block.named_parameters())
    given = x.detach().clone()
    got, expected = block(x), statement(weights, x)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, given), "the input is not written to"
    inputs, direction = [x, *weights.values()], torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(got, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-7)  # torch's hardsigmoid divides by a float 6 in backward


@pytest.mark.parametrize("case", CASES)
def test_shapes_parameters_and_macs_are_torchs(case: str) -> None:
    layers, _ = CASES[case]
    block = Block(layers).eval()
    initialise(block)
    with FlopCounterMode(display=False) as counter:
        y = block(torch.randn(1, *SHAPE))
    cost, shape = layers_cost(layers, SHAPE)
    assert shape == tuple(y.shape[1:])
    assert cost.params == sum(parameter.numel() for parameter in block.parameters())
    assert cost.flops == counter.get_total_flops()


def test_a_norm_first_body_leaves_what_the_shortcut_reads() -> None:
    body = (Norm("n", 6), Act("relu6"), Conv("a", 6, 6, 3))
    block = Block((Residual(body),)).eval()
    initialise(block)
    x = torch.randn(2, *SHAPE)
    expected = x + block.get_submodule("a")(F.relu6(block.get_submodule("n")(x)))
    assert torch.allclose(block(x), expected, atol=1e-6)
