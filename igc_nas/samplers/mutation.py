"""Small changes of architectures, as codes: what evolution and the search for the best acquisition are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from igc_nas.space.encoding import Ints, SpaceEncoding
from igc_nas.space.feasible import Feasible

NEAR = 0.6
"""Share of the mutations that change one key of a stage; the others take any option of the stage."""


class Mutator:
    """Mutations and crossings of codes that keep within `feasible`."""

    def __init__(self, feasible: Feasible) -> None:
        self.feasible = feasible
        self.encoding: SpaceEncoding = feasible.encoding

    @cached_property
    def _keys(self) -> list[Ints]:
        """For each stage (options, keys) its options' values by number, the unit among them."""
        tables = []
        for table in self.encoding.stages:
            rows = [[("unit", option.unit), *sorted(option.model_dump().items())] for option in table.options]
            width = max(map(len, rows))
            columns = [[row[i] if i < len(row) else None for row in rows] for i in range(width)]
            tables.append(np.array([_numbered(column) for column in columns]).T)
        return tables

    def neighbours(self, level: int, option: int) -> Ints:
        """The options of a stage that differ from one in a single key, of the same unit."""
        keys = self._keys[level]
        same = (keys[:, 0] == keys[option, 0]) & ((keys != keys[option]).sum(axis=1) == 1)
        return np.flatnonzero(same)

    def mutate(self, codes: Ints, count: int, rng: np.random.Generator) -> Ints:
        """(count, 1 + stages) mutations of rows of `codes` drawn at random; valid or not."""
        children = codes[rng.integers(len(codes), size=count)].copy()
        for child in children:
            for _ in range(1 + int(rng.random() < 0.3)):
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
            alike = np.flatnonzero(unit == rng.choice(np.unique(unit)))
            child[place] = alike[rng.integers(len(alike))]

    def crossover(self, codes: Ints, count: int, rng: np.random.Generator) -> Ints:
        """(count, 1 + stages) rows that take each place from one of two rows of `codes`; valid or not."""
        one, other = (codes[rng.integers(len(codes), size=count)] for _ in range(2))
        return np.where(rng.random(one.shape) < 0.5, one, other)

    def kept(self, codes: Ints) -> tuple[Ints, Ints]:
        """(codes, costs) of those that are architectures within the budget, each once."""
        codes = np.unique(codes, axis=0)
        valid, costs = self.encoding.price(codes)
        valid &= self.feasible.budget.allows(costs)
        return codes[valid], costs[valid]


def _numbered(column: Sequence[object]) -> list[int]:
    number: dict[object, int] = {}
    return [number.setdefault(value, len(number)) for value in column]
