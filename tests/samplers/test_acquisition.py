import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from igc_nas.samplers.acquisition import expected_hypervolume_improvement, expected_improvement
from igc_nas.samplers.features import Floats
from igc_nas.study.pareto import dominates, hypervolume, nondominated


@st.composite
def clouds(draw: st.DrawFn, objectives: int, low: float = 0.0, high: float = 1.3, most: int = 12) -> Floats:
    """Points on a coarse grid, so that equal ones and shared coordinates are common; some outside the unit box."""
    grid = st.integers(int(low * 10), int(high * 10)).map(lambda n: n / 10)
    rows = draw(st.lists(st.tuples(*[grid] * objectives), max_size=most))
    return np.array(rows, dtype=float).reshape(len(rows), objectives)


def growth(front: Floats, point: Floats) -> float:
    """The hypervolume that a point adds, by `igc_nas.study.pareto`."""
    reference = [1.0] * front.shape[1]
    return hypervolume([*front.tolist(), point.tolist()], reference) - hypervolume(front.tolist(), reference)


@pytest.mark.parametrize("objectives", [2, 3])
@given(data=st.data())
def test_without_uncertainty_it_is_the_growth_of_the_hypervolume(objectives: int, data: st.DataObject) -> None:
    front, points = data.draw(clouds(objectives)), data.draw(clouds(objectives))
    found = expected_hypervolume_improvement(points[:, 0], np.zeros(len(points)), points[:, 1:], front)
    assert found == pytest.approx(np.array([growth(front, point) for point in points]), abs=1e-5)


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("size", [0, 1, 4, 15])
def test_it_is_the_mean_growth_over_the_possible_outcomes(objectives: int, size: int) -> None:
    """Against sums over 2,000 equally likely outcomes of each point."""
    rng = np.random.default_rng(size)
    front, points = rng.uniform(0, 1.1, (size, objectives)), rng.uniform(0, 1, (6, objectives))
    deviation = rng.uniform(0.02, 0.5, 6)
    outcomes = norm.ppf((np.arange(2000) + 0.5) / 2000)
    expected = [
        np.mean([growth(front, np.array([point[0] + d * z, *point[1:]])) for z in outcomes])
        for point, d in zip(points, deviation, strict=True)
    ]
    found = expected_hypervolume_improvement(points[:, 0], deviation, points[:, 1:], front)
    assert found == pytest.approx(np.array(expected), rel=5e-3, abs=1e-5)


@pytest.mark.parametrize("objectives", [2, 3])
@given(data=st.data())
def test_points_that_are_dominated_equal_or_outside_change_nothing(objectives: int, data: st.DataObject) -> None:
    front = data.draw(clouds(objectives))
    points = data.draw(clouds(objectives).filter(len))
    deviation = np.full(len(points), 0.2)
    outside = np.full((1, objectives), 1.2)
    more = np.concatenate([front, front, np.minimum(front + 0.1, 1.3), outside])
    one, other = (expected_hypervolume_improvement(points[:, 0], deviation, points[:, 1:], f) for f in (front, more))
    assert other == pytest.approx(one, abs=1e-9)


@pytest.mark.parametrize("objectives", [2, 3])
@given(data=st.data())
def test_known_coordinates_outside_the_box_are_cut_to_it_or_worth_nothing(objectives: int, data: st.DataObject) -> None:
    front = data.draw(clouds(objectives, low=-0.4))
    points = data.draw(clouds(objectives, low=-0.4).filter(len))
    cut_front = np.column_stack([front[:, 0], np.maximum(front[:, 1:], 0)])
    deviation = np.full(len(points), 0.1)
    found = expected_hypervolume_improvement(points[:, 0], deviation, points[:, 1:], front)
    cut = expected_hypervolume_improvement(points[:, 0], deviation, np.maximum(points[:, 1:], 0), cut_front)
    assert found == pytest.approx(cut, abs=1e-9)
    assert (found >= 0).all()
    assert (found[(points[:, 1:] >= 1).any(axis=1)] == 0).all()


@given(clouds(3), st.floats(0, 1), st.floats(0.01, 0.5), st.floats(0, 1), st.floats(0, 1))
def test_a_better_or_less_certain_point_is_worth_no_less(
    front: Floats, mean: float, deviation: float, x: float, y: float
) -> None:
    def worth(mean: float, deviation: float, x: float) -> float:
        known = np.array([[x, y]])
        return float(expected_hypervolume_improvement(np.array([mean]), np.array([deviation]), known, front)[0])

    base = worth(mean, deviation, x)
    assert worth(mean - 0.1, deviation, x) >= base - 1e-12
    assert worth(mean, deviation + 0.1, x) >= base - 1e-12
    assert worth(mean, deviation, x / 2) >= base - 1e-12


@given(st.floats(-2, 2), st.floats(0, 2), st.floats(-2, 2))
def test_expected_improvement_is_the_mean_over_the_outcomes(mean: float, deviation: float, level: float) -> None:
    found = expected_improvement(np.array([mean]), np.array([deviation]), np.array([level]))[0]
    outcomes = mean + deviation * norm.ppf((np.arange(4000) + 0.5) / 4000)
    assert found == pytest.approx(np.maximum(0, level - outcomes).mean(), abs=2e-3 * deviation + 1e-6)
    assert found >= max(0.0, level - mean) - 1e-12


@pytest.mark.parametrize("objectives", [2, 3])
@given(data=st.data())
def test_the_rows_of_a_front_are_the_nondominated_ones(objectives: int, data: st.DataObject) -> None:
    points = data.draw(clouds(objectives, most=40))
    rows = points.tolist()
    first = [i for i, row in enumerate(rows) if row not in rows[:i]]
    brute = [i for i in first if not any(dominates(other, rows[i]) for other in rows)]
    assert nondominated(points) == nondominated(rows) == brute
