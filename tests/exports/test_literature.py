"""A small network of each family of the literature: trained lowered, deployed, exported, read back."""

from __future__ import annotations

import io
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.literature import literature
from igc_nas.arch.plan import plan
from igc_nas.arch.stages import STAGE_OF_UNIT
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.exports.graph import Exporter, difference
from igc_nas.exports.source import Source
from igc_nas.exports.standalone import standalone_text
from igc_nas.nn.c_compiler import compiler
from igc_nas.nn.codegen.build import compiled
from igc_nas.nn.codegen.target import PORTABLE
from igc_nas.nn.codegen.target import generated as generated_c
from igc_nas.nn.device import find_devices
from igc_nas.nn.lowering.chain import dense, forms_of
from igc_nas.nn.lowering.deployment import DeployedNetwork
from igc_nas.nn.lowering.parts import chains_in, inference_blocks, training_blocks
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.training import ChainForm, LoweredNetwork, plain_form
from igc_nas.nn.network import Network, build
from igc_nas.study.spec import LatencySpec
from tests.support.tensors import relative_error

PRELU: dict[str, Any] = {"activation": "prelu"}
POOL: dict[str, Any] = {"kind": "max", "kernel": 3, "stride": 2}
PLAIN: dict[str, Any] = {"unit": "conv", "blocks": 1, "bias": True, "norm": False}
SMALL: dict[str, dict[str, Any]] = {
    "dpn": {
        "stem": {"width": 8},
        "stage": [
            {"unit": "dualpath", "width": 12, "inner": 8, "groups": 4, "growth": 4, "blocks": 2},
            {"unit": "dualpath", "width": 16, "inner": 8, "groups": 4, "growth": 6, "blocks": 2, "stride": 2},
        ],
    },
    "xception": {
        "stem": {"width": 8},
        "stage": [
            {"unit": "xception", "width": 12, "blocks": 1, "stride": 2},
            {"unit": "xception", "width": 12, "blocks": 2, "depth": 3},
            {"unit": "xception", "width": 16, "blocks": 1, "stride": 2, "late": True},
            {"unit": "separable", "width": 24, "blocks": 1, "linear": True},
        ],
    },
    "mobilefacenet": {
        "stem": {"width": 8, "stride": 2, **PRELU},
        "stage": [
            {"unit": "separable", "width": 8, "blocks": 1, **PRELU},
            {"unit": "inverted", "expand": 2, "width": 12, "blocks": 2, "stride": 2, **PRELU},
        ],
        "head": {"width": 24, "pool": "gdc", "embedding": True, **PRELU},
    },
    "alexnet": {
        "stem": {"width": 8, "kernel": 5, "stride": 2, "padding": 0, "bias": True, "norm": False, "pool": POOL},
        "stage": [{**PLAIN, "width": 12, "kernel": 5, "groups": 2}, {**PLAIN, "width": 8, "groups": 2}],
        "head": {"pool": "flatten", "hidden": (16, 12), "activation": "relu"},
    },
    "mobilenetv3 of one block": {
        "stem": {"width": 8, "activation": "hswish"},
        "stage": [{"unit": "inverted", "inner": 16, "width": 8, "blocks": 1, "activation": "hswish", "se": 4}],
        "head": {"width": 12, "activation": "hswish", "hidden": (10,)},
    },
    "resnext": {
        "stem": {"width": 8},
        "stage": [{"unit": "bottleneck", "width": 16, "inner": 8, "groups": 4, "blocks": 2, "stride": 2}],
    },
}
NAMED = (
    "resnet8-a", "resnet8-b", "preresnet8", "wrn-10-1", "wrn-10-1-bsconv-s", "densenet-10-4", "densenet-bc-16-4",
    "se-resnet8", "mobilenetv1-x0.125", "mobilenetv2-x0.125", "mobilenetv3-small-bs-x0.25", "mobilenetv3-small",
    "dualpathnet10-1", "shufflenetv1-g2", "shufflenetv2-x0.5", "condensenet-14", "mobilenetv2-igcv3-gdc",
)  # fmt: skip
FAMILIES = (*NAMED, *SMALL)
IN_C = ("densenet-bc-16-4", "condensenet-14", "mobilefacenet")
IN_GRAPHS = ("mobilenetv3 of one block",)


@cache
def member(name: str) -> ArchConfig:
    """A family's small network, for images of 16 x 16."""
    return (
        ArchConfig.parse({"input": (3, 16, 16)} | SMALL[name]) if name in SMALL else literature(name).arch.with_side(16)
    )


def network_of(name: str, dtype: torch.dtype = torch.float64) -> Network:
    return randomize_batchnorm_(build(member(name), 0)).to(dtype).eval()


def images(name: str, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *member(name).input, generator=torch.Generator().manual_seed(count)).to(dtype)


def fast_for(*names: str) -> list[Any]:
    """All families; but for these the test is slow."""
    return [pytest.param(name, marks=[] if name in names else [pytest.mark.slow]) for name in FAMILIES]


def test_every_unit_is_in_a_family() -> None:
    units = {stage.unit for name in FAMILIES for stage in member(name).stages}
    assert units == set(STAGE_OF_UNIT) - {"igcv1", "igcv2", "igcv3"}


# The same function, the same training.


@pytest.mark.parametrize("name", FAMILIES)
def test_a_deployed_network_is_the_factored_one(name: str) -> None:
    network, x = network_of(name), images(name, 2)
    parts = [chain for _, found in inference_blocks(network.plan) for chain in chains_in(found)]
    with torch.inference_mode():
        for forms in ({}, {chain.key: forms_of(chain)[-1] for chain in parts}):
            assert relative_error(DeployedNetwork(network, forms)(x), network(x)) < 1e-11


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_in_the_lowered_form_is_the_factored_one(name: str) -> None:
    factored, lowered = (network_of(name).train() for _ in range(2))
    forms = {}
    for _, parts in training_blocks(plan(member(name))):
        for chain in chains_in(parts):
            pieces = dense(chain)
            forms[chain.key] = ChainForm(pieces, plain_form(chain).algorithms[:1] * len(pieces))
    x, labels = images(name, 6), torch.arange(6) % member(name).classes
    steps: tuple[tuple[Network, Any], ...] = (
        (factored, factored),
        (lowered, LoweredNetwork(lowered, lowered.plan, forms, torch.float64)),
    )
    for _, forward in steps:
        F.cross_entropy(forward(x), labels).backward()
    wanted, found = ([p.grad.flatten() for p in network.parameters()] for network, _ in steps)  # type: ignore[union-attr]
    assert relative_error(torch.cat(found), torch.cat(wanted)) < 1e-7
    for ours, theirs in zip(lowered.buffers(), factored.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


# Files that are read back.


@cache
def standalone(name: str) -> tuple[str, ModuleType]:
    """The stand-alone file, and the module that it is."""
    text = standalone_text(Source(member(name), name))
    module = ModuleType("standalone")
    exec(compile(text, "model.py", "exec"), module.__dict__)  # noqa: S102
    return text, module


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stand_alone_file_is_the_network(name: str) -> None:
    network, theirs = network_of(name, torch.float32).train(), standalone(name)[1].Network().train()
    assert list(theirs.state_dict()) == list(network.state_dict())
    theirs.load_state_dict(network.state_dict())
    for each in (network, theirs):
        F.cross_entropy(each(images(name, 4, torch.float32)), torch.arange(4)).backward()
    for (parameter, ours), other in zip(network.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(other.grad, ours.grad, rtol=1e-4, atol=1e-6, msg=parameter)
    with torch.inference_mode():
        x = images(name, 1, torch.float32)
        assert relative_error(theirs.eval()(x), network.eval()(x)) < 1e-5
    assert standalone(name)[1].Network().state_dict().keys() == network.state_dict().keys()


def test_the_stand_alone_files_are_laid_out_as_ruff_does_and_have_nothing_unused(tmp_path: Path) -> None:
    for number, name in enumerate(FAMILIES):
        (tmp_path / f"model{number}.py").write_text(standalone(name)[0], encoding="utf-8")
    for command in (["format", "--diff"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", str(tmp_path)]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_stand_alone_file_takes_other_classes() -> None:
    assert standalone("densenet-bc-16-4")[1].Network(num_classes=3)(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("name", fast_for(*IN_C))
def test_generated_c_is_the_network(name: str) -> None:
    network, x = network_of(name, torch.float32), images(name, 2, torch.float32)
    found = compiled(generated_c(network, PORTABLE))(x.numpy())
    with torch.inference_mode():
        single = network(x).double().numpy()
        wanted = network.double()(x.double()).numpy()
    ours, torchs = (float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted)) for y in (found, single))
    assert ours <= max(1e-5, 4 * torchs)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize("name", fast_for(*IN_GRAPHS))
def test_graphs_are_read_back_as_the_network(name: str, kind: Any) -> None:
    """The exporter reads the file back, and refuses one that computes another function."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    device = find_devices("cpu")[0]
    spec = LatencySpec(
        device=device.name, runtime="onnxruntime", input=member(name).input, memory_format="contiguous", forms="any"
    )
    network = network_of(name, torch.float32)
    graph = Exporter(spec, device, None, TimingCache())(kind, network, "folded", {})
    assert graph.error < 1e-4
    if kind == "pt2":
        module = torch.export.load(io.BytesIO(graph.data)).module()
        assert isinstance(module, nn.Module)
        assert difference(module, network) == pytest.approx(graph.error)
