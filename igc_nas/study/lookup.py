"""Architectures by name: a TOML file, a network of a paper, or a trial of a study (`STUDY:N`)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.named import EXAMPLES, PATTERNS, is_network, network
from igc_nas.errors import ConfigError, StudyError
from igc_nas.io.files import is_file, user_path
from igc_nas.io.text import nearest
from igc_nas.study.records import Trial
from igc_nas.study.study import Study, load_study

MOST_PATTERNS = 8
"""Names of networks in a message."""
_TRIAL = re.compile(r"(?P<study>.+):(?P<trial>[0-9]{1,9})", re.ASCII)


def load_architecture(name: str | Path, classes: int | None = None, root: Path | str = "studies") -> ArchConfig:
    """An architecture by the path of its TOML file, a reference name, or `STUDY:N` (trial N of a study).

    `classes` replaces the number of classes. Raises `ConfigError`, or `StudyError` if the trial has no architecture.
    """
    arch = _load(str(name), Path(root), classes)
    return arch if classes is None else arch.with_classes(classes)


def named_trial(
    name: str, root: Path | str = "studies", read: Callable[[str, Path], Study] = load_study
) -> tuple[Study, Trial] | None:
    """The study and trial that `STUDY:N` names; None for the name of a file or a network. Raises `StudyError`."""
    match = _TRIAL.fullmatch(name)
    if match is None or is_named(name):
        return None
    study = read(match["study"], Path(root))
    return study, study.trial(int(match["trial"]))


def _study_hint(name: str, root: Path) -> str | None:
    """What to type instead of a study's name; None where there is no such study."""
    try:
        study = load_study(name, root)
        number = study.pick("knee").trial if study.candidates else 0
    except (StudyError, OSError, ValueError):
        return None
    shown = shlex.quote(name)
    return f"name one of its trials, such as {shown}:{number}; igc-nas export {shown} --pick knee writes one to a file"


def is_named(name: str) -> bool:
    """Whether a name is that of an architecture's file or of a paper's network, and therefore of no study."""
    return name.endswith(".toml") or is_file(user_path(name)) or is_network(name)


def _load(name: str, root: Path, classes: int | None) -> ArchConfig:
    path = user_path(name)
    if path.suffix == ".toml" or is_file(path):
        return ArchConfig.load(path)
    if is_network(name):
        return network(name, classes).arch
    if (found := named_trial(name, root)) is not None:
        study, trial = found
        if trial.arch is None:
            why = f" ({trial.reason})" if trial.reason else ""
            raise StudyError(f"trial {trial.number} of {study.spec.name} is {trial.state} and has no architecture{why}")
        return trial.arch
    some = ", ".join(PATTERNS[:MOST_PATTERNS])
    otherwise = f"name a .toml file, STUDY:N (a trial), or a network: {some}, and {len(PATTERNS) - MOST_PATTERNS} more"
    if (study_hint := _study_hint(name, root)) is not None:
        raise ConfigError(f"{name!r:.120} is a study, not an architecture", study_hint)
    raise ConfigError(f"{name!r:.120} is not an architecture", nearest(name, EXAMPLES, otherwise, 0.75))
