"""Networks made from a name, a file or a study's trial, with weights from a safetensors file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor, nn

from igc_nas.arch.config import ArchConfig
from igc_nas.errors import ConfigError
from igc_nas.io.files import user_path
from igc_nas.io.text import printable
from igc_nas.nn.network import ChannelSelect, FeatureMaps, Network, build
from igc_nas.nn.pretrained import TrainedFolder, final_of
from igc_nas.study.lookup import load_architecture

MOST_CHANNELS = 1024
CLASSIFIER = ("classifier.linear.weight", "classifier.linear.bias")
PREFIXES = ("module.", "_orig_mod.", "network.")
"""What `DataParallel`, `torch.compile` and `FeatureMaps` put before the names of a network's tensors."""


@overload
def create_model(
    arch: ArchConfig | str | Path,
    *,
    pretrained: bool | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_rate: float = 0.0,
    weights: str | Path | None = None,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    classes: int | None = None,
    features_only: Literal[False] = False,
    out_indices: int | Sequence[int] | None = None,
    global_pool: str | None = None,
) -> Network: ...


@overload
def create_model(
    arch: ArchConfig | str | Path,
    *,
    pretrained: bool | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_rate: float = 0.0,
    weights: str | Path | None = None,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    classes: int | None = None,
    features_only: Literal[True],
    out_indices: int | Sequence[int] | None = None,
    global_pool: str | None = None,
) -> FeatureMaps: ...


def create_model(
    arch: ArchConfig | str | Path,
    *,
    pretrained: bool | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_rate: float = 0.0,
    weights: str | Path | None = None,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    classes: int | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    global_pool: str | None = None,
) -> Network | FeatureMaps:
    """A network to train or, with `weights`, to use.

    Args:
        arch: an architecture, its TOML file, the name of a paper's network (`igcv3-d-cifar`), `STUDY:N` for trial N, or
            a folder of `igc-nas export --format dir` or of `igc-nas train`, whose weights are loaded.
        pretrained: True: there must be weights: the folder's, or for `STUDY:N` those of the trial's final. False: the
            folder's are left out. No weights are hosted.
        num_classes: number of classes; the default is the architecture's. With 0, outputs are the pooled features.
        in_chans: channels of an image; the default is the architecture's. Where it is given and the weights are for
            another number, those of the first convolution are fitted to it as timm does: summed over the channels for
            one, else repeated in turn and scaled by the ratio of the numbers.
        drop_rate: the share of the classifier's features that is dropped in training (dropout), from 0 to less than 1.
        weights: a safetensors file as `igc-nas train` writes it, of this architecture. Where `num_classes` is given
            and the file is of another number of classes, its classifier is left out and a new one takes its place.
            Prefixes that `torch.compile` and `DataParallel` put before names are dropped.
        seed: seed of the initial weights; None takes torch's global generator.
        device: where the network is put.
        classes: the same as `num_classes`.
        features_only: return a `FeatureMaps`, whose outputs are the feature maps behind the stages.
        out_indices: with `features_only`, the stages, as places in `feature_info`; a number n: the last n; None: all.
        global_pool: with `num_classes=0`, `""` for outputs that are feature maps, not pooled.

    Inputs are float images (batch, channels, height, width), normalised per channel, of any size that leaves at least
    one pixel after the strides; outputs are logits (batch, num_classes).

    Raises `ConfigError` if the architecture or the weights do not fit or there are none, `StudyError` for an unknown
    trial.
    """
    if not isinstance(drop_rate, float | int) or not 0 <= drop_rate < 1:
        raise ConfigError(f"drop_rate is a share from 0 to less than 1 (got {drop_rate!r:.40})")
    if in_chans is not None and (type(in_chans) is not int or not 1 <= in_chans <= MOST_CHANNELS):
        raise ConfigError(f"in_chans is a number from 1 to {MOST_CHANNELS} (got {in_chans!r:.40})")
    if classes is not None and num_classes not in (None, classes):
        raise ConfigError(f"num_classes (={num_classes}) and classes (={classes}) mean the same; give one of them")
    wanted = num_classes if classes is None else classes
    trained = None if isinstance(arch, ArchConfig) else TrainedFolder.named(arch)
    if pretrained and weights is None and (trained is None or trained.weights is None):
        trained = final_of(arch)
    config = arch if isinstance(arch, ArchConfig) else load_architecture(trained.arch if trained else arch)
    own_channels = config.input[0]
    config = config if in_chans is None else config.with_channels(in_chans)
    network = build(config if not wanted else config.with_classes(wanted), seed, device)
    network.drop_rate = drop_rate
    if trained:
        network.prepared = trained.prepared
        weights = weights or (None if pretrained is False else trained.weights)
    if config.input[0] != own_channels:
        network.prepared |= {"mean": None, "std": None}
    if weights is not None:
        path = user_path(weights)
        load_weights(network, path, new_classifier=wanted is not None, new_channels=in_chans is not None)
    if wanted == 0 or global_pool not in (None, "avg"):
        network.reset_classifier(network.num_classes if wanted is None else wanted, global_pool)
    return FeatureMaps(network, out_indices) if features_only else network


def load_weights(network: nn.Module, path: Path, *, new_classifier: bool = False, new_channels: bool = False) -> None:
    """Load a safetensors file into a network. Raises `ConfigError`, which names the first tensor that does not fit.

    With `new_classifier`, a classifier of another number of classes is left out, and the network keeps its own; with
    `new_channels` the weights of its first convolution are fitted to the channels of its images.
    """
    wanted = network.state_dict()
    tensors = _without_prefixes(read_tensors(path), wanted)
    first = next((f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Conv2d)), "")
    if new_channels and first in tensors and tensors[first].ndim == 4:
        tensors[first] = _of_channels(tensors[first], wanted[first].shape[1])
    if new_classifier and _differs_in_classes(tensors, wanted):
        tensors |= {name: wanted[name] for name in CLASSIFIER}
    different = [name for name in (*wanted, *tensors) if not _fits(tensors.get(name), wanted.get(name))]
    if different:
        name = different[0]
        raise ConfigError(
            f"{path.name} holds weights of another architecture: {name} is {_described(tensors.get(name))}, "
            f"the network has {_described(wanted.get(name))}",
            _how_to_fit(different, tensors),
        )
    for problem in _impossible(network, tensors):
        raise ConfigError(f"{path.name} holds weights that no network has: {problem}")
    network.load_state_dict(tensors)


def _impossible(network: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What of the tensors no training writes, in words: it would raise, or be no number, whenever the network runs."""
    for name, module in network.named_modules():
        if isinstance(module, ChannelSelect):
            index = tensors[f"{name}.index"]
            if ((index < 0) | (index >= module.in_channels)).any():
                yield f"{name}.index selects channels beyond the {module.in_channels} that there are"
        elif isinstance(module, nn.BatchNorm2d) and (tensors[f"{name}.running_var"].float() < 0).any():
            yield f"{name}.running_var has negative variances"


def _without_prefixes(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names in the network: wrappers of a network put theirs before each of them."""
    while tensors and not tensors.keys() & wanted.keys():
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _of_channels(weight: Tensor, count: int) -> Tensor:
    """The weight of a convolution for images of another number of channels, as timm's `adapt_input_conv` makes it."""
    channels = weight.shape[1]
    if count == channels:
        return weight
    if count == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(count) % channels] * (channels / count)


def _differs_in_classes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether both have a linear classifier of the same features, of another number of classes."""
    has, needs = tensors.get(CLASSIFIER[0]), wanted.get(CLASSIFIER[0])
    return (
        has is not None
        and needs is not None
        and all(name in tensors for name in CLASSIFIER)
        and (has.shape[1:], len(has.shape)) == (needs.shape[1:], 2)
        and len(has) != len(needs)
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `ConfigError` if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path.name} is not a readable safetensors file: {printable(str(error), lines=False):.120}",
            "igc-nas train writes weights.safetensors at its end",
        ) from None
    return found


def _fits(has: Tensor | None, wants: Tensor | None) -> bool:
    """Whether a tensor of a file can be loaded as one of the network's: floats may differ in precision."""
    if has is None or wants is None:
        return False
    return has.shape == wants.shape and has.is_floating_point() == wants.is_floating_point()


def _described(tensor: Tensor | None) -> str:
    if tensor is None:
        return "nothing"
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def _how_to_fit(different: list[str], tensors: Mapping[str, Tensor]) -> str | None:
    """A hint for weights that do not fit, if the names of the `different` tensors show the reason."""
    bias = tensors.get("classifier.linear.bias")
    if bias is not None and bias.ndim == 1 and all(name.startswith("classifier.linear.") for name in different):
        return f"only the classifier differs: they are of {len(bias)} classes (num_classes={len(bias)})"
    if any(name.startswith("model.") for name in tensors):
        return "it looks like a checkpoint; the weights are in weights.safetensors, beside it at the training's end"
    return None
