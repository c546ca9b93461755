"""The database as optuna-dashboard and `optuna.visualization` read it."""

import shutil
from pathlib import Path

import optuna
import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.papers import reference
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store
from igc_nas.space.budget import Budget
from igc_nas.space.parameters import Parameters
from igc_nas.study.baselines import Baseline
from igc_nas.study.records import Latency, Score
from igc_nas.study.study import Study, load_study
from tests.support.searches import evaluate, spec

OLD = Path(__file__).parents[1] / "study" / "release_0_1"


def opened(folder: Path) -> optuna.Study:
    """The study as another program opens it with Optuna; read whole, so that the file can be closed."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    try:
        copy = optuna.create_study(directions=["minimize"] * len(load_study(folder).spec.objectives))
        copy.add_trials(optuna.load_study(study_name=load_study(folder).spec.name, storage=storage).trials)
        return copy
    finally:
        storage.engine.dispose()


def shows(study: Study, shown: optuna.Study) -> None:
    """Assert that Optuna's front is the study's, and that each trial has readable parameters and its numbers."""
    assert sorted(trial.number for trial in shown.best_trials) == sorted(c.trial for c in study.front())
    parameters = Parameters(study.spec.search_space)
    for ours, theirs in zip(study.trials, shown.trials, strict=True):
        assert ours.number == theirs.number
        if theirs.params and ours.state != "infeasible":
            assert parameters.architecture(theirs.params) == parameters.space.decode(ours.params)
        if candidate := ours.candidate:
            attributes = theirs.user_attrs
            assert (attributes["id"], attributes["params"]) == (candidate.id, candidate.cost.params)
            assert attributes["latency_ms"] == candidate.latency.normalised_ms


def test_the_front_of_optuna_is_the_front_of_the_study(tmp_path: Path) -> None:
    budget = Budget(params=2000, latency_ms=1.0)
    question = spec(sampler="nsga2", budget=budget)
    small, outside = question.search_space.smallest("params"), reference("igcv1-l24m2-d20", 10).arch

    def own_evaluate(arch: ArchConfig, seed: int) -> tuple[Latency, Score]:
        """The smallest network, which is a baseline, and the one outside of the budget would dominate all others."""
        latency, score = evaluate(arch, seed)
        best = arch in (small, outside)
        return latency.model_copy(update={"normalised_ms": 1e-3} if best else {}), score.model_copy(
            update={"error": 1e-3} if best else {}
        )

    run = Run(tmp_path / "s", trials=40, enqueue=(outside,), baselines=(Baseline("least", small),))
    list(search(question, run, evaluate=own_evaluate))
    study, shown = load_study(tmp_path / "s"), opened(tmp_path / "s")
    assert {"infeasible", "duplicate", "complete"} <= {trial.state for trial in study.trials}
    shows(study, shown)
    (baseline,) = (trial for trial in shown.trials if "baseline" in trial.user_attrs)
    assert (baseline.state.name, baseline.user_attrs["error"]) == ("PRUNED", 1e-3)
    assert {type(v) for trial in shown.trials for name, v in trial.params.items() if "residual" in name} <= {bool}
    with Store(tmp_path / "s", study.spec) as store:  # samplers go on from what they were told
        states = {trial.state for trial in store.trials.values() if not trial.baseline}
        told = [trial.state.name for trial in store.optuna_study.trials]
        assert told.count("COMPLETE") > sum(t.state == "complete" and not t.baseline for t in study.trials)
        assert "infeasible" in states


@pytest.mark.parametrize("name", ["all", "pruned"])
def test_a_database_of_version_0_1_is_written_anew(name: str, tmp_path: Path) -> None:
    shutil.copytree(OLD / name, tmp_path / name)
    before = load_study(tmp_path / name)
    for _ in range(2):
        with Store(tmp_path / name, before.spec) as store:
            assert store.study.trials == before.trials
    assert load_study(tmp_path / name).trials == before.trials
    shows(before, opened(tmp_path / name))
