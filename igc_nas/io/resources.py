"""Find a search space or a study by name: a path, the working folder's own, then the ones that are shipped.

The shipped folders stand at the top level of a checkout and inside the package in a wheel.
"""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import Path

from igc_nas.errors import ConfigError, StudyError, UsageError

_PACKAGE = Path(__file__).parents[1]

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", re.ASCII)


def shipped(folder: str) -> Path:
    """The folder `search_spaces` or `studies` that came with the package (it may be missing)."""
    packaged = _PACKAGE / folder
    return packaged if packaged.is_dir() else _PACKAGE.parent / folder


def space_names() -> list[str]:
    """The shipped search spaces."""
    return sorted(path.stem for path in shipped("search_spaces").glob("*.toml"))


def find_space(name: str) -> Path:
    """The file of a space: an existing path, or a shipped name. Raises `ConfigError` listing the names."""
    path = Path(name)
    if path.suffix == ".toml":
        if is_file(path):
            return path
        raise ConfigError(f"no space file {name!r:.200}")
    if name in space_names():
        return shipped("search_spaces") / f"{name}.toml"
    raise ConfigError(f"unknown space {name!r:.80}", _nearest(name, space_names(), "or a path to a .toml file"))


def study_names(root: Path) -> list[str]:
    """The studies under `root` and the shipped ones."""
    folders = (root, shipped("studies"))
    return sorted({path.parent.name for folder in folders for path in folder.glob("*/study.toml")})


def check_study_name(name: str) -> str:
    """`name`, if it can be a folder's name on every system. Raises `UsageError`."""
    if not STUDY_NAME.fullmatch(name) or name.endswith("."):
        raise UsageError(
            f"{name!r:.120} cannot be the name of a study",
            "use at most 100 letters, digits and . _ + - from the start on",
        )
    return name


def find_study(name: str | Path, root: Path) -> Path:
    """The folder of a study: a `Path` is one, and so is text with a separator; else `root`/name, or a shipped one.

    Raises `StudyError` listing the names.
    """
    path = Path(name)
    if isinstance(name, Path) or len(path.parts) > 1:
        if is_file(path / "study.toml"):
            return path
        raise StudyError(f"no study in {str(path)!r:.200} (it has no study.toml)")
    for folder in (root, shipped("studies")):
        if STUDY_NAME.fullmatch(name) and (folder / name / "study.toml").is_file():
            return folder / name
    raise StudyError(f"unknown study {name!r:.120}", _nearest(name, study_names(root), "start one with igc-nas search"))


def study_argument(folder: Path | None, name: str) -> str:
    """What to type for a study: its name where that finds its folder, else the folder; quoted for a shell."""
    if folder is None:
        return shlex.quote(name)
    named = (Path("studies") / folder.name, shipped("studies") / folder.name)
    found = next((path for path in named if (path / "study.toml").is_file()), None)
    return shlex.quote(folder.name if found and found.resolve() == folder.resolve() else str(folder))


def search_command(folder: Path | None, name: str) -> str:
    """The command that starts or continues a study."""
    if folder is None or folder.parent == Path("studies"):
        return f"igc-nas search --study {shlex.quote(name if folder is None else folder.name)}"
    return f"igc-nas search --studies {shlex.quote(str(folder.parent))} --study {shlex.quote(folder.name)}"


def is_file(path: Path) -> bool:
    """`path.is_file()`, and False for what no file can be called."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _nearest(name: str, names: list[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are {', '.join(names[:20])}; {otherwise}" if names else otherwise
