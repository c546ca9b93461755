"""Text from files and servers made safe to show: its control characters, line breaks and tags have no effect."""

from __future__ import annotations

import difflib
import html
import re
import textwrap
import unicodedata
from collections.abc import Iterable


def printable(text: str, *, lines: bool = True) -> str:
    """Text for a terminal, with U+FFFD for each character that `str.isprintable` refuses; `lines` keeps line ends."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else "\N{REPLACEMENT CHARACTER}" for c in text)


SPELLED = {"±": "+-", "–": "-", "…": "~", "\N{REPLACEMENT CHARACTER}": "?"}
"""What stands for our symbols, and for those of rich, on a terminal that has ASCII only; a column each where it can."""


def spelled(error: UnicodeError) -> tuple[str, int]:
    """A handler of codecs for what a stream cannot encode: our symbols by `SPELLED`, all else as Python escapes it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in unknown), error.end


def one_line(text: object, most: int) -> str:
    """The first `most` characters of a text for a terminal, on one line."""
    return printable(" ".join(str(text).split()))[:most]


def wrapped(lines: Iterable[str], width: int | None) -> list[str]:
    """Lines of prose broken between words to at most `width` characters; None breaks none. A longer word stays whole.

    What follows a label (`data      cifar10 ...`) goes on under its text, as an indented line does; other lines are
    indented by two blanks. Numbers stay with their units, fields that are two blanks apart stay whole, and commands to
    type stay on one line, so that they can be copied.
    """
    if width is None:
        return list(lines)
    found: list[str] = []
    for line in (part for text in lines for part in text.split("\n")):
        if len(line) <= width or _COMMAND.match(line):
            found.append(line)
            continue
        label = _LABEL.match(line)
        indent = " " * (label.end() if label and label.end() < width // 2 else 2)
        prose, colon, command = _kept(line, width - len(indent)).partition(": igc-nas ")
        parts = textwrap.wrap(
            prose + colon[:1],
            max(width, 20),
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,  # a path, an address: it can be copied
        )
        found += [part.replace(KEPT, " ") for part in parts]
        found += [f"{indent}{colon[2:]}{command}".replace(KEPT, " ")] if command else []
    return found


def _kept(line: str, room: int) -> str:
    """The line with `KEPT` for each blank where it must not be broken."""
    fields = _NUMBER.sub(KEPT, line).split("  ")
    return "  ".join(field.replace(" ", KEPT) if len(field) <= room else field for field in fields)


KEPT = "\N{NO-BREAK SPACE}"
_NUMBER = re.compile(r"(?<=\d) (?=(%|ms|s|min|h|x \d+|pixels?|images?|k|M|MB)\b|%)|(?<=\d x) (?=\d)")
"""The blank between a number and its unit, where no line is broken."""
_LABEL, _COMMAND = re.compile(r"\S* {2,}"), re.compile(r" *(next: +)?(igc-nas |pip )")


def visible(text: object) -> str:
    """Text for a page, without control characters and marks of direction.

    Unlike `printable` it keeps every kind of space, and characters that are newer than Python: a browser shows them.
    """
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in str(text))


def plain(text: object) -> str:
    """`visible` text with HTML escaped, for pages and for plotly."""
    return html.escape(visible(text), quote=False).replace('"', "&#34;").replace("'", "&#39;")


def nearest(name: str, names: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """A hint for a name that is not among `names`: the only one that begins so, else the most similar, or `otherwise`.

    Similarity is that of `difflib`; upper and lower case are alike.
    """
    folded, known = name.casefold(), {each.casefold(): each for each in names}
    begun = [each for each in known if len(folded) > 1 and each.startswith(folded)]
    near = begun if len(begun) == 1 else difflib.get_close_matches(folded, known, 1, cutoff)
    return f"did you mean {known[near[0]]}?" if near else otherwise


def nearest_and_all(name: str, names: Iterable[str], listed: str) -> str:
    """A hint for a name that is not among `names`: the nearest if there is one, then all that are `listed`."""
    return f"{nearest(name, names, '')} {listed}".strip()


def with_nearest(message: str, name: str, names: Iterable[str]) -> str:
    """A message about a name that is not among `names`, with the nearest if there is one."""
    near = nearest(name, names, "")
    return f"{message}; {near}" if near else message
