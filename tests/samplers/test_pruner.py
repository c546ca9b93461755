"""Pruning: never a candidate before one that it dominates, never a member of the recorded front.

First the rule alone, on synthetic trainings; then the pruner of a study.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.analysis.surrogate_quality import surrogate_quality
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.papers import reference
from igc_nas.samplers.pruner import MIN_COMPLETED, MIN_STD, CompletedTraining, Pruner, PruningRule
from igc_nas.space.budget import Budget
from igc_nas.study.pareto import dominates, nondominated
from igc_nas.study.records import Candidate, Trial
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import Study
from tests.support.searches import RUNGS as RUNG_SAMPLES
from tests.support.searches import evaluate_on_the_way, spec
from tests.support.shares import examples

RUNGS = 2
DOZEN = MIN_COMPLETED + 3


def cloud(rng: np.random.Generator, n: int, costs: int, steps: int | None = None) -> list[CompletedTraining]:
    """`n` completed trainings: the error falls with the costs, and from rung to rung; `steps` makes ties."""
    known = rng.random((n, costs))
    end = 0.8 - 0.3 * known.mean(axis=1) + 0.1 * rng.standard_normal(n)
    rungs = [end + 0.2 / (i + 1) + 0.1 / (i + 1) * rng.standard_normal(n) for i in range(RUNGS)]
    rows = np.clip(np.column_stack([known, end, *rungs]), 0, 1)
    rows = rows if steps is None else np.round(rows * steps) / steps
    return [
        CompletedTraining(tuple(map(float, row[:costs])), tuple(map(float, row[costs + 1 :])), float(row[costs]))
        for row in rows
    ]


def reference_prediction(
    ended: Sequence[CompletedTraining], costs: Sequence[float], rung: int, error: float
) -> tuple[float, float, float]:
    """(expected error, standard deviation, p_front), by numpy's regression."""
    x, y = (np.array(column) for column in zip(*((t.rung_errors[rung], t.error) for t in ended), strict=True))
    slope, offset = np.polyfit(x, y, 1)
    if slope < 0:
        slope, offset = 0.0, float(y.mean())
    left = y - offset - slope * x
    std = max(MIN_STD, math.sqrt((left @ left) / (len(x) - 2) * (1 + 2 / len(x))))
    expected = offset + slope * error
    rivals = [t.error for t in ended if all(a <= b for a, b in zip(t.costs, costs, strict=True))]
    z = (min(rivals) - expected) / std if rivals else math.inf
    return expected, std, 0.5 * (1 + math.erf(z / math.sqrt(2)))


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(9, 40),
    ended=st.integers(MIN_COMPLETED, 40),
    costs=st.sampled_from([1, 2]),
    newest=st.floats(0, 1),
    steps=st.sampled_from([None, 4, 20]),
    rung=st.integers(0, RUNGS - 1),
    asked=st.sampled_from([0.01, 0.05, 0.3, 0.9]),
)
def test_a_dominated_training_never_continues_where_its_dominator_is_pruned(
    seed: int, n: int, ended: int, costs: int, newest: float, steps: int | None, rung: int, asked: float
) -> None:
    """`n` candidates at a rung; one of them, at the place `newest`, is at the edges or in the middle of the cloud."""
    rng = np.random.default_rng(seed)
    rule = PruningRule(cloud(rng, ended, costs, steps), asked)
    at = [(t.rung_errors[rung], *t.costs) for t in cloud(rng, n - 1, costs, steps)]
    place = round(newest * (n - 1))
    at.insert(place, tuple(float(x) for x in rng.choice([0.0, 0.5, 1.0], 1 + costs)))
    predictions = [rule.predict(point[1:], rung, point[0]) for point in at]
    p_front = [prediction.p_front for prediction in predictions if prediction]
    assert len(p_front) == n
    pruned = [p < rule.bound for p in p_front]
    for i, a in enumerate(at):
        for j, b in enumerate(at):
            if dominates(a, b):
                assert p_front[i] >= p_front[j]
                assert pruned[i] <= pruned[j]


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(MIN_COMPLETED + 1, 40),
    costs=st.sampled_from([1, 2]),
    steps=st.sampled_from([None, 5]),
    asked=st.sampled_from([0.05, 0.3, 0.9]),
)
def test_no_member_of_the_recorded_front_would_have_been_pruned(
    seed: int, n: int, costs: int, steps: int | None, asked: float
) -> None:
    """Each member is replayed by a second rule, made of all other trainings."""
    ended = cloud(np.random.default_rng(seed), n, costs, steps)
    bound = PruningRule(ended, asked).bound
    assert 0 <= bound <= asked
    for member in nondominated([(t.error, *t.costs) for t in ended]):
        others = PruningRule(ended[:member] + ended[member + 1 :], asked)
        for rung, error in enumerate(ended[member].rung_errors):
            prediction = others.predict(ended[member].costs, rung, error)
            assert prediction
            assert not prediction.p_front < bound


def test_a_bound_that_would_prune_a_member_of_the_front_is_lowered() -> None:
    """A late bloomer: bad at its first rung, and the best at the end."""
    regular = [
        CompletedTraining((float(i),), (0.9 - i / 100, 0.8 - i / 100), 0.7 - i / 100 + 0.02 * (i % 3))
        for i in range(20)
    ]
    assert PruningRule(regular, 0.05).bound == 0.05
    late = CompletedTraining((20.0,), (0.82, 0.6), 0.4)
    lowered = PruningRule([*regular, late], 0.05)
    assert lowered.bound < 0.05
    assert 0 < lowered.bound < reference_prediction(regular, late.costs, 0, 0.82)[2] < 0.05


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(MIN_COMPLETED, 40),
    costs=st.sampled_from([1, 2]),
    rung=st.integers(0, RUNGS - 1),
    error=st.floats(0, 1),
)
def test_a_prediction_is_that_of_a_plain_regression(seed: int, n: int, costs: int, rung: int, error: float) -> None:
    rng = np.random.default_rng(seed)
    ended, asked_of = cloud(rng, n, costs), tuple(map(float, rng.random(costs)))
    found = PruningRule(ended, 0.05).predict(asked_of, rung, error)
    assert found is not None
    expected, std, p_front = reference_prediction(ended, asked_of, rung, error)
    assert found.expected_error == pytest.approx(expected, abs=1e-9)
    assert found.std == pytest.approx(std, rel=1e-6)
    assert found.p_front == pytest.approx(p_front, abs=1e-6)


@pytest.mark.parametrize("n", [0, 1, MIN_COMPLETED - 1])
def test_too_few_completed_trainings_prune_nothing(n: int) -> None:
    rule = PruningRule(cloud(np.random.default_rng(0), n, 2), 0.05)
    assert rule.bound == 0.0
    assert rule.predict((1.0, 1.0), 0, 1.0) is None


def test_no_training_is_pruned_for_rivals_that_cost_more() -> None:
    ended = cloud(np.random.default_rng(0), DOZEN, 2)
    least = [min(column) for column in zip(*(t.costs for t in ended), strict=True)]
    for costs in ([least[0] / 2, 1.0], [1.0, least[1] / 2], [x / 2 for x in least]):
        found = PruningRule(ended, 0.05).predict(costs, 0, 1.0)
        assert found
        assert found.p_front == 1.0


@pytest.mark.parametrize("n", [12, 13, 20, 31])
@pytest.mark.parametrize("value", [0.005, 0.1, 0.3, 0.895, 0.9])
def test_equal_rung_errors_predict_the_mean_final_error(n: int, value: float) -> None:
    """At chance level every network has the same error: the prediction is the mean, despite rounding of the sums."""
    ends = np.linspace(0.3, 0.6, n)
    rule = PruningRule([CompletedTraining((float(i),), (value,), float(end)) for i, end in enumerate(ends)], 0.05)
    for error in (value, 0.95):
        found = rule.predict((float(n),), 0, error)
        assert found
        assert found.expected_error == pytest.approx(ends.mean())
        assert 0.05 < found.std < 0.2


def test_a_rung_that_correlates_negatively_with_the_end_is_not_used() -> None:
    """The slope is 0 then, so a dominated training is still not likelier to reach the front."""
    rng = np.random.default_rng(1)
    ended = [CompletedTraining((1.0,), (x,), 0.9 - x / 2) for x in map(float, rng.random(DOZEN))]
    rule = PruningRule(ended, 0.05)
    good, bad = rule.predict((1.0,), 0, 0.1), rule.predict((1.0,), 0, 0.9)
    assert good
    assert good == bad


def test_few_members_of_the_front_are_lost_under_a_bound_of_five_percent() -> None:
    """60 trainings that follow the rule's model, 40 times: at most one in twenty of the final front is pruned."""
    lost = members = pruned = seen = 0
    for seed in range(40):
        stream = cloud(np.random.default_rng([7, seed]), 60, 1)
        ended: list[CompletedTraining] = []
        of_stream: set[int] = set()
        for number, trial in enumerate(stream):
            rule = PruningRule(ended, 0.05)
            predictions = [rule.predict(trial.costs, rung, error) for rung, error in enumerate(trial.rung_errors)]
            if any(prediction and prediction.p_front < rule.bound for prediction in predictions):
                of_stream.add(number)
            else:
                ended.append(trial)
        front = set(nondominated([(t.error, *t.costs) for t in stream]))
        lost += len(front & of_stream)
        members += len(front)
        pruned += len(of_stream)
        seen += len(stream)
    assert lost / members <= 0.05
    assert pruned / seen >= 0.1, "a rule that prunes nothing is safe, and of no use"


def with_priors(n: int, rng: np.random.Generator, worth: float) -> list[CompletedTraining]:
    """Final errors of rung error and prior error, the latter's slope being 0.5 * `worth`."""
    rungs, priors = rng.uniform(0.4, 0.8, n), rng.uniform(0.3, 0.6, n)
    ends = 0.3 * rungs + worth * 0.5 * priors + rng.normal(0, 0.005, n)
    return [
        CompletedTraining((float(cost),), (float(rung),), float(end), float(prior))
        for cost, rung, prior, end in zip(rng.random(n), rungs, priors, ends, strict=True)
    ]


def test_a_prior_error_narrows_the_prediction() -> None:
    ended = with_priors(60, np.random.default_rng(0), worth=1.0)
    rule = PruningRule(ended, 0.05)
    alone, both = rule.predict((1.0,), 0, 0.6), rule.predict((1.0,), 0, 0.6, 0.4)
    assert both.std < 0.3 * alone.std
    assert both.expected_error == pytest.approx(0.3 * 0.6 + 0.5 * 0.4, abs=0.005)
    better = rule.predict((1.0,), 0, 0.6, 0.3)
    assert better.expected_error < both.expected_error
    assert better.p_front >= both.p_front


def test_a_prior_error_that_is_random_changes_little() -> None:
    rule = PruningRule(with_priors(200, np.random.default_rng(0), worth=0.0), 0.05)
    alone, both = rule.predict((1.0,), 0, 0.6), rule.predict((1.0,), 0, 0.6, 0.55)
    assert both.expected_error == pytest.approx(alone.expected_error, abs=0.002)
    assert both.std == pytest.approx(alone.std, rel=0.05)


def test_trainings_without_a_prior_error_are_rivals_too() -> None:
    """The surrogate is fitted to the newest trials: the older ones have no prior error, and may still be the best."""
    ended = with_priors(30, np.random.default_rng(0), worth=1.0)
    champion = CompletedTraining((0.0,), (0.4,), 0.01)
    assert PruningRule([champion, *ended], 0.05).predict((1.0,), 0, 0.5, 0.45).p_front < 1e-6


def test_too_few_prior_errors_are_not_used() -> None:
    ended = with_priors(30, np.random.default_rng(0), worth=1.0)
    few = [replace(trial, prior_error=None) for trial in ended[: 30 - MIN_COMPLETED + 1]] + ended[
        30 - MIN_COMPLETED + 1 :
    ]
    rule = PruningRule(few, 0.05)
    assert rule.predict((1.0,), 0, 0.6, 0.4) == rule.predict((1.0,), 0, 0.6)


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["free", "falling", "equal", "constant", "steps"]),
    at=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_prediction_is_that_of_least_squares_with_non_negative_slopes(
    seed: int, kind: str, at: tuple[float, float]
) -> None:
    """Against the best unrestricted fit on every subset of the predictors that has no negative slope."""
    rng = np.random.default_rng(seed)
    predictors = rng.random((20, 2))
    ends = predictors @ rng.uniform(-1, 1, 2) + 0.2 * rng.standard_normal(20)
    if kind == "falling":
        ends = -ends
    elif kind == "equal":
        predictors[:, 1] = predictors[:, 0]
        at = (at[0], at[0])
    elif kind == "constant":
        predictors[:, 1] = 0.25
        at = (at[0], 0.25)
    elif kind == "steps":
        predictors = np.round(predictors * 2) / 2
    trainings = [
        CompletedTraining((1.0,), (float(rung),), float(end), float(prior))
        for (rung, prior), end in zip(predictors, ends, strict=True)
    ]
    found = PruningRule(trainings, 0.05).predict((1.0,), 0, *at)
    assert found is not None
    fits = []
    for subset in (chosen for k in range(3) for chosen in combinations(range(2), k)):
        columns = np.column_stack([np.ones(20), predictors[:, list(subset)]])
        coefficients, *_ = np.linalg.lstsq(columns, ends, rcond=None)
        if (coefficients[1:] >= 0).all():
            residuals = ends - columns @ coefficients
            expected = coefficients @ [1.0, *(at[i] for i in subset)]
            fits.append((float(residuals @ residuals), float(expected)))
    residual, expected = min(fits)
    assert found.std == pytest.approx(math.sqrt(residual / 17 * (1 + 3 / 20)), rel=1e-6)
    assert found.expected_error == pytest.approx(expected, abs=1e-6)


# The pruner of a study: the order in which trials are added does not matter.

COUNT = 40


@cache
def study_spec() -> StudySpec:
    return spec(prune_below=0.3, recipe={"rungs": list(RUNG_SAMPLES)}, budget=Budget(params=3000))


@cache
def candidates() -> tuple[Candidate, ...]:
    """Of the space and within the budget; and one (number 5) that is neither."""
    rng = np.random.default_rng(0)
    archs = list(dict.fromkeys(study_spec().feasible.draw(rng) for _ in range(3 * COUNT)))[:COUNT]
    archs.insert(5, reference("igcv1-l24m2-d20", 10).arch)
    return tuple(evaluated(number, arch) for number, arch in enumerate(archs))


def evaluated(number: int, arch: ArchConfig) -> Candidate:
    latency, score = evaluate_on_the_way(arch, 0)
    return Candidate(trial=number, id=f"{number}", arch=arch, cost=cost_of(arch), latency=latency, score=score, seed=0)


def decisions(pruner: Pruner) -> list[object]:
    """What the pruner says of the last candidate at each of its rungs."""
    last = candidates()[-1]
    return [pruner.prune(last.arch, last.latency, rung) for rung in last.score.rungs]


@examples(20)
@given(st.permutations(range(COUNT)), st.sets(st.integers(0, COUNT), max_size=5))
def test_a_pruner_decides_the_same_whatever_the_order_of_the_trials(order: list[int], asked_after: set[int]) -> None:
    """Also where it is asked between two of them."""
    pruner = Pruner(study_spec())
    for added, row in enumerate(order):
        if added in asked_after:
            decisions(pruner)
        pruner.add(candidates()[row])
    fresh = Pruner(study_spec(), [candidates()[row] for row in sorted(order)])
    assert pruner.rule.completed == fresh.rule.completed
    assert pruner.rule.bound == fresh.rule.bound
    assert decisions(pruner) == decisions(fresh)


def test_prior_errors_are_the_leave_one_out_predictions_of_the_surrogate() -> None:
    trials = tuple(Trial(number=c.trial, state="complete", params={}, candidate=c) for c in candidates())
    quality, pruner = surrogate_quality(Study(study_spec(), trials)), Pruner(study_spec(), candidates())
    assert quality is not None
    assert pruner.error_predictor is not None
    assert quality.expected == tuple(pruner.error_predictor.expected)
    assert 5 not in quality.trials, "it is not of the space"
    priors = [training.prior_error for training in pruner.rule.completed]
    assert priors == list(quality.expected), "candidates over the budget are no rivals"


def test_nothing_is_pruned_before_enough_trainings_are_complete() -> None:
    assert decisions(Pruner(study_spec(), candidates()[:3])) == [None, None]
    assert Pruner(study_spec(), candidates()[:3]).error_predictor is None


@pytest.mark.parametrize("change", [{"prune_below": 0.0}, {"objectives": ("params", "latency")}])
def test_nothing_is_pruned_without_a_bound_or_the_objective_error(change: dict) -> None:
    pruner = Pruner(study_spec().model_copy(update=change), candidates())
    assert decisions(pruner) == [None, None]
