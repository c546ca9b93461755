"""An exported folder: config, stand-alone PyTorch, weights, ONNX, C, README.md; written atomically.

Its names are those of a repository on the Hugging Face hub: `config.json`, `model.safetensors`, a README.md that begins
with metadata. So it can be uploaded as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from igc_nas._version import __version__
from igc_nas.arch.config import ArchConfig
from igc_nas.errors import IgcNasError
from igc_nas.exports.c_source import CFiles
from igc_nas.exports.destination import C_SOURCE, CARD, CONFIG, FILES, HUB_CONFIG, MARKER, MODEL, ONNX, WEIGHTS
from igc_nas.exports.graph import Graph
from igc_nas.exports.model_card import Contents, OnnxSummary, card_text
from igc_nas.exports.source import Source, config_text
from igc_nas.exports.standalone import standalone_text
from igc_nas.exports.verify import verify_standalone
from igc_nas.io.files import whole_folder, write_whole
from igc_nas.nn.network import Network


def write_folder(
    path: Path,
    source: Source,
    network: Network,
    trained: bool,
    graph: Graph | None,
    no_onnx: str = "",
    verify: Callable[[Path, Network, Path | None], float] | None = None,
    *,
    c: tuple[CFiles, float] | None = None,
    no_c: str = "",
) -> None:
    """Write the folder, after reading every file back and comparing it with `network`.

    The caller has checked `path` with `check_destination`. The weights are written only if `trained`. `c` has
    the C files named `model` and their error (see `verify_c`); `no_onnx` and `no_c` are the reasons why `graph` and `c`
    are None. `verify` replaces `verify_standalone`, which starts a process. Raises `IgcNasError` if a
    file differs from the network; then nothing is written.
    """
    with whole_folder(path) as folder:
        write_whole(folder / CONFIG, f"{MARKER}\n{config_text(source)}")
        if ArchConfig.load(folder / CONFIG) != source.arch:
            raise IgcNasError("the config file reads back as another architecture")
        write_whole(folder / HUB_CONFIG, json.dumps(hub_config(source), indent=2, ensure_ascii=False) + "\n")
        write_whole(folder / MODEL, standalone_text(source))
        errors = {}
        if trained:
            write_whole(folder / WEIGHTS, weights_bytes(network))
            check_weights(folder / WEIGHTS, network)
            errors[WEIGHTS] = 0.0
        errors[MODEL] = (verify or verify_standalone)(folder / MODEL, network, folder / WEIGHTS if trained else None)
        onnx = None
        if graph is not None:
            write_whole(folder / ONNX, graph.data)
            errors[ONNX] = graph.error
            timing = None if graph.timing is None else str(graph.timing)
            onnx = OnnxSummary(graph.form, graph.params, graph.macs, timing, graph.opset)
        if c is not None:
            files, errors[C_SOURCE] = c
            files.write(folder)
        sizes = {name: (folder / name).stat().st_size for name in FILES if (folder / name).exists()}
        write_whole(folder / CARD, card_text(source, Contents(sizes, errors, trained, onnx, no_onnx, no_c)))


def hub_config(source: Source) -> dict[str, Any]:
    """The content of config.json: the architecture, the classes, and how images are prepared, by timm's names."""
    arch, images, statistics = source.arch, source.images, source.statistics
    mean, std = statistics or (None, None)
    prepared = {"input_size": arch.input, "num_classes": arch.classes, "mean": mean, "std": std}
    return {
        "model_type": "igc-nas",
        "igc_nas_version": __version__,
        "id": source.id,
        "num_classes": arch.classes,
        **({"label_names": list(images.classes)} if images else {}),
        "pretrained_cfg": prepared | {"crop_pct": 1.0, "interpolation": "bicubic"},
        "architecture": arch.to_dict(),
    }


def weights_bytes(network: Network) -> bytes:
    """The weights as a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return save(tensors, metadata={"format": "pt"})


def check_weights(path: Path, network: Network) -> None:
    """Raise `IgcNasError` unless the safetensors file holds the network's tensors, bit for bit."""
    tensors = load_file(path)
    for name, tensor in network.state_dict().items():
        if name not in tensors or not torch.equal(tensors[name], tensor.cpu()):
            raise IgcNasError(f"{name} reads back as another tensor")
