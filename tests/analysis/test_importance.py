"""Which choices a front prefers and what they explain, against counts made another way and effects put in."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import f_oneway, hypergeom

from igc_nas.analysis.importance import MOST_VALUES, RANGES, Choice, choices_of, settings
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study
from tests.support.families import by_size, make
from tests.support.studies import make_study


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(120)


@pytest.fixture(scope="module")
def choices(study: Study) -> dict[str, Choice]:
    return {choice.name: choice for choice in choices_of(study)}


def test_shares_are_counts(study: Study, choices: dict[str, Choice]) -> None:
    members = {c.trial for c in study.front()}
    choice = choices["stage2.unit"]
    assert (choice.evaluated, choice.front) == (120, len(members))
    for share in choice.shares:
        having = [c for c in study.candidates if c.arch.stages[1].unit == share.value]
        assert (share.evaluated, share.front) == (len(having), sum(c.trial in members for c in having))


def test_a_letter_counts_among_the_trials_that_have_it(study: Study, choices: dict[str, Choice]) -> None:
    having = [c for c in study.candidates if c.arch.stages[0].unit == "igcv1"]
    assert choices["stage1.L"].evaluated == len(having) < 120
    for choice in choices.values():
        assert sum(share.evaluated for share in choice.shares) == choice.evaluated
        assert sum(share.front for share in choice.shares) == choice.front
        assert len(choice.shares) > 1


def test_stages_come_in_order_and_what_all_units_have_first(choices: dict[str, Choice]) -> None:
    names = list(choices)
    assert names[:4] == ["stem.width", "stage1.unit", "stage1.width", "stage1.blocks"]
    stages = [name.split(".")[0] for name in names if name != "stem.width"]
    assert all(a <= b for a, b in pairwise(stages))


def test_by_lot_is_the_hypergeometric_test(choices: dict[str, Choice]) -> None:
    for choice in choices.values():
        for share in choice.shares:
            law = hypergeom(choice.evaluated, share.evaluated, choice.front)
            chances = law.pmf(np.arange(choice.front + 1))
            expected = chances[chances <= law.pmf(share.front) * (1 + 1e-7)].sum()
            assert share.p == pytest.approx(min(1.0, expected), abs=1e-6)


def test_what_a_choice_explains_is_the_analysis_of_variance(study: Study, choices: dict[str, Choice]) -> None:
    groups: dict[str, list[float]] = {}
    for candidate in study.candidates:
        groups.setdefault(candidate.arch.stages[2].unit, []).append(math.log10(candidate.latency.normalised_ms))
    effect = choices["stage3.unit"].latency
    assert effect
    found = f_oneway(*groups.values())
    assert effect.p == pytest.approx(float(found.pvalue), rel=1e-6)
    n, k = 120, len(groups)
    assert effect.share == pytest.approx(
        max(0.0, (found.statistic - 1) * (k - 1) / (found.statistic * (k - 1) + n - k))
    )


def test_an_effect_that_is_there_is_found_and_others_are_not() -> None:
    def by_first_unit(candidate: Candidate) -> float:
        return {"igcv1": 0.3, "igcv2": 0.4, "igcv3": 0.5}[candidate.arch.stages[0].unit] + int(
            candidate.id, 16
        ) / 16**14

    found = {choice.name: choice for choice in choices_of(make(200, by_first_unit))}
    cause, other = found["stage1.unit"].error, found["stage3.kernel"].error
    assert cause
    assert other
    assert (cause.share > 0.9, cause.p < 1e-6) == (True, True)
    assert other.share < 0.05


def test_many_values_become_ranges(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(len(choice.shares) for choice in choices_of(study)) <= MOST_VALUES
    monkeypatch.setattr("igc_nas.analysis.importance.MOST_VALUES", 4)
    choices = {choice.name: choice for choice in choices_of(study)}
    ranged = [choice for choice in choices.values() if any("–" in share.value for share in choice.shares)]
    assert ranged
    for choice in ranged:
        assert len(choice.shares) <= RANGES
        firsts = [int(share.value.split("–")[0]) for share in choice.shares]
        assert firsts == sorted(firsts)


def test_little_is_said_of_few_trials() -> None:
    assert choices_of(make_study(0)) == choices_of(make_study(1)) == ()
    assert all(choice.error is None for choice in choices_of(make_study(5)))
    equal = make(20, lambda candidate: 0.5)
    assert all(choice.error is None and choice.latency for choice in choices_of(equal) if choice.evaluated == 20)


def test_settings_are_the_papers_letters() -> None:
    arch = make(1, by_size).candidates[0].arch
    found = settings(arch)
    assert found["stem.width"] == arch.stem.width
    for number, stage in enumerate(arch.stages, start=1):
        assert found[f"stage{number}.unit"] == stage.unit
        assert found[f"stage{number}.width"] == stage.width
