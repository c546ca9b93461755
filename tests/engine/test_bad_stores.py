"""Study databases, form tables, runs and settings that are spoiled: opened or refused, and the evidence stays."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igc_nas.bench.samplers.replay import Replay
from igc_nas.bench.samplers.runs import Task, run_tasks
from igc_nas.engine.database import DATABASE_FILE, parse_url, stored_study
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store
from igc_nas.errors import StudyError, UsageError
from igc_nas.nn.lowering.timing_cache import TimingCache, timing_cache_for
from igc_nas.study.records import Trial
from igc_nas.study.spec import Calibration
from igc_nas.study.study import load_study, read_trials
from tests.support.builders import one_line, refusal_of
from tests.support.commands import Command, refused
from tests.support.mutations import NO_FILES, as_json, damaged, flipped, sizes, soon, spoiled
from tests.support.searches import evaluate, latency, spec

SHARED = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of eight trials."""
    folder = tmp_path_factory.mktemp("stores") / "good"
    list(search(spec(), Run(folder, trials=8), evaluate=evaluate))
    return folder


def opened(searched: Path, folder: Path, database: bytes | Callable[[Path], object]) -> str | None:
    """Open a study with another database. Returns None or the refusal. trials.jsonl must keep all ended trials."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(searched, folder)
    place = folder / DATABASE_FILE
    place.write_bytes(database) if isinstance(database, bytes) else database(place)
    with soon(10):
        message = refusal_of(lambda: Store(folder, spec()).close())
    assert read_trials(folder / "trials.jsonl") == read_trials(searched / "trials.jsonl")
    return message


@sizes(16, 100)
def test_a_database_with_a_flipped_byte(count: int, searched: Path, tmp_path: Path) -> None:
    """Half of the bytes are any, half are some that are not 0."""
    good, rng = (searched / DATABASE_FILE).read_bytes(), random.Random(0)
    filled = [place for place, byte in enumerate(good) if byte]
    for number in range(count):
        place = rng.choice(filled) if number % 2 else rng.randrange(len(good))
        opened(searched, tmp_path / "s", flipped(good, place, 1 << rng.randrange(8)))


@sizes(5, 20)
def test_a_database_that_was_cut(count: int, searched: Path, tmp_path: Path) -> None:
    good = (searched / DATABASE_FILE).read_bytes()
    for number in range(count):
        opened(searched, tmp_path / "s", good[: len(good) * number // count])


def with_another_number(database: bytes) -> bytes:
    """A latency of 7 ms or more."""
    place = database.index(RECORDED) + len(RECORDED)
    return database[:place] + b"7" + database[place + 1 :]


RECORDED = b'median_ms\\":'


def test_a_number_that_changed_is_refused(searched: Path, tmp_path: Path) -> None:
    """A changed byte in a record of the database: trials.jsonl still has the original."""
    good = (searched / DATABASE_FILE).read_bytes()
    message = opened(searched, tmp_path / "s", with_another_number(good))
    assert message is not None
    assert message.startswith("StudyError the database and trials.jsonl of s differ on trial")


SQL = {
    "no records": "DELETE FROM trial_user_attributes",
    "a record less": "DELETE FROM trial_user_attributes WHERE trial_id = 3",
    "a record of junk": "UPDATE trial_user_attributes SET value_json = '\"junk\"' WHERE trial_id = 3",
    "a record of a number": "UPDATE trial_user_attributes SET value_json = '3' WHERE trial_id = 3",
    "a record of a list": "UPDATE trial_user_attributes SET value_json = '[]' WHERE trial_id = 3",
    "a record of null": "UPDATE trial_user_attributes SET value_json = 'null' WHERE trial_id = 3",
    "a record that is deep": "UPDATE trial_user_attributes SET value_json = replace(hex(zeroblob(50000)), '0', '[') "
    "WHERE trial_id = 3",
    "a pickle": "UPDATE trial_user_attributes SET value_json = X'80049520' WHERE trial_id = 3",
    "another's record": "UPDATE trial_user_attributes SET value_json = (SELECT value_json FROM trial_user_attributes "
    "WHERE trial_id = 1) WHERE trial_id = 3",
    "no trials": "DELETE FROM trials",
    "a trial less": "DELETE FROM trials WHERE trial_id = 3",
    "the last trial less": "DELETE FROM trials WHERE trial_id = 8",
    "the first trial less": "DELETE FROM trials WHERE trial_id = 1",
    "two trials of a number": "UPDATE trials SET number = 1 WHERE trial_id = 3",
    "a trial of a huge number": "UPDATE trials SET number = 1000000000000 WHERE trial_id = 3",
    "a trial of no number": "UPDATE trials SET number = NULL WHERE trial_id = 3",
    "a state that is none": "UPDATE trials SET state = 'EVIL' WHERE trial_id = 3",
    "all running": "UPDATE trials SET state = 'RUNNING'",
    "no values": "DELETE FROM trial_values",
    "values of text": "UPDATE trial_values SET value = 'evil'",
    "infinite values": "UPDATE trial_values SET value = 9e999",
    "a value type that is none": "UPDATE trial_values SET value_type = 'EVIL'",
    "no parameters": "DELETE FROM trial_params",
    "a parameter out of range": "UPDATE trial_params SET param_value = 1e300",
    "a distribution of junk": "UPDATE trial_params SET distribution_json = '{}'",
    "a distribution that is none": """UPDATE trial_params SET distribution_json = '{"name": "os.system"}'""",
    "no directions": "DELETE FROM study_directions",
    "a direction that is none": "UPDATE study_directions SET direction = 'EVIL'",
    "the other direction": "UPDATE study_directions SET direction = 'MAXIMIZE'",
    "no study": "DELETE FROM studies",
    "a study of another name": "UPDATE studies SET study_name = 'other'",
    "no question": "DELETE FROM study_user_attributes",
    "a question of junk": "UPDATE study_user_attributes SET value_json = '3'",
    "another question": "UPDATE study_user_attributes SET value_json = '{}'",
    "a hostile question": """UPDATE study_user_attributes SET value_json = '{"name": "\\u001b[31m"}'""",
    "another version": "UPDATE version_info SET schema_version = 99, library_version = '99.0'",
    "no version": "DELETE FROM version_info",
    "another version of its tables": "UPDATE alembic_version SET version_num = 'v99.0'",
    "no table of trials": "DROP TABLE trials",
    "no table of values": "DROP TABLE trial_values",
    "a table with a trigger": "CREATE TRIGGER evil AFTER INSERT ON trials BEGIN DELETE FROM trials; END",
    "a view for a table": "DROP TABLE trial_user_attributes; CREATE VIEW trial_user_attributes AS SELECT 1",
}


@pytest.mark.parametrize("kind", SQL)
def test_a_database_that_was_edited(kind: str, searched: Path, tmp_path: Path) -> None:
    def write(place: Path) -> None:
        with sqlite3.connect(place) as database:
            database.executescript(SQL[kind])
        database.close()

    opened(searched, tmp_path / "s", write)


@pytest.mark.parametrize("stored", ["[]", "null", "3", '"text"', "[", "[" * 100_000, '{"schema": 1}'])
def test_a_spec_in_the_database_that_is_no_spec_is_refused(stored: str, searched: Path, tmp_path: Path) -> None:
    def write(place: Path) -> None:
        with sqlite3.connect(place) as database:
            database.execute("UPDATE study_user_attributes SET value_json = ?", (json.dumps(stored),))
        database.close()

    message = opened(searched, tmp_path / "s", write)
    assert message is not None
    assert message.startswith("StudyError")
    with pytest.raises(StudyError, match="study stub in the database"):
        stored_study(parse_url(f"sqlite:///{tmp_path / 's' / DATABASE_FILE}"), "stub")


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_database_that_is_no_file(kind: str, searched: Path, tmp_path: Path) -> None:
    if kind == "a file that nobody may read":
        pytest.skip("an empty file is an empty database, and root may read it")

    def write(place: Path) -> None:
        place.unlink()
        NO_FILES[kind](place)

    message = opened(searched, tmp_path / "s", write)
    assert message is not None or kind in ("a link to nothing", "a device")


@pytest.mark.parametrize("number", [5_000, 10**9, 10**18, 2**63])
def test_evidence_of_a_trial_far_away_is_refused_at_once(number: int, searched: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(searched, tmp_path / "s"))
    (folder / DATABASE_FILE).unlink()
    with (folder / "trials.jsonl").open("a") as file:
        file.write(Trial(number=number, state="failed", params={}).to_json() + "\n")
    before = (folder / "trials.jsonl").read_bytes()
    with soon(5), pytest.raises(StudyError, match=f"one of them with the number {number}") as raised:
        Store(folder, spec())
    one_line(raised)
    assert (folder / "trials.jsonl").read_bytes() == before


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Searches of the command line run in this process in an empty folder, with invented numbers."""

    def run_search(spec: Any, run: Run, **more: Any) -> Any:
        ends = Calibration(reference_ms=1.0, smallest=latency(0.1), largest=latency(1.0))
        return search(spec if spec.bounds else spec.with_scale(ends), run, evaluate=evaluate, **more)

    monkeypatch.setattr("igc_nas.engine.search.search", run_search)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IGC_NAS_DATA", str(tmp_path / "data"))


SEARCH = ("search", "--space", "tiny", "--study", "s", "--dataset", "shapes", "--latency-runtime", "eager", "--trials")


@pytest.mark.usefixtures("invented")
def test_a_search_continues_or_reports_why_it_cannot(cli: Command, tmp_path: Path) -> None:
    assert cli(*SEARCH, "3").status == 0
    folder = tmp_path / "studies" / "s"
    good = (folder / DATABASE_FILE).read_bytes()
    before = load_study(folder).trials
    for content in (b"", b"junk", good[:5000], with_another_number(good), good[:4096] * 4):
        (folder / DATABASE_FILE).write_bytes(content)
        answer = cli(*SEARCH, "3", "--json")
        if answer.status:
            assert answer.status == 4
            assert "move study.db away" in answer.err
            assert "Traceback" not in answer.err
        assert load_study(folder).trials[:3] == before


# Settings.

STORAGES = [
    "", " ", "x", "sqlite", "sqlite:", "sqlite://", "sqlite://x", "mysql://u:secret@h/d", "postgresql://u:secret@h/d",
    "redis://h", "journal://x", "http://x", "file:///etc/passwd", "\x1b[31m://x", "sqlite+pysqlite:///x", "SQLITE:///x",
    "sqlite:////", "sqlite:///nothing/x.db", "sqlite:////dev/null", "sqlite:////dev/zero", "sqlite:////dev/full",
    "sqlite:////etc/passwd/x", "sqlite:///studies", "sqlite:///x?mode=ro&uri=true",
    "sqlite:///file:x?mode=ro&uri=true", "sqlite:///" + "x" * 5000, "sqlite:///\udcff", "sqlite:///\x1b[31m",
]  # fmt: skip


@pytest.mark.usefixtures("invented")
@pytest.mark.parametrize("url", STORAGES, ids=lambda url: ascii(url)[:30])
def test_a_storage_that_is_none_is_refused(url: str, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGC_NAS_STORAGE", url)
    with soon(10):
        answer = cli(*SEARCH, "1", "--json")
    assert "Traceback" not in answer.err
    assert "internal error" not in answer.err
    assert "secret" not in answer.err
    assert (answer.out + answer.err).replace("\n", "").isprintable()
    assert answer.status in (0, 2, 4)


COMMANDS = [
    " ", "'", '"', "\\", "nothing-of-this-name", "/", "/etc", "/etc/passwd", ".", "..", "true", "false", "echo", "cat",
    "echo {}", "echo []", "echo null", "echo NaN", "echo 1e999", "echo '{\"median_ms\": 1}'",
    "head -c 100 /dev/urandom", "printf \\033[31m", "sh -c 'exit 3'", "sh -c 'echo \x1b[31m >&2; exit 1'",
    "sh -c 'kill -9 $$'", "x" * 5000, "\udcff", "true; touch ran", "true && touch ran", "true | touch ran",
    "$(touch ran)", "`touch ran`", "true > ran",
]  # fmt: skip


@pytest.mark.usefixtures("invented")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: ascii(command)[:30])
def test_a_latency_command_that_is_none_is_refused(
    command: str, cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IGC_NAS_LATENCY_COMMAND", command)
    with soon(10):
        answer = cli(*SEARCH, "1")
    refused(answer, answer.status, "latency command")
    assert answer.status in (1, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [*NO_FILES, "a long name", "below a file"])
def test_a_cache_folder_that_is_none_is_as_good_as_no_cache(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "cache"
    if kind in NO_FILES:
        NO_FILES[kind](place)
    elif kind == "below a file":
        (tmp_path / "cache").write_text("")
        place = tmp_path / "cache" / "more"
    else:
        place = tmp_path / ("x" * 5000)
    monkeypatch.setenv("IGC_NAS_CACHE", str(place))
    with soon(5):
        table = timing_cache_for("device", 1, "training")
        assert table.get("key", ["a"], lambda: {"a": 1.0}) == {"a": 1.0}
        table.save()


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_table_that_is_no_file_is_as_good_as_none(kind: str, tmp_path: Path) -> None:
    NO_FILES[kind](tmp_path / "times.json")
    with soon(5):
        assert TimingCache(tmp_path / "times.json", "owner").times == {}


@pytest.mark.parametrize("kind", [*NO_FILES, "a long name", "below a file"])
@pytest.mark.parametrize("command", ["search --space tiny --dataset cifar10", "train igcv1-l24m2-d8 --dataset cifar10"])
def test_a_data_folder_that_is_none_is_refused(
    kind: str, command: str, cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "data"
    if kind in NO_FILES:
        NO_FILES[kind](place)
    else:
        (tmp_path / "file").write_text("")
        place = tmp_path / "file" / "x" if kind == "below a file" else tmp_path / ("x" * 5000)
    monkeypatch.setenv("IGC_NAS_DATA", str(place))
    with soon(10):
        answer = cli(*command.split())
    refused(answer, 5)


# Runs of `bench sampler`, which go on from a file that is named.

TASK = Task("p", "random", 0, 3)
RUN_LINE = {
    "name": "p",
    "task": {"problem": "p", "sampler": "random", "seed": 0, "evaluations": 3, "stop": 0.0, "compute": 0.0},
    "replay": {"volumes": [0.1, 0.2, 0.3], "compute": [1.0, 2.0, 3.0], "pruned": 0, "lost": []},
}


def test_a_good_line_of_runs_is_taken(tmp_path: Path) -> None:
    (tmp_path / "runs").write_bytes(as_json(RUN_LINE) + b"\n" + as_json(RUN_LINE)[:30])
    assert run_tasks((), [TASK], file=tmp_path / "runs") == {TASK: Replay((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))}
    assert (tmp_path / "runs").read_bytes() == as_json(RUN_LINE) + b"\n"


@sizes(100, 2000)
def test_spoiled_runs_are_taken_or_refused(count: int, tmp_path: Path) -> None:
    file = tmp_path / "runs"

    @settings(max_examples=count, suppress_health_check=SHARED)
    @given(spoiled(RUN_LINE).map(as_json) | damaged(as_json(RUN_LINE)) | st.just(b'{"a":' * 100_000))
    def check(line: bytes) -> None:
        file.write_bytes(line + b"\n")
        if refusal_of(lambda: run_tasks((), [], file=file)):
            assert file.read_bytes() == line + b"\n"

    check()


@pytest.mark.parametrize("content", [b"notes", b"notes\nmore notes", b"\x00", b'{"nam', b"[]", b"x" * 10_000])
def test_a_file_of_something_else_keeps_its_last_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_bytes(content)
    if content == b'{"nam':
        assert run_tasks((), [], file=file) == {}
        return
    with pytest.raises(UsageError, match="notes"):
        run_tasks((), [], file=file)
    assert file.read_bytes() == content
