"""Studies and architectures by the names given on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from igc_nas.arch.config import ArchConfig
    from igc_nas.study.study import Study

MOST_BYTES = 4_000_000
"""Of an architecture's file: what follows is not read."""


def load(name: str | Path, root: Path, storage: str | None = None) -> Study:
    """A study: from the database `storage` if it is there, else from its folder. Raises `StudyError`."""
    from igc_nas.errors import StudyError
    from igc_nas.study.study import load_study

    if storage is None:
        return load_study(name, root)
    from igc_nas.engine.database import masked, parse_url, stored_study
    from igc_nas.study.names import STUDY_NAME

    url = parse_url(storage)
    if STUDY_NAME.fullmatch(str(name)) and (study := stored_study(url, str(name))):
        return study
    try:
        return load_study(name, root)
    except StudyError as error:
        raise StudyError(f"{error.message}, nor has {masked(url)} one of that name", error.hint) from None


def architecture(name: str, classes: int | None, root: Path) -> ArchConfig:
    """An architecture by its file, a paper's name or `STUDY:N`; `classes` replaces its number of classes."""
    from igc_nas.study.lookup import load_architecture

    return load_architecture(name, classes, root)


def read_architecture(file: BinaryIO, name: str, classes: int | None) -> ArchConfig:
    """An architecture as TOML from an open file; errors call the file `name`. Raises `ConfigError`."""
    from igc_nas.arch.config import ArchConfig
    from igc_nas.io.files import decoded

    found = ArchConfig.from_toml(decoded(file.read(MOST_BYTES), name), name)
    return found if classes is None else found.with_classes(classes)


def quiet_threads(threads: int) -> None:
    """Set OpenMP to `threads` threads that sleep while idle. Has an effect only before torch is imported."""
    import os

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
