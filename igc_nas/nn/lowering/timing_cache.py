"""Measured times by shape, in a file of the user's cache folder; discarded for another device, version or purpose."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock

from igc_nas._version import __version__
from igc_nas.errors import ConfigError, IgcNasError
from igc_nas.io.files import MOST_RECORDS, cache_dir, read_text, write_whole

Times = dict[str, float]


class TimingCache:
    """For each key (a shape and its conditions) the measured milliseconds of each alternative.

    `owner` names the conditions of the whole file (purpose, device, threads, versions). A file of another owner and a
    damaged file are treated as empty. Without a path the times stay in memory. Processes may share a file: times that
    another process has saved are not measured again. `pause` is called before each measurement.

    As a context manager it saves on exit, also after an exception.
    """

    def __init__(self, path: Path | None = None, owner: str = "", pause: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.owner = owner
        self.pause = pause
        self.times: dict[str, Times] = {}
        self._new: dict[str, Times] = {}
        self._state: tuple[int, ...] | None = None
        self._read_again()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()

    def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
        """The milliseconds of the alternatives `names`, from `measure` if the cache does not hold exactly those."""
        wanted = set(names)
        if self.times.get(key, {}).keys() != wanted:
            self._read_again()
        if self.times.get(key, {}).keys() != wanted:
            self.pause()
            self.times[key] = self._new[key] = measure()
        return self.times[key]

    def _read_again(self) -> None:
        """Read the file if it has changed since the last read; unsaved times take precedence over the file's."""
        state = _state(self.path)
        if self.path is not None and state not in (None, self._state):
            self.times |= _read(self.path, self.owner) | self._new
            self._state = state

    def save(self) -> None:
        """Add the new times to the file, keeping those of other processes. Does nothing if it cannot be written."""
        if self.path is None or not self._new:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock")):
                merged = _read(self.path, self.owner) | self._new
                write_whole(self.path, json.dumps({"owner": self.owner, "times": merged}))
                self._state = _state(self.path)
        except (OSError, IgcNasError):
            return
        self.times |= merged
        self._new = {}


VERSIONS = f"torch {torch.__version__}; igc-nas {__version__}"


def timing_cache_for(
    device: str, threads: int, purpose: str, pause: Callable[[], None] = lambda: None, versions: str = VERSIONS
) -> TimingCache:
    """The cache for a device, a number of threads and a purpose (`training`, `deployment`): one file for each."""
    owner = f"{purpose}; {device}; {threads} threads; {versions}"
    name = hashlib.sha256(owner.encode()).hexdigest()[:16]
    return TimingCache(cache_dir() / "timings" / f"{name}.json", owner, pause)


def _state(path: Path | None) -> tuple[int, ...] | None:
    """(inode, modification time, size) of a file, to notice that it was replaced; None if there is none."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return found and (found.st_ino, found.st_mtime_ns, found.st_size)


def _read(path: Path, owner: str) -> dict[str, Times]:
    try:
        data = json.loads(read_text(path, MOST_RECORDS))
    except (ConfigError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict) or data.get("owner") != owner or not isinstance(data.get("times"), dict):
        return {}
    return {key: times for key, times in data["times"].items() if _are_times(times)}


def _are_times(times: Any) -> bool:
    return (
        isinstance(times, dict)
        and bool(times)
        and all(isinstance(ms, float) and math.isfinite(ms) and ms > 0 for ms in times.values())
    )
