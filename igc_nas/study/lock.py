"""The lock of a study: one process searches it, and writes beside the lock file who it is and which trials run.

The lock is also the lease of every running trial: the operating system releases it when its holder dies, however it
dies. So a process that gets the lock knows that no trial of the study is running. Readers need no lock.
"""

from __future__ import annotations

import contextlib
import datetime
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import filelock
from pydantic import Field, ValidationError

from igc_nas.errors import IgcNasError, StudyError
from igc_nas.io.files import write_whole
from igc_nas.io.records import Frozen
from igc_nas.io.resources import is_installed
from igc_nas.study.process import Process

OWNER = ".owner"
"""Suffix of the file beside a lock that names its holder."""
LOCK_FILE, OWNER_FILE = "study.lock", f"study{OWNER}"
SHOW_EVERY_S = 2.0


class Running(Frozen):
    """A running trial: its current step, and the progress of its training."""

    number: Annotated[int, Field(ge=0)]
    doing: str
    since: str
    """UTC, ISO 8601: when the trial started."""
    samples: int | None = None
    train_error: float | None = None


class LockHolder(Frozen):
    """The process that searches a study."""

    process: Process
    since: str
    seen: str
    """UTC, ISO 8601: when it last wrote this."""
    running: Annotated[tuple[Running, ...], Field(strict=False)] = ()


class StudyLock:
    """The lock of a study's folder, held until `release`.

    `others` are more files to lock, such as that of a database which several folders may share. Raises `StudyError`
    with host and pid of the holder if another process has one of the locks, where `taken` and `hint` say what that one
    does and what can be done; and for a folder inside the installed package.
    """

    def __init__(
        self,
        folder: Path,
        *others: Path,
        taken: str = "study {name} is being searched by {holder}",
        hint: str = "stop it there, or give this search another --study; front, status and dashboard read it meanwhile",
    ) -> None:
        self.folder = folder
        self._taken, self._hint = taken, hint
        self.show_every_s = SHOW_EVERY_S
        self._locks: list[filelock.FileLock] = []
        self._shown_at = -SHOW_EVERY_S
        self._holder = LockHolder(process=Process.here(), since=now(), seen=now())
        if is_installed(folder):
            raise StudyError(
                f"{folder.name} came with the installed package, which is not written to",
                f"copy it: mkdir -p studies; cp -r {shlex.quote(str(folder.resolve()))} studies/",
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"{folder}: {error.strerror or error}") from None
        try:
            for path in (folder / LOCK_FILE, *others):
                self._acquire(path)
        except BaseException:
            self.release()
            raise

    def _acquire(self, path: Path) -> None:
        lock = filelock.FileLock(path, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            holder = _read(path.with_suffix(OWNER))
            raise StudyError(
                self._taken.format(name=self.folder.name, holder=holder.process if holder else "another process"),
                self._hint,
            ) from None
        except OSError as error:
            raise StudyError(f"{path}: {error.strerror or error}") from None
        self._locks.append(lock)
        _write(path.with_suffix(OWNER), self._holder)

    def show(self, running: Iterable[Running]) -> None:
        """Write for readers which trials run, at most every `show_every_s` seconds."""
        if time.monotonic() - self._shown_at < self.show_every_s:
            return
        self._shown_at = time.monotonic()
        with contextlib.suppress(IgcNasError):  # only displays read it
            _write(self.folder / OWNER_FILE, self._holder.model_copy(update={"seen": now(), "running": tuple(running)}))

    def release(self) -> None:
        """Release every lock, and remove the files that name us."""
        while self._locks:
            lock = self._locks.pop()
            with contextlib.suppress(OSError):
                Path(lock.lock_file).with_suffix(OWNER).unlink(missing_ok=True)
            lock.release()


def holder_of(folder: Path) -> LockHolder | None:
    """The process that searches the study in `folder`; None if no file names one, or the process named is dead."""
    return _read(folder / OWNER_FILE)


def _write(path: Path, holder: LockHolder) -> None:
    write_whole(path, holder.model_dump_json(exclude_none=True), durable=False)


def _read(path: Path) -> LockHolder | None:
    try:
        holder = LockHolder.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return None if holder.process.is_alive() is False else holder


def now() -> str:
    """The current time: UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
