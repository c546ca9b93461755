"""The weights for an architecture, from a safetensors file or a training's folder, with the recorded test error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from igc_nas.errors import ConfigError, StudyError
from igc_nas.evaluation.retraining import RESULT_FILE, WEIGHTS_FILE
from igc_nas.exports.source import Source, TrainingResult
from igc_nas.io.files import read_text
from igc_nas.nn.factory import load_weights
from igc_nas.nn.network import Network, build


def loaded(source: Source, weights: Path | None, seed: int) -> tuple[Source, Network]:
    """(the source with the training's result, its network in evaluation mode with these weights).

    `weights` is a safetensors file or a training's folder; None initialises the network from `seed`. Raises
    `ConfigError` if they do not fit the architecture, `StudyError` if the folder has none.
    """
    network = build(source.arch, seed).eval()
    if weights is None:
        return source, network
    file, result = _weights_and_result(weights)
    load_weights(network, file)
    not_finite = [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if not_finite:
        raise ConfigError(f"{file.name} holds numbers that are not finite, the first in {not_finite[0]}")
    if result is None:
        return source, network
    if result.id != source.id:
        raise ConfigError(
            f"{file} was trained as the network {result.id}, and {source.name} is {source.id}: "
            "its tensors have the same shapes, but it computes another function",
            f"export {file.parent / 'arch.toml'} instead",
        )
    return replace(source, trained=result), network


def _weights_and_result(path: Path) -> tuple[Path, TrainingResult | None]:
    """(the weights file, the content of the training's result.json beside it, if there is one)."""
    if path.is_dir():
        file = path / WEIGHTS_FILE
        if not file.is_file():
            raise StudyError(
                f"{path} has no {WEIGHTS_FILE}", "igc-nas train writes it at the end; the same command continues it"
            )
    else:
        file = path
    result = file.parent / RESULT_FILE
    return file, _read(result) if file.name == WEIGHTS_FILE and result.is_file() else None


def _read(path: Path) -> TrainingResult:
    try:
        data = json.loads(read_text(path))
        return TrainingResult.parse(data if isinstance(data, dict) else {}, path.name)
    except (ValueError, RecursionError, ConfigError) as error:
        why = error.message if isinstance(error, ConfigError) else "not valid JSON"
        raise StudyError(f"{path} is damaged: {why}", "remove it to export without a test error") from None
