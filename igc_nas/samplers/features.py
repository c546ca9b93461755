"""Features of an architecture for a surrogate: numbers that are known exactly before the network is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from igc_nas.arch.layers import convolutions
from igc_nas.arch.stages import UNITS, Igcv1Stage, Igcv2Stage, Igcv3Stage, StageConfig
from igc_nas.arch.units import stage_layers
from igc_nas.space.encoding import Ints, PricedCodes, SpaceEncoding

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Inputs:
    """Features of n architectures: `whole` (n, features of the network), `parts` (n, features of its stages)."""

    whole: Floats
    parts: Floats

    def __len__(self) -> int:
        return len(self.whole)

    def rows(self, which: Ints) -> Inputs:
        """Some of the rows."""
        return Inputs(self.whole[which], self.parts[which])


class Features:
    """Features of the codes of a space.

    Of the whole network: log params, log MACs, log activations, log number of convolutions (each is at least one
    kernel launch, so it predicts latency). Of each stage: its unit (one-hot), log width, blocks, kernel, residual, log
    channels per group, log of its MACs. SE, activation and the head's pooling are features where they are choices.
    """

    def __init__(self, encoding: SpaceEncoding) -> None:
        self.encoding = encoding

    @cached_property
    def _options(self) -> list[Floats]:
        return [_of_options(table.options) for table in self.encoding.stages]

    @cached_property
    def _convolutions(self) -> list[Floats]:
        return [np.array([_convolutions(option) for option in table.options]) for table in self.encoding.stages]

    @cached_property
    def _stems(self) -> Floats:
        """(frames, features of the stem and the head)."""
        space = self.encoding.space
        widths = np.log([[frame.stem.width] for frame in space.frames])
        if len(space.heads) == 1:
            return widths
        gdc = [[float(frame.head is not None and frame.head.pool == "gdc")] for frame in space.frames]
        return np.concatenate([widths, gdc], axis=1)

    def of(self, archs: PricedCodes) -> Inputs:
        """The features of architectures."""
        codes = archs.codes
        whole, parts = [np.log(archs.costs)], [self._stems[codes[:, 0]]]
        convolutions = np.ones(len(codes))
        shape = self.encoding.stem_shape[codes[:, 0]]
        for level, (table, option) in enumerate(zip(self.encoding.stages, codes[:, 1:].T, strict=True)):
            convolutions += self._convolutions[level][option]
            macs = np.log(np.maximum(1, table.costs[1, shape, option]))
            parts += [self._options[level][option], macs[:, None]]
            shape = table.leaves[shape, option]
        whole.append(np.log(convolutions)[:, None])
        return Inputs(np.concatenate(whole, axis=1), np.concatenate(parts, axis=1))


@lru_cache(maxsize=4)
def features_of(encoding: SpaceEncoding) -> Features:
    """The `Features` of an encoding, cached: the tables of its options take some tenths of a second."""
    return Features(encoding)


def _of_options(options: Sequence[StageConfig]) -> Floats:
    """(options, features); those of SE and of activations only where they are choices of the stage."""
    found = [_of_stage(option) for option in options]
    if any(option.se for option in options):
        found = [[*row, _squeezed(option)] for row, option in zip(found, options, strict=True)]
    for kind in ("relu6", "hswish", "prelu"):
        if any(option.activation == kind for option in options):
            found = [[*row, float(option.activation == kind)] for row, option in zip(found, options, strict=True)]
    return np.array(found)


def _squeezed(stage: StageConfig) -> float:
    """The share of the channels that SE squeezes them to; 0 without SE."""
    return 1 / stage.squeeze_excitation.ratio if stage.squeeze_excitation else 0.0


def _of_stage(stage: StageConfig) -> list[float]:
    unit = [float(stage.unit == name) for name in UNITS]
    common = [*unit, np.log(stage.width), np.log2(stage.blocks), stage.kernel / 2, float(stage.residual)]
    return [*common, *_of_unit(stage)]


def _of_unit(stage: StageConfig) -> tuple[float, float]:
    """Of the unit's own parameters: (log channels per group, log of the inner width or of the chain's depth)."""
    match stage:
        case Igcv1Stage():
            return np.log(stage.M), np.log(stage.L)
        case Igcv2Stage():
            return np.log(stage.channels_per_group[0]), np.log(stage.depth)
        case Igcv3Stage():
            return -np.log(stage.G1 * stage.G2), np.log(stage.expand)
        case _:
            return 0.0, 0.0


def _convolutions(stage: StageConfig) -> float:
    first, rest = stage_layers(stage, stage.width)
    return convolutions(first) + (stage.blocks - 1) * convolutions(rest)
