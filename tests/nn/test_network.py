"""A network has the parameters, MACs and names of its plan, and computes the papers' functions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.errors import ConfigError
from igc_nas.nn.factory import create_model, load_weights
from igc_nas.nn.flop_counters import count_by_others, torch_flops
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.training import LoweredNetwork
from igc_nas.nn.lowering.variants import uniform_variants
from igc_nas.nn.network import build, interleave
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import Feasible
from igc_nas.space.search_space import SearchSpace
from igc_nas.study.lookup import load_architecture
from tests.support.builders import one_line, taken
from tests.support.shares import some
from tests.support.tensors import relative_error

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
    feasible, rng = Feasible(SearchSpace.load(space), Budget()), np.random.default_rng(seed)
    return [feasible.draw(rng) for _ in range(count)]


def counts_agree(arch: ArchConfig) -> bool:
    network, cost = build(arch, device="meta").eval(), cost_of(arch)
    return sum(p.numel() for p in network.parameters()) == cost.params and torch_flops(network, arch) == cost.flops


@pytest.mark.parametrize("space", ["tiny", "igc_cifar"])
def test_parameters_and_flops_are_torchs(space: str) -> None:
    for arch in drawn(space, 6, seed=1):
        assert counts_agree(arch), arch


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_parameters_and_flops_are_torchs_for_thousands(space: str) -> None:
    for arch in drawn(space, 1000, seed=2):
        assert counts_agree(arch), arch


@pytest.mark.parametrize("space", some(SPACES, "tiny", "igc_cifar"))
def test_macs_are_ptflops(space: str) -> None:
    for arch in drawn(space, 6, seed=3):
        found = count_by_others(arch)
        assert found["ptflops_macs"] == cost_of(arch).macs
        assert found["agree"]


@pytest.mark.parametrize("wrong", ["params", "macs"])
def test_a_wrong_count_does_not_agree(wrong: str) -> None:
    arch = ArchConfig.parse(SMALL)
    cost = cost_of(arch)
    assert count_by_others(arch, cost)["agree"]
    assert not count_by_others(arch, replace(cost, **{wrong: getattr(cost, wrong) + 1}))["agree"]


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


@pytest.mark.parametrize("change", ["dtype", "less", "more", "shape"])
def test_the_first_tensor_that_differs_is_named_in_the_network_s_order(change: str, tmp_path) -> None:
    network = build(ArchConfig.parse(SMALL), 0)
    tensors = network.state_dict()
    name = "stage2.block1.norm1.bias"
    match change:
        case "dtype":
            tensors[name] = tensors[name].long()
        case "less":
            del tensors[name]
        case "more":
            tensors[name := "zz.weight"] = torch.zeros(2)
        case "shape":
            for wrong in (name, "stage3.block1.project.weight"):
                tensors[wrong] = tensors[wrong][:3].clone()
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=rf"another architecture: {name} is ") as raised:
        load_weights(network, tmp_path / "w.safetensors")
    assert ("of int64" in one_line(raised)) is (change == "dtype")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("stage1.block3.select.index", 32, "selects channels beyond the 32 that there are"),
        ("stage1.block3.select.index", -1, "selects channels beyond the 32 that there are"),
        ("stage2.block1.norm1.running_var", -0.5, "has negative variances"),
    ],
)
def test_weights_that_no_network_has_are_named(name: str, value: float, words: str, tmp_path) -> None:
    tensors = create_model("condensenet-50", seed=0).state_dict()
    tensors[name][3] = value
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError) as raised:
        create_model("condensenet-50", weights=tmp_path / "w.safetensors")
    assert one_line(raised) == f"w.safetensors holds weights that no network has: {name} {words}"


def test_half_precision_weights_are_taken(tmp_path) -> None:
    network = build(ArchConfig.parse(SMALL), 0)
    save_file(
        {k: v.bfloat16() if v.is_floating_point() else v for k, v in network.state_dict().items()}, tmp_path / "w"
    )
    other = build(ArchConfig.parse(SMALL), 1)
    load_weights(other, tmp_path / "w")
    assert other.stem.conv.weight.dtype == torch.float32
    torch.testing.assert_close(other.stem.conv.weight, network.stem.conv.weight, rtol=1e-2, atol=1e-2)


def test_damaged_weights_are_refused_in_one_line_or_still_fit(tmp_path) -> None:
    network, rng = build(ArchConfig.parse(SMALL), 0), np.random.default_rng(0)
    whole, path = save(network.state_dict()), tmp_path / "w.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(150):
        content = bytearray(whole)
        if rng.random() < 0.3:
            content = content[: rng.integers(len(content))]
        else:
            for at in rng.integers(header if rng.random() < 0.8 else len(content), size=3):
                content[at] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        taken(lambda: load_weights(network, path))


def test_a_checkpoint_and_other_classes_have_a_hint(tmp_path) -> None:
    arch = ArchConfig.parse(SMALL)
    path = tmp_path / "w.safetensors"
    save_file({f"model.{k}": v for k, v in build(arch, 0).state_dict().items()}, path)
    with pytest.raises(ConfigError) as raised:
        create_model(arch, weights=path)
    assert "looks like a checkpoint" in raised.value.hint
    save_file(build(arch.with_classes(100), 0).state_dict(), path)
    with pytest.raises(ConfigError) as raised:
        create_model(arch, weights=path)
    assert "they are of 100 classes (num_classes=100)" in raised.value.hint
    assert create_model(arch, num_classes=100, weights=path).num_classes == 100


# The surface of timm's models.


def test_features_and_head_make_the_network() -> None:
    model = create_model(ArchConfig.parse(SMALL), num_classes=7, seed=0).eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 16, 16)
    assert torch.equal(model.forward_head(features), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(model.get_classifier()(pooled), model(x))
    assert isinstance(model.get_classifier(), nn.Linear)
    assert (model.num_classes, model.num_features) == (7, 16)


@pytest.mark.parametrize("name", ["igcv3-d-cifar", "igcv1-l4m8-d8-res", "igcv2-c16-k8-d8", "regconv-w16-d8"])
def test_feature_info_is_what_the_stages_write(name: str) -> None:
    model, x = create_model(name, seed=0).eval(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        written = {}
        for module, _ in model.named_children():
            x = written[module] = model.get_submodule(module)(x)
    stages = [f"stage{i}" for i in range(1, len(load_architecture(name).stages) + 1)]
    assert [info["module"] for info in model.feature_info] == stages
    for info in model.feature_info:
        _, channels, height, _ = written[info["module"]].shape
        assert (info["num_chs"], info["reduction"]) == (channels, 64 // height)
    assert model.num_features == model.get_classifier().in_features


def test_the_classifier_can_be_reset_and_taken_away() -> None:
    model = create_model(ArchConfig.parse(SMALL), seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.reset_classifier(23)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 23)
    assert list(model.state_dict()) == list(before)
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("classifier") and "running" not in k}
    assert all(torch.equal(v, before[k]) for k, v in kept.items() if "num_batches" not in k)
    assert model.training
    assert model.classifier.training
    model.eval().reset_classifier(0)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), model.forward_features(x).mean((2, 3)))
    assert (model.num_classes, model.num_features) == (0, 16)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert not model.classifier.training
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)
    for wrong in (-1, 1.5, True, "3", 10**9):
        with pytest.raises(ConfigError, match="num_classes is a number"):
            model.reset_classifier(wrong)


def test_a_reset_network_is_lowered_and_deployed_as_any_other() -> None:
    arch = ArchConfig.parse(SMALL)
    model = create_model(arch, seed=0)
    model.reset_classifier(23)
    x = torch.randn(2, 3, 32, 32)
    lowered = LoweredNetwork(model.eval(), model.plan, {}, torch.float32)
    assert relative_error(lowered(x), model(x)) < 1e-4
    with torch.inference_mode():
        for variant in uniform_variants(model.plan):
            module = variant.module(model, 2, TimingCache(), "onnxruntime")
            assert relative_error(module(x), model(x)) < 1e-4
    assert uniform_variants(model.plan)[0].params == sum(p.numel() for p in model.parameters())


def test_num_classes_and_classes_are_one_thing(tmp_path) -> None:
    arch = ArchConfig.parse(SMALL)
    for asked in ({"num_classes": 5}, {"classes": 5}, {"num_classes": 5, "classes": 5}):
        assert create_model(arch, **asked).num_classes == 5
    with pytest.raises(ConfigError, match="mean the same"):
        create_model(arch, num_classes=5, classes=6)
    with pytest.raises(ConfigError, match="classes"):
        create_model(arch, num_classes=-5)
    save_file(build(arch, 0).state_dict(), tmp_path / "w.safetensors")
    model = create_model(arch, num_classes=0, weights=tmp_path / "w.safetensors").eval()
    whole = create_model(arch, weights=tmp_path / "w.safetensors").eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), whole.forward_head(whole.forward_features(x), pre_logits=True))


def test_ordinary_training_code_runs() -> None:
    model = create_model(ArchConfig.parse(SMALL), num_classes=3, seed=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, labels = torch.randn(12, 3, 16, 16), torch.arange(12) % 3
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
