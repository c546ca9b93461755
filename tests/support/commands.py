"""The result of a command run in this process (by the fixture `cli` of conftest), and the form of an error."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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
