"""Times by shape, kept in the user's cache: rebuilt, never trusted, where they are of another device or version."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from igc_nas._version import __version__
from igc_nas.errors import ConfigError, IgcNasError
from igc_nas.io.files import MOST_RECORDS, read_text, write_whole

Times = dict[str, float]


class TimingCache:
    """Measured milliseconds: for a key (a shape under its conditions) those of each alternative.

    `owner` names what they hold for (device, threads, versions); a file of another owner, or one that is damaged, is
    as good as none. Without a path nothing is kept. Several processes may share a file: what another has saved
    meanwhile is not measured again. `pause` is called before something is measured.
    """

    def __init__(self, path: Path | None = None, owner: str = "", pause: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.owner = owner
        self.pause = pause
        self.times: dict[str, Times] = {}
        self._new: dict[str, Times] = {}
        self._state: tuple[int, ...] | None = None
        self._read_again()

    def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
        """The times of the alternatives `names`, measured where they are not known."""
        wanted = set(names)
        if self.times.get(key, {}).keys() != wanted:
            self._read_again()
        if self.times.get(key, {}).keys() != wanted:
            self.pause()
            self.times[key] = self._new[key] = measure()
        return self.times[key]

    def _read_again(self) -> None:
        """Take what the file holds, where it is not the file that was read last; our own times stay."""
        state = _state(self.path)
        if self.path is not None and state not in (None, self._state):
            self.times |= _read(self.path, self.owner) | self._new
            self._state = state

    def save(self) -> None:
        """Add what is new to the file. A cache that cannot be written is none."""
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


def timing_cache_for(device: str, threads: int, purpose: str, pause: Callable[[], None] = lambda: None) -> TimingCache:
    """The table of a device with a number of threads, under these versions of torch and igc-nas."""
    owner = f"{purpose}; {device}; {threads} threads; torch {torch.__version__}; igc-nas {__version__}"
    name = hashlib.sha256(owner.encode()).hexdigest()[:16]
    return TimingCache(cache_dir() / "timings" / f"{name}.json", owner, pause)


def cache_dir() -> Path:
    """`IGC_NAS_CACHE`, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("IGC_NAS_CACHE") or platformdirs.user_cache_dir("igc-nas"))


def _state(path: Path | None) -> tuple[int, ...] | None:
    """What changes when a file is replaced; None where there is none."""
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
