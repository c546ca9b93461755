"""A study as its samplers see it: the codes of the trials with their exact costs, and their measured objectives."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from igc_nas.errors import ConfigError
from igc_nas.samplers.features import Floats
from igc_nas.space.encoding import Code, PricedCodes, SpaceEncoding
from igc_nas.space.search_space import SearchSpace
from igc_nas.study.records import Candidate

EXPECTED = "igc_nas:expected"
"""User attribute of a pruned trial: (mean, standard deviation) of its predicted final error."""
CONSTRAINTS = "constraints:"


@dataclass(frozen=True)
class LongerTrainings:
    """The longer trainings of a study: the codes (n) that were trained, and their results."""

    archs: PricedCodes
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class History:
    """The trials of a study that stand for an architecture of its space, each state in order of the trials' numbers.

    `values` (complete, objectives) are in the objectives' own units; `expected` (pruned, 2) are the mean and the
    standard deviation of the predicted final error.
    """

    complete: PricedCodes
    values: Floats
    pruned: PricedCodes
    expected: Floats
    running: PricedCodes
    longer: LongerTrainings | None = None

    @property
    def seen(self) -> frozenset[Code]:
        """Every code that the study has tried or is trying."""
        return frozenset((*self.complete, *self.pruned, *self.running))


class _FinishedTrials:
    """Finished trials of one state, by number, each architecture once (its first trial), with a row of values each."""

    def __init__(self, encoding: SpaceEncoding, columns: int) -> None:
        self._encoding = encoding
        self._numbers: list[int] = []
        self._first: dict[Code, int] = {}
        self.archs = encoding.priced([])
        self.values: Floats = np.empty((0, columns))

    def add(self, number: int, code: Code, values: Sequence[float]) -> None:
        """Add a trial, which may have finished before one of a lower number."""
        if self._first.get(code, number) < number:
            return
        if code in self._first:
            self._drop(bisect_left(self._numbers, self._first[code]))
        self._first[code] = number
        row, n = bisect_left(self._numbers, number), len(self.archs)
        self._numbers.insert(row, number)
        self.archs = (self.archs + self._encoding.priced([code])).rows(np.insert(np.arange(n), row, n))
        self.values = np.insert(self.values, row, values, 0)

    def _drop(self, row: int) -> None:
        del self._numbers[row]
        kept = np.delete(np.arange(len(self.archs)), row)
        self.archs, self.values = self.archs.rows(kept), self.values[kept]


class Memory:
    """Reads the history of one Optuna study repeatedly. A finished trial does not change, so it is read once."""

    def __init__(self, space: SearchSpace, encoding: SpaceEncoding) -> None:
        self.space = space
        self.encoding = encoding
        self._codes: dict[int, Code | None] = {}
        self._finished: tuple[_FinishedTrials, _FinishedTrials] | None = None
        """Complete, pruned."""
        self._read = 0
        """The number of trials read so far."""
        self._unfinished: dict[int, None] = {}
        """The numbers of those that were not finished when last read, ascending."""

    def history(self, study: optuna.Study, asking: int, longer: Iterable[Candidate] = ()) -> History:
        """The history for a suggestion to the trial `asking`, which is itself left out."""
        trials = study.get_trials(deepcopy=False)
        complete, pruned = self._finished = self._finished or (
            _FinishedTrials(self.encoding, len(study.directions)),
            _FinishedTrials(self.encoding, 2),
        )
        self._unfinished |= dict.fromkeys(range(self._read, len(trials)))
        self._read = len(trials)
        for number in [number for number in self._unfinished if trials[number].state.is_finished()]:
            del self._unfinished[number]
            self._add(trials[number])
        running = [self._code(trials[number]) for number in self._unfinished if number != asking]
        codes = [*dict.fromkeys(code for code in running if code is not None)]
        return History(
            complete.archs,
            complete.values,
            pruned.archs,
            pruned.values,
            self.encoding.priced(codes),
            self._longer(longer),
        )

    def _longer(self, candidates: Iterable[Candidate]) -> LongerTrainings | None:
        """The longer trainings of networks of this space; None: there is none."""
        known = [(c, code) for c in candidates if (code := self.encoding.code(c.arch)) is not None]
        if not known:
            return None
        return LongerTrainings(self.encoding.priced([code for _, code in known]), tuple(c for c, _ in known))

    def _add(self, trial: FrozenTrial) -> None:
        """Add a finished trial to those of its state; failed and infeasible ones are left out."""
        assert self._finished is not None
        complete, pruned = self._finished
        if trial.state == TrialState.COMPLETE and _is_feasible(trial):
            of_state, values = complete, trial.values
        elif trial.state == TrialState.PRUNED and EXPECTED in trial.user_attrs:
            of_state, values = pruned, trial.user_attrs[EXPECTED]
        else:
            return
        code = self._code(trial)
        if code is not None:
            of_state.add(trial.number, code, values)

    def _code(self, trial: FrozenTrial) -> Code | None:
        """The code of a trial's architecture; None: its parameters are none of this space."""
        if trial.number not in self._codes:
            try:
                self._codes[trial.number] = self.encoding.code(self.space.decode(trial.params))
            except ConfigError:
                self._codes[trial.number] = None
        return self._codes[trial.number]


def _is_feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for key, value in trial.system_attrs.items() if key.startswith(CONSTRAINTS))
