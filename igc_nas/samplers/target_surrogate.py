"""A surrogate over architectures and the length of their training: the error at a length that few were trained for.

    logit error(x, n) = f(x) + t g(x) + a + b t + c t^2 + noise,    t = log(n / n_0) / log(20)

(n images; n_0 in most trainings.) f has the kernel of `Surrogate`, fitted to the trainings of n_0 images; g, by which
the order of architectures changes with the length, the same kernel with another weight of its linear part; a and b
have a wide prior, c a narrow one, which widens the intervals beyond the longest training. It is co-kriging (Kennedy and
O'Hagan 2000) with the length as a linear basis (FABOLAS: Klein et al. 2017, arXiv 1605.07079). Logits, because the
error falls about linearly in them over log n.

Scores at rungs are no observations: `igc_table`'s long trainings are ranked worse with them (taken before the learning
rate has fallen, and with the noise of the same training).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from igc_nas.samplers.features import Floats, Inputs
from igc_nas.samplers.surrogate import Surrogate

FACTOR = 20.0
"""t is 1 for a training of this number of times the images."""
DRIFTS, PENALTY = (0.3, 3.0, 30.0, 300.0), 4.0
"""The variance of g's two parts, where that of f's Matern part is 1. With 0.3 the long trainings of `igc_table` are
ranked best, of 0.03 to 3: from trainings of 1/20 (`igc-nas report igc_table`) and of 1/80 of their images. A larger one
is taken where the logarithm of the likelihood of all errors gains more than the penalty by it."""
TREND, CURVE, UNKNOWN_CURVE = 100.0, 0.25, 2.0
"""The variances of a and b, of c where networks are compared, and of c in intervals. An error in c moves all networks
alike. From 6,000 and 12,000 images to 240,000 the 95 % intervals of 28 networks of `igc_table` hold 93 % with 2.0, 71 %
with 0.25."""
SEED_VARIANCE = 2.0
"""The variance of a longer training's error, as a multiple of the sampling variance of its score."""
MIN_LONGER = 3
"""Errors are predicted at the target from this number of longer trainings on: fewer cannot tell b from g."""
Z_95 = 1.96


@dataclass(frozen=True)
class LongerErrors:
    """The errors (n,) of longer trainings: of `images` (n,) each, scored on `held_out` (n,) images."""

    inputs: Inputs
    errors: Floats
    images: Floats
    held_out: Floats

    def __len__(self) -> int:
        return len(self.errors)


@dataclass(frozen=True)
class PredictedErrors:
    """Errors as their logits are distributed: normal, with `mean` (n,) and `deviation` (n,).

    `spread` (n,) is the deviation with that of the curve, which all networks have in common.
    """

    mean: Floats
    deviation: Floats
    spread: Floats

    @property
    def errors(self) -> Floats:
        """(n,) the medians."""
        return _logistic(self.mean)

    @property
    def std(self) -> Floats:
        """(n,) the standard deviations, to first order."""
        return self.deviation * self.errors * (1 - self.errors)

    @property
    def interval(self) -> tuple[Floats, Floats]:
        """((n,), (n,)) the bounds of the 95 % intervals."""
        return _logistic(self.mean - Z_95 * self.spread), _logistic(self.mean + Z_95 * self.spread)


class TargetSurrogate:
    """Fitted to `errors` (n,) of trainings of `images` images at `inputs` (n rows), and to `longer` ones.

    `noises` (n,) are known variances of the errors. `short` is the surrogate of the logits of `errors`, by which the
    kernel, its scale and the noise are chosen.
    """

    def __init__(
        self, inputs: Inputs, errors: Floats, images: int, longer: LongerErrors, noises: Floats | None = None
    ) -> None:
        from scipy.linalg import cho_solve

        self._images = images
        self.short = Surrogate(inputs, _logit(errors), None if noises is None else noises / _slope(errors) ** 2)
        self._of_g = replace(self.short.kernel, linear=1.0)
        both = (
            np.concatenate(pair) for pair in ((inputs.whole, longer.inputs.whole), (inputs.parts, longer.inputs.parts))
        )
        self._inputs = self.short.standardised(Inputs(*both))
        self._lengths = np.concatenate([np.zeros(len(errors)), self._length(longer.images)])
        values = _logit(np.concatenate([errors, longer.errors])) - self.short.mean
        known = np.zeros(len(errors)) if noises is None else noises / _slope(errors) ** 2
        of_longer = SEED_VARIANCE / (longer.held_out * _slope(longer.errors))
        self._unit = self.short.scale**2 * self.short.variance
        """The variance of logits that 1 stands for in covariances, no smaller than the sampling variance of a score:
        where all short trainings end at chance their own says that no training can change anything."""
        if len(longer):
            self._unit = max(self._unit, 1 / float(longer.held_out.mean() * _slope(errors).mean()))
        noise = np.concatenate([self.short.noise + known / self._unit, of_longer / self._unit])
        fits = []
        for place, self._drift in enumerate(DRIFTS if len(longer) else DRIFTS[:1]):
            covariance = self._covariance(self._inputs, self._lengths, self._inputs, self._lengths) + np.diag(noise)
            factor: Floats = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
            weights: Floats = cho_solve((factor, True), values, check_finite=False)
            misfit = 0.5 * float(values @ weights) / self._unit + float(np.log(np.diag(factor)).sum())
            fits.append((misfit + PENALTY * place, self._drift, factor, weights))
        _, self._drift, self._factor, self._weights = min(fits, key=lambda fit: fit[0])
        squares = self._lengths**2
        self._of_curve: Floats = cho_solve((self._factor, True), squares, check_finite=False)
        self._more_curve = 1 / (1 / (UNKNOWN_CURVE - CURVE) + float(squares @ self._of_curve))
        """The posterior variance of what c is beyond CURVE (Sherman and Morrison's update by one column)."""

    def _length(self, images: Floats) -> Floats:
        found: Floats = np.log(images / self._images) / np.log(FACTOR)
        return found

    def _covariance(self, a: Inputs, lengths_a: Floats, b: Inputs, lengths_b: Floats) -> Floats:
        lengths = lengths_a[:, None] * lengths_b[None, :]
        return self.short.kernel(a, b) + TREND + lengths * (self._drift * self._of_g(a, b) + TREND + CURVE * lengths)

    def predict(self, inputs: Inputs, images: float) -> PredictedErrors:
        """The errors of networks, without the noise of a measurement, after trainings of `images` images."""
        from scipy.linalg import solve_triangular

        standard, lengths = self.short.standardised(inputs), self._length(np.full(len(inputs), images))
        across = self._covariance(standard, lengths, self._inputs, self._lengths)
        half = solve_triangular(self._factor, across.T, lower=True, check_finite=False)
        of_g = self._drift * self._of_g.diagonal(standard) + TREND + CURVE * lengths**2
        prior = self.short.kernel.diagonal(standard) + TREND + lengths**2 * of_g
        variance = np.maximum(1e-9, prior - (half**2).sum(axis=0)) * self._unit
        mean = self.short.mean + across @ self._weights
        left = (lengths**2 - across @ self._of_curve) ** 2 * self._more_curve * self._unit
        return PredictedErrors(mean, np.sqrt(variance), np.sqrt(variance + left))


def _logit(errors: Floats) -> Floats:
    inside = np.clip(errors, 1e-4, 1 - 1e-4)
    found: Floats = np.log(inside / (1 - inside))
    return found


def _slope(errors: Floats) -> Floats:
    """The derivative of the error by its logit."""
    inside = np.clip(errors, 1e-4, 1 - 1e-4)
    found: Floats = inside * (1 - inside)
    return found


def _logistic(logits: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-logits))
    return found
