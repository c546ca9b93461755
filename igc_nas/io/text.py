"""Text of strangers made safe to show: nothing in it moves the cursor, turns a line or opens a tag."""

from __future__ import annotations

import difflib
import html
import unicodedata
from collections.abc import Iterable


def printable(text: str, *, lines: bool = True) -> str:
    """Text in which nothing that a file holds moves the cursor or turns a line; `lines` keeps line ends."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else "\N{REPLACEMENT CHARACTER}" for c in text)


def visible(text: object) -> str:
    """Text from a file without control characters and marks that turn its direction."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in str(text))


def plain(text: object) -> str:
    """Text from a file for HTML and for plotly: visible and escaped."""
    return html.escape(visible(text), quote=False).replace('"', "&#34;").replace("'", "&#39;")


def nearest(name: str, names: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """A hint for a name that is not among `names`: the most similar one, as `difflib` scores it, or `otherwise`."""
    near = difflib.get_close_matches(name, list(names), 1, cutoff)
    return f"did you mean {near[0]}?" if near else otherwise
