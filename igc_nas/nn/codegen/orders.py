"""Channel orders: where in memory each logical channel of a tensor lies.

An order is a tuple: `order[position]` is the logical channel at that position, -1 where the position is padding. A
position is a float of a pixel (NHWC); lanes of a vector are consecutive positions. An interleave only renames logical
channels, so it changes the order's entries and moves no data.
"""

from __future__ import annotations

from functools import lru_cache

Order = tuple[int, ...]
PAD = -1


def padded(count: int, lanes: int) -> int:
    """`count` rounded up to a multiple of `lanes`."""
    return -(-count // lanes) * lanes


@lru_cache(maxsize=4096)
def group_major(groups: int, size: int, lanes: int) -> Order:
    """Position g * padded(size) + i holds channel i of group g: the channels of a group are neighbours."""
    rest = (PAD,) * (padded(size, lanes) - size)
    return tuple(c for g in range(groups) for c in (*range(g * size, (g + 1) * size), *rest))


@lru_cache(maxsize=4096)
def lane_major(groups: int, size: int, lanes: int) -> Order:
    """Position i * padded(groups) + g holds channel i of group g: the groups' channels of one index are neighbours."""
    rest = (PAD,) * (padded(groups, lanes) - groups)
    return tuple(c for i in range(size) for c in (*range(i, groups * size, size), *rest))


@lru_cache(maxsize=65_536)
def interleaved(order: Order, groups: int) -> Order:
    """The order after Interleave(groups), out[j*g + i] = in[i*(C/g) + j]: the same positions, other names."""
    channels = sum(c != PAD for c in order)
    each = channels // groups
    return tuple(c if c == PAD else (c % each) * groups + c // each for c in order)


@lru_cache(maxsize=4096)
def positions(order: Order) -> tuple[int, ...]:
    """The position of each logical channel."""
    found = [0] * sum(c != PAD for c in order)
    for position, channel in enumerate(order):
        if channel != PAD:
            found[channel] = position
    return tuple(found)


def aligned(order: Order, lanes: int) -> Order:
    """The order with padding up to whole vectors."""
    return (*order, *(PAD,) * (-len(order) % lanes))


@lru_cache(maxsize=65_536)
def part(order: Order, start: int, stop: int, lanes: int) -> Order:
    """The channels from `start` to `stop` in the same order, named from 0, without gaps."""
    return aligned(tuple(c - start for c in order if start <= c < stop), lanes)


@lru_cache(maxsize=65_536)
def concatenated(orders: tuple[Order, ...], lanes: int) -> Order:
    """The channels of several tensors one behind the other, each from a whole vector on."""
    found: list[int] = []
    first = 0
    for order in orders:
        found += [c if c == PAD else c + first for c in aligned(order, lanes)]
        first += width(order)
    return tuple(found)


def width(order: Order) -> int:
    """How many channels an order has."""
    return sum(c != PAD for c in order)
