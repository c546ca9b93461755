"""The number of paths that join a unit's channels, and the papers' complementary conditions, from the plan.

A path leads from an input to an output channel through one channel of every layer between them. Paths are counted in a
unit that keeps its width: the condition is about the unit, not about where a stage widens.

    strict: exactly one path joins each (input, output) pair   (IGCV2, section 3: the complementary condition)
    loose:  at least one does                                  (IGCV3, section 3: the same over super-channels)

IGCV1, IGCV2 without `K` and the regular convolution are strict. IGCV3 has expand * C / (G1 G2) paths per pair where
that is a whole number, so it is strict only at G1 G2 = expand * C.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from igc_nas.arch.layers import Conv, Interleave, Layer
from igc_nas.arch.stages import Igcv3Stage, StageConfig, describe_stage
from igc_nas.arch.units import igcv3_layers, unit_layers

Condition = Literal["strict", "loose", "any"]
MAX_ENTRIES = 2**20
"""Entries of a path matrix in memory at a time (8 MB)."""


def complementary(stage: StageConfig) -> Literal["strict", "loose"] | None:
    """The strongest condition that a stage's unit meets; strict implies loose."""
    least, most = path_counts(stage)
    if least == most == 1:
        return "strict"
    return "loose" if least else None


def unmet(stage: StageConfig, condition: Condition) -> str | None:
    """Why a stage does not meet `condition`; None where it does."""
    if condition == "any" or complementary(stage) in ("strict", condition):
        return None
    least, most = path_counts(stage)
    found = f"{least}" if least == most else f"{least} to {most}"
    required = "exactly 1" if condition == "strict" else "at least 1"
    return (
        f"{describe_stage(stage)} has {found} paths per channel pair; complementary = {condition!r} requires {required}"
    )


def path_counts(stage: StageConfig) -> tuple[int, int]:
    """(least, most) paths that join an input with an output channel of the stage's unit where it keeps its width.

    An IGCV3 unit's paths go through all of its layers: BN and the activation join no channels. (0, 0) where G1 does not
    divide the width, so that an IGCV3 unit cannot keep it.
    """
    return _path_counts(stage.model_copy(update={"kernel": 1, "stride": 1, "blocks": 1, "residual": False}))


@lru_cache(maxsize=65_536)
def _path_counts(stage: StageConfig) -> tuple[int, int]:
    width = stage.width
    if stage.problem(width):
        return 0, 0
    layers = igcv3_layers(stage, width, 1) if isinstance(stage, Igcv3Stage) else unit_layers(stage, width, 1)
    convs = [layer for layer in layers if isinstance(layer, Conv)]
    columns = max(1, MAX_ENTRIES // max(conv.out_channels for conv in convs))
    # An upper bound of the paths to one output channel; beyond 64 bits numpy counts with Python's integers.
    exact = np.int64 if prod(conv.in_channels // conv.groups for conv in convs) < 2**63 else object
    least, most = [], []
    for first in range(0, width, columns):
        paths = np.eye(width, min(columns, width - first), -first, dtype=exact)
        for layer in layers:
            paths = _through(layer, paths)
        least.append(int(paths.min()))
        most.append(int(paths.max()))
    return min(least), max(most)


def _through(layer: Layer, paths: NDArray[Any]) -> NDArray[Any]:
    """The layer as a 0-1 matrix times `paths`, (channels, input channels): blocks of ones, or a permutation."""
    inputs = paths.shape[1]
    match layer:
        case Conv(_, c_in, c_out, _, _, groups):
            sums = paths.reshape(groups, c_in // groups, inputs).sum(axis=1)
            return np.repeat(sums, c_out // groups, axis=0)
        case Interleave(channels, groups):
            return paths.reshape(groups, channels // groups, inputs).swapaxes(0, 1).reshape(channels, inputs)
    return paths
