"""Tables and lines on a terminal: stdout holds data, stderr holds progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from igc_nas.io.text import printable

WIDE = 200


def console(*, stderr: bool = False) -> Console:
    """A console for stdout (data) or stderr (progress); into a pipe it is `WIDE`, so that no cell is cut."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if is_terminal(stream) else WIDE)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; one that is closed (`>&-`, `nohup`) is None in Python."""
    return stream is not None and not stream.closed and stream.isatty()


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal that stdout (or `stream`) is; None for a pipe or a file, where no line has to end."""
    shown = sys.stdout if stream is None else stream
    if shown is None or not is_terminal(shown):
        return None
    asked = os.environ.get("COLUMNS", "")
    try:
        return int(asked) if asked.isdigit() and int(asked) else os.get_terminal_size(shown.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = ()) -> Table:
    """A plain table, right-aligned but for the columns named in `left`."""
    found = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_left = column in left
        found.add_column(column, justify="left" if is_left else "right", no_wrap=not is_left, overflow="fold")
    for row in rows:
        found.add_row(*(Text(printable(cell)) for cell in row))
    return found
