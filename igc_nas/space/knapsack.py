"""Draws within a budget from spaces too large to count exactly, and the heaviest architecture within one.

Dynamic programming over the stages, from the last to the first: for every shape that may enter a stage, a table holds
the number of completions up to each cost, with costs in cells of a 4,096th of the budget, rounded down. So the tables
also count architectures up to a few cells over budget. A draw walks the tables forwards and takes each option with a
probability in proportion to its completions; the caller rejects draws over budget, so accepted ones are uniform.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost
from igc_nas.arch.shapes import Shape
from igc_nas.arch.stages import StageConfig
from igc_nas.space.search_space import Metric, SearchSpace, shape_after

CELLS = 4096

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


class KnapsackSampler:
    """Tables of the completions of `space`, by their `metric` up to `most`."""

    def __init__(self, space: SearchSpace, metric: Metric, most: int) -> None:
        self.space = space
        self._metric = metric
        self._most = most
        self._unit = max(1, -(-most // (CELLS - 1)))
        """Cost of one cell."""

    def propose(self, rng: np.random.Generator) -> ArchConfig:
        """An architecture within `most` or a few cells above; all within `most` are equally likely."""
        arch = self._walk(lambda table, shapes, left, macs: _pick(rng, table, shapes, left), self._completions)
        assert arch is not None
        return arch

    def heaviest(self) -> ArchConfig | None:
        """The architecture within `most` with the most MACs, up to rounding: a knapsack with costs rounded up."""
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
                    tuple(option for option, _, _ in found),
                    np.array([self._cells(cost) for _, cost, _ in found], dtype=np.int64),
                    np.array([number_of[after] for _, _, after in found], dtype=np.int64),
                    np.array([cost.macs for _, cost, _ in found], dtype=np.int64),
                )
            levels.append(level)
        return levels

    @cached_property
    def _completions(self) -> list[Counts]:
        """For each stage and for the end: (shapes, CELLS) the number of completions of at most 0, 1, ... cells."""
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

    def _walk(self, choose: Choose, tables: list[Counts], round_up: int = 0) -> ArchConfig | None:
        """Walk the stages forwards, taking the options that `choose` returns; None as soon as it returns None.

        `round_up` is added to every cost in cells: 1 keeps the sum within budget.
        """
        numbers = {shape: number for number, shape in enumerate(self.space.shapes[0])}
        costs = [self.space.stem_cost(frame) for frame in self.space.frames]
        left = np.array([self._most // self._unit - self._cells(cost) - round_up for cost in costs])
        shapes = np.array([numbers[self.space.shape_after_stem(frame)] for frame in self.space.frames])
        choice = choose(tables[0], shapes, left, np.array([cost.macs for cost in costs]))
        if choice is None:
            return None
        frame, remaining = self.space.frames[choice], int(left[choice])
        shape = self.space.shape_after_stem(frame)
        stages = []
        for level, behind in zip(self._levels, tables[1:], strict=True):
            entry = level[shape]
            choice = choose(behind, entry.next_shape, remaining - entry.cells - round_up, entry.macs)
            if choice is None:
                return None
            remaining -= int(entry.cells[choice]) + round_up
            stages.append(entry.options[choice])
            shape = shape_after(stages[-1], shape)
        return self.space.architecture(frame, stages)


def _distinct(entry: _Level) -> list[tuple[tuple[int, int], int]]:
    pairs, times = np.unique(np.stack([entry.cells, entry.next_shape], axis=1), axis=0, return_counts=True)
    return [((int(cell), int(shape)), int(n)) for (cell, shape), n in zip(pairs, times, strict=True)]


def _pick(rng: np.random.Generator, table: Counts, shapes: Ints, left: Ints) -> int:
    """An index in proportion to the completions behind `shapes` that cost at most `left` cells."""
    weights = np.where(left >= 0, table[shapes, np.maximum(left, 0)], 0.0)
    ends = np.cumsum(weights)
    return int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))


def _best(table: Counts, shapes: Ints, left: Ints, macs: Ints) -> int | None:
    """The index with the most MACs, its own and those of its completion, among those that fit into `left` cells."""
    totals = np.where(left >= 0, macs + table[shapes, np.maximum(left, 0)], -np.inf)
    choice = int(np.argmax(totals))
    return choice if np.isfinite(totals[choice]) else None
