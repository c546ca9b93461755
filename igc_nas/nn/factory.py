"""Networks made from a name, a file or a study's trial, with weights from a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from igc_nas.arch.config import ArchConfig
from igc_nas.errors import ConfigError
from igc_nas.io.files import is_file, read_text, user_path
from igc_nas.io.text import printable
from igc_nas.nn.network import FeatureMaps, Network, build
from igc_nas.study.lookup import load_architecture

CLASSIFIER = ("classifier.linear.weight", "classifier.linear.bias")
FOLDER_WEIGHTS = ("model.safetensors", "weights.safetensors")
"""Weights in an exported folder, by its present and its earlier name."""
PREFIXES = ("module.", "_orig_mod.", "network.")
"""What `DataParallel`, `torch.compile` and `FeatureMaps` put before the names of a network's tensors."""


@overload
def create_model(
    arch: ArchConfig | str | Path,
    *,
    num_classes: int | None = None,
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
    num_classes: int | None = None,
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
    num_classes: int | None = None,
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
            a folder of `igc-nas export --format dir`, whose weights are loaded.
        num_classes: number of classes; the default is the architecture's. With 0, outputs are the pooled features.
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

    Raises `ConfigError` if the architecture or the weights do not fit, `StudyError` for an unknown trial.
    """
    if classes is not None and num_classes not in (None, classes):
        raise ConfigError(f"num_classes (={num_classes}) and classes (={classes}) mean the same; give one of them")
    wanted = num_classes if classes is None else classes
    folder = None if isinstance(arch, ArchConfig) else user_path(arch)
    prepared: dict[str, Any] = {}
    if folder is not None and is_file(folder / "config.toml"):
        arch, prepared = folder / "config.toml", _prepared(folder / "config.json")
        weights = weights or next((f for f in (folder / name for name in FOLDER_WEIGHTS) if is_file(f)), None)
    config = arch if isinstance(arch, ArchConfig) else load_architecture(arch)
    network = build(config if not wanted else config.with_classes(wanted), seed, device)
    network.prepared = prepared
    if weights is not None:
        load_weights(network, user_path(weights), new_classifier=wanted is not None)
    if wanted == 0 or global_pool not in (None, "avg"):
        network.reset_classifier(network.num_classes if wanted is None else wanted, global_pool)
    return FeatureMaps(network, out_indices) if features_only else network


def _prepared(path: Path) -> dict[str, Any]:
    """How images are prepared, by an exported config.json: mean, std and the like; nothing without the file."""
    if not is_file(path):
        return {}
    try:
        found = json.loads(read_text(path))["pretrained_cfg"]
        return {key: found[key] for key in ("mean", "std", "crop_pct", "interpolation")}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{path.name} is not one that igc-nas export writes") from None


def load_weights(network: nn.Module, path: Path, *, new_classifier: bool = False) -> None:
    """Load a safetensors file into a network. Raises `ConfigError`, which names the first tensor that does not fit.

    With `new_classifier`, a classifier of another number of classes is left out, and the network keeps its own.
    """
    wanted = network.state_dict()
    tensors = _without_prefixes(read_tensors(path), wanted)
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
    network.load_state_dict(tensors)


def _without_prefixes(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names in the network: wrappers of a network put theirs before each of them."""
    while tensors and not tensors.keys() & wanted.keys():
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


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
