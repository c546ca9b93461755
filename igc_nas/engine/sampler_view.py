"""A study as Optuna's samplers read it: an Optuna study in memory, kept in step with the store's records.

Samplers do not work on the database: each parameter that they suggest would be a transaction of its own, and each
suggestion would read all running trials again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from igc_nas.engine.database import update_trial
from igc_nas.study.spec import StudySpec


class SharedDistributions(dict[str, BaseDistribution]):
    """Distributions that all trials of a study share: Optuna copies a trial that it is given, which takes 10 kB each.

    Optuna never changes those of a trial in place, so a copy may be the same object.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class _SharingStorage(InMemoryStorage):
    """Optuna's storage in memory, in which suggested parameters share their distributions too."""

    def __init__(self) -> None:
        super().__init__()
        self._shared: dict[str, BaseDistribution] = {}

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        shared = self._shared.setdefault(param_name, distribution)
        super().set_trial_param(
            trial_id, param_name, param_value_internal, shared if shared == distribution else distribution
        )


class SamplerView:
    """An Optuna study in memory. Its trials are those of the store but the baselines, numbered from 0 on.

    So a sampler suggests the same with and without baselines.
    """

    def __init__(self, spec: StudySpec) -> None:
        self._storage = _SharingStorage()
        directions = [StudyDirection.MINIMIZE] * len(spec.objectives)
        self.study = optuna.create_study(storage=self._storage, study_name=spec.name, directions=directions)
        self._study_id = self._storage.get_study_id_from_name(spec.name)

    def __len__(self) -> int:
        return self._storage.get_n_trials(self._study_id)

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial that no sampler suggested in this process. Samplers see a waiting one as running."""
        if trial.state == TrialState.WAITING:  # `Study.ask` would hand it out
            trial = copy.copy(trial)
            trial.state = TrialState.RUNNING
        self._storage.create_new_trial(self._study_id, trial)

    def trial(self, number: int) -> FrozenTrial:
        """Trial `number` as samplers see it."""
        return self._storage.get_trial(self._trial_id(number))

    def finish(
        self,
        number: int,
        state: TrialState,
        values: list[float] | None,
        user_attrs: Mapping[str, Any],
        system_attrs: Mapping[str, Any],
    ) -> None:
        """Tell the sampler how a running trial ended; nothing happens where it has ended already."""
        if not self.trial(number).state.is_finished():
            update_trial(self._storage, self._trial_id(number), TrialState.RUNNING, None, user_attrs, system_attrs)
            self.study.tell(number, values, state)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
