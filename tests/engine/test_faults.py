"""Kills, stops, signals and bad trials: ended trials are kept, running ones are resumed, no process is left.

The sizes that are promised run with `-m faults`; every test has a short form beside them.
"""

import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.engine.coordinator import SAME_FAILURES
from igc_nas.engine.database import default_url, stored_study
from igc_nas.engine.events import Job
from igc_nas.engine.executor import Message, TrialCompleted, TrialFailed
from igc_nas.engine.process_executor import ProcessExecutor
from igc_nas.engine.search import Run, search
from igc_nas.errors import IgcNasError
from igc_nas.space.budget import Budget
from igc_nas.study.records import FINISHED, Latency, Score, Trial
from igc_nas.study.spec import SamplerName, StudySpec
from igc_nas.study.study import load_study
from tests.support.commands import Command
from tests.support.searcher import (
    all_gone,
    await_,
    command,
    commands_of,
    finished,
    left,
    named,
    started,
    typed,
    workers_of,
)
from tests.support.searches import evaluate, spec
from tests.support.stubs import FAULTS, endless, faulty, out_of_memory, stub, talkative, waits_for_others

SAMPLERS = get_args(SamplerName)
SOME_SAMPLERS = [
    pytest.param(name, marks=() if name in ("known-cost", "nsga2") else pytest.mark.faults) for name in SAMPLERS
]
LARGE = {"space": "igc_cifar", "sampler": "stratified"}
"""A spec whose space hundreds of trials do not exhaust, and whose sampler takes no time."""


def timeless(trials: tuple[Trial, ...]) -> list[Trial]:
    """Trials without what another run may not repeat: when, where and how long."""
    return [t.model_copy(update={"started": None, "wall_s": None, "process": None, "spent": None}) for t in trials]


def ended(folder: Path) -> dict[int, Trial]:
    """What a reader sees as ended."""
    if not (folder / "study.toml").exists():
        return {}
    return {trial.number: trial for trial in load_study(folder).trials if trial.state in FINISHED}


def running_in_database(folder: Path) -> int:
    """The number of running trials that a reader of the database sees."""
    connection = sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True)
    try:
        return int(connection.execute("select count(*) from trials where state = 'RUNNING'").fetchone()[0])
    finally:
        connection.close()


def is_in_order(folder: Path) -> None:
    """Database and trials.jsonl agree; no trial runs, is lost, duplicated or missing."""
    study = load_study(folder)
    assert stored_study(default_url(folder), study.spec.name).trials == study.trials
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert running_in_database(folder) == 0
    assert not [t for t in study.trials if t.state == "running" or (t.failure and t.failure.kind == "lost")]
    identities = [candidate.id for candidate in study.candidates]
    assert len(set(identities)) == len(identities)
    assert (folder / "trials.jsonl").read_bytes().count(b"\n") == len(study.trials)


# kill -9.


def killed_at_random(folder: Path, kills: int, seed: int) -> None:
    """Kill a search of four workers again and again, at any moment of its life, and hold it to what a reader saw."""
    chance, seen, mark = random.Random(seed), dict[int, Trial](), f"{folder}"
    for turn in range(kills):
        with started(command("with_command", folder, 10**6, **LARGE), folder.parent / "out", mark) as child:
            if turn % 4 == 3:
                time.sleep(chance.uniform(0.2, 2.0))  # while it starts
            else:
                before = len(seen)
                await_(lambda before=before: len(ended(folder)) > before)
                time.sleep(chance.uniform(0.0, 0.6))
            seen |= ended(folder)
            time.sleep(chance.uniform(0.0, 0.05))
            assert child.poll() is None, (folder.parent / "out" / "stderr").read_text()
            child.kill()
            child.wait()
            assert all_gone(mark), left(mark)
        now = ended(folder)
        assert {number: now.get(number) for number in seen} == seen
    assert len(seen) >= kills // 2
    assert finished(command("stub", folder, len(ended(folder)) + 4, **LARGE), folder.parent / "out", mark) == 0
    is_in_order(folder)
    now = ended(folder)
    assert len(now) == len(load_study(folder).trials)
    assert {number: now.get(number) for number in seen} == seen
    assert all(trial.state == "complete" for trial in now.values())
    assert "worker.py" not in (folder.parent / "out" / "stderr").read_text(), "they go without a word"


@pytest.mark.slow
def test_killed_coordinators_lose_no_result_and_leave_no_process(tmp_path: Path) -> None:
    killed_at_random(tmp_path / "s", kills=2, seed=100)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(8))
def test_two_hundred_killed_coordinators_lose_no_result_and_leave_no_process(seed: int, tmp_path: Path) -> None:
    killed_at_random(tmp_path / "s", kills=25, seed=seed)


def workers_killed_at_random(folder: Path, kills: int, seed: int) -> None:
    """Kill workers of a search of four: each costs the trial that it was on; its command goes with it."""
    chance, mark = random.Random(seed), f"{folder}"
    with started(command("with_command", folder, 10**6, **LARGE), folder.parent / "out", mark) as child:
        await_(lambda: ended(folder))
        killed = 0
        while killed < kills:
            time.sleep(chance.uniform(0.0, 0.3))
            assert child.poll() is None, (folder.parent / "out" / "stderr").read_text()
            at_work = [worker for worker in workers_of(child.pid) if commands_of(worker)]
            if at_work:  # one that never comes to work is another story
                chance.choice(at_work).kill()
                killed += 1
        after = len(ended(folder))
        await_(lambda: len(ended(folder)) > after + 8)
        assert named(mark, "sleep") <= 4
        child.send_signal(signal.SIGINT)
        child.wait(30)
        assert all_gone(mark)
    is_in_order(folder)
    failed = [trial for trial in load_study(folder).trials if trial.state == "failed"]
    assert 1 <= len(failed) <= kills
    for trial in failed:
        assert trial.failure is not None
        assert (trial.failure.kind, trial.reason) == ("died", "the worker process died (SIGKILL)")
        assert trial.failure.where in ("starting", "measuring", "training")


@pytest.mark.slow
def test_killed_workers_cost_a_trial_each(tmp_path: Path) -> None:
    workers_killed_at_random(tmp_path / "s", kills=3, seed=0)


@pytest.mark.faults
def test_fifty_killed_workers_cost_a_trial_each(tmp_path: Path) -> None:
    workers_killed_at_random(tmp_path / "s", kills=50, seed=1)


# A stop at any trial: the search goes on as if nothing had been.


def asked(sampler: str) -> StudySpec:
    return spec(sampler=sampler, budget=Budget(params=3000), seed=3)


def stopped_before(k: int) -> Any:
    """An evaluator that is stopped by Ctrl-C when it is called for the k-th time."""
    calls = iter(range(100))

    def evaluate_until(arch: ArchConfig, seed: int) -> tuple[Latency, Score]:
        if next(calls) == k:
            raise KeyboardInterrupt
        return evaluate(arch, seed)

    return evaluate_until


def inline(folder: Path, question: StudySpec, trials: int = 12, evaluator: Any = evaluate) -> list[Trial]:
    list(search(question, Run(folder, trials=trials), evaluate=evaluator))
    return timeless(load_study(folder).trials)


def front(folder: Path) -> list[Any]:
    return [(c.id, c.score.error, c.cost, c.latency) for c in load_study(folder).front()]


@pytest.mark.parametrize("sampler", SOME_SAMPLERS)
def test_a_search_that_is_stopped_in_every_trial_gives_the_same_trials(sampler: str, tmp_path: Path) -> None:
    """Twelve stops; before each opening another part of the study is gone, and is made of the other one."""
    question = asked(sampler)
    whole = inline(tmp_path / "whole", question)
    parts = tmp_path / "parts"
    for k in range(12):
        with pytest.raises(KeyboardInterrupt):
            inline(parts, question, evaluator=stopped_before(min(k, 1)))
        assert [t.state for t in load_study(parts).trials][-1] == "waiting"
        (parts / ("study.db", "trials.jsonl", "nothing")[k % 3]).unlink(missing_ok=True)
    assert inline(parts, question) == whole
    assert front(parts) == front(tmp_path / "whole")
    is_in_order(parts)


@pytest.mark.faults
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_is_stopped_at_any_of_twelve_trials_gives_the_same_front(sampler: str, tmp_path: Path) -> None:
    question = asked(sampler)
    whole = inline(tmp_path / "whole", question)
    for k in range(12):
        parts = tmp_path / f"stopped{k}"
        with pytest.raises(KeyboardInterrupt):
            inline(parts, question, evaluator=stopped_before(k))
        assert inline(parts, question) == whole
        assert front(parts) == front(tmp_path / "whole")


def killed_after(folder: Path, k: int, **question: Any) -> None:
    """Kill a search of one worker in the trial after the k-th."""
    mark = f"{folder}"
    with started(command("slow_stub", folder, 12, workers=1, **question), folder.parent / "out", mark) as child:
        await_(lambda: len(ended(folder)) >= k)
        child.kill()
        child.wait()
        assert all_gone(mark)


@pytest.mark.parametrize(
    "ks",
    [pytest.param((5,), marks=pytest.mark.slow), pytest.param(range(12), marks=pytest.mark.faults)],
    ids=["once", "always"],
)
@pytest.mark.parametrize("sampler", ["known-cost", pytest.param("nsga2", marks=pytest.mark.faults)])
def test_a_search_of_one_worker_that_is_killed_ends_with_the_same_front(sampler: str, ks: Any, tmp_path: Path) -> None:
    question = {"sampler": sampler, "seed": 3}
    list(search(spec(**question), Run(tmp_path / "whole", trials=12), evaluator=stub))
    whole = tmp_path / "whole"
    for k in ks:
        killed_after(tmp_path / "s", k, **question)
    assert finished(command("stub", tmp_path / "s", 12, workers=1, **question), tmp_path / "out", str(tmp_path)) == 0
    assert timeless(load_study(tmp_path / "s").trials) == timeless(load_study(whole).trials)
    assert front(tmp_path / "s") == front(whole)


@pytest.mark.faults
def test_a_real_search_that_is_killed_in_a_training_ends_with_the_same_front(tmp_path: Path) -> None:
    """Nothing is invented here but the images: factored networks, their errors and parameters."""
    words = ("search", "--space", "tiny", "--dataset", "shapes", "--study", "s", "--objectives", "error,params")
    words += ("--forms", "factored", "--latency-runtime", "eager", "--workers", "1", "--trials", "6", "--quiet")
    words += (
        "--recipe",
        "epochs=6,train_size=2000,held_out=500,resolution=8,rungs=[],dtype=float32",
    )
    real = typed("evaluator_at", *words)
    assert finished(real, tmp_path / "whole", "whole", 300) == 0
    parts = tmp_path / "parts"
    for k in (0, 2, 5):
        with started(real, parts, "parts") as child:
            await_(lambda k=k: _is_training(parts / "studies" / "s", k), within_s=120)
            child.kill()
            child.wait()
            assert all_gone("parts")
        assert sum(t.state in FINISHED for t in load_study(parts / "studies" / "s").trials) == k
    assert finished(real, parts, "parts", 300) == 0
    found, wanted = (load_study(folder / "studies" / "s") for folder in (parts, tmp_path / "whole"))
    assert [_learned(t) for t in found.trials] == [_learned(t) for t in wanted.trials]
    assert [c.id for c in found.front()] == [c.id for c in wanted.front()]


def _is_training(folder: Path, number: int) -> bool:
    """Whether trial `number` has trained for an epoch."""
    from igc_nas.study.lock import holder_of

    owner = holder_of(folder)
    return owner is not None and any(r.number == number and r.samples for r in owner.running)


def _learned(trial: Trial) -> Any:
    """What a training came to, without its times and those of the latency."""
    assert trial.candidate is not None
    score = trial.candidate.score
    return trial.params, trial.candidate.id, trial.candidate.seed, score.error, score.loss, score.curve, score.rungs


# Signals, to the program as a person runs it.

TYPED = ("search", "--space", "tiny", "--dataset", "shapes", "--study", "s", "--sampler", "stratified")
TYPED += ("--workers", "3", "--trials", "100", "--latency-runtime", "eager")


def ended_by(numbers: list[int], tmp_path: Path, to_group: bool = False) -> int:
    """The exit status of a search in its trials when it gets signals, as a shell tells it; it leaves nothing behind.

    Python lets go of its handlers as its very last; who is hit then dies of the signal: 128 + its number to a shell.
    """
    folder = tmp_path / "studies" / "s"
    with started(typed("endless_with_command", *TYPED), tmp_path, str(tmp_path)) as child:
        await_(lambda: named(str(tmp_path), "sleep") == 3, 240)  # without a cache kernels are compiled first
        for number in numbers:
            os.killpg(child.pid, number) if to_group else child.send_signal(number)
            time.sleep(0.03)
        status = child.wait(10)
        assert all_gone(str(tmp_path), 2)
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert [t.state for t in load_study(folder).trials] == ["waiting"] * 3
    is_in_order(folder)
    assert not (folder / "study.owner").exists()
    return status if status >= 0 else 128 - status


STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.faults
@pytest.mark.parametrize("to_group", [False, True], ids=["to the program", "to all of its processes"])
@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_a_signal_ends_a_search(number: signal.Signals, to_group: bool, tmp_path: Path) -> None:
    assert ended_by([number], tmp_path, to_group=to_group) == STATUS[number]


@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGHUP, signal.SIGHUP],
        *(
            pytest.param(numbers, marks=pytest.mark.faults)
            for numbers in (
                [signal.SIGINT] * 2,
                [signal.SIGTERM] * 2,
                [signal.SIGINT, signal.SIGTERM],
                [signal.SIGHUP, signal.SIGTERM],
                [signal.SIGINT] * 20,
            )
        ),
    ],
    ids=lambda numbers: " ".join(number.name for number in numbers[:3]),
)
def test_signals_in_quick_succession_are_one(numbers: list[signal.Signals], tmp_path: Path) -> None:
    assert ended_by(list(numbers), tmp_path) == STATUS[numbers[0]]


@pytest.mark.parametrize("busy", [1, pytest.param(20, marks=pytest.mark.faults)])
def test_a_signal_between_two_writes_waits_for_both(busy: int, tmp_path: Path) -> None:
    """A search that does nothing but write is ended anywhere: what was begun is done."""
    chance, folder = random.Random(busy), tmp_path / "s"
    question = LARGE if busy > 1 else {"sampler": "stratified"}  # to count a large space takes seconds
    for turn in range(busy):
        words = command("stub", folder, 10**6, workers=2, **question)
        with started(words, tmp_path / "out", str(tmp_path)) as child:
            before = len(ended(folder))
            await_(lambda before=before: len(ended(folder)) > before + 2)
            time.sleep(chance.uniform(0, 0.3))
            child.send_signal(signal.SIGINT)
            assert child.wait(10) != 0
            assert all_gone(str(tmp_path), 2)
        is_in_order(folder)
        assert sum(t.state == "waiting" for t in load_study(folder).trials) <= 2, turn


@pytest.mark.parametrize("delays", [(0.6,), pytest.param(range(16), marks=pytest.mark.faults)], ids=["once", "often"])
def test_a_signal_while_a_search_starts_ends_it(delays: Any, tmp_path: Path) -> None:
    """Python itself answers in the first moments: a signal's own death is 128 and its number to a shell."""
    for turn, delay in enumerate(delays):
        number = list(STATUS)[turn % 3]
        seconds = delay if isinstance(delay, float) else 0.35 + 0.15 * delay
        with started([sys.executable, "-m", "igc_nas", *TYPED], tmp_path, str(tmp_path)) as child:
            time.sleep(seconds)
            child.send_signal(number)
            assert child.wait(10) in (STATUS[number], -number)
            assert all_gone(str(tmp_path), 2)
        if (tmp_path / "studies" / "s" / "study.toml").exists() and load_study(tmp_path / "studies" / "s").trials:
            is_in_order(tmp_path / "studies" / "s")
    assert "Traceback" not in (tmp_path / "stderr").read_text()


@pytest.mark.faults
def test_a_signal_during_the_calibration_ends_a_search(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "s"
    with started(typed("slow_to_calibrate", *TYPED), tmp_path, str(tmp_path)) as child:
        await_((folder / "calibrating").exists)
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 143
        assert all_gone(str(tmp_path), 2)
    assert load_study(folder).trials == ()


@pytest.mark.faults
def test_a_search_that_ignores_a_hangup_goes_on(tmp_path: Path) -> None:
    """`nohup igc-nas search`: closing the terminal sends SIGHUP to all of its processes."""
    words = ["nohup", *command("slow_stub", tmp_path / "s", 100, workers=2, **LARGE)]
    with started(words, tmp_path / "out", str(tmp_path)) as child:
        await_(lambda: len(ended(tmp_path / "s")) > 2)
        os.killpg(child.pid, signal.SIGHUP)
        assert child.wait(60) == 0
    assert {t.state for t in load_study(tmp_path / "s").trials} == {"complete"}


@pytest.mark.faults
def test_stopped_workers_do_not_block_the_end_of_a_search(tmp_path: Path) -> None:
    """Eight processes that SIGTERM does not reach, because SIGSTOP has: they are killed together."""
    words = command("endless", tmp_path / "s", 100, workers=8, **LARGE)
    with started(words, tmp_path / "out", str(tmp_path)) as child:
        await_(lambda: _in_training(tmp_path / "s", 8))
        for worker in workers_of(child.pid):
            worker.send_signal(signal.SIGSTOP)
        child.send_signal(signal.SIGINT)
        child.wait(10)
        assert all_gone(str(tmp_path), 2)
    is_in_order(tmp_path / "s")


def _in_training(folder: Path, count: int) -> bool:
    return (folder / "study.db").exists() and _count(folder) == count


def _count(folder: Path) -> int:
    try:
        return running_in_database(folder)
    except sqlite3.OperationalError:
        return 0


# Ten kinds of trial fault, and more.

KINDS: dict[str, tuple[str, str, str]] = {
    "diverged": ("diverged", "building (stubs.py:", "the training loss is nan after epoch 1"),
    "memory": ("memory", "building (stubs.py:", "MemoryError: "),
    "memory of torch": ("memory", "training (stubs.py:", "RuntimeError: [enforce fail at alloc_cpu.cpp:118]"),
    "segfault": ("died", "building", "the worker process died (SIGSEGV)"),
    "exit": ("died", "building", "the worker process died (exit status 3)"),
    "abort": ("died", "building", "the worker process died (SIGABRT)"),
    "kill": ("died", "building", "the worker process died (SIGKILL)"),
    "hang": ("timeout", "training", "it took longer than 3"),
    "hang with the GIL": ("timeout", "building", "it took longer than 3"),
    "stopped by a signal": ("timeout", "building", "it took longer than 3"),
    "build": ("refused", "building (stubs.py:", "groups (=4) must divide width (=30)"),
    "recursion": ("error", "building (stubs.py:", "RecursionError: maximum recursion depth exceeded"),
    "no words": ("error", "building (stubs.py:", "UnpicklableError"),
    "cannot cross": ("refused", "building (stubs.py:", "1 and 2 do not fit"),
    "many words": ("error", "building (stubs.py:", "RuntimeError: a line of words a line of words"),
    "hostile words": ("error", "building (stubs.py:", "RuntimeError: ?"),
    "Ctrl-C": ("error", "building (stubs.py:", "KeyboardInterrupt: "),
    "sys.exit": ("error", "building (stubs.py:", "SystemExit: enough"),
    "end of file": ("error", "building (stubs.py:", "EOFError: Ran out of input"),
    "no outcome": ("error", "returning (worker.py:", "TypeError: the evaluator returned tuple, not an Outcome"),
    "nothing": ("error", "returning (worker.py:", "TypeError: the evaluator returned NoneType, not an Outcome"),
    "an outcome of words": ("error", "returning (worker.py:", "TypeError: the evaluator gave str, not Latency"),
    "a progress of words": ("error", "building (worker.py:", "TypeError: the evaluator gave str, not Epoch"),
    "pruned unasked": ("error", "returning (worker.py:", "TypeError: the evaluator pruned a training"),
    "nan error": ("diverged", "returning (worker.py:", "Score: error: "),
    "inf loss": ("diverged", "returning (worker.py:", "Score: loss: Input should be a finite number"),
    "inf latency": ("diverged", "returning (worker.py:", "Latency: normalised_ms: Input should be a finite number"),
    "negative latency": ("error", "returning (worker.py:", "Latency: normalised_ms: "),
    "a lock in the score": ("error", "returning (worker.py:", "Score: form: "),
}


def test_a_fault_costs_its_trial_and_is_recorded(tmp_path: Path) -> None:
    """A search of one worker meets every fault, one after another, and then has two good trials."""
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "faults.txt").write_text("\n".join(FAULTS))
    assert len(list(search(spec(), Run(folder, trials=2, trial_timeout_s=3.0), evaluator=faulty))) == 2
    is_in_order(folder)
    *bad, one, other = load_study(folder).trials
    assert (one.state, other.state) == ("complete", "complete")
    for fault, trial in zip(FAULTS, bad, strict=True):
        kind, where, reason = KINDS[fault]
        assert (trial.state, trial.arch is not None, trial.process) == ("failed", True, None), fault
        assert trial.failure is not None, fault
        assert trial.failure.kind == kind, fault
        assert trial.failure.where.startswith(where), (fault, trial.failure.where)
        assert trial.reason is not None, fault
        assert trial.reason.startswith(reason.strip()), fault
        assert len(trial.reason.splitlines()) == 1, fault
        assert len(trial.reason) <= 300, fault


def test_every_fault_is_looked_at() -> None:
    assert list(KINDS) == list(FAULTS)
    assert len(FAULTS) >= 10


def test_the_same_failure_again_and_again_ends_a_search(tmp_path: Path) -> None:
    with pytest.raises(IgcNasError, match=f"{SAME_FAILURES} trials in a row failed: RuntimeError: .*DefaultCPUAlloc"):
        list(search(spec(), Run(tmp_path / "s", trials=20), evaluator=out_of_memory))
    trials = load_study(tmp_path / "s").trials
    assert [(t.state, t.failure and t.failure.kind) for t in trials] == [("failed", "memory")] * SAME_FAILURES
    is_in_order(tmp_path / "s")


def test_what_a_trial_leaves_behind_does_not_disturb_the_next(tmp_path: Path) -> None:
    assert len(list(search(spec(), Run(tmp_path / "s", trials=8), evaluator=talkative))) == 8
    is_in_order(tmp_path / "s")


def heard(workers: ProcessExecutor, number: int) -> Message:
    """How a trial ended."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for message in workers.messages(10):
            if isinstance(message, TrialCompleted | TrialFailed) and message.number == number:
                return message
    raise AssertionError("nothing was heard")


def test_waiting_for_others_is_not_a_trials_time(tmp_path: Path) -> None:
    """It waits for three seconds, where a trial may take two; then it is done at once."""
    from igc_nas.data.datasets import locate

    arch = spec().search_space.smallest("params")
    for evaluator, wanted in ((waits_for_others, TrialCompleted), (endless, TrialFailed)):
        info = locate("shapes", None)
        with ProcessExecutor(spec(), info, ("cpu",), 1, evaluator, folder=tmp_path, trial_timeout_s=2.0) as workers:
            workers.calibrate()
            workers.submit(Job(0, arch, 0))
            assert isinstance(heard(workers, 0), wanted)


# One writes, any number read.


@pytest.mark.slow
def test_a_search_that_runs_is_refused_to_others_while_readers_go_on(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "studies" / "s"
    with started(typed("slow_stub", *TYPED), tmp_path, str(tmp_path)) as child:
        await_(lambda: ended(folder))
        answer = cli("search", "--study", "s", "--trials", "1000")
        assert answer.status == 4
        assert f"study s is being searched by pid {child.pid} on " in answer.err
        assert "Traceback" not in answer.err
        completed = [cli("front", "s", "--json").json["completed"] for _ in range(20)]
        assert completed == sorted(completed)
        assert cli("dashboard", "s", "-o", "page.html").status == 0
        database = default_url(folder)
        counts = [len(stored_study(database, "s").trials) for _ in range(20)]
        assert counts == sorted(counts)
        assert child.poll() is None
        child.kill()
        child.wait()
        assert all_gone(str(tmp_path))
    assert finished(typed("stub", *TYPED), tmp_path, str(tmp_path)) == 0
    assert len(ended(folder)) == 100
    is_in_order(folder)


@pytest.mark.slow
def test_a_reader_that_holds_the_database_is_waited_for(tmp_path: Path) -> None:
    """A program that reads for seconds on end, as a database browser does."""
    steps = search(spec(), Run(tmp_path / "s", trials=6), evaluate=evaluate)
    next(steps)
    reader = sqlite3.connect(tmp_path / "s" / "study.db", isolation_level=None, check_same_thread=False)
    reader.execute("begin")
    reader.execute("select * from trials").fetchall()
    import threading

    threading.Timer(6.5, reader.rollback).start()  # sqlite3 would give up after five
    assert len(list(steps)) == 5
    reader.close()
    is_in_order(tmp_path / "s")
