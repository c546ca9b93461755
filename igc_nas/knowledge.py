"""What the sampler's surrogate knows of a study's errors: how well it ranks and how surely, told to people.

The surrogate is the one that `--sampler known-cost` asks, fitted to the completed trials; each is predicted from all
others (leave-one-out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igc_nas.catalog import Catalog, Code, Ints
from igc_nas.features import Features, Floats, Inputs
from igc_nas.record import Candidate
from igc_nas.results import Study
from igc_nas.surrogate import MOST_POINTS, Surrogate
from igc_nas.trust import LEAST_FOR_TRUST, Trust, trust_in


@dataclass(frozen=True)
class Knowledge:
    """For each of `trials`: the error, and what the surrogate would have said (`expected`, `deviation`) without it."""

    trust: Trust
    trials: tuple[int, ...]
    errors: tuple[float, ...]
    expected: tuple[float, ...]
    deviation: tuple[float, ...]

    def sentence(self) -> str:
        """What is to be said of it, in one sentence."""
        t = self.trust
        verdict = "" if t.is_better else "; no better than the parameter count, so it is not followed"
        return (
            f"left out one by one, {t.n} errors are ranked with correlation {t.rank:.2f} by the surrogate, "
            f"{t.rank_by_params:.2f} by the parameter count{verdict}; its 68 % intervals hold {t.within_68:.0%}, "
            f"its 95 % intervals {t.within_95:.0%}"
        )


class Forecast:
    """What is believed of errors: of each of `codes` by all others (`left_out`), and of any other network.

    `errors` are those that were measured, two or more.
    """

    def __init__(self, catalog: Catalog, codes: Sequence[Code], errors: Sequence[float]) -> None:
        self.catalog = catalog
        self._features = Features(catalog)
        array = np.array(codes[-MOST_POINTS:], dtype=np.int64)
        self._surrogate = Surrogate(
            self._features.of(array, catalog.price(array)[1]), np.array(errors[-MOST_POINTS:], dtype=float)
        )
        mean, _ = self._surrogate.left_out()
        self.left_out = dict(zip(map(tuple, array.tolist()), map(float, mean), strict=True))
        """By code; of more than `MOST_POINTS` the newest."""

    def of(self, code: Code) -> float:
        """The error that is believed of a network."""
        array = np.array([code], dtype=np.int64)
        mean, _ = self._surrogate.predict(self._features.of(array, self.catalog.price(array)[1]))
        return float(mean[0])


def forecast_of(study: Study) -> Forecast | None:
    """By the completed trials of the study's own space; None below `LEAST_FOR_TRUST` of them."""
    if len(study.candidates) < LEAST_FOR_TRUST:
        return None
    catalog = study.spec.feasible.catalog
    known = {code: c.score.error for c in study.candidates if (code := catalog.code(c.arch)) is not None}
    return Forecast(catalog, list(known), list(known.values())) if len(known) >= LEAST_FOR_TRUST else None


@dataclass(frozen=True)
class _Fitted:
    """The surrogate of a study's errors with what it was fitted to."""

    surrogate: Surrogate
    candidates: tuple[Candidate, ...]
    inputs: Inputs
    errors: Floats
    params: Ints


def _fitted(study: Study) -> _Fitted | None:
    """Fitted to the completed trials of the study's own space; None below `LEAST_FOR_TRUST` of them.

    Of more than `MOST_POINTS` the newest are taken.
    """
    if len(study.candidates) < LEAST_FOR_TRUST:
        return None  # the catalog takes a second
    catalog = study.spec.feasible.catalog
    coded = [(candidate, catalog.code(candidate.arch)) for candidate in study.candidates]
    known = [(candidate, code) for candidate, code in coded if code is not None][-MOST_POINTS:]
    if len(known) < LEAST_FOR_TRUST:
        return None
    codes = np.array([code for _, code in known], dtype=np.int64)
    errors = np.array([candidate.score.error for candidate, _ in known])
    costs = catalog.price(codes)[1]
    inputs = Features(catalog).of(codes, costs)
    return _Fitted(Surrogate(inputs, errors), tuple(c for c, _ in known), inputs, errors, costs[:, 0])


def knowledge_of(study: Study) -> Knowledge | None:
    """The knowledge of a study; None below `LEAST_FOR_TRUST` completed trials of its own space.

    Of more than `MOST_POINTS` the newest are judged.
    """
    fitted = _fitted(study)
    if fitted is None:
        return None
    mean, deviation = fitted.surrogate.left_out()
    return Knowledge(
        trust=trust_in(fitted.surrogate, fitted.errors, fitted.params),
        trials=tuple(candidate.trial for candidate in fitted.candidates),
        errors=tuple(map(float, fitted.errors)),
        expected=tuple(map(float, mean)),
        deviation=tuple(map(float, deviation)),
    )


def believed(study: Study) -> dict[str, float]:
    """By canonical id the error that the surrogate believes of each candidate, its own measured one taken in.

    What a network shares with others speaks for it, so a belief carries less of one training's noise than an error
    does. Empty below `LEAST_FOR_TRUST` completed trials.
    """
    fitted = _fitted(study)
    if fitted is None:
        return {}
    mean, _ = fitted.surrogate.predict(fitted.inputs)
    return {candidate.id: float(value) for candidate, value in zip(fitted.candidates, mean, strict=True)}
