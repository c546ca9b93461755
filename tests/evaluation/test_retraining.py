"""A training to the end: what is stored, how it continues, what it refuses, when the test set is opened."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import igc_nas
from igc_nas.arch.config import ArchConfig
from igc_nas.data.datasets import locate
from igc_nas.errors import DivergedError, IgcNasError, StudyError, UsageError
from igc_nas.evaluation.images import Images
from igc_nas.evaluation.retraining import (
    CHECKPOINT_FILE,
    RESULT_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    Loader,
    Retraining,
    RetrainSpec,
)
from igc_nas.nn.device import Device, configure_torch, find_devices
from igc_nas.nn.lowering.pinned_forms import FORMS_FILE
from igc_nas.study.defaults import full_recipe
from igc_nas.study.finals import Trained, TrainingProgress
from tests.support.builders import one_line

CPU = find_devices("cpu")[0]
ARCH = ArchConfig.parse(
    {
        "input": (3, 8, 8),
        "stem": {"width": 8},
        "stage": [{"unit": "igcv1", "L": 4, "M": 4, "blocks": 1, "stride": 2}],
    }
)
OF_0_1 = '{"test_error": 0.1, "test_images": 3, "dataset": "shapes", "weights": "w"}'
RESULT_KEYS = {
    "test_error", "test_loss", "test_images", "dataset", "epochs", "seed", "id", "params", "macs", "flops",
    "activations", "trained", "weights",
}  # fmt: skip


def images(count: int, seed: int) -> Images:
    """Small images whose class shows in their brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 30, (count, 8, 8, 3), generator=generator) + (labels * 22)[:, None, None, None]
    return Images(pixels.to(torch.uint8), labels, torch.full((3,), 110.0), torch.full((3,), 70.0))


def made(folder: Path, arch: ArchConfig = ARCH, *, seed: int = 0, validate: int = 0, **recipe: Any) -> Retraining:
    """A training of three short epochs on a few small images in `folder`; nothing is written yet."""
    configure_torch(CPU, 1)
    info = locate("shapes")
    schedule = full_recipe("quick", 8, **({"epochs": 3, "batch": 16, "lr": 0.05, "average": 0.9} | recipe))
    what = {"arch": arch, "schedule": schedule, "dataset": info.label, "dataset_sha256": info.sha256}
    spec = RetrainSpec.parse(what | {"seed": seed, "validate": validate})
    return Retraining(spec, info, CPU, folder, None, lambda *_: images(64, seed=0), lambda *_: images(30, seed=1))


def opened(folder: Path, arch: ArchConfig = ARCH, **changes: Any) -> Retraining:
    """The same in its folder."""
    run = made(folder, arch, **changes)
    run.claim()
    return run


class Stop(BaseException):
    """A kill."""


def stopped_after(folder: Path, epoch: int, **loaders: Loader) -> None:
    """Train in `folder` until `epoch` epochs are done."""

    def report(progress: TrainingProgress) -> None:
        if progress.images == 64 * epoch:
            raise Stop

    with pytest.raises(Stop):
        replace(opened(folder), **loaders).train(report)


def stopped_at_step(folder: Path, step: int) -> None:
    """Train in `folder`, with a checkpoint after each step, until step `step` (from 0) would begin."""
    steps = 0

    def pause() -> None:
        nonlocal steps
        steps += 1
        if steps > step:
            raise Stop

    with pytest.raises(Stop):
        replace(opened(folder, forms="factored"), checkpoint_every_s=0.0, pause=pause).train()


def test_the_speed_is_that_of_steps_that_the_device_has_done(tmp_path: Path) -> None:
    """A GPU queues them: here each takes 20 ms, for which nobody waits but `synchronize`."""
    queued = 0

    class Queueing(Device):
        def synchronize(self) -> None:
            nonlocal queued
            time.sleep(0.02 * queued)
            queued = 0

    def queue() -> None:
        nonlocal queued
        queued += 1

    told: list[TrainingProgress] = []
    training = opened(tmp_path / "run", forms="factored")
    replace(training, device=Queueing("cpu", "cpu", CPU.name), pause=queue).train(told.append)
    assert all(progress.images_per_s <= 16 / 0.02 for progress in told)
    assert told[-1].images_per_s > 0


# Continuing.


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_training_that_was_stopped_ends_in_the_same_weights_bit_for_bit(epoch: int, tmp_path: Path) -> None:
    whole = opened(tmp_path / "whole").train()
    opened(tmp_path / "parts")
    shutil.copy(tmp_path / "whole" / FORMS_FILE, tmp_path / "parts")  # or else each chooses forms by its own timing
    stopped_after(tmp_path / "parts", epoch)
    assert not (tmp_path / "parts" / WEIGHTS_FILE).exists()
    told: list[TrainingProgress] = []
    parts = opened(tmp_path / "parts").train(told.append)
    assert told[0].images == 64 * epoch
    _same_end(tmp_path / "parts", tmp_path / "whole")
    assert _timeless(parts) == _timeless(whole)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 11])
def test_a_training_that_was_stopped_within_an_epoch_ends_in_the_same_weights_too(step: int, tmp_path: Path) -> None:
    whole = opened(tmp_path / "whole", forms="factored").train()
    stopped_at_step(tmp_path / "parts", step)
    stopped_at_step(tmp_path / "parts", 1)  # and again, a step later
    told: list[TrainingProgress] = []
    parts = opened(tmp_path / "parts", forms="factored").train(told.append)
    assert told[0].images == 16 * (step + 1)
    _same_end(tmp_path / "parts", tmp_path / "whole")
    assert _timeless(parts) == _timeless(whole)


def _same_end(one: Path, other: Path) -> None:
    assert (one / WEIGHTS_FILE).read_bytes() == (other / WEIGHTS_FILE).read_bytes()
    ours, theirs = load_file(one / CHECKPOINT_FILE), load_file(other / CHECKPOINT_FILE)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def _timeless(result: Trained) -> dict[str, Any]:
    return result.model_dump(exclude={"conditions", "train_s", "images_per_s"})


def test_held_out_images_are_watched_and_not_trained_on(tmp_path: Path) -> None:
    told: list[TrainingProgress] = []
    result = opened(tmp_path / "run", validate=20).train(told.append)
    assert told[-1].total == 3 * 32  # two batches of the other 44
    assert [point.held_out_error is not None for point in result.curve] == [True] * 3
    assert told[-1].held_out_error == result.curve[-1].held_out_error
    whole = opened(tmp_path / "whole").train()
    assert [point.held_out_error for point in whole.curve] == [None] * 3


def test_a_training_that_diverges_says_so_and_tests_nothing(tmp_path: Path) -> None:
    run = replace(opened(tmp_path / "run", lr=100.0, epochs=30, weight_decay=1.0), load_test=refuse)
    with pytest.raises(DivergedError, match="loss is"):
        run.train()
    assert not (tmp_path / "run" / RESULT_FILE).exists()


def test_the_speed_is_that_of_steps_and_leaves_no_training_behind(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    assert run.images_per_s() > 0
    assert {path.name for path in run.folder.iterdir()} - {"forms.lock"} == {RUN_FILE, "arch.toml", FORMS_FILE}


def refuse(*_: object) -> Images:
    raise AssertionError("no images are needed here")


def test_a_finished_training_returns_its_stored_result(tmp_path: Path) -> None:
    first = opened(tmp_path / "run").train()
    again = replace(opened(tmp_path / "run"), load_train=refuse, load_test=refuse)
    assert again.train() == first


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"test_error": null, "test_images": 3}',
        "[" * 5000,
        '{"test_error": 0.1, "test_images": 3, "dataset": "shapes", "weights": "w"}',
    ],
)
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
    trained = run.train()
    result = json.loads((tmp_path / "run" / RESULT_FILE).read_text())
    assert set(result) == RESULT_KEYS
    assert (result["dataset"], result["epochs"], result["seed"], result["test_images"]) == ("shapes", 3, 5, 30)
    assert result["test_error"] == trained.test.error
    assert result["params"] == igc_nas.cost_of(run.spec.arch).params
    assert len(trained.curve) == 3


def test_the_weights_are_those_of_the_architecture_beside_them(tmp_path: Path) -> None:
    result = opened(tmp_path / "run").train()
    model = igc_nas.create_model(tmp_path / "run", pretrained=True)
    assert sum(p.numel() for p in model.parameters()) == igc_nas.cost_of(ARCH).params
    test = images(30, seed=1)
    with torch.inference_mode():
        wrong = model.eval()(test.batch(torch.arange(30))).argmax(1) != test.labels
    assert wrong.float().mean().item() == pytest.approx(result.test.error)


def test_the_test_set_is_opened_once_and_last(tmp_path: Path) -> None:
    happened: list[str] = []

    def load_test(*_: object) -> Images:
        happened.append("test set")
        return images(30, seed=1)

    stopped_after(tmp_path / "run", 2, load_test=load_test)
    assert happened == []
    run = replace(opened(tmp_path / "run"), load_test=load_test)
    run.train(lambda progress: happened.append(f"{progress.images}"))
    assert list(dict.fromkeys(happened)) == ["128", "192", "test set"]
    assert happened[-1] == "test set"


# Refused.


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"epochs": 4}, "schedule.epochs: 4 asked for, 3 there"),
        ({"batch": 32}, "schedule.batch: 32"),
        ({"lr": 0.1}, "schedule.lr: 0.1"),
        ({"cutout": 2}, "schedule.cutout: 2"),
        ({"validate": 5}, "validate: 5"),
        ({"dtype": "bfloat16"}, "schedule.dtype: bfloat16"),
        ({"label_smoothing": 0.2}, "schedule.label_smoothing: 0.2"),
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


def test_a_training_that_was_killed_while_it_made_its_folder_begins_again(tmp_path: Path) -> None:
    """The files are written one after the other, each as a temporary one first."""
    folder = opened(tmp_path / "run").folder
    (folder / ".igc-nas-0123456789abcdef.tmp").write_text("seed")
    for lost in (["arch.toml"], ["arch.toml", RUN_FILE]):
        for name in lost:
            (folder / name).unlink()
        opened(folder)
        assert {"arch.toml", RUN_FILE} <= {path.name for path in folder.iterdir()}


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


@pytest.mark.parametrize("image", [(1, 8, 8), (3, 8, 16), (4, 8, 8)])
def test_an_architecture_for_other_images_is_refused(image: tuple[int, int, int], tmp_path: Path) -> None:
    arch = ArchConfig.parse(ARCH.to_dict() | {"input": image})
    with pytest.raises(UsageError, match="input") as raised:
        opened(tmp_path / "run", arch)
    one_line(raised)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What a training leaves after its first epoch."""
    folder = tmp_path_factory.mktemp("one")
    stopped_after(folder / "run", 1)
    return load_file(folder / "run" / CHECKPOINT_FILE)


def test_without_a_damaged_checkpoint_a_training_starts_again(tmp_path: Path) -> None:
    """Each kind of damage is tried in test_bad_weights.py."""
    run = opened(tmp_path / "run")
    (run.folder / CHECKPOINT_FILE).write_bytes(b"not a checkpoint\n" * 10)
    with pytest.raises(StudyError, match="cannot be used") as raised:
        run.train()
    assert CHECKPOINT_FILE in one_line(raised)
    assert raised.value.hint == "move it away to start this training again"
    assert not (run.folder / WEIGHTS_FILE).exists()
    (run.folder / CHECKPOINT_FILE).unlink()
    assert len(run.train().curve) == 3


def test_an_undamaged_checkpoint_is_used(checkpoint: dict[str, torch.Tensor], tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    save_file(checkpoint, run.folder / CHECKPOINT_FILE)
    assert len(run.train().curve) == 2  # it has no curve, as those of 0.1
