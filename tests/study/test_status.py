"""How a study stands, as `status` and `show` say it, while it is searched and after whatever befell it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import arch_id
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store, running_here
from igc_nas.errors import StudyError
from igc_nas.io.files import append_line
from igc_nas.study.lock import OWNER_FILE, LockHolder, Running, StudyLock, holder_of, now
from igc_nas.study.process import Process
from igc_nas.study.records import Latency, Score, Trial
from igc_nas.study.status import status_of
from igc_nas.study.study import load_study, read_trials
from tests.support.commands import Command, refused
from tests.support.searches import evaluate, spec

pytestmark = pytest.mark.usefixtures("nothing_around")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study `s` of six trials, of which some failed for want of memory."""
    folder = tmp_path / "studies" / "s"
    list(search(spec(name="s"), Run(folder, trials=6), evaluate=_failing_at_times))
    return folder


def _failing_at_times(arch: ArchConfig, seed: int) -> tuple[Latency, Score]:
    if seed % 3 == 0:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
    return evaluate(arch, seed)


def test_what_ran_and_what_failed_and_why(folder: Path, cli: Command) -> None:
    failed = [trial for trial in load_study(folder).trials if trial.state == "failed"]
    assert failed
    found = cli("status", "s", "--json").json
    assert found["trials"] == {"complete": 6, "failed": len(failed)}
    assert found["searched_by"] is None
    assert found["running"] == found["interrupted"] == []
    for trial, said in zip(failed, found["failed"], strict=True):
        assert said["trial"] == trial.number
        assert (said["kind"], said["reason"]) == ("memory", trial.reason)
        line = _failing_at_times.__code__.co_firstlineno + 2
        assert said["where"] == f"evaluating (test_status.py:{line} in _failing_at_times)"
        assert ArchConfig.parse(said["arch"]) == trial.arch
    text = cli("status", "s").text
    assert "search not running" in text
    assert f"trial {failed[0].number} memory, evaluating" in text
    assert "igc-nas search --study s" in text
    for command in found["next"]:
        program, *arguments = command.split()
        assert program == "igc-nas"
        if arguments[0] in ("show", "front"):
            assert cli(*arguments).status == 0


def test_a_failed_trial_can_be_looked_at_and_tried_again(folder: Path, cli: Command) -> None:
    failed = next(trial for trial in load_study(folder).trials if trial.state == "failed")
    answer = cli("show", f"s:{failed.number}")
    assert "RuntimeError: DefaultCPUAllocator" in answer.text
    assert f"igc-nas search --study s --enqueue s:{failed.number}" in answer.text
    found = cli("show", f"s:{failed.number}", "--json").json
    assert Trial.from_json(json.dumps(found["trial"])) == failed
    again = Run(folder, trials=6, enqueue=(failed.arch,))
    (candidate,) = search(spec(name="s"), again, evaluate=evaluate)
    assert candidate.id == arch_id(failed.arch)
    assert load_study(folder).trials[-1].enqueued
    assert list(search(spec(name="s"), again, evaluate=evaluate)) == [], "it is there now"


def test_other_trials_say_what_became_of_them(folder: Path, cli: Command) -> None:
    complete = load_study(folder).candidates[0]
    text = cli("show", f"s:{complete.trial}").text
    assert "complete in s, started" in text
    assert f"{100 * complete.score.error:.2f} %" in text
    assert "complete in" not in cli("show", "igcv1-l24m2-d8").text


def test_a_search_that_runs_is_seen_from_elsewhere(folder: Path, cli: Command) -> None:
    with Store(folder, spec(name="s")) as store:
        asked = store.optuna_study.ask()
        trial = store.add(running_here(Trial(number=asked.number, state="running", params={}, arch=_arch(folder))))
        store.lock.show_every_s = 0.0
        store.lock.show([Running(number=trial.number, doing="training", since=now(), samples=3000, train_error=0.75)])
        found = cli("status", "s", "--json").json
        assert found["searched_by"]["process"]["pid"] == os.getpid()
        (running,) = found["running"]
        assert (running["trial"], running["pid"], running["doing"]) == (trial.number, os.getpid(), "training")
        text = cli("status", "s").text
        assert f"search running in pid {os.getpid()} on " in text
        assert "training, 3,000 images, training error 75 %; by pid" in text
        assert "igc-nas search" not in text, "it is being searched"
        with pytest.raises(StudyError, match=f"is being searched by pid {os.getpid()} on "):
            StudyLock(folder)
    assert holder_of(folder) is None
    assert f"interrupted trial {trial.number}" in cli("status", "s").text


def test_a_longer_training_that_waits_is_called_so(folder: Path, cli: Command) -> None:
    trials = load_study(folder).trials
    longer = trials[0].model_copy(update={"number": len(trials), "longer_of": 0, "state": "waiting", "candidate": None})
    append_line(folder / "trials.jsonl", longer.to_json())
    assert f"interrupted trial {longer.number} trial 0 for longer" in cli("status", "s").text


def _arch(folder: Path) -> ArchConfig:
    return load_study(folder).candidates[0].arch


def test_a_search_that_was_killed_is_not_believed_to_run(tmp_path: Path, cli: Command) -> None:
    child = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
        "from tests.support.searches import evaluate, spec\nfrom igc_nas.engine.search import Run, search\n"
        "def slow(arch, seed):\n    print('trial', flush=True)\n    time.sleep(0 if slow.n > 0 else 60)\n"
        "    slow.n -= 1\n    return evaluate(arch, seed)\n"
        "slow.n = 2\nlist(search(spec(name='s'), Run(Path(sys.argv[2]), trials=9), evaluate=slow))\n"
    )
    command = [sys.executable, "-c", child, str(Path(__file__).parents[2]), str(tmp_path / "studies" / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        for _ in range(3):
            other.stdout.readline()
        found = cli("status", "s", "--json").json
        assert [running["pid"] for running in found["running"]] == [other.pid]
        assert found["searched_by"]["process"]["pid"] == other.pid
        other.send_signal(signal.SIGKILL)
    found = cli("status", "s", "--json").json
    assert found["trials"] == {"complete": 2, "running": 1}
    assert (found["searched_by"], found["running"], found["interrupted"]) == (None, [], [2])
    assert "igc-nas search --study s" in found["next"]
    list(search(spec(name="s"), Run(tmp_path / "studies" / "s", trials=3), evaluate=evaluate))
    assert cli("status", "s", "--json").json["trials"] == {"complete": 3}


def test_who_else_a_pid_may_be(folder: Path) -> None:
    """A pid of this machine counts only with its boot and its start; of another machine nothing is known."""
    here = Process.here()
    assert here.is_alive() is True
    assert here.model_copy(update={"started": here.started - 1000, "ticks": None}).is_alive() is False
    assert here.model_copy(update={"boot": "another"}).is_alive() is False
    assert here.model_copy(update={"host": "elsewhere"}).is_alive() is None
    assert here.model_copy(update={"boot": None, "started": None, "ticks": None}).is_alive() is True, "an older record"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    before = Process(host=here.host, pid=ended.pid, boot=here.boot, started=psutil.Process(ended.pid).create_time())
    ended.wait()
    assert before.is_alive() is False
    for process, owned in ((before, False), (here, True), (here.model_copy(update={"host": "elsewhere"}), True)):
        owner = LockHolder(process=process, since=now(), seen=now())
        (folder / OWNER_FILE).write_text(owner.model_dump_json())
        assert (holder_of(folder) is not None) == owned
    (folder / OWNER_FILE).write_text("pid 1 on somewhere")  # as older releases wrote it
    assert holder_of(folder) is None


def test_a_study_on_another_machine_says_when_it_was_last_seen(folder: Path, cli: Command) -> None:
    elsewhere = Process.here().model_copy(update={"host": "elsewhere", "pid": 7})
    owner = LockHolder(process=elsewhere, since="2026-01-01T00:00:00+00:00", seen="2026-01-01T00:05:00+00:00")
    (folder / OWNER_FILE).write_text(owner.model_dump_json())
    text = cli("status", "s").text
    assert "in pid 7 on elsewhere, since 2026-01-01T00:00:00+00:00, last seen 2026-01-01T00:05:00+00:00" in text


def test_a_running_trial_of_an_older_release_is_read(folder: Path) -> None:
    line = read_trials(folder / "trials.jsonl")[0].to_json()
    old = line[:-1] + ',"host":"elsewhere","pid":7}'
    assert Trial.from_json(old).process == Process(host="elsewhere", pid=7)


def test_a_study_without_trials_and_one_that_is_not_there(folder: Path, cli: Command, tmp_path: Path) -> None:
    empty = tmp_path / "studies" / "empty"
    empty.mkdir()
    shutil.copy(folder / "study.toml", empty)
    assert status_of(load_study(empty)).counts == {}
    assert "trials none yet" in cli("status", "empty").text
    refused(cli("status", "nothing"), 4, "unknown study 'nothing'")
    refused(cli("status"), 2, "Missing argument")
    refused(cli("status", "s", "--storage", "mysql://h/d"), 2, "'mysql' is not supported")
