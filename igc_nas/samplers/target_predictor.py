"""The errors of a study's candidates at its target length, predicted from its short trainings and its longer ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from igc_nas.samplers.cross_validation import MIN_TRIALS
from igc_nas.samplers.features import Floats, Inputs, features_of
from igc_nas.samplers.surrogate import MOST_POINTS
from igc_nas.samplers.target_surrogate import MIN_LONGER, LongerErrors, PredictedErrors, TargetSurrogate
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study


class TargetPredictor:
    """Fitted to the newest `MOST_POINTS` candidates of a study with a target, and to its longer trainings.

    `candidates` are all those of the study's space, `predicted` their errors: after trainings of the target's number of
    images, or of the recipe's where fewer than `MIN_LONGER` longer ones have ended (`is_at_target` says which).
    """

    def __init__(self, study: Study) -> None:
        target, recipe = study.spec.target, study.spec.recipe
        assert target is not None
        encoding = study.spec.feasible.encoding
        known = [(c, code) for c in study.candidates if (code := encoding.code(c.arch)) is not None]
        longer = [(c, code) for c in study.longer.values() if (code := encoding.code(c.arch)) is not None]
        self.candidates = tuple(candidate for candidate, _ in known)
        features = features_of(encoding)
        inputs = features.of(encoding.priced([code for _, code in known]))
        errors = np.array([candidate.score.error for candidate in self.candidates])
        newest = np.arange(max(0, len(known) - MOST_POINTS), len(known))
        surrogate = TargetSurrogate(
            inputs.rows(newest),
            errors[newest],
            recipe.samples,
            longer_errors(features.of(encoding.priced([code for _, code in longer])), [c for c, _ in longer]),
        )
        self.is_at_target = len(longer) >= MIN_LONGER
        self.predicted: PredictedErrors = surrogate.predict(
            inputs, target.images if self.is_at_target else recipe.samples
        )

    @classmethod
    def of(cls, study: Study) -> TargetPredictor | None:
        """The predictor of a study; None without a target, and with fewer than `MIN_TRIALS` candidates."""
        has_enough = study.spec.target is not None and len(study.candidates) >= MIN_TRIALS
        predictor = cls(study) if has_enough else None
        return predictor if predictor and len(predictor.candidates) >= MIN_TRIALS else None


def longer_errors(inputs: Inputs, candidates: Sequence[Candidate]) -> LongerErrors:
    """The errors of longer trainings, of networks with these features."""
    scores = [candidate.score for candidate in candidates]

    def column(name: str) -> Floats:
        return np.array([getattr(score, name) for score in scores], dtype=float)

    return LongerErrors(inputs, column("error"), column("samples"), column("held_out"))
