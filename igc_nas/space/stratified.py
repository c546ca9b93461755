"""Draws of architectures that have been counted: uniform over all, or stratified by cost and by units.

Uniform draws hardly ever come near the budget, nor away from the unit with the most options. Stratified ones are
uniform over bins of log-cost, then over the combinations of units in that bin, then over the architectures of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from igc_nas.space.counting import BudgetCounter, Stratum
from igc_nas.space.encoding import Code, Ints


@dataclass(frozen=True)
class Bin:
    """Architectures whose cost is above `above` and at most `most`."""

    above: int
    most: int


class StratifiedSampler:
    """Draws codes of a counter's architectures from the first of `bins` to the last, which is up to the limit."""

    def __init__(self, counter: BudgetCounter, bins: Sequence[Bin]) -> None:
        self.counter = counter
        self.bins = bins
        self._drawn_from: dict[tuple[int, int], Stratum] = {}

    def __len__(self) -> int:
        return len(self._all)

    def draw(self, rng: np.random.Generator) -> Code:
        """A code, each equally likely."""
        return self._all.draw(rng, self.counter)

    def draw_stratified(self, rng: np.random.Generator, place: int | None = None) -> Code:
        """A code: uniform over the bins, over the combinations of units in it, over what they hold.

        `place` chooses the bin instead, of those that hold something; they are counted from 0 again after the last.
        """
        number = int(rng.integers(len(self._strata))) if place is None else place % len(self._strata)
        strata = self._strata[number]
        number, stratum = strata[int(rng.integers(len(strata)))]
        return self._members(number, stratum).draw(rng, self.counter)

    @cached_property
    def _all(self) -> Stratum:
        below, within = self.counter.within(self.bins[0].above), self.counter.within(self.bins[-1].most)
        return Stratum.of(np.arange(len(within)), below, within - below)

    @cached_property
    def _within_edges(self) -> list[Ints]:
        """(pairs,) counts up to the lower edge of the first bin, and up to the upper edge of each."""
        return [self.counter.within(limit) for limit in (self.bins[0].above, *(b.most for b in self.bins))]

    @cached_property
    def _strata(self) -> list[list[tuple[int, int]]]:
        """For each bin that is not empty its (bin, combination of units) that are not."""
        found = []
        for number in range(len(self.bins)):
            counts = self.counter.by_stratum(self._within_edges[number + 1] - self._within_edges[number])
            found.append([(number, int(stratum)) for stratum in np.flatnonzero(counts)])
        return [strata for strata in found if strata]

    def _members(self, number: int, stratum: int) -> Stratum:
        """The architectures of a bin that are built of one combination of units."""
        if (number, stratum) not in self._drawn_from:
            pairs = self.counter.pairs_of(stratum)
            low, high = self._within_edges[number][pairs], self._within_edges[number + 1][pairs]
            self._drawn_from[number, stratum] = Stratum.of(pairs, low, high - low)
        return self._drawn_from[number, stratum]
