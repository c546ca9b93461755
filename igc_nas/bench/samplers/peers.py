"""Samplers of others that a user might take instead, for comparison: they are no samplers of a study.

Each starts from uniform draws within the budget, as Optuna's samplers do in a study, and learns of the budget through
Optuna's constraints. What is infeasible or known costs it nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler

from igc_nas.samplers.study_sampler import POPULATION, STARTUP_TRIALS


def _gp(seed: int) -> BaseSampler:
    """Gaussian processes with log EHVI, Optuna's own."""
    return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


def _nsga3(seed: int) -> BaseSampler:
    return NSGAIIISampler(seed=seed, population_size=POPULATION)


PEERS: dict[str, Callable[[int], BaseSampler]] = {"gp": _gp, "nsga3": _nsga3}
"""By name: makes the sampler from a seed."""


def peer(name: str, seed: int) -> BaseSampler:
    """A peer by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PEERS[name](seed)
