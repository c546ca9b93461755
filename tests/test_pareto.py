import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.pareto import Point, dominates, hypervolume, knee, nondominated

SIXTEENTHS = st.integers(0, 16).map(lambda n: n / 16)
"""Sums and products of a few of these are exact, so volumes can be compared with ==."""


@st.composite
def clouds(draw: st.DrawFn, most: int = 8) -> list[tuple[float, ...]]:
    """Points in 2 to 4 dimensions, with ties and duplicates."""
    dimensions = draw(st.integers(2, 4))
    return draw(st.lists(st.tuples(*[SIXTEENTHS] * dimensions), min_size=1, max_size=most))


@given(clouds(20))
def test_nondominated_is_what_no_other_point_dominates(points: list[Point]) -> None:
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
def test_hypervolume_does_not_know_the_order(points: list[Point], rng: random.Random) -> None:
    reference = [1.0] * len(points[0])
    volume = hypervolume(points, reference)
    rng.shuffle(points)
    assert hypervolume(points, reference) == volume


@given(clouds())
def test_a_point_adds_volume_where_nothing_reached_and_only_there(points: list[Point]) -> None:
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


@pytest.mark.parametrize("dimensions", [2, 3, 4])
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
