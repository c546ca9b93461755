"""The known-cost sampler (see `known_cost`) for an Optuna study of one's own, with any storage and objective."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import chain
from operator import index
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from igc_nas.errors import ConfigError, UsageError
from igc_nas.samplers.distributions import value_distributions
from igc_nas.samplers.features import Floats
from igc_nas.samplers.history import History
from igc_nas.samplers.known_cost import KnownCost
from igc_nas.samplers.optuna_space import OptunaSpace
from igc_nas.samplers.study_sampler import proposals
from igc_nas.space.encoding import Code
from igc_nas.space.parameters import Value
from igc_nas.space.search_space import METRICS
from igc_nas.study.defaults import default_recipe
from igc_nas.study.objectives import parse_objectives
from igc_nas.study.spec import LatencySpec, StudySpec

SCORE = "error"
"""What the sampler calls the one objective that is neither a cost nor a latency."""
COSTS = (*METRICS, "flops")
FEWEST_CLASSES = 2
"""Of which an error has a scale: that of a network of one output, a regression's, is that of two."""
FENCE = 3.0
"""A score that is worse than the upper quartile by more than this number of interquartile ranges counts as one there
(Tukey 1977, the outer fence): one training that diverged would make all others look alike."""


class KnownCostSampler(BaseSampler):
    """Suggests architectures of `space`: valid, within its budget, none twice.

    `objectives` name what the objective function returns, in its order: one score of any name (`error`, `accuracy`,
    `loss`), which alone is uncertain and is minimised or maximised as the study says, and beside it up to two of
    params, macs, flops, activations, which are computed exactly, and latency, a positive number to minimise.
    Suggestions maximise the expected improvement of the score, or of the hypervolume over all objectives.

    Trials that are complete teach it; of pruned ones the last reported value does, as an uncertain one; failed ones are
    not repeated. Other parameters of the objective function come from `independent_sampler` (by default at random).
    Safe in threads (`n_jobs`); processes that share a storage may rarely try one architecture at the same time.
    Where a trial was enqueued with some of its parameters, the suggestion has these, if one of those found does.
    Where no new architecture is left, a known one is suggested with a warning, and the study stops.

    Raises `UsageError` for objectives or a seed that do not fit, or what is no space.
    """

    def __init__(
        self,
        space: OptunaSpace,
        objectives: Sequence[str] = (SCORE,),
        *,
        seed: int | None = None,
        independent_sampler: BaseSampler | None = None,
    ) -> None:
        if not isinstance(space, OptunaSpace):
            raise UsageError(f"{space!r:.80} is not a space", "make one by igc_nas.load_space")
        names = (objectives,) if isinstance(objectives, str) else tuple(objectives)
        scores = [name for name in names if name not in (*COSTS, "latency")]
        if len(scores) != 1:
            raise UsageError(
                f"objectives {', '.join(names)}: there must be one that is neither a cost nor a latency",
                'such as ("error", "params")',
            )
        self.space = space
        self.objectives = names
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else index(seed)
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative", "use 0 or a larger one")
        self._score = scores[0]
        self._independent = independent_sampler or RandomSampler(seed)
        self._spec = _spec(space, tuple(SCORE if name == self._score else name for name in names), self.seed)
        self._encoding = self._spec.feasible.encoding
        self._known_cost = KnownCost(self._spec)
        self._lock = threading.Lock()
        self._suggested: dict[_Key, Code] = {}
        """The codes suggested to running trials."""
        self._ended: dict[_Key, Code | None] = {}
        """Those of trials that have ended, as read: a user may have fixed some of the parameters (`enqueue_trial`)."""

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(KnownCostSampler, seed=self.seed, independent_sampler=self._independent)
        return make, (self.space, self.objectives)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters of all units; a trial has those of its own."""
        return value_distributions(self.space.parameters)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of a whole architecture, those of `search_space`.

        Raises `UsageError` if the study has another number of objectives, or maximises a cost or the latency.
        """
        self._check_directions(study)
        with self._lock:  # so that threads do not suggest the same
            code = self._new(study, trial)
            self._suggested[_key(study, trial)] = code
        return {name: value for name, value in self._params(code).items() if name in search_space}

    def _check_directions(self, study: optuna.Study) -> None:
        if len(study.directions) != len(self.objectives):
            raise UsageError(
                f"the study has {len(study.directions)} objectives; the sampler has {', '.join(self.objectives)}",
                "create the study with a direction for each of them",
            )
        for name, direction in zip(self.objectives, study.directions, strict=True):
            if name != self._score and direction == StudyDirection.MAXIMIZE:
                raise UsageError(f"the study maximises {name}, which the sampler minimises", "minimize it")

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that is not the architecture's, by the independent sampler."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Reseed the independent sampler; a suggestion follows from the seed, the trial's number and the history."""
        self._independent.reseed_rng()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell the independent sampler."""
        self._independent.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tell the independent sampler."""
        self._independent.after_trial(study, trial, state, values)

    def _params(self, code: Code) -> dict[str, Value]:
        return self.space.params(self._encoding.architecture(code))

    def _new(self, study: optuna.Study, trial: FrozenTrial) -> Code:
        """A code that no trial of the study has, with the parameters that were enqueued if one of those found has."""
        fixed = self._fixed(trial)
        if (whole := self._of_params(fixed)) is not None:
            return whole
        rng = np.random.default_rng([self.seed, trial.number])
        trials = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        codes = {other.number: code for other in trials if (code := self._code(study, other)) is not None}
        history, tried = self._history(study, trials, codes), set(codes.values())
        found = (c for c in proposals(self._spec, self._known_cost.propose, history, rng) if c not in tried)
        if (first := next(found, None)) is not None:
            fitting = (code for code in chain([first], found) if self._params(code).items() >= fixed.items())
            return next(fitting, first)
        warnings.warn("every architecture within the budget that was found is in the study already", stacklevel=2)
        with suppress(RuntimeError):  # outside of `optimize`
            study.stop()
        return next(self._known_cost.propose(history, rng))

    def _fixed(self, trial: FrozenTrial) -> dict[str, Any]:
        """The parameters of the space with which a trial was enqueued."""
        enqueued = trial.system_attrs.get("fixed_params", {})
        return {name: value for name, value in enqueued.items() if name in self.space.parameters.choices}

    def _of_params(self, params: Mapping[str, Any]) -> Code | None:
        """The code of an architecture; None where these are not all of its parameters, or those of none."""
        try:
            return self._encoding.code(self.space.architecture(params))
        except ConfigError:
            return None

    def _code(self, study: optuna.Study, trial: FrozenTrial) -> Code | None:
        """The code of a trial's architecture; None while it has not asked for one that we know."""
        key = _key(study, trial)
        if key in self._ended:
            return self._ended[key]
        found = self._of_params(trial.params)
        if not trial.state.is_finished():
            return found or self._suggested.get(key)
        self._suggested.pop(key, None)
        self._ended[key] = found
        return found

    # What the study tells.

    def _history(self, study: optuna.Study, trials: Sequence[FrozenTrial], codes: dict[int, Code]) -> History:
        """The trials with an architecture, each architecture once, as the sampler reads them."""
        known = {trial.number: trial for trial in trials if trial.number in codes}
        complete = self._first(codes, known, lambda t: t.state == TrialState.COMPLETE and self._is_measured(t))
        pruned = self._first(codes, known, lambda t: t.state == TrialState.PRUNED and _reported(t) is not None)
        running = self._first(codes, known, lambda t: not t.state.is_finished())
        at = self.objectives.index(self._score)
        scores = np.array([known[n].values[at] for n in complete], dtype=float)
        reported = np.array([_reported(known[n]) for n in pruned], dtype=float)
        scores, reported = self._as_errors(scores, reported, study.directions[at])
        priced = self._encoding.priced([*complete.values()])
        columns = []
        for place, name in enumerate(self._spec.objectives):
            if name == SCORE:
                columns.append(scores)
            elif name == "latency":
                columns.append(np.array([known[n].values[place] for n in complete], dtype=float))
            else:
                columns.append(priced.cost(name).astype(float))
        spread = float(scores.std()) if len(scores) else 1.0
        return History(
            priced,
            np.stack(columns, axis=1),
            self._encoding.priced([*pruned.values()]),
            np.stack([reported, np.full(len(reported), spread)], axis=1),
            self._encoding.priced([*running.values()]),
        )

    def _first(
        self, codes: dict[int, Code], trials: dict[int, FrozenTrial], holds: Callable[[FrozenTrial], bool]
    ) -> dict[int, Code]:
        """Of the trials for which `holds`, the first one of each code."""
        first: dict[Code, int] = {}
        for number, trial in trials.items():
            if holds(trial):
                first.setdefault(codes[number], number)
        return {number: code for code, number in first.items()}

    def _is_measured(self, trial: FrozenTrial) -> bool:
        """Whether a complete trial satisfies the study's constraints and has finite values, a latency above 0."""
        if any(value > 0 for value in trial.constraints.values()):
            return False
        return all(
            math.isfinite(value) and (name != "latency" or value > 0)
            for name, value in zip(self.objectives, trial.values, strict=True)
        )

    def _as_errors(self, scores: Floats, reported: Floats, direction: StudyDirection) -> tuple[Floats, Floats]:
        """Scores on the scale of an error, 0 to chance: errors as they are, others by the range of complete trials.

        Those beyond the `FENCE` count as there.
        """
        both = np.concatenate([scores, reported])
        if self._score == SCORE and direction == StudyDirection.MINIMIZE and ((both >= 0) & (both <= 1)).all():
            return scores, reported
        sign = -1 if direction == StudyDirection.MAXIMIZE else 1
        if not len(scores):
            return scores, np.full(len(reported), self._spec.bounds[SCORE][1])
        scores, reported = sign * scores, sign * reported
        low, high = scores.min(), scores.max()
        lower, upper = np.quantile(scores, (0.25, 0.75))
        if lower < upper and (fence := upper + FENCE * (upper - lower)) < high:
            scores, reported, high = np.minimum(scores, fence), np.minimum(reported, fence), fence
        scale = self._spec.bounds[SCORE][1] / ((high - low) or 1.0)
        return (scores - low) * scale, (reported - low) * scale


_Key = tuple[str, int, datetime | None]


def _key(study: optuna.Study, trial: FrozenTrial) -> _Key:
    """What tells a trial from all others; studies in two storages may have one name."""
    return study.study_name, trial.number, trial.datetime_start


def _reported(trial: FrozenTrial) -> float | None:
    """The last intermediate value of a trial, if it is finite."""
    value = trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else math.nan
    return value if math.isfinite(value) else None


def _spec(space: OptunaSpace, objectives: tuple[str, ...], seed: int) -> StudySpec:
    """What the sampler knows of a study: space, budget, objectives. How it trains and measures is the user's."""
    spec = StudySpec(
        name="optuna",
        space_name=space.name,
        classes=max(FEWEST_CLASSES, space.classes),
        dataset="",
        dataset_sha256="",
        objectives=parse_objectives(",".join(objectives)),
        goal="best-error" if len(objectives) == 1 else "front",
        seed=seed,
        budget=space.budget,
        recipe=default_recipe("cpu"),
        latency=LatencySpec(device="", input=space.file.input),
        space=space.file,
    )
    of_error, spec = spec.known_bounds()["error"], spec.model_copy(update={"classes": space.classes})
    return spec.model_copy(update={"bounds": spec.known_bounds() | {"error": of_error}})
