"""ExecuTorch with its XNNPACK backend as a peer of `bench deploy`: what PyTorch offers for phones and boards.

It is an optional package (extra `bench`); its Python runtime is imported only when a function needs it.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from igc_nas.errors import UsageError
from igc_nas.evaluation.runtimes import Runner, contiguous, quiet_exporter


def require_executorch() -> None:
    """Raise `UsageError` with the pip command where ExecuTorch is not installed."""
    try:
        importlib.import_module("executorch.extension.pybindings.portable_lib")
    except ImportError:
        raise UsageError("the peer executorch needs the package executorch", "pip install 'igc-nas[bench]'") from None


def executorch_runner(module: nn.Module, x: Tensor) -> Runner:
    """A function that runs `module` on `x` by XNNPACK in one thread. Raises `IgcNasError` where the export fails."""
    require_executorch()
    with quiet_exporter("ExecuTorch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        portable: Any = importlib.import_module("executorch.extension.pybindings.portable_lib")
        lowering: Any = importlib.import_module("executorch.exir")
        partition: Any = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        exported = torch.export.export(contiguous(module), (x,))
        edge = lowering.to_edge_transform_and_lower(exported, partitioner=[partition.XnnpackPartitioner()])
        buffer = edge.to_executorch().buffer
    portable._unsafe_reset_threadpool(1)
    loaded = portable._load_for_executorch_from_buffer(buffer)

    def run(kept: bytes = buffer) -> Tensor:  # the loaded program reads the buffer, and does not own it
        result: Tensor = loaded.run_method("forward", (x,))[0]
        return result

    return run
