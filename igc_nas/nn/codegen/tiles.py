"""How a convolution's output row is cut into register tiles: vectors of outputs x pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from igc_nas.arch.layers import Conv
from igc_nas.nn.codegen.orders import padded, positions
from igc_nas.nn.codegen.program import ConvRow, merged

MOST_PIXELS = 8


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


def _shape(vectors: int, width: int, registers: int) -> tuple[int, int]:
    """(outputs, pixels) of a tile: the most products for each load, while sums, weights and one input fit."""
    best, found = -1.0, (1, 1)
    for outs in (1, 2, 3, 4, 6, 8):
        if vectors % outs:
            continue
        for pixels in range(1, min(MOST_PIXELS, width) + 1):
            if outs * pixels + outs + 1 > registers:
                continue
            tiles = -(-width // pixels)
            worth = outs * pixels / (outs + pixels) * width / (tiles * pixels)
            if outs * pixels < 6:  # too few sums at a time hide no latency
                worth *= 0.7
            if worth > best:
                best, found = worth, (outs, pixels)
    return found


def _along_outputs(row: ConvRow, width: int, lanes: int, registers: int) -> Tiling:
    count, size_in, size_out = merged(row.conv, lanes)
    depth = padded(size_out, lanes)
    outs, pixels = _shape(depth // lanes, width, registers)
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
        outs, pixels = 1, _shape(1, width, registers)[1]
        tiles = tuple(Tile(v * lanes, v * lanes) for v in range(vectors))
        window = _has_window(conv, outs, pixels, registers)
        return Tiling(lanes, outs, pixels, lanes, tiles, ((1, 0),), False, window=window)
    depth = padded(conv.groups, lanes)
    outs, pixels = _shape(size_out, width, registers)
    tiles = tuple(
        Tile(first * depth + v * lanes, v * lanes) for v in range(depth // lanes) for first in range(0, size_out, outs)
    )
    window = _has_window(conv, outs, pixels, registers)
    return Tiling(lanes, outs, pixels, depth, tiles, ((size_in, depth),), False, window=window)


def _has_window(conv: Conv, outs: int, pixels: int, registers: int) -> bool:
    return conv.kernel > 1 and outs * pixels + conv.kernel * outs + 1 <= registers


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
