"""A predictor of final errors (White et al. 2021, performance predictors): the surrogate fitted to a study's errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from igc_nas.samplers.features import Floats, features_of
from igc_nas.samplers.surrogate import MOST_POINTS, Surrogate
from igc_nas.space.encoding import Code, SpaceEncoding


class ErrorPredictor:
    """Fitted to the measured `errors` (n,) of `codes` (n of them), n >= 2; from more than `MOST_POINTS` to the newest.

    `expected` and `deviation` (n,) are the leave-one-out mean and standard deviation of each error, predicted from all
    other ones; `left_out` maps each code to that mean.
    """

    def __init__(self, encoding: SpaceEncoding, codes: Sequence[Code], errors: Sequence[float]) -> None:
        self.encoding = encoding
        self.errors = np.array(errors[-MOST_POINTS:], dtype=float)
        archs = encoding.priced(codes[-MOST_POINTS:])
        self.params = archs.cost("params")
        self._features = features_of(encoding)
        self._inputs = self._features.of(archs)
        self.surrogate = Surrogate(self._inputs, self.errors)
        self.expected, self.deviation = self.surrogate.left_out()
        self.left_out = dict(zip(archs, map(float, self.expected), strict=True))

    def predict(self, code: Code) -> float:
        """The expected error of a network."""
        mean, _ = self.surrogate.predict(self._features.of(self.encoding.priced([code])))
        return float(mean[0])

    def predict_fitted(self) -> Floats:
        """(n,) the expected errors of the codes that it was fitted to, each from all errors, its own included."""
        return self.surrogate.predict(self._inputs)[0]
