"""The sampler of a study, as Optuna knows samplers: over the space's flat parameters, never over budget twice.

A suggestion is a function of (study seed, trial number, recorded history): everything random in it is drawn from the
first two. So a resumed study goes on as one that was never stopped.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from igc_nas.arch.plan import arch_id
from igc_nas.errors import IgcNasError
from igc_nas.samplers.brute_force import MOST_LISTED, BruteForce
from igc_nas.samplers.evolution import Evolution
from igc_nas.samplers.history import History, Memory
from igc_nas.samplers.known_cost import KnownCost
from igc_nas.space.encoding import Code
from igc_nas.space.search_space import SearchSpace
from igc_nas.study.spec import SamplerName, StudySpec

STARTUP_TRIALS = 10
POPULATION = 20
MOST_REPEATS = 2_000
MOST_IN_VAIN = 50

Propose = Callable[[History, np.random.Generator], Iterable[Code]]
"""Codes in the order in which they should be tried."""


class ExhaustedError(IgcNasError):
    """The sampler finds no architecture that the study does not have already."""


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space's parameters for Optuna: the same names with the same values in every trial."""
    return {
        name: IntDistribution(0, choice - 1) if isinstance(choice, int) else CategoricalDistribution(choice)
        for name, choice in space.parameters.items()
    }


class StudySampler(BaseSampler):
    """The sampler that a spec names. `known` are the ids of what the study has: no such architecture is proposed.

    Our own samplers propose whole architectures, always valid and within the budget. One of Optuna's is asked first
    where the spec names it, and need not be; wherever it would draw each parameter at random (TPE's start, the first
    generation of NSGA-II) a uniform feasible draw takes its place.
    """

    def __init__(
        self, spec: StudySpec, known: Collection[str], consecutive_failures: Callable[[], int] = lambda: 0
    ) -> None:
        self._spec = spec
        self._known = known
        self._in_vain = consecutive_failures
        self._catalog = spec.feasible.encoding
        self._memory = Memory(spec.search_space, self._catalog)
        self._propose = _proposer(spec)
        self._inner: BaseSampler | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the space."""
        return distributions(self._spec.search_space)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Seed what is random for this trial."""
        streams = np.random.SeedSequence([self._spec.seed, trial.number]).spawn(2)
        self._rng = np.random.default_rng(streams[0])
        consecutive_failures = self._in_vain() >= MOST_IN_VAIN
        self._inner = (
            None if consecutive_failures else _optuna_sampler(self._spec.sampler, int(streams[1].generate_state(1)[0]))
        )
        if self._inner:
            self._inner.before_trial(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of a whole architecture. Raises `ExhaustedError`."""
        if isinstance(self._inner, NSGAIISampler):
            # Asked once, parents come in the order of their choice; again, in that of their numbers. Resumed is again.
            self._inner.get_parent_population(study, self._inner.get_trial_generation(study, trial))
        chosen = self._inner.sample_relative(study, trial, search_space) if self._inner else {}
        return chosen or self._new(study, trial)

    def _new(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        history = self._memory.history(study, trial.number)
        for code in self._proposals(history):
            arch = self._catalog.architecture(code)
            if arch_id(arch) not in self._known:
                return self._spec.search_space.encode(arch)
        raise ExhaustedError(
            f"{self._spec.sampler} finds nothing in {self._spec.space_name} that the study does not have"
        )

    def _proposals(self, history: History) -> Iterator[Code]:
        """What is proposed, and in the end all that a small space holds."""
        yield from itertools.islice(self._propose(history, self._rng), MOST_REPEATS)
        if self._spec.search_space.size <= MOST_LISTED:
            yield from BruteForce(self._spec).propose(history, self._rng)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What Optuna's sampler draws for a parameter that it left out of a relative sample."""
        assert self._inner is not None
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Pass on to Optuna's sampler."""
        if self._inner:
            self._inner.after_trial(study, trial, state, values)


def _proposer(spec: StudySpec) -> Propose:
    """Where architectures come from; for Optuna's samplers, where they start from."""
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


_OPTUNA: dict[SamplerName, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
}


def _optuna_sampler(name: SamplerName, seed: int) -> BaseSampler | None:
    if name not in _OPTUNA:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _OPTUNA[name](seed)
