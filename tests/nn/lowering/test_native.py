"""The C kernels of BN and its activation compute the definition up to rounding; without a compiler there are none."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Activation
from igc_nas.nn.lowering import native
from igc_nas.nn.lowering.native import BatchStats
from igc_nas.nn.lowering.training import LoweredNetwork
from igc_nas.nn.network import build

COMPILES = pytest.mark.skipif(not native.available(), reason="no C compiler")
ACTS = pytest.mark.parametrize("act", [None, "relu", "relu6"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
CHANNELS = (8, 12, 16, 20, 24, 40, 64, 96)
ROWS = ((2, 1), (3, 1), (1, 7), (2, 64), (3, 43), (5, 103))
"""(images, height): 2, 3, 7, 128, 129 and 515 rows; an image is as wide as a row has pixels."""
EPS, MOMENTUM = 1e-5, 0.1
ROUNDING = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-8}
"""Relative error of one result: some roundings in float32, one to bfloat16 (half an ulp is 2**-9)."""


class Found(NamedTuple):
    """The outputs of a normalisation and its gradients."""

    y: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor
    mean: Tensor
    var: Tensor


class Given(NamedTuple):
    """The inputs of a normalisation, and the gradient of its output."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    grad: Tensor


def period(channels: int) -> int:
    """The least number of pixels that hold a multiple of 16 values."""
    return next(pixels for pixels in range(1, 17) if pixels * channels % 16 == 0)


def image(dtype: torch.dtype, n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Noise; each channel has another mean and standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, height, width, generator=generator)
    x = x * torch.linspace(0.3, 3, channels).view(-1, 1, 1) + torch.linspace(-4, 4, channels).view(-1, 1, 1)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def given(x: Tensor, act: Activation | None, seed: int = 0) -> Given:
    """Around an image: weights of both signs, biases that bring many values over 6, statistics of before.

    No gradient comes where the activation bends: on which side a value lies there is a matter of rounding.
    """
    generator = torch.Generator().manual_seed(1 + seed)
    channels = x.shape[1]
    weight, bias = (torch.randn(channels, generator=generator) * size + at for size, at in ((2.0, 1.0), (2.0, 3.0)))
    mean, var = torch.randn(channels, generator=generator), torch.rand(channels, generator=generator) + 0.5
    grad = torch.randn(x.shape, generator=generator)
    flat = F.batch_norm(x.double(), None, None, weight.double(), bias.double(), True, MOMENTUM, EPS)
    for bend in {None: (), "relu": (0,), "relu6": (0, 6)}[act]:
        grad[(flat - bend).abs() < 1e-3] = 0
    return Given(x, weight, bias, mean, var, grad.to(x.dtype).contiguous(memory_format=torch.channels_last))


def ours(case: Given, act: Activation | None, momentum: float = MOMENTUM) -> Found:
    assert native.fits(case.x)
    x, weight, bias = (tensor.clone().requires_grad_() for tensor in case[:3])
    mean, var = case.mean.clone(), case.var.clone()
    y = native.norm_act(x, BatchStats(weight, bias, mean, var, momentum, EPS), act)
    y.backward(case.grad)
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    assert (y.dtype, x.grad.dtype) == (case.x.dtype,) * 2
    assert y.shape == x.grad.shape == case.x.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.detach().equal(case.x) or bool(case.x.isnan().any()), "what is read is left as it is"
    return Found(y.detach(), x.grad, weight.grad, bias.grad, mean, var)


def by_definition(case: Given, act: Activation | None, momentum: float = MOMENTUM) -> Found:
    x, weight, bias = (tensor.double().requires_grad_() for tensor in case[:3])
    mean, var = case.mean.double(), case.var.double()
    y = F.batch_norm(x, mean, var, weight, bias, True, momentum, EPS)
    y = {None: lambda y: y, "relu": F.relu, "relu6": F.relu6}[act](y)
    y.backward(case.grad.double())
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    return Found(y.detach(), x.grad, weight.grad, bias.grad, mean, var)


def assert_near(found: Tensor, true: Tensor, relative: float, allowed: Tensor | float) -> None:
    """Each element is equal up to `relative` of itself plus `allowed`."""
    error = (found.double() - true).abs()
    assert bool((error <= relative * true.abs() + allowed).all()), float((error / (true.abs() + allowed)).max())


def assert_same(found: Found, true: Found, case: Given) -> None:
    """Up to rounding: that of the results, and that of float32 within.

    The latter grows with |x| / deviation and, as sums are taken around the first pixel, with the square of its distance
    from the mean in deviations.
    """
    x, grad = case.x.double(), case.grad.double()
    axes = (0, 2, 3)
    inverse = (x.var(axes, unbiased=False) + EPS).rsqrt()
    away = ((x[0, :, 0, 0] - x.mean(axes)) * inverse).square()
    once = 2.0**-22 * (1 + x.abs().amax(axes) * inverse + away)
    scale, most, total = case.weight.double().abs(), grad.abs().amax(axes), grad.abs().sum(axes)
    rounding = ROUNDING[case.x.dtype]
    assert_near(found.y, true.y, rounding, (4 * once * (scale + case.bias.abs())).view(-1, 1, 1))
    assert_near(found.dx, true.dx, rounding, (16 * once * scale * inverse * most).view(-1, 1, 1))
    assert_near(found.dweight, true.dweight, 1e-5, 4 * once * total)
    assert_near(found.dbias, true.dbias, 1e-5, 2.0**-22 * total)
    assert_near(found.mean, true.mean, 1e-6, 1e-6 * x.abs().amax(axes))
    assert_near(found.var, true.var, 1e-5, 1e-6 * (1 + away) * x.var(axes))


# What they compute.


@COMPILES
@ACTS
@DTYPES
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_norm_and_its_gradients_are_those_of_the_definition(
    channels: int, dtype: torch.dtype, act: Activation | None
) -> None:
    for n, height in ROWS:
        case = given(image(dtype, n, channels, height, period(channels)), act)
        assert_same(ours(case, act), by_definition(case, act), case)


@COMPILES
@DTYPES
@pytest.mark.parametrize("momentum", [0.0, 0.25, 1.0])
def test_running_statistics_move_by_the_momentum(momentum: float, dtype: torch.dtype) -> None:
    case = given(image(dtype, 2, 24, 5, 6), None)
    found, true = ours(case, None, momentum), by_definition(case, None, momentum)
    assert_same(found, true, case)
    if momentum == 0:
        assert torch.equal(found.mean, case.mean)
        assert torch.equal(found.var, case.var)


@COMPILES
@DTYPES
def test_images_of_a_common_size(dtype: torch.dtype) -> None:
    case = given(image(dtype, 4, 48, 32, 32), "relu6")
    assert_same(ours(case, "relu6"), by_definition(case, "relu6"), case)


@COMPILES
def test_the_variance_is_exact_for_a_mean_far_from_zero() -> None:
    x = 1000 + 0.5 * torch.randn(4, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    case = given(x.contiguous(memory_format=torch.channels_last), "relu")
    found, true = ours(case, "relu"), by_definition(case, "relu")
    assert_near(found.var, true.var, 1e-4, 0)
    assert_near(found.mean, true.mean, 1e-5, 0)
    assert_near(found.y, true.y, 0, 2e-3 * float(case.weight.abs().max()))


@COMPILES
def test_the_variance_is_exact_for_a_first_pixel_far_from_the_others() -> None:
    """Sums are of differences from the first pixel."""
    x = image(torch.float32, 8, 16, 32, 32)
    x[0, :, 0, 0] += 100
    case = given(x, None)
    found, true = ours(case, None), by_definition(case, None)
    assert_near(found.var, true.var, 1e-3, 0)
    assert_near(found.y, true.y, 1e-3, 1e-3)


@COMPILES
@ACTS
@DTYPES
def test_a_channel_without_variance_is_its_bias(dtype: torch.dtype, act: Activation | None) -> None:
    x = image(dtype, 2, 16, 4, 4)
    x[:, 3] = 2.5
    case = given(x, act)
    found, true = ours(case, act), by_definition(case, act)
    assert_near(found.y[:, 3], true.y[:, 3], ROUNDING[dtype], 1e-4 * (1 + float(case.weight[3].abs())))
    assert float(found.var[3]) == pytest.approx(0.9 * float(case.var[3]), rel=1e-5)
    assert found.dx.isfinite().all()


@COMPILES
@DTYPES
def test_gradients_may_come_in_any_layout(dtype: torch.dtype) -> None:
    case = given(image(dtype, 2, 12, 6, 4), "relu")
    usual = ours(case, "relu")
    for grad in (case.grad.contiguous(), case.grad[..., :1].expand(-1, -1, -1, 4)):
        other = case._replace(grad=grad)
        wanted = usual if torch.equal(grad, case.grad) else ours(case._replace(grad=grad.clone()), "relu")
        found = ours(other, "relu")
        assert all(torch.equal(one, another) for one, another in zip(found, wanted, strict=True))


@COMPILES
@ACTS
@DTYPES
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize("at", [(0, 0, 0), (1, 3, 2)], ids=["first pixel", "another"])
def test_nan_and_infinity_in_the_input_show_in_the_results(
    at: tuple[int, int, int], value: float, dtype: torch.dtype, act: Activation | None
) -> None:
    """Its channel becomes NaN, as in PyTorch; the others are unchanged."""
    clean = image(dtype, 2, 20, 4, 4)
    case = given(clean, act)
    n, row, column = at
    x = clean.clone(memory_format=torch.preserve_format)
    x[n, 7, row, column] = value
    found = ours(case._replace(x=x), act)
    assert found.y[:, 7].isnan().all()
    assert found.dx[:, 7].isnan().all()
    assert found.dweight[7].isnan()
    assert found.var[7].isnan()
    assert not found.mean[7].isfinite()
    usual = ours(case, act)
    rest = [channel for channel in range(20) if channel != 7]
    for one, other in zip(found, usual, strict=True):
        one, other = (tensor[:, rest] if tensor.ndim == 4 else tensor[rest] for tensor in (one, other))
        assert torch.equal(one, other)


@COMPILES
@ACTS
@DTYPES
def test_nan_in_a_gradient_shows_in_the_results(dtype: torch.dtype, act: Activation | None) -> None:
    case = given(image(dtype, 2, 8, 4, 4), act)
    y = by_definition(case, act).y
    n, c, row, column = ((y > 1) & (y < 5)).nonzero()[0].tolist()
    case.grad[n, c, row, column] = float("nan")
    found = ours(case, act)
    assert found.dx[:, c].isnan().all()
    assert found.dweight[c].isnan()
    assert found.dbias[c].isnan()
    assert found.dx.isnan().sum() == found.dx[:, c].numel()


@COMPILES
def test_bfloat16_is_rounded_to_nearest_ties_to_even() -> None:
    """As PyTorch rounds a float32."""
    x = image(torch.bfloat16, 8, 16, 16, 16)
    case = given(x, None)
    same = ours(case, None).y == by_definition(case, None).y.to(torch.bfloat16)
    assert same.float().mean() > 0.999


# What they take.


def last(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [*CHANNELS, 1, 3, 48])
@DTYPES
def test_images_of_whole_rows_fit(channels: int, dtype: torch.dtype) -> None:
    for pixels in range(2, 34):
        assert native.fits(last(1, channels, 1, pixels, dtype=dtype)) == (pixels % period(channels) == 0)
        assert native.fits(last(pixels, channels, 1, 1, dtype=dtype)) == (pixels % period(channels) == 0)


@pytest.mark.parametrize(
    "x",
    [
        last(2, 16, 4, 4, dtype=torch.float64),
        last(2, 16, 4, 4, dtype=torch.float16),
        torch.zeros(2, 16, 4, 4),
        torch.zeros(2, 16, 4, 4).permute(0, 1, 3, 2),
        last(2, 16, 4, 8)[..., ::2],
        last(2, 32, 4, 4)[:, ::2],
        last(2, 32, 4, 4)[:, :16],
        last(3, 8, 3, 3),
        last(1, 12, 1, 6),
        last(0, 16, 4, 4),
        torch.zeros(2, 16, 4, 4, device="meta").contiguous(memory_format=torch.channels_last),
    ],
    ids=[
        "float64", "float16", "NCHW", "turned", "every second column", "every second channel", "half of the channels",
        "an odd number of pixels", "half a row", "no image", "no memory",
    ],
)  # fmt: skip
def test_other_images_do_not_fit(x: Tensor) -> None:
    assert not native.fits(x)


# The compiler.


@pytest.fixture
def no_library_yet() -> Iterator[None]:
    """Clears the cache of compiled libraries before and after the test."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def script(folder: Path, text: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.usefixtures("no_library_yet")
@pytest.mark.parametrize("compiler", ["/nonexistent", "no-such-compiler -O3", "/", "/dev/null", "'unbalanced"])
def test_without_a_compiler_there_are_no_kernels(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler)
    assert not native.available()


WRONG = {
    "fails": "exit 1",
    "is killed": "kill -9 $$",
    "says a lot": "head -c 300000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero >&2; exit 1",
    "writes nothing": "exit 0",
    "writes something else": 'while [ "$1" != -o ]; do shift; done; echo hello > "$2"',
}


@pytest.mark.usefixtures("no_library_yet")
@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_a_failing_compiler_counts_as_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", script(tmp_path, text))
    assert not native.available()


@COMPILES
@pytest.mark.usefixtures("no_library_yet")
def test_a_library_without_the_kernels_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'while [ "$1" != -o ]; do shift; done; echo "int unrelated;" | cc -shared -fPIC -x c - -o "$2"'
    monkeypatch.setenv("CC", script(tmp_path, text))
    assert not native.available()


@pytest.mark.usefixtures("no_library_yet")
@pytest.mark.parametrize("text", ["exec sleep 5", "sleep 5\nexit 1"], ids=["itself", "in a process of its own"])
def test_a_hanging_compiler_counts_as_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", script(tmp_path, text))
    started = time.monotonic()
    assert native.library(torch.float32, timeout_s=0.2) is None
    assert time.monotonic() - started < 3, "a compiler is a driver: what it has started is not waited for either"


@COMPILES
@pytest.mark.usefixtures("no_library_yet")
def test_a_compiler_may_come_with_flags_and_not_know_this_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'case "$*" in *=native*) exit 1;; esac; [ "$1" = --own ] && shift && exec cc "$@"'
    monkeypatch.setenv("CC", f"{script(tmp_path, text)} --own")
    assert native.available()
    case = given(image(torch.float32, 2, 16, 4, 4), "relu")
    assert_same(ours(case, "relu"), by_definition(case, "relu"), case)


@COMPILES
@pytest.mark.usefixtures("no_library_yet")
def test_each_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "runs"
    monkeypatch.setenv("CC", script(tmp_path, f'echo >> {kept}; exec cc "$@"'))
    assert native.available()
    runs = len(kept.read_text())
    assert 2 <= runs <= 6
    assert native.available()
    ours(given(image(torch.bfloat16, 2, 16, 4, 4), None), None)
    assert len(kept.read_text()) == runs


# A whole network.

ARCH = ArchConfig.parse(
    {
        "input": (3, 12, 12),
        "classes": 5,
        "stem": {"width": 16},
        "stage": [
            {"unit": "igcv3", "width": 16, "expand": 2, "G1": 2, "G2": 2, "blocks": 2},
            {"unit": "igcv3", "width": 24, "expand": 3, "G1": 2, "G2": 2, "blocks": 2, "stride": 2},
        ],
        "head": {"width": 20},
    }
)
BATCH = 4


def trained(native_norms: bool, steps: int = 3) -> tuple[list[Tensor], dict[str, Tensor], list[Tensor]]:
    """(logits of each step, the state_dict after training, the last gradients)."""
    network = copy.deepcopy(NETWORK).train()
    run = LoweredNetwork(network, network.plan, {}, torch.float32, form="native" if native_norms else "lowered")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    logits = []
    for _ in range(steps):
        x = torch.randn(BATCH, *ARCH.input, generator=generator)
        optimizer.zero_grad()
        logits.append(run(x))
        F.cross_entropy(logits[-1], torch.arange(BATCH)).backward()
        optimizer.step()
    grads = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(grads) == len(list(network.parameters()))
    return [found.detach() for found in logits], network.state_dict(), grads


NETWORK = build(ARCH, 0)


@COMPILES
def test_training_with_the_kernels_computes_what_training_without_does() -> None:
    wanted = trained(native_norms=False)
    found = trained(native_norms=True)
    assert not torch.equal(found[0][0], wanted[0][0]), "they took part: their sums are rounded in another order"
    for mine, theirs in ((found[0], wanted[0]), (found[1].values(), wanted[1].values()), (found[2], wanted[2])):
        one, other = (torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (mine, theirs))
        assert (one - other).norm() < 1e-4 * other.norm()
    for name, tensor in wanted[1].items():
        error = (found[1][name].double() - tensor.double()).norm()
        assert error <= 1e-4 * tensor.double().norm() + 1e-6, name


@COMPILES
def test_an_image_that_does_not_fit_is_normalised_by_torch() -> None:
    """75 pixels of 8 channels do not fill whole vectors."""
    config = {"input": (3, 5, 5), "stem": {"width": 8}, "stage": [{"unit": "conv", "width": 8, "blocks": 1}]}
    network, x = build(ArchConfig.parse(config), 0).train(), torch.randn(3, 3, 5, 5)
    assert not native.fits(last(3, 8, 5, 5))
    found = [LoweredNetwork(network, network.plan, {}, torch.float32, form)(x) for form in ("native", "lowered")]
    assert torch.equal(*found)
