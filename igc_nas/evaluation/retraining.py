"""Trains one architecture from scratch to the end, then tests it once.

A folder holds the training: run.toml (its spec), arch.toml, checkpoint.safetensors (written every `CHECKPOINT_EVERY_S`
seconds and after each epoch), and at the end weights.safetensors and result.json. A training that was interrupted, in
whatever way, goes on from its checkpoint; on one thread of one machine it then ends in the same bits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import check_input, cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.data.datasets import DatasetInfo
from igc_nas.errors import ConfigError, DivergedError, StudyError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.images import Images, load_test, load_train
from igc_nas.evaluation.training import Pause, Training
from igc_nas.io.files import is_temporary, read_text, write_whole
from igc_nas.io.records import Frozen, differences, parse_toml
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.network_tuner import NetworkTuner, TrainingForm
from igc_nas.nn.lowering.pinned_forms import PinnedForms
from igc_nas.nn.lowering.timing_cache import timing_cache_for
from igc_nas.nn.network import Network, build
from igc_nas.study.finals import TestScore, Trained, TrainingProgress
from igc_nas.study.records import Epoch, Fraction
from igc_nas.study.spec import Schedule

RUN_FILE, ARCH_FILE, CHECKPOINT_FILE, WEIGHTS_FILE, RESULT_FILE = (
    "run.toml",
    "arch.toml",
    "checkpoint.safetensors",
    "weights.safetensors",
    "result.json",
)
CHECKPOINT_EVERY_S = 30.0
"""Most seconds of training that a kill costs."""
REPORT_EVERY_S = 1.0
RECALIBRATION_IMAGES = 10_000
"""Training images from which the final BN statistics are recomputed (Wu and Johnson 2021, arXiv 2105.07576: 10^3 to
10^4 suffice)."""
TIMED_STEPS = 4
SPEED_OVER = 0.9
"""The weight of the past in the running average of the seconds of a step."""


class RetrainSpec(Frozen):
    """What determines a training; stored as run.toml."""

    arch: ArchConfig
    schedule: Schedule
    dataset: str
    dataset_sha256: str
    seed: int
    validate_images: Annotated[int, Field(alias="validate", ge=0)] = 0
    """Training images that are held out, and watched after each epoch; 0: all are trained on."""


class StoredResult(BaseModel):
    """The keys of result.json that are needed when a training is already finished."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    test_error: Fraction
    test_images: Annotated[int, Field(ge=1, lt=2**63)]
    dataset: str
    weights: str
    trained: dict[str, Any] | None = None
    """As `Trained` has it; None in the files of 0.1."""


class _Progress(Frozen):
    """The part of a checkpoint that is no tensor: the curve so far, and the seconds of all runs."""

    curve: Annotated[tuple[Epoch, ...], Field(strict=False)] = ()
    train_s: float = 0.0


Loader = Callable[[DatasetInfo, int, torch.device], Images]
"""Reads one split at a resolution onto a device."""
Report = Callable[[TrainingProgress], None]


@dataclass(frozen=True)
class Retraining:
    """A training in `folder`, on `device`. `forms_folder` keeps the forms that networks train in; None: `folder`."""

    spec: RetrainSpec
    info: DatasetInfo
    device: Device
    folder: Path
    forms_folder: Path | None = None
    load_train: Loader = load_train
    load_test: Loader = load_test
    pause: Pause = field(default=lambda: None)
    checkpoint_every_s: float = CHECKPOINT_EVERY_S

    def claim(self, limit: int | None = None) -> None:
        """Create the folder, or make sure that it holds this training.

        `limit`, the most parameters that may be deployed, is kept in arch.toml, see `arch.config.deployed_limit`.
        Raises `UsageError` for a network of other images, `StudyError` for a folder that holds another training or
        other files.
        """
        check_input(self.spec.arch)
        for name in (CHECKPOINT_FILE, WEIGHTS_FILE, RESULT_FILE):
            if ((path := self.folder / name).exists() or path.is_symlink()) and not path.is_file():
                raise StudyError(f"{path} is not a file", "move it away, or choose another folder")
        path = self.folder / RUN_FILE
        if path.is_file():
            self._check_same(path)
        else:
            self._begin(path)
        if not (self.folder / ARCH_FILE).is_file():  # written last: whoever died before it begins again here
            write_whole(self.folder / ARCH_FILE, self.spec.arch.to_toml(limit))

    def _begin(self, path: Path) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"{self.folder}: {error.strerror or error}", "choose another folder with -o") from None
        if not all(entry.suffix in (".lock", ".owner") or is_temporary(entry) for entry in self.folder.iterdir()):
            raise StudyError(f"{self.folder} is not empty and holds no training", "choose another folder with -o")
        import tomli_w

        write_whole(path, tomli_w.dumps(_plain(self.spec)))

    def _check_same(self, path: Path) -> None:
        try:
            theirs = RetrainSpec.parse(parse_toml(read_text(path), path.name), path.name)
        except ConfigError as error:
            raise StudyError(error.message, "choose another folder with -o") from None
        different = list(differences(_plain(self.spec), _plain(theirs), where="there"))
        if different:
            raise StudyError(
                f"{self.folder} holds another training: {'; '.join(different[:4])}", "choose another folder with -o"
            )

    @property
    def is_finished(self) -> bool:
        """Whether it has a result."""
        return (self.folder / RESULT_FILE).is_file()

    @cached_property
    def train_images(self) -> tuple[Images, Images | None]:
        """(the images to train on, those that are held out)."""
        whole = self.load_train(self.info, self.spec.arch.input[1], self.device.torch_device)
        return whole.split(self.spec.validate_images, self.spec.seed) if self.spec.validate_images else (whole, None)

    def images_per_s(self) -> float:
        """The speed of this training here, from a few steps on noise; the forms are chosen before, and pinned."""
        schedule, side = self.spec.schedule, self.spec.arch.input[1]
        network = self._network()
        noise = torch.randint(256, (schedule.batch, side, side, 3), dtype=torch.uint8)
        labels = torch.arange(schedule.batch) % self.spec.arch.classes
        ones = torch.full((3,), 64.0)
        to = self.device.torch_device
        images = Images(noise.to(to), labels.to(to), 2 * ones.to(to), ones.to(to))
        trial = schedule.model_copy(update={"epochs": TIMED_STEPS + 1})
        training = Training(network, images, trial, self.device, 0, self._lowered(network))
        seconds = []
        for _ in range(TIMED_STEPS + 1):
            self.pause()
            began = time.perf_counter()
            training.epoch()
            self.device.synchronize()
            seconds.append(time.perf_counter() - began)
        return schedule.batch / (sum(seconds[1:]) / TIMED_STEPS)

    def train(self, report: Report = lambda _: None) -> Trained:
        """Train to the last epoch, from the checkpoint if there is one; then test once, and write weights and result.

        If the folder holds a result, the training is finished and the test set is not opened again. Raises
        `DivergedError`, and `StudyError` for a damaged folder.
        """
        if self.is_finished:
            return stored_result(self.folder)
        network = self._network()
        lowered = self._lowered(network)
        train, held_out = self.train_images
        training = Training(network, train, self.spec.schedule, self.device, self.spec.seed, lowered)
        run = _Run(self, training, held_out, self._restore(training), report)
        while training.done < self.spec.schedule.epochs:
            run.epoch()
        return self._finish(training, run, "factored" if lowered is None else lowered.form)

    def _network(self) -> Network:
        network = build(self.spec.arch, self.spec.seed)
        return network.to(self.device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _lowered(self, network: Network) -> TrainingForm | None:
        """The network in its fastest form, chosen at the first start and pinned; None: factored."""
        schedule, threads = self.spec.schedule, torch.get_num_threads()
        if schedule.forms == "factored":
            return None
        cache = timing_cache_for(self.device.name, threads, "training")
        pins = PinnedForms(self.forms_folder or self.folder)
        return NetworkTuner(schedule, self.spec.arch.input[1], self.device, cache, pins, self.pause)(
            network, arch_id(self.spec.arch)
        )

    def _finish(self, training: Training, run: _Run, form: str) -> Trained:
        training.adopt_average()
        training.recalibrate(self.pause, RECALIBRATION_IMAGES)
        test = self.load_test(self.info, self.spec.arch.input[1], self.device.torch_device)
        error, loss = training.evaluate(test, self.pause)
        if not math.isfinite(loss):
            raise DivergedError(f"the test loss is {loss}", "lower lr in the recipe")
        train_s, images = run.train_s, self.spec.schedule.epochs * training.steps_per_epoch * training.batch
        trained = Trained(
            test=TestScore(error=error, loss=loss, images=len(test)),
            curve=tuple(run.curve),
            train_s=round(train_s, 3),
            images_per_s=round(images / train_s, 1) if train_s else 0.0,
            form=form,
            conditions=conditions_of(self.device),
        )
        weights = self.folder / WEIGHTS_FILE
        write_whole(weights, save(_contiguous(training.network.state_dict())))
        result = {
            "test_error": error,
            "test_loss": loss,
            "test_images": len(test),
            "dataset": self.info.label,
            "epochs": training.done,
            "seed": self.spec.seed,
            "id": arch_id(self.spec.arch),
            **cost_of(self.spec.arch).as_dict(),
            **({"images": self.info.images.model_dump(mode="json")} if self.info.images else {}),
            "trained": trained.model_dump(mode="json", exclude_none=True),
            "weights": str(weights),
        }
        write_whole(self.folder / RESULT_FILE, json.dumps(result, indent=2, allow_nan=False) + "\n")
        return trained

    def _restore(self, training: Training) -> _Progress:
        path = self.folder / CHECKPOINT_FILE
        if not path.is_file():
            return _Progress()
        try:
            with safe_open(path, framework="pt") as file:
                training.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                return _Progress.model_validate_json((file.metadata() or {}).get("progress", "{}"))
        except (SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StudyError(
                f"{path} cannot be used: {str(error).splitlines()[0]:.160}", "move it away to start this training again"
            ) from None

    def save_checkpoint(self, training: Training, curve: list[Epoch], train_s: float) -> None:
        """Write the state of the training whole: tensors, and the rest as JSON in the file's header."""
        progress = _Progress(curve=tuple(curve), train_s=round(train_s, 3)).model_dump_json(exclude_none=True)
        write_whole(self.folder / CHECKPOINT_FILE, save(_contiguous(training.state()), {"progress": progress}))


class _Run:
    """The epochs of one run of a training: checkpoints, reports, the curve."""

    def __init__(
        self, retraining: Retraining, training: Training, held_out: Images | None, before: _Progress, report: Report
    ) -> None:
        self.retraining = retraining
        self.training = training
        self.held_out = held_out
        self.curve = list(before.curve)
        self.report = report
        self._before_s = before.train_s
        self._began = self._timed_at = self._saved = time.monotonic()
        self._timed_steps = training.steps_done
        self._reported = -math.inf
        self._step_s = 0.0
        self._tell()

    @property
    def train_s(self) -> float:
        """Seconds of all runs so far."""
        return self._before_s + time.monotonic() - self._began

    def epoch(self) -> None:
        """Train one epoch, or the rest of one."""
        self._timed_at = time.monotonic()
        point = self.training.epoch(self.retraining.pause, self._after_step)
        self._time_steps()
        if self.held_out is not None:
            error, _ = self.training.score(self.held_out, self.retraining.pause)
            point = point.model_copy(update={"held_out_error": error})
        self.curve.append(point)
        self._save()
        self._tell()

    def _after_step(self, _: int) -> None:
        now = time.monotonic()
        is_to_save = now - self._saved >= self.retraining.checkpoint_every_s
        is_to_tell = now - self._reported >= REPORT_EVERY_S
        if is_to_save or is_to_tell:
            self._time_steps()
        if is_to_save:
            self._save()
        if is_to_tell:
            self._tell()

    def _time_steps(self) -> None:
        """Average the seconds of the steps since the last time. A GPU has not done those that are queued: it waits."""
        self.retraining.device.synchronize()
        now, done = time.monotonic(), self.training.steps_done
        if steps := done - self._timed_steps:
            step_s, past = (now - self._timed_at) / steps, SPEED_OVER**steps
            self._step_s = past * self._step_s + (1 - past) * step_s if self._step_s else step_s
        self._timed_at, self._timed_steps = now, done

    def _save(self) -> None:
        self._check_loss()
        self.retraining.save_checkpoint(self.training, self.curve, self.train_s)
        self._saved = self._timed_at = time.monotonic()

    def _check_loss(self) -> None:
        """Raise `DivergedError` before the end of a long epoch that cannot be saved any more."""
        loss = self.training.running_loss
        if loss is not None and not math.isfinite(loss):
            raise DivergedError(f"the training loss is {loss} in epoch {self.training.done + 1}", "lower lr")

    def _tell(self) -> None:
        training, schedule = self.training, self.retraining.spec.schedule
        self._reported = self._timed_at = time.monotonic()
        steps = schedule.epochs * training.steps_per_epoch
        batch = training.batch
        self.report(
            TrainingProgress(
                epoch=min(training.done + 1, schedule.epochs),
                epochs=schedule.epochs,
                images=training.steps_done * batch,
                total=steps * batch,
                images_per_s=round(batch / self._step_s, 1) if self._step_s else 0.0,
                train_error=self._train_error(),
                held_out_error=self.curve[-1].held_out_error if self.curve else None,
            )
        )

    def _train_error(self) -> float | None:
        """Of the epoch under way; before its first step, of the last one."""
        running = self.training.running_error
        return running if running is not None or not self.curve else self.curve[-1].train_error


def stored_result(folder: Path) -> Trained:
    """The result of the finished training in `folder`. Raises `StudyError` if it is damaged."""
    path = folder / RESULT_FILE
    try:
        result = StoredResult.model_validate(json.loads(read_text(path)))
        if result.trained is None:
            raise ConfigError("it is of igc-nas 0.1")
        return Trained.model_validate_json(json.dumps(result.trained))
    except (ConfigError, ValidationError, ValueError, RecursionError):
        raise StudyError(
            f"{path} is damaged, or of igc-nas 0.1", "move it away and the same command tests the network again"
        ) from None


def _plain(spec: RetrainSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def _contiguous(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
