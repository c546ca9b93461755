import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from igc_nas.analysis.ranking import (
    RESAMPLES,
    agreement,
    chance_tau,
    interval,
    kendall,
    quantile_bins,
    resampled,
    share_of,
    tau,
    tau_difference,
    top_recall,
    within_bins,
)

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25)
"""Few values, so many ties."""


def sides(pairs: list[tuple[int, int]]) -> tuple[list[float], list[float]]:
    return [float(a) for a, _ in pairs], [float(b) for _, b in pairs]


def brute(a: list[float], b: list[float], bins: list[int]) -> float | None:
    """tau-b pair by pair, of the pairs inside one bin."""
    signs = [
        (np.sign(a[i] - a[j]), np.sign(b[i] - b[j]))
        for i, j in itertools.combinations(range(len(a)), 2)
        if bins[i] == bins[j]
    ]
    untied_a, untied_b = (sum(abs(pair[side]) for pair in signs) for side in (0, 1))
    if not untied_a or not untied_b:
        return None
    return float(sum(x * y for x, y in signs) / math.sqrt(untied_a * untied_b))


def agree(one: float | None, other: float | None) -> bool:
    return one is other is None or (one is not None and other is not None and math.isclose(one, other, abs_tol=1e-12))


# tau-b.


@given(PAIRS)
def test_tau_is_scipys_and_that_of_all_pairs_one_by_one(pairs: list[tuple[int, int]]) -> None:
    a, b = sides(pairs)
    found = kendall(a, b)
    assert agree(found, brute(a, b, [0] * len(a)))
    if found is not None:
        assert agree(found, float(kendalltau(a, b).statistic))


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_the_items_does_not_matter(pairs: list[tuple[int, int]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert agree(kendall(*sides(pairs)), kendall(*sides(shuffled)))
    assert top_recall(*sides(pairs), 1) == pytest.approx(top_recall(*sides(shuffled), 1))


@given(PAIRS)
def test_tau_depends_on_ranks_only_and_changes_sign_when_reversed(pairs: list[tuple[int, int]]) -> None:
    a, b = sides(pairs)
    found = kendall(a, b)
    assert agree(kendall([math.exp(x) for x in a], b), found)
    assert agree(kendall([-x for x in a], b), None if found is None else -found)
    assert agree(kendall(b, a), found)


@pytest.mark.parametrize(("a", "b"), [([1], [1]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5]), ([], [])])
def test_tied_or_single_items_have_no_tau(a: list[float], b: list[float]) -> None:
    found = tau(a, b)
    assert (found.n, found.tau, found.low, found.high) == (len(a), None, None, None)


def test_more_items_than_rows_of_the_matrix_at_a_time() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 300, (2, 700)).astype(float)
    assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic, abs=1e-12)
    bins = rng.integers(0, 4, 700)
    assert kendall(a, b, bins) == pytest.approx(brute(list(a), list(b), list(bins)), abs=1e-12)


# Inside bins.


@given(PAIRS, st.data())
def test_inside_bins_only_pairs_of_one_bin_count(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    a, b = sides(pairs)
    bins = data.draw(st.lists(st.integers(0, 2), min_size=len(a), max_size=len(a)))
    assert agree(kendall(a, b, bins), brute(a, b, bins))


def test_without_ties_it_is_the_mean_of_the_bins_weighted_by_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b, bins = rng.random(40), rng.random(40), np.repeat([0, 1, 2], [5, 15, 20])
    parts = [(m * (m - 1) / 2, kendall(a[bins == i], b[bins == i])) for i, m in enumerate((5, 15, 20))]
    mean = sum(pairs * (part or 0) for pairs, part in parts) / sum(pairs for pairs, _ in parts)
    assert kendall(a, b, bins) == pytest.approx(mean)


@pytest.mark.parametrize(("n", "count"), [(5, 3), (30, 3), (79, 3), (80, 4), (100, 5), (1000, 5)])
def test_bins_are_quantiles_of_size(n: int, count: int) -> None:
    sizes = np.random.default_rng(n).permutation(np.geomspace(1e3, 1e7, n))
    bins = quantile_bins(sizes)
    assert sorted(set(bins.tolist())) == list(range(count))
    assert np.ptp(np.bincount(bins)) <= 1
    assert np.all(np.diff(bins[np.argsort(sizes)]) >= 0)


def test_equal_sizes_share_a_bin() -> None:
    sizes = [100.0] * 7 + [200.0] * 3
    bins = quantile_bins(sizes)
    assert len(set(bins[:7])) == len(set(bins[7:])) == 1
    assert len(quantile_bins([])) == 0


def test_a_correlation_by_size_alone_disappears_inside_bins() -> None:
    """As in Simpson's paradox: size explains all of the agreement, and inside a bin there is only noise."""
    rng = np.random.default_rng(1)
    size = np.repeat([1e3, 1e4, 1e5], 40)
    a, b = (-np.log(size) + rng.normal(size=120) for _ in range(2))
    overall, inside = tau(a, b), within_bins(a, b, size)
    assert overall.low is not None
    assert inside.low is not None
    assert inside.high is not None
    assert overall.low > 0.3
    assert inside.low < 0 < inside.high


# Intervals.


def test_the_interval_has_its_nominal_coverage() -> None:
    """Of a bivariate normal tau is 2/pi * arcsin(rho); 300 samples of 40."""
    rng, rho = np.random.default_rng(0), 0.6
    true, covered = 2 / math.pi * math.asin(rho), 0
    for _ in range(300):
        a, noise = rng.normal(size=(2, 40))
        found = tau(a, rho * a + math.sqrt(1 - rho**2) * noise)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= true <= found.high
    assert 0.91 <= covered / 300 <= 0.985


def test_the_same_numbers_have_the_same_interval_and_more_of_them_a_narrower_one() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    b = a + rng.normal(size=200)
    whole, part = tau(a, b), tau(a[:30], b[:30])
    assert whole == tau(a, b)
    assert whole.low is not None
    assert whole.high is not None
    assert part.low is not None
    assert part.high is not None
    assert whole.low < (whole.tau or 0) < whole.high
    assert whole.high - whole.low < 0.6 * (part.high - part.low)


def test_resamples_draw_items_with_both_their_values() -> None:
    a, b = [3.0, 1.0, 2.0, 2.0, 5.0], [1.0, 1.0, 4.0, 2.0, 3.0]
    drawn = np.random.default_rng(0).integers(5, size=(RESAMPLES, 5))
    found = resampled(a, b)
    for places, value in zip(drawn[:50], found[:50], strict=True):
        wanted = brute([a[i] for i in places], [b[i] for i in places], [0] * 5)
        assert agree(None if math.isnan(value) else float(value), wanted)


def test_an_interval_needs_numbers() -> None:
    assert interval(np.full(1000, np.nan)) is None
    assert interval(np.r_[np.full(150, np.nan), np.zeros(850)]) is None
    assert interval(np.r_[np.full(50, np.nan), np.zeros(950)]) == (0, 0)


def test_a_difference_is_paired() -> None:
    """Two predictors with a common error: it cancels, so the difference has a narrower interval than either tau."""
    rng = np.random.default_rng(2)
    truth, shared = rng.normal(size=(2, 80))
    a = truth + shared
    b = a + 0.05 * rng.normal(size=80)
    found, alone = tau_difference(a, b, truth), tau(a, truth)
    assert found.low is not None
    assert found.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert found.low <= (found.tau or 0) <= found.high
    assert found.high - found.low < 0.4 * (alone.high - alone.low)
    assert tau_difference(a, a, truth).tau == 0
    assert tau_difference(a, np.zeros(80), truth).tau is None


def test_300_items_take_less_than_a_second() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300))
    tau(a, b)
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        within_bins(a, b, np.exp(a))
        spent.append(time.perf_counter() - started)
    assert min(spent) < 1


# The best k.


@pytest.mark.parametrize(
    ("predicted", "truth", "k", "recall"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1, 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], 2, 0),
        ([1, 2, 3, 4], [4, 3, 2, 1], 3, 2 / 3),
        ([1, 2, 3, 4], [2, 1, 3, 4], 2, 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], 4, 1),
        ([0, 0, 0, 0], [1, 2, 3, 4], 1, 1 / 4),
        ([0, 0, 0, 0], [0, 0, 0, 0], 2, 1 / 2),
        ([0, 1, 1, 2], [1, 0, 2, 3], 2, 3 / 4),
    ],
)
def test_recall_of_known_cases(predicted: list[float], truth: list[float], k: int, recall: float) -> None:
    assert top_recall(predicted, truth, k) == pytest.approx(recall)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=5), st.data())
def test_ties_are_broken_at_random(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    """Against the mean over all ways in which both lists' ties can be broken."""
    a, b = sides(pairs)
    k = data.draw(st.integers(1, len(a)))
    orders = list(itertools.permutations(range(len(a))))
    best_a, best_b = (
        [set(sorted(range(len(a)), key=lambda i: (side[i], order[i]))[:k]) for order in orders] for side in (a, b)
    )
    mean = sum(len(one & other) / k for one in best_a for other in best_b) / len(orders) ** 2
    assert top_recall(a, b, k) == pytest.approx(mean)


@pytest.mark.parametrize(("n", "share", "k"), [(5, 0.1, 1), (14, 0.1, 1), (15, 0.1, 2), (10, 0.25, 3), (300, 0.25, 75)])
def test_a_share_is_rounded_and_at_least_one(n: int, share: float, k: int) -> None:
    assert share_of(n, share) == k


# Chance.


@pytest.mark.parametrize("bins", [None, [0] * 6 + [1] * 14])
def test_95_percent_of_random_orders_lie_in_the_range(bins: list[int] | None) -> None:
    rng = np.random.default_rng(0)
    found = chance_tau(20, bins)
    drawn = np.array([kendall(np.arange(20), rng.permutation(20), bins) for _ in range(4000)])
    assert found.tau == 0
    assert found.high is not None
    assert found.low == -found.high
    assert abs(drawn.mean()) < 0.01
    assert 0.93 < np.mean(np.abs(drawn) <= found.high) < 0.97


def test_one_item_has_no_order() -> None:
    assert chance_tau(1).tau is None
    assert chance_tau(2).high == 1


# Two measurements of the same items.


@pytest.mark.parametrize(
    ("first", "second", "rank"),
    [
        ([1, 1, 1, 2], [3, 2, 1, 4], 0.7746),
        ([1, 1, 1, 1], [1, 2, 3, 4], None),
        ([1, 2, 3, 4], [5, 5, 5, 5], None),
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2], [1, 2], None),
    ],
)
def test_the_rank_correlation_gives_ties_their_mean_rank(
    first: list[float], second: list[float], rank: float | None
) -> None:
    assert agreement(first, second)[1] == pytest.approx(rank, abs=1e-4)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=3, max_size=25))
def test_agreement_is_scipys_spearman(pairs: list[tuple[int, int]]) -> None:
    a, b = sides(pairs)
    expected = None if len(set(a)) == 1 or len(set(b)) == 1 else float(spearmanr(a, b).statistic)
    assert agree(agreement(a, b)[1], expected)


def test_the_difference_is_the_median_of_the_relative_ones() -> None:
    assert agreement([1.0, 2.0, 3.0], [1.0, 3.0, 3.0])[0] == 0
    assert agreement([1.0, 2.0], [3.0, 2.0])[0] == pytest.approx(0.5)
