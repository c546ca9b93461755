"""How well a surrogate knows: each value held against what all others say of it (leave-one-out)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from igc_nas.samplers.features import Floats
from igc_nas.samplers.surrogate import Surrogate
from igc_nas.space.encoding import Ints

MIN_TRIALS = 16


@dataclass(frozen=True)
class LeaveOneOut:
    """Of `n` values: Spearman's rank correlation of the left-out predictions with them, and of the parameter count.

    `within_68` and `within_95` are the shares of values inside the central intervals of so many percent: a calibrated
    surrogate has them at .68 and .95. `rmse` is of the left-out means, in the units of the values.
    """

    n: int
    rank: float
    rank_by_params: float
    within_68: float
    within_95: float
    rmse: float

    @property
    def is_better(self) -> bool:
        """Whether the surrogate ranks better than the parameter count does, or at all."""
        return self.rank > max(0.0, self.rank_by_params)


def leave_one_out(surrogate: Surrogate, values: Floats, params: Ints) -> LeaveOneOut:
    """Judge the surrogate of errors by the first of its rows, whose `values` (n,) and `params` (n,) are given."""
    mean, deviation = (column[: len(values)] for column in surrogate.left_out())
    z = np.abs(values - mean) / deviation
    return LeaveOneOut(
        n=len(values),
        rank=spearman(mean, values) or 0.0,  # a constant ranks nothing: 0, so `is_better` is False
        rank_by_params=spearman(-np.log(params), values) or 0.0,
        within_68=float((z <= 0.9945).mean()),
        within_95=float((z <= 1.96).mean()),
        rmse=float(np.sqrt(np.mean((values - mean) ** 2))),
    )


def spearman(a: Floats, b: Floats) -> float | None:
    """Spearman's rank correlation of two arrays (n,), ties at their mean rank; None where one of them is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None  # the correlation is not defined; scipy would warn and return nan
    return float(spearmanr(a, b).statistic)
