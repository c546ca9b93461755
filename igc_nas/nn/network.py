"""A plan as a `torch.nn.Module`, factored as in the papers: each layer of the plan is one module.

The names in a state_dict are those of the plan: `stem.conv.weight`, `stage1.block1.primary.weight`, ...,
`classifier.linear.weight`. Methods are those of timm's models, so that a network fits into common training code:
`forward_features`, `forward_head`, `num_features`, `num_classes`, `get_classifier`, `reset_classifier`, `feature_info`.
`factory` makes a network from a name or a file, with weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.config import Activation, ArchConfig
from igc_nas.arch.plan import Act, BlockPlan, Conv, Interleave, Layer, Linear, Norm, Plan, Pool, Residual, plan
from igc_nas.errors import ConfigError


class Block(nn.Module):
    """One block of a plan. Its layers with parameters are submodules, named as in the plan."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        self.layers = layers
        for layer in _with_parameters(layers):
            self.add_module(layer.name, _module(layer))

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers in order."""
        return self._run(self.layers, x)

    def _run(self, layers: tuple[Layer, ...], x: Tensor) -> Tensor:
        for layer in layers:
            if isinstance(layer, Residual):
                x = self._run(layer.body, x) + self._run(layer.shortcut, x)
            elif isinstance(layer, Interleave):
                x = x if layer.is_identity else interleave(x, layer.groups)
            elif isinstance(layer, Act):
                x = activate_(x, layer.kind)
            elif isinstance(layer, Pool):
                x = x.mean((2, 3))
            else:
                x = self.get_submodule(layer.name)(x)
        return x


class Network(nn.Module):
    """The network of a plan: `stem`, `stage1` (`block1`, `block2`, ...), ..., `classifier`."""

    def __init__(self, whole: Plan) -> None:
        super().__init__()
        self.plan = whole
        for block in whole.blocks:
            parent: nn.Module = self
            *folders, name = block.name.split(".")
            for folder in folders:
                if folder not in parent._modules:
                    parent.add_module(folder, nn.Sequential())
                parent = parent.get_submodule(folder)
            parent.add_module(name, Block(block.layers))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Images, normalised per channel, to logits."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch f h w"]:
        """Images to the feature map before the pooling: `num_features` channels."""
        *body, _ = self.children()
        for module in body:
            x = module(x)
        return x

    def forward_head(self, x: Float[Tensor, "batch f h w"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """A feature map to logits; with `pre_logits` to its mean per channel, the input of the classifier."""
        if pre_logits:
            return x.mean((2, 3))
        logits: Tensor = self.get_submodule("classifier")(x)
        return logits

    @property
    def num_features(self) -> int:
        """Channels of the feature map before the pooling."""
        return _width(self.plan.blocks[:-1])

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a classifier."""
        last = self.plan.blocks[-1].layers[-1]
        return last.out_features if isinstance(last, Linear) else 0

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """For each stage its `module`, its output channels (`num_chs`) and its output stride (`reduction`)."""
        before: list[BlockPlan] = []
        found: dict[str, dict[str, Any]] = {}
        for block in self.plan.blocks:
            before.append(block)
            stage, dot, _ = block.name.partition(".")
            if dot:
                found[stage] = {"num_chs": _width(before), "reduction": _stride(before), "module": stage}
        return list(found.values())

    def get_classifier(self) -> nn.Module:
        """The classifier, an `nn.Linear`; `nn.Identity` if there is none."""
        return self.get_submodule("classifier.linear") if self.num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one of `num_classes`; with 0, outputs are the pooled features.

        A lowered form or an optimizer made before keeps the old classifier. Raises `ConfigError` for another number
        than 0 to 1,000,000.
        """
        if type(num_classes) is not int or not 0 <= num_classes <= 1_000_000:
            raise ConfigError(f"num_classes is a number from 0 to 1000000 (got {num_classes!r:.40})")
        features, like = self.num_features, next(self.parameters())
        layers: tuple[Layer, ...] = (Pool(), Linear("linear", features, num_classes)) if num_classes else (Pool(),)
        block = BlockPlan("classifier", layers)
        self.plan = replace(self.plan, classes=num_classes, blocks=(*self.plan.blocks[:-1], block))
        classifier = Block(layers)
        if like.device.type != "meta":
            initialise(classifier)
        self.classifier = classifier.to(like.device, like.dtype).train(self.training)


def _width(blocks: Sequence[BlockPlan]) -> int:
    """Output channels of the last of `blocks`."""
    return [conv.out_channels for conv in _main_path_convs(blocks)][-1]


def _stride(blocks: Sequence[BlockPlan]) -> int:
    """Output stride of the last of `blocks`: input pixels per output pixel, in each direction."""
    return prod(conv.stride for conv in _main_path_convs(blocks))


def _main_path_convs(blocks: Sequence[BlockPlan]) -> Iterator[Conv]:
    """The convolutions of the blocks, without those of shortcuts."""
    for block in blocks:
        for layer in block.layers:
            yield from (
                part for part in (layer.body if isinstance(layer, Residual) else (layer,)) if isinstance(part, Conv)
            )


def interleave(x: Float[Tensor, "n c h w"], groups: int) -> Float[Tensor, "n c h w"]:
    """The papers' permutation of channels, `out[j*g + i] = in[i*(C/g) + j]`; keeps the memory format."""
    return F.channel_shuffle(x, groups)


def activate_(x: Tensor, act: Activation | None) -> Tensor:
    """Activate `x` in place; None leaves it as it is."""
    if act is None:
        return x
    return F.relu(x, inplace=True) if act == "relu" else F.relu6(x, inplace=True)


def build(arch: ArchConfig, seed: int | None = None, device: str | torch.device = "cpu") -> Network:
    """The network of an architecture, initialised from `seed`, or from torch's global generator if that is None.

    Weights do not depend on `device`. On `meta` nothing is allocated or initialised.
    """
    with torch.device("meta"):
        network = Network(plan(arch))
    if torch.device(device).type == "meta":
        return network
    network = network.to_empty(device="cpu")
    initialise(network, None if seed is None else torch.Generator().manual_seed(seed))
    return network.to(device)


def initialise(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Convolutions: He et al. (2015), normal, fan in; BN: weight 1, bias 0; `Linear`: PyTorch's default."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def _with_parameters(layers: tuple[Layer, ...]) -> Iterator[Conv | Norm | Linear]:
    for layer in layers:
        if isinstance(layer, Residual):
            yield from _with_parameters((*layer.body, *layer.shortcut))
        elif isinstance(layer, Conv | Norm | Linear):
            yield layer


def _module(layer: Conv | Norm | Linear) -> nn.Module:
    match layer:
        case Conv(_, c_in, c_out, kernel, stride, groups):
            return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        case Norm(_, channels):
            return nn.BatchNorm2d(channels)
        case Linear(_, features, classes):
            return nn.Linear(features, classes)
