"""A plan as a `torch.nn.Module`, factored as in the papers: each layer of the plan is one module.

The names in a state_dict are those of the plan: `stem.conv.weight`, `stage1.block1.primary.weight`, ...,
`classifier.linear.weight`. Methods are those of timm's models, so that a network fits into common training code:
`forward_features`, `forward_head`, `forward_intermediates`, `num_features`, `num_classes`, `get_classifier`,
`reset_classifier`, `feature_info`, `pretrained_cfg`; `FeatureMaps` is timm's `features_only`.
`factory` makes a network from a name or a file, with weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import layers_cost
from igc_nas.arch.layers import (
    Act,
    Activation,
    AvgPool,
    Branched,
    Concat,
    Conv,
    DualPath,
    Flatten,
    Interleave,
    Layer,
    Linear,
    MaxPool,
    Named,
    Norm,
    Pool,
    PRelu,
    Residual,
    Select,
    Split,
    SqueezeExcite,
    Subsample,
)
from igc_nas.arch.plan import BlockPlan, Plan, plan
from igc_nas.arch.shapes import Shape
from igc_nas.errors import ConfigError


class Block(nn.Module):
    """One block of a plan. Its layers with parameters are submodules, named as in the plan."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        self.layers = layers
        for layer in _named(layers):
            self.add_module(layer.name, _module(layer))

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers in order."""
        return self.run(self.layers, x)

    def run(self, layers: tuple[Layer, ...], x: Tensor) -> Tensor:
        """Run some of the block's layers in order."""
        kept = x  # others may read what enters these layers, the gradient of an activation its output, hooks any map
        hooked = _has_any_global_hook() or any(map(_is_hooked, self.children()))  # type: ignore[no-untyped-call]
        for layer in layers:
            if isinstance(layer, Act):
                x = kept = activate(x, layer.kind, inplace=x is not kept and not hooked)
            elif isinstance(layer, Branched):
                x = join(layer, [self.run(*branch) for branch in zip(layer.branches, entries(layer, x), strict=True)])
            else:
                x = plain(layer, x) if isinstance(layer, WITHOUT_DATA) else self.get_submodule(layer.name)(x)
        return x


def _is_hooked(module: nn.Module) -> bool:
    """Whether others see what a module puts out: a later layer must not write to it."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


class Classifier(Block):
    """The last block of a network. In training it drops a share of what its last linear layer reads: `drop_rate`."""

    def __init__(self, layers: tuple[Layer, ...], drop_rate: float = 0.0) -> None:
        super().__init__(layers)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers in order."""
        return self.run(self.layers[len(_before_logits(self.layers)) :], self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What the last linear layer reads; the output, if there is no such layer."""
        x = self.run(_before_logits(self.layers), x)
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x


WITHOUT_DATA = Interleave | MaxPool | AvgPool | Subsample | Pool | Flatten


def plain(layer: Interleave | MaxPool | AvgPool | Subsample | Pool | Flatten, x: Tensor) -> Tensor:
    """A layer without parameters, activations excepted."""
    match layer:
        case Interleave():
            return x if layer.is_identity else interleave(x, layer.groups)
        case MaxPool(kernel, stride, padding):
            return F.max_pool2d(x, kernel, stride, padding)
        case AvgPool(kernel, stride, padding):
            return F.avg_pool2d(x, kernel, stride, padding)
        case Subsample(stride, before, after):
            return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after))
        case Pool():
            return x.mean((2, 3))
        case Flatten():
            return x.flatten(1)


def entries(layer: Branched, x: Tensor) -> tuple[Tensor, ...]:
    """What each branch of a layer reads."""
    if isinstance(layer, Split):
        return x[:, : layer.channels], x[:, layer.channels :]
    return (x,) * len(layer.branches)


def join(layer: Branched, outputs: Sequence[Tensor]) -> Tensor:
    """The output of a layer from those of its branches."""
    match layer:
        case Residual():
            body, shortcut = outputs
            return body + shortcut
        case Concat() | Split():
            return torch.cat(list(outputs), 1)
        case DualPath(channels):
            body, shortcut = outputs
            summed = shortcut[:, :channels] + body[:, :channels]
            return torch.cat([summed, shortcut[:, channels:], body[:, channels:]], 1)


class SqueezeExciteScale(nn.Module):
    """x times a factor per channel, computed from the means of the channels; `reduce` and `expand` are linear."""

    def __init__(self, layer: SqueezeExcite) -> None:
        super().__init__()
        self.reduce = nn.Linear(layer.channels, layer.squeeze, bias=layer.bias)
        self.expand = nn.Linear(layer.squeeze, layer.channels, bias=layer.bias)
        self.gate = layer.gate

    def forward(self, x: Tensor) -> Tensor:
        """The scaled feature map."""
        return x * self.factors(x.mean((2, 3)))[:, :, None, None]

    def factors(self, means: Tensor) -> Tensor:
        """The factor of each channel from the channels' means."""
        factors = self.expand(F.relu(self.reduce(means)))
        return torch.sigmoid(factors) if self.gate == "sigmoid" else F.hardsigmoid(factors)


class ChannelSelect(nn.Module):
    """Channels by the stored `index`, at first index[i] = i * in_channels // out_channels."""

    index: Tensor

    def __init__(self, layer: Select) -> None:
        super().__init__()
        self.in_channels = layer.in_channels
        self.register_buffer("index", torch.empty(layer.out_channels, dtype=torch.int64))
        self.reset_index()

    def reset_index(self) -> None:
        """Fill the index of a new network."""
        count = len(self.index)
        self.index.copy_(torch.arange(count, device=self.index.device) * self.in_channels // count)

    def forward(self, x: Tensor) -> Tensor:
        """The selected channels (or features)."""
        return x.index_select(1, self.index)


class FeatureInfo(list[dict[str, Any]]):
    """A dictionary for each stage, with the methods of timm's `FeatureInfo`."""

    def channels(self) -> list[int]:
        """Output channels of each stage."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """Output stride of each stage."""
        return [info["reduction"] for info in self]

    def module_name(self) -> list[str]:
        """Name of each stage's module."""
        return [info["module"] for info in self]


class FeatureMaps(nn.Module):
    """A network whose outputs are the feature maps behind its stages: a backbone. `feature_info` describes them."""

    def __init__(self, network: Network, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.out_indices = network.stage_places(out_indices)
        self.feature_info = FeatureInfo(network.feature_info[place] for place in self.out_indices)
        self.network = network

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """Images, normalised per channel, to a list of feature maps."""
        maps = self.network.forward_intermediates(x, self.out_indices, stop_early=True, intermediates_only=True)
        assert isinstance(maps, list)
        return maps


class Network(nn.Module):
    """The network of a plan: `stem`, `stage1` (`block1`, `block2`, ...), ..., `classifier`."""

    classifier: Classifier

    def __init__(self, whole: Plan) -> None:
        super().__init__()
        self.plan = whole
        self.prepared: dict[str, Any] = {}
        """How the images of its weights are prepared, as far as it is known: see `pretrained_cfg`."""
        for block in whole.blocks:
            parent: nn.Module = self
            *folders, name = block.name.split(".")
            for folder in folders:
                if folder not in parent._modules:
                    parent.add_module(folder, nn.Sequential())
                parent = parent.get_submodule(folder)
            parent.add_module(name, (Classifier if name == "classifier" else Block)(block.layers))

    def __prepare_scriptable__(self) -> nn.Module:
        raise ConfigError("torch.jit.script cannot read this network", "use torch.jit.trace, torch.export or torch.fx")

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Images, normalised per channel, to logits."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch f h w"]:
        """Images to the feature map before the pooling: `num_features` channels."""
        *body, _ = self.children()
        for module in body:
            x = module(x)
        return x

    def forward_intermediates(
        self,
        x: Float[Tensor, "batch channels height width"],
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """(the feature map before the pooling, those behind the stages), or with `intermediates_only` the latter alone.

        `indices` are places in `feature_info`, negative ones from the end; a number n: the last n; None: all. With
        `stop_early` nothing is computed beyond the last one (the first result is then that one). As timm has it; `norm`
        changes nothing, as in its convolutional networks. Raises `ConfigError`.
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt (={output_fmt!r:.40}) is 'NCHW'")
        places = self.stage_places(indices)
        found: dict[int, Tensor] = {}
        *body, _ = self.named_children()
        stages = [info["module"] for info in self.feature_info]
        for name, module in body:
            x = module(x)
            if name in stages and stages.index(name) in places:
                found[stages.index(name)] = x
            if stop_early and name in stages and stages.index(name) == max(places):
                break
        maps = [found[place] for place in places]
        return maps if intermediates_only else (x, maps)

    def stage_places(self, indices: int | Sequence[int] | None = None) -> list[int]:
        """Places in `feature_info` from 0 on, as `forward_intermediates` takes them. Raises `ConfigError`."""
        count = len(self.feature_info)
        asked = range(count) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
        if not asked or any(not -count <= place < count for place in asked):
            raise ConfigError(f"indices {indices!r:.60}: the network has {count} stages, 0 to {count - 1}")
        return [place % count for place in asked]

    def forward_head(self, x: Float[Tensor, "batch f h w"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """A feature map to logits; with `pre_logits` to the input of the last linear layer."""
        return self.classifier.features(x) if pre_logits else self.classifier(x)

    @property
    def drop_rate(self) -> float:
        """The share of the classifier's features that is dropped in training, before its last linear layer."""
        return self.classifier.drop_rate

    @drop_rate.setter
    def drop_rate(self, rate: float) -> None:
        self.classifier.drop_rate = rate

    @property
    def num_features(self) -> int:
        """Channels of the feature map before the pooling."""
        return _shape(self.plan.input, self.plan.blocks[:-1])[0]

    @property
    def head_hidden_size(self) -> int:
        """Features that the last linear layer reads: `num_features`, unless the head has layers of its own."""
        return int(
            layers_cost(_before_logits(self.plan.blocks[-1].layers), _shape(self.plan.input, self.plan.blocks[:-1]))[1][
                0
            ]
        )

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a classifier."""
        *_, last = (None, *self.plan.blocks[-1].layers)
        return last.out_features if isinstance(last, Linear) else 0

    @property
    def feature_info(self) -> FeatureInfo:
        """For each stage its `module`, its output channels (`num_chs`) and its output stride (`reduction`)."""
        shape: Shape = self.plan.input
        stride = 1
        found: dict[str, dict[str, Any]] = {}
        for block in self.plan.blocks:
            shape, stride = _shape(shape, [block]), stride * _stride(block.layers)
            stage, dot, _ = block.name.partition(".")
            if dot:
                found[stage] = {"num_chs": shape[0], "reduction": stride, "module": stage}
        return FeatureInfo(found.values())

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm's `resolve_data_config` and training code read: input size, mean, std, names of the ends.

        `mean` and `std` are None unless the network was made from a folder of `igc-nas export --format dir`.
        """
        first = next(name for name, module in self.named_modules() if isinstance(module, nn.Conv2d))
        ends = {"first_conv": first, "classifier": "classifier.linear" if self.num_classes else None}
        images = {"mean": None, "std": None, "crop_pct": 1.0, "interpolation": "bicubic"} | self.prepared
        return {"input_size": self.plan.input, "num_classes": self.num_classes} | images | ends

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The same as `pretrained_cfg`, by timm's older name."""
        return self.pretrained_cfg

    def get_classifier(self) -> nn.Module:
        """The classifier, an `nn.Linear`; `nn.Identity` if there is none."""
        return self.get_submodule("classifier.linear") if self.num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer by a new one of `num_classes`; with 0, outputs are what it would read.

        `global_pool` is `"avg"`, or `""` for no pooling: with `num_classes=0` outputs are then feature maps. A lowered
        form or an optimizer made before keeps the old classifier. Raises `ConfigError` for another number than 0 to
        1,000,000, or another pooling.
        """
        if type(num_classes) is not int or not 0 <= num_classes <= 1_000_000:
            raise ConfigError(f"num_classes is a number from 0 to 1000000 (got {num_classes!r:.40})")
        if global_pool not in (None, "avg", "") or (global_pool == "" and num_classes):
            raise ConfigError(f"global_pool (={global_pool!r:.40}) is 'avg', or '' together with num_classes=0")
        like, layers = next(self.parameters()), _before_logits(self.plan.blocks[-1].layers) or (Pool(),)
        if global_pool == "":
            if layers != (Pool(),):
                raise ConfigError("global_pool='': this network's head is more than a pooling")
            layers = ()
            self.plan = replace(self.plan, classes=0, blocks=(*self.plan.blocks[:-1], BlockPlan("classifier", layers)))
            self.classifier = Classifier(layers, self.drop_rate).train(self.training)
            return
        (features,) = layers_cost(layers, _shape(self.plan.input, self.plan.blocks[:-1]))[1]
        if num_classes:
            layers = (*layers, Linear("linear", features, num_classes))
        block = BlockPlan("classifier", layers)
        self.plan = replace(self.plan, classes=num_classes, blocks=(*self.plan.blocks[:-1], block))
        classifier = Classifier(layers, self.drop_rate)
        if like.device.type != "meta":
            initialise(classifier)
        for name, module in self.get_submodule("classifier").named_children():
            if name != "linear":  # a head's hidden layers stay
                classifier.add_module(name, module)
        self.classifier = classifier.to(like.device, like.dtype).train(self.training)


def _before_logits(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers of a plan's last block, without the linear layer that computes the logits."""
    return layers[:-1] if layers and isinstance(layers[-1], Linear) else layers


def _shape(shape: Shape, blocks: Sequence[BlockPlan]) -> Shape:
    """The output shape of blocks behind an input of `shape`."""
    for block in blocks:
        shape = layers_cost(block.layers, shape)[1]
    return shape


def _stride(layers: tuple[Layer, ...]) -> int:
    """Input pixels per output pixel, in each direction, along the last branch of layers that have several."""
    stride = 1
    for layer in layers:
        if isinstance(layer, Residual | DualPath):
            stride *= _stride(layer.body)
        elif isinstance(layer, Branched):
            stride *= _stride(layer.branches[-1])
        else:
            stride *= getattr(layer, "stride", 1)
    return stride


@torch.fx.wrap
def interleave(x: Float[Tensor, "n c h w"], groups: int) -> Float[Tensor, "n c h w"]:
    """The papers' permutation of channels, `out[j*g + i] = in[i*(C/g) + j]`; keeps the memory format."""
    if x.is_cuda and x.stride(1) == 1:  # torch's own shuffle keeps channels-last on a CPU only
        n, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(n, h, w, groups, c // groups)
        return rows.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)
    return F.channel_shuffle(x, groups)


def activate(x: Tensor, act: Activation | None, *, inplace: bool = False) -> Tensor:
    """The activation of `x`; None leaves it as it is."""
    match act:
        case None:
            return x
        case "relu":
            return F.relu(x, inplace=inplace)
        case "relu6":
            return F.relu6(x, inplace=inplace)
        case "hswish":
            return F.hardswish(x, inplace=inplace)


def activate_(x: Tensor, act: Activation | None) -> Tensor:
    """Activate `x` in place."""
    return activate(x, act, inplace=True)


def build(arch: ArchConfig, seed: int | None = None, device: str | torch.device = "cpu") -> Network:
    """The network of an architecture, initialised from `seed`, or from torch's global generator if that is None.

    Weights do not depend on `device`. On `meta` nothing is allocated or initialised.
    """
    with torch.device("meta"):
        network = Network(plan(arch))
    if torch.device(device).type == "meta":
        return network
    # What `to_empty` does; its `empty_like` of a tensor on `meta` loads SymPy, which takes half a second.
    network._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))  # type: ignore[no-untyped-call]
    initialise(network, None if seed is None else torch.Generator().manual_seed(seed))
    return network.to(device)


def initialise(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Convolutions: He et al. (2015), normal, fan in; BN: weight 1, bias 0; linear layers: PyTorch's default.

    Biases of convolutions are 0, slopes of PReLU 0.25.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.PReLU):
            nn.init.constant_(module.weight, 0.25)
        elif isinstance(module, ChannelSelect):
            module.reset_index()


def _named(layers: tuple[Layer, ...]) -> Iterator[Named]:
    """The layers with parameters or stored data."""
    for layer in layers:
        if isinstance(layer, Branched):
            for branch in layer.branches:
                yield from _named(branch)
        elif isinstance(layer, Named):
            yield layer


def _module(layer: Named) -> nn.Module:
    match layer:
        case Conv(_, c_in, c_out, kernel, stride, groups):
            return nn.Conv2d(c_in, c_out, kernel, stride, layer.pad, groups=groups, bias=layer.bias)
        case Norm(_, channels):
            return nn.BatchNorm2d(channels)
        case Linear(_, features, out, bias):
            return nn.Linear(features, out, bias)
        case SqueezeExcite():
            return SqueezeExciteScale(layer)
        case PRelu(_, channels):
            return nn.PReLU(channels)
        case Select():
            return ChannelSelect(layer)
