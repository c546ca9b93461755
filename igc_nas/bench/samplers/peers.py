"""Samplers of others that a user might take instead, for comparison: they are no samplers of a study.

Each starts from uniform draws within the budget, as Optuna's samplers do in a study, and learns of the budget through
Optuna's constraints. What is infeasible or known costs it nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import distributions

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler

from igc_nas.errors import UsageError
from igc_nas.samplers.study_sampler import POPULATION, STARTUP_TRIALS


def _gp(seed: int) -> BaseSampler:
    """Gaussian processes with log EHVI, Optuna's own."""
    return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


def _nsga3(seed: int) -> BaseSampler:
    return NSGAIIISampler(seed=seed, population_size=POPULATION)


def _botorch(seed: int) -> BaseSampler:
    """BoTorch's Gaussian processes with its noisy expected hypervolume improvement (Daulton et al. 2021)."""
    from optuna_integration import BoTorchSampler
    from optuna_integration.botorch import qnehvi_candidates_func

    made: BaseSampler = BoTorchSampler(
        candidates_func=qnehvi_candidates_func, n_startup_trials=STARTUP_TRIALS, seed=seed
    )
    return made


PEERS: dict[str, Callable[[int], BaseSampler]] = {"gp": _gp, "nsga3": _nsga3, "botorch": _botorch}
"""By name: makes the sampler from a seed."""
PACKAGES = {"botorch": ("botorch", "optuna-integration")}
"""The distributions that a peer needs beside Optuna."""


def peer(name: str, seed: int) -> BaseSampler:
    """A peer. Raises `UsageError` where a package is missing."""
    require(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PEERS[name](seed)


def require(name: str) -> None:
    """Raise `UsageError` where a package that a peer needs is missing."""
    missing = [package for package in PACKAGES.get(name, ()) if not any(distributions(name=package))]
    if missing:
        raise UsageError(f"{name} needs {' and '.join(missing)}", "pip install 'igc-nas[bench]'")
