"""How well the known-cost sampler's surrogate predicts a study's errors: leave-one-out over the completed trials."""

from __future__ import annotations

from dataclasses import dataclass

from igc_nas.samplers.cross_validation import MIN_TRIALS, LeaveOneOut, leave_one_out
from igc_nas.samplers.error_predictor import ErrorPredictor
from igc_nas.samplers.surrogate import MOST_POINTS
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study


@dataclass(frozen=True)
class SurrogateQuality:
    """For each of `trials` its error, and the `expected` error with its `deviation`, predicted from all other trials.

    `validation` sums them up.
    """

    validation: LeaveOneOut
    trials: tuple[int, ...]
    errors: tuple[float, ...]
    expected: tuple[float, ...]
    deviation: tuple[float, ...]

    def sentence(self) -> str:
        """The result in one sentence: rank correlations, and the coverage of the intervals."""
        v = self.validation
        verdict = "" if v.is_better else "; no better than the parameter count, so it is not used"
        return (
            f"leave-one-out over {v.n} errors: rank correlation {v.rank:.2f} by the surrogate, "
            f"{v.rank_by_params:.2f} by the parameter count{verdict}; its 68 % intervals hold "
            f"{100 * v.within_68:.0f} %, its 95 % intervals {100 * v.within_95:.0f} %"
        )


def surrogate_quality(study: Study, most_points: int = MOST_POINTS) -> SurrogateQuality | None:
    """Cross-validate the surrogate on the newest `most_points` completed trials of the study's own space.

    None with fewer than `MIN_TRIALS` of them.
    """
    fitted = _fit(study, most_points)
    if fitted is None:
        return None
    predictor, candidates = fitted
    return SurrogateQuality(
        validation=leave_one_out(predictor.surrogate, predictor.errors, predictor.params),
        trials=tuple(candidate.trial for candidate in candidates),
        errors=tuple(map(float, predictor.errors)),
        expected=tuple(map(float, predictor.expected)),
        deviation=tuple(map(float, predictor.deviation)),
    )


def predicted_errors(study: Study) -> dict[str, float]:
    """By canonical id the surrogate's prediction for each candidate, fitted to all errors including its own.

    It also draws on similar networks, so it has less of the noise of a single training than the measured error has.
    Empty with fewer than `MIN_TRIALS` completed trials.
    """
    fitted = _fit(study, MOST_POINTS)
    if fitted is None:
        return {}
    predictor, candidates = fitted
    return {c.id: float(value) for c, value in zip(candidates, predictor.predict_fitted(), strict=True)}


def _fit(study: Study, most_points: int) -> tuple[ErrorPredictor, list[Candidate]] | None:
    """The predictor, with the candidates that it was fitted to."""
    if len(study.candidates) < MIN_TRIALS:
        return None  # before the encoding is made: that takes a second
    encoding = study.spec.feasible.encoding
    known = [(c, code) for c in study.candidates if (code := encoding.code(c.arch)) is not None][-most_points:]
    if len(known) < MIN_TRIALS:
        return None
    candidates = [candidate for candidate, _ in known]
    return ErrorPredictor(encoding, [code for _, code in known], [c.score.error for c in candidates]), candidates
