"""A folder of images on the command line: shown, searched, trained on, and its study continued."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from igc_nas.cli.study_flags import SearchRequest, resolve_study
from igc_nas.engine.search import Run, search
from igc_nas.errors import DataError, StudyError, UsageError
from igc_nas.nn.device import Device
from tests.support.commands import Command, refused
from tests.support.images import image_folder
from tests.support.searches import evaluate

STUB = Device("cpu", "cpu", "stub")


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IGC_NAS_DATA", str(tmp_path / "data"))
    return image_folder(tmp_path / "pets", (20, 20, 20))


def request(**given: object) -> SearchRequest:
    return SearchRequest(**({"space": "tiny", "dataset": "pets", "data_dir": Path("data")} | given))  # type: ignore[arg-type]


def test_data_shows_a_folder(pets: Path, cli: Command) -> None:
    (pets / "cat" / "bad.png").write_bytes(b"x")
    text = cli("data", "pets").text
    assert "61 of 3 classes" in text
    assert "cat/bad.png: no image of a format that is read" in text
    assert "would be 60 x 3 x 32 x 32" in text
    assert not Path("data").exists()
    facts = cli("data", "./pets", "--json", "--image-size", 16).json
    assert facts["classes"][0] == {"name": "cat", "train": 21, "test": 0}
    assert (facts["unusable"], facts["packed_in"]) == (1, None)


def test_data_packs_a_folder(pets: Path, cli: Command) -> None:
    facts = cli("data", "pets", "--pack", "--json").json
    assert facts["dataset"].startswith("folder:pets (32 px, sha256:")
    assert np.load(Path(facts["packed_in"]) / "train_images.npy").shape == (48, 3, 32, 32)
    assert "packed is" in cli("data", "pets").text


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("data", "nowhere"), 2, "unknown dataset"),
        (("data", "./nowhere"), 5, "No such file"),
        (("data", "pets", "--from", "x"), 2, "are for cifar10"),
        (("data", "cifar10", "--pack"), 2, "for a folder of images"),
        (("data", "pets/cat"), 5, "has no folder"),
        (("data", "pets", "--image-size", "2"), 2, "from 4 to 1024"),
        (("search", "--dataset", "nowhere"), 2, "folder of images"),
        (("search", "--dataset", "pets/cat"), 5, "has no folder"),
        (("search", "--dataset", "shapes", "--image-size", "64"), 2, "32 x 32"),
        (("search", "--dataset", "pets", "--image-size", "x"), 2, "--image-size"),
        (("train", "igcv1-l24m2-d20", "--dataset", "./nowhere"), 5, "No such file"),
        (("cost", "igcv1-l24m2-d20", "--image-size", "3"), 2, "strides multiply to 4"),
        (("space", "tiny", "--image-size", "2"), 2, "strides multiply to 4"),
    ],
)
def test_wrong_folders_and_sizes_get_one_line(
    pets: Path, cli: Command, arguments: tuple[str, ...], status: int, words: str
) -> None:
    refused(cli(*arguments), status, words)


def test_costs_at_another_size(cli: Command) -> None:
    at = {size: cli("cost", "igcv1-l24m2-d20", "--image-size", size, "--json").json for size in (32, 64)}
    assert at[64]["params"] == at[32]["params"]
    assert 3.9 < at[64]["macs"] / at[32]["macs"] <= 4
    assert at[64]["arch"]["input"] == [3, 64, 64]
    assert cli("space", "tiny", "--image-size", 64, "--json").json["file"]["input"] == [3, 64, 64]


def test_a_study_is_continued_without_its_folder(pets: Path) -> None:
    found = resolve_study(request(image_size=28), STUB)
    assert found.spec.latency.input == (3, 28, 28)
    list(search(found.spec, Run(found.folder, trials=2), evaluate=evaluate))
    for again in (
        request(image_size=28),
        request(space=None, dataset=None, study_name=found.spec.name),
        request(study_name=found.spec.name, dataset="auto"),
    ):
        assert resolve_study(again, STUB).continued
    pets.rename("moved")
    same = resolve_study(request(study_name=found.spec.name, dataset="moved"), STUB)
    assert (same.continued, same.info.label) == (True, found.spec.dataset)
    with pytest.raises(StudyError, match="28 x 28 pixels, not 32"):
        resolve_study(request(study_name=found.spec.name, dataset="moved", image_size=32), STUB)
    image_folder(Path("moved"), (9,), ("bird",))
    with pytest.raises(StudyError, match="dataset_sha256"):
        resolve_study(request(study_name=found.spec.name, dataset="moved"), STUB)
    with pytest.raises(DataError, match="are not packed in"):
        resolve_study(request(study_name=found.spec.name, dataset=None, data_dir=Path("elsewhere")), STUB)


def test_the_size_is_that_of_the_space(pets: Path) -> None:
    file = Path("space.toml")
    file.write_text("input = [3, 24, 24]\n[stem]\nwidth = 8\n[[stage]]\nblocks = [1, 2]\n[stage.conv]\nwidth = 8\n")
    assert resolve_study(request(space=str(file)), STUB).info.side == 24
    file.write_text("input = [3, 2, 2]\n[stem]\nwidth = 8\n[[stage]]\nblocks = 1\n[stage.conv]\nwidth = 8\n")
    with pytest.raises(UsageError, match="from 4 to 1024"):
        resolve_study(request(space=str(file)), STUB)


@pytest.mark.slow
def test_a_training_and_its_export_know_the_classes(pets: Path, cli: Command) -> None:
    Path("net.toml").write_text("[stem]\nwidth = 8\n[[stage]]\nunit = 'conv'\nwidth = 8\nblocks = 1\n")
    done = cli("train", "net.toml", "--dataset", "pets", "--image-size", 12, "--epochs", 1, "--forms", "factored",
               "-o", "m", "--device", "cpu", "--threads", 1, "--json")  # fmt: skip
    assert done.json["images"]["classes"] == ["cat", "dog", "fish"]
    assert done.json["test_images"] == 12
    exported = cli("export", "m", "-o", "net.py")
    assert exported.status == 0, exported.err
    scope: dict[str, object] = {"__name__": "net"}
    exec(Path("net.py").read_text(), scope)  # noqa: S102 - our own export
    assert (scope["INPUT"], scope["CLASSES"]) == ((3, 12, 12), ("cat", "dog", "fish"))
    assert scope["MEAN"] == tuple(done.json["images"]["mean"])


@pytest.mark.slow
def test_a_search_as_it_is_typed(pets: Path) -> None:
    command = [sys.executable, "-m", "igc_nas", "search", "--space", "tiny", "--dataset", "pets", "--image-size", "28",
               "--trials", "1", "--workers", "1", "--device", "cpu", "--forms", "factored", "--json"]  # fmt: skip
    environment = os.environ | {"COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["completed"] == 1
    assert "48 training and 12 test images of 3 classes, 28 x 28 pixels" in done.stderr
