"""What a sampler knows of a study: rows of codes with their exact costs, and what was measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from igc_nas.catalog import Catalog, Code, Ints
from igc_nas.errors import ConfigError
from igc_nas.features import Floats
from igc_nas.space import SearchSpace

EXPECTED = "igc_nas:expected"
"""User attribute of a trial that was stopped: (mean, standard deviation) of the objective `error` at the end."""
CONSTRAINTS = "constraints:"


@dataclass(frozen=True)
class Rows:
    """Some trials: `codes` (n, 1 + stages), `costs` (n, metrics)."""

    codes: Ints
    costs: Ints

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class History:
    """The trials of a study that stand for an architecture of its space, each group in order of their numbers.

    `values` (complete, objectives) in the objectives' own units. `expected` (stopped, 2) is mean and standard deviation
    of the error that they would have had.
    """

    complete: Rows
    values: Floats
    stopped: Rows
    expected: Floats
    running: Rows

    @property
    def seen(self) -> frozenset[Code]:
        """Every code that the study has tried, or tries."""
        rows = (self.complete, self.stopped, self.running)
        return frozenset(tuple(map(int, code)) for part in rows for code in part.codes)


class Memory:
    """Reads an Optuna study again and again, decoding each trial once."""

    def __init__(self, space: SearchSpace, catalog: Catalog) -> None:
        self.space = space
        self.catalog = catalog
        self._codes: dict[int, Code | None] = {}

    def history(self, study: optuna.Study, asking: int) -> History:
        """The study as it stands for the trial `asking`."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != asking]
        complete = [t for t in trials if t.state == TrialState.COMPLETE and _is_feasible(t)]
        stopped = [t for t in trials if t.state == TrialState.PRUNED and EXPECTED in t.user_attrs]
        running = [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
        of_complete, complete = self._rows(complete)
        of_stopped, stopped = self._rows(stopped)
        of_running, _ = self._rows(running)
        values = np.array([t.values for t in complete], dtype=float).reshape(len(complete), len(study.directions))
        expected = np.array([t.user_attrs[EXPECTED] for t in stopped], dtype=float).reshape(len(stopped), 2)
        return History(of_complete, values, of_stopped, expected, of_running)

    def _rows(self, trials: Sequence[FrozenTrial]) -> tuple[Rows, list[FrozenTrial]]:
        """The trials whose parameters are an architecture, each architecture once."""
        found: dict[Code, FrozenTrial] = {}
        for trial in trials:
            code = self._code(trial)
            if code is not None:
                found.setdefault(code, trial)
        return self.rows(list(found)), list(found.values())

    def rows(self, codes: Sequence[Code]) -> Rows:
        """Codes with their costs."""
        array = np.array(codes, dtype=np.int64).reshape(len(codes), 1 + len(self.catalog.stages))
        return Rows(array, self.catalog.price(array)[1])

    def _code(self, trial: FrozenTrial) -> Code | None:
        if trial.number not in self._codes:
            try:
                self._codes[trial.number] = self.catalog.code(self.space.decode(trial.params))
            except ConfigError:
                self._codes[trial.number] = None
        return self._codes[trial.number]


def _is_feasible(trial: FrozenTrial) -> bool:
    limits: NDArray[np.float64] = np.array(
        [value for key, value in trial.system_attrs.items() if key.startswith(CONSTRAINTS)], dtype=float
    )
    return bool((limits <= 0).all())
