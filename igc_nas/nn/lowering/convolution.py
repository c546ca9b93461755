"""The algorithms of one convolution in training: its output, the gradient of its input, that of its weight.

The three are products with the same number of MACs, but the speed of a library's kernels differs much between them:
oneDNN takes 60 ms for the weight gradient of a 5x5 depthwise convolution in bfloat16 whose output takes 3 ms. So each
product has an algorithm of its own:

    forward  conv      PyTorch's convolution
             matmul    pixels x weights; for kernels larger than 1x1 the windows are copied into rows first (im2col)
    input    conv      PyTorch's convolution_backward
             flip      a forward convolution of the gradient with the flipped, transposed weight (stride 1)
             matmul    pixels x weights (1x1, stride 1)
             float32   as conv, computed in float32, if the dtype is bfloat16
    weight   conv      PyTorch's convolution_backward
             matmul    windows x gradient
             tiles     four 3x3 weight gradients that cover the 5x5 one (depthwise, stride 1)
             float32   as conv, computed in float32, if the dtype is bfloat16

`native`, for each of the three, is our C kernel for depthwise convolutions (`igc_nas.nn.lowering.native`).

On a GPU each product of a 1x1 convolution, in groups too, may be a `matmul`: cuBLAS picks its kernel without the search
that cuDNN makes for each new shape. In channels-last a depthwise convolution is cuDNN's; as `nchw` it is computed in
that layout, where it is PyTorch's own kernel, between two changes of the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from igc_nas.arch.layers import Conv
from igc_nas.nn.lowering import native

Algorithm = Literal["conv", "matmul", "flip", "tiles", "float32", "native", "nchw"]
Direction = Literal["forward", "input", "weight"]

MOST_WINDOW_ELEMENTS = 1 << 26
"""Elements of the im2col matrix above which `matmul` is not offered for a kernel: 128 MiB in bfloat16."""


@dataclass(frozen=True, slots=True)
class Algorithms:
    """The algorithm of each product."""

    forward: Algorithm = "conv"
    input: Algorithm = "conv"
    weight: Algorithm = "conv"

    def of(self, direction: Direction) -> Algorithm:
        """The algorithm of one product."""
        return {"forward": self.forward, "input": self.input, "weight": self.weight}[direction]


def options(conv: Conv, dtype: torch.dtype, pixels: int, kind: str = "cpu") -> dict[Direction, tuple[Algorithm, ...]]:
    """The algorithms available for each product of a convolution; `pixels` are its output pixels in the whole batch.

    Of equally fast ones the first is taken: on a GPU one that needs no search by cuDNN.
    """
    if kind == "cuda":
        return dict.fromkeys(("forward", "input", "weight"), _on_gpu(conv))
    forward, for_input, weight = (["conv"] for _ in range(3))
    windows = pixels * conv.kernel**2 * conv.in_channels
    if conv.groups == 1 and windows <= MOST_WINDOW_ELEMENTS:
        forward.append("matmul")
        weight.append("matmul")
    if conv.stride == 1 and conv.kernel > 1:
        for_input.append("flip")
    if conv.groups == conv.kernel == conv.stride == 1:
        for_input.append("matmul")
    if conv.groups == conv.in_channels == conv.out_channels and conv.kernel == 5 and conv.stride == 1:
        weight.append("tiles")
    if native.fits_depthwise(conv, dtype) and native.available():
        for algorithms in (forward, for_input, weight):
            algorithms.append("native")
    if dtype == torch.bfloat16 and conv.groups > 1:
        for_input.append("float32")
        weight.append("float32")
    return {"forward": tuple(forward), "input": tuple(for_input), "weight": tuple(weight)}  # type: ignore[arg-type]


def _on_gpu(conv: Conv) -> tuple[Algorithm, ...]:
    if conv.kernel == conv.stride == 1:
        return ("matmul", "conv")
    return ("conv", "nchw") if conv.groups == conv.in_channels > 1 else ("conv",)


def convolve(x: Float[Tensor, "n c h w"], weight: Tensor, conv: Conv, use: Algorithms) -> Float[Tensor, "n o ho wo"]:
    """The convolution of `x` with `weight`, both channels-last and of one dtype; differentiable in both."""
    if use == _ALL_CONV:
        return F.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, conv.groups)
    if use == _ALL_MATMUL and conv.kernel == conv.stride == conv.groups == 1:
        return _as_image(F.linear(_pixels(x), weight[:, :, 0, 0]), x)
    y: Tensor = _Convolution.apply(x, weight, conv, use)  # type: ignore[no-untyped-call]
    return y


def product(direction: Direction, algorithm: Algorithm, x: Tensor, weight: Tensor, grad: Tensor, conv: Conv) -> Tensor:
    """One of the three products; `grad` is the gradient of the output."""
    match direction:
        case "forward":
            return forward(x, weight, conv, algorithm)
        case "input":
            return input_gradient(grad, x, weight, conv, algorithm)
        case "weight":
            return weight_gradient(grad, x, weight, conv, algorithm)


def forward(x: Tensor, weight: Tensor, conv: Conv, algorithm: Algorithm) -> Tensor:
    """The output by one algorithm."""
    if algorithm == "matmul" and conv.groups > 1:
        return _as_image(_rows_of_groups(_by_group(_pixels(x), conv), _matrices(weight, conv).transpose(1, 2)), x)
    if algorithm == "nchw":
        y = F.conv2d(x.contiguous(), weight.contiguous(), None, conv.stride, conv.kernel // 2, 1, conv.groups)
        return y.contiguous(memory_format=torch.channels_last)
    if algorithm == "matmul" and conv.kernel**2 * x.numel() <= MOST_WINDOW_ELEMENTS * conv.stride**2:
        rows = _windows(x, conv) @ weight.permute(0, 2, 3, 1).reshape(conv.out_channels, -1).t()
        n, _, height, width = x.shape
        return rows.view(n, -(-height // conv.stride), -(-width // conv.stride), -1).permute(0, 3, 1, 2)
    if algorithm == "native":
        return native.depthwise(x, weight, conv)
    return F.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, conv.groups)


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, conv: Conv, algorithm: Algorithm) -> Tensor:
    """The gradient of the input by one algorithm."""
    if algorithm == "matmul" and conv.groups > 1:
        return _as_image(_rows_of_groups(_by_group(_pixels(grad), conv), _matrices(weight, conv)), grad)
    if algorithm == "nchw":
        found = _torch_gradient(grad.contiguous(), x.contiguous(), weight.contiguous(), conv, for_input=True)
        return found.contiguous(memory_format=torch.channels_last)
    if algorithm == "matmul":
        return _as_image(_pixels(grad) @ weight[:, :, 0, 0], grad)
    if algorithm == "flip":
        g, k = conv.groups, conv.kernel
        turned = weight.view(g, conv.out_channels // g, conv.in_channels // g, k, k).transpose(1, 2).flip(3, 4)
        turned = turned.reshape(conv.in_channels, conv.out_channels // g, k, k)
        return F.conv2d(grad, turned.contiguous(memory_format=torch.channels_last), None, 1, k // 2, 1, g)
    if algorithm == "float32":
        return _torch_gradient(grad.float(), x.float(), weight.float(), conv, for_input=True).to(grad.dtype)
    if algorithm == "native":
        return native.depthwise_input(grad, x, weight, conv)
    return _torch_gradient(grad, x, weight, conv, for_input=True)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, conv: Conv, algorithm: Algorithm) -> Tensor:
    """The gradient of the weight by one algorithm."""
    if algorithm == "matmul" and conv.groups > 1:
        gradients = torch.bmm(_by_group(_pixels(grad), conv).transpose(1, 2), _by_group(_pixels(x), conv))
        return gradients.reshape(weight.shape)
    if algorithm == "nchw":
        return _torch_gradient(grad.contiguous(), x.contiguous(), weight.contiguous(), conv, for_input=False)
    if algorithm == "matmul":
        taps = _pixels(grad).t() @ _windows(x, conv)
        return taps.view(conv.out_channels, conv.kernel, conv.kernel, -1).permute(0, 3, 1, 2)
    if algorithm == "native":
        return native.depthwise_weight(grad, x, conv)
    if algorithm == "tiles":
        return _by_tiles(grad, x, conv)
    if algorithm == "float32":
        return _torch_gradient(grad.float(), x.float(), weight.float(), conv, for_input=False)
    return _torch_gradient(grad, x, weight, conv, for_input=False)


_ALL_CONV, _ALL_MATMUL = Algorithms(), Algorithms("matmul", "matmul", "matmul")


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, conv: Conv, use: Algorithms) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.conv, ctx.use = conv, use
        return forward(x, weight, conv, use.forward)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        for_x, for_weight, *_ = ctx.needs_input_grad
        return (
            input_gradient(grad, x, weight, ctx.conv, ctx.use.input) if for_x else None,
            weight_gradient(grad, x, weight, ctx.conv, ctx.use.weight).to(weight.dtype) if for_weight else None,
            None,
            None,
        )


def _torch_gradient(grad: Tensor, x: Tensor, weight: Tensor, conv: Conv, *, for_input: bool) -> Tensor:
    stride, padding = [conv.stride] * 2, [conv.kernel // 2] * 2
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, [1, 1], False, [0, 0], conv.groups, [for_input, not for_input, False]
    )
    gradient: Tensor = found[0 if for_input else 1]
    return gradient


def _pixels(x: Tensor) -> Float[Tensor, "pixels channels"]:
    """A channels-last image as the matrix that it is in memory: a view."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _by_group(rows: Tensor, conv: Conv) -> Float[Tensor, "groups pixels channels"]:
    """The rows of pixels by the groups of a convolution: a view."""
    return rows.view(len(rows), conv.groups, -1).transpose(0, 1)


def _matrices(weight: Tensor, conv: Conv) -> Float[Tensor, "groups outputs inputs"]:
    return weight.reshape(conv.groups, conv.out_channels // conv.groups, -1)


def _rows_of_groups(x: Tensor, matrices: Tensor) -> Float[Tensor, "pixels channels"]:
    """The product of each group, written to its channels of the rows."""
    rows = x.new_empty(x.shape[1], len(x), matrices.shape[2])
    torch.bmm(x, matrices, out=rows.transpose(0, 1))
    return rows.flatten(1)


def _as_image(rows: Tensor, like: Tensor) -> Tensor:
    n, _, height, width = like.shape
    return rows.view(n, height, width, -1).permute(0, 3, 1, 2)


def _windows(x: Tensor, conv: Conv) -> Float[Tensor, "pixels taps_times_channels"]:
    """The window of each output pixel as a row (im2col), ordered by tap, then channel."""
    k, s = conv.kernel, conv.stride
    if k == s == 1:
        return _pixels(x)
    n, c, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, k // 2, k // 2, k // 2, k // 2))
    of_image, of_row, of_pixel, _ = padded.stride()
    shape = (n, -(-height // s), -(-width // s), k, k * c)
    return padded.as_strided(shape, (of_image, of_row * s, of_pixel * s, of_row, 1)).reshape(-1, k * k * c)


def _by_tiles(grad: Tensor, x: Tensor, conv: Conv) -> Tensor:
    """A 5x5 depthwise weight gradient as four overlapping 3x3 ones, for which oneDNN has fast kernels."""
    height, width = grad.shape[2:]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 2, 2, 2, 2)).permute(0, 3, 1, 2)
    tile = Conv("tile", conv.in_channels, conv.out_channels, 3, 1, conv.groups)
    like = x.new_empty(conv.out_channels, 1, 3, 3)
    whole = x.new_empty(conv.out_channels, 1, 5, 5)
    for row in (0, 2):
        for column in (0, 2):
            part = padded[:, :, row : row + height + 2, column : column + width + 2]
            whole[:, :, row : row + 3, column : column + 3] = _unpadded_weight_gradient(grad, part, like, tile)
    return whole


def _unpadded_weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    gradient: Tensor = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], conv.groups, [False, True, False]
    )[1]
    return gradient
