"""A study on disk: Optuna's database and `trials.jsonl`. Either one restores the other.

A trial is written when it starts and when it ends, to both. Samplers read a view in memory (`SamplerView`). One process
writes a study (see `igc_nas.study.lock`); the trials that it was evaluating when it died wait for the next search.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from igc_nas.engine.database import DATABASE_FILE, Database, default_url, file_of, parse_url
from igc_nas.engine.sampler_view import SamplerView, SharedDistributions
from igc_nas.errors import IgcNasError, StudyError
from igc_nas.io.files import append_line, write_whole
from igc_nas.io.records import differences
from igc_nas.samplers.distributions import distributions
from igc_nas.samplers.history import EXPECTED
from igc_nas.study.lock import LOCK_FILE, StudyLock, now
from igc_nas.study.objectives import values
from igc_nas.study.process import Process, uninterrupted
from igc_nas.study.records import FINISHED, Failure, Latency, Trial
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import STUDY_FILE, TRIALS_FILE, Study, read_trials

BUDGET = "budget"
CONSTRAINT = f"constraints:{BUDGET}"
LOST = "lost: neither the database nor trials.jsonl has it"

_STATE = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "infeasible": TrialState.COMPLETE,
    "duplicate": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "waiting": TrialState.WAITING,
}


class Store:
    """A study that is open for writing; a context manager. Raises `StudyError` if it cannot be opened."""

    def __init__(self, folder: Path, spec: StudySpec, storage: str | None = None) -> None:
        self.folder = folder
        self.spec = spec
        url = parse_url(storage) if storage else default_url(folder)
        self.lock = StudyLock(folder, *_database_lock(url, folder))
        try:
            self._open(url)
        except BaseException:
            self.lock.release()
            raise

    def _open(self, url: URL) -> None:
        self._database = Database(url, self.spec.name)
        try:
            self._database.claim()
            self._check_same_study()
            self._load()
        except BaseException:
            self._database.close()
            raise

    def _check_same_study(self) -> None:
        """Make sure that the database's study asks the same question, and take over its latency scale."""
        stored = self._database.spec()
        if stored is not None and stored.identity() != self.spec.identity():
            if self._database.has_trials():
                different = "; ".join(list(differences(self.spec.identity(), stored.identity()))[:4])
                raise StudyError(f"the database has another study {self.spec.name}: {different}", "use another --study")
        elif stored is not None and stored.bounds and not self.spec.bounds:
            self.spec = stored
        self._database.create(self.spec)

    def _load(self) -> None:
        """Read database and trials.jsonl, write to each what only the other has, and recover trials cut off."""
        logged = {trial.number: trial for trial in read_trials(self.folder / TRIALS_FILE)}
        rows = self._database.rows()
        self.trials = {row.number: row.trial() for row in rows}
        remeasured = self._remeasured(logged)
        self.trials |= remeasured
        self._check_agreement(logged)
        if remeasured or self._database.has_indices():
            write_whole(self.folder / TRIALS_FILE, _lines(logged | self.trials | _ended(logged, self.trials)))
            self._database.clear()
            self._database.create(self.spec)
            self._load()
            return
        self._distributions = SharedDistributions(distributions(self.spec.search_space))
        self._ids = [row.trial_id for row in rows]
        self._sampler_view = SamplerView(self.spec)
        optuna_trials = [
            self._to_optuna(self.trials[row.number], None if row.state.is_finished() else row.state) for row in rows
        ]
        for trial in _without_gaps(logged, since=len(rows)):
            self.trials[trial.number] = trial
            optuna_trials.append(self._to_optuna(trial))
            self._ids.append(self._database.add(optuna_trials[-1], trial))
        self._counts = Counter((trial.state, trial.is_aside) for trial in self.trials.values())
        self._view_numbers: dict[int, int] = {}
        for number, optuna_trial in enumerate(optuna_trials):
            if not self.trials[number].is_aside:
                self._view_numbers[number] = len(self._sampler_view)
                self._sampler_view.add(optuna_trial)
        for number, optuna_trial in enumerate(optuna_trials):
            self._recover(number, optuna_trial.state, logged.get(number))
        self.write_files()

    def _remeasured(self, logged: Mapping[int, Trial]) -> dict[int, Trial]:
        """The trials of trials.jsonl whose latency was measured again after the database had them.

        Optuna does not let a finished trial change: the study is then written to the database anew, as is one of a
        version that stored other parameters.
        """
        return {
            number: logged[number]
            for number, trial in self.trials.items()
            if number in logged and trial != logged[number] and _is_remeasured(logged[number], trial)
        }

    def _check_agreement(self, logged: Mapping[int, Trial]) -> None:
        """Raise `StudyError` where database and trials.jsonl differ on how a trial ended: one of them is damaged."""
        for number, trial in self.trials.items():
            other = logged.get(number, trial)
            if other != trial and {other.state, trial.state} <= FINISHED:
                file = file_of(self._database.url)
                raise StudyError(
                    f"the database and {TRIALS_FILE} of {self.folder.name} differ on trial {number}",
                    f"move {file.name} away and the same command rebuilds it from {TRIALS_FILE}"
                    if file
                    else f"give another database with --storage: it is filled from {TRIALS_FILE}",
                )

    def _recover(self, number: int, state: TrialState, logged: Trial | None) -> None:
        """Finish a trial whose end is recorded but not its state in the database; any other unfinished one waits."""
        trial = self.trials[number]
        if logged and _has_ended(logged, trial):
            trial = logged  # the database could not be written when it ended
        if trial.state in FINISHED and not state.is_finished():
            self.finish(trial)
        elif trial.state == "running":
            self.wait(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            self.close()
        except (IgcNasError, OSError):
            if error is None:
                raise  # otherwise the first error is the one to report

    @uninterrupted()
    def close(self) -> None:
        """Release the study: running trials wait for the next search, and its files are written whole."""
        with contextlib.ExitStack() as stack:  # each callback runs even if another one raises
            stack.callback(self.lock.release)
            stack.callback(self._database.close)
            stack.callback(self.write_files)
            for number in [n for n, trial in self.trials.items() if trial.state == "running"]:
                self.wait(number)

    # Trials, from the coordinator's side.

    @property
    def study(self) -> Study:
        """The study in its current state."""
        return Study(self.spec, tuple(self.trials.values()), self.folder)

    @property
    def optuna_study(self) -> optuna.Study:
        """The study in memory that samplers read; `ask` it for a suggestion, then `add` the trial made of it."""
        return self._sampler_view.study

    @property
    def ended(self) -> int:
        """The number of trials that are complete or pruned, without the baselines."""
        return self._counts["complete", False] + self._counts["pruned", False]

    def waiting(self) -> Iterator[Trial]:
        """The trials that an earlier search left unfinished."""
        if self._counts["waiting", False] or self._counts["waiting", True]:
            yield from [trial for trial in self.trials.values() if trial.state == "waiting"]

    def consecutive_failures(self) -> int:
        """The number of suggestions since the last one that was evaluated."""
        count = 0
        for number in range(len(self.trials) - 1, -1, -1):
            trial = self.trials[number]
            if trial.is_aside:
                continue
            if trial.state not in ("infeasible", "duplicate"):
                break
            count += 1
        return count

    @uninterrupted()
    def add(self, trial: Trial) -> Trial:
        """Record a new trial in whatever state. Its number must be the next one.

        A trial that the sampler did not suggest (an enqueued one) is shown to it, one aside is not.
        """
        assert trial.number == len(self._ids)
        if not trial.is_aside:
            seen = self._view_numbers[trial.number] = len(self._view_numbers)
            if seen == len(self._sampler_view):
                self._sampler_view.add(self._to_optuna(trial))
            attrs = self._sampler_view.trial(seen).system_attrs
            notes = {key: value for key, value in attrs.items() if not key.startswith("constraints:")}
            trial = trial.model_copy(update={"notes": notes or None})
        self._ids.append(self._database.add(self._to_optuna(trial), trial))
        self._set(trial)
        if trial.state in FINISHED:
            self._tell_sampler(trial)
        self._append_to_log(trial)
        return trial

    @uninterrupted()
    def resume(self, number: int) -> Trial:
        """Mark a waiting trial as running again, in this process."""
        trial = running_here(self.trials[number])
        self._write(trial, TrialState.RUNNING)
        self._set(trial)
        return trial

    @uninterrupted()
    def wait(self, number: int) -> None:
        """Mark a trial as waiting for the next search."""
        trial = self.trials[number].model_copy(update={"state": "waiting", "process": None})
        self._set(trial)
        self._write(trial, TrialState.WAITING)

    @uninterrupted()
    def finish(self, trial: Trial) -> None:
        """Record how a running trial ended: in trials.jsonl even if the database cannot be written."""
        self._set(trial)
        try:
            self._write(trial, self._optuna_state(trial))
        finally:
            self._append_to_log(trial)
        self._tell_sampler(trial)

    def _set(self, trial: Trial) -> None:
        if trial.number in self.trials:
            before = self.trials[trial.number]
            self._counts[before.state, before.is_aside] -= 1
        self._counts[trial.state, trial.is_aside] += 1
        self.trials[trial.number] = trial

    def _write(self, trial: Trial, state: TrialState) -> None:
        trial_id, values = self._ids[trial.number], self.objective_values(trial)
        self._database.write(trial_id, trial, state, values, _expected_error(trial), _constraint(trial))

    def _tell_sampler(self, trial: Trial) -> None:
        if trial.is_aside:
            return
        state, values = self._optuna_state(trial), self.objective_values(trial)
        self._sampler_view.finish(
            self._view_numbers[trial.number], state, values, _expected_error(trial), _constraint(trial)
        )

    def objective_values(self, trial: Trial) -> list[float] | None:
        """The objective values that Optuna gets for a trial; None where it has none.

        A duplicate has those of the first trial. An infeasible suggestion is marked by its constraint (above 0); it
        gets the upper bound of every objective, because NSGA-II ignores a trial without values.
        """
        measured = self.trials.get(trial.same_as, trial) if trial.same_as is not None else trial
        if measured.candidate is not None:
            return list(values(measured.candidate, self.spec.objectives))
        if trial.state == "infeasible":
            return [self.spec.bounds[name][1] if name in self.spec.bounds else 1e9 for name in self.spec.objectives]
        return None

    def _optuna_state(self, trial: Trial) -> TrialState:
        """Optuna's state for a record. A duplicate of a trial without values is FAIL: samplers learn nothing of it."""
        if trial.state == "duplicate" and self.objective_values(trial) is None:
            return TrialState.FAIL
        return _STATE[trial.state]

    def _to_optuna(self, trial: Trial, state: TrialState | None = None) -> FrozenTrial:
        """A record as Optuna's trial, in the state that follows from it or in `state`."""
        state = self._optuna_state(trial) if state is None else state  # RUNNING is 0
        objectives = self.objective_values(trial) if state == TrialState.COMPLETE else None
        state = TrialState.FAIL if state == TrialState.COMPLETE and objectives is None else state
        is_shared = trial.params.keys() == self._distributions.keys()
        own = {name: d for name, d in self._distributions.items() if name in trial.params}
        return FrozenTrial(
            number=trial.number,
            trial_id=-1,  # the storage gives it one
            state=state,
            value=None,
            values=objectives,
            datetime_start=None if state == TrialState.WAITING else datetime.datetime.now(),
            datetime_complete=datetime.datetime.now() if state.is_finished() else None,
            params=dict(trial.params),
            distributions=self._distributions if is_shared else own,
            user_attrs=_expected_error(trial),
            system_attrs={CONSTRAINT: trial.violation or 0.0} | (trial.notes or {}),
            intermediate_values={},
        )

    # Files.

    def fix_scale(self, spec: StudySpec) -> None:
        """Replace the spec by one with the latency scale, in memory, in the database and in study.toml."""
        self.spec = spec
        self._database.create(spec)
        self.write_files()

    def write_files(self) -> None:
        """Write study.toml and trials.jsonl whole."""
        write_whole(self.folder / STUDY_FILE, self.spec.to_toml())
        write_whole(self.folder / TRIALS_FILE, _lines(self.trials))

    def _append_to_log(self, trial: Trial) -> None:
        append_line(self.folder / TRIALS_FILE, trial.to_json())


def _database_lock(url: URL, folder: Path) -> tuple[Path, ...]:
    """The lock file of a SQLite database that several folders may name; a study's own is locked with its folder."""
    if (file := file_of(url)) is None:
        return ()
    file = Path(os.path.realpath(file))  # one file has one lock, by whatever links; opening it refuses a loop of links
    if file.name != DATABASE_FILE:
        return (file.with_name(f"{file.name}.lock"),)
    return () if file.parent == folder.resolve() else (file.with_name(LOCK_FILE),)


def replace_latencies(folder: Path, latencies: Mapping[int, Latency]) -> None:
    """Replace the latencies of completed trials in trials.jsonl, by number.

    A database, wherever it stands, takes them over when the study is next opened. Raises `StudyError` while the study
    is being searched.
    """
    lock = StudyLock(folder)
    try:
        trials = {trial.number: trial for trial in read_trials(folder / TRIALS_FILE)}
        for number, latency in latencies.items():
            if number in trials and (candidate := trials[number].candidate) is not None:
                changed = candidate.model_copy(update={"latency": latency})
                trials[number] = trials[number].model_copy(update={"candidate": changed, "remeasured": now()})
        write_whole(folder / TRIALS_FILE, _lines(trials))
    finally:
        lock.release()


def _is_remeasured(trial: Trial, before: Trial) -> bool:
    """Whether `trial` is `before`, measured again later: all but the latency is the same."""
    if trial.candidate is None or before.candidate is None or trial.remeasured is None:
        return False
    if before.remeasured is not None and before.remeasured > trial.remeasured:
        return False
    candidate = trial.candidate.model_copy(update={"latency": before.candidate.latency})
    return trial.model_copy(update={"candidate": candidate, "remeasured": before.remeasured}) == before


def _has_ended(logged: Trial, trial: Trial) -> bool:
    """Whether trials.jsonl says how a trial ended that runs by the database."""
    return trial.state == "running" and logged.state in FINISHED and logged.params == trial.params


def _ended(logged: Mapping[int, Trial], trials: Mapping[int, Trial]) -> dict[int, Trial]:
    """The trials of trials.jsonl that have ended, and run by the database."""
    return {n: logged[n] for n, trial in trials.items() if n in logged and _has_ended(logged[n], trial)}


def _lines(trials: Mapping[int, Trial]) -> str:
    """The content of trials.jsonl."""
    return "".join(trials[number].to_json() + "\n" for number in sorted(trials))


def _expected_error(trial: Trial) -> dict[str, Any]:
    """The predicted final error (mean, std) of a pruned trial, as user attributes of Optuna's trial."""
    return {EXPECTED: [trial.pruned.expected_error, trial.pruned.std]} if trial.pruned else {}


def _constraint(trial: Trial) -> dict[str, Any]:
    """The budget constraint of a trial that turned out infeasible when it was measured, as system attributes."""
    return {CONSTRAINT: trial.violation} if trial.state == "infeasible" else {}


def _without_gaps(found: Mapping[int, Trial], since: int) -> Iterator[Trial]:
    """The trials from number `since` on; a missing one is a failed trial, because Optuna's numbers have no gaps."""
    lost = Failure(kind="lost", where=TRIALS_FILE)
    if max(found, default=0) > 10 * len(found) + 1000:
        raise StudyError(f"{TRIALS_FILE} has {len(found)} trials, one of them with the number {max(found)}")
    for number in range(since, max(found, default=-1) + 1):
        yield found.get(number) or Trial(number=number, state="failed", params={}, reason=LOST, failure=lost)


def running_here(trial: Trial) -> Trial:
    """The trial as running in this process from now on."""
    return trial.model_copy(update={"state": "running", "started": now(), "process": Process.here()})
