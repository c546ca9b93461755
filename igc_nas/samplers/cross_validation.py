"""Leave-one-out cross-validation of a surrogate: how well it ranks, and whether its intervals are calibrated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from igc_nas.samplers.features import Floats
from igc_nas.samplers.surrogate import Surrogate
from igc_nas.space.encoding import Ints

MIN_TRIALS = 16
"""A surrogate of fewer trials is not cross-validated."""


@dataclass(frozen=True)
class LeaveOneOut:
    """Each of `n` values against its prediction from all other ones.

    `rank` is Spearman's correlation of the predictions with the values, `rank_by_params` that of -log(params).
    `within_68` and `within_95` are the shares of values inside the central 68 % and 95 % intervals: about .68 and .95
    for a calibrated surrogate.
    """

    n: int
    rank: float
    rank_by_params: float
    within_68: float
    within_95: float

    @property
    def is_better(self) -> bool:
        """Whether the surrogate ranks the values better than the parameter count does, and better than chance."""
        return self.rank > max(0.0, self.rank_by_params)


def leave_one_out(surrogate: Surrogate, values: Floats, params: Ints) -> LeaveOneOut:
    """Cross-validate a surrogate of errors on its first n rows, whose `values` (n,) and `params` (n,) are given.

    The rows after them are those of pruned trials: they have no measured value. The predictions are in closed form
    (see `Surrogate.left_out`), so nothing is fitted again.
    """
    mean, deviation = (column[: len(values)] for column in surrogate.left_out())
    within_68, within_95 = coverage((values - mean) / deviation)
    return LeaveOneOut(
        n=len(values),
        rank=spearman(mean, values) or 0.0,  # a constant ranks nothing: 0, so `is_better` is False
        rank_by_params=spearman(-np.log(params), values) or 0.0,
        within_68=within_68,
        within_95=within_95,
    )


def coverage(z: Floats) -> tuple[float, float]:
    """The shares of residuals, in standard deviations, inside the normal distribution's central 68 and 95 %."""
    distances = np.abs(z)
    return float((distances <= 0.9945).mean()), float((distances <= 1.96).mean())


def spearman(a: Floats, b: Floats) -> float | None:
    """Spearman's rank correlation of two arrays (n,), ties at their mean rank; None where one of them is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None  # the correlation is not defined; scipy would warn and return nan
    return float(spearmanr(a, b).statistic)
