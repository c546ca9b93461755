"""A command run in this process: what it did, and what an error looks like. The fixture `cli` is conftest's."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a command did. `text` is stdout with every run of blanks and line ends as one blank."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What stdout holds."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    @property
    def text(self) -> str:
        """What stdout says."""
        assert (self.status, self.err) == (0, "")
        return " ".join(self.out.split())


Command = Callable[..., Answer]


def refused(answer: Answer, status: int, *words: str) -> None:
    """An error is a line and a hint (or click's usage), and nothing else happens."""
    assert answer.status == status, answer
    assert answer.out == ""
    assert 1 <= len(answer.err.splitlines()) <= 6, answer.err
    assert "Traceback" not in answer.err
    assert "internal error" not in answer.err
    assert answer.err.replace("\n", "").isprintable(), answer.err
    for word in words:
        assert word in answer.err
