"""Trained weights by name: those of an exported folder, of a training's folder, of a final of a study."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import arch_id
from igc_nas.data.datasets import normalisation
from igc_nas.errors import ConfigError
from igc_nas.io.files import is_file, read_text, user_path
from igc_nas.study.finals import finals_groups, read_finals
from igc_nas.study.lookup import load_architecture, named_trial
from igc_nas.study.names import dataset_option, study_argument
from igc_nas.study.records import Trial
from igc_nas.study.study import Study

WEIGHTS = ("model.safetensors", "weights.safetensors")
"""Weights in an exported folder, by its present and its earlier name; a training's have the latter."""


@dataclass(frozen=True)
class TrainedFolder:
    """A folder of `igc-nas export --format dir` (with config.toml) or of `igc-nas train` and `finals` (arch.toml)."""

    path: Path

    @classmethod
    def named(cls, name: str | Path) -> TrainedFolder | None:
        """The folder that `name` is; None where it is none of these."""
        path = user_path(name)
        is_one = is_file(path / "config.toml") or (is_file(path / "arch.toml") and is_file(path / "run.toml"))
        return cls(path) if is_one else None

    @property
    def arch(self) -> Path:
        """The architecture's file."""
        exported = self.path / "config.toml"
        return exported if is_file(exported) else self.path / "arch.toml"

    @property
    def weights(self) -> Path | None:
        """The weights; None in a folder that was exported without, and before the end of a training."""
        return next((file for file in (self.path / name for name in WEIGHTS) if is_file(file)), None)

    @property
    def prepared(self) -> dict[str, Any]:
        """How images are prepared, by timm's names: mean, std and the like; nothing where it is not known.

        Raises `ConfigError` for a damaged file.
        """
        config, result = self.path / "config.json", self.path / "result.json"
        try:
            if is_file(config):
                found = json.loads(read_text(config))["pretrained_cfg"]
                return {key: found[key] for key in ("mean", "std", "crop_pct", "interpolation")}
            if is_file(result):
                return _normalised_as(json.loads(read_text(result)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            name = config.name if is_file(config) else result.name
            raise ConfigError(f"{name} is not one that igc-nas writes") from None
        return {}


def _normalised_as(result: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation of the images of a training, by its result.json."""
    images = result.get("images")
    known = (images["mean"], images["std"]) if images else normalisation(result["dataset"])
    return dict(zip(("mean", "std"), known, strict=True)) if known else {}


def final_of(name: ArchConfig | str | Path) -> TrainedFolder:
    """The training of a final of trial N, for the name `STUDY:N`: of the recipe that was used last, its first seed.

    Raises `ConfigError` where there are no weights, which says how to make them; `StudyError` for an unknown trial.
    """
    if isinstance(name, ArchConfig):
        raise ConfigError("there are no weights of an ArchConfig", "weights=FILE loads a file of them")
    if TrainedFolder.named(name):
        hint = "igc-nas train writes them at its end, the same command continues it; igc-nas export has --weights"
        raise ConfigError(f"there are no weights in {name!s:.120}", hint)
    found = named_trial(str(name))
    if found is None:
        load_architecture(name)  # raises for an unknown name
        raise ConfigError(
            f"there are no weights of {name!s:.120}: igc-nas hosts none",
            f"igc-nas train {name} -o models/own makes them; create_model('models/own') loads them",
        )
    study, trial = found
    own = f"{study_argument(study.folder, study.spec.name)}:{trial.number}"
    folders = _trainings_of(study, trial)
    if (trained := next((folder for folder in folders if folder.weights), None)) is not None:
        return trained
    if folders:
        raise ConfigError(
            f"the weights of the final of {own} are not in {folders[0].path}",
            f"igc-nas train {own}{dataset_option(study.spec.dataset)} -o models/own makes others; "
            "create_model('models/own') loads them",
        )
    raise ConfigError(
        f"there is no final of {own}",
        f"igc-nas finals {own.rpartition(':')[0]} --pick trial:{trial.number} trains it to the end",
    )


def _trainings_of(study: Study, trial: Trial) -> list[TrainedFolder]:
    """The folders of a trial's finals that have ended well, the recipe that was used last first, then by seed."""
    if study.folder is None or trial.arch is None:
        return []
    identity, folder = arch_id(trial.arch), study.folder
    finalists = (finalist for group in finals_groups(read_finals(folder)) for finalist in group.finalists)
    finals = (final for finalist in finalists for final in finalist.finals)
    return [TrainedFolder(final.folder(folder)) for final in finals if final.trained and final.id == identity]
