"""Recipes, conditions and candidates in words."""

from dataclasses import replace

import pytest

from igc_nas.analysis.words import (
    candidate_words,
    conditions_words,
    form_words,
    front_end_words,
    noise_words,
    recipe_words,
)
from igc_nas.io.units import format_count
from igc_nas.study.expected import Expected
from igc_nas.study.spec import Target
from igc_nas.study.study import Study, load_study
from tests.support.studies import make_study

STUDY = make_study(3)


def test_a_recipe_has_all_that_the_error_depends_on() -> None:
    recipe = STUDY.spec.recipe
    assert recipe_words(recipe) == (
        "2 epochs of 4,000 images at 32 x 32 pixels, batch 64, lr 0.1, float32, factored forms"
    )
    assert recipe_words(recipe, held_out=True) == f"{recipe_words(recipe)}; scored on 2,000 held-out images"
    assert recipe_words(recipe.model_copy(update={"epochs": 1})).startswith("1 epoch of")


def test_a_latency_and_its_spec_have_the_same_conditions() -> None:
    words = "eager, batch 1, 1 thread, float32, channels_last, on Test CPU"
    assert conditions_words(STUDY.spec.latency) == words
    assert conditions_words(STUDY.candidates[0].latency) == words
    two = STUDY.spec.latency.model_copy(update={"threads": 2})
    assert "2 threads" in conditions_words(two)


def test_a_front_that_ends_far_below_the_budget_says_so_and_why() -> None:
    assert front_end_words(load_study("igc_cifar10_2m")) == (
        "The front ends at 218.3k parameters, 11 % of the budget. 7 networks beyond that were tried (up to 1.309M); "
        "after 6,000 images none of them had a lower error. Longer trainings favour larger networks: "
        "search with more --time."
    )
    study = load_study("igc_cifar10_2m")
    target = Target(images=72_000, recipe=study.spec.recipe, share=0.4)
    expected = {c.trial: Expected(c.score.error, 0.1, 0.9) for c in study.candidates}
    predicted = replace(study, spec=study.spec.model_copy(update={"target": target}), expected=expected)
    assert "; after 72,000 images none of them is expected to have a lower error." in str(front_end_words(predicted))
    members = {c.trial for c in study.front() if c.cost.params < 40_000}
    small = Study(study.spec, tuple(trial for trial in study.trials if trial.number in members))
    assert str(front_end_words(small)).endswith("% of the budget: no network beyond that was tried.")


def test_a_front_near_the_budget_or_without_one_needs_no_words() -> None:
    study = load_study("igc_cifar10_2m")
    for params in (None, 400_000):
        spec = study.spec.model_copy(update={"budget": study.spec.budget.model_copy(update={"params": params})})
        assert front_end_words(Study(spec, study.trials)) is None


def test_the_end_of_a_front_is_that_of_the_front_which_is_shown() -> None:
    study = load_study("igc_cifar10_2m")
    objectives = ("error", "macs")
    end = max(c.cost.params for c in study.front(objectives))
    assert end != max(c.cost.params for c in study.front())
    assert str(front_end_words(study, objectives)).startswith(f"The front ends at {format_count(end)} parameters, ")
    assert front_end_words(study, ("params", "macs")) is None


def test_a_network_that_no_front_can_have_is_not_compared_with_its_end() -> None:
    """One over another limit, and one of which nothing is predicted."""
    study = load_study("igc_cifar10_2m")
    end = max(c.cost.params for c in study.front())
    larger = [c for c in study.candidates if c.cost.params > end]
    budget = study.spec.budget.model_copy(update={"macs": min(c.cost.macs for c in larger) - 1})
    within = Study(study.spec.model_copy(update={"budget": budget}), study.trials)
    known = {c.trial: Expected(c.score.error, 0.1, 0.9) for c in study.candidates if c not in larger}
    target = Target(images=72_000, recipe=study.spec.recipe, share=0.4)
    predicted = replace(study, spec=study.spec.model_copy(update={"target": target}), expected=known)
    for one in (within, predicted):
        assert str(front_end_words(one)).endswith("% of the budget: no network beyond that was tried.")


def test_noise_has_its_reasons() -> None:
    assert noise_words(("load 2.1", "throttled")) == "NOISY: load 2.1; throttled"
    assert noise_words(()) == "NOISY: no reason recorded"


def test_a_candidate_has_its_numbers_with_their_units() -> None:
    candidate = STUDY.candidates[0]
    words = candidate_words(candidate)
    assert (words.trial, words.id, words.architecture) == ("0", candidate.id, str(candidate.arch))
    assert words.error == f"{100 * candidate.score.error:.2f} %"
    assert (words.params, words.macs) == (format_count(candidate.cost.params), format_count(candidate.cost.macs))
    assert words.latency.endswith(" ms")
    low, high = map(float, words.interval.split("-"))
    assert (low, high) == pytest.approx(candidate.latency.normalised_interval_ms, rel=1e-2)


@pytest.mark.parametrize("noisy", [False, True])
def test_a_noisy_candidate_is_called_so(noisy: bool) -> None:
    candidate = STUDY.candidates[0]
    changed = candidate.model_copy(update={"latency": candidate.latency.model_copy(update={"noisy": noisy})})
    assert candidate_words(changed).noisy == ("noisy" if noisy else "")


def test_a_form_has_what_it_costs_where_that_is_recorded() -> None:
    candidate = STUDY.candidates[0]
    assert form_words(candidate) == "factored"
    deployed = {"form": "mixed", "deployed_params": 237_200, "deployed_macs": 35_640_000, "weight_bytes": 950_000}
    changed = candidate.model_copy(update={"latency": candidate.latency.model_copy(update=deployed)})
    assert form_words(changed) == "mixed 237.2k 35.64M 0.95 MB"
