"""When a training may be given up: at a rung, where its chance to end on the front has become small.

The end is predicted from the rung, and from what the surrogate believed before the training began, by a plane through
the trials that have ended; what that leaves over is the uncertainty. A candidate competes only with trials whose known
costs are all no greater than its own: it ends on the front if it beats the best of these, for any other one it cannot
be dominated by. So among candidates at one rung, of which as much is believed, a dominated one never has the better
chance.

Before the rule may stop anything it is replayed on the recorded rungs: where it would have stopped a member of the
front, its bound is lowered until it would not.
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
"""Trials that must have ended before anything is stopped."""
BELOW = 0.999
LEAST_DEVIATION = 1e-4
SINGULAR = 1e-12
"""Two columns of evidence whose determinant is below this share of their squares say the same."""


@dataclass(frozen=True)
class CompletedTraining:
    """A trial that was trained to the end: its known `costs` (any scale), its errors at the rungs, and at the end.

    `belief` is what the other trials let expect of its error before it was trained; None: not known.
    """

    costs: tuple[float, ...]
    rungs: tuple[float, ...]
    error: float
    belief: float | None = None


@dataclass(frozen=True)
class FinalErrorPrediction:
    """What a rung lets expect: the error at the end with its standard std, and the chance to reach the front."""

    expected_error: float
    std: float
    p_front: float


@dataclass(frozen=True)
class _Plane:
    """end = offset + weights . (rung, and belief where there is one), leaving a standard std."""

    offset: float
    weights: Floats
    std: float

    def prediction(self, evidence: Sequence[float], best: float) -> FinalErrorPrediction:
        """What to expect, and the probability that the end is below `best`."""
        expected = self.offset + float(self.weights @ np.asarray(evidence))
        p_front = 0.5 * math.erfc((expected - best) / self.std / math.sqrt(2))
        return FinalErrorPrediction(expected, self.std, p_front)


class PruningRule:
    """The rule of a study, from the trials that have `ended`; a chance below `asked` (loosened: `bound`) stops.

    All of `ended` have the same number of rungs. Beliefs count where at least `MIN_COMPLETED` of them have one.
    """

    def __init__(self, ended: Sequence[CompletedTraining], asked: float) -> None:
        self.ended = ended
        self.asked = asked
        self._errors = np.array([trial.error for trial in ended])
        self._rungs = np.array([trial.rungs for trial in ended])
        self._costs = np.array([trial.costs for trial in ended])
        self._beliefs = np.array([math.nan if trial.belief is None else trial.belief for trial in ended])

    @cached_property
    def bound(self) -> float:
        """The chance below which a training is stopped; 0 where too few trials have ended to tell."""
        if len(self.ended) < MIN_COMPLETED:
            return 0.0
        members = nondominated([(trial.error, *trial.costs) for trial in self.ended])
        return min([self.asked, *(BELOW * self._replayed(member) for member in members)])

    def _replayed(self, member: int) -> float:
        """The least chance that a trial would have been given on its way, had all others ended before it."""
        others = np.delete(np.arange(len(self.ended)), member)
        trial = self.ended[member]
        looks = (self._prediction(trial.costs, n, error, trial.belief, others) for n, error in enumerate(trial.rungs))
        return min((look.p_front for look in looks), default=1.0)

    def prediction(
        self, costs: Sequence[float], rung: int, error: float, belief: float | None = None
    ) -> FinalErrorPrediction | None:
        """What to expect of a candidate with these known costs and this error at the `rung`-th rung (from 0).

        `belief` is what was expected of it before it was trained. None where too few trials have ended to tell.
        """
        if len(self.ended) < MIN_COMPLETED:
            return None
        return self._prediction(costs, rung, error, belief, np.arange(len(self.ended)))

    def _prediction(
        self, costs: Sequence[float], rung: int, error: float, belief: float | None, among: Ints
    ) -> FinalErrorPrediction:
        rivals = among[(self._costs[among] <= np.asarray(costs)).all(axis=1)]
        best = float(self._errors[rivals].min()) if len(rivals) else math.inf
        believed = among[~np.isnan(self._beliefs[among])]
        if belief is None or len(believed) < MIN_COMPLETED:
            return _plane(self._rungs[among, rung][:, None], self._errors[among]).prediction([error], best)
        evidence = np.column_stack([self._rungs[believed, rung], self._beliefs[believed]])
        return _plane(evidence, self._errors[believed]).prediction([error, belief], best)


def _plane(evidence: Floats, ends: Floats) -> _Plane:
    """The least-squares plane over (n, 1 or 2) evidence, falling nowhere; its std is that of a prediction."""
    n, k = evidence.shape
    centre, mean = evidence.mean(axis=0), ends.mean()
    columns = np.where((evidence != evidence[0]).any(axis=0), evidence - centre, 0.0)
    weights, left = _rising(columns, ends - mean)
    std = math.sqrt(left / max(1, n - 1 - k) * (1 + (k + 1) / n))
    return _Plane(float(mean) - float(weights @ centre), weights, max(LEAST_DEVIATION, std))


def _rising(columns: Floats, ends: Floats) -> tuple[Floats, float]:
    """Weights (1 or 2), none below 0, of the least squares, and the sum of the squares that they leave.

    Where the free solution has a weight below 0, the best one has a weight of 0.
    """
    squares, across = columns.T @ columns, columns.T @ ends
    found = [_alone(squares, across, column) for column in range(len(across))]
    if len(across) == 2 and np.linalg.det(squares) > SINGULAR * squares[0, 0] * squares[1, 1]:
        both: Floats = np.linalg.solve(squares, across).astype(np.float64)
        found = [both] if (both >= 0).all() else found
    return min(((weights, _left(columns, ends, weights)) for weights in found), key=lambda pair: pair[1])


def _alone(squares: Floats, across: Floats, column: int) -> Floats:
    weights = np.zeros(len(across))
    if squares[column, column] > 0:
        weights[column] = max(0.0, across[column] / squares[column, column])
    return weights


def _left(columns: Floats, ends: Floats, weights: Floats) -> float:
    over = ends - columns @ weights
    return float(over @ over)


@dataclass(frozen=True, order=True)
class _Known:
    """An ended trial of the study's own space: its number, what names its network, its error."""

    trial: int
    code: Code
    error: float


class Pruner:
    """Judges by the completed trials that it has been told of, in whichever order."""

    def __init__(self, spec: StudySpec, candidates: Iterable[Candidate] = ()) -> None:
        self.spec = spec
        self._known: list[_Known] = []
        self._ended: list[tuple[int, Code | None, CompletedTraining]] = []
        """The contenders that have a score at every rung, by number."""
        self._rule: PruningRule | None = None
        self._forecast: ErrorPredictor | None = None
        for candidate in candidates:
            self.learn(candidate)

    def learn(self, candidate: Candidate) -> None:
        """Take a completed trial in."""
        self._rule = self._forecast = None
        spec, number, score = self.spec, candidate.trial, candidate.score
        code = spec.feasible.encoding.code(candidate.arch)
        if code is not None:
            insort(self._known, _Known(number, code, score.error))
        if len(score.rungs) == len(spec.recipe.rungs) and spec.budget.violation(candidate.cost) <= 0:
            costs = known_values(candidate.cost, candidate.latency.normalised_ms, spec.objectives)
            ended = CompletedTraining(costs, tuple(rung.error for rung in score.rungs), score.error)
            insort(self._ended, (number, code, ended), key=lambda item: item[0])

    @property
    def forecast(self) -> ErrorPredictor | None:
        """What the surrogate expects of the study's space; None below `MIN_TRIALS` completed trials of it."""
        if self._forecast is None and len(self._known) >= MIN_TRIALS:
            newest = self._known[-MOST_POINTS:]
            encoding = self.spec.feasible.encoding
            self._forecast = ErrorPredictor(encoding, [k.code for k in newest], [k.error for k in newest])
        return self._forecast

    @property
    def rule(self) -> PruningRule:
        """When trainings may be stopped, from those that have ended with a score at every rung."""
        if self._rule is None:
            beliefs = self.forecast.left_out if self.forecast else {}
            ended = [_with_belief(ended, beliefs.get(code or ())) for _, code, ended in self._ended]
            self._rule = PruningRule(ended, self.spec.prune_below)
        return self._rule

    def prediction(self, arch: ArchConfig, latency: Latency, rung: Rung) -> FinalErrorPrediction | None:
        """Why a training at a rung is to be given up; None: it goes on."""
        spec = self.spec
        if not spec.prune_below or "error" not in spec.objectives:
            return None
        if rung.samples not in spec.recipe.rungs:
            return None  # an evaluator of one's own may look where nobody else does
        costs = known_values(cost_of(arch), latency.normalised_ms, spec.objectives)
        code = spec.feasible.encoding.code(arch) if self.forecast else None
        belief = self.forecast.of(code) if self.forecast and code else None
        prediction = self.rule.prediction(costs, spec.recipe.rungs.index(rung.samples), rung.error, belief)
        return prediction if prediction and prediction.p_front < self.rule.bound else None


def _with_belief(ended: CompletedTraining, belief: float | None) -> CompletedTraining:
    return ended if belief is None else replace(ended, belief=belief)
