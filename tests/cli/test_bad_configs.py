"""Invalid architectures, spaces, studies, recipes and quantities: each is refused in one line that names the place."""

from __future__ import annotations

import json
import math
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from igc_nas.analysis.tables import candidate_row, frame
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.cli.study_flags import SearchRequest, parse_recipe, resolve_study
from igc_nas.data.datasets import locate
from igc_nas.engine.progress import trial_line
from igc_nas.errors import ConfigError, StudyError, UsageError
from igc_nas.exports.source import Source, config_text
from igc_nas.io.records import parse_toml
from igc_nas.io.resources import shipped
from igc_nas.io.units import format_count, parse_count, parse_ms, parse_seconds
from igc_nas.nn.device import find_devices
from igc_nas.space.search_space import SearchSpace, SpaceFile
from igc_nas.study.front_table import table_lines
from igc_nas.study.records import Trial
from igc_nas.study.spec import Recipe, StudySpec
from igc_nas.study.study import Study
from tests.io.test_units import NO_QUANTITY
from tests.support.builders import one_line, taken
from tests.support.commands import Command, refused
from tests.support.mutations import (
    NO_FILES,
    as_json,
    as_toml,
    at,
    damaged,
    deep,
    made,
    places,
    sizes,
    soon,
    spoiled,
    with_part,
    without_part,
)
from tests.support.studies import make_study

SLOW = 2.0
"""Seconds within which any bad input is refused."""

ARCHITECTURE: dict[str, Any] = {
    "input": [3, 32, 32],
    "classes": 10,
    "stem": {"width": 24, "kernel": 3, "stride": 1, "activation": "relu"},
    "stage": [
        {"unit": "igcv1", "L": 12, "M": 2, "blocks": 2, "kernel": 3, "stride": 1, "residual": True},
        {"unit": "igcv2", "width": 24, "depth": 3, "K": 4, "blocks": 1},
        {"unit": "igcv3", "width": 32, "expand": 4, "G1": 2, "G2": 4, "blocks": 1, "stride": 2},
        {"unit": "conv", "width": 8, "blocks": 1},
    ],
    "head": {"width": 64, "activation": "relu6"},
}
SPACE: dict[str, Any] = tomllib.loads((shipped("search_spaces") / "tiny.toml").read_text())
STUDY: Study = make_study(4, others=("infeasible", "duplicate", "failed", "running", "waiting"))
QUESTION: dict[str, Any] = tomllib.loads(STUDY.spec.to_toml())
RECORDS: list[dict[str, Any]] = [json.loads(trial.to_json()) for trial in STUDY.trials]
RECORDS[0]["candidate"]["latency"] |= {"deployed_params": 1000, "deployed_macs": 2000, "weight_bytes": 4000}


Reader = Callable[[bytes], Any]


def read_architecture(data: bytes | str) -> ArchConfig:
    arch = ArchConfig.from_toml(_text(data), "net.toml")
    cost_of(arch)
    return arch


def read_space(data: bytes | str) -> SearchSpace:
    file = SpaceFile.parse(parse_toml(_text(data), "space.toml"), "space.toml")
    space = SearchSpace(file, 10, "space")
    assert space.size > 0
    return space


def read_study(data: bytes | str) -> StudySpec:
    return StudySpec.from_toml(_text(data), "study.toml")


def _text(data: bytes | str) -> str:
    try:
        return data if isinstance(data, str) else data.decode()
    except UnicodeDecodeError:
        raise ConfigError("not UTF-8") from None


# Named: each key of a file with each kind of wrong value, removed, and with an unknown key beside it.

NO_NUMBER = ("8", "", True, 1.5, -1, 10**30, math.nan, math.inf, -math.inf, date(1979, 5, 27), {}, {"a": 1}, deep(40))
WRONG: dict[type, tuple[Any, ...]] = {
    int: NO_NUMBER,
    float: ("0.5", True, -1.0, math.nan, math.inf, -math.inf, date(1979, 5, 27), {}, deep(40)),
    bool: ("true", "", 0, 1, 1.0, math.nan, {}, deep(40)),
    str: (3, True, 1.5, math.nan, date(1979, 5, 27), {}, [], ["a"]),
    list: (3, True, 1.5, math.nan, "abc", {}, {"a": 1}, deep(40)),
    dict: (3, True, 1.5, math.nan, "abc", deep(40)),
}


WRONG_CHOICE = ("abc", {}, {"a": 1}, [], [[]], [None, "a"], deep(40))
"""Of a list further in, which is a choice in a space: one value may stand for it."""


def wrong_values(data: dict[str, Any], leave: tuple[str, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(place, value) for each place whose value is of one type alone; `leave` are keys of what is not checked."""
    for path in places(data):
        if path[0] not in leave and at(data, path) != []:
            kind = type(at(data, path))
            yield from ((path, value) for value in (WRONG_CHOICE if kind is list and path[1:] else WRONG[kind]))


def strangers(data: dict[str, Any], leave: tuple[str, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(place, value) of an unknown key, in every table."""
    tables = [(), *(path for path in places(data) if isinstance(at(data, path), dict) and path[0] not in leave)]
    return (((*path, key), value) for path in tables for key, value in (("unknown", 1), ("", "a"), ("__class__", [])))


NAMED = {
    "architecture": (read_architecture, ARCHITECTURE, [*wrong_values(ARCHITECTURE), *strangers(ARCHITECTURE)]),
    "space": (read_space, SPACE, [*wrong_values(SPACE), *strangers(SPACE)]),
    "study": (
        read_study,
        QUESTION,
        [*wrong_values(QUESTION, leave=("space", "bounds")), *strangers(QUESTION, leave=("space", "bounds"))],
    ),
}


@pytest.mark.parametrize("kind", NAMED)
def test_a_wrong_value_is_refused_by_its_place(kind: str) -> None:
    read, good, cases = NAMED[kind]
    read(as_toml(good))
    for path, value in cases:
        message = refusal(read, as_toml(with_part(good, path, value)))
        key = next(str(part) for part in reversed(path) if isinstance(part, str))
        assert key in message, (path, value, message)


def refusal(read: Reader, data: bytes) -> str:
    """The one-line error that `data` raises within `SLOW` seconds."""
    with soon(), pytest.raises((ConfigError, StudyError)) as raised:
        read(data)
    return one_line(raised)


def test_these_are_many() -> None:
    assert sum(len(cases) for _, _, cases in NAMED.values()) >= 300


REQUIRED = {
    "architecture": "stem stage stem.width stage.0.unit stage.0.L stage.0.M stage.0.blocks stage.1.width stage.1.depth "
    "stage.2.width stage.2.expand stage.3.width head.width",
    "space": "stem stage stem.width stage.0.blocks stage.0.igcv1.L stage.1.igcv2.width",
    "study": "name space_name classes dataset dataset_sha256 recipe latency space latency.device space.stem "
    "space.stage recipe.epochs recipe.batch recipe.lr recipe.train_size recipe.held_out recipe.resolution",
}


@pytest.mark.parametrize("kind", NAMED)
def test_a_key_that_is_not_there_is_named(kind: str) -> None:
    read, good, _ = NAMED[kind]
    for place in REQUIRED[kind].split():
        path = tuple(int(part) if part.isdigit() else part for part in place.split("."))
        message = refusal(read, as_toml(without_part(good, path)))
        assert path[-1] in message, (place, message)


def test_a_key_has_one_name() -> None:
    """Python's names of the fields are not the file's."""
    for read, good, ours, theirs in (
        (read_architecture, ARCHITECTURE, "stage", "stages"),
        (read_space, SPACE, "stage", "stages"),
        (read_study, QUESTION, "schema", "schema_version"),
    ):
        renamed = without_part(good, (ours,)) | {theirs: good[ours]}
        assert f"{theirs}: unknown key" in refusal(read, as_toml(good | renamed))
        refusal(read, as_toml(renamed))


# Generated: good files spoiled, as data and as bytes.

READERS = {
    "architecture": (read_architecture, ARCHITECTURE),
    "space": (read_space, SPACE),
    "study": (read_study, QUESTION),
}


@pytest.mark.parametrize("kind", READERS)
@sizes(40, 2500)
def test_a_spoiled_file_is_read_or_refused(kind: str, count: int) -> None:
    read, good = READERS[kind]

    @settings(max_examples=count)
    @given(spoiled(good))
    def check(data: Any) -> None:
        with soon():
            taken(lambda: read(as_toml(data)))

    check()


@pytest.mark.parametrize("kind", READERS)
@sizes(40, 1500)
def test_a_damaged_file_is_read_or_refused(kind: str, count: int) -> None:
    read, good = READERS[kind]

    @settings(max_examples=count)
    @given(damaged(as_toml(good)))
    def check(data: bytes) -> None:
        with soon():
            taken(lambda: read(data))

    check()


@sizes(100, 3000)
def test_a_spoiled_trial_is_read_or_refused(count: int) -> None:
    """A trial that can be read can also be shown, exported and written."""

    @settings(max_examples=count)
    @given(st.sampled_from(RECORDS).flatmap(spoiled))
    @example(with_part(RECORDS[0], ("candidate", "latency", "median_ms"), 1e-320))
    @example(with_part(RECORDS[0], ("candidate", "latency", "deployed_params"), 10**400))
    @example(with_part(RECORDS[0], ("candidate", "latency", "deployed_macs"), 10**400))
    @example(with_part(RECORDS[0], ("candidate", "latency", "weight_bytes"), 10**400))
    def check(data: Any) -> None:
        trial = taken(lambda: Trial.from_json(as_json(data), "line 1"))
        if trial is not None:
            assert Trial.from_json(trial.to_json()) == trial
            shown(Study(STUDY.spec, (trial,)))

    check()


def shown(study: Study) -> None:
    """Everything that is shown or exported of a study."""
    front = study.front()
    frame(front).to_csv()
    for candidate in front:
        json.dumps(candidate_row(candidate), allow_nan=False)
        table_lines([candidate], 80)
        json.dumps(study.scaled(candidate), allow_nan=False)
    for trial in study.trials:
        trial_line(trial)
        if trial.candidate or trial.arch:
            config_text(Source.of_trial(study, trial))


# Something else in place of a file.


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `studies/good`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IGC_NAS_DATA", str(tmp_path / "data"))
    folder = tmp_path / "studies" / "good"
    folder.mkdir(parents=True)
    (folder / "study.toml").write_bytes(as_toml(QUESTION))
    (folder / "trials.jsonl").write_bytes(b"".join(as_json(record) + b"\n" for record in RECORDS))
    return folder


@pytest.mark.parametrize("kind", NO_FILES)
def test_something_that_is_no_file_is_refused_at_once(kind: str, studies: Path, cli: Command) -> None:
    path = made(kind, Path("x.toml"))
    searches = ("search --space x.toml", "search --enqueue x.toml") if kind.startswith("a pipe") else ()
    for line in ("cost x.toml", "show x.toml", "space x.toml", *searches):
        with soon():
            answer = cli(*line.split())
        refused(answer, 2, path.name)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["study.toml", "trials.jsonl"])
def test_a_study_without_regular_files_is_refused_at_once(kind: str, name: str, studies: Path, cli: Command) -> None:
    made(kind, studies / name)
    for line in ("front good", "export good", "dashboard good", "report good", "show good:1", "search --study good"):
        if name == "study.toml" and line.startswith("search") and not (studies / name).is_file():
            continue  # there is no study of this name: another one begins
        with soon():
            answer = cli(*line.split())
        refused(answer, 4)
        assert name in answer.err or "'good'" in answer.err
    assert sorted(path.name for path in studies.iterdir()) == ["study.toml", "trials.jsonl"]


# The command line: exit statuses, and no traceback.


@sizes(12, 400)
def test_spoiled_files_on_the_command_line(count: int, studies: Path, cli: Command) -> None:
    @settings(max_examples=count, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        spoiled(ARCHITECTURE), spoiled(SPACE), spoiled(QUESTION), st.lists(st.sampled_from(RECORDS).flatmap(spoiled))
    )
    def check(architecture: Any, space: Any, question: Any, records: Any) -> None:
        Path("net.toml").write_bytes(as_toml(architecture))
        Path("space.toml").write_bytes(as_toml(space))
        for line in (
            "cost net.toml",
            "show net.toml --json",
            "space space.toml",
            "space space.toml --budget-params 1M",
        ):
            harmless(line, cli, 2, 3)
        for good, spoilt in ((question, None), (QUESTION, records)):
            (studies / "study.toml").write_bytes(as_toml(good))
            (studies / "trials.jsonl").write_bytes(b"".join(as_json(r) + b"\n" for r in spoilt or RECORDS))
            for line in ("front good", "front good --json", "front good --csv", "export good", "show good:0"):
                harmless(line, cli, 4)

    check()


def harmless(line: str, cli: Command, *statuses: int) -> None:
    """A command that works, or is refused with one of `statuses`."""
    with soon():
        answer = cli(*line.split())
    assert (answer.out + answer.err).replace("\n", "").isprintable(), line
    if answer.status:
        assert answer.status in statuses, answer
        refused(answer, answer.status)


def test_a_study_is_continued_in_its_own_folder(studies: Path) -> None:
    """Whatever name study.toml holds, nothing is written elsewhere."""
    shapes, device = locate("shapes"), find_devices("cpu")[0]
    question = QUESTION | {"name": "../../elsewhere", "dataset": "shapes", "dataset_sha256": shapes.sha256}
    (studies / "study.toml").write_bytes(as_toml(question))
    request = SearchRequest(root=Path("studies"), study_name="good")
    found = resolve_study(request, replace(device, name=QUESTION["latency"]["device"]))
    assert found.continued
    assert found.folder == Path("studies/good")


# Recipes.

BAD_RECIPES = [
    "", ",", "=", "epochs", "epochs=", "=3", "epochs==3", "epochs=3,", ",epochs=3", "epochs=3,,lr=1", "epochs 3",
    "epochs:3", "epochs=three", "epochs=3.0", "epochs=true", "epochs='3'", "epochs=-1", "epochs=0", "epochs=10001",
    "epochs=1e3", "epochs=[3]", "epochs={a=1}", "epochs=inf", "epochs=nan", "epochs=9223372036854775808",
    "epochs=" + "9" * 5000, "epochs=0x", "epochs=1979-05-27", "epochs=3 # more", "epochs=3\nlr=1", "epochs=\x00",
    "epochs=\x1b[31m", "epochs=\u202e3", "epochs=\ud800", "epoch=3", "Epochs=3", "EPOCHS=3", "epochs.a=3", "a b=3",
    "1=2", "-=3", "__class__=3", "lr=0", "lr=-1", "lr=inf", "lr=nan", "lr=101", "lr=1e400", "lr=fast", "lr=[0.1]",
    "momentum=1", "momentum=-0.1", "weight_decay=2", "warmup=0", "warmup=1", "label_smoothing=1", "crop=-1", "crop=65",
    "flip=1", "flip=yes", "dtype=float64", "dtype=3", "dtype=os.system", "forms=any", "batch=0", "batch=65537",
    "train_size=0", "held_out=0", "resolution=3", "resolution=1025", "average=1", "rungs=5", "rungs=[0]", "rungs=[-1]",
    "rungs=[1.5]", "rungs=['a']", "rungs=[[1]]", "rungs=[2,1]", "rungs=[1,1]", "rungs=[999999999]", "rungs=[1,2,3",
    "rungs=1,2]", "rungs=" + "[" * 5000, "rungs=" + "[" * 100 + "]" * 100, "rungs=" + str(list(range(1, 40))),
    "[" * 100_000, "," * 120_000, "a=[" + "1," * 60_000,
]  # fmt: skip


def recipe(text: str) -> Recipe:
    return Recipe.parse(QUESTION["recipe"] | parse_recipe([text]), "recipe")


@pytest.mark.parametrize("text", BAD_RECIPES, ids=lambda text: ascii(text)[:20])
def test_a_bad_recipe_is_refused_soon(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(UsageError) as raised:
        recipe(text)
    assert time.monotonic() - began < SLOW
    one_line(raised)


@pytest.mark.parametrize(
    "text", ["epochs=three", "lr=0", "rungs=[2,1]", "Epochs=3", "epochs==3", "a=[" + "1," * 40_000]
)
def test_a_bad_recipe_on_the_command_line(text: str, studies: Path, cli: Command) -> None:
    with soon():
        refused(cli("search", "--space", "tiny", "--dataset", "shapes", "--recipe", text), 2, text.partition("=")[0])
    assert not list(studies.parent.glob("tiny*"))


def test_commas_within_brackets_do_not_split_a_recipe() -> None:
    assert parse_recipe(["rungs=[1, 2],epochs=3", "average=[[1,2],[3]],dtype=x"]) == {
        "rungs": [1, 2], "epochs": 3, "average": [[1, 2], [3]], "dtype": "x",
    }  # fmt: skip


@sizes(100, 2000)
def test_any_text_is_a_recipe_or_refused(count: int) -> None:
    words = st.sampled_from(
        ["epochs", "lr", "rungs", "=", "=", ",", "[", "]", "{", "}", "'", '"', "#", "\n", "3", "0.1"]
    )

    @settings(max_examples=count)
    @given(st.lists(words | st.text(max_size=3), max_size=12).map("".join))
    def check(text: str) -> None:
        taken(lambda: recipe(text))

    check()


# Quantities.

TOO_LARGE = [
    "9223372036854775808",
    "9223372036854775.808k",
    "10000000000G",
    "999999999999999999M",
    "999999999999999999B",
]
FLAGS = {
    "--budget-params": (parse_count, [*NO_QUANTITY, "1.5", "0.0005k", "5ms", "2m", *TOO_LARGE]),
    "--budget-latency": (parse_ms, [*NO_QUANTITY, "5", "5M", "5m", "5MS"]),
    "--time": (parse_seconds, [*NO_QUANTITY, "5ms", "1d", "2H"]),
}


def test_there_are_many_quantities() -> None:
    assert sum(len(texts) for _, texts in FLAGS.values()) >= 100


@pytest.mark.parametrize("flag", FLAGS)
def test_invalid_quantities_on_the_command_line(flag: str, studies: Path, cli: Command) -> None:
    parse, texts = FLAGS[flag]
    for text in texts:
        with pytest.raises(UsageError) as raised:
            parse(text, flag)
        one_line(raised)
        refused(cli("search", "--space", "tiny", flag, text), 2, flag)
    assert not list(studies.parent.glob("tiny*"))


@sizes(100, 2000)
def test_any_text_is_a_quantity_or_refused(count: int) -> None:
    digits = st.text(alphabet=st.sampled_from("0123456789.kKMGBmsuh -+eE_,\u0662"), max_size=24)

    @settings(max_examples=count)
    @given(digits | st.text(max_size=8))
    def check(text: str) -> None:
        for parse, _ in FLAGS.values():
            value = taken(lambda parse=parse: parse(text))
            assert value is None or (0 < value < math.inf)
        params = taken(lambda: parse_count(text))
        if params is not None:
            assert read_study(as_toml(with_part(QUESTION, ("budget", "params"), params))).budget.params == params
            assert format_count(params)

    check()
