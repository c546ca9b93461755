"""An exported folder: written atomically, with a complete model card and the network's weights."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import igc_nas
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import arch_id
from igc_nas.errors import ConfigError, IgcNasError, StudyError, UsageError
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.evaluation.retraining import RESULT_FILE, WEIGHTS_FILE
from igc_nas.exports.destination import MARKER, check_destination
from igc_nas.exports.folder import check_weights, weights_bytes, write_folder
from igc_nas.exports.graph import Graph, Timing
from igc_nas.exports.model_card import Contents, OnnxSummary, card_text
from igc_nas.exports.source import Source, TrainingResult
from igc_nas.exports.weights import loaded
from igc_nas.nn.network import Network, build
from tests.support.builders import one_line
from tests.support.exports import STUDY, hostile
from tests.support.hostile import COMMENTS
from tests.support.studies import CONDITIONS

ARCH = ArchConfig.parse(
    {
        "input": (3, 12, 12),
        "stem": {"width": 8},
        "stage": [{"unit": "igcv1", "L": 4, "M": 2, "blocks": 2, "residual": True}],
    }
)
TRAINED = TrainingResult(id=arch_id(ARCH), test_error=0.0621, test_images=10_000, dataset="cifar10", epochs=30, seed=4)
SOURCE = Source(ARCH, "arch.toml")
GRAPH = Graph("onnx", b"a graph", "dense", 9_876, 765_432, 3.2e-7, None, 20)


@pytest.fixture
def network() -> Network:
    return randomize_batchnorm_(build(ARCH, 0)).eval()


write_unverified = partial(write_folder, verify=lambda *_: 0.0)
"""Without the process that runs the stand-alone file."""


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


# The folder.


def test_a_folder_with_trained_weights_has_all_files(network: Network, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, replace(SOURCE, trained=TRAINED), network, True, GRAPH)
    assert names(out) == {"config.toml", "config.json", "model.py", "model.safetensors", "model.onnx", "README.md"}
    assert names(tmp_path) == {"out"}
    model = igc_nas.create_model(out).eval()
    x = torch.randn(2, *ARCH.input)
    with torch.inference_mode():
        assert torch.equal(model(x), network(x))
    card = (out / "README.md").read_text()
    for fact in (
        f"# Network {arch_id(ARCH)}",
        "| test error | 6.21 % | on 10,000 images of cifar10 after 30 epochs, seed 4 |",
        "| `model.onnx`: parameters | 9,876 |",
        "`model.py` equal",
        "`model.onnx` relative error 3.2e-07",
        "normalised per channel with the mean (0.4914, 0.4822, 0.4465)",
        'load_weights(Network(), "model.safetensors")',
    ):
        assert fact in card
    assert "UNTRAINED" not in card


def test_a_folder_is_laid_out_for_the_hugging_face_hub(network: Network, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, replace(SOURCE, trained=TRAINED), network, True, GRAPH)
    _, matter, text = (out / "README.md").read_text().split("---\n", 2)
    assert text.lstrip().startswith("# Network")
    for line in ("license: mit", "pipeline_tag: image-classification", "library_name: igc-nas", "- cifar10"):
        assert line in matter.splitlines()
    config = json.loads((out / "config.json").read_text())
    assert ArchConfig.parse(config["architecture"]) == ARCH
    assert (config["num_classes"], config["id"]) == (ARCH.classes, arch_id(ARCH))
    cfg = igc_nas.create_model(out, num_classes=3).pretrained_cfg
    assert (tuple(cfg["input_size"]), cfg["num_classes"], cfg["first_conv"]) == (ARCH.input, 3, "stem.conv")
    assert cfg["mean"] == config["pretrained_cfg"]["mean"] == [0.4914, 0.4822, 0.4465]
    assert igc_nas.create_model(ARCH).default_cfg["mean"] is None
    (out / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json is not one"):
        igc_nas.create_model(out)
    (out / "config.json").unlink()
    (out / "model.safetensors").rename(out / "weights.safetensors")  # as an earlier version wrote it
    assert igc_nas.create_model(out).pretrained_cfg["std"] is None
    check_destination(out, True)


def test_a_folder_without_weights_says_so(network: Network, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_unverified(out, SOURCE, network, False, None, "the extra is missing (pip install 'igc-nas[onnx]')")
    assert names(out) == {"config.toml", "config.json", "model.py", "README.md"}
    card = (out / "README.md").read_text()
    assert "**UNTRAINED: the weights are random; predictions are meaningless.**" in card
    assert "There is no `model.onnx`: the extra is missing (pip install 'igc-nas\\[onnx\\]')." in card
    assert "igc-nas train config.toml" in card


def test_a_folder_of_images_that_no_training_has_names_no_training(tmp_path: Path) -> None:
    arch = ArchConfig.parse(SOURCE.arch.to_dict() | {"input": [1, 12, 10]})
    write_unverified(tmp_path / "out", Source(arch, "a"), build(arch, 0).eval(), False, None, "there are no weights")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "igc-nas train config.toml" not in card
    assert "writes this folder with weights" in card


class Unprintable(Timing):
    """A time that the card cannot show."""

    def __str__(self) -> str:
        raise IgcNasError("the disk is full")


def fails(*_: object) -> float:
    raise IgcNasError("the disk is full")


@pytest.mark.parametrize("at", ["model.py", "README.md"])
def test_a_failure_leaves_nothing_or_the_old_folder(at: str, network: Network, tmp_path: Path) -> None:
    """At the verification of model.py, and at the last file."""
    out = tmp_path / "out"
    timing = Unprintable(1.0, 1.0, 1.0, 9, 1, "", CONDITIONS, ())
    write = write_unverified if at == "README.md" else partial(write_folder, verify=fails)
    for old in (False, True):
        with pytest.raises(IgcNasError, match="the disk is full"):
            write(out, SOURCE, network, True, replace(GRAPH, timing=timing, data=b"new"))
        assert names(tmp_path) == ({"out"} if old else set())
        if not old:
            write_unverified(out, SOURCE, network, True, GRAPH)
    assert (out / "model.onnx").read_bytes() == GRAPH.data


def test_weights_that_read_back_differently_are_refused(network: Network, tmp_path: Path) -> None:
    right = weights_bytes(network)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(right)
    check_weights(path, network)
    for wrong in (right[:-4] + b"\x00\x00\x80?", weights_bytes(build(ARCH, 9))):
        path.write_bytes(wrong)
        with pytest.raises(IgcNasError, match="reads back as another tensor"):
            check_weights(path, network)


def test_an_exported_folder_is_replaced_and_no_other(network: Network, tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_destination(out, False)
    write_unverified(out, SOURCE, network, True, GRAPH)
    refused(out, False, "exists")
    check_destination(out, True)
    write_unverified(out, SOURCE, network, False, None)
    assert names(out) == {"config.toml", "config.json", "model.py", "README.md"}
    (out / "thesis.tex").write_text("mine")
    refused(out, True, "'thesis.tex', which igc-nas export does not write")
    (out / "thesis.tex").unlink()
    (out / "config.toml").write_text("mine")
    refused(out, True, "not a folder of igc-nas export")


def test_other_files_and_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", True, "is not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", True, "not a folder of igc-nas export")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "link", False, "exists")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "config.toml").write_bytes(b"\xff" * 9)
    refused(tmp_path / "binary", True, "not a folder of igc-nas export")
    (tmp_path / "nested" / "README.md").mkdir(parents=True)
    refused(tmp_path / "nested", True, "'README.md'")


def refused(path: Path, force: bool, message: str) -> None:
    before = sorted(path.rglob("*")) if path.is_dir() else None
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        check_destination(path, force)
    one_line(raised)
    assert before is None or sorted(path.rglob("*")) == before


def test_the_marker_is_the_config_s_first_line(network: Network, tmp_path: Path) -> None:
    write_unverified(tmp_path / "out", SOURCE, network, False, None)
    assert (tmp_path / "out" / "config.toml").read_text().startswith(f"{MARKER}\n# arch.toml, id ")


# The card.


def contents(**changes: Any) -> Contents:
    return replace(Contents({"config.toml": 9}, {"model.py": 0.0}, True), **changes)


def test_a_card_separates_the_search_s_numbers_from_those_of_the_weights() -> None:
    trial = STUDY.trial(1)
    candidate = trial.candidate
    card = card_text(Source.of_trial(STUDY, trial), contents())
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in card.splitlines() if line.startswith("| ")}
    assert "| not known |" in rows["test error"]
    assert f"{100 * candidate.score.error:.2f} %" in rows["held-out error"]
    assert "of the search, not of these weights: on 2,000 held-out images of cifar10" in rows["held-out error"]
    assert f"{candidate.latency.normalised_ms:.3f} ms" in rows["latency, normalised"]
    assert "on Test CPU" in rows["latency, normalised"]
    assert f"(raw: {candidate.latency.median_ms:.3f} ms)" in rows["latency, normalised"].replace("\\", "")
    assert "stem's channels" in html.unescape(card).replace("\\", "")
    timing = "1.50 ms (95 % interval 1.4 to 1.6, n = 51) in ONNX Runtime 1.31, batch 1, 1 thread, on a CPU"
    card = card_text(SOURCE, contents(onnx=OnnxSummary("dense", 1, 2, timing, 20)))
    assert "| 1.50 ms | 95 % interval 1.4 to 1.6, n = 51, in ONNX Runtime 1.31, batch 1, 1 thread, on a CPU |" in card


@pytest.mark.parametrize("name", COMMENTS)
def test_a_hostile_name_is_escaped_in_the_card(name: str) -> None:
    card = card_text(hostile(name), contents())
    plain = card_text(hostile("x"), contents())
    assert len(card.splitlines()) == len(plain.splitlines())
    assert "<script" not in card
    assert card.replace("\n", "").isprintable()


def test_a_card_warns_of_synthetic_images() -> None:
    assert "synthetic" in card_text(replace(SOURCE, trained=replace(TRAINED, dataset="shapes")), contents())
    assert "synthetic" not in card_text(SOURCE, contents())


# The weights.


@pytest.fixture
def training(tmp_path: Path, network: Network) -> Path:
    """The folder of a training."""
    where = tmp_path / "training"
    where.mkdir()
    save_file(network.state_dict(), where / WEIGHTS_FILE)
    (where / "arch.toml").write_text(ARCH.to_toml())
    result(where)
    return where


def result(where: Path, **changes: Any) -> None:
    found = {"id": arch_id(ARCH), "test_error": 0.0621, "test_images": 10_000, "dataset": "cifar10", "epochs": 30}
    (where / RESULT_FILE).write_text(json.dumps(found | {"seed": 4, "weights": "somewhere"} | changes))


@pytest.mark.parametrize("name", ["", WEIGHTS_FILE])
def test_weights_come_with_the_result_of_their_training(name: str, training: Path, network: Network) -> None:
    source, found = loaded(SOURCE, training / name, 0)
    assert source.trained == TRAINED
    assert not found.training
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), network.parameters(), strict=True))


def test_a_weights_file_of_another_name_has_no_result(training: Path) -> None:
    (training / WEIGHTS_FILE).rename(training / "mine.safetensors")
    assert loaded(SOURCE, training / "mine.safetensors", 0)[0].trained is None
    with pytest.raises(StudyError, match=r"has no weights\.safetensors") as raised:
        loaded(SOURCE, training, 0)
    one_line(raised)
    assert "continues it" in raised.value.hint


def test_without_weights_the_network_is_initialised_from_the_seed() -> None:
    assert torch.equal(next(loaded(SOURCE, None, 7)[1].parameters()), next(build(ARCH, 7).parameters()))


def test_weights_of_another_function_with_the_same_shapes_are_refused(training: Path) -> None:
    """Other strides have the same tensors."""
    strided = ArchConfig.parse(ARCH.to_dict() | {"stem": {"width": 8, "stride": 2}})
    with pytest.raises(ConfigError, match="its tensors have the same shapes, but it computes another") as raised:
        loaded(Source(strided, "strided.toml"), training, 0)
    one_line(raised)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 9000, '{"id": 3}', '{"test_error": NaN}'])
def test_a_damaged_result_is_refused(text: str, training: Path) -> None:
    (training / RESULT_FILE).write_text(text)
    with pytest.raises(StudyError, match=r"result\.json is damaged") as raised:
        loaded(SOURCE, training, 0)
    one_line(raised)


@pytest.mark.parametrize("changes", [{"test_error": 1.5}, {"test_error": "0"}, {"test_images": 0}, {"dataset": None}])
def test_a_wrong_result_is_refused(changes: dict[str, Any], training: Path) -> None:
    result(training, **changes)
    with pytest.raises(StudyError, match=r"result\.json is damaged"):
        loaded(SOURCE, training, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, training: Path) -> None:
    tensors = load_file(training / WEIGHTS_FILE)
    tensors["stage1.block1.norm1.bias"][0] = value
    save_file(tensors, training / WEIGHTS_FILE)
    with pytest.raises(ConfigError, match=r"not finite, the first in stage1\.block1\.norm1\.bias"):
        loaded(SOURCE, training, 0)
