"""Mutation and crossover of architectures, as codes: used by evolution and to maximise the acquisition function."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from igc_nas.space.encoding import Ints, PricedCodes, SpaceEncoding
from igc_nas.space.feasible import Feasible

NEAR = 0.6
"""Share of the mutations that change one parameter of a stage; the others draw any option of the stage."""
SECOND = 0.3
"""Probability of a second mutation of the same child."""


class Mutator:
    """Mutates and recombines codes of a space, and keeps those within the budget."""

    def __init__(self, feasible: Feasible) -> None:
        self.feasible = feasible
        self.encoding: SpaceEncoding = feasible.encoding

    @cached_property
    def _keys(self) -> list[Ints]:
        """For each stage (options, parameters): the values of its options as numbers, the unit first."""
        tables = []
        for table in self.encoding.stages:
            rows = [[("unit", option.unit), *sorted(vars(option).items())] for option in table.options]
            width = max(map(len, rows))
            columns = [[row[i] if i < len(row) else None for row in rows] for i in range(width)]
            tables.append(np.array([_numbered(column) for column in columns]).T)
        return tables

    def neighbours(self, level: int, option: int) -> Ints:
        """The options of a stage that have the same unit as `option` and differ from it in one parameter."""
        keys = self._keys[level]
        same = (keys[:, 0] == keys[option, 0]) & ((keys != keys[option]).sum(axis=1) == 1)
        return np.flatnonzero(same)

    def mutate(self, codes: Ints, count: int, rng: np.random.Generator) -> Ints:
        """(count, 1 + stages) mutations of rows of `codes` drawn at random; some may be invalid."""
        children = codes[rng.integers(len(codes), size=count)].copy()
        for child in children:
            for _ in range(1 + int(rng.random() < SECOND)):
                self._mutate(child, rng)
        return children

    def _mutate(self, child: Ints, rng: np.random.Generator) -> None:
        place = int(rng.integers(len(child)))
        if place == 0:
            if len(self.encoding.stem_shape) > 1:
                child[0] = rng.integers(len(self.encoding.stem_shape))
                return
            place = int(rng.integers(1, len(child)))
        near = self.neighbours(place - 1, int(child[place]))
        if len(near) and rng.random() < NEAR:
            child[place] = near[rng.integers(len(near))]
        else:
            unit = self.encoding.stages[place - 1].unit
            of_unit = np.flatnonzero(unit == rng.choice(np.unique(unit)))
            child[place] = of_unit[rng.integers(len(of_unit))]

    def crossover(self, codes: Ints, count: int, rng: np.random.Generator) -> Ints:
        """(count, 1 + stages) uniform crossover of two random rows of `codes` each; some may be invalid."""
        one, other = (codes[rng.integers(len(codes), size=count)] for _ in range(2))
        return np.where(rng.random(one.shape) < 0.5, one, other)

    def kept(self, codes: Ints) -> PricedCodes:
        """The rows that are valid and within the budget, sorted, without duplicates."""
        codes = np.unique(codes, axis=0)
        valid, costs = self.encoding.price(codes)
        valid &= self.feasible.budget.allows(costs)
        return PricedCodes(codes[valid], costs[valid])


def _numbered(column: Sequence[object]) -> list[int]:
    number: dict[object, int] = {}
    return [number.setdefault(value, len(number)) for value in column]
