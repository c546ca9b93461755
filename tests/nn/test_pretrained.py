"""timm's arguments of `create_model`: `pretrained`, `in_chans`, `drop_rate`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.data.datasets import normalisation
from igc_nas.engine.search import Run, search
from igc_nas.errors import ConfigError, StudyError
from igc_nas.nn.factory import create_model
from igc_nas.nn.network import Network
from igc_nas.study.finals import FinalsLog
from igc_nas.study.lookup import load_architecture
from tests.study.test_finals import final
from tests.support.searches import evaluate, spec

NAME = "igcv1-l8m2-d8"
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def same(one: Network, other: Network) -> bool:
    mine, yours = one.state_dict(), other.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


def trained(folder: Path, network: Network, arch: str) -> Path:
    """The folder of a training that has ended with the weights of `network`."""
    folder.mkdir(parents=True)
    (folder / "arch.toml").write_text(load_architecture(arch).to_toml())
    (folder / "run.toml").write_text("")
    (folder / "result.json").write_text(json.dumps({"dataset": "cifar10", "test_error": 0.1}))
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder


def test_a_trainings_folder_is_a_trained_network(tmp_path: Path) -> None:
    own = create_model(NAME, seed=1)
    folder = trained(tmp_path / "own", own, NAME)
    for pretrained in (None, True):
        loaded = create_model(folder, pretrained=pretrained)
        assert same(loaded, own)
        assert (loaded.pretrained_cfg["mean"], loaded.pretrained_cfg["std"]) == normalisation("cifar10")
    assert same(create_model(folder, pretrained=False, seed=2), create_model(NAME, seed=2))
    assert create_model(folder, pretrained=True, num_classes=7).num_classes == 7
    (folder / "weights.safetensors").unlink()
    assert same(create_model(folder, seed=2), create_model(NAME, seed=2))
    with pytest.raises(ConfigError, match=r"no weights in .*own"):
        create_model(folder, pretrained=True)


def test_a_trial_is_pretrained_by_its_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "studies" / "made"
    (candidate,) = search(spec(name="made"), Run(folder, trials=1), evaluate=evaluate)
    with pytest.raises(ConfigError, match="no final of made:0") as raised:
        create_model("made:0", pretrained=True)
    assert "igc-nas finals made --pick trial:0" in str(raised.value.hint)
    with pytest.raises(StudyError, match="no trial 9"):
        create_model("made:9", pretrained=True)
    record = final(0.2).model_copy(update={"arch": candidate.arch, "id": arch_id(candidate.arch), "trial": 0})
    FinalsLog(folder).add(record)
    with pytest.raises(ConfigError, match="weights of the final of made:0 are not in") as raised:
        create_model("made:0", pretrained=True)
    assert "igc-nas train made:0 --dataset shapes -o models/own" in str(raised.value.hint)
    own = create_model("made:0", seed=5)
    trained(record.folder(folder), own, "made:0")
    assert same(create_model("made:0", pretrained=True), own)


def test_who_demands_weights_that_are_not_there_is_told_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no weights of {NAME}: igc-nas hosts none") as raised:
        create_model(NAME, pretrained=True)
    assert f"igc-nas train {NAME} -o models/own" in str(raised.value.hint)
    with pytest.raises(ConfigError, match="is not an architecture"):
        create_model("nosuch", pretrained=True)
    with pytest.raises(ConfigError, match="of an ArchConfig"):
        create_model(load_architecture(NAME), pretrained=True)
    own = create_model(NAME, seed=1)
    save_file(own.state_dict(), tmp_path / "w.safetensors")
    assert same(create_model(NAME, pretrained=True, weights=tmp_path / "w.safetensors"), own)


def test_images_of_other_channels(tmp_path: Path) -> None:
    """A network is counted as it is built, and of one or twice the channels it computes the same of equal ones."""
    arch = load_architecture(NAME)
    own = create_model(arch, seed=1).eval()
    folder = trained(tmp_path / "own", own, NAME)
    grey = X[:, :1]
    for count in (1, 4, 6):
        network = create_model(folder, in_chans=count).eval()
        assert sum(p.numel() for p in network.parameters()) == cost_of(arch.with_channels(count)).params
        assert network.pretrained_cfg["input_size"] == (count, 32, 32)
        assert network.pretrained_cfg["mean"] is None
        if count != 4:
            torch.testing.assert_close(network(grey.expand(-1, count, -1, -1)), own(grey.expand(-1, 3, -1, -1)))
    four, rgb = (model.stem.conv.weight for model in (create_model(folder, in_chans=4), own))
    torch.testing.assert_close(four, rgb[:, [0, 1, 2, 0]] * 3 / 4)
    torch.testing.assert_close(create_model(folder, in_chans=6).eval()(torch.cat([X, X], 1)), own(X))
    assert same(create_model(folder, in_chans=3), own)
    for wrong in (0, -1, 1025, True, "3"):
        with pytest.raises(ConfigError, match="in_chans is a number from 1"):
            create_model(arch, in_chans=wrong)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", [NAME, "mobilenetv3-small"])
def test_features_are_dropped_in_training_before_the_last_linear_layer(name: str) -> None:
    plain, dropping = create_model(name, seed=1), create_model(name, seed=1, drop_rate=0.25)
    assert same(plain, dropping)
    x = X if plain.plan.input[1] == 32 else torch.randn(2, *plain.plan.input)
    features = plain.eval().forward_features(x)
    assert torch.equal(dropping.eval()(x), plain(x)), "not in evaluation"
    kept = plain.forward_head(features, pre_logits=True)
    left = dropping.train().forward_head(features, pre_logits=True)
    is_dropped = left == 0
    torch.testing.assert_close(left[~is_dropped], kept[~is_dropped] / 0.75)
    assert 0.15 < (is_dropped & (kept != 0)).float().mean() / (kept != 0).float().mean() < 0.35
    dropping.reset_classifier(5)
    assert dropping.drop_rate == 0.25
    assert not torch.equal(dropping.forward_head(features), dropping.forward_head(features))
    for wrong in (-0.1, 1.0, float("nan"), "0.1", None):
        with pytest.raises(ConfigError, match="drop_rate"):
            create_model(name, drop_rate=wrong)  # type: ignore[call-overload]
