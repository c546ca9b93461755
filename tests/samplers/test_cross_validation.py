import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from igc_nas.samplers.cross_validation import LeaveOneOut, leave_one_out, spearman
from igc_nas.samplers.features import Floats, Inputs
from igc_nas.samplers.surrogate import Surrogate

N = 60


def validated(seed: int, noise: float, of_params: float, of_parts: float) -> LeaveOneOut:
    """A surrogate of errors that fall with log params, depend on one of the parts, and are noisy."""
    rng = np.random.default_rng(seed)
    params = np.exp(rng.uniform(9, 14, N))
    inputs = Inputs(np.column_stack([np.log(params), rng.normal(size=N)]), rng.normal(size=(N, 6)))
    values: Floats = of_parts * inputs.parts[:, 0] - of_params * np.log(params) + noise * rng.normal(size=N)
    return leave_one_out(Surrogate(inputs, values), values, params.astype(np.int64))


@pytest.mark.parametrize("seed", range(5))
def test_a_target_that_can_be_learnt_ranks_better_than_the_parameter_count(seed: int) -> None:
    found = validated(seed, noise=0.05, of_params=0.1, of_parts=0.5)
    assert found.is_better
    assert found.rank > 0.9
    assert found.n == N


def test_predictions_of_noise_rank_no_better_than_chance() -> None:
    ranks = [validated(seed, noise=1.0, of_params=0.0, of_parts=0.0).rank for seed in range(20)]
    assert abs(np.mean(ranks)) < 0.35
    assert max(ranks) < 0.6


def test_a_surrogate_of_the_parameter_count_alone_is_no_better_than_it() -> None:
    found = validated(0, noise=0.0, of_params=0.1, of_parts=0.0)
    assert found.rank_by_params == pytest.approx(1.0)
    assert not found.is_better


def test_the_intervals_are_calibrated() -> None:
    """Over many samples of noisy values, the central intervals of 68 and 95 percent hold about that share."""
    found = [validated(seed, noise=0.3, of_params=0.1, of_parts=0.3) for seed in range(20)]
    assert np.mean([one.within_68 for one in found]) == pytest.approx(0.68, abs=0.08)
    assert np.mean([one.within_95 for one in found]) == pytest.approx(0.95, abs=0.04)


def test_only_the_first_rows_are_validated() -> None:
    """The rows after them are pruned trials, which have no measured value."""
    rng = np.random.default_rng(0)
    inputs = Inputs(rng.normal(size=(40, 3)), rng.normal(size=(40, 5)))
    values = inputs.whole[:, 0] + 0.1 * rng.normal(size=40)
    surrogate, params = Surrogate(inputs, values), np.arange(1, 31)
    mean, _ = surrogate.left_out()
    found = leave_one_out(surrogate, values[:30], params)
    assert found.n == 30
    assert found.rank == pytest.approx(spearmanr(mean[:30], values[:30]).statistic)


@pytest.mark.parametrize(
    ("rank", "by_params", "better"),
    [(0.5, 0.4, True), (0.4, 0.5, False), (0.4, 0.4, False), (-0.1, -0.5, False), (0.1, -0.5, True), (0.0, 0.0, False)],
)
def test_better_is_better_than_the_parameter_count_and_than_nothing(
    rank: float, by_params: float, better: bool
) -> None:
    assert LeaveOneOut(20, rank, by_params, 0.68, 0.95).is_better == better


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    expected = None if len(set(a)) == 1 or len(set(b)) == 1 else spearmanr(a, b).statistic
    assert spearman(a, b) == pytest.approx(expected, abs=1e-12)


def test_a_surrogate_of_constant_errors_ranks_nothing() -> None:
    """Spearman's correlation with a constant is undefined: it is reported as 0, and no better than the parameters."""
    rng = np.random.default_rng(0)
    inputs = Inputs(rng.normal(size=(20, 3)), rng.normal(size=(20, 5)))
    values = np.full(20, 0.9)
    found = leave_one_out(Surrogate(inputs, values), values, np.arange(1, 21))
    assert (found.rank, found.rank_by_params, found.is_better) == (0.0, 0.0, False)
