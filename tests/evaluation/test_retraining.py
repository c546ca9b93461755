"""Retraining: what is stored after each epoch, how it continues, what it refuses, when the test set is opened."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import igc_nas
from igc_nas.arch.config import ArchConfig
from igc_nas.errors import DataError, IgcNasError, StudyError, UsageError
from igc_nas.evaluation.images import Images
from igc_nas.evaluation.retraining import (
    CHECKPOINT_FILE,
    RESULT_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    Loader,
    Retraining,
    RetrainOptions,
)
from igc_nas.nn.lowering.pinned_forms import FORMS_FILE
from tests.support.builders import one_line

ARCH = ArchConfig.parse(
    {
        "input": (3, 8, 8),
        "classes": 7,
        "stem": {"width": 8},
        "stage": [{"unit": "igcv1", "L": 4, "M": 4, "blocks": 1, "stride": 2}],
    }
)
RESULT_KEYS = {
    "test_error", "test_loss", "test_images", "dataset", "epochs", "seed", "id", "params", "macs", "flops",
    "activations", "conditions", "weights",
}  # fmt: skip


def images(count: int, seed: int) -> Images:
    """Small images whose class shows in their brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 30, (count, 8, 8, 3), generator=generator) + (labels * 22)[:, None, None, None]
    return Images(pixels.to(torch.uint8), labels, torch.full((3,), 110.0), torch.full((3,), 70.0))


def opened(folder: Path, arch: ArchConfig = ARCH, **changes: Any) -> Retraining:
    """A training of three short epochs on a few small images in `folder`."""
    options = {"dataset": "shapes", "device": "cpu", "epochs": 3, "batch": 16, "lr": 0.05, "out": folder}
    options |= {"dtype": "float32"} | changes
    return replace(
        Retraining.open(arch, RetrainOptions(**options)),
        load_train=lambda *_: images(64, seed=0),
        load_test=lambda *_: images(30, seed=1),
    )


class Stop(Exception):  # noqa: N818
    """Ctrl-C."""


def stopped_after(folder: Path, epoch: int, **loaders: Loader) -> None:
    """Train in `folder` until `epoch` epochs are done."""

    def say(line: str) -> None:
        if line.startswith(f"epoch {epoch}/"):
            raise Stop

    with pytest.raises(Stop):
        replace(opened(folder), **loaders).train(say)


# Continuing.


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_training_that_was_stopped_ends_in_the_same_weights_bit_for_bit(epoch: int, tmp_path: Path) -> None:
    whole = opened(tmp_path / "whole").train()
    opened(tmp_path / "parts")
    shutil.copy(tmp_path / "whole" / FORMS_FILE, tmp_path / "parts")  # or else each chooses forms by its own timing
    stopped_after(tmp_path / "parts", epoch)
    assert not (tmp_path / "parts" / WEIGHTS_FILE).exists()
    said: list[str] = []
    parts = opened(tmp_path / "parts").train(said.append)
    assert said[0] == f"continuing after epoch {epoch}"
    assert len(said) == 1 + 3 - epoch
    for name in (WEIGHTS_FILE, CHECKPOINT_FILE):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert _timeless(parts) == _timeless(whole)


def _timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("conditions", "weights")}


def refuse(*_: object) -> Images:
    raise AssertionError("no images are needed here")


def test_a_finished_training_returns_its_stored_result(tmp_path: Path) -> None:
    first = opened(tmp_path / "run").train()
    again = replace(opened(tmp_path / "run"), load_train=refuse, load_test=refuse)
    assert again.train() == first


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"test_error": null, "test_images": 3}', "[" * 5000])
def test_a_damaged_result_is_refused_and_can_be_computed_again(text: str, tmp_path: Path) -> None:
    first = opened(tmp_path / "run").train()
    (tmp_path / "run" / RESULT_FILE).write_text(text)
    with pytest.raises(StudyError, match=r"result\.json is damaged") as raised:
        opened(tmp_path / "run").train()
    one_line(raised)
    (tmp_path / "run" / RESULT_FILE).unlink()
    assert _timeless(opened(tmp_path / "run").train()) == _timeless(first)


def test_the_seed_decides_a_training(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        opened(tmp_path / name, seed=seed, forms="factored").train()
        weights.append((tmp_path / name / WEIGHTS_FILE).read_bytes())
    assert weights[0] == weights[1] != weights[2]


# The result.


def test_a_result_names_its_dataset_epochs_seed_and_costs(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", seed=5)
    result = run.train()
    assert set(result) == RESULT_KEYS
    assert json.loads((tmp_path / "run" / RESULT_FILE).read_text()) == result
    assert (result["dataset"], result["epochs"], result["seed"], result["test_images"]) == ("shapes", 3, 5, 30)
    assert 0 <= result["test_error"] <= 1
    assert result["params"] == igc_nas.cost_of(run.spec.arch).params
    assert run.spec.arch.classes == 10


def test_the_weights_are_those_of_the_architecture_beside_them(tmp_path: Path) -> None:
    result = opened(tmp_path / "run").train()
    model = igc_nas.create_model(tmp_path / "run" / "arch.toml")
    model.load_state_dict(load_file(result["weights"]))
    assert sum(p.numel() for p in model.parameters()) == result["params"]
    test = images(30, seed=1)
    with torch.inference_mode():
        wrong = model.eval()(test.batch(torch.arange(30))).argmax(1) != test.labels
    assert wrong.float().mean().item() == pytest.approx(result["test_error"])


def test_the_test_set_is_opened_once_and_last(tmp_path: Path) -> None:
    happened: list[str] = []

    def load_test(*_: object) -> Images:
        happened.append("test set")
        return images(30, seed=1)

    stopped_after(tmp_path / "run", 2, load_test=load_test)
    assert happened == []
    run = replace(opened(tmp_path / "run"), load_test=load_test)
    run.train(lambda line: happened.append(line.split("  ")[0]))
    assert happened == ["continuing after epoch 2", "epoch 3/3", "test set"]


def test_the_introduction_names_data_schedule_and_folder(tmp_path: Path) -> None:
    lines = "\n".join(opened(tmp_path / "run").introduction())
    for fact in ("shapes, the whole training set", "3 epochs, batch 16, lr 0.05", str(tmp_path / "run"), "Ctrl-C"):
        assert fact in lines
    assert "SYNTHETIC" not in lines


def test_synthetic_data_are_announced(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", dataset="auto", data_dir=tmp_path / "data")
    assert "SYNTHETIC" in "\n".join(run.introduction())


def test_the_folder_is_named_after_network_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = opened(tmp_path, out=None)
    assert run.folder == Path("models") / f"{igc_nas.arch_id(run.spec.arch)}-shapes"
    assert {path.name for path in run.folder.iterdir()} == {RUN_FILE, "arch.toml"}


# Refused.


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"epochs": 4}, "schedule.epochs: 4 asked for, 3 there"),
        ({"batch": 32}, "schedule.batch: 32"),
        ({"lr": 0.1}, "schedule.lr: 0.1"),
        ({"dtype": "bfloat16"}, "schedule.dtype: bfloat16"),
        ({"label_smoothing": 0.1}, "schedule.label_smoothing: 0.1"),
        ({"seed": 1}, "seed: 1"),
    ],
)
def test_another_spec_in_the_folder_is_refused_by_the_field_that_differs(
    changes: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    opened(tmp_path / "run")
    with pytest.raises(StudyError, match="holds another training") as raised:
        opened(tmp_path / "run", **changes)
    assert difference in one_line(raised)
    assert opened(tmp_path / "run").folder == tmp_path / "run"


def test_another_architecture_in_the_folder_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "run")
    wider = ArchConfig.parse(ARCH.to_dict() | {"stem": {"width": 16}})
    with pytest.raises(StudyError, match=r"arch\.stem\.width: 16 asked for, 8"):
        opened(tmp_path / "run", wider)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StudyError, match="not empty and holds no training") as raised:
        opened(tmp_path)
    one_line(raised)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(IgcNasError) as raised:
            opened(folder)
        assert "file" in one_line(raised)


def test_a_damaged_run_file_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "run")
    for text in ("", "seed = [", "\x00", 'seed = "0"'):
        (tmp_path / "run" / RUN_FILE).write_text(text)
        with pytest.raises(IgcNasError) as raised:
            opened(tmp_path / "run")
        assert raised.value.message.isprintable()


def test_missing_data_and_wrong_values_are_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    for changes, error in (
        ({"dataset": "cifar10", "data_dir": tmp_path / "data"}, DataError),
        ({"dataset": "mnist"}, UsageError),
        ({"device": "tpu"}, UsageError),
        ({"epochs": 0}, UsageError),
        ({"dtype": "float16"}, UsageError),
    ):
        with pytest.raises(error) as raised:
            opened(tmp_path / "run", **changes)
        one_line(raised)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image", [(1, 8, 8), (3, 8, 16), (4, 8, 8)])
def test_an_architecture_for_other_images_is_refused(image: tuple[int, int, int], tmp_path: Path) -> None:
    arch = ArchConfig.parse(ARCH.to_dict() | {"input": image})
    with pytest.raises(UsageError, match="input") as raised:
        opened(tmp_path / "run", arch)
    one_line(raised)
    assert list(tmp_path.iterdir()) == []


Damage = Callable[[dict[str, torch.Tensor]], bytes]


def without(name: str) -> Damage:
    return lambda tensors: save({key: value for key, value in tensors.items() if key != name})


def changed(name: str, value: torch.Tensor) -> Damage:
    return lambda tensors: save(tensors | {name: value})


DAMAGES: dict[str, Damage] = {
    "empty": lambda _: b"",
    "text": lambda _: b"not a checkpoint\n" * 10,
    "a pickle": lambda _: b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
    "cut in the header": lambda tensors: save(tensors)[:50],
    "cut in the tensors": lambda tensors: save(tensors)[:-1],
    "too long": lambda tensors: save(tensors) + b"\x00",
    "a header of 2**60 bytes": lambda tensors: (2**60).to_bytes(8, "little") + save(tensors)[8:],
    "a broken header": lambda tensors: save(tensors).replace(b"{", b"[", 1),
    "no tensors": lambda _: save({}),
    "no epoch": without("done"),
    "no generator": without("generator"),
    "a weight less": lambda tensors: without(min(k for k in tensors if k.startswith("model.")))(tensors),
    "only weights": lambda tensors: save({k: v for k, v in tensors.items() if k.startswith("model.")}),
    "another network": lambda tensors: save(tensors | {"model.other.weight": torch.zeros(3)}),
    "a weight of another shape": lambda tensors: save(
        {k: torch.zeros(5) if k.startswith("model.") and v.dim() == 4 else v for k, v in tensors.items()}
    ),
    "momentum of another shape": lambda tensors: save(
        {k: torch.zeros(5) if k.startswith("momentum.") else v for k, v in tensors.items()}
    ),
    "momentum of another type": lambda tensors: save(
        {k: v.double() if k.startswith("momentum.") else v for k, v in tensors.items()}
    ),
    "no momentum": lambda tensors: save({k: v for k, v in tensors.items() if not k.startswith("momentum.")}),
    "a short generator": changed("generator", torch.zeros(3, dtype=torch.uint8)),
    "a generator of floats": changed("generator", torch.zeros(5056)),
    "two epochs": changed("done", torch.tensor([1, 2])),
    "an epoch before the first": changed("done", torch.tensor(-1)),
    "an epoch after the last": changed("done", torch.tensor(4)),
    "an epoch that is no number": changed("done", torch.tensor(float("nan"))),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What a training leaves after its first epoch."""
    folder = tmp_path_factory.mktemp("one")
    stopped_after(folder / "run", 1)
    return load_file(folder / "run" / CHECKPOINT_FILE)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_a_hint(
    damage: Damage, checkpoint: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run = opened(tmp_path / "run")
    (run.folder / CHECKPOINT_FILE).write_bytes(damage(checkpoint))
    with pytest.raises(StudyError, match="cannot be used") as raised:
        run.train()
    assert CHECKPOINT_FILE in one_line(raised)
    assert raised.value.hint == "move it away to start this training again"
    assert not (run.folder / WEIGHTS_FILE).exists()
    (run.folder / CHECKPOINT_FILE).unlink()
    assert run.train()["epochs"] == 3


def test_an_undamaged_checkpoint_is_used(checkpoint: dict[str, torch.Tensor], tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    save_file(checkpoint, run.folder / CHECKPOINT_FILE)
    assert run.train()["epochs"] == 3
