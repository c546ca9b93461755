"""An exported folder: config.toml, model.py, weights.safetensors, model.onnx, README.md; whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from igc_nas.arch.config import ArchConfig
from igc_nas.errors import IgcNasError
from igc_nas.export.destination import CARD, CONFIG, FILES, MARKER, MODEL, ONNX, WEIGHTS
from igc_nas.export.graph import Graph
from igc_nas.export.model_card import Contents, Deployed, card_text
from igc_nas.export.source import Source, config_text
from igc_nas.export.standalone import standalone_text
from igc_nas.export.verify import prove
from igc_nas.io.files import whole_folder, write_whole
from igc_nas.nn.network import Network


def write_folder(
    path: Path, source: Source, network: Network, trained: bool, graph: Graph | None, no_onnx: str = ""
) -> None:
    """Write the folder; every file is read back and compared first. `may_write` has allowed it.

    `trained`: the network's weights are worth keeping. `no_onnx` says why there is no `graph`.
    """
    with whole_folder(path) as folder:
        write_whole(folder / CONFIG, f"{MARKER}\n{config_text(source)}")
        if ArchConfig.load(folder / CONFIG) != source.arch:
            raise IgcNasError("the config file reads back as another architecture")
        write_whole(folder / MODEL, standalone_text(source))
        errors = {}
        if trained:
            write_whole(folder / WEIGHTS, weights_bytes(network))
            errors[WEIGHTS] = _weights_error(folder / WEIGHTS, network)
        errors[MODEL] = prove(folder / MODEL, network, folder / WEIGHTS if trained else None)
        deployed = None
        if graph is not None:
            write_whole(folder / ONNX, graph.data)
            errors[ONNX] = graph.error
            timing = None if graph.timing is None else str(graph.timing)
            deployed = Deployed(graph.form, graph.params, graph.macs, timing, graph.opset)
        sizes = {name: (folder / name).stat().st_size for name in FILES if (folder / name).exists()}
        write_whole(folder / CARD, card_text(source, Contents(sizes, errors, trained, deployed, no_onnx)))


def weights_bytes(network: Network) -> bytes:
    """The weights as a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return save(tensors, metadata={"format": "pt"})


def _weights_error(path: Path, network: Network) -> float:
    """0 where the file holds the network's tensors, bit for bit; else raises `IgcNasError`."""
    found = load_file(path)
    for name, tensor in network.state_dict().items():
        if name not in found or not torch.equal(found[name], tensor.cpu()):
            raise IgcNasError(f"{name} reads back as another tensor")
    return 0.0
