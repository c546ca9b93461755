"""Samplers of others that a user might take instead, for comparison: they are no samplers of a study.

Each starts from uniform draws within the budget, as Optuna's samplers do in a study. What is infeasible or known costs
it nothing. Optuna's own learn of the budget through constraints. BoTorch and SMAC3 choose among architectures that are
within the budget and new (`_Candidates`), and minimise the objectives as the hypervolume scales them: so they search
what they are judged by, and spend no suggestion on what cannot be built.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler
from optuna.trial import FrozenTrial, TrialState

from igc_nas.errors import UsageError
from igc_nas.samplers.distributions import distributions
from igc_nas.samplers.features import Floats
from igc_nas.samplers.history import Memory
from igc_nas.samplers.mutation import Mutator
from igc_nas.samplers.study_sampler import POPULATION, STARTUP_TRIALS
from igc_nas.study.pareto import nondominated
from igc_nas.study.spec import StudySpec

DRAWS, MUTATIONS = 128, 128
"""Candidates for BoTorch and SMAC3: uniform draws, and mutations of the front's members, both within the budget."""
SAMPLES = 128
"""Draws of the posterior in BoTorch's acquisition function (its own default)."""

Make = Callable[[int], BaseSampler]
"""Makes the sampler of a trial from a seed."""


def _gp(spec: StudySpec) -> Make:
    """Gaussian processes with log EHVI, Optuna's own."""
    return lambda seed: GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


def _nsga3(spec: StudySpec) -> Make:
    return lambda seed: NSGAIIISampler(seed=seed, population_size=POPULATION)


class _Candidates:
    """What is within the budget and not tried yet: uniform draws and mutations of the front, as parameters."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.encoding = spec.feasible.encoding
        self.mutator = Mutator(spec.feasible)
        self.memory = Memory(spec.search_space, self.encoding)

    def __call__(self, study: optuna.Study, number: int) -> list[dict[str, Any]]:
        """The candidates of trial `number`."""
        history, rng = self.memory.history(study, number), np.random.default_rng([self.spec.seed, number])
        front = history.complete.codes[nondominated(_scaled(self.spec, history.values))]
        drawn = [self.encoding.code(self.spec.feasible.draw(rng)) for _ in range(DRAWS)]
        codes = np.concatenate([np.array(drawn, dtype=np.int64), self.mutator.mutate(front, MUTATIONS, rng)])
        seen = history.seen
        kept = [code for code in self.mutator.kept(codes) if code not in seen]
        return [self.spec.search_space.encode(self.encoding.architecture(code)) for code in kept]


# BoTorch.


def _botorch(spec: StudySpec) -> Make:
    """qLogNEHVI (Ament et al. 2023, arXiv 2310.20708) by optuna-integration, over `_Candidates`.

    The model is the integration's: a GP of each objective over the flat parameters, categories one-hot (40 columns in
    igc_cifar). Its own optimiser of the acquisition, 20 restarts of L-BFGS in the continuous relaxation, knows neither
    the budget nor which stages fit together, so the acquisition is evaluated on candidates.
    """
    import torch
    from botorch.acquisition.multi_objective import logei
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms.outcome import Standardize
    from botorch.optim import optimize_acqf_discrete
    from botorch.sampling import SobolQMCNormalSampler
    from botorch.utils.transforms import normalize, unnormalize
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from optuna._transform import _SearchSpaceTransform
    from optuna_integration import BoTorchSampler

    torch.set_num_threads(1)
    # Else the first acquisition compiles a kernel in C++ for a minute, and waits for ever on the lock that a killed
    # compilation left (torch.utils.cpp_extension); it is needed for gradients only.
    logei._load_attempted = True
    candidates = _Candidates(spec)
    transform = _SearchSpaceTransform(distributions(spec.search_space))
    choices: list[Any] = []

    def choose(x: Any, values: Any, constraints: Any, bounds: Any, pending: Any) -> Any:
        x, y = normalize(x, bounds), -torch.from_numpy(_scaled(spec, -values.numpy()))
        model = SingleTaskGP(x, y, outcome_transform=Standardize(m=y.shape[1]))
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        sampler = SobolQMCNormalSampler(torch.Size([SAMPLES]))
        acquisition = logei.qLogNoisyExpectedHypervolumeImprovement(
            model, [-1.0] * y.shape[1], x, sampler=sampler, prune_baseline=True
        )
        found, _ = optimize_acqf_discrete(acquisition, q=1, choices=normalize(choices[-1], bounds))
        return unnormalize(found.detach(), bounds)

    class Sampler(BoTorchSampler):  # type: ignore[misc]
        def sample_relative(
            self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) >= STARTUP_TRIALS:
                rows = [transform.transform(each) for each in candidates(study, trial.number)]
                choices[:] = [torch.from_numpy(np.array(rows))]
            found: dict[str, Any] = super().sample_relative(study, trial, search_space)
            return found

    return lambda seed: Sampler(candidates_func=choose, n_startup_trials=STARTUP_TRIALS, seed=seed)


# SMAC3.


def _smac(spec: StudySpec) -> Make:
    """SMAC3 (Lindauer et al. 2022, JMLR 23): a random forest and ParEGO, retrained for each trial.

    A unit's own parameters are conditional on it. One in five suggestions is drawn at random, SMAC's default.
    """
    sampler = _SmacSampler(spec)
    return lambda seed: sampler


class _SmacSampler(BaseSampler):
    """Keeps one SMAC for a whole study, which is told of every trial."""

    def __init__(self, spec: StudySpec) -> None:
        from smac import HyperparameterOptimizationFacade as Facade
        from smac import Scenario
        from smac.acquisition.maximizer.abstract_acquisition_maximizer import AbstractAcquisitionMaximizer
        from smac.multi_objective.parego import ParEGO

        self._spec = spec
        self._candidates = _Candidates(spec)
        self._units = _units(spec)
        self._space = _conditional_space(spec, self._units)
        self._pool: list[Any] = []
        pool = self._pool

        class Maximizer(AbstractAcquisitionMaximizer):  # type: ignore[misc]
            def _maximize(self, previous_configs: list[Any], n_points: int) -> list[tuple[float, Any]]:
                found: list[tuple[float, Any]] = self._sort_by_acquisition_value(pool)
                return found

        self._folder = tempfile.TemporaryDirectory(prefix="igc-nas-smac-")
        scenario = Scenario(
            self._space,
            objectives=list(spec.objectives),
            deterministic=True,
            n_trials=100_000,
            seed=spec.seed,
            output_directory=Path(self._folder.name),
        )
        acquisition = Facade.get_acquisition_function(scenario)
        self._smac = Facade(
            scenario,
            lambda config, seed: dict.fromkeys(spec.objectives, 0.0),
            acquisition_function=acquisition,
            acquisition_maximizer=Maximizer(self._space, acquisition, seed=spec.seed),
            initial_design=Facade.get_initial_design(scenario, n_configs=0),
            config_selector=Facade.get_config_selector(scenario, retrain_after=1),
            multi_objective_algorithm=ParEGO(scenario),
            logging_level=logging.ERROR,
            overwrite=True,
        )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters."""
        return distributions(self._spec.search_space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """SMAC's next configuration; none in the first trials."""
        if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < STARTUP_TRIALS:
            return {}
        self._pool[:] = [self._configuration(each) for each in self._candidates(study, trial.number)]
        return dict.fromkeys(search_space, 0) | dict(self._smac.ask().config)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never called: `sample_relative` returns all parameters."""
        raise NotImplementedError

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Tell SMAC, which knows no constraints, the scaled objectives: of an infeasible trial all 1."""
        from smac.runhistory.dataclasses import TrialInfo, TrialValue

        if state == TrialState.COMPLETE:
            info = TrialInfo(self._configuration(trial.params), seed=0)
            self._smac.tell(info, TrialValue(cost=_scaled(self._spec, [values])[0].tolist()), save=False)

    def _configuration(self, params: dict[str, Any]) -> Any:
        """The parameters as ConfigSpace has them: without those that another unit has."""
        from ConfigSpace import Configuration

        values = {
            name: value
            for name, value in params.items()
            if name not in self._units or params[f"{name.partition('.')[0]}.unit"] in self._units[name]
        }
        return Configuration(self._space, values=values)


def _units(spec: StudySpec) -> dict[str, list[str]]:
    """The units that have a parameter, by the name of each that not all units of its stage have."""
    found = {}
    for stage in spec.search_space.stages:
        for key in stage.keys:
            units = [unit for unit, choices in stage.choices.items() if key in choices]
            if len(units) < len(stage.choices):
                found[f"stage{stage.number}.{key}"] = units
    return found


def _conditional_space(spec: StudySpec, units: Mapping[str, list[str]]) -> Any:
    """The parameters of the space for ConfigSpace; those of `units` are active with these units only."""
    from ConfigSpace import ConfigurationSpace, InCondition

    choices = {
        name: (0, choice - 1) if isinstance(choice, int) else list(choice)
        for name, choice in spec.search_space.parameters.items()
    }
    space = ConfigurationSpace(choices, seed=spec.seed)
    for name in units.keys() & choices.keys():
        space.add(InCondition(space[name], space[f"{name.partition('.')[0]}.unit"], units[name]))
    return space


def _scaled(spec: StudySpec, values: Iterable[Sequence[float]] | Floats) -> Floats:
    """(n, objectives) values as the hypervolume scales them, 1 or more at the reference point."""
    rows = [spec.scaled(dict(zip(spec.objectives, row, strict=True))) for row in values]
    return np.array(rows).reshape(-1, len(spec.objectives))


PEERS: dict[str, Callable[[StudySpec], Make]] = {"gp": _gp, "nsga3": _nsga3, "botorch": _botorch, "smac": _smac}
"""By name: given a study's spec, what makes its samplers."""
NEEDS = {"botorch": ("botorch", "optuna_integration"), "smac": ("smac", "ConfigSpace")}
"""Modules of the extra `bench` that a peer needs."""


def require_peer(name: str) -> None:
    """Raises `UsageError` for a peer whose modules are not installed."""
    missing = [module for module in NEEDS.get(name, ()) if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"sampler {name} needs {' and '.join(missing)}", "pip install 'igc-nas[bench]'")


def peer(name: str, spec: StudySpec) -> Make:
    """What makes the samplers of a peer for the trials of one study."""
    make = PEERS[name](spec)

    def made(seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return make(seed)

    return made
