"""Training a network in a faster form, with the same parameters, state_dict, function and gradients.

`LoweredNetwork` runs the modules of a factored `Network` and has no parameters of its own. Each step multiplies out the
weights of each chain in float32, and gradients flow back into the factors: optimizer, weight decay and checkpoints see
the factored network only. Activations are channels-last, in a given dtype; the statistics of normalisations and the
classifier are in float32. The form `nchw` has its activations in NCHW and all convolutions by PyTorch: on a GPU other
kernels of cuDNN than in channels-last, and PyTorch's own for depthwise ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.layers import (
    Act,
    Activation,
    Branched,
    Conv,
    Flatten,
    Interleave,
    Layer,
    Linear,
    Named,
    Pool,
    PRelu,
    Select,
    SqueezeExcite,
)
from igc_nas.arch.plan import Plan
from igc_nas.nn.lowering import native
from igc_nas.nn.lowering.chain import Chain, Piece, Segment, factored, layout
from igc_nas.nn.lowering.compose import compose, rows_interleaved, rows_restored
from igc_nas.nn.lowering.convolution import Algorithms, convolve
from igc_nas.nn.lowering.native import BatchStats
from igc_nas.nn.lowering.parts import Branches, NormAct, Part, Single, training_blocks
from igc_nas.nn.lowering.triton_norm import TritonNorm
from igc_nas.nn.network import WITHOUT_DATA, Network, activate_, entries, interleave, join, plain

Forward = Callable[[Tensor], Tensor]
Step = Forward
NetworkForm = Literal["native-step-8", "native-step-16", "native", "triton", "lowered", "nchw", "factored"]
"""The whole step in C by vectors of 8 or 16 lanes (`igc_nas.nn.training_step`), lowered with BN by the C kernels, by
the Triton kernels, lowered with BN by PyTorch, the same in NCHW, not lowered."""
LoweredForm = Literal["native", "triton", "lowered", "nchw"]


@dataclass(frozen=True, slots=True)
class ChainForm:
    """How a chain runs in training: its pieces, and the algorithms of each piece's convolution."""

    pieces: tuple[Piece, ...]
    algorithms: tuple[Algorithms, ...]


def plain_form(chain: Chain) -> ChainForm:
    """The factored form by PyTorch's own kernels."""
    pieces = factored(chain)
    return ChainForm(pieces, (Algorithms(),) * len(pieces))


def factored_forward(network: nn.Module, device: str, dtype: torch.dtype) -> Forward:
    """The forward function of a factored network on a device type; for bfloat16 and float16 under autocast."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device, dtype=dtype, enabled=dtype in (torch.bfloat16, torch.float16)):
            logits: Tensor = network(x)
        return logits

    return forward


class LoweredNetwork:
    """The forward function of `network` with each chain in its form, on images of the size of `whole`, in `dtype`.

    `forms` gives the form of each chain by the chain's key; a chain without an entry runs factored. As `form` says, BN
    in training runs by PyTorch (`lowered`), or for the images that fit by `igc_nas.nn.lowering.native` or, with the
    interleaves that a chain ends with, by `igc_nas.nn.lowering.triton_norm`. BN follows the mode of the network
    (`train()`, `eval()`).
    """

    def __init__(
        self,
        network: Network,
        whole: Plan,
        forms: Mapping[str, ChainForm],
        dtype: torch.dtype,
        form: LoweredForm = "lowered",
    ) -> None:
        self.network = network
        self.dtype = dtype
        self.form = form
        self.forms = forms
        self.layout = torch.contiguous_format if form == "nchw" else torch.channels_last
        self._steps = [
            step for name, parts in training_blocks(whole) for step in self._parts(network.get_submodule(name), parts)
        ]

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Images to logits, in float32 (in float64 if that is the dtype)."""
        x = x.to(self.dtype).contiguous(memory_format=self.layout)
        with torch.autocast(x.device.type, enabled=False):  # autocast would multiply out the weights in bfloat16
            for step in self._steps:
                x = step(x)
        return x

    def _parts(self, block: nn.Module, parts: tuple[Part, ...]) -> list[Step]:
        steps: list[Step] = []
        behind: tuple[Interleave, ...] = ()
        for part, following in pairwise([*parts, None]):
            if isinstance(part, Chain):
                by_norm = self.form == "triton" and isinstance(following, NormAct)
                chain_form = self.forms.get(part.key) or plain_form(part)
                chain = LoweredChain(block, part, chain_form, self.dtype, self.layout, interleaves_last=not by_norm)
                steps.append(chain)
                behind = chain.left_out
            elif part is not None:
                steps.append(self._step(block, part, behind))
                behind = ()
        return steps

    def _step(self, block: nn.Module, part: Part, behind: tuple[Interleave, ...]) -> Step:
        match part:
            case NormAct(norm, act, order):
                module: Any = block.get_submodule(norm.name)
                if self.form == "triton":
                    fused = TritonNorm(module, act, order, behind)
                    return lambda x: fused(x, _counted(x, module) if module.training else 0.0)
                return _NormStep(module, act, order, self.form == "native")
            case Branches(layer, branches, act):
                return _Joined(layer, [self._parts(block, branch) for branch in branches], act)
            case Single(layer):
                return _single(block, layer)
            case Chain():
                raise AssertionError("a chain has its step already")


class LoweredChain:
    """One chain of a block in one form.

    `left_out` are the interleaves behind its last convolution, where `interleaves_last` leaves them to the caller.
    """

    def __init__(
        self,
        block: nn.Module,
        chain: Chain,
        form: ChainForm,
        dtype: torch.dtype,
        memory_format: torch.memory_format = torch.channels_last,
        interleaves_last: bool = True,
    ) -> None:
        self.dtype, self.memory_format = dtype, memory_format
        segments, algorithms = list(layout(chain, form.pieces)), form.algorithms
        if memory_format == torch.contiguous_format:  # those of the form are for channels-last
            algorithms = (Algorithms(),) * len(segments)
        self.left_out: tuple[Interleave, ...] = ()
        if not interleaves_last:
            self.left_out = segments[-1].after
            segments[-1] = replace(segments[-1], after=())
        self._convs = [
            (segment, [block.get_submodule(conv.name) for conv in segment.convs], segment.as_conv, use)
            for segment, use in zip(segments, algorithms, strict=True)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """The output of the chain, in its memory format."""
        x = x.contiguous(memory_format=self.memory_format)  # a part of the channels (`Split`) is not
        for segment, modules, conv, use in self._convs:
            x = convolve(x, self._weight(segment, modules), conv, use)
            for step in segment.after:
                x = interleave(x, step.groups)
        return x

    def _weight(self, segment: Segment, modules: list[nn.Module]) -> Tensor:
        weight = compose(segment, [module.weight for module in modules]).to(self.dtype)  # type: ignore[misc]
        return weight if self.memory_format == torch.channels_last else weight.contiguous()


def _single(block: nn.Module, layer: Layer) -> Step:
    """A layer that is in no chain, by its module in the block; what follows the pooling is in float32."""
    module: Any = block.get_submodule(layer.name) if isinstance(layer, Named) else None
    match layer:
        case Act(kind):
            return lambda x: activate_(x.clone(), kind)
        case Pool():
            return lambda x: x.mean((2, 3), dtype=_wide(x))
        case Flatten():
            return lambda x: x.flatten(1).to(_wide(x))
        case Conv(stride=stride, groups=groups):
            return lambda x: F.conv2d(
                x, module.weight.to(x.dtype), _cast(module.bias, x.dtype), stride, layer.pad, 1, groups
            )
        case PRelu():
            return lambda x: F.prelu(x, module.weight.to(x.dtype))
        case SqueezeExcite():
            return lambda x: x * module.factors(x.mean((2, 3), dtype=_wide(x))).to(x.dtype)[:, :, None, None]
        case Linear() | Select():
            return module  # type: ignore[no-any-return]
    assert isinstance(layer, WITHOUT_DATA)
    return lambda x: plain(layer, x)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


class _Joined:
    """The branches of a layer and what joins them, then the activation."""

    def __init__(self, layer: Branched, branches: list[list[Step]], act: Activation | None) -> None:
        self._layer, self._branches, self._act = layer, branches, act

    def __call__(self, x: Tensor) -> Tensor:
        outputs = []
        for branch, y in zip(self._branches, entries(self._layer, x), strict=True):
            for step in branch:
                y = step(y)
            outputs.append(y)
        return activate_(join(self._layer, outputs), self._act)


class _NormStep:
    """BN and its activation, by the parameters and running statistics of an `nn.BatchNorm2d`.

    `order` are the interleaves that were moved before it: its parameters and statistics are permuted to match `x`.
    """

    def __init__(
        self, module: nn.BatchNorm2d, act: Activation | None, order: tuple[Interleave, ...], native: bool
    ) -> None:
        self.module = module
        self._native = native
        self._act = act
        self._order = order

    def __call__(self, x: Tensor) -> Tensor:
        module = self.module
        weight, bias = self._permuted(module.weight), self._permuted(module.bias)
        assert module.running_mean is not None
        assert module.running_var is not None
        mean, var = self._permuted(module.running_mean), self._permuted(module.running_var)
        if not module.training:
            return activate_(F.batch_norm(x, mean, var, weight, bias, False, 0.0, module.eps), self._act)
        norm_act = self._kernel(x)
        fused = self._act if self._act in native.ACTS else None
        y = norm_act(x, BatchStats(weight, bias, mean, var, _counted(x, module), module.eps), fused)
        if fused != self._act:
            y = activate_(y.clone(), self._act)
        if self._order:
            module.running_mean.copy_(self._restored(mean))
            module.running_var.copy_(self._restored(var))
        return y

    def _kernel(self, x: Tensor) -> Callable[[Tensor, BatchStats, Activation | None], Tensor]:
        if self._native and native.fits(x):
            return native.norm_act
        return _norm_act_cpu if x.device.type == "cpu" else _norm_act_cuda

    def _permuted(self, rows: Tensor) -> Tensor:
        for step in self._order:
            rows = rows_interleaved(rows, step)
        return rows

    def _restored(self, rows: Tensor) -> Tensor:
        for step in reversed(self._order):
            rows = rows_restored(rows, step)
        return rows


def _counted(x: Tensor, module: nn.BatchNorm2d) -> float:
    """Count a batch as `nn.BatchNorm2d` does; its momentum, where None means the average over all batches."""
    if x.numel() == x.shape[1]:
        raise ValueError("BN needs more than one value per channel when it trains: a larger batch or image")
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    return 1.0 / float(module.num_batches_tracked) if module.momentum is None else module.momentum


def _norm_act_cuda(x: Tensor, stats: BatchStats, act: Activation | None) -> Tensor:
    """By cuDNN."""
    weight, bias, mean, var, momentum, eps = stats
    return activate_(F.batch_norm(x, mean, var, weight, bias, True, momentum, eps), act)


def _norm_act_cpu(x: Tensor, stats: BatchStats, act: Activation | None) -> Tensor:
    y: Tensor = _NormAct.apply(x, act, *stats)  # type: ignore[no-untyped-call]
    return y


class _NormAct(torch.autograd.Function):
    """BN by the batch's statistics and the activation in place, as one node: the normalised tensor is not kept.

    `stats` comes as separate arguments: autograd sees no tensor inside a tuple.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: Activation | None, *stats: Any) -> Tensor:
        weight, bias, mean, var, momentum, eps = BatchStats(*stats)
        y, batch_mean, scale = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        activate_(y, act)
        ctx.save_for_backward(x, weight, batch_mean, scale, *([y] if act else []))
        ctx.eps, ctx.act = eps, act
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, batch_mean, scale, *y = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        if ctx.act == "relu":
            grad = torch.ops.aten.threshold_backward(grad, y[0], 0)
        elif ctx.act == "relu6":
            grad = torch.ops.aten.hardtanh_backward(grad, y[0], 0.0, 6.0)
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, batch_mean, scale, True, ctx.eps, [True, True, True]
        )
        return dx, None, dweight, dbias, None, None, None, None
