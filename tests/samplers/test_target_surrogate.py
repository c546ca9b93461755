"""The surrogate over the length of training: what it predicts from longer trainings, and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from igc_nas.samplers.features import Inputs
from igc_nas.samplers.target_surrogate import LongerErrors, TargetSurrogate

N, SHORT = 40, 1000


def inputs(rng: np.random.Generator, n: int = N) -> Inputs:
    return Inputs(rng.normal(size=(n, 3)), rng.normal(size=(n, 4)))


def logistic(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


def fitted(rows: list[int], slope: float = 0.0) -> tuple[TargetSurrogate, Inputs, np.ndarray]:
    """One fitted to short trainings and to longer ones of `rows`: (the surrogate, the inputs, the true long errors).

    A training of e^2 times the images lowers the logit by 1, and by `slope` for each unit of the first feature.
    """
    rng = np.random.default_rng(0)
    given = inputs(rng)
    short, long = 0.3 * given.whole[:, 1] + 0.2, 0.3 * given.whole[:, 1] - 0.8 - slope * given.whole[:, 0]
    noise = rng.normal(scale=0.02, size=N)
    longer = LongerErrors(
        given.rows(np.array(rows, dtype=np.int64)),
        logistic(long[rows]),
        np.full(len(rows), SHORT * np.exp(2)),
        np.full(len(rows), 5000.0),
    )
    return TargetSurrogate(given, logistic(short + noise), SHORT, longer), given, logistic(long)


def test_without_a_longer_training_it_is_the_surrogate_of_the_short_ones() -> None:
    surrogate, given, _ = fitted([])
    short = logistic(surrogate.short.predict(given)[0])
    assert surrogate.predict(given, SHORT).errors == pytest.approx(short, abs=0.01)


def test_a_few_longer_trainings_shift_all_predictions() -> None:
    surrogate, given, truth = fitted([0, 1, 2, 3])
    predicted = surrogate.predict(given, SHORT * np.exp(2))
    assert predicted.errors == pytest.approx(truth, abs=0.03)
    low, high = predicted.interval
    assert ((low < truth) & (truth < high)).mean() > 0.8


@pytest.mark.parametrize("held_out", [24, 4000])
@pytest.mark.parametrize("chance", [0.3, 0.5, 0.9])
def test_longer_trainings_count_where_all_short_ones_end_alike(chance: float, held_out: int) -> None:
    """As short trainings on few images do, at chance: equal errors do not say that no training changes them."""
    given = inputs(np.random.default_rng(0))
    longer = LongerErrors(
        given.rows(np.arange(4)),
        np.array([0.1, 0.12, 0.09, 0.1]),
        np.full(4, 10.0 * SHORT),
        np.full(4, float(held_out)),
    )
    predicted = TargetSurrogate(given, np.full(N, chance), SHORT, longer).predict(given, 10.0 * SHORT)
    assert np.median(predicted.errors) == pytest.approx(0.1, abs=0.03)
    assert (predicted.errors < 0.25).all()
    low, high = (bound[:4] for bound in predicted.interval)
    assert ((low < 0.11) & (high > 0.09) & (high - low > 0.005)).all()


def test_it_learns_that_the_order_turns_round() -> None:
    surrogate, given, truth = fitted(list(range(12)), slope=0.8)
    rest = np.arange(12, N)
    predicted = surrogate.predict(given.rows(rest), SHORT * np.exp(2)).errors
    assert np.corrcoef(predicted, truth[rest])[0, 1] > 0.9
    assert np.corrcoef(surrogate.predict(given.rows(rest), SHORT).errors, truth[rest])[0, 1] < 0.7


def test_it_is_less_sure_of_longer_trainings_than_it_has_seen() -> None:
    surrogate, given, _ = fitted([0, 1, 2, 3, 4])
    seen, beyond = (surrogate.predict(given, SHORT * np.exp(at)).deviation for at in (2, 4))
    assert (beyond > seen).all()


@pytest.mark.parametrize("bend", [-0.25, 0.0, 0.25])
def test_beyond_what_it_has_seen_its_intervals_hold_a_learning_curve_that_bends(bend: float) -> None:
    """All networks alike: their order is as sure as it was, so the deviations by which they are compared stay."""
    rng = np.random.default_rng(2)
    given = inputs(rng)
    of_network = 0.3 * given.whole[:, 1] + 0.2 * np.sin(2 * given.parts[:, 0]) + rng.normal(scale=0.05, size=N)

    def errors(at: float) -> np.ndarray:
        return logistic(of_network - 0.5 * at + bend * (at / np.log(20)) ** 2)

    rows = np.arange(6)
    longer = LongerErrors(given.rows(rows), errors(1.5)[rows], np.full(6, SHORT * np.exp(1.5)), np.full(6, 5000.0))
    predicted = TargetSurrogate(given, errors(0), SHORT, longer).predict(given, SHORT * np.exp(4))
    low, high = predicted.interval
    assert ((low < errors(4)) & (errors(4) < high)).mean() > 0.9
    assert (predicted.spread > 1.2 * predicted.deviation).all()


def test_an_error_of_nothing_or_all_is_no_infinity() -> None:
    rng = np.random.default_rng(1)
    longer = LongerErrors(inputs(rng, 3), np.array([0.0, 0.1, 1.0]), np.full(3, 5e3), np.full(3, 1e2))
    predicted = TargetSurrogate(inputs(rng), rng.choice([0.0, 0.5, 1.0], N), SHORT, longer).predict(inputs(rng), 1e5)
    assert np.isfinite(predicted.errors).all()
    assert np.isfinite(predicted.std).all()
