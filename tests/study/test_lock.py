"""The lock of a study, and the file that names its holder: valid while the holder lives."""

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from igc_nas.engine.search import Run, search
from igc_nas.errors import StudyError
from igc_nas.study.lock import OWNER_FILE, LockHolder, StudyLock, holder_of
from igc_nas.study.process import SAME_START_S, Process
from igc_nas.study.status import status_of
from igc_nas.study.study import load_study
from tests.support.searches import evaluate, spec


def claimed_by(folder: Path, who: Process) -> None:
    """Write the file that a holder leaves behind when it is killed."""
    folder.mkdir(exist_ok=True)
    holder = LockHolder(process=who, since="2026-01-01T00:00:00+00:00", seen="2026-01-01T00:00:00+00:00")
    (folder / OWNER_FILE).write_text(holder.model_dump_json(exclude_none=True))


def dead_pid() -> int:
    child = multiprocessing.get_context("spawn").Process(target=int)
    child.start()
    child.join()
    assert child.pid is not None
    return child.pid


HERE = Process.here()
ANOTHER: dict[str, tuple[dict[str, Any], bool | None]] = {
    "this one": ({}, True),
    "one that does not say when it started": ({"started": None, "ticks": None}, True),
    "one whose pid was given to us": ({"started": (HERE.started or 0) - 60, "ticks": (HERE.ticks or 0) - 6000}, False),
    "one whose pid was given to us, of an older release": ({"started": (HERE.started or 0) - 60, "ticks": None}, False),
    "one of an earlier boot": ({"boot": "0" * 36}, False),
    "another host's": ({"host": "elsewhere"}, None),
    "another host's of another boot": ({"host": "elsewhere", "boot": "0" * 36}, None),
    "one that no system could have": ({"pid": 2**40}, False),
}


@pytest.mark.parametrize(("changes", "alive"), ANOTHER.values(), ids=ANOTHER)
def test_a_process_is_distinguished_from_every_other(
    changes: dict[str, Any], alive: bool | None, tmp_path: Path
) -> None:
    who = Process.parse(HERE.model_dump() | changes)
    assert who.is_alive() is alive
    claimed_by(tmp_path, who)
    found = holder_of(tmp_path)
    assert (found and found.process) == (None if alive is False else who)


def test_the_identity_of_this_process() -> None:
    assert (HERE.host, HERE.pid) == (socket.gethostname(), os.getpid())
    assert HERE.boot
    assert HERE.started == pytest.approx(psutil.Process().create_time(), abs=SAME_START_S)
    assert str(HERE) == f"pid {os.getpid()} on {socket.gethostname()}"


def test_a_process_that_has_ended_is_dead_and_so_is_a_zombie() -> None:
    assert Process(host=HERE.host, pid=dead_pid(), boot=HERE.boot).is_alive() is False
    zombie = os.fork() if hasattr(os, "fork") else 0
    if zombie == 0:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    assert Process(host=HERE.host, pid=zombie, boot=HERE.boot).is_alive() is False
    os.waitpid(zombie, 0)


@pytest.mark.skipif(HERE.ticks is None, reason="no /proc")
@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_a_process_lives_on_when_the_clock_is_set(seconds: float) -> None:
    """The start that a system reports is the boot's time, by the clock as it is now, and what passed since."""
    assert HERE.model_copy(update={"started": (HERE.started or 0) + seconds}).is_alive() is True


@pytest.mark.parametrize(
    "who",
    [
        Process(host=HERE.host, pid=os.getpid(), boot=HERE.boot, started=1.0),
        Process(host=HERE.host, pid=os.getpid(), boot="0" * 36, started=HERE.started),
        Process(host="elsewhere", pid=7),
    ],
    ids=["dead", "of an earlier boot", "of another machine"],
)
def test_the_file_of_a_dead_holder_does_not_block_a_study(who: Process, tmp_path: Path) -> None:
    """Only the lock counts, which the operating system has released."""
    list(search(spec(), Run(tmp_path / "s", trials=2), evaluate=evaluate))
    claimed_by(tmp_path / "s", who)
    assert len(list(search(spec(), Run(tmp_path / "s", trials=4), evaluate=evaluate))) == 2
    assert not (tmp_path / "s" / OWNER_FILE).exists()


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    lock = StudyLock(tmp_path / "s")
    with pytest.raises(StudyError, match=f"study s is being searched by pid {os.getpid()} on {socket.gethostname()}"):
        StudyLock(tmp_path / "s")
    assert holder_of(tmp_path / "s") is not None, "a refused process removes no file"
    lock.release()
    assert holder_of(tmp_path / "s") is None
    StudyLock(tmp_path / "s").release()


@pytest.mark.parametrize("text", ["", "{", "\0" * 300, '{"process": {}}', "[]", '{"process": {"host": "a", "pid": 0}}'])
def test_a_damaged_owner_file_names_no_holder(text: str, tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).write_text(text)
    assert holder_of(tmp_path) is None


def test_a_study_inside_the_installed_package_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(search(spec(), Run(tmp_path / "package" / "studies" / "s", trials=2), evaluate=evaluate))
    monkeypatch.setattr("igc_nas.io.resources.PACKAGE", tmp_path / "package")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StudyError, match="came with the installed package") as raised:
        list(search(spec(), Run(tmp_path / "package" / "studies" / "s", trials=3), evaluate=evaluate))
    assert raised.value.hint == f"copy it: mkdir -p studies; cp -r {tmp_path}/package/studies/s studies/"
    assert not any("search" in line for line in status_of(load_study(tmp_path / "package/studies/s")).next_commands())
    assert sorted(tmp_path.rglob("*")) == before
