"""Each algorithm computes the convolution, its output and both gradients, also where it is valid but not offered."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from igc_nas.arch.layers import Conv
from igc_nas.nn.lowering.convolution import (
    MOST_WINDOW_ELEMENTS,
    Algorithm,
    Algorithms,
    Direction,
    convolve,
    options,
    product,
)
from tests.support.builders import divisors

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
LISTED = [
    Conv("dense", 5, 7),
    Conv("dense strided", 6, 4, 1, 2),
    Conv("dense 3x3", 4, 6, 3),
    Conv("dense 3x3 strided", 3, 8, 3, 2),
    Conv("one channel", 1, 1, 5),
    Conv("grouped 1x1", 12, 8, 1, 1, 4),
    Conv("grouped 3x3", 6, 12, 3, 1, 3),
    Conv("grouped 5x5 strided", 8, 4, 5, 2, 2),
    Conv("depthwise 3x3", 6, 6, 3, 1, 6),
    Conv("depthwise 5x5", 6, 6, 5, 1, 6),
    Conv("depthwise 5x5 strided", 6, 6, 5, 2, 6),
]


@st.composite
def convs(draw: st.DrawFn) -> Conv:
    groups = draw(st.integers(1, 4))
    in_channels, out_channels = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel, stride = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 2, 4]))
    if draw(st.booleans()):
        return Conv("conv", in_channels, out_channels, kernel, stride, draw(divisors(groups)))
    return Conv("depthwise", in_channels, in_channels, kernel, stride, in_channels)


sides = st.integers(1, 7)


def tensors(conv: Conv, height: int, width: int, dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor, Tensor]:
    """(x, weight, gradient of the output), channels-last as in training."""
    generator = torch.Generator().manual_seed(0)
    out = -(-height // conv.stride), -(-width // conv.stride)
    shapes = (
        (3, conv.in_channels, height, width),
        (conv.out_channels, conv.in_channels // conv.groups, conv.kernel, conv.kernel),
        (3, conv.out_channels, *out),
    )
    x, weight, grad = (
        torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
        for shape in shapes
    )
    return x, weight, grad


def plain(x: Tensor, weight: Tensor, grad: Tensor, conv: Conv) -> dict[Direction, Tensor]:
    """The three products by autograd."""
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    y = F.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, conv.groups)
    for_x, for_weight = torch.autograd.grad(y, [x, weight], grad)
    return {"forward": y.detach(), "input": for_x, "weight": for_weight}


def valid(conv: Conv) -> dict[Direction, list[Algorithm]]:
    """The algorithms that compute the convolution, fast or not, except `float32`."""
    forward: list[Algorithm] = ["conv", "nchw"]
    for_input: list[Algorithm] = ["conv", "nchw"]
    weight: list[Algorithm] = ["conv", "nchw"]
    is_pointwise = conv.kernel == conv.stride == 1
    if conv.groups == 1 or is_pointwise:
        forward.append("matmul")
        weight.append("matmul")
    if conv.stride == 1:
        for_input.append("flip")
    if is_pointwise:
        for_input.append("matmul")
    if conv.groups == conv.in_channels and (conv.kernel, conv.stride) == (5, 1):
        weight.append("tiles")
    return {"forward": forward, "input": for_input, "weight": weight}


def error(found: Tensor, true: Tensor, size: Tensor) -> float:
    """The error relative to the product without cancellation."""
    assert found.shape == true.shape
    return ((found.double() - true.double()).norm() / size.double().norm()).item()


@given(convs(), sides, sides)
def test_each_algorithm_computes_the_convolution(conv: Conv, height: int, width: int) -> None:
    x, weight, grad = tensors(conv, height, width)
    true = plain(x, weight, grad, conv)
    for direction, algorithms in valid(conv).items():
        for algorithm in algorithms:
            found = product(direction, algorithm, x, weight, grad, conv)
            assert error(found, true[direction], true[direction]) < 1e-10, (direction, algorithm)


@given(convs(), sides, sides, st.booleans())
def test_offered_algorithms_have_the_gradients_of_the_convolution(
    conv: Conv, height: int, width: int, last: bool
) -> None:
    x, weight, grad = tensors(conv, height, width)
    true = plain(x, weight, grad, conv)
    grad = grad if last else grad.contiguous()
    offered = options(conv, torch.double, 3 * height * width)
    for use in itertools.starmap(Algorithms, itertools.product(*offered.values())):
        sources = x.requires_grad_(), weight.requires_grad_()
        y = convolve(*sources, conv, use)
        for_x, for_weight = torch.autograd.grad(y, sources, grad)
        for found, name in ((y, "forward"), (for_x, "input"), (for_weight, "weight")):
            assert error(found, true[name], true[name]) < 1e-10, (use, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("conv", LISTED, ids=lambda conv: conv.name)
def test_offered_algorithms_round_no_more_than_their_dtype(conv: Conv, dtype: torch.dtype) -> None:
    x, weight, grad = tensors(conv, 6, 5, dtype)
    true = plain(x.double(), weight.double(), grad.double(), conv)
    size = plain(x.double().abs(), weight.double().abs(), grad.double().abs(), conv)
    for direction, algorithms in options(conv, dtype, 3 * 6 * 5).items():
        for algorithm in algorithms:
            found = product(direction, algorithm, x, weight, grad, conv)
            assert found.dtype in (dtype, torch.float32)
            assert error(found, true[direction], size[direction]) < torch.finfo(dtype).eps, (direction, algorithm)


@pytest.mark.parametrize("conv", LISTED, ids=lambda conv: conv.name)
def test_gradients_have_the_dtypes_of_their_inputs(conv: Conv) -> None:
    x, weight, grad = tensors(conv, 4, 4, torch.bfloat16)
    for use in itertools.starmap(Algorithms, itertools.product(*options(conv, torch.bfloat16, 48).values())):
        sources = x.requires_grad_(), weight.requires_grad_()
        y = convolve(*sources, conv, use)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert {t.dtype for t in (y, *torch.autograd.grad(y, sources, grad))} == {torch.bfloat16}


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    """The network's first convolution reads images, whose gradient is not needed."""
    conv, use = Conv("conv", 3, 4, 3), Algorithms("conv", "flip", "matmul")
    x, weight, grad = tensors(conv, 4, 4)
    assert products_of(convolve(x, weight.requires_grad_(), conv, use), grad) == {"mm"}, "the weight's, by matmul"
    y = convolve(x.requires_grad_(), weight.detach(), conv, use)
    assert products_of(y, grad) == {"convolution"}, "the input's, by flip"


def products_of(y: Tensor, grad: Tensor) -> set[str]:
    """The operators of `y.backward(grad)` that multiply."""
    with FlopCounterMode(display=False) as counter:
        y.backward(grad)
    return {str(operator).removeprefix("aten.") for operator in counter.get_flop_counts()["Global"]}


@given(convs(), st.sampled_from(DTYPES))
def test_only_valid_algorithms_are_offered_and_pytorchs_first(conv: Conv, dtype: torch.dtype) -> None:
    offered = options(conv, dtype, 100)
    for direction, algorithms in offered.items():
        assert algorithms[0] == "conv"
        assert len(set(algorithms)) == len(algorithms)
        assert set(algorithms) <= {*valid(conv)[direction], "float32"}
        assert "float32" not in algorithms or (dtype == torch.bfloat16 and direction != "forward")


@given(convs(), st.sampled_from(DTYPES))
def test_on_a_gpu_there_is_a_choice_for_1x1_and_depthwise_convolutions_alone(conv: Conv, dtype: torch.dtype) -> None:
    if conv.kernel == conv.stride == 1:
        expected = {("matmul", "conv")}
    else:
        expected = {("conv", "nchw") if conv.groups == conv.in_channels > 1 else ("conv",)}
    assert set(options(conv, dtype, 100, "cuda").values()) == expected


def test_each_algorithm_is_offered_somewhere() -> None:
    offered = {
        direction: {algorithm for conv in LISTED for algorithm in options(conv, torch.bfloat16, 100)[direction]}
        for direction in ("forward", "input", "weight")
    }
    assert offered == {
        "forward": {"conv", "matmul"},
        "input": {"conv", "flip", "matmul", "float32"},
        "weight": {"conv", "matmul", "tiles", "float32"},
    }


def test_matmul_is_not_offered_for_windows_that_would_fill_the_memory() -> None:
    conv = Conv("conv", 64, 64)
    most = MOST_WINDOW_ELEMENTS // 64
    assert "matmul" in options(conv, torch.float32, most)["forward"]
    assert "matmul" in options(conv, torch.float32, most)["weight"]
    assert (
        options(conv, torch.float32, most + 1)["forward"]
        == options(conv, torch.float32, most + 1)["weight"]
        == ("conv",)
    )


@given(convs())
def test_a_gpu_has_products_and_both_layouts(conv: Conv) -> None:
    """1x1 convolutions by products first, as cuDNN need not search for them; depthwise ones in NCHW, too."""
    offered = options(conv, torch.bfloat16, 500 * 64, "cuda")
    for direction, algorithms in offered.items():
        assert set(algorithms) <= set(valid(conv)[direction])
        assert "conv" in algorithms
        assert (algorithms[0] == "matmul") is (conv.kernel == conv.stride == 1)
        assert ("nchw" in algorithms) is (conv.groups == conv.in_channels > 1 and algorithms[0] == "conv")
