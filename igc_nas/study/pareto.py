"""Pareto fronts of points, every coordinate minimised: dominance, hypervolume, knee."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Point = Sequence[float]
Points = Sequence[Point] | Floats


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is at most `b` in every coordinate and below it in one."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def nondominated(points: Points) -> list[int]:
    """Indices of the points that no other point dominates, in order; of equal points the first.

    In lexicographic order a point can only be dominated by an earlier one. In two and three dimensions the earlier
    points are kept as a staircase in the other coordinates (Kung, Luccio, Preparata 1975): O(n log n) but for the
    insertion into a list. In more dimensions the first of the remaining points is on the front, and those that it
    dominates are removed: O(n * front).
    """
    if not len(points):
        return []
    array = np.asarray(points, dtype=float)
    order = np.lexsort((np.arange(len(array)), *array.T[::-1]))
    if array.shape[1] in (2, 3):
        # Two dimensions are three with a constant third coordinate.
        staircase = _Staircase()
        flat = [0.0] * len(array) if array.shape[1] == 2 else array[order, 2].tolist()
        steps = zip(order.tolist(), array[order, 1].tolist(), flat, strict=True)
        return sorted(place for place, y, z in steps if staircase.add(y, z))
    front: list[int] = []
    while len(order):
        first = order[0]
        front.append(int(first))
        order = order[(array[order] < array[first]).any(axis=1)]
    return sorted(front)


class _Staircase:
    """The front of points (x, y) that are added one by one: `xs` ascend, `ys` descend."""

    def __init__(self, corner: Point = (math.inf, math.inf)) -> None:
        """`corner` is the reference point of `area`, which the points dominate."""
        self.corner = corner
        self.xs: list[float] = []
        self.ys: list[float] = []
        self.area = 0.0

    def add(self, x: float, y: float) -> bool:
        """Add a point. False where an earlier one is at most as large in both coordinates."""
        xs, ys = self.xs, self.ys
        start = bisect_right(xs, x)
        if start and ys[start - 1] <= y:
            return False
        start -= start > 0 and xs[start - 1] == x
        end = start
        while end < len(ys) and ys[end] >= y:
            end += 1
        self.area += self._gain(x, y, start, end)
        xs[start:end], ys[start:end] = [x], [y]
        return True

    def _gain(self, x: float, y: float, start: int, end: int) -> float:
        """The area that (x, y) adds; it replaces the steps from `start` to `end`."""
        if math.isinf(self.corner[0]):
            return 0.0
        gain, height = 0.0, self.ys[start - 1] if start else self.corner[1]
        for place in range(start, end):
            gain += (self.xs[place] - x) * (height - y)
            x, height = self.xs[place], self.ys[place]
        return gain + ((self.xs[end] if end < len(self.xs) else self.corner[0]) - x) * (height - y)


def hypervolume(points: Points, reference: Point) -> float:
    """The volume that `points` dominate below `reference` (exact), whatever the number of coordinates.

    Points that are not below the reference in every coordinate add nothing. O(n log n) in two and three dimensions, by
    a sweep over the last one (Beume, Fonseca, Lopez-Ibanez, Paquete, Vahrenhold 2009); a factor n more for each further
    one, by slices (as Fonseca, Paquete, Lopez-Ibanez 2006).
    """
    if not len(points):
        return 0.0
    array = np.asarray(points, dtype=float)
    inside = array[(array < np.asarray(reference, dtype=float)).all(axis=1)]
    front = [tuple(point) for point in inside[nondominated(inside)].tolist()]
    return _slice_volume(front, tuple(reference))


def _slice_volume(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    if len(reference) == 1:
        return reference[0] - min(points)[0] if points else 0.0
    if len(reference) == 2:
        steps = _Staircase(reference)
        for x, y in sorted(points):
            steps.add(x, y)
        return steps.area
    if len(reference) == 3:
        return _sweep(points, reference)
    total = 0.0
    ordered = sorted(points, key=lambda p: p[-1])
    for number, point in enumerate(ordered, start=1):
        top = ordered[number][-1] if number < len(ordered) else reference[-1]
        if top > point[-1]:
            total += (top - point[-1]) * _slice_volume([p[:-1] for p in ordered[:number]], reference[:-1])
    return total


def _sweep(points: Iterable[Point], reference: Point) -> float:
    """The volume in three dimensions: the area dominated by the points passed, times the distance to the next point."""
    staircase = _Staircase(reference[:2])
    total, height = 0.0, reference[2]
    for x, y, z in sorted(points, key=lambda p: (p[2], p[0], p[1])):
        total += staircase.area * (z - height)
        height = z
        staircase.add(x, y)
    return total + staircase.area * (reference[2] - height)


class Front:
    """A Pareto front to which points are added one by one."""

    def __init__(self, dimensions: int) -> None:
        self.points: Floats = np.empty((0, dimensions))

    def __len__(self) -> int:
        return len(self.points)

    def add(self, point: Point) -> bool:
        """Add a point and remove those that it dominates. False where one is at most as large in every coordinate."""
        if (self.points <= point).all(axis=1).any():
            return False
        kept = self.points[(self.points < point).any(axis=1)]
        self.points = np.vstack([kept, np.asarray(point, dtype=float)])
        return True


class RunningVolume:
    """The hypervolume below (1, ..., 1) of points that are added one by one.

    A point adds the volume of its box less the part that the front dominates: that of the front's points, clipped to
    the box.
    """

    def __init__(self, dimensions: int) -> None:
        self.front = Front(dimensions)
        self.volume = 0.0
        self._ones = (1.0,) * dimensions

    def add(self, point: Point) -> float:
        """Add a point; returns the volume."""
        before = self.front.points
        if all(x < 1 for x in point) and self.front.add(point):
            covered = hypervolume(np.maximum(before, point), self._ones)
            self.volume += max(0.0, math.prod(1 - x for x in point) - covered)
        return self.volume


def running_hypervolume(points: Iterable[Point | None]) -> Iterator[float]:
    """The hypervolume below (1, ..., 1) after each of `points`; None adds nothing."""
    running: RunningVolume | None = None
    for point in points:
        if point is not None:
            running = running or RunningVolume(len(point))
            running.add(point)
        yield running.volume if running else 0.0


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
