"""One process at a time downloads or packs into a folder of datasets."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from igc_nas.data.image_folder import shown
from igc_nas.errors import DataError
from igc_nas.io.files import write_whole
from igc_nas.io.text import printable


@contextlib.contextmanager
def alone(folder: Path, work: str, doing: str) -> Iterator[None]:
    """Hold the lock on a work in `folder`; the system frees it when the process dies.

    Raises `DataError`, which says what another process is `doing`: `images are being packed in FOLDER`.
    """
    path, owner = folder / f"{work}.lock", folder / f"{work}.owner"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        who = printable(owner.read_text(encoding="utf-8")) if owner.is_file() else "another process"
        hint = "wait for it, or choose another folder with --data-dir"
        raise DataError(f"{doing} by {who:.100}", hint) from None
    except OSError as error:
        raise DataError(f"{shown(path)}: {error.strerror or error}", "choose another folder with --data-dir") from None
    try:
        write_whole(owner, f"pid {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        lock.release()
