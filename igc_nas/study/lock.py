"""Who searches a study: one process, which holds the lock of its folder, and says beside it who it is, what runs.

The lock is the lease of the study and of every trial under way: the system takes it from a process that dies, however
it dies. So whoever gets the lock knows that no trial is being evaluated any more, and readers need no lock.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import filelock
from pydantic import Field, ValidationError

from igc_nas.errors import IgcNasError, StudyError
from igc_nas.io.files import write_whole
from igc_nas.io.records import Frozen
from igc_nas.study.process import Process

OWNER = ".owner"
"""Suffix of the file beside a lock that says who holds it."""
LOCK_FILE, OWNER_FILE = "study.lock", f"study{OWNER}"
SHOW_EVERY_S = 2.0


class Running(Frozen):
    """A trial under way: what is being done, and how far its training is."""

    number: Annotated[int, Field(ge=0)]
    doing: str
    since: str
    """UTC, ISO 8601: when the trial was begun."""
    samples: int | None = None
    train_error: float | None = None


class LockHolder(Frozen):
    """The process that searches a study."""

    process: Process
    since: str
    seen: str
    """UTC, ISO 8601: when it last said so."""
    running: Annotated[tuple[Running, ...], Field(strict=False)] = ()


class StudyLock:
    """The lock of a study's folder, held. Raises `StudyError` naming host and pid where another process has it."""

    def __init__(self, folder: Path, *others: Path) -> None:
        """`others`: more files to lock, as of a database that several folders may share."""
        self.folder = folder
        self._locks: list[filelock.FileLock] = []
        self._shown_at = -SHOW_EVERY_S
        self._owner = LockHolder(process=Process.here(), since=now(), seen=now())
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"{folder}: {error.strerror or error}") from None
        try:
            for path in (folder / LOCK_FILE, *others):
                self._take(path)
        except BaseException:
            self.release()
            raise

    def _take(self, path: Path) -> None:
        lock = filelock.FileLock(path, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            owner = _read(path.with_suffix(OWNER))
            raise StudyError(
                f"study {self.folder.name} is being searched by {owner.process if owner else 'another process'}",
                "stop it there, or give this search another --study; front, status and dashboard read it meanwhile",
            ) from None
        except OSError as error:
            raise StudyError(f"{path}: {error.strerror or error}") from None
        self._locks.append(lock)
        self._say(path.with_suffix(OWNER), self._owner)

    @staticmethod
    def _say(path: Path, owner: LockHolder) -> None:
        write_whole(path, owner.model_dump_json(exclude_none=True), durable=False)

    def show(self, running: Iterable[Running]) -> None:
        """Say that we are here, and what runs; at most every `SHOW_EVERY_S`."""
        if time.monotonic() - self._shown_at < SHOW_EVERY_S:
            return
        self._shown_at = time.monotonic()
        owner = self._owner.model_copy(update={"seen": now(), "running": tuple(running)})
        with contextlib.suppress(IgcNasError):  # nothing depends on it
            self._say(self.folder / OWNER_FILE, owner)

    def release(self) -> None:
        """Let the study go."""
        while self._locks:
            lock = self._locks.pop()
            with contextlib.suppress(OSError):
                Path(lock.lock_file).with_suffix(OWNER).unlink(missing_ok=True)
            lock.release()


def holder_of(folder: Path) -> LockHolder | None:
    """Who searches the study in `folder`, as far as can be seen: None where nobody says so, or who said so is dead."""
    return _read(folder / OWNER_FILE)


def _read(path: Path) -> LockHolder | None:
    try:
        owner = LockHolder.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return None if owner.process.is_alive() is False else owner


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
