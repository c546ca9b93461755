"""What commands print on a terminal of any width: no line is wider, no number loses its unit, no word is broken."""

import codecs
import io
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from igc_nas.bench.report import Report
from igc_nas.cli import main
from igc_nas.io.console import passing
from igc_nas.io.text import spelled, wrapped
from igc_nas.study.study import load_study

WIDTHS = (40, 60, 80, 100, 160)
FRONT, FINALS = "igc_cifar10_2m", "finals_cifar10"
COMMANDS = {
    "front": ("front", FRONT),
    "front of predictions": ("front", FINALS),
    "front of finals": ("front", FINALS, "--finals"),
    "status": ("status", FINALS),
    "show a trial": ("show", f"{FRONT}:43"),
    "show a network": ("show", "igcv1-l8m2-d8"),
    "cost": ("cost", "igcv3-d-cifar"),
    "spaces": ("space",),
    "space": ("space", "igcv2_cifar"),
    "space within a budget": ("space", "tiny", "--budget-params", "3k"),
    "measure": ("measure", "igcv1-l4m2-d8", "--runtime", "eager"),
    "report": ("report", FRONT),
    "doctor": ("doctor", "--no-check"),
    "an unknown study": ("front", "nosuch"),
    "a wrong number": ("search", "--budget-params", "2MB"),
    "an unknown space": ("search", "--space", "nosuch", "--trials", "1"),
}
FEWER = {"doctor": (40,), "measure": (40,), "report": (40, 80), "space": (40, 80)}
"""Widths for commands that take half a second or more."""
KEEPS_ALL = ("status", "cost", "space", "space within a budget", "an unknown study", "an unknown space")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def printed(arguments: Sequence[str], width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of a command on a terminal of `width` columns."""
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        main(arguments)
    shown = re.sub(r"[^\n\r]*\r *\r", "", terminal.getvalue())  # what `passing` has shown meanwhile
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown).splitlines()


IS_COMMAND = re.compile(r" *(igc-nas|pip) ")
UNIT = re.compile(r"\s*(%|(ms|s|MB|k|M|images|pixels)\b)")


def broken_laws(lines: Sequence[str], width: int) -> list[str]:
    """What is wrong with printed lines; commands to type and single words may be longer, to be copied."""
    wide = [line for line in lines if len(line) > width and not IS_COMMAND.match(line) and " " in line.strip()]
    torn = [above for above, line in itertools.pairwise(lines) if above[-1:].isdigit() and UNIT.match(line)]
    short = ["x" if 0 < len(line.strip()) <= 2 else " " for line in lines]
    return wide + torn + (["folded to letters"] if "xxx" in "".join(short) else [])


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_wider_than_its_terminal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = []
    for width in FEWER.get(name, WIDTHS):
        lines = printed(COMMANDS[name], width, monkeypatch)
        assert broken_laws(lines, width) == [], f"{width} columns"
        said.append("".join("".join(lines).split()))
    assert said[0]
    if name in KEEPS_ALL:
        assert len(set(said)) == 1, "a narrow terminal has every word"


PATH = Path("a-folder-of-mine/with/a-long/name/that/no-narrow-terminal/holds/in-one-line.toml")


@pytest.mark.parametrize("arguments", [("front", PATH), ("cost", PATH), ("search", "--dataset", PATH), ("space", PATH)])
def test_a_path_is_not_broken(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied as one word, however narrow the terminal."""
    assert [line for line in printed([*map(str, arguments)], 40, monkeypatch) if str(PATH) in line]


def test_what_passes_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal shows it, as much as one line holds; a pipe has nothing of it."""
    with passing("loading torch ..."):
        pass
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "10")
    with passing("loading torch ..."):
        assert terminal.getvalue() == "loading t"
    assert terminal.getvalue() == "loading t\r         \r"


def test_a_terminal_of_ascii_has_symbols_spelled() -> None:
    """Neither UTF-8 that it cannot show, nor escapes; what users have written is escaped."""
    typed = [sys.executable, "-m", "igc_nas", "front", FINALS, "--finals"]
    done = subprocess.run(typed, capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert re.search(r" \+- \d\.\d\d %", done.stdout.decode("ascii"))
    codecs.register_error("spelled", spelled)
    assert "trial 3 …, ± 2, name 'é'".encode("ascii", "spelled") == rb"trial 3 ~, +- 2, name '\xe9'"
    assert "± 2, …".encode("latin-1", "spelled") == b"\xb1 2, ~"


def test_a_member_of_a_front_is_one_line_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [line for line in printed(("front", FRONT), 80, monkeypatch) if re.match(r" *\d+  ", line)]
    whole = re.compile(r" +(\d+) +\d+\.\d\d % +\d+\.\d\d[kM] +\d+\.\d\d[kM] +\d+\.\d{3} ms ")
    found = [whole.match(row) for row in rows]
    assert [int(match[1]) for match in found if match] == [c.trial for c in load_study(FRONT).front()]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_benchmark_fits_its_terminal(width: int) -> None:
    row = {"name": "igcv3-c64-k3", "group": "igcv3 batch 1", "params": 1_234_567, "factored_ms": 12.3, "best_ms": 4.5}
    rows = tuple(row | {"ratio": ratio, "times_faster_format": 2.5} for ratio in (2.0, 8.0))
    lines = wrapped(Report("title", rows, {"device": "here", "threads": 1}).lines(width), width)
    assert broken_laws(lines, width) == []
    assert sum("igcv3-c64-k3" in line for line in lines) == len(rows)
