"""The store: every ended trial is on disk, and is read back unchanged."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from igc_nas.arch.papers import reference
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store, replace_latencies
from igc_nas.errors import ConfigError, StudyError
from igc_nas.samplers.history import EXPECTED, Memory
from igc_nas.space.budget import Budget
from igc_nas.study.records import Trial
from igc_nas.study.study import load_study, read_trials
from tests.support.searches import RUNGS, evaluate, evaluate_on_the_way, searched, spec


def in_database(folder: Path, name: str = "stub") -> list[optuna.trial.FrozenTrial]:
    """The study's trials as another program opens them with Optuna."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    try:
        return optuna.load_study(study_name=name, storage=storage).trials
    finally:
        storage.engine.dispose()


def write_record(folder: Path, trial: Trial) -> None:
    """Write a trial's record, and not its state, as a process leaves it that dies between the two."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    study_id = storage.get_study_id_from_name("stub")
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
    storage.set_trial_user_attr(trial_id, "igc_nas:record", trial.to_json())
    storage.engine.dispose()


def test_a_store_opens_as_it_was_closed(tmp_path: Path) -> None:
    searched(tmp_path / "s", 5)
    before = load_study(tmp_path / "s").trials
    with Store(tmp_path / "s", spec()) as store:
        assert store.study.trials == before
        assert [t.number for t in store.optuna_study.trials] == [t.number for t in before]


def test_trials_jsonl_restores_the_database(tmp_path: Path) -> None:
    searched(tmp_path / "s", 5)
    before = load_study(tmp_path / "s").trials
    (tmp_path / "s" / "study.db").unlink()
    with Store(tmp_path / "s", spec()) as store:
        assert store.study.trials == before


def test_the_database_restores_trials_jsonl(tmp_path: Path) -> None:
    searched(tmp_path / "s", 5)
    evidence = (tmp_path / "s" / "trials.jsonl").read_bytes()
    (tmp_path / "s" / "trials.jsonl").write_bytes(evidence[:-30])
    with Store(tmp_path / "s", spec()):
        pass
    assert (tmp_path / "s" / "trials.jsonl").read_bytes() == evidence


def test_an_interrupted_trial_waits_for_the_next_search(tmp_path: Path) -> None:
    steps = search(spec(), Run(tmp_path / "s", trials=9), evaluate=evaluate)
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt())
    with Store(tmp_path / "s", spec()) as store:
        asked = store.optuna_study.ask()
        store.add(Trial(number=asked.number, state="running", params={}))
    assert [t.state for t in read_trials(tmp_path / "s" / "trials.jsonl")] == ["complete", "waiting"]


def test_a_record_that_was_written_before_its_state_is_recovered(tmp_path: Path) -> None:
    """A process that dies between the two writes has ended the trial."""
    searched(tmp_path / "s", trials=2)
    with Store(tmp_path / "s", spec()) as store:
        asked = store.optuna_study.ask()
        store.add(Trial(number=asked.number, state="running", params={}))
    ended = Trial(number=2, state="failed", params={}, reason="power cut")
    write_record(tmp_path / "s", ended)
    with Store(tmp_path / "s", spec()) as store:
        assert store.trials[2] == ended
        assert store.optuna_study.trials[2].state.name == "FAIL"
    assert in_database(tmp_path / "s")[2].state.name == "FAIL"


def test_a_second_writer_is_refused_with_the_holder(tmp_path: Path) -> None:
    child = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
        "from tests.support.searches import spec\n"
        "from igc_nas.engine.store import Store\n"
        "with Store(Path(sys.argv[2]), spec()):\n    print('open', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", child, str(Path(__file__).parents[2]), str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StudyError, match=f"is being searched by pid {other.pid} on "):
            Store(tmp_path / "s", spec())
        assert load_study(tmp_path / "s").trials == ()
        other.kill()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            Store(tmp_path / "s", spec()).close()
            return
        except StudyError:
            time.sleep(0.1)
    pytest.fail("the lock outlived its holder")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a database at all",
        lambda data: data[:1000],
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 4096 + data[4096:],
        lambda data: data[:2000] + b"\0" * 3000 + data[5000:],
    ],
)
def test_a_damaged_database_is_refused_or_opened_and_nothing_is_lost(damage, tmp_path: Path) -> None:
    searched(tmp_path / "s", 5)
    database = tmp_path / "s" / "study.db"
    evidence = (tmp_path / "s" / "trials.jsonl").read_bytes()
    database.write_bytes(damage(database.read_bytes()))
    with contextlib.suppress(StudyError):
        Store(tmp_path / "s", spec()).close()
    assert (tmp_path / "s" / "trials.jsonl").read_bytes() == evidence


def test_two_folders_do_not_write_one_database(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    searched = pytest.raises(StudyError, match=f"is being searched by pid {os.getpid()} on ")
    with Store(tmp_path / "a" / "stub", spec(), storage), searched:
        Store(tmp_path / "b" / "stub", spec(), storage)
    Store(tmp_path / "b" / "stub", spec(), storage).close()
    assert sorted(path.name for path in tmp_path.glob("shared*")) == ["shared.db", "shared.db.lock"]


@pytest.mark.parametrize("name", ["study.db", "own.db"])
def test_the_database_in_a_study_s_folder_is_not_written_from_another(name: str, tmp_path: Path) -> None:
    own, other = tmp_path / "a" / "stub", tmp_path / "b" / "stub"
    storage, link = f"sqlite:///{own / name}", tmp_path / "link.db"
    link.symlink_to(own / name)
    first = None if name == "study.db" else storage
    for again in (storage, f"sqlite:///{link}"):
        with Store(own, spec(), first), pytest.raises(StudyError, match=f"is being searched by pid {os.getpid()} on "):
            Store(other, spec(), again)
        with (
            Store(other, spec(), again),
            pytest.raises(StudyError, match=f"is being searched by pid {os.getpid()} on "),
        ):
            Store(own, spec(), first)


def test_another_database_may_be_named(tmp_path: Path) -> None:
    run = Run(tmp_path / "s", trials=2, storage=f"sqlite:///{tmp_path / 'else.db'}")
    list(search(spec(), run, evaluate=evaluate))
    assert (tmp_path / "else.db").exists()
    assert not (tmp_path / "s" / "study.db").exists()


@pytest.mark.parametrize("lost", [[0], [2], [1, 3], [4]])
def test_trials_jsonl_with_gaps_restores_the_rest(lost: list[int], tmp_path: Path) -> None:
    searched(tmp_path / "s", 5)
    (tmp_path / "s" / "study.db").unlink()
    path = tmp_path / "s" / "trials.jsonl"
    kept = [line for number, line in enumerate(path.read_text().splitlines(True)) if number not in lost]
    path.write_text("".join(kept))
    for _ in range(2):  # and again, from the database that it made
        with Store(tmp_path / "s", spec()) as store:
            states = [store.trials[number].state for number in range(len(store.trials))]
            assert all(number == trial.number for number, trial in store.trials.items())
        last = max(n for n in range(5) if n not in lost)
        assert states == ["failed" if number in lost else "complete" for number in range(last + 1)]


def test_a_database_of_another_question_is_refused(tmp_path: Path) -> None:
    searched(tmp_path / "s", 5)
    (tmp_path / "s" / "study.toml").unlink()
    with pytest.raises(StudyError, match=r"another study stub: seed: 5 asked for, 0 in the study"):
        Store(tmp_path / "s", spec(seed=5))


def test_a_trial_over_the_latency_budget_is_infeasible_for_the_sampler_too(tmp_path: Path) -> None:
    question = spec(budget=Budget(latency_ms=0.5))
    list(search(question, Run(tmp_path / "s", trials=4), evaluate=evaluate))
    with Store(tmp_path / "s", question) as store:
        slow = [t for t in store.trials.values() if t.state == "infeasible" and t.arch]
        assert slow
        for trial in slow:
            assert trial.violation is not None
            assert trial.violation > 0
            assert store.optuna_study.trials[trial.number].system_attrs["constraints:budget"] == trial.violation
            assert in_database(tmp_path / "s")[trial.number].system_attrs["constraints:budget"] == trial.violation
        assert all(c.latency.normalised_ms <= 0.5 for c in store.study.candidates)


def test_samplers_see_pruned_trials_after_any_reopening(tmp_path: Path) -> None:
    """PRUNED, with the expected error: in the samplers' view, in the database, and restored from either file."""
    question = spec(prune_below=0.5, recipe={"rungs": list(RUNGS)})
    list(search(question, Run(tmp_path / "s", trials=30), evaluate=evaluate_on_the_way))
    before = load_study(tmp_path / "s").trials
    stopped = {t.number: t.pruned for t in before if t.pruned}
    assert len(stopped) >= 3
    for trial in before:
        assert Trial.from_json(trial.to_json()) == trial
    for lost in (None, "study.db", "trials.jsonl"):
        if lost:
            (tmp_path / "s" / lost).unlink()
        with Store(tmp_path / "s", question) as store:
            assert store.study.trials == before
            assert store.study.ended == 30
            for trials in (store.optuna_study.trials, in_database(tmp_path / "s")):
                pruned = {t.number: t.user_attrs[EXPECTED] for t in trials if t.state.name == "PRUNED"}
                assert pruned == {n: [s.expected_error, s.std] for n, s in stopped.items()}
                assert all(t.values is None for t in trials if t.state.name == "PRUNED")
            history = Memory(question.search_space, question.feasible.encoding).history(store.optuna_study, len(before))
            assert len(history.pruned) == len(stopped)
            assert history.expected.tolist() == [[s.expected_error, s.std] for s in stopped.values()]


def test_a_pruned_trial_that_was_recorded_before_its_state_is_recovered(tmp_path: Path) -> None:
    question = spec(prune_below=0.5, recipe={"rungs": list(RUNGS)})
    list(search(question, Run(tmp_path / "s", trials=30), evaluate=evaluate_on_the_way))
    ended = next(t for t in load_study(tmp_path / "s").trials if t.pruned)
    with Store(tmp_path / "s", question) as store:
        asked = store.optuna_study.ask()
        store.add(Trial(number=asked.number, state="running", params={}))
    ended = ended.model_copy(update={"number": asked.number})
    write_record(tmp_path / "s", ended)
    with Store(tmp_path / "s", question) as store:
        assert store.trials[asked.number] == ended
        assert store.optuna_study.trials[asked.number].state.name == "PRUNED"
        assert store.optuna_study.trials[asked.number].user_attrs[EXPECTED][1] == ended.pruned.std


def test_an_enqueued_trial_outside_the_space_is_restored(tmp_path: Path) -> None:
    outside = reference("igcv1-l24m2-d20", 10).arch
    run = Run(tmp_path / "s", trials=3, enqueue=(outside,))
    list(search(spec(budget=Budget(params=3000)), run, evaluate=evaluate))
    before = load_study(tmp_path / "s").trials
    for lost in ("trials.jsonl", "study.db"):
        (tmp_path / "s" / lost).unlink()
        with Store(tmp_path / "s", spec(budget=Budget(params=3000))) as store:
            assert store.study.trials == before
            assert store.optuna_study.trials[0].params == {}
            assert store.optuna_study.trials[0].values is not None


def test_replacing_latencies_rebuilds_the_database(tmp_path: Path) -> None:
    searched(tmp_path / "s", 5)
    before = load_study(tmp_path / "s")
    first, *others = before.candidates
    quiet = first.latency.model_copy(update={"normalised_ms": first.latency.normalised_ms * 2})
    replace_latencies(tmp_path / "s", {first.trial: quiet})
    after = load_study(tmp_path / "s")
    assert after.candidates == (first.model_copy(update={"latency": quiet}), *others)
    with Store(tmp_path / "s", spec()) as store:
        told = store.optuna_study.get_trials(deepcopy=False)[first.trial].values
        assert told[spec().objectives.index("latency")] == quiet.normalised_ms
    list(search(spec(), Run(tmp_path / "s", trials=7), evaluate=evaluate))
    assert load_study(tmp_path / "s").candidates[: len(after.candidates)] == after.candidates


def test_latencies_of_a_running_study_are_not_replaced(tmp_path: Path) -> None:
    with Store(tmp_path / "s", spec()), pytest.raises(StudyError, match="is being searched by"):
        replace_latencies(tmp_path / "s", {})


def test_trials_that_samplers_read_share_their_distributions(tmp_path: Path) -> None:
    """Copies of them would take most of the memory of a long study."""
    searched(tmp_path / "s", 5)
    with Store(tmp_path / "s", spec()) as store:
        for _ in range(2):
            asked = store.optuna_study.ask()
            with contextlib.suppress(ConfigError):  # it need not be a network
                spec().search_space.suggest(asked)
            store.add(Trial(number=asked.number, state="failed", params=asked.params))
        trials = store.optuna_study.get_trials(deepcopy=False)
        for part in (trials[:5], trials[5:]):
            first, *others = part
            assert first.distributions
            for other in others:
                assert all(other.distributions[name] is d for name, d in first.distributions.items())


SWAP = """
update trial_user_attributes set trial_id = -1 where trial_id = 1;
update trial_user_attributes set trial_id = 1 where trial_id = 2;
update trial_user_attributes set trial_id = 2 where trial_id = -1;
"""


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("update trials set number = 7 where number = 2", "not numbered from 0 on"),
        ("delete from trials where number = 0", "not numbered from 0 on"),
        ("update trials set number = null", "not numbered from 0 on"),
        ("update trials set state = 'ASLEEP' where number = 1", "cannot be used"),
        ("update trial_user_attributes set value_json = '[1' where trial_id = 1", "cannot be used"),
        ("update trial_user_attributes set value_json = '[1]' where trial_id = 1", "is not igc-nas's"),
        ("delete from trial_user_attributes where trial_id = 1", "is not igc-nas's"),
        (SWAP, "has the record of trial"),
    ],
)
def test_inconsistent_rows_are_refused(damage: str, said: str, tmp_path: Path) -> None:
    searched(tmp_path / "s", 5)
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / "study.db")) as connection, connection:
        connection.executescript(damage)
    with pytest.raises(StudyError, match=said):
        Store(tmp_path / "s", spec())
    assert load_study(tmp_path / "s").ended == 5
