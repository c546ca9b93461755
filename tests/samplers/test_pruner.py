"""When a training is given up: never a dominated one before its dominator, never a member of the recorded front."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from igc_nas.samplers.pruner import LEAST_DEVIATION, MIN_COMPLETED, CompletedTraining, PruningRule, _plane
from igc_nas.study.pareto import dominates, nondominated

RUNGS = 2
DOZEN = MIN_COMPLETED + 3


def cloud(rng: np.random.Generator, n: int, costs: int, steps: int | None = None) -> list[CompletedTraining]:
    """`n` trials that ended: an error that falls with the costs and on the way; `steps` makes ties."""
    known = rng.random((n, costs))
    end = 0.8 - 0.3 * known.mean(axis=1) + 0.1 * rng.standard_normal(n)
    rungs = [end + 0.2 / (i + 1) + 0.1 / (i + 1) * rng.standard_normal(n) for i in range(RUNGS)]
    rows = np.clip(np.column_stack([known, end, *rungs]), 0, 1)
    rows = rows if steps is None else np.round(rows * steps) / steps
    return [
        CompletedTraining(tuple(map(float, row[:costs])), tuple(map(float, row[costs + 1 :])), float(row[costs]))
        for row in rows
    ]


def reference_outlook(
    ended: Sequence[CompletedTraining], costs: Sequence[float], rung: int, error: float
) -> tuple[float, float, float]:
    """(expected error, deviation, chance), by numpy's regression and a sum over all trials."""
    x, y = (np.array(column) for column in zip(*((t.rungs[rung], t.error) for t in ended), strict=True))
    slope, offset = np.polyfit(x, y, 1)
    if slope < 0:
        slope, offset = 0.0, float(y.mean())
    left = y - offset - slope * x
    std = max(LEAST_DEVIATION, math.sqrt((left @ left) / (len(x) - 2) * (1 + 2 / len(x))))
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
def test_a_dominated_trial_never_goes_on_where_its_dominator_is_stopped(
    seed: int, n: int, ended: int, costs: int, newest: float, steps: int | None, rung: int, asked: float
) -> None:
    """`n` candidates at a rung, one of them (the `newest`, anywhere in the cloud) known best or worst of all."""
    rng = np.random.default_rng(seed)
    rule = PruningRule(cloud(rng, ended, costs, steps), asked)
    at = [(t.rungs[rung], *t.costs) for t in cloud(rng, n - 1, costs, steps)]
    place = round(newest * (n - 1))
    at.insert(place, tuple(float(x) for x in rng.choice([0.0, 0.5, 1.0], 1 + costs)))
    looks = [rule.prediction(point[1:], rung, point[0]) for point in at]
    chances = [look.p_front for look in looks if look]
    assert len(chances) == n
    stopped = [p_front < rule.bound for p_front in chances]
    for i, a in enumerate(at):
        for j, b in enumerate(at):
            if dominates(a, b):
                assert chances[i] >= chances[j]
                assert stopped[i] <= stopped[j]


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(MIN_COMPLETED, 40),
    costs=st.sampled_from([1, 2]),
    steps=st.sampled_from([None, 5]),
    asked=st.sampled_from([0.05, 0.3, 0.9]),
)
def test_no_member_of_the_recorded_front_would_have_been_stopped(
    seed: int, n: int, costs: int, steps: int | None, asked: float
) -> None:
    """Replayed one by one among all others: by a second rule of the others, not by what loosened the first."""
    ended = cloud(np.random.default_rng(seed), n, costs, steps)
    bound = PruningRule(ended, asked).bound
    assert 0 <= bound <= asked
    for member in nondominated([(t.error, *t.costs) for t in ended]):
        others = ended[:member] + ended[member + 1 :]
        for rung, error in enumerate(ended[member].rungs):
            everyone = np.arange(len(others))  # one fewer than may be asked, where a dozen have ended
            assert (
                not PruningRule(others, asked)._prediction(ended[member].costs, rung, error, None, everyone).p_front
                < bound
            )


def test_a_bound_that_would_stop_a_member_is_loosened() -> None:
    """A late bloomer: bad at its first rung, and the best at the end."""
    regular = [
        CompletedTraining((float(i),), (0.9 - i / 100, 0.8 - i / 100), 0.7 - i / 100 + 0.02 * (i % 3))
        for i in range(20)
    ]
    assert PruningRule(regular, 0.05).bound == 0.05
    late = CompletedTraining((20.0,), (0.82, 0.6), 0.4)
    loosened = PruningRule([*regular, late], 0.05)
    assert loosened.bound < 0.05
    assert 0 < loosened.bound < reference_outlook(regular, late.costs, 0, 0.82)[2] < 0.05


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(MIN_COMPLETED, 40),
    costs=st.sampled_from([1, 2]),
    rung=st.integers(0, RUNGS - 1),
    error=st.floats(0, 1),
)
def test_an_outlook_is_that_of_a_plain_regression(seed: int, n: int, costs: int, rung: int, error: float) -> None:
    rng = np.random.default_rng(seed)
    ended, asked_of = cloud(rng, n, costs), tuple(map(float, rng.random(costs)))
    look = PruningRule(ended, 0.05).prediction(asked_of, rung, error)
    assert look is not None
    expected, std, p_front = reference_outlook(ended, asked_of, rung, error)
    assert look.expected_error == pytest.approx(expected, abs=1e-9)
    assert look.std == pytest.approx(std, rel=1e-6)
    assert look.p_front == pytest.approx(p_front, abs=1e-6)


@pytest.mark.parametrize("n", [0, 1, MIN_COMPLETED - 1])
def test_too_few_tell_nothing(n: int) -> None:
    rule = PruningRule(cloud(np.random.default_rng(0), n, 2), 0.05)
    assert rule.bound == 0.0
    assert rule.prediction((1.0, 1.0), 0, 1.0) is None


def test_nobody_is_stopped_for_rivals_that_cost_more() -> None:
    ended = cloud(np.random.default_rng(0), DOZEN, 2)
    least = [min(column) for column in zip(*(t.costs for t in ended), strict=True)]
    for costs in ([least[0] / 2, 1.0], [1.0, least[1] / 2], [x / 2 for x in least]):
        look = PruningRule(ended, 0.05).prediction(costs, 0, 1.0)
        assert look
        assert look.p_front == 1.0


@pytest.mark.parametrize("n", [12, 13, 20, 31])
@pytest.mark.parametrize("value", [0.005, 0.1, 0.3, 0.895, 0.9])
def test_rungs_that_are_all_alike_tell_nothing_of_the_end(n: int, value: float) -> None:
    """At chance level every network has the same error: the end is the mean, however the sums are rounded."""
    ends = np.linspace(0.3, 0.6, n)
    rule = PruningRule([CompletedTraining((float(i),), (value,), float(end)) for i, end in enumerate(ends)], 0.05)
    for error in (value, 0.95):
        look = rule.prediction((float(n),), 0, error)
        assert look
        assert look.expected_error == pytest.approx(ends.mean())
        assert 0.05 < look.std < 0.2


def test_a_rung_that_misleads_is_not_believed() -> None:
    """Where a better rung went with a worse end, the line is level: a dominated trial still has no better chance."""
    rng = np.random.default_rng(1)
    ended = [CompletedTraining((1.0,), (x,), 0.9 - x / 2) for x in map(float, rng.random(DOZEN))]
    rule = PruningRule(ended, 0.05)
    good, bad = rule.prediction((1.0,), 0, 0.1), rule.prediction((1.0,), 0, 0.9)
    assert good
    assert good == bad


def test_few_members_of_the_front_are_lost_under_a_bound_of_five_percent() -> None:
    """60 trainings that follow the rule's model, 40 times: of the final front at most one in twenty was stopped."""
    lost = members = stopped = seen = 0
    for seed in range(40):
        stream = cloud(np.random.default_rng([7, seed]), 60, 1)
        ended: list[CompletedTraining] = []
        given_up: set[int] = set()
        for number, trial in enumerate(stream):
            rule = PruningRule(ended, 0.05)
            looks = [rule.prediction(trial.costs, rung, error) for rung, error in enumerate(trial.rungs)]
            if any(look and look.p_front < rule.bound for look in looks):
                given_up.add(number)
            else:
                ended.append(trial)
        front = set(nondominated([(t.error, *t.costs) for t in stream]))
        lost += len(front & given_up)
        members += len(front)
        stopped += len(given_up)
        seen += len(stream)
    assert lost / members <= 0.05
    assert stopped / seen >= 0.1, "a rule that stops nothing is safe, and of no use"


def believers(n: int, rng: np.random.Generator, worth: float) -> list[CompletedTraining]:
    """Ends that are half rung and half belief, where `worth` is 1; a belief of no worth is chance."""
    rungs, beliefs = rng.uniform(0.4, 0.8, n), rng.uniform(0.3, 0.6, n)
    ends = 0.3 * rungs + worth * 0.5 * beliefs + rng.normal(0, 0.005, n)
    return [
        CompletedTraining((float(cost),), (float(rung),), float(end), float(belief))
        for cost, rung, belief, end in zip(rng.random(n), rungs, beliefs, ends, strict=True)
    ]


def test_a_belief_sharpens_what_a_rung_says() -> None:
    ended = believers(60, np.random.default_rng(0), worth=1.0)
    rule = PruningRule(ended, 0.05)
    alone, both = rule.prediction((1.0,), 0, 0.6), rule.prediction((1.0,), 0, 0.6, 0.4)
    assert both.std < 0.3 * alone.std
    assert both.expected_error == pytest.approx(0.3 * 0.6 + 0.5 * 0.4, abs=0.005)
    better = rule.prediction((1.0,), 0, 0.6, 0.3)
    assert better.expected_error < both.expected_error
    assert better.p_front >= both.p_front


def test_a_belief_of_no_worth_changes_little() -> None:
    rule = PruningRule(believers(200, np.random.default_rng(0), worth=0.0), 0.05)
    alone, both = rule.prediction((1.0,), 0, 0.6), rule.prediction((1.0,), 0, 0.6, 0.55)
    assert both.expected_error == pytest.approx(alone.expected_error, abs=0.002)
    assert both.std == pytest.approx(alone.std, rel=0.05)


def test_rivals_without_a_belief_are_rivals() -> None:
    """Of many trials the surrogate takes the newest: the older ones have no belief, and may still be the best."""
    ended = believers(30, np.random.default_rng(0), worth=1.0)
    champion = CompletedTraining((0.0,), (0.4,), 0.01)
    assert PruningRule([champion, *ended], 0.05).prediction((1.0,), 0, 0.5, 0.45).p_front < 1e-6


def test_fewer_beliefs_than_trials_it_takes_are_not_used() -> None:
    ended = believers(30, np.random.default_rng(0), worth=1.0)
    few = [replace(trial, belief=None) for trial in ended[: 30 - MIN_COMPLETED + 1]] + ended[30 - MIN_COMPLETED + 1 :]
    rule = PruningRule(few, 0.05)
    assert rule.prediction((1.0,), 0, 0.6, 0.4) == rule.prediction((1.0,), 0, 0.6)


@given(
    seed=st.integers(0, 2**32 - 1),
    columns=st.integers(1, 2),
    kind=st.sampled_from(["free", "falling", "alike", "constant", "steps"]),
)
def test_a_plane_is_the_least_squares_with_no_weight_below_0(seed: int, columns: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    evidence = rng.random((20, columns))
    ends = evidence @ rng.uniform(-1, 1, columns) + 0.2 * rng.standard_normal(20)
    if kind == "falling":
        ends = -ends
    elif kind == "alike":
        evidence[:, -1] = evidence[:, 0]
    elif kind == "constant":
        evidence[:, -1] = 0.25
    elif kind == "steps":
        evidence = np.round(evidence * 2) / 2
    centred = evidence - evidence.mean(axis=0)
    _, least = nnls(centred, ends - ends.mean())
    plane = _plane(evidence, ends)
    assert (plane.weights >= 0).all()
    over = ends - plane.offset - evidence @ plane.weights
    assert math.sqrt(over @ over) == pytest.approx(least, rel=1e-9)
