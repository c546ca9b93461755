"""The plan as a `torch.nn.Module`: a map over its layers, factored as the papers write them.

The names of a state_dict are the plan's: `stem.conv.weight`, `stage1.block1.primary.weight`, ...,
`classifier.linear.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.architecture import load_architecture
from igc_nas.config import Activation, ArchConfig
from igc_nas.errors import ConfigError
from igc_nas.plan import Act, Conv, Interleave, Layer, Linear, Norm, Plan, Pool, Residual, plan


class Block(nn.Module):
    """One block of the plan. Its layers with parameters are submodules under their names in the plan."""

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
                x = activated(x, layer.kind)
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
        for module in self.children():
            x = module(x)
        return x


def interleave(x: Float[Tensor, "n c h w"], groups: int) -> Float[Tensor, "n c h w"]:
    """The papers' permutation of channels: `out[j*g + i] = in[i*(C/g) + j]`; keeps the memory format."""
    n, c, h, w = x.shape
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        last = x.permute(0, 2, 3, 1).reshape(n, h, w, groups, c // groups)
        return last.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)
    return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def activated(x: Tensor, act: Activation | None) -> Tensor:
    """Activate, in place."""
    if act is None:
        return x
    return F.relu(x, inplace=True) if act == "relu" else F.relu6(x, inplace=True)


def build(arch: ArchConfig, seed: int | None = None, device: str | torch.device = "cpu") -> Network:
    """The network of an architecture, initialised from `seed` (None: from torch's global generator).

    On the `meta` device nothing is initialised and no memory is taken.
    """
    with torch.device("meta"):
        network = Network(plan(arch))
    if torch.device(device).type == "meta":
        return network
    network = network.to_empty(device="cpu")
    initialise(network, None if seed is None else torch.Generator().manual_seed(seed))
    return network.to(device)


def initialise(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """He (2015) normal, fan in, for convolutions; BN as the identity; the classifier as torch's `Linear` starts."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def create_model(
    arch: ArchConfig | str | Path,
    *,
    classes: int | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
    device: str | torch.device = "cpu",
) -> Network:
    """A network ready to train or, with `weights`, to use.

    `arch` is an architecture, its TOML file, a paper's network by name (`igcv3-d-cifar`) or `STUDY:N`. It reads
    (batch, channels, height, width) float images, normalised per channel, of any size that the strides leave a pixel
    of, and writes (batch, classes) logits. `weights` is a safetensors file as `igc-nas train` writes it.

    Raises `ConfigError` where the architecture or the weights do not fit, `StudyError` for an unknown trial.
    """
    config = arch if isinstance(arch, ArchConfig) else load_architecture(arch)
    network = build(config if classes is None else config.with_classes(classes), seed, device)
    if weights is not None:
        load_weights(network, Path(weights))
    return network


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file. Raises `ConfigError` naming the first tensor that does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{path.name} is no readable safetensors file: {error!s:.120}") from None
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        has, wants = tensors.get(name), wanted.get(name)
        if has is None or wants is None or has.shape != wants.shape:
            have = "nothing" if has is None else tuple(has.shape)
            want = "nothing" if wants is None else tuple(wants.shape)
            raise ConfigError(
                f"{path.name} holds weights of another architecture: {name} is {have}, the network has {want}"
            )
    network.load_state_dict(tensors)


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
