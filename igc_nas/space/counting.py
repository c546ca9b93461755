"""Exact counts of the architectures within cost limits, and the n-th of them.

Meet in the middle: prefixes sorted by cost, one binary search per suffix. Time O((P + S) log P), memory O(P),
P = number of prefixes, S = number of suffixes (Horowitz & Sahni 1974, Computing Partitions with Applications to the
Knapsack Problem).

A prefix is a stem with options of the first stages, a suffix the options of the others. Prefixes are grouped by the
shape that they end in and by the units that they are built of; a suffix of cost s that this shape may enter makes as
many architectures within a limit E as there are prefixes of at most E - s. All counts are exact integers. The n-th
architecture of a set is found by the same search, so a draw rejects nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from igc_nas.space.encoding import Code, Ints, SpaceEncoding
from igc_nas.space.search_space import METRICS, Metric

MAX_PREFIXES, MAX_SUFFIXES = 40_000_000, 2_000_000
INDEX_BITS = 26
INDEX = (1 << INDEX_BITS) - 1
MAX_COST = (1 << (63 - INDEX_BITS)) - 2
"""A cost and the index of a prefix share the 63 bits of an integer, so that one sort orders both."""
BLOCK = 1024
"""Values that `count_below` sorts at a time, and `last_below` skips at a time."""

Units = tuple[int, ...]
"""The unit of each stage, as places in UNITS."""


@dataclass(frozen=True)
class _PartialConfigs:
    """n choices of options for some stages in a row: `costs` (metrics, n), `codes` (n, stages), the units in common."""

    units: Units
    costs: Ints
    codes: Ints

    def __len__(self) -> int:
        return int(self.costs.shape[1])


@dataclass
class _Group:
    """The prefixes that end in one shape and are built of `units`: shorter ones (parents), each with one more option.

    `segments` are (index of the first prefix, parents, options, the options' costs); the options of the first parent
    come first.
    """

    shape: int
    units: Units
    segments: list[tuple[int, _PartialConfigs, Ints, Ints]] = field(default_factory=list)
    size: int = 0

    def add(self, parents: _PartialConfigs, options: Ints, costs: Ints) -> None:
        self.segments.append((self.size, parents, options, costs))
        self.size += len(parents) * len(options)

    def costs(self, metric: int) -> Ints:
        """(size,) the costs by index."""
        return np.concatenate([np.add.outer(p.costs[metric], c[metric]).ravel() for _, p, _, c in self.segments])

    def code(self, index: int) -> Code:
        """The code of the prefix with that index."""
        starts = [start for start, _, _, _ in self.segments]
        start, parents, options, _ = self.segments[int(np.searchsorted(starts, index, side="right")) - 1]
        parent, option = divmod(index - start, len(options))
        return (*map(int, parents.codes[parent]), int(options[option]))


class BudgetCounter:
    """Counts the architectures of a space within limits on `metric`; no limit is above `most`.

    Raises `OverflowError` where a space has more than `max_prefixes` prefixes, or `most` is beyond `MAX_COST`.
    """

    def __init__(self, encoding: SpaceEncoding, metric: Metric, most: int, *, max_prefixes: int = MAX_PREFIXES) -> None:
        self.encoding = encoding
        self.metric = METRICS.index(metric)
        self.most = most
        if most > MAX_COST:
            raise OverflowError(f"costs of {most:,}")
        cut = self._cut(max_prefixes)
        self._suffixes = self._suffixes_by_shape(cut)
        self._groups = [group for group in self._prefixes(cut) if group.shape in self._suffixes]
        self._keys = [self._sorted(group) for group in self._groups]

    # Prefixes and suffixes.

    def _cut(self, max_prefixes: int) -> int:
        """The number of stages in a prefix that makes the least work; a suffix takes about as long as 8 prefixes."""
        sizes = self._sizes()
        cut = min(range(1, len(self.encoding.stages) + 1), key=lambda level: sizes[level][0] + 8 * sizes[level][1])
        prefixes, suffixes = sizes[cut]
        if prefixes > max_prefixes or suffixes > MAX_SUFFIXES:
            raise OverflowError(f"{prefixes:,} prefixes and {suffixes:,} suffixes")
        return cut

    def _prefixes(self, cut: int) -> list[_Group]:
        """The prefixes of `cut` stages; their last option is kept apart, so that not every prefix is held as a row."""
        parents = self._stems()
        for level in range(cut - 1):
            parents = _merged(self._extended(parents, level))
        groups: dict[tuple[int, Units], _Group] = {}
        for shape, configs in parents:
            for unit, next_shape, options, costs in self._choices(cut - 1, shape):
                key = (next_shape, (*configs.units, unit))
                groups.setdefault(key, _Group(*key)).add(configs, options, costs)
        return list(groups.values())

    def _sizes(self) -> list[tuple[int, int]]:
        """For a cut after 0, 1, ... stages: (number of prefixes, number of suffixes of the shape that has the most)."""
        shapes = self.encoding.space.shapes
        prefixes = [np.bincount(self.encoding.stem_shape, minlength=len(shapes[0])).astype(float)]
        for table, leaving in zip(self.encoding.stages, shapes[1:], strict=True):
            longer = np.zeros(len(leaving))
            before = np.broadcast_to(prefixes[-1][:, None], table.fits.shape)
            np.add.at(longer, table.leaves[table.fits], before[table.fits])
            prefixes.append(longer)
        suffixes = [np.ones(len(shapes[-1]))]
        for table in reversed(self.encoding.stages):
            suffixes.insert(0, np.where(table.fits, suffixes[0][table.leaves], 0.0).sum(axis=1))
        return [(int(before.sum()), int(after.max())) for before, after in zip(prefixes, suffixes, strict=True)]

    def _stems(self) -> list[tuple[int, _PartialConfigs]]:
        """The prefixes without a stage, by the shape that they end in."""
        found = []
        for shape in np.unique(self.encoding.stem_shape):
            stems = np.flatnonzero(self.encoding.stem_shape == shape)
            found.append((int(shape), _PartialConfigs((), self.encoding.stem_costs[:, stems], stems[:, None])))
        return found

    def _choices(self, level: int, shape: int) -> Iterator[tuple[int, int, Ints, Ints]]:
        """(unit, next shape, options, their costs): the options of a stage behind a shape, by unit and next shape."""
        table, next_shapes = self.encoding.stages[level], len(self.encoding.space.shapes[level + 1])
        fitting = np.flatnonzero(table.fits[shape])
        kinds = table.unit[fitting] * next_shapes + table.leaves[shape, fitting]
        for kind in np.unique(kinds):
            options = fitting[kinds == kind]
            unit, next_shape = divmod(int(kind), next_shapes)
            yield unit, next_shape, options, table.costs[:, shape, options]

    def _extended(
        self, prefixes: Iterable[tuple[int, _PartialConfigs]], level: int
    ) -> Iterator[tuple[int, _PartialConfigs]]:
        """The prefixes with one more stage, number `level` from 0."""
        for shape, configs in prefixes:
            for unit, next_shape, options, costs in self._choices(level, shape):
                joined = _outer(configs.costs, configs.codes, costs, options[:, None])
                yield next_shape, _PartialConfigs((*configs.units, unit), *joined)

    def _suffixes_by_shape(self, cut: int) -> dict[int, list[_PartialConfigs]]:
        """For each shape that may enter stage `cut` (from 0), and has a suffix, its suffixes, by units."""
        end = self.encoding.end_costs
        suffixes = {
            n: [_PartialConfigs((), end[:, n : n + 1], np.zeros((1, 0), dtype=np.int64))] for n in range(end.shape[1])
        }
        for stage in range(len(self.encoding.stages) - 1, cut - 1, -1):
            shorter, suffixes = suffixes, {}
            for shape in range(len(self.encoding.space.shapes[stage])):
                found = [
                    (0, _PartialConfigs((unit, *rest.units), *_outer(costs, options[:, None], rest.costs, rest.codes)))
                    for unit, next_shape, options, costs in self._choices(stage, shape)
                    for rest in shorter[next_shape]
                ]
                suffixes[shape] = [configs for _, configs in _merged(found)]
        return {shape: found for shape, found in suffixes.items() if found}

    def _sorted(self, group: _Group) -> Ints:
        """Cost and index of each prefix in one integer, ascending; none that every suffix takes beyond `most`."""
        costs = group.costs(self.metric)
        keys = (costs << INDEX_BITS) | np.arange(len(costs))
        least_suffix = min(int(suffixes.costs[self.metric].min()) for suffixes in self._suffixes[group.shape])
        keys = keys[costs <= self.most - least_suffix]
        keys.sort()
        return keys

    # Pairs: a group of prefixes with one suffix.

    @cached_property
    def _pairs(self) -> list[tuple[int, _PartialConfigs]]:
        """(group, suffixes) in the order of the pairs; each suffix of the second is a pair."""
        return [(n, suffixes) for n, group in enumerate(self._groups) for suffixes in self._suffixes[group.shape]]

    @cached_property
    def _pair_starts(self) -> Ints:
        return np.cumsum([0, *(len(suffixes) for _, suffixes in self._pairs)])

    @cached_property
    def strata(self) -> tuple[Units, ...]:
        """Every combination of units, stage by stage, that an architecture is built of."""
        return tuple(sorted({self._units(n, suffixes) for n, suffixes in self._pairs}))

    @cached_property
    def _stratum(self) -> Ints:
        """(pairs,) the place in `strata` of each pair."""
        number = {units: n for n, units in enumerate(self.strata)}
        return np.concatenate([np.full(len(some), number[self._units(n, some)]) for n, some in self._pairs])

    def _units(self, group: int, suffixes: _PartialConfigs) -> Units:
        return (*self._groups[group].units, *suffixes.units)

    def _counts(self, group: int, remaining: Ints) -> Ints:
        """How many prefixes of a group cost at most each of `remaining`."""
        return np.searchsorted(self._keys[group], (np.clip(remaining, -1, self.most) + 1) << INDEX_BITS, side="left")

    def within(self, limit: int) -> Ints:
        """(pairs,) how many architectures of each pair cost at most `limit`."""
        return np.concatenate([self._counts(n, limit - some.costs[self.metric]) for n, some in self._pairs])

    def within_both(self, limit: int, other: Metric, other_limit: int) -> Ints:
        """`within`, counting only those that also cost at most `other_limit` of another metric."""
        counts = [np.zeros(0, dtype=np.int64)]
        second = METRICS.index(other)
        for n, pairs in itertools.groupby(self._pairs, key=lambda pair: pair[0]):
            suffix_costs = np.concatenate([suffixes.costs for _, suffixes in pairs], axis=1)
            others = self._groups[n].costs(second)[self._keys[n] & INDEX]
            ends = self._counts(n, limit - suffix_costs[self.metric])
            counts.append(count_below(others, ends, other_limit - suffix_costs[second]))
        return np.concatenate(counts)

    def extremes(self, limit: int, metric: Metric) -> tuple[int, int]:
        """(least, most) of `metric` among the architectures that cost at most `limit`; there must be one."""
        column = METRICS.index(metric)
        least, most = [], []
        for n, pairs in itertools.groupby(self._pairs, key=lambda pair: pair[0]):
            costs = self._groups[n].costs(column)[self._keys[n] & INDEX]
            low, high = np.minimum.accumulate(costs), np.maximum.accumulate(costs)
            for _, suffixes in pairs:
                ends = self._counts(n, limit - suffixes.costs[self.metric])
                some = ends > 0
                if some.any():
                    least.append(int((low[ends[some] - 1] + suffixes.costs[column][some]).min()))
                    most.append(int((high[ends[some] - 1] + suffixes.costs[column][some]).max()))
        return min(least), max(most)

    def greatest(self, limit: int, other: Metric, other_limit: int) -> int:
        """The greatest cost among the architectures within `limit` and within `other_limit` of another metric.

        There must be one.
        """
        second, found = METRICS.index(other), []
        for n, pairs in itertools.groupby(self._pairs, key=lambda pair: pair[0]):
            others = self._groups[n].costs(second)[self._keys[n] & INDEX]
            for _, suffixes in pairs:
                ends = self._counts(n, limit - suffixes.costs[self.metric])
                last = last_below(others, ends, other_limit - suffixes.costs[second])
                if (last >= 0).any():
                    costs = (self._keys[n][last] >> INDEX_BITS) + suffixes.costs[self.metric]
                    found.append(int(costs[last >= 0].max()))
        return max(found)

    def by_stratum(self, counts: Ints) -> Ints:
        """(strata,) `counts` (pairs,) summed over the pairs of each stratum."""
        found = np.zeros(len(self.strata), dtype=np.int64)
        np.add.at(found, self._stratum, counts)
        return found

    def pairs_of(self, stratum: int) -> Ints:
        """The numbers of the pairs of a stratum."""
        return np.flatnonzero(self._stratum == stratum)

    def member(self, pair: int, place: int) -> Code:
        """The code of the architecture at `place` in the order of cost of those of a pair."""
        block = int(np.searchsorted(self._pair_starts, pair, side="right")) - 1
        group, suffixes = self._pairs[block]
        prefix = self._groups[group].code(int(self._keys[group][place]) & INDEX)
        return (*prefix, *map(int, suffixes.codes[pair - int(self._pair_starts[block])]))


@dataclass(frozen=True)
class Stratum:
    """A set of architectures: of each of `pairs` those from place `starts` on; `ends` (cumulated) says how many."""

    pairs: Ints
    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, pairs: Ints, starts: Ints, counts: Ints) -> Stratum:
        """The architectures of each of `pairs` at the places from `starts` to `starts + counts`."""
        some = counts > 0
        return cls(pairs[some], starts[some], np.cumsum(counts[some]))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def draw(self, rng: np.random.Generator, counter: BudgetCounter) -> Code:
        """One of the set, each equally likely."""
        number = int(rng.integers(len(self)))
        at = int(np.searchsorted(self.ends, number, side="right"))
        before = int(self.ends[at - 1]) if at else 0
        return counter.member(int(self.pairs[at]), int(self.starts[at]) + number - before)


def _outer(costs: Ints, codes: Ints, more_costs: Ints, more_codes: Ints) -> tuple[Ints, Ints]:
    """Each row followed by each other one: summed costs (metrics, n * m), joined codes (n * m, both)."""
    n, m = costs.shape[1], more_costs.shape[1]
    joined = np.concatenate([np.repeat(codes, m, axis=0), np.tile(more_codes, (n, 1))], axis=1)
    return (costs[:, :, None] + more_costs[:, None, :]).reshape(len(costs), n * m), joined


def _merged(parts: Iterable[tuple[int, _PartialConfigs]]) -> list[tuple[int, _PartialConfigs]]:
    """Those of the same shape and the same units as one."""
    found: dict[tuple[int, Units], list[_PartialConfigs]] = {}
    for shape, configs in parts:
        found.setdefault((shape, configs.units), []).append(configs)
    return [
        (
            shape,
            _PartialConfigs(
                units, np.concatenate([c.costs for c in some], 1), np.concatenate([c.codes for c in some], 0)
            ),
        )
        for (shape, units), some in found.items()
    ]


def count_below(values: Ints, ends: Ints, limits: Ints) -> Ints:
    """(queries,) how many of the first `ends` (queries,) of `values` are at most `limits` (queries,).

    Whole blocks of `values` are sorted and searched; of the block that `ends` falls into every value is compared.
    """
    if not len(values):
        return np.zeros(len(ends), dtype=np.int64)
    counts = np.where(limits >= values.max(), ends, 0)
    undecided = (limits < values.max()) & (limits >= values.min())
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        whole = np.flatnonzero(undecided & (ends >= start + len(block)))
        counts[whole] += np.searchsorted(np.sort(block), limits[whole], side="right")
        part = np.flatnonzero(undecided & (ends > start) & (ends < start + len(block)))
        inside = np.arange(len(block))[None, :] < (ends[part] - start)[:, None]
        counts[part] += (inside & (block[None, :] <= limits[part][:, None])).sum(axis=1)
    return counts


def last_below(values: Ints, ends: Ints, limits: Ints) -> Ints:
    """(queries,) the place of the last of the first `ends` of `values` that is at most `limits`; -1 where none is.

    Block by block from the end; a block whose least value is above the limit is skipped.
    """
    found = np.full(len(ends), -1, dtype=np.int64)
    edges = np.arange(0, len(values), BLOCK)
    least = np.minimum.reduceat(values, edges) if len(values) else values
    block, unanswered = (ends - 1) // BLOCK, np.flatnonzero(ends > 0)
    while len(unanswered):
        for query in unanswered[least[block[unanswered]] <= limits[unanswered]]:
            start = int(block[query]) * BLOCK
            hits = np.flatnonzero(values[start : min(start + BLOCK, int(ends[query]))] <= limits[query])
            if len(hits):
                found[query] = start + hits[-1]
        unanswered = unanswered[found[unanswered] < 0]
        block[unanswered] -= 1
        unanswered = unanswered[block[unanswered] >= 0]
    return found
