"""A network's training step by the kernels in C: one node of autograd from images to pooled features."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from igc_nas.arch.layers import Linear
from igc_nas.arch.plan import Plan
from igc_nas.nn.lowering.training import NetworkForm
from igc_nas.nn.network import Network
from igc_nas.nn.training_step.library import has_pairs, library
from igc_nas.nn.training_step.program import StepProgram
from igc_nas.nn.training_step.ways import Unsupported


class NativeStep:
    """The forward function of `network` on images of the size of `whole`, with activations stored in `dtype`.

    `lanes` are the floats of a vector, 8 or 16. One thread computes. In training the activations of a batch stay in the
    step's own memory until the next batch: the backward pass of an earlier one raises `RuntimeError`. No gradient of
    the images is computed. Raises `Unsupported` for a plan that the kernels cannot compute, `CompilerError` without a
    C compiler.
    """

    def __init__(self, network: Network, whole: Plan, dtype: torch.dtype, lanes: int = 8) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            raise Unsupported(f"activations in {dtype}")
        self.network, self.whole, self.dtype, self.lanes = network, whole, dtype, lanes
        self._library = library(dtype, lanes)
        self._program = StepProgram(network, whole, 1, dtype, lanes, has_pairs(self._library))
        self._classifier = [
            network.get_submodule(f"{whole.blocks[-1].name}.{layer.name}")
            for layer in whole.blocks[-1].layers
            if isinstance(layer, Linear)
        ]
        self._generation = 0
        self._images: Tensor | None = None

    @property
    def form(self) -> NetworkForm:
        """Its name in forms.json and in records."""
        return "native-step-8" if self.lanes == 8 else "native-step-16"

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Images to logits, in float32."""
        if x.requires_grad:
            raise ValueError("the native step computes no gradient of its images")
        if tuple(x.shape[1:]) != self.whole.input:
            raise ValueError(f"images of {tuple(x.shape[1:])}; this step is for {self.whole.input}")
        if not self.network.training:
            with torch.autograd.set_grad_enabled(False):
                features = self._evaluated(x)
        else:
            features = _Step.apply(x, self, *self._parameters())  # type: ignore[no-untyped-call]
        for module in self._classifier:
            features = module(features)
        return features

    def _parameters(self) -> list[Tensor]:
        convs = [weight.module.weight for weight in self._program.weights]
        norms = [parameter for norm in self._program.norms for parameter in (norm.module.weight, norm.module.bias)]
        return [*convs, *norms]

    def _evaluated(self, x: Tensor) -> Tensor:
        batch = max(self._program.batch, 1)
        return torch.cat([self.run_forward(part, training=False) for part in torch.split(x, batch)])

    def run_forward(self, x: Tensor, training: bool) -> Tensor:
        """Pooled features of a batch; in training with its own statistics, which update the running ones."""
        if len(x) > self._program.batch:
            self._program = StepProgram(
                self.network, self.whole, len(x), self.dtype, self.lanes, has_pairs(self._library)
            )
        program = self._program
        if training:
            self._check_statistics(len(x))
        self._generation += 1
        self._images = x.permute(0, 2, 3, 1).to(self.dtype).contiguous()
        for reader in program.readers:
            reader.source.x = self._images.data_ptr()
        for weight in program.weights:
            self._check(weight.module.weight, weight.strides)
            for pack in weight.packs:
                pack.source = weight.module.weight.data_ptr()
        for norm in program.norms:
            self._set_norm(norm.module, norm.op, training)
        pooled = torch.empty(len(x), program.features, dtype=torch.float32)
        program.pool.pooled = pooled.data_ptr()
        self._run(program.forward, len(x))
        return pooled

    def run_backward(self, grad: Tensor, generation: int) -> list[Tensor]:
        """The gradients of `_parameters`, from that of the pooled features of the batch number `generation`."""
        if generation != self._generation:
            raise RuntimeError("the activations of this batch are gone: another one has run through the network since")
        self._generation += 1  # no second backward pass
        program = self._program
        grad = grad.contiguous().float()
        program.pool_gradient.pooled = grad.data_ptr()
        found = []
        for weight in program.weights:
            gradient = torch.empty_like(weight.module.weight)
            for unpack in weight.unpacks:
                unpack.to = gradient.data_ptr()
            found.append(gradient)
        for norm in program.norms:
            gradients = torch.empty(2, norm.module.num_features, dtype=torch.float32)
            norm.op.grad_weight, norm.op.grad_bias = (row.data_ptr() for row in gradients)
            found += gradients.unbind()
        self._run(program.backward, len(grad))
        return found

    def _run(self, operations: Any, images: int) -> None:
        self._library.igc_nas_step(ctypes.addressof(operations.array), len(operations), images)

    def _set_norm(self, module: nn.BatchNorm2d, op: Any, training: bool) -> None:
        assert module.running_mean is not None
        assert module.running_var is not None
        assert module.num_batches_tracked is not None
        op.training = int(training)
        op.weight, op.bias = module.weight.data_ptr(), module.bias.data_ptr()
        op.running_mean, op.running_var = module.running_mean.data_ptr(), module.running_var.data_ptr()
        if training:
            module.num_batches_tracked.add_(1)
            momentum = module.momentum
            op.momentum = 1.0 / float(module.num_batches_tracked) if momentum is None else momentum

    def _check(self, weight: Tensor, strides: tuple[int, ...]) -> None:
        if weight.stride() != strides or weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise ValueError("the network's weights have moved since its step was planned")

    def _check_statistics(self, images: int) -> None:
        if any(images * norm.op.pixels == 1 for norm in self._program.norms):
            raise ValueError("BN needs more than one value per channel when it trains: a larger batch or image")


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: NativeStep, *parameters: Tensor) -> Tensor:
        pooled = step.run_forward(x.detach(), training=True)
        ctx.step, ctx.generation = step, step._generation
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.step.run_backward(grad, ctx.generation))
