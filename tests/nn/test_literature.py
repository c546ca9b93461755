"""The literature's networks in torch: counted by others, trained for a step, with timm's methods."""

import pytest
import torch
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.named import network
from igc_nas.nn.flop_counters import count_by_others
from igc_nas.nn.network import Block, build
from tests.support.shares import some
from tests.support.tensors import relative_error

FAMILIES = (
    "plain8", "resnet8-a", "resnet8-b", "se-resnet8", "se-resnet8-nobias", "preresnet8", "se-preresnet164", "wrn-10-1",
    "se-wrn10-1", "wrn-10-2-bsconv-s", "resnet8-bsconv-u", "resnext11-4x8d", "densenet-10-4", "densenet-bc-16-4",
    "condensenet-8", "mobilenetv1-x0.25", "mobilenetv1-bs-x0.25", "mobilenetv2-x0.25", "mobilenetv2-kuangliu",
    "mobilenetv2-igcv3-gdc", "mobilenetv3-small", "mobilenetv3-large-bs-x0.25", "mobilenetv3-small-imagenet", "dpn26",
    "dualpathnet10-1", "shufflenetv1-g2", "shufflenetv1-g3-wei", "shufflenetv2-x0.5", "xception", "mobilefacenet-112",
    "alexnet-groups-imagenet",
)  # fmt: skip
LARGE = ("xception", "alexnet-groups-imagenet", "dpn26", "se-preresnet164")
"""Not worth the time of a training step on a CPU at their own image size, or at all."""

FEW = ("se-resnet8", "densenet-bc-16-4", "condensenet-8", "mobilenetv3-small", "shufflenetv2-x0.5", "dualpathnet10-1")
"""One for each kind of block, in the normal suite."""


@pytest.mark.parametrize("name", some(FAMILIES, *FEW))
def test_torch_and_ptflops_count_the_same(name: str) -> None:
    found = count_by_others(network(name).arch)
    assert found["agree"], (found, cost_of(network(name).arch))


def small(name: str) -> ArchConfig:
    """The network with 4 classes, for images of 32 pixels where its own are larger and its head allows it."""
    arch = network(name, 4).arch
    return arch if arch.input[1] == 32 else arch.with_side(64)


@pytest.mark.parametrize("name", some((name for name in FAMILIES if name not in LARGE), *FEW))
def test_a_training_step_reaches_every_parameter(name: str) -> None:
    arch = small(name)
    model, generator = build(arch, seed=0).train(), torch.Generator().manual_seed(1)
    x, labels = torch.randn(4, *arch.input, generator=generator), torch.arange(4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    assert torch.isfinite(loss)
    silent = {name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()}
    assert not silent
    moved = [p.grad.abs().max().item() > 0 for p in model.parameters() if p.grad is not None]
    assert sum(moved) > 0.9 * len(moved)
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    after = model.state_dict()
    assert set(after) == set(before)
    assert any(not torch.equal(after[key], before[key]) for key in after)
    assert torch.isfinite(model.eval()(x)).all()


@pytest.mark.parametrize("name", ["densenet-10-4", "mobilenetv3-small", "mobilenetv2-igcv3-gdc", "condensenet-8"])
def test_timm_methods(name: str) -> None:
    model = build(network(name).arch, seed=0).eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features
    assert relative_error(model.forward_head(features), model(x)) < 1e-5
    inputs = model.forward_head(features, pre_logits=True)
    assert relative_error(model.get_classifier()(inputs), model(x)) < 1e-5
    last = model.feature_info[-1]
    assert last["reduction"] in (4, 8, 16)
    kept = {key: value for key, value in model.state_dict().items() if "linear" not in key}
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.num_classes == 3
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in kept.items()), "hidden layers stay"
    model.reset_classifier(0)
    assert relative_error(model(x), inputs) < 1e-5


def test_an_embedding_has_no_classifier_until_one_is_asked_for() -> None:
    model = build(network("mobilefacenet-112").arch, device="meta")
    x = torch.empty(2, 3, 112, 112, device="meta")
    assert model(x).shape == (2, 128)
    assert model.num_classes == 0
    model.reset_classifier(10)
    assert model(x).shape == (2, 10)
    assert model.num_classes == 10


def test_names_in_a_state_dict() -> None:
    def names(name: str) -> set[str]:
        return set(build(network(name).arch, device="meta").state_dict())

    assert {"stage1.block1.se.reduce.weight", "stage2.block1.shortcut_norm.bias"} <= names("se-resnet8")
    assert {"stage2.block1.transition.weight", "stage1.block2.reduce.weight"} <= names("densenet-bc-16-4")
    assert {"stage1.block1.select.index", "classifier.select.index"} <= names("condensenet-8")
    assert {"head.gdc.weight", "head.gdc_norm.weight"} <= names("mobilenetv2-igcv3-gdc")
    assert {"classifier.hidden1.weight", "classifier.linear.bias"} <= names("mobilenetv3-small")


def test_a_dual_path_block_is_its_definition() -> None:
    """DPN's first block: 256 channels summed, 16 of the shortcut and 16 of the body appended, then ReLU."""
    block = build(network("dpn26").arch, seed=0).double().eval().get_submodule("stage1.block1")
    assert isinstance(block, Block)
    x = torch.randn(1, 64, 4, 4, dtype=torch.double)

    def of(name: str, y: torch.Tensor) -> torch.Tensor:
        return block.get_submodule(name)(y)

    y = F.relu(of("norm1", of("reduce", x)))
    y = F.relu(of("norm2", of("conv", y)))
    body, shortcut = of("norm3", of("expand", y)), of("shortcut_norm", of("shortcut", x))
    whole = torch.cat([body[:, :256] + shortcut[:, :256], shortcut[:, 256:], body[:, 256:]], 1).relu()
    assert torch.allclose(block(x), whole)
    assert whole.shape[1] == 256 + 2 * 16
