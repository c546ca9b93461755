"""The judge: whatever it was told, and when, it says what one says that is told all at once."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igc_nas.analysis.surrogate_quality import surrogate_quality
from igc_nas.arch.cost import cost_of
from igc_nas.arch.papers import reference
from igc_nas.samplers.pruner import Pruner
from igc_nas.study.records import Candidate
from igc_nas.study.spec import Budget, StudySpec
from igc_nas.study.study import Study
from tests.support.searches import RUNGS, evaluate_on_the_way, spec

COUNT = 40


@cache
def question() -> StudySpec:
    return spec(prune_below=0.3, recipe={"rungs": list(RUNGS)}, budget=Budget(params=3000))


@cache
def candidates() -> tuple[Candidate, ...]:
    """Of the space and within the budget; and one that is neither."""
    rng = np.random.default_rng(0)
    archs = list(dict.fromkeys(question().feasible.draw(rng) for _ in range(3 * COUNT)))[:COUNT]
    archs.insert(5, reference("igcv1-l24m2-d20", 10).arch)
    return tuple(made(number, arch) for number, arch in enumerate(archs))


def made(number: int, arch) -> Candidate:
    latency, score = evaluate_on_the_way(arch, 0)
    return Candidate(trial=number, id=f"{number}", arch=arch, cost=cost_of(arch), latency=latency, score=score, seed=0)


def looks(judge: Pruner) -> list[object]:
    last = candidates()[-1]
    return [judge.prediction(last.arch, last.latency, rung) for rung in last.score.rungs]


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(COUNT)), st.sets(st.integers(0, COUNT), max_size=5))
def test_a_judge_learns_in_any_order_and_between_judgements(order: list[int], asked_after: set[int]) -> None:
    judge = Pruner(question())
    for told, place in enumerate(order):
        if told in asked_after:
            looks(judge)
        judge.learn(candidates()[place])
    fresh = Pruner(question(), [candidates()[place] for place in sorted(order)])
    assert judge.rule.ended == fresh.rule.ended
    assert judge.rule.bound == fresh.rule.bound
    assert looks(judge) == looks(fresh)


def test_the_forecast_is_that_of_the_study() -> None:
    from igc_nas.study.records import Trial

    trials = tuple(Trial(number=c.trial, state="complete", params={}, candidate=c) for c in candidates())
    known, judge = surrogate_quality(Study(question(), trials)), Pruner(question(), candidates())
    assert known is not None
    assert judge.forecast is not None
    assert known.expected == tuple(judge.forecast.expected)
    assert 5 not in known.trials, "it is not of the space"
    beliefs = [ended.belief for ended in judge.rule.ended]
    assert beliefs == list(known.expected), "those that are over the budget are no rivals"


def test_nothing_is_judged_before_enough_is_known() -> None:
    assert looks(Pruner(question(), candidates()[:3])) == [None, None]
    assert Pruner(question(), candidates()[:3]).forecast is None


@pytest.mark.parametrize("change", [{"stop": 0.0}, {"objectives": ("params", "latency")}])
def test_nothing_is_judged_unasked(change: dict) -> None:
    judge = Pruner(question().model_copy(update=change), candidates())
    assert looks(judge) == [None, None]
