"""BN, activation and interleave by Triton: the kernels in Triton's interpreter, what surrounds them by PyTorch."""

import copy
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.nn.lowering import triton_norm
from igc_nas.nn.lowering.training import LoweredNetwork
from igc_nas.nn.network import build

ROOT = Path(__file__).parents[3]
STAGES = [
    {"unit": "igcv1", "L": 4, "M": 2, "blocks": 1, "residual": True},
    {"unit": "igcv3", "width": 12, "expand": 2, "G1": 2, "G2": 2, "blocks": 2, "stride": 2},
]


@pytest.mark.skipif(not triton_norm.available(), reason="Triton is not installed (it is for Linux)")
@pytest.mark.parametrize(
    ("script", "interpreted"),
    [
        pytest.param("triton_checks.py", True, marks=pytest.mark.slow),
        pytest.param("triton_compiled.py", False, marks=pytest.mark.slow),
        pytest.param("triton_checks.py", False, marks=pytest.mark.gpu),
    ],
)
def test_the_kernels_compute_the_definition_and_compile(script: str, interpreted: bool, tmp_path: Path) -> None:
    """Against float64 in Triton's interpreter, and on a GPU; compiled for Turing, Ampere and Hopper, without one."""
    environment = os.environ | {
        "TRITON_INTERPRET": str(int(interpreted)),
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    command = [sys.executable, str(Path(__file__).parent / script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_network_in_this_form_is_the_network_where_pytorch_runs_it() -> None:
    """Images that the kernels do not take, as on a CPU: logits, gradients, statistics and an evaluation."""
    network = build(ArchConfig.parse({"input": (3, 8, 8), "stem": {"width": 8}, "stage": STAGES}), 0).double()
    ours = copy.deepcopy(network)
    runs = {ours: LoweredNetwork(ours, network.plan, {}, torch.float64, "triton"), network: network}
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = []
    for net, run in runs.items():
        logits = run(x)
        F.cross_entropy(logits, torch.arange(4)).backward()
        parts = [logits.flatten(), *(p.grad.flatten() for p in net.parameters() if p.grad is not None)]
        parts += [buffer.double().flatten() for buffer in net.buffers()]
        net.eval()
        found.append(torch.cat([*parts, run(x).flatten()]).detach())
    torch.testing.assert_close(*found)


def test_a_folder_named_triton_is_no_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "triton").mkdir()
    assert not triton_norm.available()
    (tmp_path / "triton" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert triton_norm.available()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_the_kernels_take(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.zeros(2, 8, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not triton_norm.fits(image), "they are for a GPU"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_norm.fits(image)
    assert not triton_norm.fits(image.double())
    assert not triton_norm.fits(image.contiguous())
    vast = torch.empty(1, device="meta", dtype=dtype).as_strided((2**16, 8, 2**8, 2**7), (2**18, 1, 2**10, 2**3))
    assert vast.is_contiguous(memory_format=torch.channels_last)
    assert not triton_norm.fits(vast), "2**31 pixels"
    assert triton_norm.fits(vast[: 2**15]), "2**33 elements"
