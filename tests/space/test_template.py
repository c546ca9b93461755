"""The file that `igc-nas space --new` writes: it holds every key, is a space, and each of its options is one, too."""

import re
from pathlib import Path

import pytest

import igc_nas
from igc_nas.arch.config import Head, Stem
from igc_nas.arch.stages import STAGE_OF_UNIT, UNITS
from igc_nas.data.datasets import locate
from igc_nas.io.records import parse_toml
from igc_nas.io.resources import PACKAGE
from igc_nas.space.search_space import TEMPLATE, SearchSpace, SpaceFile
from igc_nas.study.spec import Recipe
from tests.support.commands import Command, refused
from tests.support.searches import evaluate

OPTION = re.compile(r"^# (\w+ = .*)$")


def with_option(line: str) -> str:
    """The template with a line that it has as a comment; `reduce` needs its unit, head keys their table."""
    lines = []
    for each in TEMPLATE.read_text().splitlines():
        if each == line:
            lines += ['unit = "bsconv"'] if line.startswith("# reduce") else []
            lines.append(each.removeprefix("# "))
        elif each.startswith("# [head]"):
            lines += ["[head]", "width = 64", 'pool = "gdc"'] if line in HEAD else [each]
        else:
            lines.append(each)
    return "\n".join(lines)


OPTIONS = [line for line in TEMPLATE.read_text().splitlines() if OPTION.match(line)]
HEAD = OPTIONS[next(i for i, line in enumerate(OPTIONS) if line.startswith('# pool = "average"')) :]


@pytest.mark.parametrize("line", [o for o in OPTIONS if not o.startswith(('# pool = "average"', "# width = 128"))])
def test_every_commented_option_is_one(line: str) -> None:
    file = SpaceFile.parse(parse_toml(with_option(line), "options"), "options")
    assert SearchSpace(file, 10).size > 0


@pytest.mark.parametrize("document", [TEMPLATE, PACKAGE.parent / "search_spaces" / "README.md"])
def test_every_key_is_named(document: Path) -> None:
    words = set(re.findall(r"\w+", document.read_text()))
    records = [SpaceFile, Stem, Head, *(STAGE_OF_UNIT[unit] for unit in UNITS)]
    records += [Recipe] if document.suffix == ".md" else []
    keys = {field.alias or name for record in records for name, field in record.model_fields.items()}
    assert keys <= words


def test_the_file_is_written_loaded_and_searched(cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = cli("space", "--new", "my.toml")
    assert (answer.status, answer.out) == (0, "")
    assert "igc-nas search --space my.toml" in answer.err
    assert "architectures" in cli("space", "my.toml").text
    spec = igc_nas.new_spec(locate("shapes"), "stub", space="my.toml", sampler="stratified")
    found = list(igc_nas.search(spec, igc_nas.Run(tmp_path / "st", trials=2), evaluate=evaluate))
    assert len(found) == 2
    refused(cli("space", "--new", "my.toml"), 2, "my.toml exists")
    refused(cli("space", "--new", "my.json"), 2, "my.json", ".toml")
    refused(cli("space", "tiny", "--new", "other.toml"), 2, "takes no NAME")
