from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.arch.cost import cost_of
from igc_nas.arch.stages import UNITS
from igc_nas.space.budget import Budget
from igc_nas.space.counting import BLOCK, MAX_COST, BudgetCounter, Stratum, count_below, last_below
from igc_nas.space.encoding import Code, SpaceEncoding
from igc_nas.space.feasible import Feasible
from igc_nas.space.search_space import METRICS, Metric, SearchSpace
from tests.support.builders import SMALL_SPACES, chi_square_z, every_architecture, space_of

SPACES = {name: space_of(text) for name, text in SMALL_SPACES.items()} | {"tiny": SearchSpace.load("tiny")}


@cache
def counter(name: str, metric: Metric) -> BudgetCounter:
    most = getattr(cost_of(SPACES[name].largest(metric)), metric)
    return BudgetCounter(SpaceEncoding(SPACES[name]), metric, most)


@cache
def by_code(name: str) -> dict[Code, dict[Metric, int]]:
    """The costs of every code, by brute force."""
    encoding = SpaceEncoding(SPACES[name])
    archs = {encoding.code(arch): arch for arch in every_architecture(SPACES[name])}
    return {code: {m: getattr(cost_of(arch), m) for m in METRICS} for code, arch in archs.items() if code}


def stratum(found: BudgetCounter, limit: int) -> Stratum:
    counts = found.within(limit)
    return Stratum.of(np.arange(len(counts)), np.zeros_like(counts), counts)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_counts_equal_the_architectures_that_can_be_listed(name: str, metric: Metric, share: float) -> None:
    limit = int(np.quantile([costs[metric] for costs in by_code(name).values()], share))
    found = counter(name, metric)
    listed = [found.member(pair, place) for pair, n in enumerate(found.within(limit)) for place in range(n)]
    within = {code for code, costs in by_code(name).items() if costs[metric] <= limit}
    assert sorted(listed) == sorted(within)
    assert len(stratum(found, limit)) == len(within)


@pytest.mark.parametrize("name", SPACES)
def test_members_of_a_pair_are_ordered_by_cost(name: str) -> None:
    found = counter(name, "params")
    for pair, n in enumerate(found.within(found.most)):
        costs = [by_code(name)[found.member(pair, place)]["params"] for place in range(n)]
        assert costs == sorted(costs)


@pytest.mark.parametrize("name", SPACES)
def test_strata_are_the_combinations_of_units(name: str) -> None:
    found, encoding = counter(name, "macs"), SpaceEncoding(SPACES[name])
    for stratum, counted in enumerate(found.by_stratum(found.within(found.most))):
        members = [
            found.member(int(pair), place)
            for pair in found.pairs_of(stratum)
            for place in range(found.within(found.most)[pair])
        ]
        units = {tuple(UNITS.index(stage.unit) for stage in encoding.architecture(code).stages) for code in members}
        assert units == {found.strata[stratum]}
        assert len(members) == counted


@pytest.mark.parametrize("name", ["clashing", "four-stages"])
def test_a_hundred_thousand_draws_are_uniform(name: str) -> None:
    found, rng = counter(name, "params"), np.random.default_rng(11)
    limit = int(np.median([costs["params"] for costs in by_code(name).values()]))
    within = [code for code, costs in by_code(name).items() if costs["params"] <= limit]
    of, counts = stratum(found, limit), dict.fromkeys(within, 0)
    for _ in range(100_000):
        counts[of.draw(rng, found)] += 1
    assert abs(chi_square_z(list(counts.values()))) < 4


LARGE_IMAGES = """
input = [3, 512, 512]
[stem]
width = [64, 128]
[[stage]]
blocks = [1, 4]
[stage.conv]
width = [128, 256]
[[stage]]
blocks = [1, 4]
[stage.conv]
width = [64, 128]
"""


def test_costs_beyond_32_bits_are_counted() -> None:
    space = space_of(LARGE_IMAGES.replace("512", "200"))
    costs = sorted(cost_of(arch).macs for arch in every_architecture(space))
    assert costs[0] > 2**32
    assert costs[-1] < MAX_COST
    for limit in (costs[0], costs[7], costs[20], 10**15):
        assert Feasible(space, Budget(macs=limit)).count == sum(cost <= limit for cost in costs)


def test_costs_that_do_not_fit_an_integer_are_refused() -> None:
    space = space_of(LARGE_IMAGES)
    costs = sorted(cost_of(arch).macs for arch in every_architecture(space))
    assert costs[-1] > MAX_COST
    with pytest.raises(OverflowError):
        BudgetCounter(SpaceEncoding(space), "macs", costs[-1])
    assert Feasible(space, Budget(macs=costs[7])).count == 8  # costs beyond the budget do not overflow
    feasible = Feasible(space, Budget(macs=costs[-2]))
    assert feasible.count is None
    assert feasible.contains(cost_of(feasible.draw(np.random.default_rng(0))))


@given(st.integers(0, 2 * BLOCK + 100), st.integers(1, 3000), st.integers(0, 2**32))
def test_count_below_equals_a_comparison_of_every_value(size: int, high: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(high, size=size)
    ends, limits = rng.integers(size + 1, size=20), rng.integers(-1, high + 2, size=20)
    heads = [values[:end] <= limit for end, limit in zip(ends, limits, strict=True)]
    assert count_below(values, ends, limits).tolist() == [int(head.sum()) for head in heads]


@given(st.integers(0, 3 * BLOCK + 100), st.integers(1, 3000), st.integers(0, 2**32))
def test_last_below_equals_a_comparison_of_every_value(size: int, high: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(high, size=size)
    # Low limits too: then nothing is found in many blocks.
    ends, limits = rng.integers(size + 1, size=20), rng.integers(-1, high + 2, size=20) // rng.integers(1, 500, size=20)
    heads = [np.flatnonzero(values[:end] <= limit) for end, limit in zip(ends, limits, strict=True)]
    assert last_below(values, ends, limits).tolist() == [int(head[-1]) if len(head) else -1 for head in heads]
