"""Names, labels and reasons in the files of a study or a space from elsewhere stay text wherever they are shown."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from igc_nas.analysis.tables import csv_text
from igc_nas.arch.config import ArchConfig
from igc_nas.engine.events import Ended, Exhausted, Opened
from igc_nas.engine.progress import SearchDisplay
from igc_nas.io.resources import shipped
from igc_nas.io.text import printable
from igc_nas.study.records import Trial
from igc_nas.study.study import Study, load_study
from tests.support.commands import Answer, Command
from tests.support.hostile import FORMULAS, NAMES
from tests.support.mutations import as_json, as_toml
from tests.support.pages import Page
from tests.support.studies import make_study

SOME = [
    "</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onfocus=alert(1) autofocus='",
    "<!-- <script>", "</bdi></title></textarea></style>", "\x1b[31mred\x07", "=1+1", "\u202egnp.exe\u2066", "a\nb",
    "../../a", "x" * 5000,
]  # fmt: skip
"""One name of each kind, for every run."""


def names(short: list[str]) -> list[Any]:
    """Those of `short` in every run, all others with `-m faults`."""
    return [*short, *(pytest.param(name, marks=pytest.mark.faults) for name in NAMES if name not in short)]


GOOD = make_study(3, others=("failed", "infeasible"), dataset="other")


def write(folder: Path, name: str, study: Study = GOOD, ids: bool = True) -> Path:
    """A study with `name` in every text field of its files; `ids`: as ids of networks, too."""
    question, records = study.spec.to_dict(), [json.loads(trial.to_json()) for trial in study.trials]
    question |= {"name": name, "space_name": name, "dataset": name, "dataset_sha256": name}
    question["latency"] |= {"device": name}
    question["space"] |= {"paper": name, "intent": name}
    for record in records:
        record |= {"reason": name, "started": name, "params": {name: name}, "process": {"host": name, "pid": 1}}
        if candidate := record.get("candidate"):
            candidate["id"] = name if ids else candidate["id"]
            candidate["score"] |= {"dataset": name, "dataset_sha256": name, "form": name, "dtype": name}
            candidate["score"]["conditions"] |= {"device": name, "torch": name}
            candidate["latency"] |= {
                "form": name,
                "runtime": name,
                "dtype": name,
                "memory_format": name,
                "noise": [name],
            }
            candidate["latency"]["conditions"] |= {"device": name, "throttle": [name]}
            candidate["latency"]["noisy"] = True
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_bytes(as_toml(question))
    (folder / "trials.jsonl").write_bytes(b"".join(as_json(record) + b"\n" for record in records))
    return folder


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a hostile study, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "studies" / "s"


def test_there_are_many_names() -> None:
    assert len(NAMES) >= 60


def harmless(answer: Answer) -> str:
    """The command succeeded and printed no control characters."""
    assert answer.status == 0, answer.err
    assert (answer.out + answer.err).replace("\n", "").isprintable()
    return answer.out


@pytest.mark.parametrize("name", names([*SOME, *FORMULAS]), ids=lambda name: ascii(name)[:30])
def test_a_name_stays_text(name: str, hostile: Path, cli: Command) -> None:
    write(hostile, name)
    before = sorted(hostile.parent.parent.rglob("*"))
    lines = harmless(cli("front", "s")).splitlines()
    assert len(lines) >= 4
    harmless(cli("show", "s:1"))

    found = json.loads(harmless(cli("front", "s", "--json")))
    assert (found["study"], found["dataset"]) == (name, name)
    assert {row[key] for row in found["candidates"] for key in ("id", "form", "dataset")} == {name}
    assert json.loads(harmless(cli("show", "s:1", "--json")))["arch"] == found_arch(hostile)

    text = harmless(cli("front", "s", "--csv"))
    table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    assert len(table) == len(found["candidates"])
    for key in ("id", "form", "dataset"):
        assert set(table[key]) == {cell_of(name)}
    for row in csv.reader(io.StringIO(text)):
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in row)
    assert sorted(hostile.parent.parent.rglob("*")) == before

    harmless(cli("export", "s", "--pick", "trial:1", "-o", "arch.toml"))
    assert ArchConfig.load(Path("arch.toml")).to_dict() == found_arch(hostile)
    assert sorted(path.name for path in Path().iterdir()) == ["arch.toml", "studies"]
    assert sorted(path.name for path in hostile.iterdir()) == ["study.toml", "trials.jsonl"]


def found_arch(folder: Path) -> dict[str, Any]:
    arch = load_study(folder).trials[1].arch
    assert arch is not None
    return arch.to_dict()


def cell_of(name: str) -> str:
    """The CSV cell of a name: the name, made printable, with an apostrophe before a formula or a number."""
    shown = printable(name, lines=False)
    is_number = shown.isascii() and taken(lambda: float(shown.strip())) is not None
    return f"'{shown}" if (shown.strip() and shown.strip()[0] in "=+-@") or is_number else shown


def taken(read: Callable[[], float]) -> float | None:
    try:
        return read()
    except ValueError:
        return None


@pytest.mark.parametrize("identity", ["649351836661", "0130365e0639", "000000000000", "12e345678901"])
def test_an_id_that_looks_like_a_number_is_read_back_as_text(identity: str) -> None:
    text = csv_text([GOOD.candidates[0].model_copy(update={"id": identity})])
    assert pd.read_csv(io.StringIO(text)).id.tolist() == [f"'{identity}"]


def test_ordinary_names_and_numbers_come_through_a_csv_unchanged() -> None:
    text = csv_text(GOOD.front())
    table = pd.read_csv(io.StringIO(text))
    for candidate, (_, row) in zip(GOOD.front(), table.iterrows(), strict=True):
        assert (row["id"], row["dataset"], row["summary"]) == (candidate.id, "other", str(candidate.arch))
        assert (row["error"], row["params"]) == (candidate.score.error, candidate.cost.params)
        assert row["latency_ms"] == candidate.latency.normalised_ms
    assert csv_text(()).count("\n") == 1


@pytest.mark.parametrize("name", names(SOME), ids=lambda name: ascii(name)[:30])
def test_a_name_stays_text_in_the_page(name: str, hostile: Path, cli: Command) -> None:
    """The page has the elements and attributes of any other, and the same scripts."""
    write(hostile, name)
    harmless(cli("dashboard", "s"))
    write(Path("studies/t"), "plain" if not name.startswith("shapes") else "shapes")
    harmless(cli("dashboard", "t"))
    found, usual = (Page((Path("studies") / s / "dashboard.html").read_text()) for s in "st")
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in usual.elements]
    assert [set(attributes) for _, attributes in found.elements] == [
        set(attributes) for _, attributes in usual.elements
    ]
    assert len(found.scripts) == len(usual.scripts) == 3
    assert found.scripts[1:] == usual.scripts[1:]
    assert "<" not in found.scripts[0]
    assert sorted(path.name for path in Path("studies").iterdir()) == ["s", "t"]
    assert sorted(path.name for path in Path().iterdir()) == ["studies"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
def test_a_reason_stays_text_on_the_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed = Trial(number=7, state="failed", params={}, reason=name)
    with SearchDisplay(3, None) as display:
        for event in (Opened(GOOD), Ended(failed), Exhausted(name)):
            display.show(event)
    said = capsys.readouterr()
    assert said.out == ""
    assert "trial    7  failed" in said.err
    assert said.err.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", names(SOME), ids=lambda name: ascii(name)[:30])
def test_a_space_of_any_words_is_shown(name: str, hostile: Path, cli: Command) -> None:
    space = tomllib.loads((shipped("search_spaces") / "tiny.toml").read_text()) | {"paper": name, "intent": name}
    Path("space.toml").write_bytes(as_toml(space))
    harmless(cli("space", "space.toml"))
    assert json.loads(harmless(cli("space", "space.toml", "--json")))["file"]["paper"] == name


def test_a_report_of_any_words(hostile: Path, cli: Command) -> None:
    for name in SOME[:-1]:
        for folder in (hostile, hostile / "long"):
            write(folder, name, make_study(6), ids=False)
        harmless(cli("report", "s"))
    assert json.loads(harmless(cli("report", "s", "--json")))["study"]["completed"] == 6
