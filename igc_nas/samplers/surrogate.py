"""A Gaussian process over architectures: predicts an objective that has to be measured (error, latency).

The kernel is a linear one over the features of the whole network (log params, log MACs, ...) plus a Matern 5/2 kernel
over all features, which fits the residuals of the linear part (Rasmussen and Williams 2006, chapters 2, 4 and 5). The
length scale, the weights of the two parts and the noise maximise the marginal likelihood on a grid; the variance of
the outputs is profiled out.
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
"""Noise variance relative to the kernel's."""
MOST_FOR_CHOICE = 96
"""The kernel is chosen on at most this number of rows: each setting of the grid costs an eigendecomposition."""
MOST_POINTS = 400
"""A surrogate is fitted to about this number of trials at most."""


@dataclass(frozen=True)
class Kernel:
    """A covariance of standardised inputs: `linear` times the linear kernel, plus Matern 5/2 of scale `length`.

    `parts` is the weight of the stages' features in the distance, where that of the network's features is 1.
    """

    length: float
    parts: float
    linear: float

    def __call__(self, a: Inputs, b: Inputs) -> Floats:
        """(rows of a, rows of b) the covariance of each pair of rows."""
        linear: Floats = self.linear * (1 + a.whole @ b.whole.T) / (1 + a.whole.shape[1])
        return linear + self._matern(a, b)

    def diagonal(self, a: Inputs) -> Floats:
        """(n,) the variance of each row: the diagonal of `kernel(a, a)`."""
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
    """A Gaussian process fitted to `values` (n,) at `inputs` (n rows), n >= 2.

    `noises` (n,) are known variances of the values, added to the noise that is fitted. Predictions are of the objective
    itself, without the noise of a measurement. `inputs` are kept standardised; the covariance of the standardised
    values, `(values - mean) / scale`, is `variance * (kernel(inputs, inputs) + noise * identity)` plus the known noise.
    """

    def __init__(self, inputs: Inputs, values: Floats, noises: Floats | None = None) -> None:
        self._centre = Inputs(inputs.whole.mean(axis=0), inputs.parts.mean(axis=0))
        self._spread = Inputs(_spread(inputs.whole), _spread(inputs.parts))
        self.inputs = self.standardised(inputs)
        self.mean, self.scale = float(values.mean()), float(values.std()) or 1.0
        targets = (values - self.mean) / self.scale
        self.kernel, self.noise = _choose(self.inputs, targets)
        known_noise = np.zeros(len(values)) if noises is None else noises / self.scale**2
        covariance = self.kernel(self.inputs, self.inputs)
        self.variance = _profiled_variance(covariance + self.noise * np.eye(len(values)), targets)
        covariance[np.diag_indices_from(covariance)] += self.noise + known_noise / self.variance
        self._factor: Floats = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        self._targets = targets
        self._weights = _solve(self._factor, targets)

    def standardised(self, inputs: Inputs) -> Inputs:
        """Inputs on the scale of those that it was fitted to: mean 0, standard deviation 1."""
        return Inputs(
            (inputs.whole - self._centre.whole) / self._spread.whole,
            (inputs.parts - self._centre.parts) / self._spread.parts,
        )

    def predict(self, inputs: Inputs) -> tuple[Floats, Floats]:
        """(mean, standard deviation), in the units of the values."""
        from scipy.linalg import solve_triangular

        standard = self.standardised(inputs)
        across = self.kernel(standard, self.inputs)
        half = solve_triangular(self._factor, across.T, lower=True, check_finite=False)
        variance = np.maximum(1e-9, self.kernel.diagonal(standard) - (half**2).sum(axis=0)) * self.variance
        return self.mean + self.scale * (across @ self._weights), self.scale * np.sqrt(variance)

    def left_out(self) -> tuple[Floats, Floats]:
        """(mean, standard deviation) of each value from all other ones, with the noise of a measurement.

        Leave-one-out in closed form: Rasmussen and Williams 2006, section 5.4.2.
        """
        inverse = _solve(self._factor, np.eye(len(self._targets)))
        diagonal = np.diag(inverse)
        mean = self._targets - self._weights / diagonal
        return self.mean + self.scale * mean, self.scale * np.sqrt(self.variance / diagonal)


def subset(values: Floats, keep: Ints, most: int = MOST_POINTS) -> Ints:
    """At most about `most` rows to fit to, ascending.

    They are up to `most / 4` of `keep`, the `most / 4` newest, and others evenly spread over the sorted values.
    """
    n = len(values)
    if n <= most:
        return np.arange(n)
    chosen = np.union1d(keep[: most // 4], np.arange(n - most // 4, n))
    rest = np.setdiff1d(np.argsort(values, kind="stable"), chosen, assume_unique=True)
    ordered = rest[np.argsort(values[rest], kind="stable")]
    even = ordered[np.linspace(0, len(ordered) - 1, most - len(chosen)).astype(int)]
    return np.union1d(chosen, even)


def _choose(inputs: Inputs, targets: Floats) -> tuple[Kernel, float]:
    """The kernel and the noise of the highest marginal likelihood on the grid, from evenly spaced rows."""
    if len(targets) > MOST_FOR_CHOICE:
        rows = np.linspace(0, len(targets) - 1, MOST_FOR_CHOICE).astype(int)
        inputs, targets = inputs.rows(rows), targets[rows]
    best: tuple[float, Kernel, float] | None = None
    for length, parts, linear in product(LENGTHS, PARTS, LINEAR):
        kernel = Kernel(length, parts, linear)
        # One eigendecomposition serves all noises: they only shift the eigenvalues.
        eigenvalues, vectors = np.linalg.eigh(kernel(inputs, inputs))
        rotated = (vectors.T @ targets) ** 2
        spectrum = np.maximum(eigenvalues, 0)[:, None] + NOISES
        variance = np.maximum((rotated[:, None] / spectrum).mean(axis=0), 1e-9)  # 0 where all values are equal
        losses = np.log(spectrum).sum(axis=0) + len(targets) * np.log(variance)
        at = int(np.argmin(losses))
        if best is None or losses[at] < best[0]:
            best = (float(losses[at]), kernel, float(NOISES[at]))
    assert best is not None
    return best[1], best[2]


def _profiled_variance(covariance: Floats, targets: Floats) -> float:
    """The output variance of the highest likelihood, in closed form."""
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
