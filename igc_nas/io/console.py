"""Rich consoles and tables: stdout carries data, stderr progress."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from igc_nas.io.text import printable

PIPE_WIDTH = 200
"""Columns where the output is no terminal: wide enough that no cell is cut."""


def console(*, stderr: bool = False) -> Console:
    """A console for stdout or stderr; `PIPE_WIDTH` columns wide unless that is a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else PIPE_WIDTH)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = ()) -> Table:
    """A table of texts, whose control characters are replaced; columns are right-aligned but for those in `left`."""
    result = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_left = column in left
        result.add_column(column, justify="left" if is_left else "right", no_wrap=not is_left, overflow="fold")
    for row in rows:
        result.add_row(*(Text(printable(cell)) for cell in row))
    return result
