import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.study.pareto import (
    Front,
    Point,
    RunningVolume,
    dominates,
    hypervolume,
    knee,
    nondominated,
    running_hypervolume,
)

SIXTEENTHS = st.integers(0, 16).map(lambda n: n / 16)
"""Sums and products of a few of these are exact, so volumes can be compared with ==."""


@st.composite
def clouds(draw: st.DrawFn, most: int = 8) -> list[tuple[float, ...]]:
    """Points in 2 to 4 dimensions, with ties and duplicates."""
    dimensions = draw(st.integers(2, 4))
    return draw(st.lists(st.tuples(*[SIXTEENTHS] * dimensions), min_size=1, max_size=most))


@given(clouds(20))
def test_nondominated_points_are_dominated_by_no_other(points: list[Point]) -> None:
    brute = [
        i
        for i, p in enumerate(points)
        if not any(dominates(q, p) for q in points) and not any(q == p for q in points[:i])
    ]
    assert nondominated(points) == brute


@given(clouds())
def test_dominance_is_a_strict_order(points: list[Point]) -> None:
    for a, b, c in itertools.product(points, repeat=3):
        assert not (dominates(a, b) and dominates(b, a))
        assert not (dominates(a, b) and dominates(b, c)) or dominates(a, c)


def test_of_equal_points_the_first_is_kept() -> None:
    assert nondominated([(1, 2), (2, 1), (1, 2), (2, 2), (2, 1)]) == [0, 1]
    assert nondominated([]) == []


def inclusion_exclusion(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    total = 0.0
    for count in range(1, len(points) + 1):
        for some in itertools.combinations(points, count):
            corner = [max(column) for column in zip(*some, strict=True)]
            sides = [max(0.0, r - c) for r, c in zip(reference, corner, strict=True)]
            total += (-1) ** (count + 1) * math.prod(sides)
    return total


@given(clouds(), SIXTEENTHS.filter(bool))
def test_hypervolume_is_the_volume_of_the_union(points: list[tuple[float, ...]], corner: float) -> None:
    reference = (corner, *[1.0] * (len(points[0]) - 1))
    assert hypervolume(points, reference) == inclusion_exclusion(points, reference)


@given(clouds(), st.randoms(use_true_random=False))
def test_hypervolume_does_not_depend_on_the_order(points: list[Point], rng: random.Random) -> None:
    reference = [1.0] * len(points[0])
    volume = hypervolume(points, reference)
    rng.shuffle(points)
    assert hypervolume(points, reference) == volume


@given(clouds())
def test_a_point_adds_volume_only_where_no_point_dominated(points: list[Point]) -> None:
    *before, new = points
    reference = [1.0] * len(new)
    gain = hypervolume(points, reference) - hypervolume(before, reference)
    reached = any(all(x <= y for x, y in zip(p, new, strict=True)) for p in before)
    assert (gain > 0) == (not reached and max(new) < 1)
    assert gain >= 0


def test_hypervolume_in_three_dimensions_against_counting() -> None:
    rng = np.random.default_rng(0)
    directions = np.abs(rng.standard_normal((60, 3)))
    front = 1 - 0.9 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    cloud = np.concatenate([front, rng.random((40, 3)) * 0.2 + 0.8])
    samples = rng.random((100_000, 3))
    covered = np.zeros(len(samples), dtype=bool)
    for point in cloud:
        covered |= np.all(samples >= point, axis=1)
    assert hypervolume(cloud.tolist(), (1, 1, 1)) == pytest.approx(covered.mean(), abs=0.006)  # 4 standard errors


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_hypervolume_of_simple_shapes(dimensions: int) -> None:
    ones = (1.0,) * dimensions
    assert hypervolume([], ones) == 0
    assert hypervolume([ones], ones) == 0
    assert hypervolume([(0.0,) * dimensions], ones) == 1
    assert hypervolume([(0.5,) * dimensions, (2.0,) * dimensions], ones) == 0.5**dimensions
    assert hypervolume([(-1.0,) * dimensions], ones) == 2**dimensions


@given(clouds())
def test_the_knee_is_nearest_to_the_ideal_point(points: list[tuple[float, ...]]) -> None:
    cloud = np.array(points)
    span = np.ptp(cloud, axis=0)
    distance = np.linalg.norm((cloud - cloud.min(axis=0)) / np.where(span > 0, span, 1), axis=1)
    assert distance[knee(points)] == pytest.approx(distance.min())


def test_the_knee_does_not_depend_on_units() -> None:
    points = [(0.0, 1.0), (0.1, 0.3), (0.4, 0.2), (1.0, 0.0)]
    assert knee(points) == 1
    assert knee([(x * 1e9 + 5, y * 1e-6) for x, y in points]) == 1
    with pytest.raises(ValueError, match="no knee"):
        knee([])


# Fronts of points that are added one by one.


@given(clouds(20))
def test_points_added_one_by_one_make_the_front_of_all(points: list[tuple[float, ...]]) -> None:
    front = Front(len(points[0]))
    for count, point in enumerate(points, start=1):
        there = [points[i] for i in nondominated(points[: count - 1])]
        covered = any(all(x <= y for x, y in zip(p, point, strict=True)) for p in there)
        assert front.add(point) is not covered
        assert sorted(map(tuple, front.points)) == sorted(points[i] for i in nondominated(points[:count]))
    assert len(front) == len(nondominated(points))


@given(clouds(12))
def test_a_running_volume_is_that_of_the_points_so_far(points: list[tuple[float, ...]]) -> None:
    running, ones = RunningVolume(len(points[0])), (1.0,) * len(points[0])
    for count, point in enumerate(points, start=1):
        assert running.add(point) == hypervolume(points[:count], ones)
    assert list(running_hypervolume([None, *points]))[-1] == running.volume


def sliced(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    """The hypervolume by slices down to one dimension."""
    if len(reference) == 1:
        return reference[0] - min((p[0] for p in points), default=reference[0])
    ordered = sorted(points, key=lambda p: p[-1])
    ends = [*(p[-1] for p in ordered[1:]), reference[-1]]
    parts = (
        (end - p[-1]) * sliced([q[:-1] for q in ordered[:count]], reference[:-1])
        for count, (p, end) in enumerate(zip(ordered, ends, strict=True), start=1)
    )
    return math.fsum(parts)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("front", [False, True])
def test_volumes_of_many_points_against_slices(dimensions: int, front: bool) -> None:
    rng = np.random.default_rng(dimensions)
    cloud = rng.random((80, dimensions)) * 1.05
    if front:
        directions = np.abs(rng.standard_normal((80, dimensions)))
        cloud = 1 - 0.9 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    points = [tuple(point) for point in cloud.tolist()]
    ones = (1.0,) * dimensions
    for count, volume in enumerate(running_hypervolume(points), start=1):
        inside = [p for p in points[:count] if max(p) < 1]
        assert volume == pytest.approx(sliced(inside, ones), rel=1e-12)
        assert hypervolume(points[:count], ones) == pytest.approx(volume, rel=1e-12)
