from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.errors import InfeasibleError
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import Feasible, feasible
from igc_nas.space.search_space import SearchSpace
from tests.support.builders import SMALL_SPACES, chi_square_z, every_architecture, one_line, shipped_space, space_of
from tests.support.shares import examples, some

SPACES = {name: space_of(text) for name, text in SMALL_SPACES.items()} | {"tiny": SearchSpace.load("tiny")}


@cache
def written(name: str) -> dict[str, ArchConfig]:
    """Every different network of a small space by its id, by brute force: its first configuration."""
    found: dict[str, ArchConfig] = {}
    for arch in every_architecture(SPACES[name]):
        found.setdefault(arch_id(arch), arch)
    return found


@cache
def networks(name: str) -> dict[str, Cost]:
    return {i: cost_of(arch) for i, arch in written(name).items()}


@st.composite
def limits(draw: st.DrawFn, name: str) -> dict[str, int]:
    """A budget on params, on MACs, on both or on neither; each limit leaves some architecture."""
    found = {}
    for metric in ("params", "macs"):
        costs = [getattr(cost, metric) for cost in networks(name).values()]
        if draw(st.booleans()):
            found[metric] = draw(st.integers(min(costs), max(costs) + 10) | st.sampled_from(costs))
    return found


def within(name: str, limit: Mapping[str, int]) -> list[str]:
    return [i for i, cost in networks(name).items() if all(getattr(cost, m) <= most for m, most in limit.items())]


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
def test_facts_of_a_budget_equal_brute_force(name: str, data: st.DataObject) -> None:
    limit = data.draw(limits(name))
    feasible, ids = Feasible(SPACES[name], Budget(**limit)), within(name, limit)
    assert feasible.count == len(ids)
    if not ids:
        with pytest.raises(InfeasibleError, match=f"no architecture of {SPACES[name].name} is within both budgets"):
            feasible.facts()
        return
    facts, costs = feasible.facts(), [networks(name)[i] for i in ids]
    assert (facts["architectures"], facts["feasible"]) == (len(networks(name)), len(ids))
    assert facts["share"] == len(ids) / len(networks(name))
    for metric in ("params", "macs"):
        values = [getattr(cost, metric) for cost in costs]
        assert (facts[f"smallest_{metric}"], facts[f"largest_{metric}"]) == (min(values), max(values))
    by = facts["binned_by"]
    if len(limit) == 2:
        assert facts["acceptance"] == len(ids) / len(within(name, {by: limit[by]}))
    for found in facts["bins"]:
        assert found["architectures"] == sum(found["from"] <= getattr(cost, by) <= found["to"] for cost in costs)
    edges = [(found["from"], found["to"]) for found in facts["bins"]]
    assert all(low == high + 1 for (_, high), (low, _) in pairwise(edges))
    assert edges[0][0] == min(getattr(cost, by) for cost in networks(name).values())
    assert edges[-1][1] == min(limit.get(by, 10**12), max(getattr(cost, by) for cost in networks(name).values()))
    for stage, counts in enumerate(facts["units"].values()):
        units = Counter(written(name)[i].stages[stage].unit for i in ids)
        assert {unit: n for unit, n in counts.items() if n} == units
    assert len(facts["units"]) == len(SPACES[name].stages)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("limited", some(["params", "macs", "both", "neither"], "both"))
def test_draws_are_uniform_over_the_architectures_within_the_budget(name: str, limited: str) -> None:
    limit = {
        metric: int(np.quantile([getattr(cost, metric) for cost in networks(name).values()], 0.6))
        for metric in ("params", "macs")
        if limited in (metric, "both")
    }
    assert_uniform(name, limit, Feasible(SPACES[name], Budget(**limit)))


def assert_uniform(name: str, limit: Mapping[str, int], feasible: Feasible) -> None:
    ids, rng = within(name, limit), np.random.default_rng(7)
    assert len(ids) < len(networks(name)) or not limit
    few = len(ids) < 200
    drawn = Counter(arch_id(feasible.draw(rng)) for _ in range((20 if few else 6) * len(ids)))
    assert drawn.keys() == set(ids) if few else drawn.keys() <= set(ids)
    assert abs(chi_square_z([drawn[i] for i in ids])) < 4


@pytest.mark.parametrize("name", some(SPACES, "clashing", "with-tables", "one-stage", "dead-end"))
@pytest.mark.parametrize(
    "limited", some([{"params": 0.6}, {"macs": 0.4}, {"params": 0.7, "macs": 0.7}, {}], {"params": 0.7, "macs": 0.7})
)
def test_draws_from_a_space_too_large_to_count_are_uniform(name: str, limited: dict[str, float]) -> None:
    limit = {
        metric: int(np.quantile([getattr(cost, metric) for cost in networks(name).values()], share))
        for metric, share in limited.items()
    }
    feasible, rng = Feasible(SPACES[name], Budget(**limit), max_prefixes=1), np.random.default_rng(3)
    assert feasible.count is None
    with pytest.raises(OverflowError, match="too large to count"):
        feasible.facts()
    assert_uniform(name, limit, feasible)
    assert {arch_id(feasible.draw_stratified(rng)) for _ in range(50)} <= set(within(name, limit))


def stratified_chances(name: str, limit: Mapping[str, int]) -> dict[str, float]:
    """The documented probability of each network, by brute force: bin, then combination of units, then member."""
    feasible = Feasible(SPACES[name], Budget(**limit))
    bins: dict[int, dict[tuple[str, ...], list[str]]] = {}
    for i in within(name, limit):
        cost = getattr(networks(name)[i], feasible.metric)
        number = next(n for n, found in enumerate(feasible.bins) if found.above < cost <= found.most)
        units = tuple(stage.unit for stage in written(name)[i].stages)
        bins.setdefault(number, {}).setdefault(units, []).append(i)
    return {
        i: 1 / (len(bins) * len(strata) * len(members))
        for strata in bins.values()
        for members in strata.values()
        for i in members
    }


@pytest.mark.parametrize(
    "name", some(["clashing", "four-stages", "merging", "one-stage", "tiny"], "clashing", "one-stage")
)
@pytest.mark.parametrize("limited", ["params", "macs"])
def test_stratified_draws_are_uniform_over_bins_then_units_then_members(name: str, limited: str) -> None:
    limit = {limited: int(np.quantile([getattr(cost, limited) for cost in networks(name).values()], 0.6))}
    chances, rng = stratified_chances(name, limit), np.random.default_rng(5)
    feasible = Feasible(SPACES[name], Budget(**limit))
    code_of = {feasible.encoding.code(written(name)[i]): i for i in chances}
    count = int(7 / min(chances.values()))
    drawn = Counter(code_of[feasible.encoding.code(feasible.draw_stratified(rng))] for _ in range(count))
    assert drawn.keys() <= chances.keys()
    assert abs(chi_square_z([drawn[i] for i in chances], list(chances.values()))) < 4
    uniform = Counter(code_of[feasible.encoding.code(feasible.draw(rng))] for _ in range(count))
    assert chi_square_z([uniform[i] for i in chances], list(chances.values())) > 8


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
def test_stratified_draws_are_within_the_budget(name: str, data: st.DataObject) -> None:
    """Also at the tightest budgets, where rounding could move edges of bins beyond the limit."""
    limit = data.draw(limits(name))
    assume(within(name, limit))
    feasible, rng = Feasible(SPACES[name], Budget(**limit)), np.random.default_rng(0)
    assert all(feasible.contains(cost_of(feasible.draw_stratified(rng))) for _ in range(20))


@st.composite
def ranges(draw: st.DrawFn, name: str) -> dict[str, int]:
    """A budget with lower limits, and perhaps upper ones, on params, on MACs or on both."""
    limit: dict[str, int] = {}
    costs = list(networks(name).values())
    for metric in draw(st.sampled_from([("params",), ("macs",), ("params", "macs")])):
        values = st.sampled_from([getattr(c, metric) for c in costs])
        low, high = sorted(draw(st.lists(values, min_size=2, max_size=2)))
        limit |= {f"min_{metric}": low} | ({metric: high} if draw(st.booleans()) else {})
    return limit


@pytest.mark.parametrize("name", SPACES)
@examples(12)
@given(data=st.data())
def test_a_range_holds_what_brute_force_finds_in_it(name: str, data: st.DataObject) -> None:
    limit = data.draw(ranges(name))
    budget = Budget(**limit)
    ids = {i for i, cost in networks(name).items() if budget.violation(cost) <= 0}
    assert ids == {
        i
        for i, cost in networks(name).items()
        if all(getattr(cost, m) <= most for m, most in limit.items() if not m.startswith("min_"))
        and all(getattr(cost, m[4:]) >= least for m, least in limit.items() if m.startswith("min_"))
    }
    feasible, rng = Feasible(SPACES[name], budget), np.random.default_rng(0)
    assert feasible.count == len(ids)
    assume(ids)
    assert sum(found["architectures"] for found in feasible.facts()["bins"]) == len(ids)
    drawn = [feasible.draw(rng), *(feasible.draw_stratified(rng, place) for place in range(9))]
    assert {arch_id(arch) for arch in drawn} <= ids


@pytest.mark.parametrize("name", SPACES)
@examples(8)
@given(data=st.data())
def test_the_lightest_and_the_heaviest_of_a_range_are_in_it(name: str, data: st.DataObject) -> None:
    """`lightest` looks at a thousand draws."""
    budget = Budget(**data.draw(ranges(name)))
    feasible = Feasible(SPACES[name], budget)
    assume(feasible.count)
    assert budget.violation(cost_of(feasible.lightest())) <= 0
    assert budget.violation(cost_of(feasible.heaviest())) <= 0


def test_a_range_that_holds_nothing_is_refused() -> None:
    tiny, rng = SPACES["tiny"], np.random.default_rng(0)
    params = sorted({cost.params for cost in networks("tiny").values()})
    gap = next((low, high) for low, high in pairwise(params) if high - low > 1)
    between = Feasible(tiny, Budget(min_params=gap[0] + 1, params=gap[1] - 1))
    for draw in (between.draw, between.draw_stratified):
        with pytest.raises(InfeasibleError, match="no architecture of tiny has ") as raised:
            draw(rng)
        one_line(raised)
    with pytest.raises(InfeasibleError, match=f"the largest architecture in tiny has {params[-1]:,} parameters"):
        Feasible(tiny, Budget(min_params=params[-1] + 1))


def test_the_chi_square_test_rejects_a_walk_that_is_not_uniform() -> None:
    """A uniform choice stage by stage favours options with few completions."""
    space, rng, drawn = SPACES["clashing"], np.random.default_rng(7), Counter[str]()
    for _ in range(8 * space.size):
        frame = space.frames[rng.integers(len(space.frames))]
        width, stages = frame.stem.width, []
        for stage in space.stages:
            options = stage.following(width)
            stages.append(options[rng.integers(len(options))])
            width = stages[-1].width
        drawn[arch_id(space.architecture(frame, stages))] += 1
    assert chi_square_z([drawn[i] for i in networks("clashing")]) > 8


@pytest.mark.parametrize("name", SPACES)
def test_at_the_tightest_budget_the_smallest_is_drawn(name: str) -> None:
    least = min(cost.params for cost in networks(name).values())
    smallest = {i for i, cost in networks(name).items() if cost.params == least}
    feasible, rng = Feasible(SPACES[name], Budget(params=least)), np.random.default_rng(0)
    assert {arch_id(feasible.draw(rng)) for _ in range(20)} <= smallest


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"params": 705}, "the smallest architecture in tiny has 706 parameters; the budget is 705"),
        ({"params": 1}, "the smallest architecture in tiny has 706 parameters; the budget is 1"),
        ({"macs": 111_695}, "the smallest architecture in tiny has 111,696 MACs; the budget is 111,695"),
        ({"params": 5_000, "macs": 1_000}, "the smallest architecture in tiny has 111,696 MACs; the budget is 1,000"),
    ],
)
def test_an_impossible_budget_is_refused_at_once(limit: dict[str, int], message: str) -> None:
    with pytest.raises(InfeasibleError) as raised:
        Feasible(SPACES["tiny"], Budget(**limit))
    assert one_line(raised) == message
    least = "706" if "parameters" in message else "111696"
    assert raised.value.hint == f"raise the budget to {least} or more, or choose another space"
    Feasible(SPACES["tiny"], Budget(**{"params" if "parameters" in message else "macs": int(least)}))


def test_budgets_that_exclude_each_other_are_refused() -> None:
    space = space_of(
        "[stem]\nwidth = 8\n[[stage]]\nblocks = 1\n"
        "[stage.conv]\nwidth = 8\nstride = 1\n"  # few parameters, many pixels
        "[stage.igcv1]\nL = 1\nM = 16\nstride = 4\n"  # the reverse
    )
    feasible = Feasible(
        space, Budget(params=cost_of(space.smallest("params")).params, macs=cost_of(space.smallest("macs")).macs)
    )
    with pytest.raises(InfeasibleError) as raised:
        feasible.draw(np.random.default_rng(0), max_rejected=100)
    assert "within one budget found none within the other" in one_line(raised)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_lightest_and_heaviest_have_the_extreme_macs_within_the_budget(name: str, share: float) -> None:
    costs = networks(name).values()
    limit = int(np.quantile([cost.params for cost in costs], share))
    within = [cost for cost in costs if cost.params <= limit]
    feasible = Feasible(SPACES[name], Budget(params=limit))
    lightest, heaviest = cost_of(feasible.lightest()), cost_of(feasible.heaviest())
    assert lightest.macs == min(cost.macs for cost in within)
    assert lightest in within
    assert heaviest in within
    rounding = (len(SPACES[name].stages) + 2) * (limit // 4000 + 1)
    surely = [cost.macs for cost in within if share == 1 or cost.params <= limit - rounding]
    assert heaviest.macs >= max(surely, default=0)


TIGHT, WITH_MACS = (8_170, None), (2_000_000, 30_000_000)


@pytest.mark.parametrize(
    "limit",
    some([TIGHT, (20_000, None), (650_000, None), (None, 5_000_000), WITH_MACS, (100_000, 10**9)], TIGHT, WITH_MACS),
)
def test_the_default_space_is_never_over_budget(limit: tuple[int | None, int | None]) -> None:
    params, macs = limit
    feasible, rng = Feasible(shipped_space("igc_cifar"), Budget(params=params, macs=macs)), np.random.default_rng(1)
    for _ in range(60):
        cost = cost_of(feasible.draw(rng))
        assert params is None or cost.params <= params
        assert macs is None or cost.macs <= macs
        assert feasible.contains(cost)


@given(st.integers(0, 2**32))
def test_a_draw_depends_only_on_the_generator(seed: int) -> None:
    one, other = Feasible(SPACES["tiny"], Budget(params=3000)), Feasible(SPACES["tiny"], Budget(params=3000))
    drawn: list[list[ArchConfig]] = []
    for each in (one, other):
        rng = np.random.default_rng(seed)
        drawn.append([each.draw(rng) for _ in range(3)])
    assert drawn[0] == drawn[1]


def test_equal_budgets_share_one_count() -> None:
    space = SPACES["tiny"]
    assert feasible(space, Budget(params=3000)) is feasible(space, Budget(params=3000))
    assert feasible(space, Budget(params=3000)) is not feasible(space, Budget(params=3001))
