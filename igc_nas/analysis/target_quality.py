"""How well the surrogate over the length of training predicts a longer training: cross-validated over architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from igc_nas.samplers.cross_validation import MIN_TRIALS, coverage
from igc_nas.samplers.features import Inputs, features_of
from igc_nas.samplers.target_predictor import longer_errors
from igc_nas.samplers.target_surrogate import MIN_LONGER, SEED_VARIANCE, PredictedErrors, TargetSurrogate
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study

FOLDS = 28
"""At most; fewer architectures than that are left out one by one."""


@dataclass(frozen=True)
class TargetQuality:
    """The predicted errors by canonical id, and the shares of the measured ones inside their 68 and 95 % intervals."""

    errors: Mapping[str, float]
    within_68: float
    within_95: float


def target_quality(study: Study, reference: Study, related: Sequence[Study] = ()) -> TargetQuality | None:
    """Predict each architecture of `reference`, a longer training of networks of `study`, from the other ones.

    `related` are other studies of longer trainings, from which it learns as well. All trainings of the architectures
    that are predicted are left out, whatever their length. None where `reference` is not longer, or too few are left.
    """
    encoding, images = study.spec.feasible.encoding, reference.spec.recipe.samples
    short = {c.id: c for c in _each_once(study.candidates) if encoding.code(c.arch) is not None}
    longer = [c for c in _each_once(reference.candidates) if c.id in short]
    others = [c for one in related for c in _each_once(one.candidates) if c.id in short]
    folds = [longer[start::FOLDS] for start in range(min(FOLDS, len(longer)))]
    largest = max(map(len, folds), default=0)
    if images <= study.spec.recipe.samples or min(len(short) - MIN_TRIALS, len(longer) - MIN_LONGER) < largest:
        return None
    codes = {id_: encoding.code(candidate.arch) or () for id_, candidate in short.items()}

    def inputs(candidates: Sequence[Candidate]) -> Inputs:
        return features_of(encoding).of(encoding.priced([codes[c.id] for c in candidates]))

    errors: dict[str, float] = {}
    z = []
    for left_out in folds:
        ids = {candidate.id for candidate in left_out}
        shorts = [candidate for candidate in short.values() if candidate.id not in ids]
        longs = [candidate for candidate in (*longer, *others) if candidate.id not in ids]
        surrogate = TargetSurrogate(
            inputs(shorts),
            np.array([c.score.error for c in shorts]),
            study.spec.recipe.samples,
            longer_errors(inputs(longs), longs),
        )
        predicted = surrogate.predict(inputs(left_out), images)
        errors |= {c.id: float(error) for c, error in zip(left_out, predicted.errors, strict=True)}
        z += _z(predicted, left_out)
    return TargetQuality(errors, *coverage(np.array(z)))


def _each_once(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of each architecture."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.id, candidate)
    return list(first.values())


def _z(predicted: PredictedErrors, measured: list[Candidate]) -> list[float]:
    """Measured less predicted errors in standard deviations, those of the measurement included."""
    found = []
    for candidate, mean, std in zip(measured, predicted.errors, predicted.std, strict=True):
        error, held_out = candidate.score.error, candidate.score.held_out
        found.append(float((error - mean) / np.sqrt(std**2 + SEED_VARIANCE * error * (1 - error) / held_out)))
    return found
