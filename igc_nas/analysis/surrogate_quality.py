"""What the sampler's surrogate knows of a study's errors: how well it ranks and how surely, told to people.

The surrogate is the one that `--sampler known-cost` asks, fitted to the completed trials; each is predicted from all
others (leave-one-out).
"""

from __future__ import annotations

from dataclasses import dataclass

from igc_nas.samplers.cross_validation import MIN_TRIALS, LeaveOneOut, leave_one_out
from igc_nas.samplers.error_predictor import ErrorPredictor
from igc_nas.samplers.surrogate import MOST_POINTS
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study


@dataclass(frozen=True)
class SurrogateQuality:
    """For each of `trials`: the error, and what the surrogate would have said (`expected`, `deviation`) without it."""

    trust: LeaveOneOut
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


def _fitted(study: Study) -> tuple[ErrorPredictor, list[Candidate]] | None:
    """The forecast with the candidates that it was fitted to."""
    if len(study.candidates) < MIN_TRIALS:
        return None  # the catalog takes a second
    encoding = study.spec.feasible.encoding
    known = [(c, code) for c in study.candidates if (code := encoding.code(c.arch)) is not None][-MOST_POINTS:]
    if len(known) < MIN_TRIALS:
        return None
    candidates = [candidate for candidate, _ in known]
    return ErrorPredictor(encoding, [code for _, code in known], [c.score.error for c in candidates]), candidates


def surrogate_quality(study: Study) -> SurrogateQuality | None:
    """The knowledge of a study; None below `MIN_TRIALS` completed trials of its own space.

    Of more than `MOST_POINTS` the newest are judged.
    """
    fitted = _fitted(study)
    if fitted is None:
        return None
    forecast, candidates = fitted
    return SurrogateQuality(
        trust=leave_one_out(forecast.surrogate, forecast.errors, forecast.params),
        trials=tuple(candidate.trial for candidate in candidates),
        errors=tuple(map(float, forecast.errors)),
        expected=tuple(map(float, forecast.expected)),
        deviation=tuple(map(float, forecast.deviation)),
    )


def predicted_errors(study: Study) -> dict[str, float]:
    """By canonical id the error that the surrogate believes of each candidate, its own measured one taken in.

    What a network shares with others speaks for it, so a belief carries less of one training's noise than an error
    does. Empty below `MIN_TRIALS` completed trials.
    """
    fitted = _fitted(study)
    if fitted is None:
        return {}
    forecast, candidates = fitted
    return {c.id: float(value) for c, value in zip(candidates, forecast.of_measured(), strict=True)}
