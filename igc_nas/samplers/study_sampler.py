"""The sampler of a study as an Optuna `BaseSampler`, over the flat parameters of the space.

A suggestion is a function of (study seed, trial number, recorded history): its random numbers come from the first two
only. So a resumed study continues exactly as one that was never interrupted.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import arch_id
from igc_nas.errors import IgcNasError
from igc_nas.samplers.brute_force import MOST_LISTED, BruteForce
from igc_nas.samplers.distributions import distributions
from igc_nas.samplers.evolution import Evolution
from igc_nas.samplers.history import History, Memory
from igc_nas.samplers.known_cost import KnownCost
from igc_nas.space.encoding import Code
from igc_nas.study.records import Candidate
from igc_nas.study.spec import SamplerName, StudySpec

STARTUP_TRIALS = 10
POPULATION = 20
MOST_REPEATS = 2_000
"""A sampler that has proposed this number of known architectures in a row is exhausted."""
MOST_FAILURES = 50
"""After this number of infeasible or known suggestions in a row, uniform draws replace Optuna's sampler for a trial."""

Propose = Callable[[History, np.random.Generator], Iterable[Code]]
"""Codes in the order in which to try them."""


class ExhaustedError(IgcNasError):
    """The sampler finds no architecture that is new to the study."""


class StudySampler(BaseSampler):
    """The sampler that a spec names. An architecture whose id is in `known` is not proposed again.

    The samplers of this package propose whole architectures that are valid and within the budget. Optuna's TPE and
    NSGA-II know neither the budget nor `known`, so their suggestions may be infeasible or known; where they would draw
    each parameter at random (TPE's start, the first generation of NSGA-II), a uniform draw of a feasible architecture
    replaces it. An architecture for which `can_end` is False is passed over, by the samplers of this package.
    `longer` gives the longer trainings that have ended.
    `optuna_sampler` makes a sampler of Optuna's from a seed, in place of the spec's. `consecutive_failures` counts the
    infeasible or known suggestions of Optuna's since the last new one.
    """

    def __init__(
        self,
        spec: StudySpec,
        known: Collection[str],
        consecutive_failures: Callable[[], int] = lambda: 0,
        can_end: Callable[[ArchConfig], bool] = lambda _: True,
        longer: Callable[[], Iterable[Candidate]] = tuple,
        optuna_sampler: Callable[[int], BaseSampler | None] | None = None,
    ) -> None:
        self._spec = spec
        self._known = known
        self._consecutive_failures = consecutive_failures
        self._can_end = can_end
        self._longer = longer
        self._make = optuna_sampler or partial(_optuna_sampler, spec.sampler)
        self._encoding = spec.feasible.encoding
        self._memory = Memory(spec.search_space, self._encoding)
        self._propose = _proposer(spec)
        self._optuna: BaseSampler | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the space."""
        return distributions(self._spec.search_space)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Make the random generators of this trial."""
        streams = np.random.SeedSequence([self._spec.seed, trial.number]).spawn(2)
        self._rng = np.random.default_rng(streams[0])
        seed = int(streams[1].generate_state(1)[0])
        has_failed = self._consecutive_failures() >= MOST_FAILURES
        self._optuna = None if has_failed else self._make(seed)
        if self._optuna:
            self._optuna.before_trial(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of a whole architecture. Raises `ExhaustedError`."""
        if isinstance(self._optuna, NSGAIISampler):
            # The first call for a generation selects its parents and returns them in the order of selection; later
            # calls read them from the study, in the order of their numbers. A resumed study only has later calls, so
            # the first one is made here and its result dropped.
            self._optuna.get_parent_population(study, self._optuna.get_trial_generation(study, trial))
        chosen = self._optuna.sample_relative(study, trial, search_space) if self._optuna else {}
        return chosen or self._new(study, trial)

    def _new(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        history, too_long = self._memory.history(study, trial.number, self._longer()), False
        for code in proposals(self._spec, self._propose, history, self._rng):
            arch = self._encoding.architecture(code)
            if arch_id(arch) in self._known:
                continue
            if self._can_end(arch):
                return self._spec.search_space.encode(arch)
            too_long = True
        if too_long:
            raise ExhaustedError("no new trial would end in the time that is left")
        raise ExhaustedError(
            f"{self._spec.sampler} finds no architecture in {self._spec.space_name} that is new to the study"
        )

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that Optuna's sampler left out of its relative sample, drawn by that sampler."""
        assert self._optuna is not None
        return self._optuna.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Tell Optuna's sampler that the trial is finished."""
        if self._optuna:
            self._optuna.after_trial(study, trial, state, values)


def proposals(spec: StudySpec, propose: Propose, history: History, rng: np.random.Generator) -> Iterator[Code]:
    """Up to `MOST_REPEATS` proposals of a sampler, then every architecture of a small space."""
    yield from itertools.islice(propose(history, rng), MOST_REPEATS)
    if spec.search_space.size <= MOST_LISTED:
        yield from BruteForce(spec).propose(history, rng)


def _proposer(spec: StudySpec) -> Propose:
    """The sampler that proposes architectures; for Optuna's samplers, uniform draws for their first trials."""
    match spec.sampler:
        case "known-cost":
            return KnownCost(spec).propose
        case "evolution":
            return Evolution(spec).propose
        case "brute-force":
            return BruteForce(spec).propose
        case "stratified":
            return lambda history, rng: _draws(spec, spec.feasible.draw_stratified, rng)
        case _:
            return lambda history, rng: _draws(spec, spec.feasible.draw, rng)


def _draws(spec: StudySpec, draw: Callable[[np.random.Generator], Any], rng: np.random.Generator) -> Iterator[Code]:
    while True:
        code = spec.feasible.encoding.code(draw(rng))
        assert code is not None
        yield code


_OPTUNA_SAMPLERS: dict[SamplerName, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
}


def _optuna_sampler(name: SamplerName, seed: int) -> BaseSampler | None:
    if name not in _OPTUNA_SAMPLERS:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _OPTUNA_SAMPLERS[name](seed)
