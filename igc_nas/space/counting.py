"""Exact counts and draws within cost limits, by sorted partial sums of the stages' costs (meet in the middle).

The stages are cut in two. The front halves are sorted by cost, in groups of those that end in the same shape and are
built of the same units; a back half with cost b then has as many partners within a limit E as there are front halves
of at most E - b: one binary search. All counts are exact integers, and the n-th architecture of a set is found as fast
as the set is counted, so a draw rejects nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from igc_nas.arch.config import UNITS
from igc_nas.space.encoding import Code, Ints, SpaceEncoding
from igc_nas.space.search_space import METRICS, Metric

MOST_FRONTS, MOST_BACKS = 40_000_000, 2_000_000
INDEX_BITS = 26
INDEX = (1 << INDEX_BITS) - 1
MOST_COST = (1 << (63 - INDEX_BITS)) - 2
"""A cost and an index of `MOST_FRONTS` share the 63 bits of an integer."""
BLOCK = 1024

Units = tuple[int, ...]
"""The unit of each stage, as places in UNITS."""


@dataclass(frozen=True)
class _PartialConfigs:
    """Some stages in a row, every way: `costs` (metrics, n), `codes` (n, stages), the `units` that they share."""

    units: Units
    costs: Ints
    codes: Ints

    def __len__(self) -> int:
        return int(self.costs.shape[1])


@dataclass
class _Group:
    """Front halves that end in one shape, built of `units`: parents, each followed by each of some `options`.

    `segments` are (first index, parents, options, the options' costs); an index counts parents first.
    """

    shape: int
    units: Units
    segments: list[tuple[int, _PartialConfigs, Ints, Ints]] = field(default_factory=list)
    size: int = 0

    def add(self, parents: _PartialConfigs, options: Ints, costs: Ints) -> None:
        self.segments.append((self.size, parents, options, costs))
        self.size += len(parents) * len(options)

    def costs(self, metric: int) -> Ints:
        """(size,) the costs in the order of the indices."""
        return np.concatenate([np.add.outer(p.costs[metric], c[metric]).ravel() for _, p, _, c in self.segments])

    def code(self, index: int) -> Code:
        """The front half with that index."""
        starts = [start for start, _, _, _ in self.segments]
        start, parents, options, _ = self.segments[int(np.searchsorted(starts, index, side="right")) - 1]
        parent, option = divmod(index - start, len(options))
        return (*map(int, parents.codes[parent]), int(options[option]))


class BudgetCounter:
    """The architectures of a catalog, sorted by one metric; no more than `most` of it is ever asked about.

    Raises `OverflowError` where a space has too many halves to sort, or `most` is beyond `MOST_COST`.
    """

    def __init__(self, encoding: SpaceEncoding, metric: Metric, most: int) -> None:
        self.encoding = encoding
        self.metric = METRICS.index(metric)
        self.most = most
        if most > MOST_COST:
            raise OverflowError(f"costs of {most:,}")
        fronts, self._backs = self._halves()
        self._groups = [group for group in fronts if group.shape in self._backs]
        self._keys = [self._sorted(group) for group in self._groups]

    # The halves.

    def _halves(self) -> tuple[list[_Group], dict[int, list[_PartialConfigs]]]:
        """(groups of front halves, back halves by the shape that enters them)."""
        sizes = self._sizes()
        levels = len(self.encoding.stages)
        cut = min(range(1, levels + 1), key=lambda level: sizes[level][0] + 8 * sizes[level][1])
        if sizes[cut][0] > MOST_FRONTS or sizes[cut][1] > MOST_BACKS:
            raise OverflowError(f"{sizes[cut][0]:,} and {sizes[cut][1]:,} halves")
        parents = self._roots()
        for level in range(cut - 1):
            parents = _merged(self._extended(parents, level))
        groups: dict[tuple[int, Units], _Group] = {}
        for shape, halves in parents:
            for unit, leads, options, costs in self._choices(cut - 1, shape):
                key = (leads, (*halves.units, unit))
                groups.setdefault(key, _Group(*key)).add(halves, options, costs)
        return list(groups.values()), {shape: found for shape, found in self._suffixes(cut) if found}

    def _sizes(self) -> list[tuple[int, int]]:
        """For each cut, behind so many stages: (front halves, back halves of the shape that has the most)."""
        fronts = [np.bincount(self.encoding.stem_shape, minlength=len(self.encoding.space.shapes[0])).astype(float)]
        for table, leaving in zip(self.encoding.stages, self.encoding.space.shapes[1:], strict=True):
            after = np.zeros(len(leaving))
            np.add.at(
                after, table.leaves[table.fits], np.broadcast_to(fronts[-1][:, None], table.fits.shape)[table.fits]
            )
            fronts.append(after)
        backs = [np.ones(len(self.encoding.space.shapes[-1]))]
        for table in reversed(self.encoding.stages):
            backs.insert(0, np.where(table.fits, backs[0][table.leaves], 0.0).sum(axis=1))
        return [(int(front.sum()), int(back.max())) for front, back in zip(fronts, backs, strict=True)]

    def _roots(self) -> list[tuple[int, _PartialConfigs]]:
        found = []
        for shape in np.unique(self.encoding.stem_shape):
            stems = np.flatnonzero(self.encoding.stem_shape == shape)
            found.append((int(shape), _PartialConfigs((), self.encoding.stem_costs[:, stems], stems[:, None])))
        return found

    def _choices(self, level: int, shape: int) -> Iterator[tuple[int, int, Ints, Ints]]:
        """The options of a stage behind a shape, by (unit, shape that they lead to): numbers and costs."""
        table = self.encoding.stages[level]
        fitting = np.flatnonzero(table.fits[shape])
        kinds = table.unit[fitting] * len(self.encoding.space.shapes[level + 1]) + table.leaves[shape, fitting]
        for kind in np.unique(kinds):
            options = fitting[kinds == kind]
            unit, leads = divmod(int(kind), len(self.encoding.space.shapes[level + 1]))
            yield unit, leads, options, table.costs[:, shape, options]

    def _extended(
        self, halves: Sequence[tuple[int, _PartialConfigs]], level: int
    ) -> Iterator[tuple[int, _PartialConfigs]]:
        for shape, half in halves:
            for unit, leads, options, costs in self._choices(level, shape):
                yield (
                    leads,
                    _PartialConfigs((*half.units, unit), *_outer(half.costs, half.codes, costs, options[:, None])),
                )

    def _suffixes(self, level: int) -> Iterator[tuple[int, list[_PartialConfigs]]]:
        """For each shape that enters stage `level` the ways to go on from there to the end, by units."""
        end = self.encoding.end_costs
        known = {
            n: [_PartialConfigs((), end[:, n : n + 1], np.zeros((1, 0), dtype=np.int64))] for n in range(end.shape[1])
        }
        for stage in range(len(self.encoding.stages) - 1, level - 1, -1):
            behind, known = known, {}
            for shape in range(len(self.encoding.space.shapes[stage])):
                found = [
                    (0, _PartialConfigs((unit, *half.units), *_outer(costs, options[:, None], half.costs, half.codes)))
                    for unit, leads, options, costs in self._choices(stage, shape)
                    for half in behind[leads]
                ]
                known[shape] = [half for _, half in _merged(found)]
        yield from known.items()

    def _sorted(self, group: _Group) -> Ints:
        """Cost and index of each front half in one integer, ascending."""
        costs = group.costs(self.metric)
        keys = (costs << INDEX_BITS) | np.arange(len(costs))
        least_back = min(int(half.costs[self.metric].min()) for half in self._backs[group.shape])
        keys = keys[costs <= self.most - least_back]
        keys.sort()
        return keys

    # Pairs: a group of front halves with one back half.

    @cached_property
    def _pairs(self) -> list[tuple[int, _PartialConfigs]]:
        """(group, back halves) in the order of the pairs; each back half of the second is a pair."""
        return [(n, half) for n, group in enumerate(self._groups) for half in self._backs[group.shape]]

    @cached_property
    def _pair_starts(self) -> Ints:
        return np.cumsum([0, *(len(half) for _, half in self._pairs)])

    @cached_property
    def strata(self) -> tuple[Units, ...]:
        """Every combination of units, stage by stage, that an architecture is built of."""
        return tuple(sorted({self._units(n, half) for n, half in self._pairs}))

    @cached_property
    def _stratum(self) -> Ints:
        """(pairs,) the place in `strata` of each pair."""
        number = {units: n for n, units in enumerate(self.strata)}
        return np.concatenate([np.full(len(half), number[self._units(n, half)]) for n, half in self._pairs])

    def _units(self, group: int, half: _PartialConfigs) -> Units:
        return (*self._groups[group].units, *half.units)

    def _ends(self, group: int, left: Ints) -> Ints:
        """How many front halves of a group cost at most each of `left`."""
        return np.searchsorted(self._keys[group], (np.clip(left, -1, self.most) + 1) << INDEX_BITS, side="left")

    def within(self, limit: int) -> Ints:
        """(pairs,) how many front halves of each pair cost at most `limit` together with its back half."""
        return np.concatenate([self._ends(n, limit - half.costs[self.metric]) for n, half in self._pairs])

    def within_both(self, limit: int, other: Metric, other_limit: int) -> Ints:
        """`within`, counting only those that also cost at most `other_limit` of another metric."""
        counts = [np.zeros(0, dtype=np.int64)]
        second = METRICS.index(other)
        for n, pairs in itertools.groupby(self._pairs, key=lambda pair: pair[0]):
            halves = [half for _, half in pairs]
            backs = np.concatenate([half.costs for half in halves], axis=1)
            others = self._groups[n].costs(second)[self._keys[n] & INDEX]
            ends = self._ends(n, limit - backs[self.metric])
            counts.append(_below(others, ends, other_limit - backs[second]))
        return np.concatenate(counts)

    def extremes(self, limit: int, metric: Metric) -> tuple[int, int]:
        """(least, most) of `metric` among the architectures that cost at most `limit`; there must be one."""
        column = METRICS.index(metric)
        least, most = [], []
        for n, pairs in itertools.groupby(self._pairs, key=lambda pair: pair[0]):
            costs = self._groups[n].costs(column)[self._keys[n] & INDEX]
            low, high = np.minimum.accumulate(costs), np.maximum.accumulate(costs)
            for _, half in pairs:
                ends = self._ends(n, limit - half.costs[self.metric])
                some = ends > 0
                if some.any():
                    least.append(int((low[ends[some] - 1] + half.costs[column][some]).min()))
                    most.append(int((high[ends[some] - 1] + half.costs[column][some]).max()))
        return min(least), max(most)

    def greatest(self, limit: int, other: Metric, other_limit: int) -> int:
        """The most that an architecture costs, of those within `limit` and within the limit on another metric.

        There must be one.
        """
        second, found = METRICS.index(other), []
        for n, pairs in itertools.groupby(self._pairs, key=lambda pair: pair[0]):
            others = self._groups[n].costs(second)[self._keys[n] & INDEX]
            for _, half in pairs:
                ends = self._ends(n, limit - half.costs[self.metric])
                last = _last_below(others, ends, other_limit - half.costs[second])
                if (last >= 0).any():
                    costs = (self._keys[n][last] >> INDEX_BITS) + half.costs[self.metric]
                    found.append(int(costs[last >= 0].max()))
        return max(found)

    def by_stratum(self, counts: Ints) -> Ints:
        """(strata,) the sum of a count of pairs."""
        found = np.zeros(len(self.strata), dtype=np.int64)
        np.add.at(found, self._stratum, counts)
        return found

    def pairs_of(self, stratum: int) -> Ints:
        """The numbers of the pairs of a stratum."""
        return np.flatnonzero(self._stratum == stratum)

    def member(self, pair: int, place: int) -> Code:
        """The code of the architecture of a pair whose front half is at `place` in the order of cost."""
        block = int(np.searchsorted(self._pair_starts, pair, side="right")) - 1
        group, half = self._pairs[block]
        front = self._groups[group].code(int(self._keys[group][place]) & INDEX)
        return (*front, *map(int, half.codes[pair - int(self._pair_starts[block])]))


@dataclass(frozen=True)
class Stratum:
    """A set of architectures: of each of `pairs` those from `starts` on, `ends` of them in all so far (cumulated)."""

    pairs: Ints
    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, pairs: Ints, starts: Ints, counts: Ints) -> Stratum:
        """The non-empty among `pairs`."""
        some = counts > 0
        return cls(pairs[some], starts[some], np.cumsum(counts[some]))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def draw(self, rng: np.random.Generator, sums: BudgetCounter) -> Code:
        """One of the set, each being equally likely."""
        number = int(rng.integers(len(self)))
        at = int(np.searchsorted(self.ends, number, side="right"))
        before = int(self.ends[at - 1]) if at else 0
        return sums.member(int(self.pairs[at]), int(self.starts[at]) + number - before)


def units_text(units: Units) -> str:
    """`igcv1 igcv3 igcv3`: the unit of each stage."""
    return " ".join(UNITS[unit] for unit in units)


def _outer(costs: Ints, codes: Ints, more_costs: Ints, more_codes: Ints) -> tuple[Ints, Ints]:
    """Each half followed by each other one: summed costs (metrics, n * m), joined codes (n * m, both)."""
    n, m = costs.shape[1], more_costs.shape[1]
    joined = np.concatenate([np.repeat(codes, m, axis=0), np.tile(more_codes, (n, 1))], axis=1)
    return (costs[:, :, None] + more_costs[:, None, :]).reshape(len(costs), n * m), joined


def _merged(halves: object) -> list[tuple[int, _PartialConfigs]]:
    """Halves with the same shape and units as one."""
    found: dict[tuple[int, Units], list[_PartialConfigs]] = {}
    for shape, half in halves:  # type: ignore[attr-defined]
        found.setdefault((shape, half.units), []).append(half)
    return [
        (
            shape,
            _PartialConfigs(
                units, np.concatenate([h.costs for h in some], 1), np.concatenate([h.codes for h in some], 0)
            ),
        )
        for (shape, units), some in found.items()
    ]


def _below(values: Ints, ends: Ints, limits: NDArray[np.int64]) -> Ints:
    """For each query how many of the first `ends` of `values` are at most its limit.

    Whole blocks of `values` are sorted and searched, what is left of the last one is compared.
    """
    if not len(values):
        return np.zeros(len(ends), dtype=np.int64)
    counts = np.where(limits >= values.max(), ends, 0)
    asked = (limits < values.max()) & (limits >= values.min())
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        whole = np.flatnonzero(asked & (ends >= start + len(block)))
        counts[whole] += np.searchsorted(np.sort(block), limits[whole], side="right")
        part = np.flatnonzero(asked & (ends > start) & (ends < start + len(block)))
        inside = np.arange(len(block))[None, :] < (ends[part] - start)[:, None]
        counts[part] += (inside & (block[None, :] <= limits[part][:, None])).sum(axis=1)
    return counts


def _last_below(values: Ints, ends: Ints, limits: Ints) -> Ints:
    """For each query the place of the last of the first `ends` of `values` that is at most its limit; -1: none."""
    found = np.full(len(ends), -1, dtype=np.int64)
    edges = np.arange(0, len(values), BLOCK)
    least = np.minimum.reduceat(values, edges) if len(values) else values
    block, open_ = (ends - 1) // BLOCK, np.flatnonzero(ends > 0)
    while len(open_):
        may = open_[least[block[open_]] <= limits[open_]]
        for query in may:
            start = int(block[query]) * BLOCK
            hits = np.flatnonzero(values[start : min(start + BLOCK, int(ends[query]))] <= limits[query])
            if len(hits):
                found[query] = start + hits[-1]
        open_ = open_[found[open_] < 0]
        block[open_] -= 1
        open_ = open_[block[open_] >= 0]
    return found
