"""Retrains one architecture from scratch on the whole training set, then tests it once.

A folder holds the training: run.toml (its spec), checkpoint.safetensors (after the last finished epoch), and at the end
weights.safetensors and result.json. The same command continues an interrupted training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import check_side, cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.data.datasets import DatasetInfo, auto_notice, data_dir, is_folder, locate
from igc_nas.data.image_folder import Progress, no_progress
from igc_nas.errors import ConfigError, StudyError, UsageError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.images import Images, load_test, load_train
from igc_nas.evaluation.training import Training
from igc_nas.io.files import read_text, write_whole
from igc_nas.io.records import Frozen, differences, parse_toml
from igc_nas.io.units import format_count, format_seconds
from igc_nas.nn.device import Device, configure_torch, find_devices
from igc_nas.nn.lowering.fastest_dtype import fastest_dtype
from igc_nas.nn.lowering.network_tuner import NetworkTuner
from igc_nas.nn.lowering.pinned_forms import PinnedForms
from igc_nas.nn.lowering.timing_cache import timing_cache_for
from igc_nas.nn.lowering.training import Forward
from igc_nas.nn.network import Network, build
from igc_nas.study.records import Fraction
from igc_nas.study.spec import Schedule

RUN_FILE, CHECKPOINT_FILE, WEIGHTS_FILE, RESULT_FILE = (
    "run.toml",
    "checkpoint.safetensors",
    "weights.safetensors",
    "result.json",
)


class RetrainSpec(Frozen):
    """What determines a retraining; stored as run.toml."""

    arch: ArchConfig
    schedule: Schedule
    dataset: str
    dataset_sha256: str
    seed: int


class StoredResult(BaseModel):
    """The keys of result.json that the command prints when a training is already finished."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    test_error: Fraction
    test_images: Annotated[int, Field(ge=1, lt=2**63)]
    dataset: str
    weights: str


@dataclass(frozen=True)
class RetrainOptions:
    """The options of `igc-nas train`: what to train on, where, and by which schedule."""

    dataset: str | Path = "auto"
    image_size: int | None = None
    """Of a folder of images; None: what the architecture reads."""
    data_dir: Path | None = None
    device: str = "auto"
    threads: int = 1
    epochs: int = 30
    batch: int = 128
    lr: float = 0.2
    label_smoothing: float = 0.0
    dtype: str = "auto"
    forms: str = "fastest"
    seed: int = 0
    out: Path | None = None
    """Folder of the training; None: models/ID-DATASET."""

    def schedule(self, device: Device) -> Schedule:
        """The schedule on a device. Raises `ConfigError` for impossible values."""
        return Schedule.parse(
            {
                "epochs": self.epochs,
                "batch": self.batch,
                "lr": self.lr,
                "label_smoothing": self.label_smoothing,
                "dtype": fastest_dtype(device, self.forms, self.threads).dtype if self.dtype == "auto" else self.dtype,
                "forms": self.forms,
            }
        )


Loader = Callable[[DatasetInfo, int, torch.device], Images]
"""Reads one split at a resolution onto a device."""


@dataclass(frozen=True)
class Retraining:
    """A retraining in `folder`, on `device`. `notice` is shown before it starts: which dataset was found."""

    spec: RetrainSpec
    info: DatasetInfo
    device: Device
    folder: Path
    notice: str | None = None
    load_train: Loader = load_train
    load_test: Loader = load_test

    @classmethod
    def open(cls, arch: ArchConfig, options: RetrainOptions, progress: Progress = no_progress) -> Retraining:
        """Find dataset and device and create the folder, or continue in it if it holds the same training.

        The architecture gets the dataset's number of classes, and reads a folder's images at their size; `progress`
        takes the packing of a folder of images. Raises `DataError` for missing data, `UsageError` for
        impossible options, `StudyError` for a folder that holds another training or other files.
        """
        device = find_devices(options.device)[0]
        info, notice = _dataset(options, arch, progress)
        if info.images:
            arch = arch.with_side(info.side)
            check_side(arch)
        configure_torch(device, options.threads)
        if arch.input[0] != 3 or arch.input[1] != arch.input[2]:
            raise UsageError(
                f"the network's input is {' x '.join(map(str, arch.input))}; images are square, of 3 channels",
                "set input = [3, 32, 32] in its file",
            )
        arch = arch.with_classes(info.classes)
        spec = RetrainSpec(
            arch=arch,
            schedule=options.schedule(device),
            dataset=info.label,
            dataset_sha256=info.sha256,
            seed=options.seed,
        )
        folder = options.out or Path("models") / f"{arch_id(arch)}-{info.name}"
        run = cls(spec, info, device, folder, notice)
        run._claim_folder()
        return run

    def introduction(self) -> list[str]:
        """Lines to print before the training starts."""
        cost, schedule = cost_of(self.spec.arch), self.spec.schedule
        return [
            *([self.notice, ""] if self.notice else []),
            f"network   {self.spec.arch}",
            f"          {format_count(cost.params)} parameters, {format_count(cost.macs)} MACs",
            f"data      {self.info.label}, the whole training set",
            f"schedule  {schedule.epochs} epochs, batch {schedule.batch}, lr {schedule.lr:g}, {schedule.dtype}, "
            f"on {self.device.name}",
            f"folder    {self.folder}; a checkpoint per epoch",
            "stop      Ctrl-C; the same command continues",
            "",
        ]

    def train(self, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Train to the last epoch, starting from the checkpoint if there is one; then test once.

        Returns the content of result.json: test_error, test_images, dataset, weights, epochs, seed, ... If the folder
        holds a result, the training is finished and the test set is not opened again.
        """
        if (self.folder / RESULT_FILE).is_file():
            return self._result()
        network = build(self.spec.arch, self.spec.seed)
        network = network.to(self.device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        training = Training(
            network,
            self.load_train(self.info, self.spec.arch.input[1], self.device.torch_device),
            self.spec.schedule,
            self.device,
            self.spec.seed,
            self._lowered(network),
        )
        self._restore(training, say)
        while training.done < self.spec.schedule.epochs:
            started = time.monotonic()
            point = training.epoch()
            write_whole(self.folder / CHECKPOINT_FILE, save(_contiguous(training.state())))
            took = time.monotonic() - started
            left = took * (self.spec.schedule.epochs - training.done)
            say(
                f"epoch {training.done}/{self.spec.schedule.epochs}  loss {point.loss:.4f}  "
                f"training error {100 * point.train_error:.2f} %  {format_seconds(took)}, {format_seconds(left)} left"
            )
        return self._finish(training)

    def _lowered(self, network: Network) -> Forward | None:
        """The network in its fastest form, chosen at the first start and pinned in the folder; None: factored."""
        schedule, threads = self.spec.schedule, torch.get_num_threads()
        if schedule.forms == "factored":
            return None
        cache = timing_cache_for(self.device.name, threads, "training")
        tuner = NetworkTuner(schedule, self.spec.arch.input[1], self.device, cache, PinnedForms(self.folder))
        return tuner(network, arch_id(self.spec.arch))

    def _finish(self, training: Training) -> dict[str, Any]:
        training.recalibrate(images=None)
        test = self.load_test(self.info, self.spec.arch.input[1], self.device.torch_device)
        error, loss = training.evaluate(test)
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
            "conditions": conditions_of(self.device).model_dump(mode="json"),
            **({"images": self.info.images.model_dump(mode="json")} if self.info.images else {}),
            "weights": str(weights),
        }
        write_whole(self.folder / RESULT_FILE, json.dumps(result, indent=2, allow_nan=False) + "\n")
        return result

    def _result(self) -> dict[str, Any]:
        path = self.folder / RESULT_FILE
        try:
            result: dict[str, Any] = json.loads(read_text(path))
            StoredResult.model_validate(result)
            return result
        except (ConfigError, ValueError, RecursionError):  # pydantic's are ValueErrors
            raise StudyError(
                f"{path} is damaged", "move it away and the same command tests the network again"
            ) from None

    def _claim_folder(self) -> None:
        """Write run.toml; if there is one, raise unless it holds the same spec."""
        import tomli_w

        for name in (CHECKPOINT_FILE, WEIGHTS_FILE, RESULT_FILE):
            if ((path := self.folder / name).exists() or path.is_symlink()) and not path.is_file():
                raise StudyError(f"{path} is not a file", "move it away, or choose another folder with -o")
        path = self.folder / RUN_FILE
        ours = self.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        if path.is_file():
            try:
                theirs = parse_toml(read_text(path), path.name)
            except ConfigError as error:
                raise StudyError(error.message, "choose another folder with -o") from None
            different = list(differences(ours, theirs, where="there"))
            if different:
                raise StudyError(
                    f"{self.folder} holds another training: {'; '.join(different[:4])}", "choose another folder with -o"
                )
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"{self.folder}: {error.strerror or error}", "choose another folder with -o") from None
        if any(self.folder.iterdir()):
            raise StudyError(f"{self.folder} is not empty and holds no training", "choose another folder with -o")
        write_whole(path, tomli_w.dumps(ours))
        write_whole(self.folder / "arch.toml", self.spec.arch.to_toml())

    def _restore(self, training: Training, say: Callable[[str], None]) -> None:
        path = self.folder / CHECKPOINT_FILE
        if not path.is_file():
            return
        try:
            with safe_open(path, framework="pt") as file:
                training.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StudyError(
                f"{path} cannot be used: {str(error).splitlines()[0]:.160}", "move it away to start this training again"
            ) from None
        say(f"continuing after epoch {training.done}")


def _dataset(options: RetrainOptions, arch: ArchConfig, progress: Progress) -> tuple[DatasetInfo, str | None]:
    name, where, size = options.dataset, data_dir(options.data_dir), options.image_size
    if is_folder(name) and size is None:
        size = arch.input[1]
    info = locate(name, where, image_size=size, progress=progress)
    return info, auto_notice(info, where) if name == "auto" else None


def _contiguous(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
