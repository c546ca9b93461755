"""Tables and lines on a terminal: stdout holds data, stderr holds progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console

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


def table_lines(
    columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = (), width: int | None = None
) -> list[str]:
    """A plain table, right-aligned but for the columns named in `left`.

    Where `width` does not hold it, each row is its first cell, and below it the others with their titles: no cell is
    ever cut or folded.
    """
    cells = [[printable(cell, lines=False) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    if width is None or sum(widths) + 2 * (len(widths) - 1) <= width:
        aligned = (
            [
                cell.ljust(n) if title in left else cell.rjust(n)
                for title, cell, n in zip(columns, row, widths, strict=True)
            ]
            for row in [columns, *cells]
        )
        return ["  ".join(row).rstrip() for row in aligned]
    lines: list[str] = []
    heads = 1 + next((place for place, title in enumerate(columns) if title), 0)  # marks have no title
    for row in cells:
        lines.append(" ".join(row[:heads]))
        below = ""
        for title, cell in zip(columns[heads:], row[heads:], strict=True):
            part = f"  {title} {cell}" if cell else ""
            if below and len(below) + len(part) > width:
                lines.append(below)
                below = ""
            below += part
        lines += [below] if below else []
    return lines
