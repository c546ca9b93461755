"""What a person may write where an architecture is asked for: a file, a paper's network, or a trial of a study."""

from __future__ import annotations

import re
from pathlib import Path

from igc_nas.config import ArchConfig
from igc_nas.errors import ConfigError, StudyError
from igc_nas.reference import PATTERNS, is_reference, reference
from igc_nas.resources import is_file
from igc_nas.results import load_study

_TRIAL = re.compile(r"(?P<study>.+):(?P<trial>[0-9]{1,9})", re.ASCII)


def load_architecture(name: str | Path, classes: int | None = None, root: Path | str = "studies") -> ArchConfig:
    """An architecture by the path of its TOML file, a reference name, or `STUDY:N` (trial N of a study).

    `classes` replaces the number of classes. Raises `ConfigError`, or `StudyError` for a trial that has none.
    """
    arch = _load(str(name), Path(root), classes)
    return arch if classes is None else arch.with_classes(classes)


def _load(name: str, root: Path, classes: int | None) -> ArchConfig:
    path = Path(name)
    if path.suffix == ".toml" or is_file(path):
        return ArchConfig.load(path)
    if is_reference(name):
        return reference(name, classes).arch
    if match := _TRIAL.fullmatch(name):
        trial = load_study(match["study"], root).trial(int(match["trial"]))
        if trial.arch is None:
            raise StudyError(f"trial {trial.number} of {match['study']} is {trial.state} and has no architecture")
        return trial.arch
    raise ConfigError(
        f"{name!r:.120} is no architecture",
        f"name a .toml file, STUDY:N (a trial), or a paper's network: {', '.join(PATTERNS)}",
    )
