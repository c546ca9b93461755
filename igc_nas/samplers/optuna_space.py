"""A search space in an Optuna study of one's own: architectures suggested within a budget.

space = igc_nas.load_space("igc_cifar", budget_params="2M")
study = optuna.create_study(sampler=igc_nas.KnownCostSampler(space))
study.optimize(lambda trial: error_of(igc_nas.create_model(space.suggest(trial))), n_trials=60)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import optuna
from optuna.distributions import IntDistribution
from optuna.trial import BaseTrial

from igc_nas.arch.config import ArchConfig, number_of_classes
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.errors import ConfigError
from igc_nas.samplers.distributions import value_distribution
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import Feasible, feasible
from igc_nas.space.parameters import Parameters, Value
from igc_nas.space.search_space import SpaceFile, search_space

CONSTRAINT = "budget"


class OptunaSpace:
    """The architectures of a space file for images of `classes` classes, within `budget`.

    The parameters of a trial are those of the space file by their values: `stem.width`, `stage1.unit`, `stage1.blocks`,
    `stage1.igcv2.width`. Raises `ConfigError` for a file that is not a space, `InfeasibleError` where nothing fits.
    """

    def __init__(self, file: SpaceFile, classes: int, name: str, budget: Budget) -> None:
        self.file = file
        self.classes = number_of_classes(classes)
        self.name = name
        self.budget = budget
        self.feasible.lightest()  # raises where nothing fits
        self.parameters = Parameters(search_space(file, self.classes, name))

    def __repr__(self) -> str:
        limits = [f"{name}={limit}" for name, limit in self.budget if limit is not None]
        return f"OptunaSpace({', '.join([repr(self.name), f'classes={self.classes}', *limits])})"

    def __reduce__(self) -> tuple[Any, ...]:
        return OptunaSpace, (self.file, self.classes, self.name, self.budget)

    @property
    def feasible(self) -> Feasible:
        """The architectures within the budget: `count`, `draw(rng)`, `lightest()`, `heaviest()`."""
        return feasible(search_space(self.file, self.classes, self.name), self.budget)

    def suggest(self, trial: BaseTrial) -> ArchConfig:
        """Ask a trial (or a `FixedTrial`) for an architecture.

        The trial gets the user attributes id, params, macs, activations and architecture, and the constraint `budget`,
        the relative excess, by which Optuna's samplers learn. Raises `optuna.TrialPruned` with the reason (also in the
        user attribute `reason`) where the parameters make no valid architecture, or one over the budget; with
        `KnownCostSampler` that never happens.
        """
        values = self.parameters.choose(lambda name, options: _suggested(trial, name, options))
        try:
            arch = self.parameters.architecture(values)
        except ConfigError as error:
            _refuse(trial, 1.0, error.message)
        cost = cost_of(arch)
        known = {"params": cost.params, "macs": cost.macs, "activations": cost.activations}
        for key, value in {"id": arch_id(arch), **known, "architecture": str(arch)}.items():
            trial.set_user_attr(key, value)
        violation = self.budget.violation(cost)
        if violation > 0:
            _refuse(trial, violation, self.budget.excess_text(cost) or "over the budget")
        _constrain(trial, violation)
        return arch

    def architecture(self, params: Mapping[str, Value]) -> ArchConfig:
        """The architecture of a trial: `space.architecture(study.best_trial.params)`. Raises `ConfigError`."""
        return self.parameters.architecture(params)

    def params(self, arch: ArchConfig) -> dict[str, Value]:
        """The parameters of an architecture: `study.enqueue_trial(space.params(arch))`. Raises `ConfigError`."""
        return self.parameters.of(arch)


def _suggested(trial: BaseTrial, name: str, options: tuple[Value, ...]) -> Value:
    distribution = value_distribution(options)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    chosen: Value = trial.suggest_categorical(name, options)  # type: ignore[assignment]
    return chosen


def _refuse(trial: BaseTrial, violation: float, reason: str) -> NoReturn:
    _constrain(trial, violation)
    trial.set_user_attr("reason", reason)
    raise optuna.TrialPruned(reason)


def _constrain(trial: BaseTrial, violation: float) -> None:
    # A FixedTrial has no sampler that would learn; a second suggestion to a trial is the first one.
    if isinstance(trial, optuna.Trial) and CONSTRAINT not in trial.constraints:
        trial.set_constraint(CONSTRAINT, violation)
