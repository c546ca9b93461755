"""The network is a map over the plan: what it holds and what it computes is what the plan and its cost say."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from igc_nas.architecture import load_architecture
from igc_nas.check import count_by_others, torch_flops
from igc_nas.config import ArchConfig
from igc_nas.cost import cost_of
from igc_nas.errors import ConfigError
from igc_nas.feasible import Feasible
from igc_nas.network import build, create_model, interleave, load_weights
from igc_nas.space import SearchSpace

SPACES = ("igc_cifar", "igcv1_cifar", "igcv2_cifar", "igcv3_cifar", "tiny")
SMALL = {
    "stem": {"width": 8},
    "stage": [
        {"unit": "igcv1", "L": 4, "M": 4, "blocks": 2},
        {"unit": "igcv2", "width": 24, "depth": 4, "blocks": 1, "stride": 2, "residual": True},
        {"unit": "igcv3", "width": 16, "expand": 3, "G1": 4, "G2": 2, "blocks": 3, "kernel": 5},
    ],
}


def drawn(space: str, count: int, seed: int) -> list[ArchConfig]:
    feasible, rng = Feasible(SearchSpace.load(space)), np.random.default_rng(seed)
    return [feasible.draw(rng) for _ in range(count)]


def counts_agree(arch: ArchConfig) -> bool:
    network, cost = build(arch, device="meta").eval(), cost_of(arch)
    return sum(p.numel() for p in network.parameters()) == cost.params and torch_flops(network, arch) == cost.flops


@pytest.mark.parametrize("space", SPACES)
def test_parameters_and_flops_are_torchs(space: str) -> None:
    for arch in drawn(space, 80, seed=1):
        assert counts_agree(arch), arch


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_parameters_and_flops_are_torchs_for_thousands(space: str) -> None:
    for arch in drawn(space, 1000, seed=2):
        assert counts_agree(arch), arch


@pytest.mark.parametrize("space", SPACES)
def test_macs_are_ptflops(space: str) -> None:
    for arch in drawn(space, 6, seed=3):
        found = count_by_others(arch)
        assert found["ptflops_macs"] == cost_of(arch).macs
        assert found["agree"]


def test_the_check_notices_a_wrong_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igc_nas.check.torch_flops", lambda network, arch: 2 * cost_of(arch).macs + 2)
    assert not count_by_others(ArchConfig.parse(SMALL))["agree"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_interleave_is_channel_shuffle_in_either_memory_format(groups: int, memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 12, 5, 3).contiguous(memory_format=memory_format)
    y = interleave(x, groups)
    assert torch.equal(y, torch.nn.ChannelShuffle(groups)(x.contiguous()))
    assert y.is_contiguous(memory_format=memory_format)


def test_a_state_dict_has_the_plans_names() -> None:
    names = set(build(ArchConfig.parse(SMALL)).state_dict())
    assert {"stem.conv.weight", "stage1.block2.secondary.weight", "classifier.linear.bias"} <= names
    assert {
        "stage2.block1.pointwise1_3.weight",
        "stage2.block1.shortcut.weight",
        "stage3.block3.expand_norm.bias",
    } <= names


def test_a_residual_block_adds_its_input() -> None:
    arch = ArchConfig.parse(SMALL)
    block = build(arch, seed=0).eval().get_submodule("stage3.block2")
    torch.nn.init.zeros_(block.get_submodule("project").weight)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(x), x)


def test_igcv1_block_is_the_papers_product() -> None:
    """x' = P W^d P^T W^p x, with the permutations as matrices (IGCV1, eq. 3), on one pixel."""
    arch = ArchConfig.parse(
        {"stem": {"width": 6}, "stage": [{"unit": "igcv1", "L": 3, "M": 2, "blocks": 1, "kernel": 1}]}
    )
    block = build(arch, seed=1).double().get_submodule("stage1.block1")
    primary = torch.block_diag(*block.get_submodule("primary").weight.view(3, 2, 2))
    secondary = torch.block_diag(*block.get_submodule("secondary").weight.view(2, 3, 3))
    permute = torch.eye(6, dtype=torch.double)[[i * 2 + j for j in range(2) for i in range(3)]]
    x = torch.randn(6, dtype=torch.double)
    expected = permute.T @ secondary @ permute @ primary @ x
    block.get_submodule("norm").eval()
    got = block(x.view(1, 6, 1, 1)).flatten() * (1 + 1e-5) ** 0.5
    assert torch.allclose(got, expected.relu())


def test_seeds_decide_the_weights() -> None:
    arch = ArchConfig.parse(SMALL)
    one, same, other = (build(arch, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.conv.weight"], other["stem.conv.weight"])


@pytest.mark.parametrize("name", ["igcv1-l4m8-d8-res", "igcv2-c16-k8-d8", "igcv3-d-cifar", "regconv-w16-d8"])
def test_papers_networks_run(name: str) -> None:
    model = create_model(name, classes=7, seed=0).eval()
    with torch.inference_mode():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_create_model_takes_a_file_and_weights(tmp_path) -> None:
    (tmp_path / "arch.toml").write_text(ArchConfig.parse(SMALL).to_toml())
    model = create_model(tmp_path / "arch.toml", seed=3).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    again = create_model(tmp_path / "arch.toml", weights=tmp_path / "weights.safetensors").eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), again(x))


def test_weights_of_another_architecture_are_named(tmp_path) -> None:
    save_file(build(load_architecture("igcv1-l4m8-d8")).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"w\.safetensors holds weights of another architecture: \S+ is"):
        load_weights(build(ArchConfig.parse(SMALL)), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x80\x04K\x01.", b"{}", (8).to_bytes(8, "little") + b'{"a": 1}', b"\xff" * 64]
)
def test_junk_is_no_weights(content: bytes, tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_weights(build(ArchConfig.parse(SMALL)), path)


def test_missing_weights_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        create_model("igcv1-l4m8-d8", weights=tmp_path / "nowhere.safetensors")
