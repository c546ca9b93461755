"""The speed of training, measured; and a new study's plan by it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from igc_nas import load_space
from igc_nas.data.datasets import locate
from igc_nas.evaluation.speed import measure_speed, planned_spec
from igc_nas.nn.device import find_devices
from igc_nas.study.defaults import default_recipe, new_spec
from igc_nas.study.plan import Sizes, Speed, recipe_changes, trials_for
from igc_nas.study.spec import StudySpec

CPU = find_devices("cpu")[0]
INFO = locate("shapes", None)


def new() -> StudySpec:
    return new_spec(INFO, CPU.name, space="tiny", recipe={"forms": "factored"})


@pytest.fixture(scope="module")
def measure() -> Callable[..., Speed]:
    """`measure_speed`, once for each choice of resolutions: it takes a second."""
    found: dict[tuple[int, ...], Speed] = {}

    def measured(archs: Any, recipe: Any, resolutions: Sequence[int], *more: Any) -> Speed:
        key = tuple(resolutions)
        return found.get(key) or found.setdefault(key, measure_speed(archs, recipe, resolutions, *more))

    return measured


def test_the_speed_is_that_of_steps_on_this_device() -> None:
    base = new()
    archs = [base.feasible.lightest(), base.feasible.heaviest()]
    speed = measure_speed(archs, base.recipe, (8, 16), CPU)
    seconds = speed.steps_s(Sizes.of(archs), 1, base.recipe.batch, 0.25)
    assert (seconds > 1e-5).all()
    assert (seconds < 10).all()
    assert speed.trial_s > 0


def test_networks_of_few_classes_are_timed() -> None:
    """A folder of images of one's own may have two."""
    space = load_space("tiny", classes=2).feasible
    speed = measure_speed([space.lightest(), space.heaviest()], new().recipe, (8,), CPU)
    assert speed.steps_s(Sizes.of([space.heaviest()]), 1, 32, 1.0)[0] > 0


def test_a_plan_for_more_time_has_a_longer_training(measure: Callable[..., Speed]) -> None:
    short = planned_spec(new(), INFO, CPU, 60.0, workers=2)
    long = planned_spec(new(), INFO, CPU, 1e6, workers=2, measure=measure)
    assert short.plan is not None
    assert long.plan is not None
    assert long.recipe.samples > short.recipe.samples
    assert long.plan.trials >= trials_for(long.recipe.samples)
    assert long.recipe.resolution == 32
    assert long.identity() | {"recipe": None} == new().identity() | {"recipe": None}


@pytest.mark.parametrize("given", [{"epochs": 3}, {"train_size": 1000}, {"lr": 0.05, "crop": 0}])
def test_what_is_given_by_hand_stays(given: dict[str, object], measure: Callable[..., Speed]) -> None:
    base = new_spec(INFO, CPU.name, space="tiny", recipe={"forms": "factored"} | given)
    found = planned_spec(base, INFO, CPU, 1e6, workers=1, changes=given, measure=measure).recipe
    assert {key: getattr(found, key) for key in given} == given
    if "lr" not in given:
        assert found == base.recipe
    else:
        lengths = [recipe_changes(step, 32, INFO.train_count) for step in ((16, 45_000, 32), (30, 45_000, 32))]
        assert found.samples in {length["epochs"] * length["train_size"] for length in lengths}
        assert found.epochs > default_recipe("cpu").epochs


def test_trials_that_are_asked_for_leave_time_for_longer_trainings(measure: Callable[..., Speed]) -> None:
    few, many = (
        planned_spec(new(), INFO, CPU, 3600.0, workers=1, trials=n, measure=measure).recipe.samples
        for n in (2, 100_000)
    )
    assert few > many


@pytest.mark.parametrize(("prunes", "given"), [(False, {}), (True, {}), (False, {"rungs": [1000]})])
def test_what_may_be_promoted_is_not_pruned(
    prunes: bool, given: dict[str, object], measure: Callable[..., Speed]
) -> None:
    base = new_spec(INFO, CPU.name, space="tiny", recipe={"forms": "factored"} | given)
    found = planned_spec(base, INFO, CPU, 600.0, 1, changes=given, promote=0.4, prunes=prunes, measure=measure)
    assert found.target
    assert found.prune_below == (base.prune_below if prunes else 0)
    assert bool(found.recipe.rungs) == (prunes or "rungs" in given)
    without = planned_spec(base, INFO, CPU, 600.0, 1, changes=given, measure=measure)
    assert (without.target, without.prune_below) == (None, base.prune_below)
    assert without.recipe.rungs
