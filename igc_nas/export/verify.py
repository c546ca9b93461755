"""The stand-alone file, run where this package cannot be imported, against the network that it was printed from."""

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
from igc_nas.export.graph import difference
from igc_nas.io.text import printable
from igc_nas.nn.network import Network

PATIENCE_S = 600
_CHILD = """
import importlib.util, json, sys

class Stranger:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "igc_nas":
            raise ImportError("the file imports igc_nas")

sys.meta_path.insert(0, Stranger())
place, weights, images, answers = sys.argv[1:]
spec = importlib.util.spec_from_file_location("standalone", place)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

import torch
from safetensors.torch import load_file, save_file

model = module.load_weights(module.Network(), weights).eval()
with torch.inference_mode():
    logits = {name: model(x).contiguous() for name, x in load_file(images).items()}
save_file(logits, answers)
print(json.dumps([[name, list(p.shape)] for name, p in model.named_parameters()]))
"""


def prove(path: Path, network: Network, weights: Path | None = None) -> float:
    """The relative error of the stand-alone file `path` with the network's weights (as `weights` holds them).

    Raises `IgcNasError` where it does not run by itself, has other parameters, or computes another function.
    """
    with tempfile.TemporaryDirectory(prefix="igc-nas-") as name:
        folder = Path(name)
        if weights is None:
            weights = folder / "weights.safetensors"
            save_file({key: value.contiguous() for key, value in network.state_dict().items()}, weights)
        asked: dict[str, Tensor] = {}
        difference(lambda x: _noted(asked, x, network), network)
        save_file(asked, folder / "images.safetensors")
        parameters = _run(path.resolve(), weights.resolve(), folder)
        answers = load_file(folder / "answers.safetensors")
        if parameters != [[name, list(p.shape)] for name, p in network.named_parameters()]:
            raise IgcNasError("the stand-alone file has other parameters than the network")
        return difference(lambda x: answers[str(len(x))], network)


def _noted(asked: dict[str, Tensor], x: Tensor, network: Network) -> Tensor:
    """The network's own answer; the question is kept."""
    asked[str(len(x))] = x
    with torch.inference_mode():
        answer: Tensor = network(x)
    return answer


def _run(path: Path, weights: Path, folder: Path) -> Any:
    places = [str(p) for p in (path, weights, folder / "images.safetensors", folder / "answers.safetensors")]
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-c", _CHILD, *places],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise IgcNasError(f"the stand-alone file did not answer within {PATIENCE_S} s") from None
    if done.returncode != 0:
        last = printable((done.stderr.strip().splitlines() or ["no message"])[-1], lines=False)
        raise IgcNasError(f"the stand-alone file does not run by itself: {last:.200}")
    return json.loads(done.stdout.splitlines()[-1])
