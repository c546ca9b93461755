"""Pruning: a training is ended early, at a rung, where it has become unlikely to reach the Pareto front.

1. The final error is predicted from the error at the rung and, with enough completed trials, from the error that the
   surrogate predicts for the architecture (`prior_error`): least squares with non-negative slopes over the completed
   trainings. The residuals give the standard deviation of a normal distribution.
2. A candidate competes only with completed trials whose known costs are all at most its own: no other trial can
   dominate it. `p_front` is the probability that its final error is below the lowest of theirs.
3. It is pruned where `p_front` is below the bound of the rule. The bound is what the study asks for
   (`prune_below`), lowered until a replay of the recorded rungs would have pruned no member of the current front.

If two candidates have the same rung error and the same prior error, the one with the higher costs is never likelier
to reach the front.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.samplers.cross_validation import MIN_TRIALS
from igc_nas.samplers.error_predictor import ErrorPredictor
from igc_nas.samplers.features import Floats
from igc_nas.samplers.surrogate import MOST_POINTS
from igc_nas.space.encoding import Code, Ints
from igc_nas.study.objectives import known_values
from igc_nas.study.pareto import nondominated
from igc_nas.study.records import Candidate, Latency, Rung
from igc_nas.study.spec import StudySpec

MIN_COMPLETED = 12
"""No training is pruned before this number of trainings is complete."""
MARGIN = 0.999
"""The bound is at most this factor times the lowest `p_front` of a member of the front."""
MIN_STD = 1e-4


@dataclass(frozen=True)
class CompletedTraining:
    """A training that ran to its end: its known `costs` (on any scale), its errors at the rungs, its final error.

    `prior_error` is what a surrogate fitted to the other trials predicts; None: there is no such prediction.
    """

    costs: tuple[float, ...]
    rung_errors: tuple[float, ...]
    error: float
    prior_error: float | None = None


@dataclass(frozen=True)
class FinalErrorPrediction:
    """Predicted final error (mean, standard deviation) and the probability of ending on the front."""

    expected_error: float
    std: float
    p_front: float


@dataclass(frozen=True)
class _Regression:
    """final error = intercept + slopes . (rung error[, prior error]), with the standard deviation of a prediction."""

    intercept: float
    slopes: Floats
    std: float

    @classmethod
    def fit(cls, predictors: Floats, finals: Floats) -> _Regression:
        """Least squares with non-negative slopes of `finals` (n,) on `predictors` (n, 1 or 2).

        A negative slope would mean that a worse rung promises a better end; then a dominated candidate could be
        likelier to reach the front than the one that dominates it.
        """
        from scipy.optimize import nnls

        n, k = predictors.shape
        centre, mean = predictors.mean(axis=0), finals.mean()
        # A constant column is exactly 0, whatever its mean was rounded to.
        columns = np.where((predictors != predictors[0]).any(axis=0), predictors - centre, 0.0)
        slopes, residual_norm = nnls(columns, finals - mean)
        std = residual_norm * math.sqrt((1 + (k + 1) / n) / max(1, n - 1 - k))
        return cls(float(mean) - float(slopes @ centre), slopes, max(MIN_STD, std))

    def predict(self, predictors: Sequence[float], best_rival: float) -> FinalErrorPrediction:
        """The final error, and the probability that it is below `best_rival`."""
        expected = self.intercept + float(self.slopes @ np.asarray(predictors))
        p_front = 0.5 * math.erfc((expected - best_rival) / self.std / math.sqrt(2))
        return FinalErrorPrediction(expected, self.std, p_front)


class PruningRule:
    """Predicts the end of a training at a rung from a study's `completed` ones, which all have the same rungs.

    Prior errors are used where at least `MIN_COMPLETED` of the trainings have one.
    """

    def __init__(self, completed: Sequence[CompletedTraining], prune_below: float) -> None:
        self.completed = completed
        self.prune_below = prune_below
        self._errors = np.array([training.error for training in completed])
        self._rung_errors = np.array([training.rung_errors for training in completed])
        self._costs = np.array([training.costs for training in completed])
        priors = [math.nan if training.prior_error is None else training.prior_error for training in completed]
        self._prior_errors = np.array(priors)

    @cached_property
    def bound(self) -> float:
        """A training whose `p_front` is below this is pruned; 0 with fewer than `MIN_COMPLETED` trainings."""
        if len(self.completed) < MIN_COMPLETED:
            return 0.0
        front = nondominated([(training.error, *training.costs) for training in self.completed])
        return min([self.prune_below, *(MARGIN * self._lowest_p_front(member) for member in front)])

    def _lowest_p_front(self, row: int) -> float:
        """The lowest `p_front` of a completed training over its rungs, predicted from all other ones."""
        others = np.delete(np.arange(len(self.completed)), row)
        training = self.completed[row]
        predictions = (
            self._predict(training.costs, rung, error, training.prior_error, others)
            for rung, error in enumerate(training.rung_errors)
        )
        return min((prediction.p_front for prediction in predictions), default=1.0)

    def predict(
        self, costs: Sequence[float], rung: int, error: float, prior_error: float | None = None
    ) -> FinalErrorPrediction | None:
        """The end of a training with these known costs and this `error` at the `rung`-th rung (counted from 0).

        None with fewer than `MIN_COMPLETED` completed trainings.
        """
        if len(self.completed) < MIN_COMPLETED:
            return None
        return self._predict(costs, rung, error, prior_error, np.arange(len(self.completed)))

    def _predict(
        self, costs: Sequence[float], rung: int, error: float, prior_error: float | None, rows: Ints
    ) -> FinalErrorPrediction:
        """`predict` from some of the completed trainings."""
        rivals = rows[(self._costs[rows] <= np.asarray(costs)).all(axis=1)]
        best_rival = float(self._errors[rivals].min()) if len(rivals) else math.inf
        with_prior = rows[~np.isnan(self._prior_errors[rows])]
        if prior_error is None or len(with_prior) < MIN_COMPLETED:
            regression = _Regression.fit(self._rung_errors[rows, rung][:, None], self._errors[rows])
            return regression.predict([error], best_rival)
        predictors = np.column_stack([self._rung_errors[with_prior, rung], self._prior_errors[with_prior]])
        return _Regression.fit(predictors, self._errors[with_prior]).predict([error, prior_error], best_rival)


@dataclass(frozen=True)
class _Trial:
    """A completed trial. `code` is None for a network of another space.

    `training` is None over the budget, or where the trial lacks the error of a rung.
    """

    number: int
    code: Code | None
    error: float
    training: CompletedTraining | None


class Pruner:
    """Decides for a study which trainings are pruned. Completed trials may be added in any order."""

    def __init__(self, spec: StudySpec, candidates: Iterable[Candidate] = ()) -> None:
        self.spec = spec
        self._trials: list[_Trial] = []
        """Ascending by number."""
        self._rule: PruningRule | None = None
        self._error_predictor: ErrorPredictor | None = None
        for candidate in candidates:
            self.add(candidate)

    def add(self, candidate: Candidate) -> None:
        """Add a completed trial."""
        self._rule = self._error_predictor = None
        spec, score, training = self.spec, candidate.score, None
        if len(score.rungs) == len(spec.recipe.rungs) and spec.is_within_budget(candidate):
            costs = known_values(candidate.cost, candidate.latency.normalised_ms, spec.objectives)
            training = CompletedTraining(costs, tuple(rung.error for rung in score.rungs), score.error)
        code = spec.feasible.encoding.code(candidate.arch)
        insort(self._trials, _Trial(candidate.trial, code, score.error, training), key=lambda trial: trial.number)

    @property
    def error_predictor(self) -> ErrorPredictor | None:
        """Fitted to the study's errors; None with fewer than `MIN_TRIALS` completed trials of its space."""
        if self._error_predictor is None:
            known = [(trial.code, trial.error) for trial in self._trials if trial.code is not None][-MOST_POINTS:]
            if len(known) >= MIN_TRIALS:
                codes, errors = zip(*known, strict=True)
                self._error_predictor = ErrorPredictor(self.spec.feasible.encoding, codes, errors)
        return self._error_predictor

    @property
    def rule(self) -> PruningRule:
        """The rule of the completed trials that are within the budget and have an error at every rung."""
        if self._rule is None:
            priors = self.error_predictor.left_out if self.error_predictor else {}
            completed = [
                replace(trial.training, prior_error=priors.get(trial.code or ()))
                for trial in self._trials
                if trial.training
            ]
            self._rule = PruningRule(completed, self.spec.prune_below)
        return self._rule

    def prune(self, arch: ArchConfig, latency: Latency, rung: Rung) -> FinalErrorPrediction | None:
        """The prediction for which a training at a rung is pruned; None: the training continues."""
        spec = self.spec
        if not spec.prune_below or "error" not in spec.objectives:
            return None
        if rung.samples not in spec.recipe.rungs:
            return None  # a user's own evaluator may report at other points than the recipe's rungs
        costs = known_values(cost_of(arch), latency.normalised_ms, spec.objectives)
        code = spec.feasible.encoding.code(arch) if self.error_predictor else None
        prior_error = self.error_predictor.predict(code) if self.error_predictor and code else None
        prediction = self.rule.predict(costs, spec.recipe.rungs.index(rung.samples), rung.error, prior_error)
        return prediction if prediction and prediction.p_front < self.rule.bound else None
