"""Disks that are full, databases that are damaged, states that a power cut leaves: nothing that had ended is lost."""

import contextlib
import errno
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from igc_nas.engine.database import default_url, stored_study
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store
from igc_nas.errors import StudyError
from igc_nas.nn.device import cpu_name
from igc_nas.study.records import FINISHED, Trial
from igc_nas.study.spec import SCHEMA, Calibration
from igc_nas.study.study import load_study, read_trials
from tests.engine.test_faults import SAMPLERS, inline, is_in_order, timeless
from tests.support.commands import Command
from tests.support.searches import evaluate, latency, searched, spec
from tests.support.shares import some

SEARCH = ("search", "--space", "tiny", "--dataset", "shapes", "--study", "s", "--sampler", "stratified", "--quiet",
          "--latency-runtime", "eager")  # fmt: skip


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of the command line run in this process, with invented numbers."""

    def run_search(spec: Any, run: Run, **more: Any) -> Any:
        ends = Calibration(reference_ms=1.0, smallest=latency(0.1), largest=latency(1.0))
        return search(spec if spec.bounds else spec.with_scale(ends), run, evaluate=evaluate, **more)

    monkeypatch.setattr("igc_nas.engine.search.search", run_search)


# A full disk.


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """A disk of this size at `folder`; yields a function that resizes it. Skips the test without the right to mount."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a disk of a given size takes root: {done.stderr.decode().strip()}")

    def resize(to_kilobytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={to_kilobytes}k", folder], check=True)  # noqa: S607

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S607


SIZES = (12, 96, 160, 164, 172, 180, 192, 224, 256, 320)
"""kB: from one that is too small for any file of a study to one that holds a dozen trials."""


@pytest.mark.usefixtures("invented")
@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=() if size == 172 else pytest.mark.faults) for size in SIZES]
)
def test_a_full_disk_is_one_error_and_the_same_command_continues(
    size: int, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with small_disk(tmp_path / "studies", size) as resize:
        folder = tmp_path / "studies" / "s"
        full = cli(*SEARCH, "--trials", "40")
        refused_for_want_of_room(full.status, full.err)
        before = readable(folder)
        assert all(line.endswith(b"}") for line in lines_of(folder))
        again = cli(*SEARCH, "--trials", "40")
        refused_for_want_of_room(again.status, again.err)
        assert readable(folder)[: len(before)] == before
        resize(10_000)
        assert cli(*SEARCH, "--trials", "40").status == 0
        assert readable(folder)[: len(before)] == before
        assert sum(trial.state == "complete" for trial in readable(folder)) == 40
        is_in_order(folder)
        assert not list(folder.glob(".igc-nas-*")), "temporary files"
    assert size < 160 or before


def refused_for_want_of_room(status: int, err: str) -> None:
    """An error of one line, with or without a hint."""
    assert status in (1, 4), err
    said = [line for line in err.splitlines() if line.startswith("igc-nas: ")]
    assert len(said) == 1, err
    assert "full" in said[0] or "No space left" in said[0] or "File too large" in said[0] or "disk I/O" in said[0], err
    assert "Traceback" not in err
    assert "internal error" not in err


def readable(folder: Path) -> list[Trial]:
    """The ended trials that a reader sees."""
    return [trial for trial in read_trials(folder / "trials.jsonl") if trial.state in FINISHED]


def lines_of(folder: Path) -> list[bytes]:
    path = folder / "trials.jsonl"
    data = path.read_bytes() if path.exists() else b""
    assert not data or data.endswith(b"\n"), "a torn line"
    return data.splitlines()


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.support.searches import evaluate, spec
from igc_nas.errors import IgcNasError
from igc_nas.engine.search import Run, search
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    list(search(spec(sampler="stratified"), Run(Path(sys.argv[2]), trials=40), evaluate=evaluate))
except (IgcNasError, OSError) as error:
    print(type(error).__name__, str(error).splitlines()[0])
"""


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, marks=pytest.mark.slow if size == 180 else pytest.mark.faults)
        for size in (1, 4, 40, 120, 160, 180, 200)
    ],
)
def test_a_file_that_may_not_grow_is_one_error(size: int, tmp_path: Path) -> None:
    """The same without root: the system refuses a file above a size, as a quota does."""
    folder = tmp_path / "s"
    limited = [sys.executable, "-c", LIMITED, str(Path(__file__).parents[2]), str(folder), str(size * 1024)]
    said = [subprocess.run(limited, capture_output=True, text=True, check=True, timeout=120) for _ in range(2)]
    assert all(s.stderr == "" and len(s.stdout.splitlines()) == 1 for s in said), said
    assert all(s.stdout.startswith(("StudyError", "IgcNasError", "OSError")) for s in said)
    assert all(line.endswith(b"}") for line in lines_of(folder))
    before = readable(folder)
    list(search(spec(sampler="stratified"), Run(folder, trials=40), evaluate=evaluate))
    assert readable(folder)[: len(before)] == before
    assert len(readable(folder)) == 40
    is_in_order(folder)


def test_the_first_error_is_the_one_that_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when a search is stopped: the stop is what is reported."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    steps = search(spec(), Run(tmp_path / "s", trials=5), evaluate=evaluate)
    next(steps)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt())
    monkeypatch.undo()
    Store(tmp_path / "s", spec()).close()  # the study was released
    is_in_order(tmp_path / "s")


# A damaged database.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of six trials, with what NSGA-II notes beside them."""
    folder = tmp_path_factory.mktemp("whole") / "stub"
    list(search(spec(sampler="nsga2"), Run(folder, trials=6), evaluate=evaluate))
    return folder


def flipped(data: bytes, chance: random.Random) -> bytes:
    """One bit is another one, mostly where something is written."""
    places = range(len(data)) if chance.random() < 0.2 else [i for i, byte in enumerate(data) if byte]
    damaged = bytearray(data)
    damaged[chance.choice(places)] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def survives(damage: Callable[[bytes, random.Random], bytes], times: int, seed: int, whole: Path, copy: Path) -> int:
    """Damage the database, open the study, and look at the evidence; how often it was refused."""
    chance, refused = random.Random(seed), list[StudyError]()
    shutil.copytree(whole, copy)
    evidence, database = (copy / "trials.jsonl").read_bytes(), (copy / "study.db").read_bytes()
    for _ in range(times):
        (copy / "study.db").write_bytes(damage(database, chance))
        try:
            Store(copy, spec(sampler="nsga2")).close()
        except StudyError as error:
            refused.append(error)
        assert (copy / "trials.jsonl").read_bytes() == evidence
        assert [path.name for path in copy.iterdir() if path.name.startswith(".")] == []
        with contextlib.suppress(StudyError):
            stored_study(default_url(copy), "stub")
    for error in refused:
        assert len(error.message.splitlines()) == 1
        assert error.hint
    (copy / "study.db").unlink()
    with Store(copy, spec(sampler="nsga2")) as store:
        assert store.study.trials == load_study(whole).trials
    return len(refused)


def test_a_database_with_a_flipped_bit_is_opened_or_refused(whole: Path, tmp_path: Path) -> None:
    assert 1 <= survives(flipped, 12, 0, whole, tmp_path / "s") < 12


def test_a_truncated_database_is_opened_or_refused(whole: Path, tmp_path: Path) -> None:
    assert survives(truncated, 4, 0, whole, tmp_path / "s") >= 3


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 5))
def test_databases_with_a_hundred_flipped_bits_are_opened_or_refused(seed: int, whole: Path, tmp_path: Path) -> None:
    assert 1 <= survives(flipped, 100, seed, whole, tmp_path / "s") < 100


@pytest.mark.faults
def test_twenty_truncated_databases_are_opened_or_refused(whole: Path, tmp_path: Path) -> None:
    assert survives(truncated, 20, 1, whole, tmp_path / "s") >= 15


def test_results_that_differ_in_the_database_and_trials_jsonl_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "s"))
    changed = (folder / "trials.jsonl").read_text().replace('"held_out":1000', '"held_out":1001', 1)
    (folder / "trials.jsonl").write_text(changed)
    with pytest.raises(StudyError, match=r"the database and trials\.jsonl of s differ on trial \d+"):
        Store(folder, spec(sampler="nsga2"))
    assert (folder / "trials.jsonl").read_text() == changed


def test_the_database_of_another_study_is_not_taken(tmp_path: Path) -> None:
    """Of another name there is nothing in it; of the same name and another question it is refused."""
    inline(tmp_path / "s", spec(), 3)
    inline(tmp_path / "other", spec(name="other", seed=8), 4)
    before = read_trials(tmp_path / "s" / "trials.jsonl")
    shutil.copy(tmp_path / "other" / "study.db", tmp_path / "s" / "study.db")
    with Store(tmp_path / "s", spec()) as store:
        assert store.study.trials == before
    inline(tmp_path / "same", spec(seed=8), 4)
    shutil.copy(tmp_path / "same" / "study.db", tmp_path / "s" / "study.db")
    with pytest.raises(StudyError, match=r"the database has another study stub: seed: 0 asked for, 8 in the study"):
        Store(tmp_path / "s", spec())
    assert read_trials(tmp_path / "s" / "trials.jsonl") == before


# What a power cut leaves.


def ended_study(folder: Path) -> tuple[Trial, ...]:
    return load_study(searched(folder, 5)).trials


@pytest.mark.parametrize("tail", [b'{"number":5,"state":"comp', b"{", b"\0" * 700, b"\xff\xfe", b'{"number":5}'])
def test_a_torn_last_line_is_ignored(tail: bytes, tmp_path: Path) -> None:
    before = ended_study(tmp_path / "s")
    evidence = (tmp_path / "s" / "trials.jsonl").read_bytes()
    (tmp_path / "s" / "trials.jsonl").write_bytes(evidence + tail)
    assert load_study(tmp_path / "s").trials == before
    for lost in ("nothing", "study.db"):
        (tmp_path / "s" / lost).unlink(missing_ok=True)
        with Store(tmp_path / "s", spec()) as store:
            assert store.study.trials == before
        assert (tmp_path / "s" / "trials.jsonl").read_bytes() == evidence


def as_running(folder: Path, number: int) -> None:
    """The database as it was before trial `number` had ended."""
    connection = sqlite3.connect(folder / "study.db")
    row = (number,)
    (trial_id,) = connection.execute("select trial_id from trials where number = ?", row).fetchone()
    (text,) = connection.execute(
        "select value_json from trial_user_attributes where trial_id = ? and key = 'igc_nas:record'", (trial_id,)
    ).fetchone()
    record = json.loads(json.loads(text))
    under_way = {key: record[key] for key in ("number", "params", "arch", "violation", "started")} | {
        "state": "running"
    }
    connection.execute(
        "update trial_user_attributes set value_json = ? where trial_id = ? and key = 'igc_nas:record'",
        (json.dumps(json.dumps(under_way)), trial_id),
    )
    connection.execute("update trials set state = 'RUNNING', datetime_complete = null where trial_id = ?", (trial_id,))
    connection.execute("delete from trial_values where trial_id = ?", (trial_id,))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("number", [4, 2])
def test_an_end_that_only_the_evidence_has_counts(number: int, tmp_path: Path) -> None:
    before = ended_study(tmp_path / "s")
    as_running(tmp_path / "s", number)
    assert load_study(tmp_path / "s").trials == before
    with Store(tmp_path / "s", spec()) as store:
        assert store.study.trials == before
    is_in_order(tmp_path / "s")


@pytest.mark.parametrize("number", [4, 2])
def test_a_trial_without_a_recorded_end_is_resumed(number: int, tmp_path: Path) -> None:
    before = ended_study(tmp_path / "s")
    as_running(tmp_path / "s", number)
    kept = (tmp_path / "s" / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "s" / "trials.jsonl").write_bytes(b"".join(kept[:number] + kept[number + 1 :]))
    with Store(tmp_path / "s", spec()) as store:
        assert [t.number for t in store.study.trials if t.state == "waiting"] == [number]
    assert inline(tmp_path / "s", spec(), 5) == timeless(before)


@pytest.mark.parametrize("kept", some([0, 1, 3], 1))
@pytest.mark.parametrize("shorter", ["study.db", "trials.jsonl"])
def test_of_two_that_differ_in_length_the_longer_counts(shorter: str, kept: int, tmp_path: Path) -> None:
    before = ended_study(tmp_path / "s")
    if shorter == "trials.jsonl":
        lines = (tmp_path / "s" / shorter).read_bytes().splitlines(keepends=True)
        (tmp_path / "s" / shorter).write_bytes(b"".join(lines[:kept]))
    else:
        inline(tmp_path / "short", spec(), kept) if kept else Store(tmp_path / "short", spec()).close()
        shutil.copy(tmp_path / "short" / shorter, tmp_path / "s" / shorter)
        evidence = (tmp_path / "s" / "trials.jsonl").read_text().splitlines(keepends=True)
        first = (tmp_path / "short" / "trials.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "s" / "trials.jsonl").write_text("".join(first + evidence[kept:]))
    with Store(tmp_path / "s", spec()) as store:
        assert timeless(store.study.trials) == timeless(before)
    is_in_order(tmp_path / "s")
    assert inline(tmp_path / "s", spec(), 8) == inline(tmp_path / "whole", spec(), 8)


def test_an_empty_study_file_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    ended_study(tmp_path / "s")
    evidence = (tmp_path / "s" / "trials.jsonl").read_bytes()
    (tmp_path / "s" / "study.toml").write_bytes(b"")
    with pytest.raises(StudyError, match=r"study\.toml: .*Field required"):
        inline(tmp_path / "s", spec(), 6)
    assert (tmp_path / "s" / "trials.jsonl").read_bytes() == evidence
    (tmp_path / "s" / "study.toml").unlink()
    inline(tmp_path / "s", spec(), 6)
    assert (tmp_path / "s" / "trials.jsonl").read_bytes().startswith(evidence)


def test_a_lock_file_without_a_holder_does_not_lock(tmp_path: Path) -> None:
    before = ended_study(tmp_path / "s")
    (tmp_path / "s" / "study.lock").write_text("12345")
    (tmp_path / "s" / ".igc-nas-0123456789abcdef.tmp").write_text("cut short")
    with Store(tmp_path / "s", spec()) as store:
        assert store.study.trials == before
    lock = filelock.FileLock(tmp_path / "s" / "study.lock", timeout=0)
    with lock, pytest.raises(StudyError, match="study s is being searched by another process"):
        Store(tmp_path / "s", spec())


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=() if name == "nsga2" else pytest.mark.faults) for name in SAMPLERS]
)
def test_what_a_sampler_notes_is_in_the_evidence_too(sampler: str, tmp_path: Path) -> None:
    """The database is gone, again and again: the suggestions are those that would have come."""
    question = spec(sampler=sampler, seed=5)
    wanted = inline(tmp_path / "whole", question, 24)
    for trials in (7, 15, 24):
        found = inline(tmp_path / "parts", question, trials)
        (tmp_path / "parts" / "study.db").unlink()
    assert found == wanted
    if sampler == "nsga2":
        assert any(trial.notes for trial in found)


# Studies of old.


def test_a_study_that_an_older_release_has_written_opens_and_goes_on(tmp_path: Path) -> None:
    """`igc_cifar10` has records without forms, and no database; its first 20 trials are enough."""
    from igc_nas.study.names import find_study

    folder = Path(shutil.copytree(find_study("igc_cifar10", Path("nowhere")), tmp_path / "igc_cifar10"))
    first = (folder / "trials.jsonl").read_text().splitlines(keepends=True)[:20]
    (folder / "trials.jsonl").write_text("".join(first))
    old = load_study(folder)
    lines = [json.loads(line) for line in first]
    assert all("form" not in line["candidate"]["latency"] for line in lines if "candidate" in line)
    assert {candidate.latency.form for candidate in old.candidates} == {"factored"}
    with Store(folder, old.spec) as store:
        assert store.study.trials == old.trials
    is_in_order(folder)


def test_a_trial_under_way_of_an_older_release_is_taken_up(tmp_path: Path) -> None:
    """Before 0.2 a running trial named its host and pid itself."""
    whole = inline(tmp_path / "whole", spec(), 4)
    inline(tmp_path / "s", spec(), 3)
    (tmp_path / "s" / "study.db").unlink()
    under_way = whole[3].model_copy(update={"state": "running", "candidate": None, "wall_s": None})
    line = json.loads(under_way.to_json()) | {"host": "elsewhere", "pid": 4242, "started": "2026-01-01T00:00:00+00:00"}
    with (tmp_path / "s" / "trials.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    running = load_study(tmp_path / "s").trials[-1]
    assert running.process is not None
    assert (running.process.host, running.process.pid) == ("elsewhere", 4242)
    with Store(tmp_path / "s", spec()) as store:
        assert store.study.trials[-1].state == "waiting"
    assert inline(tmp_path / "s", spec(), 4) == whole


def test_a_study_of_a_newer_release_is_refused_with_what_to_install(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "studies" / "s"
    question = spec(name="s")
    question = question.model_copy(update={"latency": question.latency.model_copy(update={"device": cpu_name()})})
    inline(folder, question, 2)
    text = (folder / "study.toml").read_text().replace(f"schema = {SCHEMA}\n", f"schema = {SCHEMA + 1}\n")
    (folder / "study.toml").write_text(text)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for words in (("front", "s"), ("search", "--study", "s", "--trials", "3"), ("export", "s")):
        answer = cli(*words)
        assert answer.status == 4
        assert f"written by a newer igc-nas (schema {SCHEMA + 1}; this one reads {SCHEMA})" in answer.err
        assert "pip install --upgrade igc-nas" in answer.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
