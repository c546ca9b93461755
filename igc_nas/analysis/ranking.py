"""Rank correlation: Kendall's tau-b with an interval, overall and inside bins; recall of the best k; Spearman's rho.

    tau_b = (concordant - discordant) / sqrt(pairs untied in a * pairs untied in b)         (Kendall 1945)

Inside bins only pairs with both items in the same bin are counted, in all three numbers: without ties that is the mean
of the bins' taus, weighted by their pairs. Intervals are 95 % percentile bootstrap over the items (Efron 1979): the two
values of an item are drawn together, and an item that is drawn twice is tied with itself in both. Lower values are
better everywhere: errors, or predictors of errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igc_nas.samplers.cross_validation import spearman

Floats = NDArray[np.float64]
Values = Sequence[float] | Floats
Bins = Sequence[int] | NDArray[np.int64]

RESAMPLES = 1000
LEVEL = 0.95
_ROWS = 256  # rows of the matrix of pairs at a time, to limit the memory for thousands of items


@dataclass(frozen=True, slots=True)
class Tau:
    """tau-b over `n` items and its 95 % interval; None where it is undefined (all tied, or too few items)."""

    n: int
    tau: float | None = None
    low: float | None = None
    high: float | None = None


def kendall(a: Values, b: Values, bins: Bins | None = None) -> float | None:
    """tau-b of two lists (n,), of the pairs inside `bins` (n,) if given; None where one of the lists is all tied."""
    value = _taus(a, b, bins, np.ones((1, len(a))))[0]
    return None if math.isnan(value) else float(value)


def resampled(a: Values, b: Values, bins: Bins | None = None) -> Floats:
    """(RESAMPLES,) the taus of bootstrap resamples, NaN where undefined; the resamples depend on n only."""
    rng = np.random.default_rng(0)
    n = len(a)
    drawn = rng.integers(n, size=(RESAMPLES, n)) + n * np.arange(RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n)
    return _taus(a, b, bins, times.astype(np.float64))


def interval(taus: Floats) -> tuple[float, float] | None:
    """The 95 % percentile interval of resampled numbers; None where more than one in ten is NaN."""
    known = taus[~np.isnan(taus)]
    if len(known) < 0.9 * len(taus):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def tau(a: Values, b: Values, bins: Bins | None = None) -> Tau:
    """tau-b with its interval."""
    value = kendall(a, b, bins) if len(a) else None
    if value is None:
        return Tau(len(a))
    return Tau(len(a), value, *(interval(resampled(a, b, bins)) or (None, None)))


def tau_difference(a: Values, other: Values, b: Values) -> Tau:
    """tau(a, b) - tau(other, b) with its interval. Both use the same resamples, so their common variation cancels."""
    first, second = (kendall(a, b), kendall(other, b)) if len(a) else (None, None)
    if first is None or second is None:
        return Tau(len(a))
    return Tau(len(a), first - second, *(interval(resampled(a, b) - resampled(other, b)) or (None, None)))


def quantile_bins(sizes: Values) -> NDArray[np.int64]:
    """(n,) the bin of each item by quantiles of log(size): one bin for every 20 items, at least 3, at most 5.

    Sizes are 1 or more; equal ones share a bin.
    """
    logs = np.log(np.asarray(sizes, dtype=np.float64))
    count = min(5, max(3, len(logs) // 20))
    edges = np.quantile(logs, np.arange(1, count) / count) if len(logs) else np.empty(0)
    return np.searchsorted(edges, logs, side="left").astype(np.int64)


def within_bins(a: Values, b: Values, sizes: Values) -> Tau:
    """tau-b of the pairs inside bins of similar size (see `quantile_bins`), with its interval."""
    return tau(a, b, quantile_bins(sizes))


def share_of(n: int, share: float) -> int:
    """k for the best `share` of n items: rounded half up, at least 1."""
    return max(1, math.floor(share * n + 0.5))


def top_recall(predicted: Values, reference: Values, k: int) -> float:
    """The share of the k lowest of the reference that are among the k lowest predicted, 1 <= k <= n.

    With ties at the k-th place, in either list, it is the expected share if ties are broken at random.
    """
    assert 1 <= k <= len(reference) == len(predicted)
    return float(_p_among_lowest(predicted, k) @ _p_among_lowest(reference, k)) / k


def chance_tau(n: int, bins: Bins | None = None) -> Tau:
    """tau of a random order without ties: 0, and the range that contains 95 % of random orders.

    The variance of concordant - discordant over n things is n (n - 1) (2 n + 5) / 18 (Kendall 1938); bins are
    independent, and their variances add.
    """
    sizes = [n] if bins is None else np.unique(np.asarray(bins), return_counts=True)[1].tolist()
    pairs = sum(m * (m - 1) / 2 for m in sizes)
    if not pairs:
        return Tau(n)
    spread = 1.96 * math.sqrt(sum(m * (m - 1) * (2 * m + 5) / 18 for m in sizes)) / pairs
    return Tau(n, 0.0, -min(spread, 1.0), min(spread, 1.0))


def _taus(a: Values, b: Values, bins: Bins | None, times: Floats) -> Floats:
    """(rows,) tau-b for each row of `times` (rows, n), the number of times that each item is drawn; else NaN."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert x.shape == y.shape == times.shape[1:], (x.shape, y.shape, times.shape)
    difference, untied_x, untied_y = (np.zeros(len(times)) for _ in range(3))
    for start in range(0, len(x), _ROWS):
        part = slice(start, start + _ROWS)
        signs_x = np.sign(x[part, None] - x[None, :])
        signs_y = np.sign(y[part, None] - y[None, :])
        if bins is not None:
            same = np.asarray(bins)[part, None] == np.asarray(bins)[None, :]
            signs_x, signs_y = signs_x * same, signs_y * same
        for total, pairs in (
            (difference, signs_x * signs_y),
            (untied_x, np.abs(signs_x)),
            (untied_y, np.abs(signs_y)),
        ):
            total += ((times[:, part] @ pairs) * times).sum(axis=1)
    scale = np.sqrt(untied_x * untied_y)
    found = np.full(len(times), np.nan)
    np.divide(difference, scale, out=found, where=scale > 0)
    return found


def _p_among_lowest(values: Values, k: int) -> Floats:
    """(n,) the probability that each item is among the k lowest, with ties broken at random."""
    x = np.asarray(values, dtype=np.float64)
    last = np.partition(x, k - 1)[k - 1]
    below, tied = (x < last).astype(np.float64), (x == last).astype(np.float64)
    found: Floats = below + tied * (k - below.sum()) / tied.sum()
    return found


def agreement(first: list[float], second: list[float]) -> tuple[float, float | None]:
    """(median relative difference, Spearman's rank correlation) of two measurements of the same items.

    The correlation is None for fewer than three items, and where one measurement has the same value for all.
    """
    a, b = np.asarray(first), np.asarray(second)
    difference = float(np.median(np.abs(a - b) / ((a + b) / 2)))
    return difference, spearman(a, b) if len(a) >= 3 else None
