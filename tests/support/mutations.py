"""Good files spoiled: what an editor, a full disk, another program or an attacker makes of them.

`spoiled` changes plain data, `damaged` changes bytes; `sizes` runs a test short, and in full under the marker `faults`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import strategies as st

LARGE = 10_000_000_000
"""Bytes of a file with nothing in it, which no reader may take into memory."""


def sizes(short: int, full: int) -> pytest.MarkDecorator:
    """Run a test with `count` small in every run, and large with `-m faults`."""
    return pytest.mark.parametrize("count", [short, pytest.param(full, marks=pytest.mark.faults)])


# Plain data.

STRANGERS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 10**6, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**30, -(10**30), 10**400, 0.0,
    -0.0, 0.5, 1.0, 1.5, 1e-320, 1e-9, 1e9, 1e300, -1e300, math.nan, math.inf, -math.inf, "", " ", "a", "1", "inf",
    "x" * 10_000, "a\nb", "\x1b[31m", "\x00", "\u202e", "\ud800", "\U0001f600", "../../x", "<script>", "igcv1",
    "error", "complete", [], [[]], [0], [1, 2], [3, 32, 32], ["a"], [1] * 5000, {}, {"": 0}, {"a": {"b": {}}},
    {"__class__": "os.system"},
)  # fmt: skip
"""Values that stand where another was."""


def relatives(value: Any) -> list[Any]:
    """The strangers that are of the type of `value`, which a check of types lets in."""
    return [other for other in STRANGERS if type(other) is type(value)]


def deep(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every part of `data`, but for the whole."""
    parts = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


def at(data: Any, path: tuple[Any, ...]) -> Any:
    """The part of `data` at `path`."""
    for key in path:
        data = data[key]
    return data


def with_part(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of `data` with `value` at `path`."""
    whole = copy.deepcopy(data)
    at(whole, path[:-1])[path[-1]] = value
    return whole


def without_part(data: Any, path: tuple[Any, ...]) -> Any:
    """A copy of `data` without the part at `path`."""
    whole = copy.deepcopy(data)
    del at(whole, path[:-1])[path[-1]]
    return whole


@st.composite
def spoiled(draw: st.DrawFn, data: Any) -> Any:
    """`data` with one to three parts replaced, removed, put elsewhere, or with a stranger beside them."""
    whole = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        paths = list(places(whole))
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        inner, key = at(whole, path[:-1]), path[-1]
        stranger = copy.deepcopy(draw(st.sampled_from(STRANGERS) | st.integers(1, 200).map(deep)))
        match draw(st.sampled_from(["replace", "relative", "relative", "remove", "insert", "copy"])):
            case "replace":
                inner[key] = stranger
            case "relative":
                inner[key] = copy.deepcopy(draw(st.sampled_from(relatives(inner[key]))))
            case "remove":
                del inner[key]
            case "insert" if isinstance(inner, dict):
                inner[draw(st.sampled_from([*map(str, inner), "unknown", "", "a\nb", "x" * 5000]))] = stranger
            case "insert":
                inner.insert(key, stranger)
            case "copy":
                inner[key] = copy.deepcopy(at(whole, draw(st.sampled_from(paths))))
    return whole


def as_toml(data: Any) -> bytes:
    """TOML of `data`, as well as TOML can say it."""
    return tomli_w.dumps(_sayable(data)).encode("utf-8", "surrogatepass")


def as_json(data: Any) -> bytes:
    """JSON of `data`, with what JSON has no words for: NaN, Infinity, lone surrogates."""
    return json.dumps(data).encode()


def _sayable(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _sayable(value) for key, value in data.items() if value is not None}
    if isinstance(data, list | tuple):
        return [_sayable(value) for value in data if value is not None]
    return data


# Bytes.

INSERTS = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\n",
    b"\r",
    b'"',
    b"'",
    b"[" * 3000,
    b"{" * 3000,
    b"9" * 5000,
    b"\xef\xbb\xbf",
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with some of its bytes changed, removed, doubled, put in, or cut off."""
    whole = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(whole)))
        end = min(len(whole), start + draw(st.integers(1, 64)))
        match draw(st.sampled_from(["flip", "flip", "remove", "double", "insert", "cut"])):
            case "flip" if start < len(whole):
                whole[start] ^= draw(st.integers(1, 255))
            case "remove":
                del whole[start:end]
            case "double":
                whole[end:end] = whole[start:end] * draw(st.integers(1, 20))
            case "insert":
                whole[start:start] = draw(st.sampled_from(INSERTS) | st.binary(min_size=1, max_size=8))
            case "cut":
                del whole[start:]
    return bytes(whole)


def flipped(data: bytes, place: int, mask: int = 0xFF) -> bytes:
    """`data` with the bits of `mask` turned in one byte."""
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


# Things that have a file's name and are none that can be read.


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGE)


def _unreadable(path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe that nobody writes to": lambda path: os.mkfifo(path),
    "a file without end": _endless,
    "a file of 10 GB": _large,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to(path.with_name("nothing")),
    "a link to a folder": lambda path: path.symlink_to(path.parent),
    "a file that nobody may read": _unreadable,
    "a device": lambda path: path.symlink_to("/dev/null"),
}
"""What may stand where a file is expected. Each makes itself at a path where nothing is."""


def made(kind: str, path: Path) -> Path:
    """Create something of a kind of `NO_FILES` at `path`."""
    if kind == "a file that nobody may read" and os.geteuid() == 0:
        pytest.skip("root may read any file")
    path.unlink(missing_ok=True)
    NO_FILES[kind](path)
    return path


class Late(BaseException):
    """Something takes too long; no error that a program may expect."""


PATIENCE = 20


@contextlib.contextmanager
def soon(seconds: float = 2.0) -> Iterator[None]:
    """What is inside takes at most `seconds` of work, and is interrupted where it hangs: others may be busy here."""

    def late(*_: object) -> None:
        raise Late(f"not done after {PATIENCE * seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * seconds)
    began = time.process_time()
    try:
        yield
        assert time.process_time() - began < seconds
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
