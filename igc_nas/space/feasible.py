"""What a budget leaves of a space: how many architectures, at which costs, and draws of them.

Uniform draws hardly ever come near the budget, nor away from the unit with the most options. Stratified ones are
uniform over bins of log-cost, then over the combinations of units in that bin, then over the architectures of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from igc_nas.arch.config import UNITS, ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.errors import InfeasibleError
from igc_nas.io.units import exact_count
from igc_nas.space.counting import BudgetCounter, Stratum
from igc_nas.space.encoding import Ints, SpaceEncoding
from igc_nas.space.knapsack import KnapsackSampler
from igc_nas.space.search_space import Metric, SearchSpace

MOST_REJECTED = 20_000
BINS = 8
METRIC_WORDS = {"params": "parameters", "macs": "MACs"}


@dataclass(frozen=True)
class Bin:
    """Architectures whose cost is above `above` and at most `most`."""

    above: int
    most: int


class Feasible:
    """The architectures of `space` with at most `params` parameters and `macs` MACs (None: no limit).

    Raises `InfeasibleError`, naming the smallest that is possible, where nothing fits.
    """

    def __init__(self, space: SearchSpace, params: int | None = None, macs: int | None = None) -> None:
        self.space = space
        self.limits: dict[Metric, int] = {}
        if params is not None:
            self.limits["params"] = params
        if macs is not None:
            self.limits["macs"] = macs
        for metric, limit in self.limits.items():
            least = getattr(cost_of(space.smallest(metric)), metric)
            if least > limit:
                raise InfeasibleError(
                    f"the smallest architecture in {space.name} has {least:,} {METRIC_WORDS[metric]}; "
                    f"the budget is {limit:,}",
                    f"raise the budget to {exact_count(least)} or more, or choose another space",
                )

    def contains(self, cost: Cost) -> bool:
        """Whether a cost is within the budget."""
        return self.violation(cost) <= 0

    def violation(self, cost: Cost) -> float:
        """The largest relative excess over a limit; 0 or less is within the budget."""
        return max((float(getattr(cost, metric) / limit - 1) for metric, limit in self.limits.items()), default=-1.0)

    # Counting.

    @cached_property
    def encoding(self) -> SpaceEncoding:
        """The space's options as arrays."""
        return SpaceEncoding(self.space)

    @cached_property
    def metric(self) -> Metric:
        """What is counted and binned by: the metric whose limit is the tighter one."""
        share: dict[Metric, float] = {
            m: limit / getattr(cost_of(self.space.largest(m)), m) for m, limit in self.limits.items()
        }
        return min(share, key=lambda m: share[m]) if share else "params"

    @cached_property
    def _other(self) -> Metric | None:
        """The second metric that has a limit; it rejects some of what the first one lets through."""
        return next((metric for metric in self.limits if metric != self.metric), None)

    @cached_property
    def sums(self) -> BudgetCounter | None:
        """The exact counts; None for a space that has too many halves for them."""
        return self._sums_by(self.metric)

    def _sums_by(self, metric: Metric) -> BudgetCounter | None:
        try:
            return BudgetCounter(self.encoding, metric, self._most(metric))
        except OverflowError:
            return None

    def _most(self, metric: Metric) -> int:
        """The limit on a metric, or the most that the space can cost."""
        largest: int = getattr(cost_of(self.space.largest(metric)), metric)
        return min(self.limits.get(metric, largest), largest)

    @cached_property
    def bins(self) -> tuple[Bin, ...]:
        """`BINS` bins of equal width in log-cost, from the smallest architecture to the limit."""
        least = getattr(cost_of(self.space.smallest(self.metric)), self.metric)
        most = self._most(self.metric)
        edges = [min(round(e), most) for e in np.geomspace(least, most, BINS + 1)]
        edges[0], edges[-1] = least - 1, most
        return tuple(Bin(low, high) for low, high in pairwise(edges) if low < high)

    def _counts(self, sums: BudgetCounter, limit: int) -> Ints:
        """(pairs,) how many architectures cost at most `limit` and keep within the other limit."""
        if self._other is None:
            return sums.within(limit)
        return sums.within_both(limit, self._other, self.limits[self._other])

    @cached_property
    def count(self) -> int | None:
        """Exactly how many architectures there are within the budget; None where the space is too large to say."""
        return None if self.sums is None else int(self._counts(self.sums, self._most(self.metric)).sum())

    def facts(self) -> dict[str, Any]:
        """The count, its share of the space, the least and the most that the architectures within the budget cost.

        And the same per bin and per unit of each stage. Raises `InfeasibleError` where two budgets exclude each other,
        `OverflowError` for a space too large to count.
        """
        sums = self.sums
        if sums is None:
            raise OverflowError(f"{self.space.name} is too large to count")
        if not self.count:
            raise InfeasibleError(
                f"no architecture of {self.space.name} is within both budgets", "raise one of the budgets"
            )
        limits = [bin_.most for bin_ in self.bins]
        up_to = [sums.by_stratum(self._counts(sums, limit)) for limit in limits]
        strata = np.diff(np.array(up_to), axis=0, prepend=0)
        found: dict[str, Any] = {"architectures": self.space.size, "feasible": self.count}
        found["share"] = self.count / self.space.size
        if self._other is not None:
            found["acceptance"] = self.count / int(sums.within(self._most(self.metric)).sum())
        for metric in ("params", "macs"):
            found[f"smallest_{metric}"], found[f"largest_{metric}"] = self._extremes(metric)
        found["binned_by"] = self.metric
        found["bins"] = [
            {"from": b.above + 1, "to": b.most, "architectures": int(n)}
            for b, n in zip(self.bins, strata.sum(axis=1), strict=True)
        ]
        found["units"] = {
            f"stage{stage + 1}": {
                UNITS[unit]: int(up_to[-1][[units[stage] == unit for units in sums.strata]].sum())
                for unit in sorted({units[stage] for units in sums.strata})
            }
            for stage in range(len(self.space.stages))
        }
        return found

    def _extremes(self, metric: Metric) -> tuple[int, int]:
        """(least, most) of a metric within the budget."""
        assert self.sums is not None
        if self._other is None:
            return self.sums.extremes(self._most(self.metric), metric)
        second: Metric = "macs" if metric == "params" else "params"
        by_second = self.sums if self.metric == second else self._sums_by(second)
        by_first = self.sums if self.metric == metric else self._sums_by(metric)
        if by_second is None or by_first is None:
            raise OverflowError(f"{self.space.name} is too large to count")
        least, _ = by_second.extremes(self.limits[second], metric)
        return least, by_first.greatest(self.limits[metric], second, self.limits[second])

    # Drawing.

    def draw(self, rng: np.random.Generator) -> ArchConfig:
        """One architecture, every one within the budget being equally likely."""
        for _ in range(MOST_REJECTED):
            arch = self._propose(rng)
            if self._is_exact or self.contains(cost_of(arch)):
                return arch
        raise InfeasibleError(
            f"{MOST_REJECTED:,} uniform draws from {self.space.name} within one budget found none within the other",
            "raise one of the budgets",
        )

    @property
    def _is_exact(self) -> bool:
        """Whether what is proposed needs no second look."""
        return self._other is None and self.sums is not None

    def _propose(self, rng: np.random.Generator) -> ArchConfig:
        if self.sums is None:
            return self._cells.propose(rng)
        return self.encoding.architecture(self._all.draw(rng, self.sums))

    @cached_property
    def _cells(self) -> KnapsackSampler:
        return KnapsackSampler(self.space, self.metric, self._most(self.metric))

    @cached_property
    def _all(self) -> Stratum:
        assert self.sums is not None
        counts = self.sums.within(self._most(self.metric))
        return Stratum.of(np.arange(len(counts)), np.zeros_like(counts), counts)

    def draw_stratified(self, rng: np.random.Generator) -> ArchConfig:
        """One architecture: uniform over the bins, over the combinations of units in it, over what they hold.

        A second budget rejects: combinations that it leaves little of are drawn the less. A space too large to count
        is drawn from uniformly.
        """
        if self.sums is None:
            return self.draw(rng)
        for _ in range(MOST_REJECTED):
            choices = self._strata[int(rng.integers(len(self._strata)))]
            stratum = choices[int(rng.integers(len(choices)))]
            arch = self.encoding.architecture(self._chosen(*stratum).draw(rng, self.sums))
            if self._other is None or self.contains(cost_of(arch)):
                return arch
        raise InfeasibleError(
            f"{MOST_REJECTED:,} draws from {self.space.name} within one budget found none within the other",
            "raise one of the budgets",
        )

    @cached_property
    def _within_bins(self) -> list[Ints]:
        """(pairs,) up to the lower edge of the first bin, and up to the upper edge of each."""
        assert self.sums is not None
        return [self.sums.within(limit) for limit in (self.bins[0].above, *(b.most for b in self.bins))]

    @cached_property
    def _strata(self) -> list[list[tuple[int, int]]]:
        """For each bin that is not empty its (bin, stratum of units) that are not."""
        assert self.sums is not None
        found = []
        for number in range(len(self.bins)):
            counts = self.sums.by_stratum(self._within_bins[number + 1] - self._within_bins[number])
            found.append([(number, int(stratum)) for stratum in np.flatnonzero(counts)])
        return [bin_ for bin_ in found if bin_]

    @cached_property
    def _chosen_before(self) -> dict[tuple[int, int], Stratum]:
        return {}

    def _chosen(self, number: int, stratum: int) -> Stratum:
        assert self.sums is not None
        if (number, stratum) not in self._chosen_before:
            pairs = self.sums.pairs_of(stratum)
            low, high = self._within_bins[number][pairs], self._within_bins[number + 1][pairs]
            self._chosen_before[number, stratum] = Stratum.of(pairs, low, high - low)
        return self._chosen_before[number, stratum]

    # The ends.

    def lightest(self) -> ArchConfig:
        """The architecture within the budget with the fewest MACs, by draws where the one of the space is too big."""
        smallest = self.space.smallest("macs")
        if self.contains(cost_of(smallest)):
            return smallest
        return min(self._some(), key=lambda arch: cost_of(arch).macs)

    def heaviest(self) -> ArchConfig:
        """The architecture within the budget with the most MACs, up to the rounding of `KnapsackSampler`.

        A knapsack over the stages, costs rounded up; with two budgets that bind, the best of some uniform draws.
        """
        largest = self.space.largest("macs")
        if self.contains(cost_of(largest)):
            return largest
        arch = self._cells.heaviest()
        if arch is not None and self.contains(cost_of(arch)):
            return arch
        return max(self._some(), key=lambda arch: cost_of(arch).macs)

    def _some(self, count: int = 1000) -> list[ArchConfig]:
        rng = np.random.default_rng(0)
        return [self.draw(rng) for _ in range(count)]
