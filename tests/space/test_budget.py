import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.arch.cost import Cost
from igc_nas.errors import ConfigError
from igc_nas.space.budget import Budget

budgets = st.builds(
    Budget,
    params=st.none() | st.integers(1, 10**12),
    macs=st.none() | st.integers(1, 10**12),
    latency_ms=st.none() | st.floats(1e-300, 1e300),
)
costs = st.builds(Cost, st.integers(1, 10**12), st.integers(1, 10**12))


@given(st.integers(1, 10**7), st.integers(1, 10**9))
def test_violation_is_the_largest_relative_excess(params: int, macs: int) -> None:
    budget = Budget(params=2_000, macs=400_000)
    violation = budget.violation(Cost(params, macs))
    assert violation == pytest.approx(max(params / 2_000, macs / 400_000) - 1, abs=1e-12)
    assert (violation <= 0) == (params <= 2_000 and macs <= 400_000)


@given(budgets, costs, st.floats(1e-300, 1e300))
def test_within_budget_is_within_every_limit(budget: Budget, cost: Cost, latency_ms: float) -> None:
    pairs = [(cost.params, budget.params), (cost.macs, budget.macs), (latency_ms, budget.latency_ms)]
    within = [limit is None or value <= limit for value, limit in pairs]
    assert (budget.violation(cost, latency_ms) <= 0) == all(within)
    assert (budget.violation(cost) <= 0) == all(within[:2])
    assert (budget.violation(latency_ms=latency_ms) <= 0) == within[2]
    assert (budget.excess_text(cost) is None) == all(within[:2])
    assert budget.allows(np.array([[cost.params, cost.macs, 7]])).tolist() == [all(within[:2])]


@given(st.floats(1e-300, 1e300))
def test_a_limit_is_within_budget_and_the_next_float_is_not(limit: float) -> None:
    budget = Budget(latency_ms=limit)
    assert budget.violation(latency_ms=limit) == 0
    assert budget.violation(latency_ms=math.nextafter(limit, math.inf)) > 0
    assert budget.violation(latency_ms=math.nextafter(limit, 0)) <= 0


def test_an_unknown_latency_or_a_missing_limit_is_never_exceeded() -> None:
    assert Budget().violation(Cost(10**12, 10**12), 1e9) == -1
    assert Budget(latency_ms=1).violation(Cost(10**12, 10**12)) == -1


def test_excess_text_names_the_exceeded_limit() -> None:
    budget = Budget(params=2000, macs=10**6)
    assert budget.excess_text(Cost(2000, 10**6)) is None
    assert budget.excess_text(Cost(2001, 10**6)) == "2,001 parameters; the budget is 2,000"
    assert budget.excess_text(Cost(2000, 10**6 + 1)) == "1,000,001 MACs; the budget is 1,000,000"


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_lower_limit_is_violated_by_what_is_missing(least: int, params: int) -> None:
    budget = Budget(min_params=least)
    assert (budget.violation(Cost(params, 1)) <= 0) == (params >= least)
    assert (budget.excess_text(Cost(params, 1)) is None) == (params >= least)
    assert budget.allows(np.array([[params, 1, 1]])).tolist() == [params >= least]


def test_limits_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 5 and at most 4 MACs exclude each other"):
        Budget.parse({"min_macs": 5, "macs": 4})


def test_a_range_as_text() -> None:
    assert str(Budget(params=2_000_000, min_params=500_000)) == "params500k..2M"
    assert str(Budget(min_macs=10**7, latency_ms=5)) == "macs10M..-latency5ms"
    assert Budget(min_params=5).excess_text(Cost(4, 1)) == "4 parameters; the least is 5"


def test_a_budget_as_text() -> None:
    assert str(Budget()) == "any"
    assert str(Budget(params=650_308, macs=30_000_000, latency_ms=2.5)) == "params650308-macs30M-latency2.5ms"
