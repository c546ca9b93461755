"""The known-cost sampler: expected hypervolume improvement where only the measured objectives are uncertain.

Parameters, MACs and activations of every candidate are known exactly. The error is predicted by a Gaussian process, the
latency by the mean of another one. Candidates are mutations and crossovers of the front's members (with a goal also of
the least error in each bin of cost) and stratified draws, all within the budget and not tried before; the best of them
are mutated again for a few rounds.

In a search for the best error every second suggestion maximises the expected improvement of the least error alone.

Where cross-validation finds that the surrogate ranks errors no better than the parameter count does, it is not used:
then suggestions are mutations of the front's members or stratified draws, with equal probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from igc_nas.samplers.acquisition import MIN_STD, expected_hypervolume_improvement
from igc_nas.samplers.cross_validation import MIN_TRIALS, LeaveOneOut, leave_one_out
from igc_nas.samplers.features import Features, Floats, Inputs, features_of
from igc_nas.samplers.history import History, LongerTrainings
from igc_nas.samplers.mutation import Mutator
from igc_nas.samplers.surrogate import Surrogate, subset
from igc_nas.samplers.target_predictor import longer_errors
from igc_nas.samplers.target_surrogate import MIN_LONGER, TargetSurrogate
from igc_nas.space.encoding import Code, Ints, PricedCodes
from igc_nas.study.pareto import nondominated
from igc_nas.study.plan import Sizes
from igc_nas.study.spec import Recipe, StudySpec

STARTUP = 8
"""The first suggestions of a study are stratified draws."""
START_DRAWS, START_SHARE = 4, 0.05
"""With a plan the first suggestions are the cheapest of this number of draws, none above this share of the time."""
DRAWS, MUTATIONS, CROSSOVERS, ROUNDS, BEST = 64, 128, 48, 3, 12


@dataclass(frozen=True)
class ErrorAtTarget:
    """The error after trainings of `images` images, scaled by its `bounds`."""

    surrogate: TargetSurrogate
    images: int
    bounds: tuple[float, float]

    def predict(self, inputs: Inputs) -> tuple[Floats, Floats]:
        """(mean, standard deviation), scaled."""
        predicted, (low, high) = self.surrogate.predict(inputs, self.images), self.bounds
        return (predicted.errors - low) / (high - low), predicted.std / (high - low)


@dataclass(frozen=True)
class Posterior:
    """The fitted surrogates by the objective's name; `validation` of the error's, None with too few trials.

    With longer trainings in the history the error's is `ErrorAtTarget`; that of the recipe's errors is validated.
    """

    surrogates: dict[str, Surrogate | ErrorAtTarget]
    validation: LeaveOneOut | None


def _begun(history: History) -> int:
    """The number of trials that the sampler knows of."""
    return len(history.complete) + len(history.pruned) + len(history.running)


class KnownCost:
    """Proposes codes for a study from its history. `validate` cross-validates the surrogate of the error."""

    def __init__(
        self, spec: StudySpec, validate: Callable[[Surrogate, Floats, Ints], LeaveOneOut] = leave_one_out
    ) -> None:
        self.spec = spec
        self.validate = validate
        self.encoding = spec.feasible.encoding
        self.mutator = Mutator(spec.feasible)
        self._bounds = self._study_bounds()
        self._at_target: Floats | None = None
        """(complete,) the scaled errors of the last history's trials at the target; None: the recipe's count."""
        self.measured = tuple(name for name in spec.objectives if name in ("error", "latency"))

    @cached_property
    def features(self) -> Features:
        """Of the codes of the study's space."""
        return features_of(self.encoding)

    def _study_bounds(self) -> dict[str, tuple[float, float]]:
        return {name: self.spec.scale_bounds(name) for name in self.spec.bounds}

    @cached_property
    def _start(self) -> Ints:
        """The bins of cost of the first draws, in an order by the seed; with a plan, cheap ones first."""
        bins = len(self.spec.feasible.bins)
        return np.arange(bins) if self.spec.plan else np.random.default_rng([self.spec.seed, bins]).permutation(bins)

    def propose(self, history: History, rng: np.random.Generator) -> Iterator[Code]:
        """Codes in the order in which to try them; some may have been tried before."""
        begun = _begun(history)
        if (self.spec.goal or self.spec.plan) and begun < STARTUP:  # each bin of cost once, up to the budget
            yield self._first(int(self._start[begun % len(self._start)]), rng)
        if len(history.complete) >= STARTUP:
            posterior = self.fit(history)
            if posterior.validation is None or posterior.validation.is_better:
                yield from self.propose_by_acquisition(history, posterior, rng)
            elif rng.random() < 0.5:
                yield from self._mutations_of_parents(history, rng)
        while True:
            yield self._draw(rng)

    def _first(self, place: int, rng: np.random.Generator) -> Code:
        """A draw from a bin of cost; with a plan the one of `START_DRAWS` that takes least.

        If that takes more than `START_SHARE` of the time, it is drawn from a bin of lower cost: two large networks must
        not be what the first third of a short search is spent on.
        """
        plan = self.spec.plan
        if plan is None:
            return self._draw(rng, place)
        while True:
            codes = [self._draw(rng, place) for _ in range(START_DRAWS)]
            seconds = self._seconds(self.encoding.priced(codes))
            if place == 0 or seconds.min() <= START_SHARE * plan.time_s * plan.workers:
                return codes[int(np.argmin(seconds))]
            place -= 1

    def _draw(self, rng: np.random.Generator, place: int | None = None) -> Code:
        code = self.encoding.code(self.spec.feasible.draw_stratified(rng, place))
        assert code is not None
        return code

    # The surrogates. Values of objectives are scaled to the study's bounds, 0 to 1; all but the error by logarithm.

    def fit(self, history: History) -> Posterior:
        """Fit a surrogate to each measured objective of the history."""
        self._bounds, self._at_target = self._bounds_from(history), None
        front = np.array(nondominated(self._points(history)), dtype=np.int64)
        surrogates: dict[str, Surrogate | ErrorAtTarget] = {}
        validation = None
        for name in self.measured:
            values = self._column(history.values, name)
            rows = subset(values, front)
            if name == "error":
                surrogates[name], validation = self._fit_error(history, rows)
            else:
                surrogates[name] = Surrogate(self.features.of(history.complete.rows(rows)), values[rows])
        return Posterior(surrogates, validation)

    def _fit_error(self, history: History, rows: Ints) -> tuple[Surrogate | ErrorAtTarget, LeaveOneOut | None]:
        """The surrogate of the error from `rows` of the complete trials and from the pruned ones, and its validation.

        A pruned trial counts with its predicted error, whose variance is known noise.
        """
        archs, (low, high) = history.complete.rows(rows), self._bounds["error"]
        inputs, (expected, deviation) = self.features.of(archs + history.pruned), history.expected.T
        errors = np.concatenate([history.values[rows, self.spec.objectives.index("error")], expected])
        deviation = np.concatenate([np.zeros(len(rows)), deviation])
        values = self._scaled(errors, "error")
        surrogate, validation = Surrogate(inputs, values, (deviation / (high - low)) ** 2), None
        if len(rows) >= MIN_TRIALS:
            validation = self.validate(surrogate, values[: len(rows)], archs.cost("params"))
        at_target = self._fit_at_target(inputs, errors, deviation, history.longer)
        if at_target is None:
            return surrogate, validation
        self._at_target = at_target.predict(self.features.of(history.complete))[0]
        return at_target, validation

    def _bounds_from(self, history: History) -> dict[str, tuple[float, float]]:
        """The study's bounds; of an objective without them (a latency before its calibration) the measured range."""
        bounds = self._study_bounds()
        for column, name in zip(history.values.T, self.spec.objectives, strict=True):
            if name not in bounds:
                bounds[name] = self.spec.scale_bounds(name, (float(column.min()), float(column.max()) * 1.01))
        return bounds

    def _fit_at_target(
        self, inputs: Inputs, errors: Floats, deviation: Floats, longer: LongerTrainings | None
    ) -> ErrorAtTarget | None:
        """The surrogate of the error at the target length; None without a target or with too few longer trainings."""
        target = self.spec.target
        if target is None or longer is None or len(longer.archs) < MIN_LONGER:
            return None
        of_longer = longer_errors(self.features.of(longer.archs), longer.candidates)
        surrogate = TargetSurrogate(inputs, errors, self.spec.recipe.samples, of_longer, deviation**2)
        return ErrorAtTarget(surrogate, target.images, self._bounds["error"])

    def _column(self, values: Floats, name: str) -> Floats:
        return self._scaled(values[:, self.spec.objectives.index(name)], name)

    def _scaled(self, values: Floats, name: str) -> Floats:
        """Values of an objective, scaled by its bounds."""
        low, high = self._bounds[name]
        if name == "error":
            return (values - low) / (high - low)
        found: Floats = (np.log(values) - np.log(low)) / (np.log(high) - np.log(low))
        return found

    def _points(self, history: History) -> Floats:
        """(complete, objectives), scaled; the error as predicted at the target where that is known."""
        columns = {name: self._column(history.values, name) for name in self.spec.objectives}
        if self._at_target is not None:
            columns["error"] = self._at_target
        return np.stack([columns[name] for name in self.spec.objectives], axis=1)

    def _known(self, archs: PricedCodes, name: str) -> Floats:
        """An exact objective of candidates, scaled."""
        return self._scaled(archs.cost(name).astype(float), name)

    # Maximising the acquisition function.

    def propose_by_acquisition(
        self, history: History, posterior: Posterior, rng: np.random.Generator
    ) -> Iterator[Code]:
        """New codes by descending acquisition. The best are mutated in `ROUNDS` rounds, and join the candidates."""
        front = self.front(history, posterior)
        if self.spec.goal == "best-error" and _begun(history) % 2 == 0:
            front = front[:, :1]  # of the error alone
        archs = self._first_candidates(self.parents(history), rng)
        cooling = self.cooling(history)
        worth = self.acquisition(archs, front, posterior, cooling)
        for _ in range(ROUNDS):
            best = archs.codes[np.argsort(-worth, kind="stable")[:BEST]]
            more = self.mutator.kept(self.mutator.mutate(best, MUTATIONS // 2, rng))
            archs += more
            worth = np.concatenate([worth, self.acquisition(more, front, posterior, cooling)])
        seen = history.seen
        best_first = dict.fromkeys(archs.rows(np.argsort(-worth, kind="stable")))
        yield from (code for code in best_first if code not in seen)

    def acquisition(self, archs: PricedCodes, front: Floats, posterior: Posterior, cooling: float = 0.0) -> Floats:
        """(n,) expected hypervolume improvement on `front` x probability of keeping the latency budget.

        Divided by the predicted seconds to the power of `cooling`.
        """
        if not len(archs):
            return np.zeros(0)
        mean, deviation, known = self._predict(archs, posterior)
        gain = expected_hypervolume_improvement(mean, deviation, known[:, : front.shape[1] - 1], front)
        return gain * self._p_within_latency(archs, posterior) / self._seconds(archs) ** cooling

    def cooling(self, history: History) -> float:
        """The exponent of the price: the share of the planned time that is left; 0 without a plan.

        EI-cooled of Lee, Perrone, Archambeau, Seeger 2020 (arXiv 2003.10870): cheap trials first, and at the end
        those that promise most, whatever they take. The time spent is that which the plan predicts for the trials and
        the longer trainings so far, so that it is the same after a resume.
        """
        plan, target = self.spec.plan, self.spec.target
        if plan is None:
            return 0.0
        tried = (history.complete, history.pruned, history.running)
        spent = sum(float(self._seconds(some).sum()) for some in tried if len(some))
        if target and history.longer:
            spent += float(self._seconds(history.longer.archs, target.recipe).sum())
        return max(0.0, 1.0 - spent / (plan.time_s * plan.workers))

    def _seconds(self, archs: PricedCodes, recipe: Recipe | None = None) -> Floats:
        """(n,) predicted seconds of a trial, or of a training by another recipe; 1 without a plan."""
        plan, spec = self.spec.plan, self.spec
        if plan is None:
            return np.ones(len(archs))
        convolutions = np.exp(self.features.of(archs).whole[:, -1])
        sizes = Sizes(archs.cost("macs").astype(float), archs.cost("activations").astype(float), convolutions)
        return plan.speed.trials_s(sizes, recipe or spec.recipe, spec.space.input[1])

    def front_codes(self, history: History) -> Ints:
        """(n, 1 + stages) the codes of the front's members."""
        return history.complete.codes[nondominated(self._points(history))]

    def parents(self, history: History) -> Ints:
        """(n, 1 + stages) the codes to mutate: the front, and with a goal the lowest error of each bin of cost.

        A front that ends far below the budget has no member to reach the budget from.
        """
        if not self.spec.goal:
            return self.front_codes(history)
        costs = history.complete.cost(self.spec.feasible.metric)
        bins = np.searchsorted([bin_.most for bin_ in self.spec.feasible.bins], costs)
        errors = self._points(history)[:, self.spec.objectives.index("error")]
        best = [int(rows[np.argmin(errors[rows])]) for rows in (np.flatnonzero(bins == n) for n in np.unique(bins))]
        return history.complete.codes[sorted({*nondominated(self._points(history)), *best})]

    def _first_candidates(self, parents: Ints, rng: np.random.Generator) -> PricedCodes:
        drawn = np.array([self._draw(rng) for _ in range(DRAWS)], dtype=np.int64)
        mutations = self.mutator.mutate(parents, MUTATIONS, rng)
        crossovers = self.mutator.crossover(parents, CROSSOVERS, rng)
        return self.mutator.kept(np.concatenate([drawn, mutations, crossovers]))

    def front(self, history: History, posterior: Posterior) -> Floats:
        """The front to improve on, the uncertain objective first; running trials count with their predicted means.

        Without the running trials, parallel suggestions would all be near the same best candidate.
        """
        points = self._uncertain_first(self._points(history))
        if len(history.running):
            mean, _, known = self._predict(history.running, posterior)
            points = np.concatenate([points, np.column_stack([mean, known])])
        return points[nondominated(points)]

    @property
    def _uncertain(self) -> str:
        """The objective whose standard deviation is used: the error, else the latency, else the first one (with 0)."""
        return next((name for name in ("error", "latency") if name in self.spec.objectives), self.spec.objectives[0])

    def _uncertain_first(self, points: Floats) -> Floats:
        names = self.spec.objectives
        first = names.index(self._uncertain)
        return points[:, [first, *(i for i in range(len(names)) if i != first)]]

    def _predict(self, archs: PricedCodes, posterior: Posterior) -> tuple[Floats, Floats, Floats]:
        """(mean (n,), deviation (n,) of the uncertain objective, the other ones (n, others)), scaled."""
        inputs = self.features.of(archs)
        predicted = {name: surrogate.predict(inputs) for name, surrogate in posterior.surrogates.items()}
        names = [name for name in self.spec.objectives if name != self._uncertain]
        known = [predicted[name][0] if name in predicted else self._known(archs, name) for name in names]
        others = np.stack(known, axis=1) if known else np.empty((len(archs), 0))
        if self._uncertain in predicted:
            mean, deviation = predicted[self._uncertain]
        else:
            mean, deviation = self._known(archs, self._uncertain), np.full(len(archs), MIN_STD)
        return mean, deviation, np.maximum(0.0, others)

    def _p_within_latency(self, archs: PricedCodes, posterior: Posterior) -> Floats:
        """The probability of keeping the latency budget; 1 without such a budget or a surrogate of the latency."""
        from scipy.special import ndtr

        limit, surrogate = self.spec.budget.latency_ms, posterior.surrogates.get("latency")
        if limit is None or surrogate is None:
            return np.ones(len(archs))
        mean, deviation = surrogate.predict(self.features.of(archs))
        at = self._scaled(np.array([limit]), "latency")[0]
        found: Floats = ndtr((at - mean) / np.maximum(deviation, MIN_STD))
        return found

    # Without the surrogate.

    def _mutations_of_parents(self, history: History, rng: np.random.Generator) -> Iterator[Code]:
        archs = self.mutator.kept(self.mutator.mutate(self.parents(history), MUTATIONS, rng))
        seen = history.seen
        yield from (code for code in archs.rows(rng.permutation(len(archs))) if code not in seen)
