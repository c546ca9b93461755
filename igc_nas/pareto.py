"""Fronts of points where every coordinate is minimised: dominance, hypervolume, knee. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Point = Sequence[float]
Points = Sequence[Point] | NDArray[np.float64]


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def nondominated(points: Points) -> list[int]:
    """Indices of the points that no other point dominates, in order; of equal points the first.

    In lexicographic order a point can only be dominated by one before it: the first that is left is of the front, and
    takes all that it dominates away.
    """
    if not len(points):
        return []
    array = np.asarray(points, dtype=float)
    order = np.lexsort((np.arange(len(array)), *array.T[::-1]))
    front: list[int] = []
    while len(order):
        first = order[0]
        front.append(int(first))
        order = order[(array[order] < array[first]).any(axis=1)]
    return sorted(front)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume that `points` dominate below `reference`, for two or more coordinates (exact, by slicing).

    Points that are not below the reference in every coordinate add nothing. O(n log n) in two dimensions, a factor n
    more for each further one (Fonseca, Paquete, Lopez-Ibanez 2006 slice the same way).
    """
    inside = [tuple(p) for p in points if all(x < r for x, r in zip(p, reference, strict=True))]
    return _slice_volume([inside[i] for i in nondominated(inside)], tuple(reference))


def _slice_volume(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    if len(reference) == 1:
        return reference[0] - min((p[0] for p in points), default=reference[0])
    if len(reference) == 2:
        return _staircase(points, reference)
    total = 0.0
    ordered = sorted(points, key=lambda p: p[-1])
    for number, point in enumerate(ordered, start=1):
        top = ordered[number][-1] if number < len(ordered) else reference[-1]
        if top > point[-1]:
            total += (top - point[-1]) * _slice_volume([p[:-1] for p in ordered[:number]], reference[:-1])
    return total


def _staircase(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    total, height = 0.0, reference[1]
    for x, y in sorted(points):
        if y < height:
            total += (reference[0] - x) * (height - y)
            height = y
    return total


def running_hypervolume(points: Iterable[Point | None]) -> Iterator[float]:
    """The hypervolume below (1, ..., 1) after each of `points`; None adds nothing.

    A point adds its box less what the front covers of it: the front's members, cut to the box, are few.
    """
    front: list[tuple[float, ...]] = []
    volume = 0.0
    for point in points:
        if point is not None and all(x < 1 for x in point) and not _is_covered(point, front):
            new, ones = tuple(point), (1.0,) * len(point)
            covered = hypervolume([tuple(map(max, zip(kept, new, strict=True))) for kept in front], ones)
            gain = hypervolume([new], ones) - covered
            volume += max(0.0, gain)
            front = [kept for kept in front if not dominates(new, kept)] + [new]
        yield volume


def _is_covered(point: Point, front: Sequence[Point]) -> bool:
    return any(all(x <= y for x, y in zip(kept, point, strict=True)) for kept in front)


def knee(points: Sequence[Point]) -> int:
    """Index of the point nearest to the ideal one, each coordinate scaled to the range of `points`.

    The usual compromise solution of multi-objective optimisation (Euclidean distance to the utopia point).
    """
    if not points:
        raise ValueError("a front without points has no knee")
    lows = [min(column) for column in zip(*points, strict=True)]
    spans = [max(column) - low or 1.0 for column, low in zip(zip(*points, strict=True), lows, strict=True)]
    return min(
        range(len(points)),
        key=lambda i: math.hypot(*((x - low) / span for x, low, span in zip(points[i], lows, spans, strict=True))),
    )
