"""Studies and architectures by the names that people type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igc_nas.arch.config import ArchConfig
    from igc_nas.study.study import Study


def load(name: str | Path, root: Path, storage: str | None = None) -> Study:
    """A study: as the database `storage` holds it, where that has it, else by its folder."""
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
    """An architecture."""
    from igc_nas.study.lookup import load_architecture

    return load_architecture(name, classes, root)


def architecture_on_stdin(classes: int | None) -> ArchConfig:
    """An architecture's file on stdin."""
    import sys

    from igc_nas.arch.config import ArchConfig
    from igc_nas.errors import ConfigError

    try:
        text = sys.stdin.buffer.read(4_000_000).decode()
    except UnicodeDecodeError:
        raise ConfigError("stdin is not UTF-8 text") from None
    found = ArchConfig.from_toml(text, "stdin")
    return found if classes is None else found.with_classes(classes)


def quiet_threads(threads: int) -> None:
    """Before torch is imported: threads that sleep when they have nothing to do."""
    import os

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
