"""A Gaussian process over architectures: what is believed of an objective that has to be measured, and how surely.

The mean is linear in the features of the whole network (log params, log MACs, ...); a Matern 5/2 kernel over all
features carries what that leaves over (Rasmussen and Williams 2006, chapters 2, 4 and 5). Length scales, the weight of
the parts and the noise are those of the highest marginal likelihood on a grid; scales of the outputs are profiled out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from igc_nas.samplers.features import Floats, Inputs
from igc_nas.space.encoding import Ints

LENGTHS = (0.7, 1.5, 3.5)
PARTS = (0.4, 1.0)
LINEAR = (0.3, 3.0)
NOISES = np.geomspace(1e-4, 3.0, 14)
"""Noise variance, of that of the kernel."""
MOST_FOR_CHOICE, MOST_POINTS = 96, 400


@dataclass(frozen=True)
class _Kernel:
    """A covariance of standardised inputs: `linear` times the linear one, plus Matern 5/2 with `length` per feature.

    `parts` weighs the features of the stages against those of the whole.
    """

    length: float
    parts: float
    linear: float

    def __call__(self, a: Inputs, b: Inputs) -> Floats:
        linear: Floats = self.linear * (1 + a.whole @ b.whole.T) / (1 + a.whole.shape[1])
        return linear + self._matern(a, b)

    def diagonal(self, a: Inputs) -> Floats:
        found: Floats = 1 + self.linear * (1 + (a.whole**2).sum(axis=1)) / (1 + a.whole.shape[1])
        return found

    def _matern(self, a: Inputs, b: Inputs) -> Floats:
        squares = _squares(a.whole, b.whole) / a.whole.shape[1] + self.parts * _squares(a.parts, b.parts) / max(
            1, a.parts.shape[1]
        )
        distance = np.sqrt(5 * np.maximum(squares, 0)) / self.length
        found: Floats = (1 + distance + distance**2 / 3) * np.exp(-distance)
        return found


class Surrogate:
    """Fitted to `values` (n,) at `inputs` (n rows); n of 2 or more. `noises` (n,) is variance known beforehand.

    Predictions are of the objective itself, without the noise of a measurement.
    """

    def __init__(self, inputs: Inputs, values: Floats, noises: Floats | None = None) -> None:
        self._centre = Inputs(inputs.whole.mean(axis=0), inputs.parts.mean(axis=0))
        self._spread = Inputs(_spread(inputs.whole), _spread(inputs.parts))
        self._inputs = self._standard(inputs)
        self._mean, self._scale = float(values.mean()), float(values.std()) or 1.0
        targets = (values - self._mean) / self._scale
        self._kernel, noise = _choose(self._inputs, targets)
        own = np.zeros(len(values)) if noises is None else noises / self._scale**2
        covariance = self._kernel(self._inputs, self._inputs)
        self._variance = _profiled(covariance + noise * np.eye(len(values)), targets)
        covariance[np.diag_indices_from(covariance)] += noise + own / self._variance
        self._factor: Floats = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        self._targets = targets
        self._weights = _solve(self._factor, targets)

    def _standard(self, inputs: Inputs) -> Inputs:
        return Inputs(
            (inputs.whole - self._centre.whole) / self._spread.whole,
            (inputs.parts - self._centre.parts) / self._spread.parts,
        )

    def predict(self, inputs: Inputs) -> tuple[Floats, Floats]:
        """(mean, standard deviation), in the units of the values."""
        from scipy.linalg import solve_triangular

        standard = self._standard(inputs)
        across = self._kernel(standard, self._inputs)
        half = solve_triangular(self._factor, across.T, lower=True, check_finite=False)
        variance = np.maximum(1e-9, self._kernel.diagonal(standard) - (half**2).sum(axis=0)) * self._variance
        return self._mean + self._scale * (across @ self._weights), self._scale * np.sqrt(variance)

    def left_out(self) -> tuple[Floats, Floats]:
        """(mean, standard deviation) of each value from all others, measuring noise included (section 5.4.2)."""
        inverse = _solve(self._factor, np.eye(len(self._targets)))
        diagonal = np.diag(inverse)
        mean = self._targets - self._weights / diagonal
        return self._mean + self._scale * mean, self._scale * np.sqrt(self._variance / diagonal)


def subset(values: Floats, keep: Ints, most: int = MOST_POINTS) -> Ints:
    """At most about `most` rows to fit to, ascending: `keep`, the newest quarter, and others evenly spread by value."""
    n = len(values)
    if n <= most:
        return np.arange(n)
    chosen = np.union1d(keep[: most // 4], np.arange(n - most // 4, n))
    rest = np.setdiff1d(np.argsort(values, kind="stable"), chosen, assume_unique=True)
    ordered = rest[np.argsort(values[rest], kind="stable")]
    even = ordered[np.linspace(0, len(ordered) - 1, most - len(chosen)).astype(int)]
    return np.union1d(chosen, even)


def _choose(inputs: Inputs, targets: Floats) -> tuple[_Kernel, float]:
    """The kernel and the noise of the highest marginal likelihood, on an even subset of the rows."""
    if len(targets) > MOST_FOR_CHOICE:
        rows = np.linspace(0, len(targets) - 1, MOST_FOR_CHOICE).astype(int)
        inputs, targets = inputs.rows(rows), targets[rows]
    best: tuple[float, _Kernel, float] | None = None
    for setting in product(LENGTHS, PARTS, LINEAR):
        kernel = _Kernel(*setting)
        roots, vectors = np.linalg.eigh(kernel(inputs, inputs))
        turned = (vectors.T @ targets) ** 2
        spectrum = np.maximum(roots, 0)[:, None] + NOISES
        variance = np.maximum((turned[:, None] / spectrum).mean(axis=0), 1e-9)  # 0 where all values are one
        costs = np.log(spectrum).sum(axis=0) + len(targets) * np.log(variance)
        at = int(np.argmin(costs))
        if best is None or costs[at] < best[0]:
            best = (float(costs[at]), kernel, float(NOISES[at]))
    assert best is not None
    return best[1], best[2]


def _profiled(covariance: Floats, targets: Floats) -> float:
    return max(1e-9, float(targets @ np.linalg.solve(covariance, targets)) / len(targets))


def _squares(a: Floats, b: Floats) -> Floats:
    found: Floats = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return found


def _spread(columns: Floats) -> Floats:
    spread: Floats = columns.std(axis=0)
    return np.where(spread > 1e-9, spread, 1.0)


def _solve(factor: Floats, right: Floats) -> Floats:
    from scipy.linalg import cho_solve

    found: Floats = cho_solve((factor, True), right, check_finite=False)
    return found
