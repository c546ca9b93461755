"""What a sampler knows of a study: rows of codes with their exact costs, and what was measured of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from igc_nas.errors import ConfigError
from igc_nas.samplers.features import Floats
from igc_nas.space.encoding import Code, Ints, SpaceEncoding
from igc_nas.space.search_space import SearchSpace

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
    pruned: Rows
    expected: Floats
    running: Rows

    @property
    def seen(self) -> frozenset[Code]:
        """Every code that the study has tried, or tries."""
        rows = (self.complete, self.pruned, self.running)
        return frozenset(tuple(code) for part in rows for code in part.codes.tolist())


class _Group:
    """Trials that have ended, by number, each architecture once (its first trial): codes, costs, a row of values."""

    def __init__(self, encoding: SpaceEncoding, width: int) -> None:
        self._catalog = encoding
        self._numbers: list[int] = []
        self._first: dict[Code, int] = {}
        self.rows = price(encoding, [])
        self.values: Floats = np.empty((0, width))

    def add(self, number: int, code: Code, row: Sequence[float]) -> None:
        """Take a trial in, which may have ended before one of a lower number."""
        if self._first.get(code, number) < number:
            return
        if code in self._first:
            self._drop(bisect_left(self._numbers, self._first[code]))
        self._first[code] = number
        place = bisect_left(self._numbers, number)
        self._numbers.insert(place, number)
        one = price(self._catalog, [code])
        codes, costs = np.insert(self.rows.codes, place, one.codes, 0), np.insert(self.rows.costs, place, one.costs, 0)
        self.rows, self.values = Rows(codes, costs), np.insert(self.values, place, row, 0)

    def _drop(self, place: int) -> None:
        del self._numbers[place]
        codes, costs = np.delete(self.rows.codes, place, 0), np.delete(self.rows.costs, place, 0)
        self.rows, self.values = Rows(codes, costs), np.delete(self.values, place, 0)


class Memory:
    """Reads one Optuna study again and again; a trial that has ended, which does not change, once."""

    def __init__(self, space: SearchSpace, encoding: SpaceEncoding) -> None:
        self.space = space
        self.encoding = encoding
        self._codes: dict[int, Code | None] = {}
        self._groups: tuple[_Group, _Group] | None = None
        """Complete, stopped."""
        self._read = 0
        """Trials that have been looked at."""
        self._open: dict[int, None] = {}
        """Those among them that had not ended, ascending."""

    def history(self, study: optuna.Study, asking: int) -> History:
        """The study as it stands for the trial `asking`."""
        trials = study.get_trials(deepcopy=False)
        complete, stopped = self._groups = self._groups or (
            _Group(self.encoding, len(study.directions)),
            _Group(self.encoding, 2),
        )
        self._open |= dict.fromkeys(range(self._read, len(trials)))
        self._read = len(trials)
        for number in [number for number in self._open if trials[number].state.is_finished()]:
            del self._open[number]
            self._take(trials[number])
        running = [self._code(trials[number]) for number in self._open if number != asking]
        codes = [*dict.fromkeys(code for code in running if code is not None)]
        return History(complete.rows, complete.values, stopped.rows, stopped.values, price(self.encoding, codes))

    def _take(self, trial: FrozenTrial) -> None:
        """Put a trial that has ended where it belongs."""
        assert self._groups is not None
        complete, stopped = self._groups
        if trial.state == TrialState.COMPLETE and _is_feasible(trial):
            group, row = complete, trial.values
        elif trial.state == TrialState.PRUNED and EXPECTED in trial.user_attrs:
            group, row = stopped, trial.user_attrs[EXPECTED]
        else:
            return
        code = self._code(trial)
        if code is not None:
            group.add(trial.number, code, row)

    def _code(self, trial: FrozenTrial) -> Code | None:
        if trial.number not in self._codes:
            try:
                self._codes[trial.number] = self.encoding.code(self.space.decode(trial.params))
            except ConfigError:
                self._codes[trial.number] = None
        return self._codes[trial.number]


def price(encoding: SpaceEncoding, codes: Sequence[Code]) -> Rows:
    """Codes with their costs."""
    array = np.array(codes, dtype=np.int64).reshape(len(codes), 1 + len(encoding.stages))
    return Rows(array, encoding.price(array)[1])


def _is_feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for key, value in trial.system_attrs.items() if key.startswith(CONSTRAINTS))
