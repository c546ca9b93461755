"""The result of a command run in this process (by the fixture `cli` of conftest), the form of an error, programs."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Answer:
    """Exit status, stdout and stderr of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as JSON, of a command that succeeded."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    @property
    def text(self) -> str:
        """Stdout of a command that succeeded in silence, with every run of white space as one blank."""
        assert (self.status, self.err) == (0, "")
        return " ".join(self.out.split())


Command = Callable[..., Answer]


def refused(answer: Answer, status: int, *words: str) -> None:
    """Assert that a command failed with `status`, a line and a hint (or click's usage) that contain `words`."""
    assert answer.status == status, answer
    assert answer.out == ""
    assert 1 <= len(answer.err.splitlines()) <= 6, answer.err
    assert "Traceback" not in answer.err
    assert "internal error" not in answer.err
    assert answer.err.replace("\n", "").isprintable(), answer.err
    for word in words:
        assert word in answer.err


def hanging_compiler(folder: Path) -> tuple[Path, Path]:
    """(a compiler that waits for its child for ever, as gcc does for cc1; where it writes the child's number)."""
    command, child = folder / "slowcc", folder / "child"
    command.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {child}\nwait\n")
    command.chmod(0o755)
    return command, child


def ends(pid: int, within_s: float = 2.0) -> bool:
    """Whether a process ends soon, or is a zombie; if not, it is killed."""
    until = time.monotonic() + within_s
    try:
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > until:
                process.kill()
                return False
            time.sleep(0.01)
    except psutil.NoSuchProcess:
        pass
    return True
