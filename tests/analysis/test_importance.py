"""Importances of parameters, against counts made another way, scipy's tests and effects put into the errors."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import f_oneway, hypergeom

from igc_nas.analysis.importance import (
    MOST_VALUES,
    RANGES,
    ExplainedVariance,
    ParameterImportance,
    parameter_importances,
    parameters_of,
)
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study
from tests.support.families import by_size, make
from tests.support.studies import make_study


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(120)


@pytest.fixture(scope="module")
def choices(study: Study) -> dict[str, ParameterImportance]:
    return {choice.name: choice for choice in parameter_importances(study)}


def test_shares_are_counts(study: Study, choices: dict[str, ParameterImportance]) -> None:
    members = {c.trial for c in study.front()}
    choice = choices["stage2.unit"]
    assert (choice.evaluated, choice.front) == (120, len(members))
    for share in choice.shares:
        having = [c for c in study.candidates if c.arch.stages[1].unit == share.value]
        assert (share.evaluated, share.front) == (len(having), sum(c.trial in members for c in having))


def test_a_parameter_counts_among_the_trials_that_have_it(
    study: Study, choices: dict[str, ParameterImportance]
) -> None:
    having = [c for c in study.candidates if c.arch.stages[0].unit == "igcv1"]
    assert choices["stage1.L"].evaluated == len(having) < 120
    for choice in choices.values():
        assert sum(share.evaluated for share in choice.shares) == choice.evaluated
        assert sum(share.front for share in choice.shares) == choice.front
        assert len(choice.shares) > 1


def test_parameters_are_in_order_of_the_stages_with_the_common_ones_first(
    choices: dict[str, ParameterImportance],
) -> None:
    names = list(choices)
    assert names[:4] == ["stem.width", "stage1.unit", "stage1.width", "stage1.blocks"]
    stages = [name.split(".")[0] for name in names if name != "stem.width"]
    assert all(a <= b for a, b in pairwise(stages))


def test_the_p_of_a_share_is_that_of_the_hypergeometric_test(choices: dict[str, ParameterImportance]) -> None:
    for choice in choices.values():
        for share in choice.shares:
            law = hypergeom(choice.evaluated, share.evaluated, choice.front)
            chances = law.pmf(np.arange(choice.front + 1))
            expected = chances[chances <= law.pmf(share.front) * (1 + 1e-7)].sum()
            assert share.p == pytest.approx(min(1.0, expected), abs=1e-6)


def test_the_explained_variance_is_that_of_the_analysis_of_variance(
    study: Study, choices: dict[str, ParameterImportance]
) -> None:
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

    found = {choice.name: choice for choice in parameter_importances(make(200, by_first_unit))}
    cause, other = found["stage1.unit"].error, found["stage3.kernel"].error
    assert cause
    assert other
    assert (cause.share > 0.9, cause.p < 1e-6) == (True, True)
    assert other.share < 0.05


def test_many_values_become_ranges(study: Study) -> None:
    assert max(len(choice.shares) for choice in parameter_importances(study)) <= MOST_VALUES
    grouped = parameter_importances(study, most_values=4)
    ranged = [choice for choice in grouped if any("–" in share.value for share in choice.shares)]
    assert ranged
    for choice in ranged:
        assert len(choice.shares) <= RANGES
        firsts = [int(share.value.split("–")[0]) for share in choice.shares]
        assert firsts == sorted(firsts)


def test_few_trials_or_equal_errors_have_no_explained_variance() -> None:
    assert parameter_importances(make_study(0)) == parameter_importances(make_study(1)) == ()
    assert all(choice.error is None for choice in parameter_importances(make_study(5)))
    equal = make(20, lambda candidate: 0.5)
    assert all(
        choice.error is None and choice.latency for choice in parameter_importances(equal) if choice.evaluated == 20
    )


def test_a_parameter_that_determines_the_error_explains_all_of_it() -> None:
    """Then the errors are constant inside each group, and F is infinite."""
    errors = {"igcv1": 0.3, "igcv2": 0.4, "igcv3": 0.5}
    study = make(60, lambda candidate: errors[candidate.arch.stages[0].unit])
    found = {importance.name: importance.error for importance in parameter_importances(study)}
    assert found["stage1.unit"] == ExplainedVariance(1.0, 0.0)


def test_parameters_include_the_papers_letters() -> None:
    arch = make(1, by_size).candidates[0].arch
    found = parameters_of(arch)
    assert found["stem.width"] == arch.stem.width
    for number, stage in enumerate(arch.stages, start=1):
        assert found[f"stage{number}.unit"] == stage.unit
        assert found[f"stage{number}.width"] == stage.width
