"""Other programs, run for what they print."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path


def finished(
    words: Sequence[str], timeout_s: float, *, given: bytes = b"", cwd: Path | None = None
) -> tuple[int, bytes, bytes]:
    """(exit status, stdout, stderr) of a program that reads `given`, started in a session of its own.

    A time-out, as any exception, kills the whole session: what the program has started ends with it. Raises `OSError`
    where it cannot be started, `subprocess.TimeoutExpired`.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, start_new_session=True) as process:
        try:
            out, err = process.communicate(given, timeout=timeout_s)
        except BaseException:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, out, err
