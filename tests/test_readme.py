"""README's blocks as a reader types them: `sh` and `python` ones run in order, `console` ones print what they show.

`text` blocks are not run. Searches have few trials here, trainings one epoch of a few images (`SHORTER`), and pip is
left out.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from igc_nas.io.resources import PACKAGE
from tests.support.images import image_folder

ROOT = PACKAGE.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KNOWN = {"sh", "python", "console", "text", "toml"}
SHORTER = """
pip() { :; }
igc-nas() {
    case "$1" in
        search) command igc-nas "$@" --dataset flowers --trials 2 --workers 1 \
            --recipe "epochs=1,train_size=200,rungs=[]" ;;
        train) command igc-nas "$@" --dataset flowers --validate 0 --epochs 1 ;;
        finals) command igc-nas "$@" --epochs 1 --top 1 ;;
        *) command igc-nas "$@" ;;
    esac
}
"""


def blocks(document: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block of a document."""
    return BLOCK.findall((ROOT / document).read_text())


@pytest.mark.parametrize("document", ["README.md", "search_spaces/README.md", "studies/README.md"])
def test_links_lead_somewhere_and_blocks_have_a_language(document: str) -> None:
    text = (ROOT / document).read_text()
    assert {language for language, _ in blocks(document)} <= KNOWN
    for target in re.findall(r"\]\(([^)#\s]+)?(#[^)\s]+)?\)", text):
        path, anchor = target
        if path.startswith("http"):
            continue
        place = ((ROOT / document).parent / path) if path else ROOT / document
        assert place.exists(), target
        if anchor:
            assert anchor[1:] in anchors(place.read_text()), target


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shown() -> Iterator[tuple[str, str]]:
    """(command, its output) of each `console` block."""
    for document in ("README.md", "search_spaces/README.md", "studies/README.md"):
        for language, content in blocks(document):
            if language == "console":
                for part in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
                    command, _, output = part.partition("\n")
                    yield command, output


@pytest.mark.parametrize(("command", "output"), list(shown()))
def test_a_printed_output_is_what_the_command_prints(command: str, output: str) -> None:
    assert on_a_terminal(command, 80).strip() == output.strip()


def on_a_terminal(command: str, columns: int) -> str:
    """What a command prints on a terminal of so many columns."""
    master, slave = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns)}
    process = subprocess.Popen([sys.executable, "-m", "igc_nas", *shlex.split(command)[1:]], stdout=slave,
                               stderr=slave, stdin=slave, env=environment)  # fmt: skip
    os.close(slave)
    printed = b""
    try:
        while chunk := os.read(master, 65536):
            printed += chunk
    except OSError:  # the terminal is closed with its last process
        pass
    os.close(master)
    assert process.wait() == 0
    return printed.decode().replace("\r\n", "\n")


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "search_spaces/README.md"])
def test_the_blocks_run_in_order(document: str, tmp_path: Path) -> None:
    image_folder(tmp_path / "flowers", counts=(80, 80, 80, 80, 80), classes=("aster", "lily", "poppy", "rose", "tulip"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IGC_NAS_DATA": str(tmp_path / "data")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    for language, content in blocks(document):
        command = {"sh": ["bash", "-e", "-c", SHORTER + content], "python": [sys.executable, "-c", content]}.get(
            language
        )
        if command:
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{content}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
