"""Draw uniformly from the architectures of a space that keep within a budget, though none of them is listed.

Walking the stages backwards, a table holds for every shape that may enter a stage how many completions cost how much,
with costs in cells of a 4,096th of the budget, rounded down. Rounding down makes the tables count a few architectures
too many: those within a few cells above the budget. A draw walks the tables forwards, choice by choice in proportion to
the completions left, and a draw that turns out over budget is thrown away; so what remains is exactly uniform.
With budgets on both params and MACs the tables follow the tighter one and the other one rejects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from igc_nas.config import ArchConfig, StageConfig
from igc_nas.cost import Cost, Shape, cost_of
from igc_nas.errors import InfeasibleError
from igc_nas.space import Metric, SearchSpace, shape_after
from igc_nas.units import exact_count

CELLS = 4096
MOST_REJECTED = 20_000

Counts = NDArray[np.float64]
Ints = NDArray[np.int64]
Choose = Callable[[Counts, Ints, Ints, Ints], int | None]


@dataclass(frozen=True)
class _Level:
    """The options behind one shape: their costs in cells, and the table of the shape that each one leads to."""

    options: tuple[StageConfig, ...]
    cells: Ints
    next_shape: Ints
    macs: Ints


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
                what = "parameters" if metric == "params" else "MACs"
                raise InfeasibleError(
                    f"the smallest architecture in {space.name} has {least:,} {what}; the budget is {limit:,}",
                    f"raise the budget to {exact_count(least)} or more, or choose another space",
                )

    def contains(self, cost: Cost) -> bool:
        """Whether a cost is within the budget."""
        return self.violation(cost) <= 0

    def violation(self, cost: Cost) -> float:
        """The largest relative excess over a limit; 0 or less is within the budget."""
        return max((float(getattr(cost, metric) / limit - 1) for metric, limit in self.limits.items()), default=-1.0)

    def draw(self, rng: np.random.Generator) -> ArchConfig:
        """One architecture, every one within the budget being equally likely."""
        for _ in range(MOST_REJECTED):
            arch = self._propose(rng)
            if self.contains(cost_of(arch)):
                return arch
        raise InfeasibleError(
            f"{MOST_REJECTED:,} uniform draws from {self.space.name} within one budget found none within the other",
            "raise one of the budgets",
        )

    def lightest(self) -> ArchConfig:
        """The architecture within the budget with the fewest MACs, by draws where the one of the space is too big."""
        smallest = self.space.smallest("macs")
        if self.contains(cost_of(smallest)):
            return smallest
        return min(self._some(), key=lambda arch: cost_of(arch).macs)

    def heaviest(self) -> ArchConfig:
        """The architecture within the budget with the most MACs, up to the rounding of the cells.

        A knapsack over the stages, costs rounded up; with two budgets that bind, the best of some uniform draws.
        """
        largest = self.space.largest("macs")
        if self.contains(cost_of(largest)):
            return largest
        arch = self._knapsack()
        if arch is not None and self.contains(cost_of(arch)):
            return arch
        return max(self._some(), key=lambda arch: cost_of(arch).macs)

    def _some(self, count: int = 1000) -> list[ArchConfig]:
        rng = np.random.default_rng(0)
        return [self.draw(rng) for _ in range(count)]

    def _knapsack(self) -> ArchConfig | None:
        best = [np.full((len(self.space.shapes[-1]), CELLS), -np.inf)]
        for row, last in zip(best[0], self.space.shapes[-1], strict=True):
            row[self._cells(self.space.end_cost(last)) + 1 :] = 0
        for level in reversed(self._levels):
            table = np.full((len(level), CELLS), -np.inf)
            for row, entry in zip(table, level.values(), strict=True):
                for cell, shape, macs in zip(entry.cells + 1, entry.next_shape, entry.macs, strict=True):
                    if cell < CELLS:
                        np.maximum(row[cell:], macs + best[0][shape, : CELLS - cell], out=row[cell:])
            best.insert(0, table)
        return self._walk(_best, best, round_up=1)

    @cached_property
    def _metric(self) -> Metric:
        share: dict[Metric, float] = {
            m: limit / getattr(cost_of(self.space.largest(m)), m) for m, limit in self.limits.items()
        }
        return min(share, key=lambda m: share[m]) if share else "params"

    @cached_property
    def _most(self) -> int:
        """The budget on the tables' metric, or the most that the space can cost."""
        largest: int = getattr(cost_of(self.space.largest(self._metric)), self._metric)
        return min(self.limits.get(self._metric, largest), largest)

    @cached_property
    def _unit(self) -> int:
        """Cost of one cell."""
        return max(1, -(-self._most // (CELLS - 1)))

    def _cells(self, cost: Cost) -> int:
        return int(getattr(cost, self._metric) // self._unit)

    @cached_property
    def _levels(self) -> list[dict[Shape, _Level]]:
        """For each stage and each shape that enters it, the options with their cells."""
        levels = []
        for stage, entering, leaving in zip(
            self.space.stages, self.space.shapes[:-1], self.space.shapes[1:], strict=True
        ):
            number_of = {shape: number for number, shape in enumerate(leaving)}
            level = {}
            for shape in entering:
                found = stage.priced(shape)
                level[shape] = _Level(
                    tuple(option for option, _ in found),
                    np.array([self._cells(cost) for _, cost in found], dtype=np.int64),
                    np.array([number_of[shape_after(option, shape)] for option, _ in found], dtype=np.int64),
                    np.array([cost.macs for _, cost in found], dtype=np.int64),
                )
            levels.append(level)
        return levels

    @cached_property
    def _completions(self) -> list[Counts]:
        """For each stage, and last for the end: (shapes, CELLS) completions that cost at most so many cells."""
        tables = [np.zeros((len(self.space.shapes[-1]), CELLS))]
        for row, last in zip(tables[0], self.space.shapes[-1], strict=True):
            row[self._cells(self.space.end_cost(last)) :] = 1
        for level in reversed(self._levels):
            behind = tables[0]
            table = np.zeros((len(level), CELLS))
            for row, entry in zip(table, level.values(), strict=True):
                for (cell, shape), times in _distinct(entry):
                    if cell < CELLS:
                        row[cell:] += times * behind[shape, : CELLS - cell]
            tables.insert(0, table)
        return tables

    def _propose(self, rng: np.random.Generator) -> ArchConfig:
        arch = self._walk(lambda table, shapes, left, macs: _pick(rng, table, shapes, left), self._completions)
        assert arch is not None
        return arch

    def _walk(self, choose: Choose, tables: list[Counts], round_up: int = 0) -> ArchConfig | None:
        """Walk the stages forwards, taking the option that `choose` says; None where it finds none.

        `round_up` is added to every cost in cells: 1 keeps the sum on the safe side of the budget.
        """
        numbers = {shape: number for number, shape in enumerate(self.space.shapes[0])}
        costs = [self.space.stem_cost(stem) for stem in self.space.stems]
        left = np.array([self._most // self._unit - self._cells(cost) - round_up for cost in costs])
        shapes = np.array([numbers[self.space.shape_after_stem(stem)] for stem in self.space.stems])
        choice = choose(tables[0], shapes, left, np.array([cost.macs for cost in costs]))
        if choice is None:
            return None
        stem, remaining = self.space.stems[choice], int(left[choice])
        shape = self.space.shape_after_stem(stem)
        stages = []
        for level, behind in zip(self._levels, tables[1:], strict=True):
            entry = level[shape]
            choice = choose(behind, entry.next_shape, remaining - entry.cells - round_up, entry.macs)
            if choice is None:
                return None
            remaining -= int(entry.cells[choice]) + round_up
            stages.append(entry.options[choice])
            shape = shape_after(stages[-1], shape)
        return self.space.architecture(stem, stages)


def _distinct(entry: _Level) -> list[tuple[tuple[int, int], int]]:
    pairs, times = np.unique(np.stack([entry.cells, entry.next_shape], axis=1), axis=0, return_counts=True)
    return [((int(cell), int(shape)), int(n)) for (cell, shape), n in zip(pairs, times, strict=True)]


def _pick(rng: np.random.Generator, table: Counts, shapes: Ints, left: Ints) -> int:
    """An index in proportion to the completions behind `shapes` that cost at most `left` cells."""
    weights = np.where(left >= 0, table[shapes, np.maximum(left, 0)], 0.0)
    ends = np.cumsum(weights)
    return int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))


def _best(table: Counts, shapes: Ints, left: Ints, macs: Ints) -> int | None:
    """The index with the most MACs, its own and those behind it, that `left` cells leave room for."""
    totals = np.where(left >= 0, macs + table[shapes, np.maximum(left, 0)], -np.inf)
    choice = int(np.argmax(totals))
    return choice if np.isfinite(totals[choice]) else None
