"""The front against its baselines: which it dominates, in numbers and in a sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.analysis.baselines import baselines_sentence, standings
from igc_nas.study.expected import Expected
from igc_nas.study.objectives import values
from igc_nas.study.records import Trial
from igc_nas.study.study import Study
from tests.support.studies import make_study, with_baselines

NAMES = ("resnet20-a", "densenet-bc-40-12", "mobilenetv2-x0.25", "condensenet-50", "se-resnet20", "dpn92", "xception")
STUDY = with_baselines(make_study(40), *NAMES)


@pytest.mark.parametrize("objectives", [("error", "params", "latency"), ("error", "macs"), ("params", "latency")])
def test_dominated_by_the_members_that_are_better_in_all(objectives: tuple[str, ...]) -> None:
    found = standings(STUDY, objectives)
    assert {standing.name for standing in found} == set(NAMES)
    for standing in found:
        own = values(standing.candidate, objectives)
        better = [
            c.trial for c in STUDY.front(objectives)
            if all(a <= b for a, b in zip(values(c, objectives), own, strict=True)) and values(c, objectives) != own
        ]  # fmt: skip
        assert list(standing.dominated_by) == better


def test_predicted_errors_are_not_compared_with_those_of_baselines() -> None:
    """A baseline has had one short training, as every candidate has."""
    ranked = sorted(STUDY.candidates, key=lambda c: c.score.error)
    expected = {c.trial: Expected(0.3 - 0.001 * place, 0.1, 0.4) for place, c in enumerate(ranked)}
    predicted = replace(STUDY, expected=expected)
    assert predicted.front() != STUDY.front()
    assert standings(predicted) == standings(STUDY)
    assert str(baselines_sentence(predicted)).startswith("the front by measured errors dominates ")


def test_in_the_order_of_their_errors() -> None:
    errors = [standing.candidate.score.error for standing in standings(STUDY)]
    assert errors == sorted(errors)


def study_of(states: list[str]) -> Study:
    """A study whose baselines are dominated, free, failed, infeasible or running."""
    base = make_study(30)
    best = min(base.candidates, key=lambda c: c.score.error)
    found = with_baselines(base, *(f"n{number}" for number in range(len(states))))
    trials: list[Trial] = []
    for trial in found.trials:
        if not trial.baseline or trial.candidate is None:
            trials.append(trial)
            continue
        state = states[int(trial.baseline[1:])]
        if state in ("dominated", "free"):
            error = 1.0 if state == "dominated" else int(trial.baseline[1:]) / 10_000
            cost = type(best.cost)(10**9, 10**9, 10**9) if state == "dominated" else trial.candidate.cost
            score = trial.candidate.score.model_copy(update={"error": error})
            latency = best.latency.model_copy(update={"normalised_ms": 1e6 if state == "dominated" else 1e-6})
            changed = trial.candidate.model_copy(update={"score": score, "cost": cost, "latency": latency})
            trials.append(trial.model_copy(update={"candidate": changed}))
        else:
            trials.append(trial.model_copy(update={"state": state, "candidate": None}))
    return Study(base.spec, tuple(trials))


@pytest.mark.parametrize(
    ("states", "sentence"),
    [
        ([], None),
        (["dominated"], "the front dominates 1 of 1 baseline"),
        (["free"], "the front dominates none of 1 baseline; n0 is not dominated"),
        (["dominated", "free", "free"], "the front dominates 1 of 3 baselines; n1 and n2 are not dominated"),
        (["free"] * 7, "the front dominates none of 7 baselines; n0, n1, n2, n3 and 3 more are not dominated"),
        (["dominated", "failed"], "the front dominates 1 of 1 baseline; n1 failed"),
        (["infeasible", "running"], "n0 is over the latency budget; 1 is not evaluated yet"),
        (["waiting", "waiting"], "2 are not evaluated yet"),
    ],
)
def test_the_sentence(states: list[str], sentence: str | None) -> None:
    assert baselines_sentence(study_of(states)) == sentence


@given(count=st.integers(0, len(NAMES)))
def test_the_front_is_the_same_with_and_without(count: int) -> None:
    alone = make_study(25, seed=3)
    beside = with_baselines(alone, *NAMES[:count])
    assert beside.front() == alone.front()
    assert beside.hypervolume() == alone.hypervolume()
    assert beside.hypervolume_curve() == alone.hypervolume_curve()
    assert beside.pick("knee") == alone.pick("knee")
    assert beside.ended == alone.ended
