"""A study's store: `study.db` (the truth, an Optuna database) and `trials.jsonl` (derived from it, the evidence).

Samplers work on a copy of the study in memory; a trial reaches the database whole, once when it starts and once when it
ends. So asking costs no database round trips, and what has ended is on disk. One process writes a study: it holds the
lock file, which the system releases when it dies; whatever its trials were at is then taken up again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import optuna
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from igc_nas.errors import StudyError
from igc_nas.files import write_whole
from igc_nas.objectives import OBJECTIVES, values
from igc_nas.record import FINISHED, Latency, Trial
from igc_nas.results import STUDY_FILE, TRIALS_FILE, Study, read_trials
from igc_nas.sampler.choice import distributions
from igc_nas.sampler.history import EXPECTED
from igc_nas.spec import StudySpec, differences

RECORD, QUESTION = "igc_nas:record", "igc_nas:question"
BUDGET = "budget"
CONSTRAINT = f"constraints:{BUDGET}"
LOST = "lost: neither the database nor the evidence has it"
DATABASE_FILE, LOCK_FILE, OWNER_FILE = "study.db", "study.lock", "study.owner"

_STATE = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "infeasible": TrialState.COMPLETE,
    "duplicate": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "waiting": TrialState.WAITING,
}


class Store:
    """A study open for writing. Use as a context manager; raises `StudyError` where it cannot be opened."""

    def __init__(self, folder: Path, spec: StudySpec, url: str | None = None) -> None:
        self.folder = folder
        self.spec = spec
        self._lock = _take_lock(folder)
        try:
            self._open(url or f"sqlite:///{(folder / DATABASE_FILE).absolute()}")
        except BaseException:
            self._lock.release()
            raise

    def _open(self, url: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.trials: dict[int, Trial] = {}
        with _as_study_error(self.folder):
            self._database = RDBStorage(url)
            self._study_id = _find_or_create(self._database, self.spec)
            recorded = self._database.get_all_trials(self._study_id)
            self._claim(bool(recorded))
            if not recorded:
                recorded = [self._restored(trial) for trial in _without_gaps(read_trials(self.folder / TRIALS_FILE))]
            self.live = _in_memory(self.spec, recorded)
        self.trials |= {t.number: Trial.from_json(t.user_attrs[RECORD], f"trial {t.number}") for t in recorded}
        self._ids = [t._trial_id for t in recorded]
        for number in list(self.trials):
            self._settle(number, recorded[number].state)
        self.write_evidence()

    def _claim(self, has_trials: bool) -> None:
        """Make sure that the database's study, where it has trials, is of our question; else write ours into it."""
        attributes = self._database.get_study_user_attrs(self._study_id)
        ours = self.spec.question()
        theirs = StudySpec.parse(json.loads(attributes[QUESTION])).question() if QUESTION in attributes else ours
        if has_trials and theirs != ours:
            different = "; ".join(list(differences(ours, theirs))[:4])
            raise StudyError(f"the database has another study {self.spec.name}: {different}", "use another --study")
        self._database.set_study_user_attr(self._study_id, QUESTION, json.dumps(ours))

    def _restored(self, trial: Trial) -> FrozenTrial:
        """Write a trial of trials.jsonl into the empty database."""
        self.trials[trial.number] = trial
        trial_id = self._database.create_new_trial(self._study_id, self._frozen(trial, {}))
        return self._database.get_trial(trial_id)

    def _settle(self, number: int, state: TrialState) -> None:
        """Bring a trial that its process left behind in order: an end that was recorded counts, the rest waits."""
        trial = self.trials[number]
        if trial.state in FINISHED and not state.is_finished():
            self.finish(trial)
        elif trial.state == "running":
            self.wait(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the study go: trials under way wait for the next search, the evidence is written whole."""
        try:
            for number in [n for n, trial in self.trials.items() if trial.state == "running"]:
                self.wait(number)
            self.write_evidence()
        finally:
            self._database.remove_session()
            self._database.engine.dispose()
            self._lock.release()

    # Trials, from the coordinator's side.

    @property
    def study(self) -> Study:
        """The study as it stands."""
        return Study(self.spec, tuple(self.trials[n] for n in sorted(self.trials)), self.folder)

    def waiting(self) -> list[Trial]:
        """Trials to take up before anything new is asked for, in order."""
        return [trial for _, trial in sorted(self.trials.items()) if trial.state == "waiting"]

    def in_vain(self) -> int:
        """How many suggestions since the last one that was evaluated came to nothing."""
        count = 0
        for number in range(len(self.trials) - 1, -1, -1):
            if self.trials[number].state not in ("infeasible", "duplicate"):
                break
            count += 1
        return count

    def add(self, trial: Trial) -> None:
        """Record a trial that the live study has just made, whatever its state; its number must be the next one."""
        noted = self._live_trial(trial.number).system_attrs  # a sampler's own notes, such as NSGA-II's generation
        with _as_study_error(self.folder):
            trial_id = self._database.create_new_trial(self._study_id, self._frozen(trial, noted))
        self._ids.append(trial_id)
        self.trials[trial.number] = trial
        assert len(self._ids) == trial.number + 1
        if trial.state in FINISHED:
            self._tell_live(trial)
        self._append_evidence(trial)

    def give(self, trial: Trial) -> None:
        """Record a trial that the live study has not made itself."""
        self.live._storage.create_new_trial(self.live._study_id, self._frozen(trial, {}))
        self.add(trial)

    def resume(self, number: int) -> Trial:
        """Mark a waiting trial as running again, in this process."""
        trial = running_here(self.trials[number])
        self._write(trial, TrialState.RUNNING)
        return trial

    def wait(self, number: int) -> None:
        """Mark a trial as waiting for the next search."""
        trial = self.trials[number].model_copy(update={"state": "waiting", "pid": None, "host": None})
        self._write(trial, TrialState.WAITING)

    def finish(self, trial: Trial) -> None:
        """Record how a running trial ended."""
        self._write(trial, self._optuna_state(trial))
        self._tell_live(trial)
        self._append_evidence(trial)

    def _write(self, trial: Trial, state: TrialState) -> None:
        # The record first: a trial that dies between the two is settled from its record when the study is next opened.
        with _as_study_error(self.folder):
            trial_id = self._ids[trial.number]
            self._database.set_trial_user_attr(trial_id, RECORD, trial.to_json())
            for key, value in _expected(trial).items():
                self._database.set_trial_user_attr(trial_id, key, value)
            if trial.state == "infeasible":  # found out by measuring
                self._database.set_trial_system_attr(trial_id, CONSTRAINT, trial.violation)
            self._database.set_trial_state_values(trial_id, state, self.values_of(trial))
        self.trials[trial.number] = trial

    def _tell_live(self, trial: Trial) -> None:
        live = self._live_trial(trial.number)
        if not live.state.is_finished():
            if trial.state == "infeasible":
                self.live._storage.set_trial_system_attr(live._trial_id, CONSTRAINT, trial.violation)
            for key, value in _expected(trial).items():
                self.live._storage.set_trial_user_attr(live._trial_id, key, value)
            self.live.tell(trial.number, self.values_of(trial), self._optuna_state(trial))

    def _live_trial(self, number: int) -> FrozenTrial:
        storage = self.live._storage
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

    def _frozen(self, trial: Trial, noted: Mapping[str, Any]) -> FrozenTrial:
        """A record as Optuna's trial."""
        state = self._optuna_state(trial)
        return FrozenTrial(
            number=trial.number,
            trial_id=-1,
            state=state,
            value=None,
            values=self.values_of(trial),
            datetime_start=None if state == TrialState.WAITING else datetime.datetime.now(),
            datetime_complete=datetime.datetime.now() if state.is_finished() else None,
            params=dict(trial.params),
            distributions={
                name: d for name, d in distributions(self.spec.search_space).items() if name in trial.params
            },
            user_attrs={RECORD: trial.to_json()} | _expected(trial),
            system_attrs={CONSTRAINT: trial.violation or 0.0} | dict(noted),
            intermediate_values={},
        )

    # Evidence.

    def write_evidence(self) -> None:
        """study.toml and trials.jsonl, whole."""
        write_whole(self.folder / STUDY_FILE, self.spec.to_toml())
        lines = [self.trials[number].to_json() + "\n" for number in sorted(self.trials)]
        write_whole(self.folder / TRIALS_FILE, "".join(lines))

    def _append_evidence(self, trial: Trial) -> None:
        with (self.folder / TRIALS_FILE).open("a", encoding="utf-8") as file:
            file.write(trial.to_json() + "\n")


def replace_latencies(folder: Path, latencies: Mapping[int, Latency]) -> None:
    """Give completed trials, by number, other latencies than those that they were measured with.

    Optuna does not let a finished trial change: study.db goes, and the next search makes it anew from trials.jsonl.
    Raises `StudyError` while the study is being searched.
    """
    lock = _take_lock(folder)
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
        lock.release()


def _expected(trial: Trial) -> dict[str, Any]:
    """What a sampler may learn from a trial that was stopped, as attributes of Optuna's trial."""
    stopped = trial.stopped
    return {EXPECTED: [stopped.expected_error, stopped.deviation]} if stopped else {}


def _without_gaps(trials: Sequence[Trial]) -> Iterator[Trial]:
    """Trials 0, 1, 2, ...: Optuna numbers without gaps, so one that is missing is put down as lost."""
    found = {trial.number: trial for trial in trials}
    for number in range(max(found, default=-1) + 1):
        yield found.get(number) or Trial(number=number, state="failed", params={}, reason=LOST)


def running_here(trial: Trial) -> Trial:
    """A trial as under way in this process."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return trial.model_copy(
        update={"state": "running", "started": now, "host": socket.gethostname(), "pid": os.getpid()}
    )


def _take_lock(folder: Path) -> filelock.FileLock:
    """The study's writer lock, with our host and pid in it for whoever is refused."""
    path = folder / LOCK_FILE
    lock = filelock.FileLock(path, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        owner = (folder / OWNER_FILE).read_text() if (folder / OWNER_FILE).exists() else "another process"
        raise StudyError(
            f"study {folder.name} is being searched by {owner}", "stop it there, or give this search another --study"
        ) from None
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror or error}") from None
    write_whole(folder / OWNER_FILE, f"pid {os.getpid()} on {socket.gethostname()}")
    return lock


@contextlib.contextmanager
def _as_study_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.OptunaError, KeyError, ValueError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StudyError(
            f"the store of {folder.name} cannot be used: {reason:.160}",
            f"move {DATABASE_FILE} away and the same command rebuilds it from {TRIALS_FILE}",
        ) from error


def _find_or_create(database: RDBStorage, spec: StudySpec) -> int:
    for study in database.get_all_studies():
        if study.study_name == spec.name:
            return study._study_id
    directions = [optuna.study.StudyDirection.MINIMIZE] * len(spec.objectives)
    study_id = database.create_new_study(directions, spec.name)
    database.set_study_system_attr(study_id, "study:metric_names", [OBJECTIVES[n].name for n in spec.objectives])
    return study_id


def _in_memory(spec: StudySpec, trials: Sequence[FrozenTrial]) -> optuna.Study:
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=spec.name, directions=["minimize"] * len(spec.objectives))
    for trial in trials:
        # Waiting trials are ours to hand out: for the samplers they are under way.
        copy = storage.create_new_trial(study._study_id, trial)
        if trial.state == TrialState.WAITING:
            storage.set_trial_state_values(copy, TrialState.RUNNING)
    return study
