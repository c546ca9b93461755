"""Draw uniformly from the architectures of a space that keep within a budget, though none of them is listed.

Walking the stages backwards, a table holds for every shape that may enter a stage how many completions cost how much,
with costs in cells of a 4,096th of the budget, rounded down. Rounding down makes the tables count a few architectures
too many: those within a few cells above the budget. A draw walks the tables forwards, choice by choice in proportion to
the completions left, and a draw that turns out over budget is thrown away; so what remains is exactly uniform.
With budgets on both params and MACs the tables follow the tighter one and the other one rejects.
"""

from __future__ import annotations

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
MOST_REJECTED = 200_000

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """The options behind one shape: their costs in cells, and the table of the shape that each one leads to."""

    options: tuple[StageConfig, ...]
    cells: NDArray[np.int64]
    next_shape: NDArray[np.int64]


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
        numbers = {shape: number for number, shape in enumerate(self.space.shapes[0])}
        left = np.array(
            [self._most // self._unit - self._cells(self.space.stem_cost(stem)) for stem in self.space.stems]
        )
        shapes = np.array([numbers[self.space.shape_after_stem(stem)] for stem in self.space.stems])
        choice = _pick(rng, self._completions[0], shapes, left)
        stem, remaining = self.space.stems[choice], int(left[choice])
        shape = self.space.shape_after_stem(stem)
        stages = []
        for level, behind in zip(self._levels, self._completions[1:], strict=True):
            entry = level[shape]
            choice = _pick(rng, behind, entry.next_shape, remaining - entry.cells)
            remaining -= int(entry.cells[choice])
            stages.append(entry.options[choice])
            shape = shape_after(stages[-1], shape)
        return self.space.architecture(stem, stages)


def _distinct(entry: _Level) -> list[tuple[tuple[int, int], int]]:
    pairs, times = np.unique(np.stack([entry.cells, entry.next_shape], axis=1), axis=0, return_counts=True)
    return [((int(cell), int(shape)), int(n)) for (cell, shape), n in zip(pairs, times, strict=True)]


def _pick(rng: np.random.Generator, table: Counts, shapes: NDArray[np.int64], left: NDArray[np.int64]) -> int:
    """An index in proportion to the completions behind `shapes` that cost at most `left` cells."""
    weights = np.where(left >= 0, table[shapes, np.maximum(left, 0)], 0.0)
    ends = np.cumsum(weights)
    return int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
