"""The surrogate fitted to a study's measured errors: what it predicts of networks that were not trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from igc_nas.samplers.features import Floats, features_of
from igc_nas.samplers.surrogate import MOST_POINTS, Surrogate
from igc_nas.space.encoding import Code, SpaceEncoding


class ErrorPredictor:
    """The surrogate fitted to measured `errors` (n,) of `codes`, n of 2 or more; of many the newest `MOST_POINTS`.

    `left_out` is what all others let believe of each code; `expected` with `deviation` (n,) the same in their order.
    """

    def __init__(self, encoding: SpaceEncoding, codes: Sequence[Code], errors: Sequence[float]) -> None:
        self.encoding = encoding
        self.errors = np.array(errors[-MOST_POINTS:], dtype=float)
        array = np.array(codes[-MOST_POINTS:], dtype=np.int64)
        costs = encoding.price(array)[1]
        self.params = costs[:, 0]
        self._features = features_of(encoding)
        self._inputs = self._features.of(array, costs)
        self.surrogate = Surrogate(self._inputs, self.errors)
        self.expected, self.deviation = self.surrogate.left_out()
        self.left_out = dict(zip(map(tuple, array.tolist()), map(float, self.expected), strict=True))

    def of(self, code: Code) -> float:
        """The error that is believed of a network."""
        array = np.array([code], dtype=np.int64)
        mean, _ = self.surrogate.predict(self._features.of(array, self.encoding.price(array)[1]))
        return float(mean[0])

    def of_measured(self) -> Floats:
        """(n,) the errors that are believed of the codes, their own measurements taken in."""
        return self.surrogate.predict(self._inputs)[0]
