"""The time of a search: the model of a trial's seconds, the length of a training, and what is started near the end."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.analysis.words import plan_words
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.engine.events import Event, Exhausted
from igc_nas.engine.search import Run, search
from igc_nas.study.defaults import default_recipe
from igc_nas.study.plan import STEPS, Plan, Sizes, Speed, TrialTimes, planned, recipe_changes, trials_for
from igc_nas.study.spec import Recipe, StudySpec
from igc_nas.study.study import Study, load_study
from tests.support.searches import evaluate, spec

SIDE, CIFAR = 32, 50_000
SPEED = Speed(step_s=0.01, convolution_s=1e-3, mac_s=2e-10, activation_s=2e-8, trial_s=4.0)
ARCHS = [candidate.arch for candidate in load_study("igc_cifar10_2m").candidates[:12]]
SIZES = Sizes.of(ARCHS)


def recipes(kind: str = "cpu") -> list[Recipe]:
    return [default_recipe(kind, **recipe_changes(step, SIDE, CIFAR)) for step in STEPS]


positive = st.floats(1e-3, 1e3)


@given(*[positive] * 4)
def test_the_speed_that_made_the_times_is_found(step: float, convolution: float, mac: float, activation: float) -> None:
    speed = Speed(
        step_s=0.01 * step,
        convolution_s=1e-3 * convolution,
        mac_s=1e-10 * mac,
        activation_s=1e-8 * activation,
        trial_s=1,
    )
    areas = np.resize([0.25, 1.0], len(ARCHS))
    images = np.full(len(ARCHS), 32.0)
    seconds = np.array([speed.steps_s(Sizes.of([a]), 1, 32, area)[0] for a, area in zip(ARCHS, areas, strict=True)])
    found = Speed.fit(SIZES, images, areas, seconds, trial_s=1)
    again = np.array([found.steps_s(Sizes.of([a]), 1, 32, area)[0] for a, area in zip(ARCHS, areas, strict=True)])
    assert again == pytest.approx(seconds, rel=1e-3)


def test_a_trial_takes_longer_the_more_it_does() -> None:
    last = np.zeros(len(ARCHS))
    for recipe in recipes():
        seconds = SPEED.trials_s(SIZES, recipe, SIDE)
        assert (seconds > last).all()
        last = seconds


@given(st.floats(60, 1e6), st.integers(1, 8))
def test_the_longest_training_that_leaves_time_for_enough_trials(time_s: float, workers: int) -> None:
    ladder = recipes()
    recipe, plan = planned(ladder, SPEED, SIZES, SIDE, time_s, workers, None)
    means = [float(SPEED.trials_s(SIZES, r, SIDE).mean()) for r in ladder]
    at = ladder.index(recipe)
    assert plan.trials == max(1, round(time_s * workers / means[at]))
    assert at == 0 or plan.trials >= trials_for(recipe.samples)
    assert at == len(ladder) - 1 or round(time_s * workers / means[at + 1]) < trials_for(ladder[at + 1].samples)


def test_more_time_is_longer_trainings_and_more_of_them() -> None:
    found = [planned(recipes(), SPEED, SIZES, SIDE, hours * 3600, 2, None) for hours in (0.2, 1, 8, 48)]
    assert [r.samples for r, _ in found] == sorted(r.samples for r, _ in found)
    assert found[-1][0].samples > 10 * found[0][0].samples
    assert all(plan.trials >= trials_for(recipe.samples) for recipe, plan in found[1:])


def test_trials_that_are_asked_for_are_planned_for() -> None:
    few, many = (planned(recipes(), SPEED, SIZES, SIDE, 3600, 2, trials) for trials in (10, 200))
    assert (few[1].trials, many[1].trials) == (10, 200)
    assert few[0].samples > many[0].samples


@pytest.mark.parametrize("images", [20_000, 50_000])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_length_is_a_recipe_of_the_dataset(kind: str, images: int) -> None:
    for step in STEPS:
        changes = recipe_changes(step, SIDE, images)
        recipe = default_recipe(kind, **changes | {"rungs": []})
        assert recipe.train_size + recipe.held_out <= images


def test_trial_times_are_corrected_by_trials() -> None:
    base = load_study("igc_cifar10_2m")
    times = TrialTimes(SPEED, base.spec.recipe, SIDE)
    first = times.seconds(ARCHS[0])
    assert first == pytest.approx(SPEED.trials_s(SIZES, base.spec.recipe, SIDE)[0])
    for trial in base.trials[:30]:
        times.add(trial)
    assert times.seconds(ARCHS[0]) == pytest.approx(first * times.correction)
    without = TrialTimes(None, base.spec.recipe, SIDE, base.trials[:2])
    assert without.seconds(ARCHS[0]) is None
    without = TrialTimes(None, base.spec.recipe, SIDE, base.trials[:30])
    predicted = [without.seconds(t.candidate.arch) for t in base.trials[30:] if t.candidate]
    assert np.corrcoef(predicted, [t.wall_s for t in base.trials[30:] if t.candidate])[0, 1] > 0.7


def slow(arch: ArchConfig, seed: int) -> Any:
    time.sleep(0.02 + cost_of(arch).macs / 5e6)
    return evaluate(arch, seed)


def test_a_search_ends_in_its_time_with_nothing_left_running(tmp_path: Path) -> None:
    asked = spec(goal="front")
    list(search(asked, Run(tmp_path / "s", trials=1), evaluate=slow))  # counting the space and opening take time, too
    began = time.monotonic()
    list(search(asked, Run(tmp_path / "s", time_s=2.0), evaluate=slow))
    assert time.monotonic() - began < 6.0
    trials = load_study(tmp_path / "s").trials
    assert {trial.state for trial in trials} <= {"complete", "duplicate"}


def test_no_trial_is_started_that_would_end_too_late(tmp_path: Path) -> None:
    """One in ten of the networks is predicted to end in the time, which is hours; the others are passed over."""
    base = spec(goal="front")
    sizes = Sizes.of([base.feasible.lightest()])
    least = SPEED.model_copy(update={"trial_s": 0.0}).trials_s(sizes, base.recipe, SIDE)[0]
    slow_speed = SPEED.model_copy(update={"trial_s": 0.0, "mac_s": SPEED.mac_s * 40_000 / least})
    plan = Plan(time_s=80_000, workers=1, trials=2, mean_s=40_000, speed=slow_speed)
    limit = float(np.quantile([slow_speed.trials_s(Sizes.of([a]), base.recipe, SIDE)[0] for a in tiny(base)], 0.1))
    events: list[Event] = []
    run = Run(tmp_path / "s", trials=6, time_s=limit)
    list(search(base.model_copy(update={"plan": plan}), run, evaluate=evaluate, on_event=events.append))
    done = load_study(tmp_path / "s").candidates
    assert slow_speed.trials_s(Sizes.of([done[0].arch]), base.recipe, SIDE)[0] < limit
    assert len(done) == 6 or any(isinstance(e, Exhausted) and "time that is left" in e.reason for e in events)


def test_a_trial_that_waits_and_would_not_end_leaves_the_time_to_smaller_ones(tmp_path: Path) -> None:
    base = spec(goal="front")
    hours = SPEED.model_copy(update={name: 1000 * getattr(SPEED, name) for name in Speed.model_fields})
    asked = base.model_copy(update={"plan": Plan(time_s=80_000, workers=1, trials=2, mean_s=40_000, speed=hours)})
    predicted = [float(hours.trials_s(Sizes.of([a]), base.recipe, SIDE)[0]) for a in tiny(base)]

    def interrupted(arch: ArchConfig, seed: int) -> Any:
        raise KeyboardInterrupt

    folder, heaviest, events = tmp_path / "s", base.feasible.heaviest(), list[Event]()
    with pytest.raises(KeyboardInterrupt):
        list(search(asked, Run(folder, enqueue=(heaviest,)), evaluate=interrupted))
    run = Run(folder, time_s=min(predicted) / 2)
    assert list(search(asked, run, evaluate=evaluate, on_event=events.append)) == []
    assert isinstance(events[-1], Exhausted)
    assert events[-1].reason.endswith("time that is left; the next search resumes trial 0")
    assert (
        len(list(search(asked, Run(folder, trials=3, time_s=float(np.quantile(predicted, 0.1))), evaluate=evaluate)))
        == 3
    )
    assert load_study(folder).trial(0).state == "waiting"
    list(search(asked, Run(folder, trials=5), evaluate=evaluate))
    trials = [trial for trial in load_study(folder).trials if trial.state != "duplicate"]
    assert [trial.state for trial in trials] == ["complete"] * 5
    assert trials[0].id == arch_id(heaviest)


def tiny(base: StudySpec) -> list[ArchConfig]:
    rng = np.random.default_rng(0)
    return [base.feasible.draw(rng) for _ in range(100)]


def test_a_plan_is_kept_and_is_no_part_of_what_a_study_is_about() -> None:
    plan = Plan(time_s=600, workers=2, trials=24, mean_s=40, speed=SPEED)
    planned_spec = spec().model_copy(update={"plan": plan})
    assert StudySpec.from_toml(planned_spec.to_toml()) == planned_spec
    assert planned_spec.identity() == spec().identity()


def test_a_report_says_what_was_done_with_the_plan() -> None:
    study = load_study("igc_cifar10_2m")
    assert plan_words(study) is None
    plan = Plan(time_s=300, workers=2, trials=50, mean_s=12, speed=SPEED)
    spec = study.spec.model_copy(update={"plan": plan})
    words = plan_words(Study(spec, study.trials))
    assert str(words).startswith("planned 50 trials in 5 min by 2 workers; 60 ended, in ")
    baseline = study.trials[-1].model_copy(update={"number": 99, "baseline": "resnet20-a"})
    assert plan_words(Study(spec, (*study.trials, baseline))) == words, "the time of baselines is not planned"
    longer = study.trials[-1].model_copy(update={"number": 99, "longer_of": 0})
    assert "; 60 ended and 1 for longer, in " in str(plan_words(Study(spec, (*study.trials, longer))))
