"""How a convolution's output row is cut into register tiles: vectors of outputs x pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from operator import itemgetter

from igc_nas.nn.codegen.orders import padded, positions
from igc_nas.nn.codegen.program import ConvRow, Way, merged

OUTS, MOST_PIXELS = (1, 2, 3, 4, 5, 6, 8), 14
MOST_SUMS: dict[Way, int] = {"outputs": 16, "groups": 20}
"""Sums of a tile: more of them hide no more latency, and compilers move them between registers."""


@dataclass(frozen=True)
class Tile:
    """`target`: the position of the tile's first output lane; `source`: that of its first input."""

    target: int
    source: int


@dataclass(frozen=True)
class Tiling:
    """Tiles of `outs` vectors, `out_step` positions apart, x `pixels` pixels.

    `terms`: (count, step) pairs, outermost first, that say where a tile's inputs lie behind `source`; `sorted_inputs`
    has, for each (merged) group, the input channels of the convolution in that order; None: those of each lane's group.
    """

    lanes: int
    outs: int
    pixels: int
    out_step: int
    tiles: tuple[Tile, ...]
    terms: tuple[tuple[int, int], ...]
    broadcast: bool
    sorted_inputs: tuple[tuple[int, ...], ...] | None = None
    offsets: tuple[tuple[int, ...], ...] | None = None
    """Where `terms` are no regular nest: for each tile the inputs' places behind `source`."""
    window: bool = False
    """Whether the registers also hold the weights of all taps of a row: each input of it is then loaded once."""

    @property
    def inputs(self) -> int:
        """How many inputs a tile sums over for each tap."""
        return prod(count for count, _ in self.terms)


def tiling(row: ConvRow, width: int, lanes: int, registers: int) -> Tiling:
    """The tiling of a convolution that writes rows of `width` pixels, on a machine with `registers` vectors."""
    cut = _along_outputs if row.way == "outputs" else _along_groups
    return cut(row, width, lanes, registers)


def _shape(row: ConvRow, vectors: int, width: int, lanes: int, registers: int) -> tuple[int, int, bool]:
    """(outputs, pixels, window) of a tile: the most products for each load, while sums, weights and one input fit.

    The constants are of the times of 7,723 kernels on a Zen 4 (gcc 12). With each layer's own fastest tile the
    benchmark's networks are 1 % faster (`studies/README.md`).
    """
    kernel, stride = row.conv.kernel, row.conv.stride
    depthwise = row.conv.groups == row.conv.in_channels
    best, found = -1.0, (1, 1, False)
    for outs in OUTS:
        for pixels in range(1, min(MOST_PIXELS, width) + 1):
            sums, covered = outs * pixels, width / (-(-width // pixels) * pixels)
            if vectors % outs or sums > MOST_SUMS[row.way]:
                continue
            if sums + outs + 1 <= registers:
                worth = sums / (outs + pixels) * covered
                if row.way == "groups" and kernel == 1:
                    worth *= 1 + 0.3 * outs  # fewer passes over the inputs
                best, found = max((best, found), (worth, (outs, pixels, False)), key=itemgetter(0))
            fits = kernel > 1 and sums + kernel * outs + 1 <= registers
            if row.way == "groups" and fits and not (depthwise and lanes == 16):
                worth = sums * kernel / (kernel * outs + (pixels - 1) * stride + kernel) * covered
                best, found = max((best, found), (worth, (outs, pixels, True)), key=itemgetter(0))
    return found


def _along_outputs(row: ConvRow, width: int, lanes: int, registers: int) -> Tiling:
    count, size_in, size_out = merged(row.conv, lanes)
    depth = padded(size_out, lanes)
    outs, pixels, _ = _shape(row, depth // lanes, width, lanes, registers)
    where = positions(row.source)
    groups = [sorted(range(g * size_in, (g + 1) * size_in), key=where.__getitem__) for g in range(count)]
    starts = [where[group[0]] for group in groups]
    shapes = [tuple(where[c] - where[group[0]] for c in group) for group in groups]
    terms = nest(shapes[0]) if len(set(shapes)) == 1 else None
    cells = [(g, first) for g in range(count) for first in range(0, depth // lanes, outs)]
    tiles = tuple(Tile(g * depth + first * lanes, starts[g]) for g, first in cells)
    inputs = tuple(map(tuple, groups))
    if terms is not None:
        return Tiling(lanes, outs, pixels, lanes, tiles, terms, True, inputs)
    offsets = tuple(shapes[g] for g, _ in cells)
    return Tiling(lanes, outs, pixels, lanes, tiles, ((size_in, 1),), True, inputs, offsets)


def _along_groups(row: ConvRow, width: int, lanes: int, registers: int) -> Tiling:
    conv = row.conv
    size_in, size_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    if size_in == size_out == 1:  # any order: a vector of outputs is made of the vector of inputs in the same place
        vectors = len(row.target) // lanes
        outs, pixels, window = _shape(row, 1, width, lanes, registers)
        tiles = tuple(Tile(v * lanes, v * lanes) for v in range(vectors))
        return Tiling(lanes, outs, pixels, lanes, tiles, ((1, 0),), False, window=window)
    depth = padded(conv.groups, lanes)
    outs, pixels, window = _shape(row, size_out, width, lanes, registers)
    tiles = tuple(
        Tile(first * depth + v * lanes, v * lanes) for v in range(depth // lanes) for first in range(0, size_out, outs)
    )
    return Tiling(lanes, outs, pixels, depth, tiles, ((size_in, depth),), False, window=window)


def nest(offsets: tuple[int, ...]) -> tuple[tuple[int, int], ...] | None:
    """Ascending offsets from 0 as nested loops of (count, step), outermost first; None where they are no such nest."""
    if len(offsets) == 1:
        return ((1, 0),)
    step = offsets[1]
    count = 1
    while count < len(offsets) and offsets[count] == count * step:
        count += 1
    if count == len(offsets):
        return ((count, step),)
    if len(offsets) % count:
        return None
    heads = offsets[::count]
    inner = tuple(i * step for i in range(count))
    if any(offsets[n * count : (n + 1) * count] != tuple(h + i for i in inner) for n, h in enumerate(heads)):
        return None
    outer = nest(heads)
    return None if outer is None else (*outer, (count, step))
