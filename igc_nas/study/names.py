"""The names of studies: which are allowed, where each is found, and how to refer to one in a command."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from igc_nas.errors import StudyError, UsageError
from igc_nas.io.files import is_file, user_path
from igc_nas.io.resources import shipped
from igc_nas.io.text import nearest

STORAGE = "IGC_NAS_STORAGE"
"""The environment variable that stands for `--storage`."""
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", re.ASCII)


def study_names(root: Path) -> list[str]:
    """The studies under `root` and the shipped ones."""
    folders = (root, shipped("studies"))
    return sorted({path.parent.name for folder in folders for path in folder.glob("*/study.toml")})


def check_study_name(name: str) -> str:
    """`name`, if it is a valid folder name on every operating system; else raises `UsageError`."""
    if not STUDY_NAME.fullmatch(name) or name.endswith("."):
        hint = "use at most 100 letters, digits and . _ + -, a letter or a digit first"
        folder, _, last = name.rstrip(os.sep).rpartition(os.sep)
        if 0 < len(folder) <= 100 and STUDY_NAME.fullmatch(last):
            hint = f"for a study in another folder: --studies-dir {shlex.quote(folder)} --study {last}"
        raise UsageError(f"{name!r:.120} cannot be the name of a study", hint)
    return name


def folder_of_study(name: str, root: Path) -> Path:
    """The folder in `root` of a study that is there already, whatever it is called now, or is to be made.

    Raises `UsageError` as `check_study_name` for the name of a new one.
    """
    if Path(name).name == name and is_file(root / name / "study.toml"):
        return root / name
    return root / check_study_name(name)


def find_study(name: str | Path, root: Path) -> Path:
    """The folder of a study.

    A `Path`, or text that can only be one (`./mine`, `mine/`, `.`, `~/mine`), is the folder, or the study.toml in it. A
    name is looked up in `root`, then in the working folder, then among the shipped studies. Raises `StudyError` that
    lists the known names.
    """
    path = user_path(name)
    if is_spec := path.name == "study.toml" and is_file(path):
        path = path.parent
    if is_spec or isinstance(name, Path) or is_path(str(name)):
        if is_file(path / "study.toml"):
            return path if path.name.strip(".") else path.resolve()
        raise StudyError(f"no study in {str(path)!r:.200} (it has no study.toml)", _studies_in(path))
    for folder in (root, Path(), shipped("studies")):
        if name and is_file(folder / name / "study.toml"):
            return folder / name
    names = study_names(root)
    there = f"there are {', '.join(names[:20])}; " if names else ""
    raise StudyError(f"unknown study {name!r:.120}", nearest(name, names, f"{there}start one with igc-nas search"))


def is_path(text: str) -> bool:
    """Whether text can only be a path: it has a separator or begins with `~`, or it is `.` or `..`."""
    return text in (".", "..") or text.startswith("~") or any(mark in text for mark in (os.sep, os.altsep) if mark)


def _studies_in(folder: Path) -> str | None:
    """A hint that names the studies inside of a folder which is none itself."""
    try:
        inside = sorted(path.parent.name for path in folder.glob("*/study.toml"))
    except (OSError, ValueError):
        return None
    return f"there are {', '.join(inside[:20])} in it" if inside else None


def study_argument(folder: Path | None, name: str) -> str:
    """The command line argument for a study: its name if that finds its folder, else the folder; shell-quoted."""
    if folder is None:
        return shlex.quote(name)
    named = (Path("studies") / folder.name, shipped("studies") / folder.name)
    found = next((path for path in named if (path / "study.toml").is_file()), None)
    return shlex.quote(folder.name if found and found.resolve() == folder.resolve() else str(folder))


def storage_option(folder: Path | None, storage: str | None) -> str:
    """` --storage URL` for a study in a database and in no folder, unless the environment names it; else empty."""
    if storage is None or folder is not None or os.environ.get(STORAGE):
        return ""
    return f" --storage {shlex.quote(storage)}"


def search_command(folder: Path | None, name: str, storage: str | None = None) -> str:
    """The command that starts or continues a study, of a database `storage` where no folder has it."""
    if folder is None or folder.parent == Path("studies"):
        stored = storage_option(folder, storage)
        return f"igc-nas search --study {shlex.quote(name if folder is None else folder.name)}{stored}"
    return f"igc-nas search --studies-dir {shlex.quote(str(folder.parent))} --study {shlex.quote(folder.name)}"


def dataset_option(dataset: str, folder: str | None = None) -> str:
    """` --dataset NAME`, with which `igc-nas train` takes the images of a study, by the label that it has of them.

    Empty for CIFAR-10, which `train` finds by itself. `folder` is that of one's own images, where it is known.
    """
    # Not above: these load NumPy, which most commands do without.
    from igc_nas.data.datasets import OF_A_FOLDER, SHAPES, cifar_of, is_folder, is_synthetic

    if dataset.startswith(OF_A_FOLDER):
        name = shlex.quote(folder) if folder and is_folder(folder) else "FOLDER"
    else:
        name = SHAPES if is_synthetic(dataset) else cifar_of(dataset) or ""
    return "" if name in ("", "cifar10") else f" --dataset {name}"
