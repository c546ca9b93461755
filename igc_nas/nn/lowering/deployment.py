"""A trained network for deployment: normalisations folded in, chains multiplied out, weights constant.

A chain with its normalisations is an affine map x -> W x + b. W is multiplied out as in training; b is the output of
the chain for an image of zeros. If a shift comes before a padded convolution of the same piece (IGCV3: expand, BN,
depthwise), b differs at the border, where the padding is not shifted: it is then a map over the pixels of one image
size instead of one number per channel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.layers import Act, Activation, Branched, Conv, Interleave, Layer, Named, Residual
from igc_nas.nn.lowering.chain import Chain, Form, Scale, Segment, factored, has_bias, has_map, is_spatial, layout
from igc_nas.nn.lowering.compose import compose, rows_restored
from igc_nas.nn.lowering.parts import Branches, NormAct, Part, Single, inference_blocks
from igc_nas.nn.network import Block, Network, activate_, entries, interleave, join


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
        y = F.conv2d(x, self.weight, vector, conv.stride, conv.pad, 1, conv.groups)
        if bias_map is not None:
            y = y + bias_map
        if other is not None:
            y = y + other
        return activate_(y, self.act)


ONEDNN_ACTS: dict[Activation | None, tuple[str, list[float]]] = {
    None: ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "hswish": ("hardswish", []),
}
REORDER_WEIGHT, FUSED_CONV = "_reorder_convolution_weight", "_convolution_pointwise"
"""oneDNN's weight packing and fused convolution, operators of `torch.ops.mkldnn`. PyTorch has no public API for them;
TorchInductor's CPU backend calls the same. `kernels_for` does without them in a build of PyTorch that lacks them."""


class PackedConv(nn.Module):
    """A `FoldedConv` as one oneDNN kernel: packed weights; bias, sum and activation fused. CPU and float32 only."""

    def __init__(self, folded: FoldedConv, batch: int) -> None:
        super().__init__()
        conv = folded.conv
        self.folded = folded
        self._geometry = [conv.pad] * 2, [conv.stride] * 2, [1, 1], conv.groups
        size = [batch, conv.in_channels, folded.height, folded.width]
        self._packed = getattr(torch.ops.mkldnn, REORDER_WEIGHT)(folded.weight, *self._geometry, size)
        self._act, self._limits = ONEDNN_ACTS[folded.act]

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
        self.register_buffer("matrix", folded.weight[:, :, 0, 0].contiguous(), persistent=False)
        self.matrix: Tensor

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """As `FoldedConv.forward`."""
        n, channels, height, width = x.shape
        rows = F.linear(x.permute(0, 2, 3, 1).reshape(-1, channels), self.matrix, self.folded.bias)
        y = rows.view(n, height, width, -1).permute(0, 3, 1, 2)
        return activate_(y if other is None else y.add_(other), self.folded.act)


Kernel = Literal["conv", "packed", "matmul"]


def kernels_for(folded: FoldedConv) -> tuple[Kernel, ...]:
    """The kernels that can run a folded convolution: PyTorch's, on a CPU oneDNN's fused one, a matrix product.

    Of equally fast ones the first is taken: on a GPU the product, for which cuDNN need not search.
    """
    conv = folded.conv
    is_product = conv.groups == 1 and not is_spatial(conv) and not folded.has_map
    if folded.weight.is_cuda:
        return ("matmul", "conv") if is_product else ("conv",)
    found: list[Kernel] = ["conv"]
    has_onednn = torch.backends.mkldnn.enabled and all(
        hasattr(torch.ops.mkldnn, name) for name in (REORDER_WEIGHT, FUSED_CONV)
    )
    if has_onednn and folded.weight.dtype == torch.float32:
        found.append("packed")
    if is_product:
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
        self._fused = bool(steps) and isinstance(steps[-1], FoldedConv) and steps[-1].act is None
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


class ScaleShift(nn.Module):
    """act(factor * x + shift): a normalisation that follows no convolution, as BN in front of one (pre-activation)."""

    def __init__(self, factor: Tensor, shift: Tensor, act: Activation | None) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)
        self.register_buffer("zero", torch.zeros_like(shift), persistent=False)
        self.register_buffer("one", torch.ones_like(shift), persistent=False)
        self.factor: Tensor
        self.shift: Tensor
        self.zero: Tensor
        self.one: Tensor
        self.act = act

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """By PyTorch's kernel of BN, one pass."""
        return activate_(F.batch_norm(x, self.zero, self.one, self.factor, self.shift, False, 0.0, 0.0), self.act)


class Joined(nn.Module):
    """The branches of a layer and what joins them; the last convolution of a residual body computes the sum."""

    def __init__(self, layer: Branched, branches: list[list[nn.Module]], act: Activation | None) -> None:
        super().__init__()
        self.layer, self.act = layer, act
        self._sums = isinstance(layer, Residual)
        (body, *others), last = branches, act if self._sums else None
        if body and isinstance(end := body[-1], FusedSequential) and end.act is None:
            body = [*body[:-1], *end.steps]
        self.branches = nn.ModuleList([FusedSequential(body, last), *map(FusedSequential, others)])

    def forward(self, x: Tensor) -> Tensor:
        """The branches' outputs, joined and activated."""
        branches = list(self.branches)
        if self._sums:
            result: Tensor = branches[0](x, branches[1](x))
            return result
        outputs = [branch(part) for branch, part in zip(branches, entries(self.layer, x), strict=True)]
        return activate_(join(self.layer, outputs), self.act)


class DeployedNetwork(nn.Module):
    """A network of convolutions with bias, activations and sums, for images of its plan's size.

    `forms` gives the form of each chain by the chain's key; a chain without an entry stays factored.
    """

    def __init__(self, network: Network, forms: Mapping[str, Form]) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        with torch.no_grad():
            *body, (end, parts) = inference_blocks(network.plan)
            for name, found in body:
                modules += _folded(network.get_submodule(name), found, forms)
            modules.append(nn.Sequential(*_folded(network.get_submodule(end), parts, forms)))
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
    """The parts of a block as modules; an activation becomes part of the chain before it."""
    modules: list[nn.Module] = []
    for part in parts:
        match part:
            case Chain():
                modules.append(FusedSequential(_chain(block, part, forms.get(part.key) or factored(part))))
            case NormAct(norm, act):
                dtype = next(block.parameters()).dtype
                factor, shift = (values.to(dtype) for values in _scale(block, Scale(norm)))
                modules.append(ScaleShift(factor, shift, act))
            case Branches(layer, branches, act):
                modules.append(Joined(layer, [_folded(block, branch, forms) for branch in branches], act))
            case Single(Act(kind)) if modules and isinstance(last := modules[-1], FusedSequential) and not last.act:
                modules[-1] = FusedSequential(list(last.steps), kind)
            case Single(layer):
                modules.append(_frozen(block, layer))
    return modules


def _frozen(block: nn.Module, layer: Layer) -> nn.Module:
    """A layer of a block as it is, its parameters as constants."""
    if not isinstance(layer, Named):
        return Block((layer,))
    module = copy.deepcopy(block.get_submodule(layer.name))
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            delattr(owner, name)
            owner.register_buffer(name, parameter.detach())
    return module


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
            own = block.get_submodule(step.name)
            assert isinstance(own, nn.Conv2d)
            weights.append(own.weight.double())
            maps.append(_conv2d(step, weights[-1], None if own.bias is None else own.bias.double()))
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
    if not has_bias(segment):
        return weight, None
    return weight, (y if has_map(segment) else y[0, :, 0, 0]).to(dtype)


def _conv2d(conv: Conv, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda x: F.conv2d(x, weight, bias, conv.stride, conv.pad, 1, conv.groups)


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
