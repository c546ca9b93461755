"""The sampler that knows the costs: expected hypervolume improvement where only the error has to be guessed.

Parameters, MACs and activations of every candidate are exact; the error is a Gaussian process's belief, the latency the
mean of another one's over exact features. Candidates are mutations and crossings of the front's members and stratified
draws, all within the budget and none tried before, improved for a few rounds by mutation. Where the belief ranks no
better than the parameter count does, it is not followed: then come stratified draws and mutations in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from igc_nas.samplers.acquisition import SURE, expected_hypervolume_improvement
from igc_nas.samplers.cross_validation import MIN_TRIALS, LeaveOneOut, leave_one_out
from igc_nas.samplers.features import Features, Floats, features_of
from igc_nas.samplers.history import History
from igc_nas.samplers.mutation import Mutator
from igc_nas.samplers.surrogate import Surrogate, subset
from igc_nas.space.encoding import Code, Ints
from igc_nas.space.search_space import METRICS
from igc_nas.study.pareto import nondominated
from igc_nas.study.spec import StudySpec

STARTUP = 8
DRAWS, MUTATIONS, CROSSINGS, ROUNDS, BEST = 64, 128, 48, 3, 12


@dataclass(frozen=True)
class _Posterior:
    """The surrogates of what is measured, by the objective's name, and whether the error's is worth following."""

    surrogates: dict[str, Surrogate]
    trust: LeaveOneOut | None


class KnownCost:
    """Proposes codes for a study by its history."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.encoding = spec.feasible.encoding
        self.moves = Mutator(spec.feasible)
        self._bounds = dict(spec.bounds)
        self.measured = tuple(name for name in spec.objectives if name in ("error", "latency"))

    @cached_property
    def features(self) -> Features:
        """Of the codes of the study's space."""
        return features_of(self.encoding)

    def propose(self, history: History, rng: np.random.Generator) -> Iterator[Code]:
        """Codes in the order in which they should be tried; some may have been."""
        if len(history.complete) >= STARTUP:
            self._bounds = self._scale(history)
            beliefs = self._beliefs(history)
            if beliefs.trust is None or beliefs.trust.is_better:
                yield from self._by_improvement(history, beliefs, rng)
            elif rng.random() < 0.5:
                yield from self._by_mutation(history, rng)
        while True:
            yield self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> Code:
        code = self.encoding.code(self.spec.feasible.draw_stratified(rng))
        assert code is not None
        return code

    def _scale(self, history: History) -> dict[str, tuple[float, float]]:
        """The study's bounds; what it has none for (a latency that was never calibrated) spans what was measured."""
        found = dict(self.spec.bounds)
        for column, name in zip(history.values.T, self.spec.objectives, strict=True):
            if name not in found:
                found[name] = (float(column.min()), float(column.max()) * 1.01)
        return found

    # Beliefs.

    def _beliefs(self, history: History) -> _Posterior:
        inputs = self.features.of(history.complete.codes, history.complete.costs)
        columns = {name: self._column(history.values, name) for name in self.measured}
        front = np.array(nondominated(self._points(history)), dtype=np.int64)
        found, trust = {}, None
        for name, values in columns.items():
            rows = subset(values, front)
            if name == "error" and len(history.pruned):
                found[name] = self._with_stopped(history, rows)
            else:
                found[name] = Surrogate(inputs.rows(rows), values[rows])
            if name == "error" and len(rows) >= MIN_TRIALS:
                trust = leave_one_out(found[name], values[rows], history.complete.costs[rows, 0])
        return _Posterior(found, trust)

    def _with_stopped(self, history: History, rows: Ints) -> Surrogate:
        """The belief about the error from complete trials and, less surely, from those that were stopped."""
        codes = np.concatenate([history.complete.codes[rows], history.pruned.codes])
        costs = np.concatenate([history.complete.costs[rows], history.pruned.costs])
        low, high = self._bounds["error"]
        expected, deviation = history.expected.T
        values = np.concatenate([self._column(history.values, "error")[rows], self._scaled(expected, "error")])
        noises = np.concatenate([np.zeros(len(rows)), (deviation / (high - low)) ** 2])
        return Surrogate(self.features.of(codes, costs), values, noises)

    def _column(self, values: Floats, name: str) -> Floats:
        return self._scaled(values[:, self.spec.objectives.index(name)], name)

    def _scaled(self, values: Floats, name: str) -> Floats:
        """Values of an objective on the study's scale."""
        low, high = self._bounds[name]
        if name == "error":
            return (values - low) / (high - low)
        found: Floats = (np.log(values) - np.log(low)) / (np.log(high) - np.log(low))
        return found

    def _points(self, history: History) -> Floats:
        return np.stack([self._column(history.values, name) for name in self.spec.objectives], axis=1)

    def _known(self, costs: Ints, name: str) -> Floats:
        """An exact objective of candidates, on the study's scale."""
        metrics: tuple[str, ...] = METRICS
        values = 2 * costs[:, metrics.index("macs")] if name == "flops" else costs[:, metrics.index(name)]
        return self._scaled(values.astype(float), name)

    # By improvement.

    def _by_improvement(self, history: History, beliefs: _Posterior, rng: np.random.Generator) -> Iterator[Code]:
        front = self._front(history, beliefs)
        parents = self._parents(history)
        codes, costs = self._first(parents, rng)
        worth = self._worth(codes, costs, front, beliefs)
        for _ in range(ROUNDS):
            best = codes[np.argsort(-worth, kind="stable")[:BEST]]
            more, more_costs = self.moves.kept(self.moves.mutate(best, MUTATIONS // 2, rng))
            codes, costs = np.concatenate([codes, more]), np.concatenate([costs, more_costs])
            worth = np.concatenate([worth, self._worth(more, more_costs, front, beliefs)])
        seen = set(history.seen)
        for place in np.argsort(-worth, kind="stable"):
            code = tuple(map(int, codes[place]))
            if code not in seen:
                seen.add(code)
                yield code

    def _parents(self, history: History) -> Ints:
        """The codes of the front's members."""
        return history.complete.codes[nondominated(self._points(history))]

    def _first(self, parents: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
        drawn = np.array([self._draw(rng) for _ in range(DRAWS)], dtype=np.int64)
        mutate, crossover = self.moves.mutate(parents, MUTATIONS, rng), self.moves.crossover(parents, CROSSINGS, rng)
        return self.moves.kept(np.concatenate([drawn, mutate, crossover]))

    def _front(self, history: History, beliefs: _Posterior) -> Floats:
        """What is to be improved on, the uncertain coordinate first; a running trial stands where it is expected."""
        points = self._points(history)
        if len(history.running):
            mean, _, known = self._expected(history.running.codes, history.running.costs, beliefs)
            points = np.concatenate([self._ordered(points), np.column_stack([mean, known])])
        else:
            points = self._ordered(points)
        return points[nondominated(points)]

    @property
    def _uncertain(self) -> str:
        """The objective that is believed rather than known: the error, else the latency, else none in earnest."""
        return next((name for name in ("error", "latency") if name in self.spec.objectives), self.spec.objectives[0])

    def _ordered(self, points: Floats) -> Floats:
        """Columns with the uncertain objective first."""
        names = self.spec.objectives
        first = names.index(self._uncertain)
        return points[:, [first, *(i for i in range(len(names)) if i != first)]]

    def _expected(self, codes: Ints, costs: Ints, beliefs: _Posterior) -> tuple[Floats, Floats, Floats]:
        """(mean, deviation of the uncertain objective, (n, others) the other ones), on the study's scale."""
        inputs = self.features.of(codes, costs)
        believed = {name: surrogate.predict(inputs) for name, surrogate in beliefs.surrogates.items()}
        names = [name for name in self.spec.objectives if name != self._uncertain]
        known = [believed[name][0] if name in believed else self._known(costs, name) for name in names]
        if self._uncertain in believed:
            mean, deviation = believed[self._uncertain]
        else:
            mean, deviation = self._known(costs, self._uncertain), np.full(len(costs), SURE)
        return mean, deviation, np.maximum(0.0, np.stack(known, axis=1))

    def _worth(self, codes: Ints, costs: Ints, front: Floats, beliefs: _Posterior) -> Floats:
        if not len(codes):
            return np.zeros(0)
        mean, deviation, known = self._expected(codes, costs, beliefs)
        gain = expected_hypervolume_improvement(mean, deviation, known, front)
        return gain * self._within_latency(codes, costs, beliefs)

    def _within_latency(self, codes: Ints, costs: Ints, beliefs: _Posterior) -> Floats:
        """The probability that candidates keep within the latency budget; 1 where there is none, or no belief."""
        from scipy.special import ndtr

        limit, belief = self.spec.budget.latency_ms, beliefs.surrogates.get("latency")
        if limit is None or belief is None:
            return np.ones(len(codes))
        mean, deviation = belief.predict(self.features.of(codes, costs))
        at = self._scaled(np.array([limit]), "latency")[0]
        found: Floats = ndtr((at - mean) / np.maximum(deviation, SURE))
        return found

    # Where the belief is not followed.

    def _by_mutation(self, history: History, rng: np.random.Generator) -> Iterator[Code]:
        codes, _ = self.moves.kept(self.moves.mutate(self._parents(history), MUTATIONS, rng))
        seen = history.seen
        for place in rng.permutation(len(codes)):
            code = tuple(map(int, codes[place]))
            if code not in seen:
                yield code
