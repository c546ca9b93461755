"""Factors of a number of channels: which IGCV2 chains a width allows, and the balanced one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod


def prime_factors(number: int) -> tuple[int, ...]:
    """Prime factors with multiplicity, ascending: 48 -> (2, 2, 2, 2, 3)."""
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return (*found, number) if number > 1 else tuple(found)


@cache
def balanced_factors(width: int, count: int) -> tuple[int, ...]:
    """`count` factors >= 2 of `width`, descending, with the least sum: 48 -> (8, 6) or (4, 4, 3).

    The sum is the cost of the 1x1 layers per channel (IGCV2, section 3.3), so the least sum is as close to the paper's
    balance condition as the width allows. `width` must have at least `count` prime factors.
    """
    best = min(_factorizations(width, count, width), key=lambda factors: (sum(factors), factors))
    assert prod(best) == width
    return best


def _factorizations(width: int, count: int, largest: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        if 2 <= width <= largest:
            yield (width,)
        return
    for first in range(min(largest, width // 2 ** (count - 1)), 1, -1):
        if first**count < width:
            return
        if width % first == 0:
            for rest in _factorizations(width // first, count - 1, first):
                yield (first, *rest)
