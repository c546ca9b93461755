"""Gradient-boosted regression trees (Friedman 2001, algorithms 1 and 3): the model class of the fitted landscapes.

They share nothing with the known-cost sampler's surrogate: no kernel, no linear part, no smoothness. A prediction is a
sum of steps over single columns and over up to `DEPTH` columns at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TREES, DEPTH, RATE, FEWEST, SHARE = 150, 3, 0.06, 4, 0.7
"""The number of trees, their depth, the shrinkage, the fewest rows in a leaf, the share of rows that each tree sees."""
SPLITS = 2**DEPTH - 1
FOLDS = 10


class BoostedTrees:
    """Fitted to `values` (n,) at `inputs` (n, columns) by least squares; rows are drawn from a fixed seed."""

    def __init__(self, inputs: Floats, values: Floats) -> None:
        rng = np.random.default_rng(0)
        self._mean = float(values.mean())
        # Of each tree; node i has the children 2i + 1 and 2i + 2, and rows at most at its level go to the first one.
        self._columns = np.zeros((TREES, SPLITS), dtype=np.int64)
        self._levels = np.full((TREES, SPLITS), np.inf)
        self._leaves = np.zeros((TREES, SPLITS + 1))
        rest = values - self._mean
        for tree in range(TREES):
            seen = rng.permutation(len(values))[: round(SHARE * len(values))]
            self._grow(tree, inputs[seen], rest[seen])
            rest = rest - RATE * self._values(inputs, slice(tree, tree + 1))[0]

    def __call__(self, inputs: Floats) -> Floats:
        """(n,) predictions for `inputs` (n, columns)."""
        found: Floats = self._mean + RATE * self._values(inputs, slice(None)).sum(axis=0)
        return found

    def _values(self, inputs: Floats, some: slice) -> Floats:
        """(trees, n) the leaves' values in some of the trees."""
        columns, levels, leaves = self._columns[some], self._levels[some], self._leaves[some]
        trees, rows = np.ogrid[: len(columns), : len(inputs)]
        node = np.zeros((len(columns), len(inputs)), dtype=np.int64)
        for _ in range(DEPTH):
            node = 2 * node + 1 + (inputs[rows, columns[trees, node]] > levels[trees, node])
        found: Floats = leaves[trees, node - SPLITS]
        return found

    def _grow(self, tree: int, inputs: Floats, values: Floats) -> None:
        parts = [np.arange(len(values))]
        for node in range(SPLITS):
            rows = parts[node]
            column, level = _best_split(inputs[rows], values[rows])
            self._columns[tree, node], self._levels[tree, node] = column, level
            left = inputs[rows, column] <= level
            parts += [rows[left], rows[~left]]
        self._leaves[tree] = [values[rows].mean() if len(rows) else 0.0 for rows in parts[SPLITS:]]


def _best_split(inputs: Floats, values: Floats) -> tuple[int, float]:
    """(column, level) by which the squared error falls most; (0, inf), which splits nothing, where there is none."""
    n = len(values)
    if n < 2 * FEWEST:
        return 0, np.inf
    order = np.argsort(inputs, axis=0, kind="stable")
    ordered = np.take_along_axis(inputs, order, axis=0)
    sums = np.cumsum(values[order], axis=0)
    count = np.arange(1, n)[:, None]
    gain = sums[:-1] ** 2 / count + (sums[-1] - sums[:-1]) ** 2 / (n - count)
    gain[(ordered[:-1] == ordered[1:]) | (count < FEWEST) | (n - count < FEWEST)] = -np.inf
    row, column = np.unravel_index(int(np.argmax(gain)), gain.shape)
    if gain[row, column] == -np.inf:
        return 0, np.inf
    return int(column), float((ordered[row, column] + ordered[row + 1, column]) / 2)


def left_out(inputs: Floats, values: Floats) -> Floats:
    """(n,) predictions of the values by cross-validation: each by trees that were fitted without its fold."""
    fold = np.random.default_rng(0).permutation(len(values)) % FOLDS
    found = np.empty(len(values))
    for each in range(FOLDS):
        out = fold == each
        found[out] = BoostedTrees(inputs[~out], values[~out])(inputs[out])
    return found
