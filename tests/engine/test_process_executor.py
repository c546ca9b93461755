"""Real worker processes: they evaluate, dead ones are replaced, and they end with their coordinator."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tqdm import tqdm

from igc_nas.data.datasets import locate
from igc_nas.engine.coordinator import Coordinator, Limits
from igc_nas.engine.evaluator import evaluator_at
from igc_nas.engine.events import Ended, Job, Started
from igc_nas.engine.executor import RungReport, TrialCompleted, TrialFailed
from igc_nas.engine.process_executor import ProcessExecutor
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store
from igc_nas.engine.worker import lock_progress_bars_by_thread
from igc_nas.errors import DataError, InfeasibleError, StudyError
from igc_nas.nn.device import cpu_name
from igc_nas.samplers.pruner import MIN_COMPLETED, FinalErrorPrediction
from igc_nas.space.budget import Budget
from igc_nas.study.defaults import new_spec
from igc_nas.study.names import study_names
from igc_nas.study.records import Candidate, Rung
from igc_nas.study.spec import Calibration, StudySpec
from igc_nas.study.study import load_study
from tests.support.searches import latency, spec
from tests.support.stubs import stub

RECIPE = {"epochs": 2, "train_size": 400, "held_out": 100, "resolution": 8, "crop": 1}


def question(**changes) -> StudySpec:
    return new_spec(locate("shapes", None), cpu_name(), space="tiny", name="s", recipe=RECIPE, **changes)


def children(of: int | None = None) -> list[psutil.Process]:
    return [p for p in psutil.Process(of).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return not alive


@pytest.mark.slow
def test_workers_evaluate_die_and_are_replaced(tmp_path: Path) -> None:
    """Two workers, killed during trial 1: that trial fails, and the search still completes its number of trials."""
    killed: list[int] = []

    def kill_once(event: object) -> None:
        if isinstance(event, Started) and event.job.number == 1 and not killed:
            for process in children():
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)

    found = list(search(question(), Run(tmp_path / "s", trials=3, workers=2), on_event=kill_once))
    study = load_study(tmp_path / "s")
    assert len(found) == 3
    assert len(killed) == 2
    failed = [t for t in study.trials if t.state == "failed"]
    assert 1 <= len(failed) <= 2
    assert all("the worker process died (SIGKILL)" in str(t.reason) and t.arch for t in failed)
    assert not children()
    assert study.spec.reference_ms is not None
    low, high = study.spec.bounds["latency"]
    assert 0 < low < high
    for candidate in study.candidates:
        assert candidate.score.dataset == "shapes"
        assert candidate.score.conditions.threads == candidate.latency.conditions.threads == 1
        assert len(candidate.score.curve) == 2
        spent = study.trials[candidate.trial].spent
        assert spent is not None
        assert spent.train_s >= candidate.score.train_s - spent.wait_s - 0.01
        assert spent.measure_s > 0
    assert all(trial.spent is None for trial in failed)


@pytest.mark.slow
def test_workers_of_a_killed_coordinator_exit(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "igc_nas", "search", "--space", "tiny", "--study", "s", "--dataset", "shapes"]
    command += ["--latency-runtime", "eager"]
    command += ["--workers", "2", "--recipe", "epochs=500,train_size=2000", "--trials", "9"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as coordinator:
        until = time.monotonic() + 60
        while time.monotonic() < until and not _under_way(tmp_path / "studies" / "s" / "study.db"):
            time.sleep(0.2)
        workers = children(coordinator.pid)
        assert len(workers) == 2
        coordinator.kill()
        coordinator.wait()
        assert gone(workers, within_s=10)
    with Store(tmp_path / "studies" / "s", load_study(tmp_path / "studies" / "s").spec) as store:
        assert [t.number for t in store.study.trials if t.state == "waiting"] == [0, 1]


def _under_way(database: Path) -> bool:
    """Whether the database holds two running trials, by looking at it as any SQLite reader may."""
    import sqlite3

    if not database.exists():
        return False
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return connection.execute("select count(*) from trials where state = 'RUNNING'").fetchone()[0] == 2
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()


def test_an_error_that_keeps_a_worker_from_starting_is_raised(tmp_path: Path) -> None:
    spec = question().model_copy(update={"recipe": question().recipe.model_copy(update={"train_size": 10**6})})
    with pytest.raises(Exception, match="train_size \\+ held_out"):
        list(search(spec, Run(tmp_path / "s", trials=1)))


def test_another_dataset_than_the_studys_is_refused(tmp_path: Path) -> None:
    spec = question().model_copy(update={"dataset_sha256": "0" * 64})
    with pytest.raises(StudyError, match="the dataset is shapes; the study is about shapes"):
        list(search(spec, Run(tmp_path / "s", trials=1)))
    with pytest.raises(DataError, match="cifar10"):
        list(search(spec.model_copy(update={"dataset": "cifar10"}), Run(tmp_path / "t", trials=1, data_dir=tmp_path)))


def test_a_latency_budget_spares_the_training(tmp_path: Path) -> None:
    ends = Calibration(reference_ms=1.0, smallest=latency(1e-5), largest=latency(1.0))
    spec = question(budget=Budget(latency_ms=0.0001)).with_scale(ends)
    ended = []

    def note(event: object) -> None:
        if isinstance(event, Ended):
            ended.append(event.trial)
            if len(ended) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(search(spec, Run(tmp_path / "s", trials=1), on_event=note))
    assert [t.state for t in ended] == ["infeasible", "infeasible"]
    assert all("the budget is 0.0001 ms" in t.reason and t.violation > 0 for t in ended)


def test_a_latency_budget_that_nothing_can_keep_is_refused_at_once(tmp_path: Path) -> None:
    spec = question(budget=Budget(latency_ms=0.0001))
    with pytest.raises(InfeasibleError, match=r"fewest MACs takes .* ms here; the budget is 0\.0001 ms"):
        list(search(spec, Run(tmp_path / "s", trials=1)))
    assert "s" not in study_names(tmp_path)
    assert not list((tmp_path / "s").glob("study.[td]*"))


def test_another_device_than_the_studys_is_refused(tmp_path: Path) -> None:
    spec = new_spec(locate("shapes", None), "another device", space="tiny", name="s", recipe=RECIPE)
    with pytest.raises(StudyError, match="latencies are of another device; this machine has"):
        list(search(spec, Run(tmp_path / "s", trials=1)))
    with pytest.raises(StudyError, match="the study's latencies are of another device"):
        list(search(spec, Run(tmp_path / "t", trials=1, devices=("cpu",))))


def test_idle_and_starting_workers_that_die_are_replaced() -> None:
    with ProcessExecutor(question(), locate("shapes", None), ("cpu",), 1, evaluator_at) as workers:
        _kill_all()  # while it starts
        list(workers.messages(10))
        spec = question().with_scale(workers.calibrate())
        _kill_all()  # while it is idle
        workers.set_spec(spec)
        arch = spec.search_space.smallest("params")
        workers.submit(Job(0, arch, 0))
        ended: list[object] = []
        while not any(isinstance(message, TrialCompleted | TrialFailed) for message in ended):
            ended += workers.messages(60)
    assert isinstance(ended[-1], TrialCompleted | TrialFailed)


def _kill_all() -> None:
    for process in children():
        process.kill()
        process.wait()


def test_closing_ends_the_processes(tmp_path: Path) -> None:
    with ProcessExecutor(question(), locate("shapes", None), ("cpu",), 2, evaluator_at):
        until = time.monotonic() + 10
        while len(running := children()) < 2 and time.monotonic() < until:
            time.sleep(0.02)  # a process bears its parent's name until it has become its own
        assert len(running) == 2
    assert gone(running, within_s=5)


def coordinated(kind: type[Coordinator], folder: Path, trials: int, workers: int) -> list[Candidate]:
    """The candidates of a search with rungs by another coordinator."""
    with (
        Store(folder, with_rungs()) as store,
        ProcessExecutor(store.spec, locate("shapes", None), ("cpu",), workers, evaluator_at, folder=folder) as executor,
    ):
        return list(kind(store, Limits(trials), lambda _: None).run(executor))


def with_rungs(**changes) -> StudySpec:
    recipe = RECIPE | {"rungs": [200, 500], "average": 0.9}
    return new_spec(locate("shapes", None), cpu_name(), space="tiny", name="s", recipe=recipe, **changes)


@pytest.mark.slow
def test_a_training_that_is_pruned_at_a_rung_ends_there(tmp_path: Path) -> None:
    """Two workers; every other training is pruned, at its first rung or its second."""
    asked: list[RungReport] = []

    class Pruning(Coordinator):
        def pruning_prediction(self, report: RungReport) -> FinalErrorPrediction | None:
            asked.append(report)
            is_pruned = report.number % 2 == 1 and report.rung.samples == (200 if report.number == 1 else 500)
            return FinalErrorPrediction(0.7, 0.1, 0.01) if is_pruned else None

    found = coordinated(Pruning, tmp_path / "s", trials=4, workers=2)
    study = load_study(tmp_path / "s")
    assert [t.state for t in study.trials] == ["complete", "pruned", "complete", "pruned"]
    assert {c.trial for c in found} == {0, 2}
    told: dict[int, list[Rung]] = {}
    for at in asked:
        told.setdefault(at.number, []).append(at.rung)
    for trial in study.trials:
        training = trial.pruned.training if trial.pruned else trial.candidate.score
        assert list(training.rungs) == told[trial.number]
        assert [epoch.samples for epoch in training.curve] == ([] if trial.number == 1 else [384, 768])[
            : 1 if trial.number == 3 else 2
        ]
    assert [len(rungs) for _, rungs in sorted(told.items())] == [2, 1, 2, 2]
    assert [(t.pruned.p_front, t.pruned.expected_error) for t in study.trials if t.pruned] == [(0.01, 0.7)] * 2
    assert not children()


@pytest.mark.slow
def test_a_worker_that_dies_at_a_rung_costs_that_trial_only(tmp_path: Path) -> None:
    class Killing(Coordinator):
        def pruning_prediction(self, report: RungReport) -> FinalErrorPrediction | None:
            if report.number == 0:
                for process in children():
                    process.kill()  # it waits for the answer
            return None

    coordinated(Killing, tmp_path / "s", trials=1, workers=1)
    failed, complete = load_study(tmp_path / "s").trials
    assert (failed.state, failed.reason) == ("failed", "the worker process died (SIGKILL)")
    assert complete.state == "complete"
    assert len(complete.candidate.score.rungs) == 2


@pytest.mark.slow
def test_two_workers_prune_trainings_with_little_chance(tmp_path: Path) -> None:
    list(search(with_rungs(prune_below=0.6, sampler="random"), Run(tmp_path / "s", trials=50, workers=2)))
    study = load_study(tmp_path / "s")
    stopped = [t for t in study.trials if t.state == "pruned"]
    assert study.ended == 50
    assert stopped
    assert min(t.number for t in stopped) >= MIN_COMPLETED - 1
    assert all(t.pruned.p_front < 0.6 and 1 <= len(t.pruned.training.rungs) <= 2 for t in stopped)


@pytest.mark.gpu
def test_a_search_runs_on_a_gpu(tmp_path: Path) -> None:
    from igc_nas.nn.device import find_devices

    device = find_devices("cuda")[0]
    spec = new_spec(
        locate("shapes", None), device.name, "cuda", space="tiny", name="s", recipe={"epochs": 1, "train_size": 4000}
    )
    found = list(search(spec, Run(tmp_path / "s", trials=3, devices=(device.torch_name,))))
    assert len(found) == 3
    assert all(c.latency.conditions.device == c.score.conditions.device == device.name for c in found)


def test_a_custom_evaluator_works_in_worker_processes(tmp_path: Path) -> None:
    """3 workers, 20 trials each, and readers meanwhile: no result is lost, no process is left."""
    seen: list[int] = []

    def read(event: object) -> None:
        if isinstance(event, Ended) and event.trial.number % 15 == 0:
            seen.append(len(load_study(tmp_path / "s").candidates))

    question = spec(sampler="stratified", prune_below=0.0)
    found = list(search(question, Run(tmp_path / "s", trials=60, workers=3), evaluator=stub, on_event=read))
    study = load_study(tmp_path / "s")
    assert len(found) == len(study.candidates) == len(study.trials) == 60
    assert len({c.id for c in study.candidates}) == 60
    assert all(trial.process is None and trial.wall_s is not None for trial in study.trials)
    assert seen == sorted(seen)
    assert seen
    assert not children()


def test_a_library_that_shows_progress_leaves_no_semaphore_of_a_killed_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tqdm, "_lock", raising=False)
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    lock_progress_bars_by_thread()
    taken: list[object] = []
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", lambda *given, **_: taken.append(given))
    assert list(tqdm([1], file=io.StringIO())) == [1]
    assert taken == []
