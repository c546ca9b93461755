"""A study's store: its database (the truth) and `trials.jsonl` (derived from it, the evidence).

Samplers work on a copy of the study in memory; a trial reaches the database whole, once when it starts and once when it
ends. So asking costs no database round trips, and what has ended is on disk. One process writes a study (see
`igc_nas.study.lock`); whatever its trials were at when it died is taken up again by the next one.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from igc_nas.engine.database import RECORD, Database, TrialRow, file_of, parse_url
from igc_nas.errors import IgcNasError, StudyError
from igc_nas.io.files import append_line, write_whole
from igc_nas.io.records import differences
from igc_nas.samplers.history import EXPECTED
from igc_nas.samplers.study_sampler import distributions
from igc_nas.study.lock import StudyLock, now
from igc_nas.study.objectives import values
from igc_nas.study.process import Process, uninterrupted
from igc_nas.study.records import FINISHED, Failure, Latency, Trial
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import STUDY_FILE, TRIALS_FILE, Study, read_trials

BUDGET = "budget"
CONSTRAINT = f"constraints:{BUDGET}"
LOST = "lost: neither the database nor the evidence has it"
DATABASE_FILE = "study.db"

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
    """A study open for writing. Use as a context manager; raises `StudyError` where it cannot be opened."""

    def __init__(self, folder: Path, spec: StudySpec, storage: str | None = None) -> None:
        self.folder = folder
        self.spec = spec
        url = parse_url(storage or default_storage(folder))
        self.owner = StudyLock(folder, *_lock_beside(url, folder))
        try:
            self._open(url)
        except BaseException:
            self.owner.release()
            raise

    def _open(self, url: URL) -> None:
        self._database = Database(url, self.spec.name)
        try:
            self._database.claim()
            self._agree()
            self._load()
        except BaseException:
            self._database.close()
            raise

    def _agree(self) -> None:
        """Make sure that the database's study is of our question, and take over the scale that it has fixed."""
        theirs = self._database.spec()
        if theirs is not None and theirs.identity() != self.spec.identity():
            if self._database.has_trials():
                different = "; ".join(list(differences(self.spec.identity(), theirs.identity()))[:4])
                raise StudyError(f"the database has another study {self.spec.name}: {different}", "use another --study")
        elif theirs is not None and theirs.bounds and not self.spec.bounds:
            self.spec = theirs
        self._database.create(self.spec)

    def _load(self) -> None:
        self._distributions = distributions(self.spec.search_space)
        evidence = {trial.number: trial for trial in read_trials(self.folder / TRIALS_FILE)}
        rows = self._database.rows()
        self.trials = {row.number: row.trial() for row in rows}
        self._compare(evidence)
        recorded = [self._as_recorded(row) for row in rows]
        recorded += [self._restored(trial) for trial in _without_gaps(evidence, since=len(recorded))]
        self._counts = Counter(trial.state for trial in self.trials.values())
        self._ids = [trial._trial_id for trial in recorded]
        self.live = _in_memory(self.spec, recorded)
        for number, trial in enumerate(recorded):
            self._settle(number, trial.state, evidence.get(number))
        self.write_evidence()

    def _compare(self, evidence: Mapping[int, Trial]) -> None:
        """Make sure that database and trials.jsonl say the same of each trial that ended for both: one is damaged."""
        for number, trial in self.trials.items():
            said = evidence.get(number, trial)
            if said != trial and {said.state, trial.state} <= FINISHED:
                file = file_of(self._database.url)
                one, other = (file.name, TRIALS_FILE) if file else (TRIALS_FILE, "the database")
                raise StudyError(
                    f"the database and {TRIALS_FILE} of {self.folder.name} tell of trial {number} differently",
                    f"move {one} away and the same command rebuilds it from {other}",
                )

    def _as_recorded(self, row: TrialRow) -> FrozenTrial:
        """Optuna's trial as it stands in the database: its state there counts, the record has the rest."""
        frozen = self._frozen(self.trials[row.number], row.state)
        frozen._trial_id = row.trial_id
        return frozen

    def _restored(self, trial: Trial) -> FrozenTrial:
        """Write a trial that only trials.jsonl has into the database."""
        self.trials[trial.number] = trial
        frozen = self._frozen(trial)
        frozen._trial_id = self._database.add(frozen)
        return frozen

    def _settle(self, number: int, state: TrialState, evidence: Trial | None) -> None:
        """Bring a trial that its process left behind in order: an end that is recorded anywhere counts, others wait."""
        trial = self.trials[number]
        if trial.state == "running" and evidence and evidence.state in FINISHED and evidence.params == trial.params:
            trial = evidence  # the database could not be written when it ended
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
                raise  # else the first error is the one to tell

    @uninterrupted()
    def close(self) -> None:
        """Let the study go: trials under way wait for the next search, the evidence is written whole."""
        with contextlib.ExitStack() as stack:  # each of these is done, whatever becomes of the others
            stack.callback(self.owner.release)
            stack.callback(self._database.close)
            stack.callback(self.write_evidence)
            for number in [n for n, trial in self.trials.items() if trial.state == "running"]:
                self.wait(number)

    # Trials, from the coordinator's side.

    @property
    def study(self) -> Study:
        """The study as it stands."""
        return Study(self.spec, tuple(self.trials.values()), self.folder)

    @property
    def ended(self) -> int:
        """How many trials are complete, or were stopped at a rung."""
        return self._counts["complete"] + self._counts["pruned"]

    def waiting(self) -> Trial | None:
        """The first trial to take up before anything new is asked for."""
        if not self._counts["waiting"]:
            return None
        return next(trial for trial in self.trials.values() if trial.state == "waiting")

    def consecutive_failures(self) -> int:
        """How many suggestions since the last one that was evaluated came to nothing."""
        count = 0
        for number in range(len(self.trials) - 1, -1, -1):
            if self.trials[number].state not in ("infeasible", "duplicate"):
                break
            count += 1
        return count

    @uninterrupted()
    def add(self, trial: Trial) -> Trial:
        """Record a trial that the live study has just made, whatever its state; its number must be the next one."""
        assert trial.number == len(self._ids)
        noted = {
            k: v for k, v in self._live_trial(trial.number).system_attrs.items() if not k.startswith("constraints:")
        }
        trial = trial.model_copy(update={"notes": noted or None})
        self._ids.append(self._database.add(self._frozen(trial)))
        self._keep(trial)
        if trial.state in FINISHED:
            self._tell_live(trial)
        self._append_evidence(trial)
        return trial

    def give(self, trial: Trial) -> None:
        """Record a trial that the live study has not made itself."""
        self._live_storage.keep(self.live._study_id, self._frozen(trial))
        self.add(trial)

    @uninterrupted()
    def resume(self, number: int) -> Trial:
        """Mark a waiting trial as running again, in this process."""
        trial = running_here(self.trials[number])
        self._write(trial, TrialState.RUNNING)
        self._keep(trial)
        return trial

    @uninterrupted()
    def wait(self, number: int) -> None:
        """Mark a trial as waiting for the next search."""
        trial = self.trials[number].model_copy(update={"state": "waiting", "process": None})
        self._keep(trial)
        self._write(trial, TrialState.WAITING)

    @uninterrupted()
    def finish(self, trial: Trial) -> None:
        """Record how a running trial ended: where the database cannot be written, the evidence still has it."""
        self._keep(trial)
        try:
            self._write(trial, self._optuna_state(trial))
        finally:
            self._append_evidence(trial)
        self._tell_live(trial)

    def _keep(self, trial: Trial) -> None:
        if trial.number in self.trials:
            self._counts[self.trials[trial.number].state] -= 1
        self._counts[trial.state] += 1
        self.trials[trial.number] = trial

    def _write(self, trial: Trial, state: TrialState) -> None:
        system = {CONSTRAINT: trial.violation} if trial.state == "infeasible" else {}  # found out by measuring
        trial_id = self._ids[trial.number]
        self._database.write(trial_id, trial, state, self.values_of(trial), _expected(trial), system)

    def _tell_live(self, trial: Trial) -> None:
        live = self._live_trial(trial.number)
        if not live.state.is_finished():
            if trial.state == "infeasible":
                self.live._storage.set_trial_system_attr(live._trial_id, CONSTRAINT, trial.violation)
            for key, value in _expected(trial).items():
                self.live._storage.set_trial_user_attr(live._trial_id, key, value)
            self.live.tell(trial.number, self.values_of(trial), self._optuna_state(trial))

    @property
    def _live_storage(self) -> _LiveStorage:
        assert isinstance(self.live._storage, _LiveStorage)
        return self.live._storage

    def _live_trial(self, number: int) -> FrozenTrial:
        storage = self._live_storage
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self.live._study_id, number))

    def values_of(self, trial: Trial) -> list[float] | None:
        """What Optuna is told: the objectives; for an infeasible suggestion the far end of every scale.

        The constraint (above 0) is what marks it; the values only have to be there, or NSGA-II would not see it.
        """
        told = self.trials.get(trial.same_as, trial) if trial.same_as is not None else trial
        if told.candidate is not None:
            return list(values(told.candidate, self.spec.objectives))
        if trial.state == "infeasible":
            return [self.spec.bounds[name][1] if name in self.spec.bounds else 1e9 for name in self.spec.objectives]
        return None

    def _optuna_state(self, trial: Trial) -> TrialState:
        """A duplicate of a trial that has no values yet tells a sampler nothing: it failed, as Optuna puts it."""
        if trial.state == "duplicate" and self.values_of(trial) is None:
            return TrialState.FAIL
        return _STATE[trial.state]

    def _frozen(self, trial: Trial, state: TrialState | None = None) -> FrozenTrial:
        """A record as Optuna's trial, in the state that it should have or in another one."""
        state = self._optuna_state(trial) if state is None else state  # RUNNING is 0
        told = self.values_of(trial) if state == TrialState.COMPLETE else None
        state = TrialState.FAIL if state == TrialState.COMPLETE and told is None else state
        return FrozenTrial(
            number=trial.number,
            trial_id=-1,
            state=state,
            value=None,
            values=told,
            datetime_start=None if state == TrialState.WAITING else datetime.datetime.now(),
            datetime_complete=datetime.datetime.now() if state.is_finished() else None,
            params=dict(trial.params),
            distributions={name: d for name, d in self._distributions.items() if name in trial.params},
            user_attrs={RECORD: trial.to_json()} | _expected(trial),
            system_attrs={CONSTRAINT: trial.violation or 0.0} | (trial.notes or {}),
            intermediate_values={},
        )

    # Evidence.

    def fix_scale(self, spec: StudySpec) -> None:
        """The spec with its scale, everywhere."""
        self.spec = spec
        self._database.create(spec)
        self.write_evidence()

    def write_evidence(self) -> None:
        """study.toml and trials.jsonl, whole."""
        write_whole(self.folder / STUDY_FILE, self.spec.to_toml())
        lines = [self.trials[number].to_json() + "\n" for number in sorted(self.trials)]
        write_whole(self.folder / TRIALS_FILE, "".join(lines))

    def _append_evidence(self, trial: Trial) -> None:
        append_line(self.folder / TRIALS_FILE, trial.to_json())


def default_storage(folder: Path) -> str:
    """The database of a study where none is named."""
    return f"sqlite:///{(folder / DATABASE_FILE).absolute()}"


def _lock_beside(url: URL, folder: Path) -> tuple[Path, ...]:
    """The lock of a SQLite file that stands elsewhere, which several folders may name."""
    file = file_of(url)
    if file is None or file.absolute().parent == folder.absolute():
        return ()
    return (file.with_name(f"{file.name}.lock"),)


def replace_latencies(folder: Path, latencies: Mapping[int, Latency]) -> None:
    """Give completed trials, by number, other latencies than those that they were measured with.

    Optuna does not let a finished trial change: study.db goes, and the next search makes it anew from trials.jsonl.
    Raises `StudyError` while the study is being searched.
    """
    ownership = StudyLock(folder)
    try:
        lines = []
        for trial in read_trials(folder / TRIALS_FILE):
            if trial.candidate is not None and trial.number in latencies:
                candidate = trial.candidate.model_copy(update={"latency": latencies[trial.number]})
                trial = trial.model_copy(update={"candidate": candidate})
            lines.append(trial.to_json() + "\n")
        write_whole(folder / TRIALS_FILE, "".join(lines))
        (folder / DATABASE_FILE).unlink(missing_ok=True)
    finally:
        ownership.release()


def _expected(trial: Trial) -> dict[str, Any]:
    """What a sampler may learn from a trial that was stopped, as attributes of Optuna's trial."""
    stopped = trial.pruned
    return {EXPECTED: [stopped.expected_error, stopped.std]} if stopped else {}


def _without_gaps(found: Mapping[int, Trial], since: int) -> Iterator[Trial]:
    """Trials `since`, ... without a gap, as Optuna numbers them: one that is missing is put down as lost."""
    lost = Failure(kind="lost", where="the evidence")
    if max(found, default=0) > 10 * len(found) + 1000:
        raise StudyError(f"{TRIALS_FILE} has {len(found)} trials, one of them with the number {max(found)}")
    for number in range(since, max(found, default=-1) + 1):
        yield found.get(number) or Trial(number=number, state="failed", params={}, reason=LOST, failure=lost)


def running_here(trial: Trial) -> Trial:
    """A trial as under way in this process."""
    return trial.model_copy(update={"state": "running", "started": now(), "process": Process.here()})


class _LiveStorage(InMemoryStorage):
    """Optuna's memory of a study, in which trials share what they have in common: without, each takes 10 kB more."""

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

    def keep(self, study_id: int, trial: FrozenTrial) -> int:
        """Take in a trial as samplers need it: without the record, which is long, and ours; its id here."""
        bare = copy.copy(trial)
        bare.user_attrs = {key: value for key, value in trial.user_attrs.items() if key != RECORD}
        bare.params, bare.distributions = {}, {}  # what is given is copied deeply, which takes a millisecond
        trial_id = self.create_new_trial(study_id, bare)
        kept = self.get_trial(trial_id)
        kept.params, kept.distributions = trial.params, trial.distributions
        return trial_id


def _in_memory(spec: StudySpec, trials: Sequence[FrozenTrial]) -> optuna.Study:
    storage = _LiveStorage()
    study = optuna.create_study(storage=storage, study_name=spec.name, directions=["minimize"] * len(spec.objectives))
    for trial in trials:
        # Waiting trials are ours to hand out: for the samplers they are under way.
        theirs = storage.keep(study._study_id, trial)
        if trial.state == TrialState.WAITING:
            storage.set_trial_state_values(theirs, TrialState.RUNNING)
    return study
