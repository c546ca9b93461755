"""Verifies a stand-alone file: runs it in a process that cannot import igc_nas, and compares it with the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from igc_nas.errors import IgcNasError
from igc_nas.exports.graph import difference
from igc_nas.io.text import printable
from igc_nas.nn.network import Network

TIMEOUT_S = 600.0
_CHILD = """
import importlib.util, json, sys

class IgcNasBlocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "igc_nas":
            raise ImportError("the file imports igc_nas")

sys.meta_path.insert(0, IgcNasBlocker())
source, weights, inputs, outputs = sys.argv[1:]
spec = importlib.util.spec_from_file_location("standalone", source)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

import torch
from safetensors.torch import load_file, save_file

model = module.load_weights(module.Network(), weights).eval()
with torch.inference_mode():
    logits = {name: model(x).contiguous() for name, x in load_file(inputs).items()}
save_file(logits, outputs)
print(json.dumps([[name, list(p.shape)] for name, p in model.named_parameters()]))
"""


def verify_standalone(path: Path, network: Network, weights: Path | None = None, timeout_s: float = TIMEOUT_S) -> float:
    """The relative error of the stand-alone file `path` against `network`.

    `weights` is a safetensors file with the network's weights; None writes a temporary one. Raises `IgcNasError` if the
    file does not run, takes longer than `timeout_s`, has other parameters, or computes another function.
    """
    with tempfile.TemporaryDirectory(prefix="igc-nas-") as name:
        folder = Path(name)
        if weights is None:
            weights = folder / "model.safetensors"
            save_file({key: value.contiguous() for key, value in network.state_dict().items()}, weights)
        inputs: dict[str, Tensor] = {}

        @torch.inference_mode()
        def record_input(x: Tensor) -> Tensor:
            inputs[str(len(x))] = x
            logits: Tensor = network(x)
            return logits

        difference(record_input, network)  # first pass: the batches that will be compared, by their size
        save_file(inputs, folder / "inputs.safetensors")
        parameters = _run(path.resolve(), weights.resolve(), folder, timeout_s)
        outputs = load_file(folder / "outputs.safetensors")
        if parameters != [[name, list(p.shape)] for name, p in network.named_parameters()]:
            raise IgcNasError("the stand-alone file has other parameters than the network")
        return difference(lambda x: outputs[str(len(x))], network)


def _run(path: Path, weights: Path, folder: Path, timeout_s: float) -> Any:
    """Run `_CHILD`: it reads `inputs.safetensors` in `folder`, writes `outputs.safetensors`; returns the parameters."""
    files = [str(p) for p in (path, weights, folder / "inputs.safetensors", folder / "outputs.safetensors")]
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-c", _CHILD, *files],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise IgcNasError(f"the stand-alone file did not answer within {timeout_s:g} s") from None
    if done.returncode != 0:
        last = printable((done.stderr.strip().splitlines() or ["no message"])[-1], lines=False)
        raise IgcNasError(f"the stand-alone file does not run by itself: {last:.200}")
    return json.loads(done.stdout.splitlines()[-1])
