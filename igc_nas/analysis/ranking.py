"""How well one order of things tells another: Kendall's tau-b with its interval, overall and inside bins; top-k recall.

    tau_b = (concordant - discordant) / sqrt(pairs untied in a * pairs untied in b)         (Kendall 1945)

Inside bins only pairs with both things in one bin count, in all three numbers: without ties that is the mean of the
bins' taus, weighted by their pairs. Intervals are 95 % percentile bootstrap over the things (Efron 1979): both
values of a thing are drawn together, and a thing that is drawn twice is tied with itself in both. Low is good
everywhere: what is ranked are errors, or what predicts them.
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
_ROWS = 256  # rows of the pairs' matrix at a time: memory stays small for thousands of things


@dataclass(frozen=True, slots=True)
class Tau:
    """tau-b over `n` things and its 95 % interval; None where there is nothing to rank (all tied, or too few)."""

    n: int
    tau: float | None = None
    low: float | None = None
    high: float | None = None


def kendall(a: Values, b: Values, bins: Bins | None = None) -> float | None:
    """tau-b of two lists of equal length, of the pairs inside `bins` where given; None where a side is all tied."""
    value = _taus(a, b, bins, np.ones((1, len(a))))[0]
    return None if math.isnan(value) else float(value)


def resampled(a: Values, b: Values, bins: Bins | None = None) -> Floats:
    """The taus of `RESAMPLES` resamples, NaN where one has none; the same resamples for the same number of things."""
    rng = np.random.default_rng(0)
    n = len(a)
    drawn = rng.integers(n, size=(RESAMPLES, n)) + n * np.arange(RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n)
    return _taus(a, b, bins, times.astype(np.float64))


def interval(taus: Floats) -> tuple[float, float] | None:
    """The 95 % percentile interval of resampled numbers; None where more than one in ten has no value."""
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
    """tau(a, b) - tau(other, b) with its interval: paired, so what both share of the luck of the draw cancels."""
    first, second = (kendall(a, b), kendall(other, b)) if len(a) else (None, None)
    if first is None or second is None:
        return Tau(len(a))
    return Tau(len(a), first - second, *(interval(resampled(a, b) - resampled(other, b)) or (None, None)))


def quantile_bins(sizes: Values) -> NDArray[np.int64]:
    """The bin of each thing by quantiles of log(size): one bin for every 20 things, 3 at least, 5 at most.

    Sizes are counts from 1 on; equal ones share a bin.
    """
    logs = np.log(np.asarray(sizes, dtype=np.float64))
    count = min(5, max(3, len(logs) // 20))
    edges = np.quantile(logs, np.arange(1, count) / count) if len(logs) else np.empty(0)
    return np.searchsorted(edges, logs, side="left").astype(np.int64)


def within_bins(a: Values, b: Values, sizes: Values) -> Tau:
    """tau-b of the pairs inside bins of like size (see `quantile_bins`), with its interval."""
    return tau(a, b, quantile_bins(sizes))


def share_of(n: int, share: float) -> int:
    """k for the best `share` of n things: rounded half up, at least 1."""
    return max(1, math.floor(share * n + 0.5))


def top_recall(predicted: Values, truth: Values, k: int) -> float:
    """Share of the truth's k least that are among the predicted k least, 1 <= k <= n.

    Where values are tied at the k-th place, ties are broken at random, in both lists: this is the expected share.
    """
    assert 1 <= k <= len(truth) == len(predicted)
    return float(_chances(predicted, k) @ _chances(truth, k)) / k


def chance_tau(n: int, bins: Bins | None = None) -> Tau:
    """tau of a random order with no ties: 0, and the range in which 95 % of random orders lie.

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
    """tau-b for each row of `times` (rows, n), which says how often each thing is drawn. NaN where there is none."""
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


def _chances(values: Values, k: int) -> Floats:
    """For each thing the probability that it is among the k least, ties broken at random."""
    x = np.asarray(values, dtype=np.float64)
    last = np.partition(x, k - 1)[k - 1]
    below, tied = (x < last).astype(np.float64), (x == last).astype(np.float64)
    found: Floats = below + tied * (k - below.sum()) / tied.sum()
    return found


def agreement(first: list[float], second: list[float]) -> tuple[float, float | None]:
    """(median relative difference, Spearman's rank correlation) of two measurements of the same things.

    The correlation is None for fewer than three things, and where one measurement has the same value for all.
    """
    a, b = np.asarray(first), np.asarray(second)
    difference = float(np.median(np.abs(a - b) / ((a + b) / 2)))
    return difference, spearman(a, b) if len(a) >= 3 else None
