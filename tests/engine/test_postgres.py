"""A study in a real PostgreSQL server: searched, read meanwhile, never by two, continued after kills and restarts."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from igc_nas.engine.database import parse_url, stored_study
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store
from igc_nas.errors import StudyError
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import load_study
from tests.engine.test_search import timeless
from tests.support.commands import Command, refused
from tests.support.searches import evaluate, spec
from tests.support.servers import PASSWORD, Server, postgres, why_no_server
from tests.support.stubs import stub

pytestmark = pytest.mark.skipif(why_no_server() is not None, reason=str(why_no_server()))
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


@pytest.fixture
def question() -> StudySpec:
    """A study of a name that the server has not met."""
    return spec(name=f"s{next(NUMBERS)}", sampler="stratified")


def stored(server: Server, question: StudySpec) -> tuple[str, ...]:
    return tuple(t.state for t in stored_study(parse_url(server.url), question.name).trials)


def test_a_search_is_the_same_as_with_sqlite(server: Server, tmp_path: Path) -> None:
    question = spec(name="same")
    list(search(question, Run(tmp_path / "a" / "same", trials=15), evaluate=evaluate))
    list(search(question, Run(tmp_path / "b" / "same", trials=15, storage=server.url), evaluate=evaluate))
    assert not (tmp_path / "b" / "same" / "study.db").exists()
    ours, theirs = load_study(tmp_path / "a" / "same"), load_study(tmp_path / "b" / "same")
    assert timeless(ours.trials) == timeless(theirs.trials)
    assert stored_study(parse_url(server.url), "same").trials == theirs.trials


def test_workers_write_and_others_read_meanwhile(server: Server, question: StudySpec, tmp_path: Path) -> None:
    run = Run(tmp_path / question.name, trials=20, workers=2, storage=server.url)
    seen = [stored(server, question).count("complete") for _ in search(question, run, evaluator=stub)]
    assert len(seen) == 20
    assert seen == sorted(seen)
    assert stored(server, question) == ("complete",) * 20


def test_another_machine_goes_on_where_one_left(server: Server, tmp_path: Path) -> None:
    """Another folder with nothing in it: question, scale and trials come from the server."""
    whole, question = tmp_path / "whole" / "moved", spec(name="moved")
    list(search(question, Run(whole, trials=12), evaluate=evaluate))
    list(search(question, Run(tmp_path / "a" / "moved", trials=5, storage=server.url), evaluate=evaluate))
    unscaled = question.model_copy(update={"bounds": {}, "reference_ms": None})
    list(search(unscaled, Run(tmp_path / "b" / "moved", trials=12, storage=server.url), evaluate=evaluate))
    there = load_study(tmp_path / "b" / "moved")
    assert there.spec == question
    assert timeless(there.trials) == timeless(load_study(whole).trials)


def test_a_second_writer_is_refused_with_the_holder(server: Server, question: StudySpec, tmp_path: Path) -> None:
    """From another folder, as from another machine: the server holds the lock."""
    with Store(tmp_path / "a" / question.name, question, server.url):
        expected = rf"study {question.name} is being searched by pid {os.getpid()} on "
        with pytest.raises(StudyError, match=expected):
            Store(tmp_path / "b" / question.name, question, server.url)
        with Store(tmp_path / "c" / "other", spec(name=f"{question.name}-other"), server.url):
            pass  # another study of the same server
    Store(tmp_path / "b" / question.name, question, server.url).close()


def test_a_coordinator_that_is_killed_leaves_the_study_to_the_next(
    server: Server, question: StudySpec, tmp_path: Path
) -> None:
    child = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
        "from tests.support.searches import spec\nfrom tests.support.stubs import slow_stub\n"
        "from igc_nas.engine.search import Run, search\n"
        "if __name__ == '__main__':\n"
        "    question = spec(name=sys.argv[3], sampler='stratified')\n"
        "    run = Run(Path(sys.argv[2]), trials=100, workers=2, storage=sys.argv[4])\n"
        "    for candidate in search(question, run, evaluator=slow_stub):\n"
        "        print(candidate.trial, flush=True)\n"
    )
    script = tmp_path / "child.py"
    script.write_text(child)
    folder = tmp_path / "a" / question.name
    command = [sys.executable, str(script), str(Path(__file__).parents[2]), str(folder), question.name, server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        done = [int(other.stdout.readline()) for _ in range(5)]
        other.send_signal(signal.SIGKILL)
    before = stored_study(parse_url(server.url), question.name)
    assert {c.trial for c in before.candidates} >= set(done)
    run = Run(tmp_path / "b" / question.name, trials=30, storage=server.url)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            list(search(question, run, evaluate=evaluate))
            break
        except StudyError:  # the server has not yet noticed that its client is gone
            time.sleep(0.2)
    after = stored_study(parse_url(server.url), question.name)
    assert all(candidate in after.candidates for candidate in before.candidates)
    assert {t.state for t in after.trials} == {"complete"}


def test_a_server_that_is_restarted_costs_no_finished_trial(
    server: Server, question: StudySpec, tmp_path: Path
) -> None:
    folder = tmp_path / question.name
    run = Run(folder, trials=12, storage=server.url)
    steps = search(question, run, evaluate=evaluate)
    found = [next(steps) for _ in range(3)]
    server.stop()
    with pytest.raises(StudyError, match=r"cannot be used|is gone") as raised:
        found += list(steps)
    assert PASSWORD not in str(raised.value)
    assert all(candidate in load_study(folder).candidates for candidate in found)
    server.start()
    list(search(question, run, evaluate=evaluate))
    assert stored(server, question) == ("complete",) * 12
    assert all(c in stored_study(parse_url(server.url), question.name).candidates for c in found)


def test_the_lock_is_taken_again_after_a_restart(server: Server, question: StudySpec, tmp_path: Path) -> None:
    steps = search(question, Run(tmp_path / question.name, trials=8, storage=server.url), evaluate=evaluate)
    next(steps)
    server.stop()
    server.start()
    assert len(list(steps)) == 7
    assert stored(server, question) == ("complete",) * 8


def test_commands_read_a_study_that_has_no_folder_here(
    server: Server, question: StudySpec, tmp_path: Path, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(search(question, Run(tmp_path / "far" / question.name, trials=6, storage=server.url), evaluate=evaluate))
    monkeypatch.chdir(tmp_path)
    answer = cli("front", question.name, "--json", "--storage", server.url)
    assert json.loads(answer.out)["completed"] == 6
    monkeypatch.setenv("IGC_NAS_STORAGE", server.url)
    assert cli("status", question.name, "--json").json["trials"] == {"complete": 6}
    assert cli("export", question.name).status == 0
    refused(cli("dashboard", question.name), 2, "has no folder here", "-o")
    assert cli("dashboard", question.name, "-o", "page.html").status == 0
    assert PASSWORD not in (tmp_path / "page.html").read_text()
    refused(cli("front", "nothing"), 4, "unknown study 'nothing'", "postgresql://igc:***@127.0.0.1")


def test_a_wrong_password_is_not_repeated(server: Server, cli: Command, tmp_path: Path) -> None:
    wrong = server.url.replace("sesame", "barley")
    answer = cli("search", "--space", "tiny", "--dataset", "shapes", "--storage", wrong, "--studies-dir", tmp_path)
    refused(answer, 4, "password authentication failed", "postgresql://igc:***@127.0.0.1")
    assert "barley" not in answer.err
    assert list(tmp_path.iterdir()) == [], "nothing is begun before the database is there"


def test_a_database_without_the_study_has_none(server: Server) -> None:
    assert stored_study(parse_url(server.url), "nobody's") is None
