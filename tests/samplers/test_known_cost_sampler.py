"""The known-cost sampler in Optuna studies of one's own: any storage, threads, failures, after other samplers."""

import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import igc_nas
from igc_nas.errors import InfeasibleError, UsageError
from igc_nas.samplers.optuna_space import OptunaSpace
from tests.support.builders import SMALL_SPACES
from tests.support.searches import evaluate

ROOT = Path(__file__).parents[2]
SPACE = igc_nas.load_space("tiny", budget_params=3000)


def error_of(arch: igc_nas.ArchConfig) -> float:
    return evaluate(arch, 0)[1].error


def own_study(objectives: tuple[str, ...], space: OptunaSpace = SPACE, **more: Any) -> optuna.Study:
    sampler = igc_nas.KnownCostSampler(space, objectives, seed=0)
    return optuna.create_study(sampler=sampler, **({"directions": ["minimize"] * len(objectives)} | more))


def is_sound(study: optuna.Study) -> None:
    """Assert that no suggestion is infeasible, none is repeated, and all have real values and attributes."""
    ids = [trial.user_attrs["id"] for trial in study.trials]
    assert len(set(ids)) == len(ids)
    for trial in study.trials:
        assert trial.user_attrs["params"] <= 3000
        assert trial.constraints == {"budget": trial.user_attrs["params"] / 3000 - 1}
        assert igc_nas.arch_id(SPACE.architecture(trial.params)) == trial.user_attrs["id"]
        assert trial.params["stage1.unit"] in ("igcv1", "igcv2", "igcv3")
        assert trial.params["stage1.residual"] in (False, True)


STORAGES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: None,
    "sqlite": lambda folder: f"sqlite:///{folder / 'own.db'}",
    "journal": lambda folder: optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "own.log"))
    ),
}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("storage", STORAGES)
def test_any_storage(storage: str, tmp_path: Path) -> None:
    kept = STORAGES[storage](tmp_path)
    study = own_study(("error", "params"), storage=kept, study_name="own")

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        arch = SPACE.suggest(trial)
        trial.suggest_float("lr", 1e-3, 1e-1, log=True)  # a parameter of the user's own
        return error_of(arch), igc_nas.cost_of(arch).params

    study.optimize(objective, n_trials=12)
    if kept is not None:  # in another process the study goes on
        study = optuna.load_study(
            study_name="own", storage=kept, sampler=igc_nas.KnownCostSampler(SPACE, ("error", "params"))
        )
    study.optimize(objective, n_trials=3)
    assert len(study.trials) == 15
    is_sound(study)
    assert {0.001 <= trial.params["lr"] <= 0.1 for trial in study.trials} == {True}
    if isinstance(kept, str):
        study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["dead-end", "with-tables", "merging-frames"])
def test_spaces_with_dead_ends_tables_and_equal_frames(name: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(SMALL_SPACES[name])
    space = igc_nas.load_space(tmp_path / "own.toml")
    study = own_study(("error",), space)
    count = min(14, space.feasible.count or 0)
    study.optimize(lambda trial: error_of(space.suggest(trial)), n_trials=count)
    assert len({trial.user_attrs["id"] for trial in study.trials}) == count
    assert all(space.params(space.architecture(trial.params)) == trial.params for trial in study.trials)


def test_parameters_that_a_user_fixes_are_those_of_the_trial() -> None:
    """The rest of an architecture is suggested; what the sampler learns is that of the whole, as in a new process."""
    study, other = own_study(("error",)), own_study(("error",))
    fixed = [{f"stage{n}.unit": unit} for n in (1, 2) for unit in ("igcv1", "igcv2", "igcv3")]
    for params in fixed:
        study.enqueue_trial(params)
    study.optimize(lambda trial: error_of(SPACE.suggest(trial)), n_trials=14)
    assert all(trial.params.items() >= params.items() for trial, params in zip(study.trials, fixed, strict=False))
    other.add_trials(study.trials)
    for of in (study, other):
        of.optimize(lambda trial: error_of(SPACE.suggest(trial)), n_trials=8)
    assert [trial.params for trial in study.trials] == [trial.params for trial in other.trials]


def test_a_suggestion_fits_the_parameters_that_a_user_fixes() -> None:
    """Widths and groups of the suggested unit would be missing, and drawn at random they seldom fit."""
    space = igc_nas.load_space("igc_cifar", budget_params="300k")
    study = own_study(("error",), space)
    fixed = [{"stage1.unit": "igcv1"}] * 3 + [{"stage1.unit": "igcv2", "stage2.unit": "igcv3"}] * 3
    for params in fixed:
        study.enqueue_trial(params)
    study.optimize(lambda trial: error_of(space.suggest(trial)), n_trials=len(fixed))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * len(fixed)
    assert all(trial.params.items() >= params.items() for trial, params in zip(study.trials, fixed, strict=True))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_an_architecture_suggests_nothing_that_another_sampler_fixes() -> None:
    fixed = {"stage1.unit": "igcv2"}
    sampler = optuna.samplers.PartialFixedSampler(fixed, igc_nas.KnownCostSampler(SPACE, seed=0))
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: error_of(SPACE.suggest(trial)), n_trials=4)
    assert [trial.params["stage1.unit"] for trial in study.trials] == ["igcv2"] * 4


def test_an_enqueued_architecture_of_a_used_up_space_is_tried() -> None:
    space = igc_nas.load_space("tiny", budget_params=800)
    study, only = own_study(("error",), space), space.params(space.feasible.lightest())

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("lr", 0, 1)
        return error_of(space.suggest(trial))

    assert space.feasible.count == 1
    study.optimize(objective, n_trials=1)
    study.enqueue_trial(only)
    study.enqueue_trial(only)
    study.optimize(objective, n_trials=2)
    assert len(study.trials) == 3


def test_networks_of_one_output() -> None:
    space = igc_nas.load_space("tiny", classes=1, budget_params=3000)
    study = own_study(("loss", "params"), space)
    study.optimize(lambda trial: (error_of(space.suggest(trial)), trial.user_attrs["params"]), n_trials=18)
    assert len({trial.user_attrs["id"] for trial in study.trials}) == 18
    assert {space.architecture(trial.params).classes for trial in study.trials} == {1}


def test_a_training_that_diverged_does_not_hide_how_the_others_differ() -> None:
    """Whatever its finite loss is: the suggestions are the same, and as good as where it was a moderately bad one."""

    def studied(diverged: float) -> optuna.Study:
        study = own_study(("loss",))

        def objective(trial: optuna.Trial) -> float:
            loss = 3 * error_of(SPACE.suggest(trial))
            return diverged if trial.number == 3 else loss

        study.optimize(objective, n_trials=24)
        return study

    far, farther, near = map(studied, (1e4, 1e30, 3.0))
    assert [trial.params for trial in far.trials] == [trial.params for trial in farther.trials]
    assert far.best_value == pytest.approx(near.best_value, rel=0.02)


def test_one_sampler_in_two_studies_of_one_name() -> None:
    study = own_study(("error",), study_name="own")
    again, other = (optuna.create_study(sampler=sampler, study_name="own") for sampler in (study.sampler, None))
    study.optimize(lambda trial: error_of(SPACE.suggest(trial)), n_trials=10)
    other.sampler = igc_nas.KnownCostSampler(SPACE, ("error",), seed=0)
    for of in (again, other):
        of.enqueue_trial(SPACE.params(SPACE.feasible.lightest()))
        of.optimize(lambda trial: error_of(SPACE.suggest(trial)), n_trials=14)
    assert [trial.params for trial in again.trials] == [trial.params for trial in other.trials]


def test_threads_pruned_and_failed_trials() -> None:
    study = own_study(("error",), pruner=optuna.pruners.MedianPruner(n_startup_trials=3))

    def objective(trial: optuna.Trial) -> float:
        error = error_of(SPACE.suggest(trial))
        if trial.number % 5 == 4:
            raise MemoryError("one's own training failed")
        trial.report(error + 0.1, 1)
        if trial.should_prune():
            raise optuna.TrialPruned
        return math.nan if trial.number % 7 == 6 else error

    study.optimize(objective, n_trials=24, n_jobs=4, catch=(MemoryError,))
    is_sound(study)
    assert {trial.state for trial in study.trials} >= {TrialState.COMPLETE, TrialState.FAIL}


def test_a_score_of_any_name_and_direction_finds_what_an_error_finds() -> None:
    found = {}
    for name, direction, of in (
        ("error", "minimize", lambda error: error),
        ("accuracy", "maximize", lambda error: 100 * (1 - error)),
        ("loss", "minimize", lambda error: 3 * error - 7),
    ):
        study = own_study((name, "params"), directions=[direction, "minimize"])
        study.optimize(lambda t, of=of: (of(error_of(a := SPACE.suggest(t))), igc_nas.cost_of(a).params), n_trials=16)
        is_sound(study)
        found[name] = min(error_of(SPACE.architecture(trial.params)) for trial in study.best_trials)
    assert max(found.values()) <= 1.1 * min(found.values())


def test_it_beats_a_random_search_of_the_same_space() -> None:
    def best(sampler: Any) -> float:
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: error_of(SPACE.suggest(trial)), n_trials=16)
        return study.best_value

    ours = [best(igc_nas.KnownCostSampler(SPACE, seed=seed)) for seed in range(3)]
    others = [best(optuna.samplers.RandomSampler(seed=seed)) for seed in range(3)]
    assert sum(ours) < sum(others)


def test_with_other_samplers_what_does_not_fit_is_pruned_with_a_reason_and_a_constraint() -> None:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5))
    study.optimize(lambda trial: error_of(SPACE.suggest(trial)), n_trials=30)
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert pruned
    assert all(trial.constraints["budget"] > 0 for trial in pruned)
    assert any("the budget is 3,000" in trial.user_attrs["reason"] for trial in pruned)
    assert all(trial.constraints["budget"] <= 0 for trial in study.trials if trial.state == TrialState.COMPLETE)
    study.sampler = igc_nas.KnownCostSampler(SPACE)  # which goes on with what others tried
    study.optimize(lambda trial: error_of(SPACE.suggest(trial)), n_trials=10)
    assert all(trial.constraints["budget"] <= 0 for trial in study.trials[30:])


def test_enqueued_trials_and_fixed_ones() -> None:
    arch = SPACE.feasible.lightest()
    study = own_study(("error",))
    study.enqueue_trial(SPACE.params(arch))
    study.optimize(lambda trial: error_of(SPACE.suggest(trial)), n_trials=3)
    assert study.trials[0].user_attrs["id"] == igc_nas.arch_id(arch)
    assert SPACE.suggest(optuna.trial.FixedTrial(SPACE.params(arch))) == arch


def test_a_trial_may_be_asked_twice() -> None:
    trial = own_study(("error",)).ask()
    assert SPACE.suggest(trial) == SPACE.suggest(trial)


def test_a_space_that_is_used_up_stops_the_study() -> None:
    space = igc_nas.load_space("tiny", budget_params=800)
    study = own_study(("error",), space)
    with pytest.warns(UserWarning, match="in the study already"):
        study.optimize(lambda trial: error_of(space.suggest(trial)), n_trials=100)
    assert len(study.trials) == (space.feasible.count or 0) + 1


def test_the_same_seed_suggests_the_same_also_from_a_copy() -> None:
    def tried(sampler: Any) -> list[str]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: error_of(SPACE.suggest(trial)), n_trials=12)
        return [trial.user_attrs["id"] for trial in study.trials]

    first = tried(igc_nas.KnownCostSampler(SPACE, seed=3))
    assert tried(pickle.loads(pickle.dumps(igc_nas.KnownCostSampler(SPACE, seed=3)))) == first  # noqa: S301
    assert tried(igc_nas.KnownCostSampler(SPACE, seed=np.int64(3))) == first
    assert tried(igc_nas.KnownCostSampler(SPACE, seed=4)) != first


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda: igc_nas.KnownCostSampler(SPACE, ("params", "macs")), UsageError, "neither a cost nor a latency"),
        (lambda: igc_nas.KnownCostSampler(SPACE, ("error", "loss")), UsageError, "neither a cost nor a latency"),
        (lambda: igc_nas.KnownCostSampler(SPACE, seed=-1), UsageError, "seed -1 is negative"),
        (
            lambda: SPACE.suggest(own_study(("accuracy", "params"), directions=["maximize"] * 2).ask()),
            UsageError,
            "maximises params",
        ),
        (lambda: igc_nas.load_space("tiny", budget_params="3"), InfeasibleError, "smallest architecture"),
        (lambda: igc_nas.load_space("tini"), UsageError, "did you mean tiny"),
        (lambda: igc_nas.load_space("tiny", budget_params="a lot"), UsageError, "not a positive whole number"),
        (
            lambda: SPACE.suggest(own_study(("error", "params"), directions=["minimize"]).ask()),
            UsageError,
            "has 1 obj",
        ),
    ],
)
def test_what_does_not_fit_is_refused(wrong: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wrong()


def test_the_package_for_optunahub_runs(tmp_path: Path) -> None:
    """`package/samplers/igc_known_cost` as OptunaHub loads it: a folder that is imported by its path."""
    example = ROOT / "studies" / "optunahub" / "package" / "samplers" / "igc_known_cost" / "example.py"
    done = subprocess.run(
        [sys.executable, str(example), "12"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "stage1.unit" in done.stdout
