"""Studies and architectures by the names given on the command line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from rich.progress import TaskID

    from igc_nas.arch.config import ArchConfig
    from igc_nas.data.datasets import DatasetInfo
    from igc_nas.data.image_folder import Progress
    from igc_nas.study.study import Study

SAY_EVERY_S = 10.0
MOST_BYTES = 4_000_000
"""Of an architecture's file: what follows is not read."""


def load(name: str | Path, root: Path, storage: str | None = None) -> Study:
    """A study with its predicted errors: from the database `storage` if it is there, else from its folder.

    Raises `StudyError`.
    """
    from igc_nas.analysis.expectations import with_expectations

    return with_expectations(_stored(name, root, storage))


def _stored(name: str | Path, root: Path, storage: str | None) -> Study:
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


def architecture(name: str | ArchConfig, classes: int | None, root: Path, image_size: int | None = None) -> ArchConfig:
    """An architecture by its file, a paper's name or `STUDY:N`, or as it is.

    `classes` replaces its number of classes, `image_size` the side of its images.
    """
    from igc_nas.arch.config import ArchConfig
    from igc_nas.study.lookup import load_architecture

    if not isinstance(name, ArchConfig):
        return with_side(load_architecture(name, classes, root), image_size)
    return with_side(name if classes is None else name.with_classes(classes), image_size)


def limit_of(name: str | ArchConfig, root: Path) -> int | None:
    """The most parameters that a network may be deployed with, by its file or by its study's budget; None: any."""
    from igc_nas.arch.config import ArchConfig, deployed_limit
    from igc_nas.io.files import is_file, user_path
    from igc_nas.study.lookup import named_trial

    if isinstance(name, ArchConfig):
        return None
    path = user_path(name)
    if path.suffix == ".toml" or is_file(path):
        return deployed_limit(path)
    found = named_trial(name, root)
    return found[0].spec.deployed_limit if found else None


def with_side(arch: ArchConfig, image_size: int | None) -> ArchConfig:
    """The architecture for images of that side; None: as it is. Raises `ConfigError` for one that it cannot read."""
    from igc_nas.arch.cost import check_side

    if image_size is None:
        return arch
    arch = arch.with_side(image_size)
    check_side(arch)
    return arch


@contextlib.contextmanager
def packing_bar() -> Iterator[Progress]:
    """Progress of reading a folder of images: a bar on a terminal; else a line every 10 seconds."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from igc_nas.cli.output import say
    from igc_nas.io.console import console

    screen = console()
    bars = Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=screen, disable=not screen.is_terminal, transient=True,
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}
    said = time.monotonic()

    def show(what: str, done: int, total: int | None) -> None:
        nonlocal said
        if what not in tasks:
            tasks[what] = bars.add_task(f"{what} images", total=total)
        bars.update(tasks[what], completed=done, total=total)
        if bars.disable and time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            say(f"{what} images: {done:,}" + (f" of {total:,}" if total else ""))

    with bars:
        yield show


def say_unusable(info: DatasetInfo) -> None:
    """Say how many files of a folder of images could not be used, and name the first few."""
    from igc_nas.cli.output import say

    if info.problems and info.problems.count:
        count = info.problems.count
        more = f", the first {len(info.problems.named)} of them" if count > len(info.problems.named) else ""
        say(f"{count:,} file{'s' * (count != 1)} of the folder cannot be used{more}:")
        say(*(f"  {line}" for line in info.problems.named))


def read_architecture(file: BinaryIO, name: str, classes: int | None, image_size: int | None = None) -> ArchConfig:
    """An architecture as TOML from an open file; errors call the file `name`. Raises `ConfigError`."""
    from igc_nas.arch.config import ArchConfig
    from igc_nas.io.files import decoded

    found = ArchConfig.from_toml(decoded(file.read(MOST_BYTES), name), name)
    return with_side(found if classes is None else found.with_classes(classes), image_size)


def quiet_threads(threads: int) -> None:
    """Set OpenMP to `threads` threads that sleep while idle. Has an effect only before torch is imported."""
    import os

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load_torch() -> None:
    """Import torch, which takes seconds; a terminal shows a line meanwhile."""
    import sys

    from igc_nas.io.console import passing

    if "torch" not in sys.modules:
        with passing("loading torch ..."):
            import torch  # noqa: F401


def core_notices(option: str, count: int | None) -> list[str]:
    """A line where a command runs more threads or workers than this process has cores; `option` is `threads`, ...."""
    from igc_nas.analysis.words import counted
    from igc_nas.study.defaults import usable_cores

    cores = usable_cores()
    if count is None or count <= cores:
        return []
    return [f"{count:,} {option} on {counted(cores, 'core')} wait for each other; --{option} {cores} is as fast"]


def code_notices(kind: str) -> list[str]:
    """A line where what is compiled for a CPU (`kind`) is not kept for the next run, and why."""
    from igc_nas.nn.c_compiler import unkept_code

    unkept = unkept_code() if kind == "cpu" else None
    return [f"{unkept}; IGC_NAS_CACHE names another folder"] if unkept else []


def engine_notices(runtime: str) -> list[str]:
    """A line where the engines that a runtime, TensorRT, builds are not kept for the next run, and why."""
    from igc_nas.evaluation.gpu_session import engine_folder, why_engines_are_not_kept

    if runtime != "tensorrt" or not (reason := why_engines_are_not_kept()):
        return []
    return [f"TensorRT engines are not kept in {engine_folder()}: {reason}; IGC_NAS_CACHE names another folder"]
