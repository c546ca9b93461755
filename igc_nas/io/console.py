"""Tables, lines and live views on a terminal, where stdout holds data and stderr progress, and in a notebook."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleRenderable, RichCast
from rich.live import Live

from igc_nas.io.text import printable

WIDE = 200


def console() -> Console:
    """A console for stderr (progress); into a pipe it is `WIDE`, so that no cell is cut."""
    return Console(stderr=True, highlight=False, width=None if is_terminal(sys.stderr) else WIDE)


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "IPython" in sys.modules and Console().is_jupyter


def live(shown: ConsoleRenderable | RichCast, screen: Console) -> Live | NotebookLive:
    """A live view of what changes: on a terminal, or in a notebook; it is not started."""
    if is_notebook():
        return NotebookLive(shown)
    return Live(shown, console=screen, refresh_per_second=2, transient=True)


class NotebookLive:
    """What `rich.live.Live` is on a terminal: one output that is replaced, with the latest lines above it.

    It needs no ipywidgets, and works in whatever shows notebooks.
    """

    LINES, EVERY_S, WIDTH = 8, 0.5, 110

    def __init__(self, shown: ConsoleRenderable | RichCast) -> None:
        self._shown = shown
        self._lines: deque[str] = deque(maxlen=self.LINES)
        self._updated = 0.0
        self._handle: Any = None

    def start(self) -> None:
        """Show it in the current cell."""
        from IPython.display import display

        self._handle = display(self, display_id=True)  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Show its last state."""
        if self._handle is not None:
            self._handle.update(self)

    def say(self, line: str) -> None:
        """Add a line, the oldest one makes room for it."""
        self._lines.append(line)

    def update(self) -> None:
        """Show the current state, unless that was done a moment ago."""
        if self._handle is not None and time.monotonic() - self._updated >= self.EVERY_S:
            self._updated = time.monotonic()
            self._handle.update(self)

    def __repr__(self) -> str:
        return self._recorded().export_text().rstrip()

    def _repr_html_(self) -> str:
        return self._recorded().export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def _recorded(self) -> Console:
        page = Console(file=io.StringIO(), record=True, width=self.WIDTH, force_jupyter=False, highlight=False)
        for line in self._lines:
            page.print(line, markup=False, soft_wrap=True)
        page.print(self._shown)
        return page


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


@contextlib.contextmanager
def passing(text: str) -> Iterator[None]:
    """Within the context a terminal on stderr shows a short line; nothing is written into a file or a pipe."""
    stream = sys.stderr
    if not is_terminal(stream):
        yield
        return
    text = text[: (terminal_width(stream) or 80) - 1]
    stream.write(text)
    stream.flush()
    try:
        yield
    finally:
        stream.write(f"\r{' ' * len(text)}\r")
        stream.flush()


def table_lines(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Sequence[str] = (),
    width: int | None = None,
) -> list[str]:
    """A plain table, right-aligned but for the columns named in `left`, with two blanks between columns.

    One blank where `width` does not hold two. Where it does not hold that either, each row is its first cell, and
    below it the others with their titles: no cell is ever cut or folded.
    """
    cells = [[printable(cell, lines=False) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]  # CJK: two
    gap = 2 if width is None or sum(widths) + 2 * (len(widths) - 1) <= width else 1
    if width is None or sum(widths) + gap * (len(widths) - 1) <= width:
        aligned = (
            [
                set_cell_size(cell, n) if title in left else " " * (n - cell_len(cell)) + cell
                for title, cell, n in zip(columns, row, widths, strict=True)
            ]
            for row in [columns, *cells]
        )
        return [(" " * gap).join(row).rstrip() for row in aligned]
    lines: list[str] = []
    heads = 1 + next((place for place, title in enumerate(columns) if title), 0)  # marks have no title
    for row in cells:
        lines.append(" ".join(row[:heads]))
        below = ""
        for title, cell in zip(columns[heads:], row[heads:], strict=True):
            part = f"  {title} {cell}" if cell else ""
            if len(part) > width:  # below its title
                lines += [below, f"  {title}"] if below else [f"  {title}"]
                below, part = "", f"    {cell}"
            if below and len(below) + len(part) > width:
                lines.append(below)
                below = ""
            below += part
        lines += [below] if below else []
    return lines
