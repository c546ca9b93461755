"""The names of studies: which are allowed, where each is found, and how to refer to one in a command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from igc_nas.errors import StudyError, UsageError
from igc_nas.io.files import is_file
from igc_nas.io.resources import shipped
from igc_nas.io.text import nearest

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", re.ASCII)


def study_names(root: Path) -> list[str]:
    """The studies under `root` and the shipped ones."""
    folders = (root, shipped("studies"))
    return sorted({path.parent.name for folder in folders for path in folder.glob("*/study.toml")})


def check_study_name(name: str) -> str:
    """`name`, if it is a valid folder name on every operating system; else raises `UsageError`."""
    if not STUDY_NAME.fullmatch(name) or name.endswith("."):
        raise UsageError(
            f"{name!r:.120} cannot be the name of a study",
            "use at most 100 letters, digits and . _ + -, a letter or a digit first",
        )
    return name


def find_study(name: str | Path, root: Path) -> Path:
    """The folder of a study.

    A `Path`, or text with a separator, is the folder; a name is looked up in `root`, then among the shipped studies.
    Raises `StudyError` that lists the known names.
    """
    path = Path(name)
    if isinstance(name, Path) or len(path.parts) > 1:
        if is_file(path / "study.toml"):
            return path
        raise StudyError(f"no study in {str(path)!r:.200} (it has no study.toml)")
    for folder in (root, shipped("studies")):
        if STUDY_NAME.fullmatch(name) and (folder / name / "study.toml").is_file():
            return folder / name
    names = study_names(root)
    there = f"there are {', '.join(names[:20])}; " if names else ""
    raise StudyError(f"unknown study {name!r:.120}", nearest(name, names, f"{there}start one with igc-nas search"))


def study_argument(folder: Path | None, name: str) -> str:
    """The command line argument for a study: its name if that finds its folder, else the folder; shell-quoted."""
    if folder is None:
        return shlex.quote(name)
    named = (Path("studies") / folder.name, shipped("studies") / folder.name)
    found = next((path for path in named if (path / "study.toml").is_file()), None)
    return shlex.quote(folder.name if found and found.resolve() == folder.resolve() else str(folder))


def search_command(folder: Path | None, name: str) -> str:
    """The command that starts or continues a study."""
    if folder is None or folder.parent == Path("studies"):
        return f"igc-nas search --study {shlex.quote(name if folder is None else folder.name)}"
    return f"igc-nas search --studies-dir {shlex.quote(str(folder.parent))} --study {shlex.quote(folder.name)}"
