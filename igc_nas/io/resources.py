"""The files that come with the package: at the top level of a checkout, inside the package in a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def is_installed(folder: Path) -> bool:
    """Whether a folder is inside the package, as the studies are that a wheel brings."""
    return folder.resolve().is_relative_to(PACKAGE)


def shipped(folder: str, package: Path = PACKAGE) -> Path:
    """The folder `search_spaces` or `studies` that came with the package (it may be missing)."""
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder
