"""Which weights meet which channels in the registers: the tables of a convolution's products.

A *vector* is LANES consecutive positions of an output pixel, each a sum over the same number of terms. In the way
`outputs` its lanes are outputs of one group, and each input is broadcast; in the way `groups` its lanes are groups,
and inputs are vectors, too (`igc_nas.nn.codegen.program`). The gradient of the input is a product of the same kind:
the ways and orders are those of the convolution, inputs and outputs change places. A strided convolution's is one
product for each position within a stride, with the taps that reach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igc_nas.arch.layers import Conv
from igc_nas.nn.codegen.orders import PAD, Order, group_major, padded, positions
from igc_nas.nn.codegen.program import Way, merged
from igc_nas.nn.training_step.tiles import MOST_PIXELS, MOST_VECTORS, most_pixels

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class ConvStep:
    """A convolution of a chain in its orders: `name` is that of its module in the network."""

    name: str
    conv: Conv
    way: Way
    source: Order
    target: Order


@dataclass(frozen=True)
class Vector:
    """`target`: where it is stored; `lanes`: its channels; `sources`: where its terms are read; `terms`: their
    channels, (terms, LANES)."""

    target: int
    lanes: Ints
    sources: tuple[int, ...]
    terms: Ints


@dataclass(frozen=True)
class Tap:
    """A tap of the kernel, and the place of the pixel that it reads, in rows and pixels."""

    ky: int
    kx: int
    row: int
    column: int


TapPair = tuple[Tap, Tap | None]


@dataclass(frozen=True)
class Tables:
    """Tiles of one shape: offsets (tiles, terms), targets (tiles, vectors), index (tiles, terms, vectors, LANES): the
    place of each weight in its parameter's memory, -1 where there is none. Of taps in pairs (..., LANES, 2)."""

    offsets: Ints
    targets: Ints
    index: Ints


def forward_vectors(step: ConvStep, lanes: int) -> list[Vector]:
    """The vectors of a convolution's output."""
    conv, where = step.conv, positions(step.source)
    source, target = np.array(step.source, np.int32), np.array(step.target, np.int32)
    if step.way == "groups":
        return list(_lane_major(_depth(step, lanes), source, target, lanes))
    groups, size_in, _ = merged(conv, lanes)
    depth = len(target) // groups
    found = []
    for g in range(groups):
        inputs = np.array(sorted(range(g * size_in, (g + 1) * size_in), key=where.__getitem__), np.int32)
        sources = tuple(where[c] for c in inputs)
        terms = np.repeat(inputs[:, None], lanes, 1)
        starts = range(g * depth, (g + 1) * depth, lanes)
        found += [Vector(at, target[at : at + lanes], sources, terms) for at in starts]
    return found


def input_order(step: ConvStep, lanes: int) -> Order:
    """The order in which the gradient of a convolution's input is computed.

    It is the order that the convolution reads, if the inputs of each group lie there in runs of whole vectors.
    """
    if step.way == "groups":
        return step.source
    groups, size_in, _ = merged(step.conv, lanes)
    if all(_windows(step.source, range(g * size_in, (g + 1) * size_in), lanes) for g in range(groups)):
        return step.source
    return group_major(groups, size_in, lanes)


def input_vectors(step: ConvStep, lanes: int) -> tuple[list[Vector], Order]:
    """The vectors of the gradient of a convolution's input, and the order in which they are stored (`input_order`)."""
    conv = step.conv
    target = np.array(step.target, np.int32)
    if step.way == "groups":
        source = np.array(step.source, np.int32)
        return list(_lane_major(_depth(step, lanes), target, source, lanes)), step.source
    groups, size_in, size_out = merged(conv, lanes)
    where = positions(step.target)
    order = input_order(step, lanes)
    starts = [_windows(order, range(g * size_in, (g + 1) * size_in), lanes) for g in range(groups)]
    channels = np.array(order, np.int32)
    found = []
    for g, windows in enumerate(starts):
        outputs = np.arange(g * size_out, (g + 1) * size_out, dtype=np.int32)
        sources, terms = tuple(where[c] for c in outputs), np.repeat(outputs[:, None], lanes, 1)
        found += [Vector(at, channels[at : at + lanes], sources, terms) for at in windows]
    return found, order


def _depth(step: ConvStep, lanes: int) -> int:
    """Positions of one channel of all groups, where lanes are groups; depthwise, the order may hold more padding."""
    groups = step.conv.groups
    return len(step.source) if step.conv.in_channels == groups == step.conv.out_channels else padded(groups, lanes)


def _lane_major(depth: int, source: Ints, target: Ints, lanes: int) -> Iterator[Vector]:
    """Each vector of `target` is a sum of the vectors of `source` with the same groups in their lanes."""
    for v in range(0, depth, lanes):
        sources = tuple(range(v, len(source), depth))
        terms = np.stack([source[at : at + lanes] for at in sources])
        for at in range(v, len(target), depth):
            yield Vector(at, target[at : at + lanes], sources, terms)


def _windows(order: Order, channels: range, lanes: int) -> list[int]:
    """Where vectors begin that cover the channels and no other ones (but padding); empty if there are none such.

    The last one of a run may overlap with that before it: both store the same values.
    """
    where = positions(order)
    found: list[int] = []
    left = sorted(where[c] for c in channels)
    while left:
        begin = end = left[0]
        while end < len(order) and (order[end] in channels or order[end] == PAD):
            end += 1
        if end - begin < lanes:
            return []
        inside = [at for at in left if at < end]
        last = inside[-1] + 1
        starts = list(range(begin, max(begin + 1, last - lanes + 1), lanes))
        if starts[-1] + lanes < last:
            starts.append(min(starts[-1] + lanes, end - lanes))
        found += starts
        left = left[len(inside) :]
    return found


def forward_taps(conv: Conv) -> list[Tap]:
    """All taps of a convolution."""
    k, pad = conv.kernel, conv.kernel // 2
    return [Tap(ky, kx, ky - pad, kx - pad) for ky in range(k) for kx in range(k)]


def input_taps(conv: Conv, y: int, x: int) -> list[Tap]:
    """The taps by which output pixels reach the input pixels (y, x) modulo the stride, and where those pixels are."""
    k, s, pad = conv.kernel, conv.stride, conv.kernel // 2
    return [
        Tap(ky, kx, (y + pad - ky) // s, (x + pad - kx) // s)
        for ky in range(k)
        for kx in range(k)
        if (y + pad - ky) % s == 0 and (x + pad - kx) % s == 0
    ]


def paired(taps: list[Tap]) -> list[TapPair]:
    """Taps in pairs of neighbours in a row of pixels; one that is left over is alone."""
    found: list[TapPair] = []
    left = sorted(taps, key=lambda tap: (tap.row, tap.column))
    while left:
        first, *left = left
        neighbour = left and (left[0].row, left[0].column) == (first.row, first.column + 1)
        found.append((first, left.pop(0) if neighbour else None))
    return found


def tables(
    vectors: list[Vector],
    taps: list[Tap] | list[TapPair],
    conv: Conv,
    strides: tuple[int, ...],
    row: int,
    pixel: int,
    *,
    transposed: bool = False,
    channel_pairs: bool = False,
) -> list[Tables]:
    """The tables of a product. `row`, `pixel`: steps of the scratch that is read; `strides`: of the weight's memory.

    With `channel_pairs` the scratch holds pairs of neighbouring channels, of one tap (`in_channel_pairs`).
    """
    by_sources: dict[tuple[int, ...], list[Vector]] = {}
    for vector in vectors:
        by_sources.setdefault(vector.sources, []).append(vector)
    shapes: dict[int, list[list[Vector]]] = {}
    for alike in by_sources.values():
        for chunk in _chunks(alike):
            shapes.setdefault(len(chunk), []).append(chunk)
    first = [tap[0] if isinstance(tap, tuple) else tap for tap in taps]
    places = np.array([tap.row * row + tap.column * pixel for tap in first], np.int32)
    kernels = [_tap_index(first, strides)]
    if taps and isinstance(taps[0], tuple):
        kernels.append(_tap_index([tap[1] for tap in taps], strides))
    step = 2 if channel_pairs else 1
    return [_tables(tiles, places, kernels, conv, strides, transposed, step) for tiles in shapes.values()]


def in_channel_pairs(vectors: list[Vector]) -> bool:
    """Whether the terms of all vectors are pairs of neighbours, each from an even place on."""
    return all(
        len(sources) % 2 == 0
        and all(a % 2 == 0 and b == a + 1 for a, b in zip(sources[::2], sources[1::2], strict=True))
        for sources in {vector.sources for vector in vectors}
    )


def _tap_index(taps: Sequence[Tap | None], strides: tuple[int, ...]) -> Ints:
    """Where the taps lie in a weight's memory; -1: there is none."""
    return np.array([-1 if tap is None else tap.ky * strides[2] + tap.kx * strides[3] for tap in taps], np.int32)


def _tables(
    tiles: list[list[Vector]],
    places: Ints,
    kernels: list[Ints],
    conv: Conv,
    strides: tuple[int, ...],
    transposed: bool,
    step: int,
) -> Tables:
    sources = np.array([tile[0].sources[::step] for tile in tiles], np.int32) // step
    offsets = (places[None, :, None] + sources[:, None, :]).reshape(len(tiles), -1)
    targets = np.array([[vector.target for vector in tile] for tile in tiles], np.int32)
    lanes = np.array([[vector.lanes for vector in tile] for tile in tiles])[:, None]  # (tiles, 1, vectors, LANES)
    terms = np.array([[vector.terms for vector in tile] for tile in tiles]).transpose(0, 2, 1, 3)
    found = []
    for half in (terms[:, start::step] for start in range(step)):
        outputs, inputs = (half, lanes) if transposed else (lanes, half)
        found += [_places(outputs, inputs, kernel, conv, strides) for kernel in kernels]
    index = found[0] if len(found) == 1 else np.stack(found, -1)
    return Tables(offsets.astype(np.int32), targets, np.ascontiguousarray(index))


def _places(outputs: Ints, inputs: Ints, kernel: Ints, conv: Conv, strides: tuple[int, ...]) -> Ints:
    """Where the weights between channels lie in memory, for each tap; -1 where there is none."""
    size_out, size_in = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    there = (outputs >= 0) & (inputs >= 0) & (outputs // size_out == inputs // size_in)
    flat = outputs * strides[0] + inputs % size_in * strides[1]
    taps = kernel[None, :, None, None, None]
    return np.where(there[:, None] & (taps >= 0), flat[:, None] + taps, -1).astype(np.int32).reshape(-1)


def _chunks(vectors: list[Vector]) -> Iterator[list[Vector]]:
    """Vectors with the same sources in tiles of at most `MOST_VECTORS`, as equal as possible."""
    count = len(vectors)
    size = 3 if count % 3 == 0 else min(MOST_VECTORS, count)
    tiles = -(-count // size)
    at = 0
    for tile in range(tiles):
        n = count // tiles + (tile < count % tiles)
        yield vectors[at : at + n]
        at += n


def pixels_of(vectors: int, width: int) -> int:
    """Pixels of a tile for rows of `width`: as many as registers hold, and as equal as possible over the row."""
    most = min(most_pixels(vectors), MOST_PIXELS)
    return -(-width // -(-width // most))
