"""What is tried next: Optuna's samplers over the space's flat parameters, starting from uniform feasible draws.

A suggestion is a function of (study seed, trial number, recorded history): every trial gets a sampler of its own,
seeded from the first two. So a resumed study goes on as one that was never stopped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from igc_nas.config import ArchConfig
from igc_nas.errors import IgcNasError
from igc_nas.plan import arch_id
from igc_nas.space import SearchSpace
from igc_nas.spec import StudySpec

STARTUP_TRIALS = 10
POPULATION = 20
MOST_REPEATS = 2_000
MOST_IN_VAIN = 50


class ExhaustedError(IgcNasError):
    """The sampler finds no architecture that the study does not have already."""


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space's parameters for Optuna: the same names with the same values in every trial."""
    return {
        name: IntDistribution(0, choice - 1) if isinstance(choice, int) else CategoricalDistribution(choice)
        for name, choice in space.parameters.items()
    }


class FeasibleSampler(BaseSampler):
    """Uniform over the architectures within the budget that the study does not have yet.

    `inner`, where given, is asked first; it falls to the uniform draw wherever `inner` has nothing to go by and would
    draw each parameter at random (TPE's start, the first generation of NSGA-II).
    """

    def __init__(
        self, spec: StudySpec, known: Collection[str], rng: np.random.Generator, inner: BaseSampler | None = None
    ) -> None:
        self._spec = spec
        self._known = known
        self._rng = rng
        self._inner = inner

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the space."""
        return distributions(self._spec.search_space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of a whole architecture."""
        chosen = self._inner.sample_relative(study, trial, search_space) if self._inner else {}
        return chosen or self._spec.search_space.encode(self._draw())

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What `inner` draws for a parameter that it left out of a relative sample."""
        assert self._inner is not None
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Pass on to `inner`."""
        if self._inner:
            self._inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Pass on to `inner`."""
        if self._inner:
            self._inner.after_trial(study, trial, state, values)

    def _draw(self) -> ArchConfig:
        for _ in range(MOST_REPEATS):
            arch = self._spec.feasible.draw(self._rng)
            if arch_id(arch) not in self._known:
                return arch
        raise ExhaustedError(
            f"{MOST_REPEATS:,} draws from {self._spec.space_name} found only architectures that the study has"
        )


def sampler_for(spec: StudySpec, number: int, known: Collection[str], in_vain: int = 0) -> BaseSampler:
    """The sampler of trial `number`. `known` are the ids that the study has.

    After `MOST_IN_VAIN` suggestions in a row that came to nothing the next one is a uniform feasible draw, which gives
    the sampler something new to learn from.
    """
    streams = np.random.SeedSequence([spec.seed, number]).spawn(2)
    rng = np.random.default_rng(streams[0])
    inner_seed = int(streams[1].generate_state(1)[0])
    inner = None if in_vain >= MOST_IN_VAIN else _optuna_sampler(spec, inner_seed)
    return FeasibleSampler(spec, known, rng, inner)


_MAKE: dict[str, Callable[[int], BaseSampler | None]] = {
    "random": lambda seed: None,
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
}


def _optuna_sampler(spec: StudySpec, seed: int) -> BaseSampler | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _MAKE[spec.sampler](seed)
