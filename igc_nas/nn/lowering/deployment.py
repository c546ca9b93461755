"""A trained network for deployment: normalisations folded in, chains multiplied out, weights constant.

A chain with its normalisations is an affine map x -> W x + b. W is multiplied out as in training; b is the output of
the chain for an image of zeros. If a shift comes before a padded convolution of the same piece (IGCV3: expand, BN,
depthwise), b differs at the border, where the padding is not shifted: it is then a map over the pixels of one image
size instead of one number per channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.layers import Act, Activation, Conv, Interleave, Linear, Pool
from igc_nas.nn.lowering.chain import Chain, Form, Scale, Segment, factored, has_map, layout
from igc_nas.nn.lowering.compose import compose, rows_restored
from igc_nas.nn.lowering.parts import Branches, Part, inference_blocks
from igc_nas.nn.network import Network, activate_, interleave


class FoldedConv(nn.Module):
    """y = act(conv(x) + bias + other) on images of `height` x `width` pixels; `bias` and `other` may be None.

    The bias is a vector of channels, or a map (channels, height, width) of the output.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, segment: Segment, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.conv = segment.as_conv
        self.height, self.width = segment.height, segment.width
        self.act: Activation | None = None
        self.register_buffer("weight", weight.detach().clone(memory_format=torch.channels_last))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def has_map(self) -> bool:
        """Whether the bias is a map over pixels."""
        return self.bias is not None and self.bias.ndim > 1

    def forward(self, x: Float[Tensor, "n c h w"], other: Tensor | None = None) -> Float[Tensor, "n o ho wo"]:
        """The convolution; `other`, if given, is added before the activation."""
        conv = self.conv
        bias_map = self.bias if self.has_map else None
        vector = None if self.has_map else self.bias
        y = F.conv2d(x, self.weight, vector, conv.stride, conv.kernel // 2, 1, conv.groups)
        if bias_map is not None:
            y = y + bias_map
        if other is not None:
            y = y + other
        return activate_(y, self.act)


REORDER_WEIGHT, FUSED_CONV = "_reorder_convolution_weight", "_convolution_pointwise"
"""oneDNN's weight packing and fused convolution, operators of `torch.ops.mkldnn`. PyTorch has no public API for them;
TorchInductor's CPU backend calls the same. `kernels_for` does without them in a build of PyTorch that lacks them."""


class PackedConv(nn.Module):
    """A `FoldedConv` as one oneDNN kernel: packed weights; bias, sum and activation fused. CPU and float32 only."""

    def __init__(self, folded: FoldedConv, batch: int) -> None:
        super().__init__()
        conv = folded.conv
        self.folded = folded
        self._geometry = [conv.kernel // 2] * 2, [conv.stride] * 2, [1, 1], conv.groups
        size = [batch, conv.in_channels, folded.height, folded.width]
        self._packed = getattr(torch.ops.mkldnn, REORDER_WEIGHT)(folded.weight, *self._geometry, size)
        act = {None: ("none", []), "relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0])}
        self._act, self._limits = act[folded.act]

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """As `FoldedConv.forward`."""
        folded, conv2d = self.folded, getattr(torch.ops.mkldnn, FUSED_CONV)
        if folded.has_map:
            y = conv2d(x, self._packed, None, *self._geometry, "none", [], "") + folded.bias
            return activate_(y if other is None else y + other, folded.act)
        if other is None:
            result: Tensor = conv2d(x, self._packed, folded.bias, *self._geometry, self._act, self._limits, "")
            return result
        fused = "relu" if folded.act == "relu" else None
        summed: Tensor = conv2d.binary(x, other, self._packed, folded.bias, *self._geometry, "add", 1.0, fused, [], "")
        return summed if fused else activate_(summed, folded.act)


class ProductConv(nn.Module):
    """A dense 1x1 `FoldedConv` as a matrix product, which saves oneDNN's look-up of a descriptor in every call."""

    def __init__(self, folded: FoldedConv) -> None:
        super().__init__()
        self.folded = folded
        self._matrix = folded.weight[:, :, 0, 0].contiguous()

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """As `FoldedConv.forward`."""
        n, channels, height, width = x.shape
        rows = F.linear(x.permute(0, 2, 3, 1).reshape(-1, channels), self._matrix, self.folded.bias)
        y = rows.view(n, height, width, -1).permute(0, 3, 1, 2)
        return activate_(y if other is None else y.add_(other), self.folded.act)


Kernel = Literal["conv", "packed", "matmul"]


def kernels_for(folded: FoldedConv) -> tuple[Kernel, ...]:
    """The kernels that can run a folded convolution on a CPU: PyTorch's, oneDNN's fused one, a matrix product."""
    found: list[Kernel] = ["conv"]
    has_onednn = torch.backends.mkldnn.enabled and all(
        hasattr(torch.ops.mkldnn, name) for name in (REORDER_WEIGHT, FUSED_CONV)
    )
    if has_onednn and folded.weight.dtype == torch.float32:
        found.append("packed")
    conv = folded.conv
    if conv.kernel == conv.stride == conv.groups == 1 and not folded.has_map:
        found.append("matmul")
    return tuple(found)


def with_kernel(folded: FoldedConv, kernel: Kernel, batch: int) -> nn.Module:
    """The module that computes a folded convolution by a kernel; `packed` is for one batch size."""
    match kernel:
        case "packed":
            return PackedConv(folded, batch)
        case "matmul":
            return ProductConv(folded)
        case "conv":
            return folded


def set_kernels_(module: nn.Module, kernel_of: Callable[[FoldedConv], Kernel], batch: int) -> nn.Module:
    """Replace each `FoldedConv` of `module` by the module of the kernel that `kernel_of` names; returns `module`."""
    for name, child in list(module.named_children()):
        if isinstance(child, FoldedConv):
            setattr(module, name, with_kernel(child, kernel_of(child), batch))
        else:
            set_kernels_(child, kernel_of, batch)
    return module


class Interleaved(nn.Module):
    """The permutation of channels after a grouped piece."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Permute the channels."""
        return interleave(x, self.groups)


class FusedSequential(nn.Module):
    """Modules in order, then `+ other` if given, then the activation; the last convolution computes these two, too."""

    def __init__(self, steps: list[nn.Module], act: Activation | None = None) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.act = act
        self._fused = bool(steps) and isinstance(steps[-1], FoldedConv)
        if self._fused:
            steps[-1].act = act  # type: ignore[assignment]

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """act(steps(x) + other)."""
        if not self._fused:
            for step in self.steps:
                x = step(x)
            return activate_(x if other is None else x + other, self.act)
        for step in self.steps[:-1]:
            x = step(x)
        result: Tensor = self.steps[-1](x, other)
        return result


class ResidualSum(nn.Module):
    """act(body(x) + shortcut(x)); the last convolution of the body computes the sum."""

    def __init__(self, body: FusedSequential, shortcut: FusedSequential) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both branches, activated."""
        result: Tensor = self.body(x, self.shortcut(x))
        return result


class Classifier(nn.Module):
    """Global average pooling and the linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().clone())
        self.register_buffer("bias", linear.bias.detach().clone())
        self.weight: Tensor
        self.bias: Tensor

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """A feature map to logits."""
        return F.linear(x.mean((2, 3)), self.weight, self.bias)


class DeployedNetwork(nn.Module):
    """A network of convolutions with bias, activations and sums, for images of its plan's size.

    `forms` gives the form of each chain by the chain's key; a chain without an entry stays factored.
    """

    def __init__(self, network: Network, forms: Mapping[str, Form]) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        with torch.no_grad():
            for name, parts in inference_blocks(network.plan):
                modules += _folded(network.get_submodule(name), parts, forms)
        self.blocks = nn.Sequential(*modules)
        self.eval()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Images to logits."""
        result: Tensor = self.blocks(x)
        return result


def chain_module(network: Network, block: str, chain: Chain, form: Form) -> nn.Module:
    """One chain of a network as a module of its own, to time a form of it."""
    with torch.no_grad():
        return FusedSequential(_chain(network.get_submodule(block), chain, form)).eval()


def _folded(block: nn.Module, parts: tuple[Part, ...], forms: Mapping[str, Form]) -> list[nn.Module]:
    """The parts of a block as modules; an activation becomes part of the module before it."""
    modules: list[nn.Module] = []
    for part in parts:
        match part:
            case Chain():
                modules.append(FusedSequential(_chain(block, part, forms.get(part.key) or factored(part))))
            case Branches(body, shortcut, act):
                modules.append(_branches(block, body, shortcut, act, forms))
            case Act(kind):
                modules[-1] = FusedSequential(list(modules[-1].steps), kind)  # type: ignore[arg-type]
            case Pool():
                pass
            case Linear(name):
                modules.append(Classifier(block.get_submodule(name)))  # type: ignore[arg-type]
    return modules


def _branches(
    block: nn.Module,
    body: tuple[Part, ...],
    shortcut: tuple[Part, ...],
    act: Activation | None,
    forms: Mapping[str, Form],
) -> ResidualSum:
    *before, last = _folded(block, body, forms)
    assert isinstance(last, FusedSequential)
    return ResidualSum(FusedSequential([*before, *last.steps], act), FusedSequential(_folded(block, shortcut, forms)))


def _chain(block: nn.Module, chain: Chain, form: Form) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for segment in layout(chain, form):
        weight, bias = _affine(block, segment)
        modules.append(FoldedConv(segment, weight, bias))
        modules += [Interleaved(step.groups) for step in segment.after]
    return modules


def _affine(block: nn.Module, segment: Segment) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) of a segment, computed in float64 and rounded once; without normalisations the bias is None."""
    weights: list[Tensor] = []
    maps: list[Callable[[Tensor], Tensor]] = []
    for step in segment.steps:
        if isinstance(step, Conv):
            weight = block.get_submodule(step.name).weight
            assert isinstance(weight, Tensor)
            weights.append(weight.double())
            maps.append(_conv2d(step, weights[-1]))
        elif isinstance(step, Interleave):
            maps.append(lambda x, groups=step.groups: interleave(x, groups))  # type: ignore[misc]
        else:
            factor, shift = _scale(block, step)
            weights[-1] = weights[-1] * factor[:, None, None, None]
            maps.append(lambda x, a=factor, b=shift: x * a[:, None, None] + b[:, None, None])  # type: ignore[misc]
    y = weights[0].new_zeros(1, segment.convs[0].in_channels, segment.height, segment.width)
    for apply in maps:
        y = apply(y)
    dtype = next(block.parameters()).dtype
    weight = compose(segment, weights).to(dtype)
    if not any(isinstance(step, Scale) for step in segment.steps):
        return weight, None
    return weight, (y if has_map(segment) else y[0, :, 0, 0]).to(dtype)


def _conv2d(conv: Conv, weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: F.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, conv.groups)


def _scale(block: nn.Module, step: Scale) -> tuple[Tensor, Tensor]:
    """(factor, shift) per channel of a normalisation, in the channel order of the convolution that it follows."""
    norm = block.get_submodule(step.norm.name)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * factor
    for permutation in reversed(step.behind):
        factor, shift = rows_restored(factor, permutation), rows_restored(shift, permutation)
    return factor, shift
