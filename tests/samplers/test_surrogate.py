from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.samplers.features import Floats, Inputs
from igc_nas.samplers.surrogate import (
    LENGTHS,
    LINEAR,
    MOST_FOR_CHOICE,
    MOST_POINTS,
    NOISES,
    PARTS,
    Kernel,
    Surrogate,
    subset,
)

NEW = 20


def cloud(n: int, seed: int, wide: float = 1.0) -> Inputs:
    """`n` rows of features, whose columns differ in scale."""
    rng = np.random.default_rng(seed)
    return Inputs(wide * rng.normal(5, 2, (n, 4)), wide * rng.normal(0, 1, (n, 12)))


def smooth(inputs: Inputs) -> Floats:
    """A function of the whole and of two of the parts."""
    parts = 0.2 * np.sin(inputs.parts[:, 0]) + 0.1 * inputs.parts[:, 1]
    return np.asarray(0.5 - 0.1 * inputs.whole[:, 0] + parts)


def noisy(inputs: Inputs, seed: int, deviation: float = 0.05) -> Floats:
    return smooth(inputs) + np.random.default_rng(seed).normal(0, deviation, len(inputs))


def test_a_smooth_function_is_interpolated_and_predicted_elsewhere() -> None:
    inputs, new = cloud(80, 0), cloud(200, 1)
    surrogate = Surrogate(inputs, smooth(inputs))
    spread = smooth(new).std()
    assert np.abs(surrogate.predict(inputs)[0] - smooth(inputs)).max() < 0.05 * spread
    assert np.sqrt(np.mean((surrogate.predict(new)[0] - smooth(new)) ** 2)) < 0.5 * spread


def test_a_function_linear_in_the_networks_features_is_extrapolated() -> None:
    """An error that falls with log params is one: the best networks are at the edge of those evaluated."""
    inputs, far = cloud(40, 0), cloud(20, 1)
    far = Inputs(far.whole + 15, far.parts)
    mean, _ = Surrogate(inputs, 0.9 - 0.05 * inputs.whole[:, 1]).predict(far)
    assert mean == pytest.approx(0.9 - 0.05 * far.whole[:, 1], abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_the_standard_deviation_grows_away_from_the_measured_points(seed: int) -> None:
    inputs = cloud(40, seed)
    surrogate = Surrogate(inputs, noisy(inputs, seed))
    steps = (0, 0.5, 1, 2, 4)
    deviations = [surrogate.predict(Inputs(inputs.whole + step, inputs.parts + step))[1] for step in steps]
    assert (deviations[0] < deviations[-1]).all()
    means = [deviation.mean() for deviation in deviations]
    assert means == sorted(means)


@given(st.permutations(range(30)))
def test_the_order_of_the_rows_does_not_matter(order: list[int]) -> None:
    inputs, new = cloud(30, 3), cloud(NEW, 4)
    values = noisy(inputs, 3)
    one = Surrogate(inputs, values).predict(new)
    other = Surrogate(inputs.rows(np.array(order)), values[order]).predict(new)
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-6)


@given(st.floats(0.01, 100), st.floats(-10, 10), st.integers(0, 10))
def test_predictions_are_in_the_units_of_the_values(factor: float, shift: float, seed: int) -> None:
    inputs, new = cloud(25, seed), cloud(NEW, seed + 1)
    values = noisy(inputs, seed)
    mean, deviation = Surrogate(inputs, values).predict(new)
    scaled_mean, scaled_deviation = Surrogate(inputs, factor * values + shift).predict(new)
    assert scaled_mean == pytest.approx(factor * mean + shift, rel=1e-6, abs=1e-6 * (factor + abs(shift)))
    assert scaled_deviation == pytest.approx(factor * deviation, rel=1e-5)


@pytest.mark.parametrize("n", [2, 3, 10, 120])
@pytest.mark.parametrize("value", [0.0, 0.9, -1e6])
def test_equal_values_are_predicted_everywhere(n: int, value: float) -> None:
    """At chance level every network has the same error."""
    surrogate = Surrogate(cloud(n, 0), np.full(n, value))
    mean, deviation = surrogate.predict(cloud(NEW, 1))
    assert mean == pytest.approx(np.full(NEW, value))
    assert np.isfinite(deviation).all()
    assert surrogate.left_out()[0] == pytest.approx(np.full(n, value))


def test_equal_rows_predict_their_mean() -> None:
    """Features without variance have no influence, and a row may be given twice."""
    one = cloud(1, 0)
    inputs = one.rows(np.zeros(12, dtype=np.int64))
    values = np.array([0.3, 0.5] * 6)
    mean, _ = Surrogate(inputs, values).predict(one)
    assert mean[0] == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("with_noises", [False, True])
def test_leaving_a_row_out_is_fitting_without_it(with_noises: bool) -> None:
    """With the same kernel and noise: from the joint normal distribution of all values, row by row."""
    n, rng = 20, np.random.default_rng(2)
    inputs = cloud(n, 2)
    values = noisy(inputs, 2)
    noises = rng.uniform(0, 0.05, n) ** 2 if with_noises else None
    surrogate = Surrogate(inputs, values, noises)
    noise = surrogate.variance * surrogate.noise + (0 if noises is None else noises / values.var())
    covariance = surrogate.variance * surrogate.kernel(surrogate.inputs, surrogate.inputs) + np.diag(np.full(n, noise))
    targets = (values - values.mean()) / values.std()
    mean, deviation = surrogate.left_out()
    for row in range(n):
        rest = np.delete(np.arange(n), row)
        weights = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, row])
        left = covariance[row, row] - covariance[row, rest] @ weights
        assert mean[row] == pytest.approx(values.mean() + values.std() * weights @ targets[rest], rel=1e-6)
        assert deviation[row] == pytest.approx(values.std() * np.sqrt(left), rel=1e-6)


def test_a_value_with_a_higher_known_noise_has_less_influence() -> None:
    inputs = cloud(30, 5)
    values = smooth(inputs)
    values[7] += 0.5
    low, high = np.full(30, 1e-8), np.full(30, 1e-8)
    high[7] = 1.0
    at = inputs.rows(np.array([7]))
    away = [abs(Surrogate(inputs, values, noises).predict(at)[0][0] - values[7]) for noises in (low, high)]
    assert away[0] < away[1]
    assert away[1] > 0.3


def test_the_fitted_noise_is_higher_for_noisier_values() -> None:
    inputs = cloud(80, 6)
    noises = [Surrogate(inputs, noisy(inputs, 6, deviation)).noise for deviation in (0.0, 0.3, 3.0)]
    assert noises[0] < noises[1] < noises[2]


def test_the_kernel_of_the_highest_likelihood_is_chosen() -> None:
    """By brute force: the density of the values at every setting."""
    inputs = cloud(24, 8)
    values = noisy(inputs, 8)
    surrogate = Surrogate(inputs, values)
    targets = (values - values.mean()) / values.std()

    def negative_log_likelihood(kernel: Kernel, noise: float) -> float:
        covariance = kernel(surrogate.inputs, surrogate.inputs) + noise * np.eye(24)
        variance = targets @ np.linalg.solve(covariance, targets) / 24
        return float(np.linalg.slogdet(covariance).logabsdet + 24 * np.log(variance))

    settings = [(Kernel(*setting), float(noise)) for *setting, noise in product(LENGTHS, PARTS, LINEAR, NOISES)]
    best = min(settings, key=lambda setting: negative_log_likelihood(*setting))
    assert (surrogate.kernel, surrogate.noise) == best


def test_a_kernel_chosen_on_some_of_many_rows_fits_all() -> None:
    inputs = cloud(3 * MOST_FOR_CHOICE, 9)
    values = noisy(inputs, 9)
    mean, _ = Surrogate(inputs, values).predict(inputs)
    assert np.corrcoef(mean, smooth(inputs))[0, 1] > 0.95


@given(st.integers(1, 900), st.integers(10, 400), st.integers(0, 2**32))
def test_a_subset_has_the_rows_to_keep_the_newest_and_both_extremes(n: int, most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 50, n) / 50
    keep = np.sort(rng.choice(n, size=rng.integers(n + 1), replace=False))
    rows = subset(values, keep, most)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert rows.tolist() == subset(values.copy(), keep.copy(), most).tolist()
    assert len(rows) == min(n, most)
    assert set(keep[: most // 4]) <= set(rows)
    assert set(range(n - min(n, most // 4), n)) <= set(rows)
    assert values[rows].min() == values.min()
    assert values[rows].max() == values.max()


def test_all_of_a_few_rows_are_kept() -> None:
    assert subset(np.zeros(MOST_POINTS), np.array([3])).tolist() == list(range(MOST_POINTS))
