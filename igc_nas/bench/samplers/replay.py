"""A search in virtual time: any sampler on a problem whose answers are there already, so nothing trains.

What the coordinator of a search does with a suggestion is done here too (see `igc_nas.engine.search`): one that is no
architecture, over budget or without an answer is told as infeasible, one that is known is told again, and neither
counts as an evaluation. So no sampler pays for duplicates or infeasible suggestions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import optuna
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.bench.samplers.problems import Answer, Problem
from igc_nas.engine.store import BUDGET
from igc_nas.errors import ConfigError
from igc_nas.samplers.cross_validation import MIN_TRIALS
from igc_nas.samplers.error_predictor import ErrorPredictor
from igc_nas.samplers.history import EXPECTED
from igc_nas.samplers.pruner import CompletedTraining, FinalErrorPrediction, PruningRule
from igc_nas.samplers.study_sampler import MOST_REPEATS, ExhaustedError, StudySampler
from igc_nas.space.encoding import Code
from igc_nas.study.pareto import running_hypervolume
from igc_nas.study.spec import SamplerName


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: what was evaluated, what it took (samples x MACs), and why it was stopped, if it was."""

    id: str
    answer: Answer
    compute: float
    pruned: FinalErrorPrediction | None = None


@dataclass(frozen=True)
class Replay:
    """After each evaluation the hypervolume of the true values found so far and the compute spent so far.

    `lost` are the ids of the problem's front that were stopped; `stopped` counts all that were.
    """

    volumes: tuple[float, ...]
    compute: tuple[float, ...]
    pruned: int = 0
    lost: tuple[str, ...] = ()


def replay(
    problem: Problem, sampler: SamplerName, seed: int, evaluations: int, *, stop: float = 0.0, compute: float = 0.0
) -> Replay:
    """Search `problem` by a sampler: `evaluations` of them, or with `compute` until so much is spent.

    With `stop` a training is given up at a rung where its chance to end on the front is below it. A sampler that finds
    nothing new ends earlier.
    """
    steps: Iterable[Evaluated] = _Replayed(problem, sampler, seed, stop).steps()
    steps = _until_spent(steps, compute) if compute else itertools.islice(steps, evaluations)
    done = list(steps)
    points = [None if e.pruned else problem.spec.scaled(_named(problem, e.answer)) for e in done]
    front = problem.front()
    return Replay(
        tuple(running_hypervolume(points)),
        tuple(itertools.accumulate(e.compute for e in done)),
        sum(e.pruned is not None for e in done),
        tuple(e.id for e in done if e.pruned and e.id in front),
    )


def _until_spent(steps: Iterable[Evaluated], compute: float) -> Iterator[Evaluated]:
    spent = 0.0
    for step in steps:
        yield step
        spent += step.compute
        if spent >= compute:
            return


def _named(problem: Problem, answer: Answer) -> dict[str, float]:
    return dict(zip(problem.spec.objectives, answer.true, strict=True))


class _Replayed:
    """One run: asks the sampler, answers at once."""

    def __init__(self, problem: Problem, sampler: SamplerName, seed: int, stop: float) -> None:
        self.spec = problem.spec.model_copy(update={"sampler": sampler, "seed": seed})
        self.problem = problem
        self.stop = stop
        self.known: dict[str, Evaluated | None] = {}
        """By id; None: no answer."""
        self.ended: dict[Code, CompletedTraining] = {}
        self.consecutive_failures = 0
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        directions = [StudyDirection.MINIMIZE] * len(self.spec.objectives)
        inner = StudySampler(self.spec, self.known.keys(), lambda: self.consecutive_failures)
        self.study = optuna.create_study(directions=directions, sampler=inner)

    def steps(self) -> Iterator[Evaluated]:
        """Evaluations, until the sampler finds no new one."""
        while self.consecutive_failures < MOST_REPEATS:
            try:
                found = self._next()
            except ExhaustedError:
                return
            self.consecutive_failures = 0 if found else self.consecutive_failures + 1
            if found:
                yield found

    def _next(self) -> Evaluated | None:
        """Ask once; None: the suggestion was infeasible, or known."""
        trial = self.study.ask()
        try:
            arch = self.spec.search_space.suggest(trial)
        except ConfigError:
            self._infeasible(trial, 1.0)
            return None
        cost, identity = cost_of(arch), arch_id(arch)
        violation = self.spec.budget.violation(cost)
        if violation > 0:
            self._infeasible(trial, violation)
            return None
        is_new = identity not in self.known
        if is_new:
            answer = self.problem.answer(arch, identity, cost, self.spec.seed)
            self.known[identity] = self._evaluated(arch, identity, answer) if answer else None
        found = self.known[identity]
        if found is None:
            self._infeasible(trial, 1.0)
            return None
        trial.set_constraint(BUDGET, violation)
        self._tell(trial, found, is_new)
        return found if is_new else None

    def _infeasible(self, trial: Trial, violation: float) -> None:
        trial.set_constraint(BUDGET, violation)
        self.study.tell(trial, [self.spec.bounds[name][1] for name in self.spec.objectives])

    def _tell(self, trial: Trial, found: Evaluated, is_new: bool) -> None:
        if found.pruned is None:
            self.study.tell(trial, found.answer.seen)
        elif is_new:
            trial.set_user_attr(EXPECTED, [found.pruned.expected_error, found.pruned.std])
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _evaluated(self, arch: ArchConfig, identity: str, answer: Answer) -> Evaluated:
        """Train to the end, or to the rung at which it is given up."""
        if not self.stop:
            return Evaluated(identity, answer, answer.compute[-1])
        encoding = self.spec.feasible.encoding
        code = encoding.code(arch)
        assert code is not None
        rule, belief = PruningRule(list(self.ended.values()), self.stop), None
        if len(self.ended) >= MIN_TRIALS:
            forecast = ErrorPredictor(encoding, list(self.ended), [trial.error for trial in self.ended.values()])
            believed = [replace(trial, belief=forecast.left_out.get(of)) for of, trial in self.ended.items()]
            rule, belief = PruningRule(believed, self.stop), forecast.of(code)
        for place, error in enumerate(answer.rungs):
            prediction = rule.prediction(answer.known, place, error, belief)
            if prediction and prediction.p_front < rule.bound:
                return Evaluated(identity, answer, answer.compute[place], prediction)
        at = self.spec.objectives.index("error")
        self.ended[code] = CompletedTraining(answer.known, answer.rungs, answer.seen[at])
        return Evaluated(identity, answer, answer.compute[-1])
