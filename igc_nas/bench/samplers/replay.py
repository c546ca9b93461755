"""A search in virtual time: any sampler on a problem whose outcomes are known already, so nothing is trained.

Suggestions are treated as by the coordinator of a search (see `igc_nas.engine.search`). A suggestion that is no valid
architecture, is over the budget or has no outcome is reported to the sampler as infeasible; a known one is reported
again with its values. Neither counts as an evaluation, so duplicates and infeasible suggestions cost a sampler nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated

import optuna
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState
from pydantic import AliasChoices, Field

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.bench.samplers.peers import PEERS, peer
from igc_nas.bench.samplers.problems import SPEED, Outcome, Problem
from igc_nas.engine.store import BUDGET
from igc_nas.errors import ConfigError
from igc_nas.samplers.cross_validation import MIN_TRIALS
from igc_nas.samplers.error_predictor import ErrorPredictor
from igc_nas.samplers.history import EXPECTED
from igc_nas.samplers.pruner import CompletedTraining, FinalErrorPrediction, PruningRule
from igc_nas.samplers.study_sampler import MOST_REPEATS, ExhaustedError, StudySampler
from igc_nas.space.encoding import Code
from igc_nas.study.pareto import running_hypervolume
from igc_nas.study.plan import Plan


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: the architecture, its outcome, the compute spent (samples x MACs), its virtual seconds.

    A pruned training takes the share of its seconds that it takes of its compute.
    `pruned` is the prediction for which it was pruned; None: it was trained to the end.
    """

    id: str
    outcome: Outcome
    compute: float
    seconds: float
    pruned: FinalErrorPrediction | None = None


@dataclass(frozen=True)
class Replay:
    """After each evaluation the hypervolume of the true values found so far, the compute and the seconds spent so far.

    `seconds` is empty in files of earlier versions.
    `pruned` is the number of pruned trainings; `lost` are the ids of those among them on the problem's front.
    """

    volumes: tuple[float, ...]
    compute: tuple[float, ...]
    pruned: Annotated[int, Field(validation_alias=AliasChoices("pruned", "stopped"))] = 0  # `stopped`: files of 0.1
    lost: tuple[str, ...] = ()
    seconds: tuple[float, ...] = ()


def replay(
    problem: Problem,
    sampler: str,
    seed: int,
    evaluations: int,
    *,
    prune_below: float = 0.0,
    compute: float = 0.0,
    time_s: float = 0.0,
) -> Replay:
    """Search `problem` with a sampler (a study's, or one of `PEERS`) for `evaluations`.

    With `compute` it goes on until that is spent (samples x MACs).
    With `time_s` the study has a plan for that time, and the search ends when it is spent.
    With `prune_below` a training is pruned at a rung where its probability of ending on the front is lower. The search
    ends early where the sampler finds no new architecture.
    """
    steps: Iterable[Evaluation] = _VirtualSearch(problem, sampler, seed, prune_below, time_s).steps()
    if time_s:
        steps = _until_spent(steps, time_s, lambda step: step.seconds)
    else:
        steps = _until_spent(steps, compute, lambda step: step.compute) if compute else islice(steps, evaluations)
    done = list(steps)
    objectives = problem.spec.objectives
    points = [
        None if e.pruned else problem.spec.scaled(dict(zip(objectives, e.outcome.true, strict=True))) for e in done
    ]
    front = problem.front()
    return Replay(
        tuple(running_hypervolume(points)),
        tuple(itertools.accumulate(e.compute for e in done)),
        sum(e.pruned is not None for e in done),
        tuple(e.id for e in done if e.pruned and e.id in front),
        tuple(itertools.accumulate(e.seconds for e in done)),
    )


def _until_spent(
    steps: Iterable[Evaluation], limit: float, price: Callable[[Evaluation], float]
) -> Iterator[Evaluation]:
    spent = 0.0
    for step in steps:
        yield step
        spent += price(step)
        if spent >= limit:
            return


class _VirtualSearch:
    """One run: asks the sampler for an architecture and tells it the known outcome at once."""

    def __init__(self, problem: Problem, sampler: str, seed: int, prune_below: float, time_s: float) -> None:
        own = "random" if sampler in PEERS else sampler  # a peer starts from uniform draws
        self.spec = problem.spec.model_copy(update={"sampler": own, "seed": seed})
        if time_s:
            plan = Plan(time_s=time_s, workers=1, trials=1, mean_s=time_s, speed=SPEED)
            self.spec = self.spec.model_copy(update={"plan": plan})
        self.problem = problem
        self.prune_below = prune_below
        self.known: dict[str, Evaluation | None] = {}
        """By id; None: it has no outcome."""
        self.completed: dict[Code, CompletedTraining] = {}
        self.consecutive_failures = 0
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        directions = [StudyDirection.MINIMIZE] * len(self.spec.objectives)
        make = peer(sampler, self.spec) if sampler in PEERS else None
        inner = StudySampler(self.spec, self.known.keys(), lambda: self.consecutive_failures, optuna_sampler=make)
        self.study = optuna.create_study(directions=directions, sampler=inner)

    def steps(self) -> Iterator[Evaluation]:
        """Evaluations, until the sampler finds no new architecture."""
        while self.consecutive_failures < MOST_REPEATS:
            try:
                found = self._next()
            except ExhaustedError:
                return
            self.consecutive_failures = 0 if found else self.consecutive_failures + 1
            if found:
                yield found

    def _next(self) -> Evaluation | None:
        """Evaluate one suggestion; None: it was infeasible or known."""
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
            outcome = self.problem.evaluate(arch, identity, cost, self.spec.seed)
            self.known[identity] = self._train(arch, identity, outcome) if outcome else None
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

    def _tell(self, trial: Trial, found: Evaluation, is_new: bool) -> None:
        if found.pruned is None:
            self.study.tell(trial, found.outcome.observed)
        elif is_new:
            trial.set_user_attr(EXPECTED, [found.pruned.expected_error, found.pruned.std])
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _train(self, arch: ArchConfig, identity: str, outcome: Outcome) -> Evaluation:
        """A training in virtual time, to its end or to the rung at which it is pruned."""
        seconds = self.problem.seconds(arch)
        if not self.prune_below:
            return Evaluation(identity, outcome, outcome.compute[-1], seconds)
        encoding = self.spec.feasible.encoding
        code = encoding.code(arch)
        assert code is not None
        trainings, prior_error = list(self.completed.values()), None
        if len(trainings) >= MIN_TRIALS:
            predictor = ErrorPredictor(encoding, list(self.completed), [training.error for training in trainings])
            trainings = [replace(t, prior_error=predictor.left_out.get(of)) for of, t in self.completed.items()]
            prior_error = predictor.predict(code)
        rule = PruningRule(trainings, self.prune_below)
        for rung, error in enumerate(outcome.rung_errors):
            prediction = rule.predict(outcome.known_costs, rung, error, prior_error)
            if prediction and prediction.p_front < rule.bound:
                spent = outcome.compute[rung]
                return Evaluation(identity, outcome, spent, seconds * spent / outcome.compute[-1], prediction)
        at = self.spec.objectives.index("error")
        self.completed[code] = CompletedTraining(outcome.known_costs, outcome.rung_errors, outcome.observed[at])
        return Evaluation(identity, outcome, outcome.compute[-1], seconds)
