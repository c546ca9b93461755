"""A space as arrays: options and stems by number, an architecture as a row of numbers, its costs by lookup.

A *code* is (number of the stem, number of the option of stage 1, of stage 2, ...). Thousands of codes are priced in one
call; samplers, mutations and counts work on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost
from igc_nas.arch.stages import UNITS, StageConfig
from igc_nas.space.search_space import METRICS, Frame, SearchSpace

Ints = NDArray[np.int64]
Code = tuple[int, ...]


@dataclass(frozen=True)
class PricedCodes:
    """Architectures as `codes` (n, 1 + stages), with their `costs` (n, metrics)."""

    codes: Ints
    costs: Ints

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[Code]:
        return map(tuple, self.codes.tolist())

    def __add__(self, other: PricedCodes) -> PricedCodes:
        return PricedCodes(np.concatenate([self.codes, other.codes]), np.concatenate([self.costs, other.costs]))

    def rows(self, which: Ints) -> PricedCodes:
        """Some of the rows."""
        return PricedCodes(self.codes[which], self.costs[which])

    def cost(self, name: str) -> Ints:
        """(n,) one cost: params, macs, flops or activations."""
        if name == "flops":
            return 2 * self.cost("macs")
        metrics: tuple[str, ...] = METRICS
        return self.costs[:, metrics.index(name)]


@dataclass(frozen=True)
class StageTable:
    """A stage's options in order. Arrays are over (shapes that may enter the stage, options).

    `fits`: the option fits behind the shape, and no earlier option builds the same network there. Only there `costs`
    (metric first: params, macs, activations) and `leaves` (the number of the stage's output shape) are defined.
    """

    options: tuple[StageConfig, ...]
    unit: Ints
    """(options,) the unit's place in UNITS."""
    fits: NDArray[np.bool_]
    costs: Ints
    leaves: Ints


class SpaceEncoding:
    """The options of `space`, numbered and priced."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.stages = tuple(self._table(number) for number in range(len(space.stages)))
        self.stem_costs = np.array([_counts(space.stem_cost(frame)) for frame in space.frames]).T
        self.stem_shape = np.array([space.shapes[0].index(space.shape_after_stem(frame)) for frame in space.frames])
        self.end_costs = np.array([_counts(space.end_cost(shape)) for shape in space.shapes[-1]]).T

    def _table(self, number: int) -> StageTable:
        stage, entering, leaving = self.space.stages[number], *self.space.shapes[number : number + 2]
        number_of = {option: place for place, option in enumerate(stage.options)}
        leaving_number = {shape: place for place, shape in enumerate(leaving)}
        size = (len(entering), len(number_of))
        fits, leaves = np.zeros(size, dtype=bool), np.zeros(size, dtype=np.int64)
        costs = np.zeros((len(METRICS), *size), dtype=np.int64)
        for row, shape in enumerate(entering):
            found = stage.priced(shape)
            at = [number_of[option] for option, _, _ in found]
            fits[row, at] = True
            leaves[row, at] = [leaving_number[after] for _, _, after in found]
            costs[:, row, at] = np.array([_counts(cost) for _, cost, _ in found]).T
        unit = np.array([UNITS.index(option.unit) for option in number_of])
        return StageTable(tuple(number_of), unit, fits, costs, leaves)

    @cached_property
    def numbers(self) -> tuple[dict[StageConfig, int], ...]:
        """For each stage the number of each option."""
        return tuple({option: n for n, option in enumerate(table.options)} for table in self.stages)

    def price(self, codes: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """(which of `codes` (n, 1 + stages) are architectures of the space (n,), their costs (n, metrics))."""
        shape, costs = self.stem_shape[codes[:, 0]], self.stem_costs[:, codes[:, 0]].copy()
        valid = np.ones(len(codes), dtype=bool)
        for table, option in zip(self.stages, codes[:, 1:].T, strict=True):
            valid &= table.fits[shape, option]
            costs += table.costs[:, shape, option]
            shape = table.leaves[shape, option]
        return valid, (costs + self.end_costs[:, shape]).T

    def priced(self, codes: Sequence[Code] | Ints) -> PricedCodes:
        """Valid codes with their costs."""
        array = np.array(codes, dtype=np.int64).reshape(len(codes), 1 + len(self.stages))
        return PricedCodes(array, self.price(array)[1])

    def architecture(self, code: Sequence[int]) -> ArchConfig:
        """The architecture of a valid code (see `price`)."""
        stages = tuple(table.options[n] for table, n in zip(self.stages, code[1:], strict=True))
        # Its parts are valid and fit together; without validation a draw is much faster.
        return ArchConfig.model_construct(
            input=self.space.file.input,
            classes=self.space.classes,
            stem=self.space.frames[code[0]].stem,
            stages=stages,
            head=self.space.frames[code[0]].head,
        )

    def code(self, arch: ArchConfig) -> Code | None:
        """The code of an architecture; None where it is not of the space.

        Where several configurations build one network, the space counts the first, and all have its code."""
        file = self.space.file
        if (arch.input, arch.classes) != (file.input, self.space.classes):
            return None
        frame = self.space.counted_frame(Frame(arch.stem, arch.head))
        if frame is None or len(arch.stages) != len(self.stages):
            return None
        numbers = [self.space.frames.index(frame)]
        shape = int(self.stem_shape[numbers[0]])
        for level, (table, stage) in enumerate(zip(self.stages, arch.stages, strict=True)):
            number = self.numbers[level].get(stage)
            if number is None:
                return None
            if not table.fits[shape, number]:
                width = self.space.shapes[level][shape][0]
                counted = self.space.stages[level].counted(stage, width)
                if counted is None:
                    return None
                number = self.numbers[level][counted]
            numbers.append(number)
            shape = int(table.leaves[shape, number])
        return tuple(numbers)


def _counts(cost: Cost) -> tuple[int, ...]:
    return tuple(getattr(cost, metric) for metric in METRICS)
