"""The stand-alone file: the same parameters, function and gradients, formatted, and without importing igc_nas."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.stages import UNITS
from igc_nas.errors import IgcNasError
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.exports.source import Source, TrainingResult
from igc_nas.exports.standalone import UNIT_CLASSES, standalone_text
from igc_nas.exports.verify import verify_standalone
from igc_nas.nn.network import Network, build
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import Feasible
from igc_nas.space.search_space import SearchSpace
from igc_nas.study.lookup import load_architecture
from tests.support.builders import architectures, one_line
from tests.support.exports import STUDY, hostile
from tests.support.hostile import COMMENTS
from tests.support.shares import examples
from tests.support.tensors import relative_error

PAPERS = (
    "igcv1-l24m2-d20", "igcv1-l4m8-d8-res", "igcv2-c48-k8-d8", "igcv2-c416-k8-d20", "igcv3-d-cifar", "regconv-w16-d8",
)  # fmt: skip
UNIT: dict[str, dict[str, Any]] = {
    "igcv1": {"unit": "igcv1", "L": 4, "M": 3},
    "igcv2": {"unit": "igcv2", "width": 24, "depth": 4},
    "igcv2 of one K": {"unit": "igcv2", "width": 16, "depth": 3, "K": 8},
    "igcv3": {"unit": "igcv3", "width": 16, "expand": 3, "G1": 4, "G2": 2, "kernel": 5},
    "conv": {"unit": "conv", "width": 12, "kernel": 1},
}


def arch(*stages: dict[str, Any], **more: Any) -> ArchConfig:
    return ArchConfig.parse({"input": (3, 9, 7), "classes": 5, "stem": {"width": 8}, "stage": stages} | more)


def printed(config: ArchConfig) -> tuple[str, ModuleType]:
    """The file, and the module that it is."""
    text = standalone_text(Source(config, "arch.toml"))
    module = ModuleType("standalone")
    exec(compile(text, "model.py", "exec"), module.__dict__)  # noqa: S102
    return text, module


def pair(config: ArchConfig) -> tuple[Network, nn.Module]:
    """Our network and the file's, with the same weights and statistics."""
    ours = randomize_batchnorm_(build(config, 1))
    theirs = printed(config)[1].Network()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def same(config: ArchConfig) -> None:
    ours, theirs = pair(config)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [(n, p.shape) for n, p in theirs.named_parameters()]
    assert sum(p.numel() for p in theirs.parameters()) == cost_of(config).params
    x = torch.randn(3, *config.input, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert relative_error(theirs.eval()(x), ours.eval()(x)) < 1e-6


def same_gradients(config: ArchConfig) -> None:
    ours, theirs = (network.train() for network in pair(config))
    x = torch.randn(4, *config.input, generator=torch.Generator().manual_seed(0))
    for network in (ours, theirs):
        F.cross_entropy(network(x), torch.arange(4) % config.classes).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-6, msg=name)
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6, msg=name)


# The same network.


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("unit", UNIT)
def test_every_unit_computes_the_same(unit: str, residual: bool) -> None:
    stage = UNIT[unit] | {"residual": residual}
    config = arch(stage | {"blocks": 2}, stage | {"blocks": 2, "stride": 2}, stage | {"blocks": 1})
    same(config)
    same_gradients(config)


@pytest.mark.parametrize(
    "more", [{"head": {"width": 20}}, {"head": {"width": 7, "activation": "relu"}}, {"classes": 1}]
)
def test_stem_and_head_compute_the_same(more: dict[str, Any]) -> None:
    stem = {"width": 8, "kernel": 5, "stride": 2, "activation": "relu6"}
    same(arch(UNIT["igcv1"] | {"blocks": 1}, UNIT["igcv3"] | {"blocks": 3}, stem=stem, **more))


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_networks_have_the_same_parameters(name: str) -> None:
    config = load_architecture(name, classes=100)
    module = printed(config)[1]
    with torch.device("meta"):
        theirs = module.Network()
    ours = build(config, device="meta")
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert {name: tensor.shape for name, tensor in theirs.state_dict().items()} == shapes


@pytest.mark.parametrize("name", ["igcv1-l4m8-d8-res", "igcv2-c16-k8-d8", "igcv3-d-cifar"])
def test_the_papers_networks_compute_the_same(name: str) -> None:
    same(load_architecture(name))


@examples(25)
@given(architectures())
def test_any_architecture_computes_the_same(config: ArchConfig) -> None:
    assume(cost_of(config).macs < 20_000_000)
    same(config)


@pytest.mark.parametrize("space", ["igc_cifar", "tiny"])
def test_architectures_of_the_spaces_compute_the_same(space: str) -> None:
    feasible, rng = Feasible(SearchSpace.load(space), Budget(params=300_000)), np.random.default_rng(3)
    for _ in range(4):
        same_gradients(feasible.draw(rng))


@pytest.mark.slow
@examples(300)
@given(architectures())
def test_hundreds_of_architectures_compute_the_same(config: ArchConfig) -> None:
    assume(cost_of(config).macs < 20_000_000)
    same(config)


def test_every_unit_has_its_classes() -> None:
    assert set(UNIT_CLASSES) == {f"{unit}{residual}" for unit in UNITS for residual in ("", "-res")}


def test_a_fresh_network_is_initialised_alike() -> None:
    """He's normal for convolutions, torch's own for the rest; by their spread, over some thousand weights."""
    torch.manual_seed(0)
    config = arch({"unit": "conv", "width": 64, "blocks": 2}, stem={"width": 64}, classes=200)
    theirs, ours = printed(config)[1].Network().state_dict(), build(config, 0).state_dict()
    for name in ("stage1.block2.conv.weight", "classifier.linear.weight", "stage1.block1.norm.weight"):
        torch.testing.assert_close(theirs[name].std(), ours[name].std(), rtol=0.05, atol=0)


def test_other_classes_and_features() -> None:
    module = printed(arch(UNIT["igcv1"] | {"blocks": 1, "stride": 2}))[1]
    model = module.Network(num_classes=11)
    assert model(torch.randn(2, 3, 9, 7)).shape == (2, 11)
    assert model.forward_features(torch.randn(2, 3, 9, 7)).shape == (2, 12, 5, 4)


# A file that a person reads.


def many() -> list[str]:
    """Files of all units, and of data that fit on no line."""
    own = [{"blocks": 1} | UNIT[unit] | {"residual": residual} for unit in UNIT for residual in (False, True)]
    wide = {"unit": "igcv2", "width": 4096, "depth": 13, "blocks": 256, "stride": 4, "kernel": 11, "residual": True}
    groups = {"unit": "igcv3", "width": 65536, "expand": 32, "G1": 65536, "G2": 65536, "blocks": 2, "kernel": 11}
    configs = [arch(stage) for stage in own] + [
        arch(wide, head={"width": 65536}), arch(groups, stem={"width": 65536}),
        arch({"unit": "igcv2", "width": 65536, "depth": 17, "blocks": 3, "residual": True}, *own),
    ]  # fmt: skip
    texts = [standalone_text(Source(config, "x" * 300)) for config in configs]
    trained = Source.of_trial(STUDY, STUDY.trial(0))
    result = TrainingResult(id=trained.id, test_error=0.1, test_images=100, dataset="cifar10")
    return [*texts, standalone_text(trained), standalone_text(replace(trained, trained=result))]


def test_the_file_is_laid_out_as_ruff_does_and_has_nothing_unused(tmp_path: Path) -> None:
    for number, text in enumerate([*many(), *(standalone_text(hostile(name)) for name in COMMENTS)]):
        (tmp_path / f"model{number}.py").write_text(text, encoding="utf-8")
    for command in (["format", "--diff"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", str(tmp_path)]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_file_holds_the_classes_that_it_uses() -> None:
    text = standalone_text(Source(arch(UNIT["igcv1"] | {"blocks": 1}), "x"))
    assert text.count("\nclass ") == 4  # ConvBlock, Igcv1Block, Classifier, Network
    assert "gcd" not in text
    assert "igcv1-l4" not in text
    plain = standalone_text(Source(arch(UNIT["conv"] | {"blocks": 1}), "x"))
    assert "interleave" not in plain.partition("\nINPUT")[2]


def test_the_file_states_its_origin_and_the_normalisation() -> None:
    candidate = STUDY.trial(2).candidate
    text = standalone_text(Source.of_trial(STUDY, STUDY.trial(2)))
    assert text.startswith(f"# trial 2 of test-study, id {candidate.id}\n")
    for fact in (f"{candidate.cost.params:,} parameters", "held-out error", "Written by igc-nas", "MIT"):
        assert fact in text
    assert "MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)\n" in text
    assert "MEAN" not in standalone_text(Source(candidate.arch, "x"))


@pytest.mark.parametrize("name", COMMENTS)
def test_a_hostile_name_stays_in_its_comment(name: str) -> None:
    _check_hostile(name)


@examples(50)
@given(st.text(max_size=60))
def test_any_name_stays_in_its_comment(name: str) -> None:
    _check_hostile(name)


def _check_hostile(name: str) -> None:
    text, plain = standalone_text(hostile(name)), standalone_text(hostile("x"))
    code = [line for line in text.split("\n") if not line.startswith("#")]
    assert code == [line for line in plain.split("\n") if not line.startswith("#")]
    assert text.replace("\n", "").isprintable()


# Run by itself.

SMALL = arch(UNIT["igcv1"] | {"blocks": 1, "residual": True}, UNIT["igcv3"] | {"blocks": 2, "stride": 2})


@pytest.fixture(scope="module")
def network() -> Network:
    return randomize_batchnorm_(build(SMALL, 0)).eval()


def test_the_file_is_verified_where_igc_nas_cannot_be_imported(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(standalone_text(Source(SMALL, "x")))
    assert verify_standalone(path, network) < 1e-6
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.py"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("import sys\n", "import sys\nimport igc_nas\n"), "the file imports igc_nas"),
        (("import sys\n", "import sys\n\x1b[2J"), "does not run by itself"),
        (("self.L)\n", "self.M)\n"), "computes another function"),
        (('"M": 3', '"M": 6'), "size mismatch|does not run"),
    ],
    ids=["imports", "no Python", "another function", "other parameters"],
)
def test_a_file_of_another_network_is_refused(
    change: tuple[str, str], message: str, network: Network, tmp_path: Path
) -> None:
    path = tmp_path / "model.py"
    text = standalone_text(Source(SMALL, "x"))
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(IgcNasError, match=message) as raised:
        verify_standalone(path, network)
    one_line(raised)


def test_a_file_that_takes_too_long_is_refused(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("while True:\n    pass\n")
    with pytest.raises(IgcNasError, match="did not answer within 1 s"):
        verify_standalone(path, network, timeout_s=1)


def test_the_file_runs_as_a_script(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(standalone_text(Source(SMALL, "x")))
    done = subprocess.run([sys.executable, "-I", str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{cost_of(SMALL).params:,} parameters, output (1, 5)\n"
