"""The architectures of a space that a budget leaves: how many there are, what they cost, and draws of them."""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.arch.stages import UNITS
from igc_nas.errors import InfeasibleError
from igc_nas.io.units import exact_count
from igc_nas.space.budget import Budget
from igc_nas.space.counting import MAX_PREFIXES, BudgetCounter
from igc_nas.space.encoding import Ints, SpaceEncoding
from igc_nas.space.knapsack import KnapsackSampler
from igc_nas.space.search_space import Metric, SearchSpace
from igc_nas.space.stratified import Bin, StratifiedSampler

MAX_REJECTED = 20_000
MAX_REJECTED_IN_BIN = 200
BINS = 8
METRIC_WORDS = {"params": "parameters", "macs": "MACs"}


@lru_cache(maxsize=8)
def feasible(space: SearchSpace, budget: Budget) -> Feasible:
    """`Feasible(space, budget)`, kept: counting a large space takes seconds."""
    return Feasible(space, budget)


class Feasible:
    """The architectures of `space` within the limits of `budget` on parameters and MACs.

    A space of more than `max_prefixes` prefixes (see `counting`) is not counted; `KnapsackSampler` draws from it.
    Raises `InfeasibleError`, naming the smallest that is possible, where nothing fits.
    """

    def __init__(self, space: SearchSpace, budget: Budget, *, max_prefixes: int = MAX_PREFIXES) -> None:
        self.space = space
        self.budget = budget
        self.max_prefixes = max_prefixes
        self.limits: dict[Metric, int] = {}
        if budget.params is not None:
            self.limits["params"] = budget.params
        if budget.macs is not None:
            self.limits["macs"] = budget.macs
        lows: dict[Metric, int | None] = {"params": budget.min_params, "macs": budget.min_macs}
        self.lows: dict[Metric, int] = {metric: low for metric, low in lows.items() if low is not None}
        for metric, low in self.lows.items():
            largest = getattr(cost_of(space.largest(metric)), metric)
            if largest < low:
                raise InfeasibleError(
                    f"the largest architecture in {space.name} has {largest:,} {METRIC_WORDS[metric]}; "
                    f"at least {low:,} are asked for",
                    f"ask for {exact_count(largest)} or less, or choose another space",
                )
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
        return self.budget.violation(cost) <= 0

    # Counting.

    @cached_property
    def encoding(self) -> SpaceEncoding:
        """The space's options as arrays."""
        return SpaceEncoding(self.space)

    @cached_property
    def metric(self) -> Metric:
        """The metric that is counted and binned by: the one whose limit is the smaller share of the space's largest."""
        share: dict[Metric, float] = {
            m: limit / getattr(cost_of(self.space.largest(m)), m) for m, limit in self.limits.items()
        }
        return min(share, key=lambda m: share[m]) if share else next(iter(self.lows), "params")

    @cached_property
    def _other(self) -> Metric | None:
        """The second metric with a limit; it rejects some of what the first one lets through."""
        return next((metric for metric in (*self.limits, *self.lows) if metric != self.metric), None)

    @cached_property
    def counter(self) -> BudgetCounter | None:
        """The exact counts by `metric`; None for a space that is too large to count."""
        return self._counter_by(self.metric)

    def _counter_by(self, metric: Metric) -> BudgetCounter | None:
        try:
            return BudgetCounter(self.encoding, metric, self._most(metric), max_prefixes=self.max_prefixes)
        except OverflowError:
            return None

    def _most(self, metric: Metric) -> int:
        """The limit on a metric, or the most that the space can cost."""
        largest: int = getattr(cost_of(self.space.largest(metric)), metric)
        return min(self.limits.get(metric, largest), largest)

    def _least(self, metric: Metric) -> int:
        """The lower limit on a metric, or the least that the space can cost."""
        smallest: int = getattr(cost_of(self.space.smallest(metric)), metric)
        return max(self.lows.get(metric, smallest), smallest)

    @cached_property
    def bins(self) -> tuple[Bin, ...]:
        """`BINS` bins of equal width in log-cost, from the smallest architecture or the lower limit to the limit."""
        least = self._least(self.metric)
        most = self._most(self.metric)
        edges = [min(round(e), most) for e in np.geomspace(least, most, BINS + 1)]
        edges[0], edges[-1] = least - 1, most
        return tuple(Bin(low, high) for low, high in pairwise(edges) if low < high)

    def _counts(self, counter: BudgetCounter, limit: int) -> Ints:
        """(pairs,) how many architectures cost at most `limit`, and are within all other limits."""
        counts = self._up_to(counter, limit)
        return counts - self._up_to(counter, self._least(self.metric) - 1) if self.metric in self.lows else counts

    def _up_to(self, counter: BudgetCounter, limit: int) -> Ints:
        """(pairs,) how many architectures cost at most `limit` and are within the limits of the other metric."""
        other = self._other
        if other is None:
            return counter.within(limit)
        counts = counter.within_both(limit, other, self._most(other))
        return counts - counter.within_both(limit, other, self.lows[other] - 1) if other in self.lows else counts

    @cached_property
    def count(self) -> int | None:
        """The exact number of architectures within the budget; None for a space that is too large to count."""
        return None if self.counter is None else int(self._counts(self.counter, self._most(self.metric)).sum())

    def facts(self) -> dict[str, Any]:
        """The count, its share of the space, the least and the most that the architectures within the budget cost.

        And the same per bin and per unit of each stage. The least and the most are left out where the budget has a
        lower limit. Raises `InfeasibleError` where two budgets exclude each other,
        `OverflowError` for a space that is too large to count.
        """
        counter = self._counted(self.counter)
        if not self.count:
            raise InfeasibleError(
                f"no architecture of {self.space.name} is within both budgets", "raise one of the budgets"
            )
        up_to = [counter.by_stratum(self._counts(counter, bin_.most)) for bin_ in self.bins]
        strata = np.diff(np.array(up_to), axis=0, prepend=0)
        found: dict[str, Any] = {"architectures": self.space.size, "feasible": self.count}
        found["share"] = self.count / self.space.size
        if self._other is not None and not self.lows:
            found["acceptance"] = self.count / int(counter.within(self._most(self.metric)).sum())
        for metric in ("params", "macs") if not self.lows else ():
            found[f"smallest_{metric}"], found[f"largest_{metric}"] = self._extremes(counter, metric)
        found["binned_by"] = self.metric
        found["bins"] = [
            {"from": b.above + 1, "to": b.most, "architectures": int(n)}
            for b, n in zip(self.bins, strata.sum(axis=1), strict=True)
        ]
        found["units"] = {
            f"stage{stage + 1}": {
                UNITS[unit]: int(up_to[-1][[units[stage] == unit for units in counter.strata]].sum())
                for unit in sorted({units[stage] for units in counter.strata})
            }
            for stage in range(len(self.space.stages))
        }
        return found

    def _counted(self, counter: BudgetCounter | None) -> BudgetCounter:
        if counter is None:
            raise OverflowError(f"{self.space.name} is too large to count")
        return counter

    def _extremes(self, counter: BudgetCounter, metric: Metric) -> tuple[int, int]:
        """(least, most) of a metric within the budget."""
        if self._other is None:
            return counter.extremes(self._most(self.metric), metric)
        second: Metric = "macs" if metric == "params" else "params"
        by_second = counter if self.metric == second else self._counted(self._counter_by(second))
        by_first = counter if self.metric == metric else self._counted(self._counter_by(metric))
        least, _ = by_second.extremes(self.limits[second], metric)
        return least, by_first.greatest(self.limits[metric], second, self.limits[second])

    # Drawing.

    @cached_property
    def sampler(self) -> StratifiedSampler | None:
        """Draws within the limits on `metric`; None for a space that is too large to count.

        Raises `InfeasibleError` where no architecture is between a lower and an upper limit.
        """
        if self.counter is None:
            return None
        sampler = StratifiedSampler(self.counter, self.bins)
        if self.lows and not len(sampler):
            raise InfeasibleError(
                f"no architecture of {self.space.name} has {self._least(self.metric):,} to "
                f"{self._most(self.metric):,} {METRIC_WORDS[self.metric]}",
                "widen the range",
            )
        return sampler

    @cached_property
    def knapsack(self) -> KnapsackSampler:
        """Draws from a space that is too large to count, and the heaviest architecture."""
        return KnapsackSampler(self.space, self.metric, self._most(self.metric))

    def draw(self, rng: np.random.Generator, max_rejected: int = MAX_REJECTED) -> ArchConfig:
        """One architecture, each within the budget equally likely.

        Raises `InfeasibleError` after `max_rejected` draws that are within one limit and not within the other.
        """
        for _ in range(max_rejected):
            if self.sampler is None:
                arch = self.knapsack.propose(rng)
            else:
                arch = self.encoding.architecture(self.sampler.draw(rng))
                if self._other is None:
                    return arch
            if self.contains(cost_of(arch)):
                return arch
        raise InfeasibleError(
            f"{max_rejected:,} uniform draws from {self.space.name} within one budget found none within the other",
            "raise one of the budgets",
        )

    def draw_stratified(self, rng: np.random.Generator, place: int | None = None) -> ArchConfig:
        """One architecture: uniform over the bins, over the combinations of units in it, over what they hold.

        `place` chooses the bin instead (see `StratifiedSampler.draw_stratified`). A second limit rejects, so
        combinations that it leaves little of are drawn less often. A space that is too large to count is drawn from
        uniformly. Raises `InfeasibleError` as `draw` does.
        """
        if self.sampler is None:
            return self.draw(rng)
        for rejected in range(MAX_REJECTED):
            bin_ = place if rejected < MAX_REJECTED_IN_BIN else None  # what the other limit leaves may not be in it
            arch = self.encoding.architecture(self.sampler.draw_stratified(rng, bin_))
            if self._other is None or self.contains(cost_of(arch)):
                return arch
        raise InfeasibleError(
            f"{MAX_REJECTED:,} draws from {self.space.name} within one budget found none within the other",
            "raise one of the budgets",
        )

    # The ends.

    def lightest(self) -> ArchConfig:
        """The architecture within the budget with the fewest MACs.

        Where the space's own is over the limit on parameters: the best of 1,000 uniform draws.
        """
        smallest = self.space.smallest("macs")
        if self.contains(cost_of(smallest)):
            return smallest
        return min(self._some(), key=lambda arch: cost_of(arch).macs)

    def heaviest(self) -> ArchConfig:
        """The architecture within the budget with the most MACs, up to the rounding of `KnapsackSampler`.

        A knapsack over the stages, costs rounded up; where two limits bind, the best of 1,000 uniform draws.
        """
        largest = self.space.largest("macs")
        if self.contains(cost_of(largest)):
            return largest
        arch = self.knapsack.heaviest()
        if arch is not None and self.contains(cost_of(arch)):
            return arch
        return max(self._some(), key=lambda arch: cost_of(arch).macs)

    def _some(self) -> list[ArchConfig]:
        rng = np.random.default_rng(0)
        return [self.draw(rng) for _ in range(1000)]
