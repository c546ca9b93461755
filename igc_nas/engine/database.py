"""A study in a database: Optuna's tables, with our records as user attributes.

What optuna-dashboard and `optuna.visualization` show is for people: parameters by their values, counts and latency as
user attributes, and as complete only what may be on the front. Samplers never read it (see `sampler_view`).

Any number of processes may read a study (`stored_study`); its one writer holds its lock (see `igc_nas.study.lock`).
The URL comes from a flag or the environment of each run, never from a file of the study, and is shown without its
password.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.errors import ConfigError, IgcNasError, StudyError, UsageError
from igc_nas.io.files import is_file, user_path
from igc_nas.io.text import nearest_and_all, one_line, printable
from igc_nas.samplers.distributions import value_distributions
from igc_nas.space.parameters import Parameters
from igc_nas.study.objectives import OBJECTIVES
from igc_nas.study.process import Process
from igc_nas.study.records import Trial
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import STUDY_FILE, Study, load_study

RECORD, SPEC = "igc_nas:record", "igc_nas:spec"
PARAMETERS = "igc_nas:parameters"
"""The attribute of a study whose parameters are stored by value."""
KINDS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
USE = "use sqlite:///path/to/study.db or postgresql://user@host/database"
CONNECT_S = 10
DAMAGED = "move the database away and the same command rebuilds it from trials.jsonl"
DATABASE_FILE = "study.db"
LOCKED_S = 20
"""How long to wait for another process that has locked the SQLite file, in seconds."""


def default_url(folder: Path) -> URL:
    """The database of a study that names none: `study.db` in its folder, whatever characters the path has."""
    return URL.create("sqlite", database=str((folder / DATABASE_FILE).absolute()))


def parse_url(given: str) -> URL:
    """Parse `sqlite:///path` or `postgresql://user@host/name`, as SQLAlchemy reads them: `%XX` is an encoded byte.

    Raises `UsageError` for others or a missing driver.
    """
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        scheme = given.partition("://")[0] if "://" in given else ""
        raise UsageError(
            f"storage of kind {scheme!r:.40} is not supported" if scheme else "the storage is not a database URL",
            nearest_and_all(scheme, KINDS, USE),
        ) from None
    kind = url.drivername.partition("+")[0]
    kind = "postgresql" if kind == "postgres" else kind
    if kind not in KINDS or url.drivername not in (kind, KINDS[kind], "postgres"):
        raise UsageError(
            f"storage of kind {url.drivername!r:.40} is not supported", nearest_and_all(url.drivername, KINDS, USE)
        )
    if kind == "sqlite":
        return _sqlite_url(url, has_options="?" in given)
    if kind == "postgresql":
        _require_driver()
        if not url.database:
            raise UsageError("the storage names no database", "use postgresql://user@host/database")
    return url.set(drivername=KINDS[kind])


def _sqlite_url(url: URL, *, has_options: bool) -> URL:
    """The URL of a SQLite file, with `~` expanded. Raises `UsageError` where it names none."""
    name = url.database or ""
    if url.host or name == ":memory:" or not Path(name).name:
        raise UsageError("the storage names no file", "use sqlite:///path/to/study.db")
    if "\0" in name or "\n" in name:
        raise UsageError("the storage names no possible file", "use sqlite:///path/to/study.db")
    if has_options:
        raise UsageError("a ? in the address of a SQLite file begins options, which are not used", "write it as %3F")
    return URL.create("sqlite", database=str(user_path(name)))


def _require_driver() -> None:
    try:
        import psycopg  # noqa: F401 - only to see whether it is installed
    except ImportError:
        raise UsageError("PostgreSQL needs a driver", "pip install 'igc-nas[postgres]'") from None


def masked(url: URL) -> str:
    """The URL without its password, for messages."""
    if file := file_of(url):
        return f"sqlite:///{file}"
    shown = url.set(drivername=url.drivername.partition("+")[0], query={})
    return shown.render_as_string(hide_password=True)


def file_of(url: URL) -> Path | None:
    """The file of a SQLite database; None for a server."""
    return Path(url.database or "") if url.drivername == "sqlite" else None


@dataclass(frozen=True)
class TrialRow:
    """A trial in the database. `record` is our record as JSON; None in a trial that igc-nas did not write."""

    trial_id: int
    number: int
    state: TrialState
    record: str | None

    def trial(self) -> Trial:
        """Parse the record. Raises `StudyError`."""
        if not isinstance(self.record, str):
            raise StudyError(
                f"trial {self.number} of the database is not igc-nas's",
                f"igc-nas search --enqueue ARCH adds a trial; {DAMAGED}",
            )
        try:
            trial = Trial.from_json(self.record, f"trial {self.number} of the database")
        except StudyError as error:
            raise StudyError(error.message, DAMAGED) from None
        if trial.number != self.number:
            raise StudyError(f"trial {self.number} of the database has the record of trial {trial.number}", DAMAGED)
        return trial


class Database:
    """One study in a database. All methods raise `StudyError` if the database cannot be used."""

    def __init__(self, url: URL, name: str, *, read_only: bool = False) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url = url
        self.name = name
        self._study_id: int | None = None
        self._lock: _ServerLock | None = None
        with self._usable():
            self._storage = RDBStorage(
                _address(url),
                engine_kwargs=_engine_options(url),
                skip_table_creation=read_only,
            )
            with contextlib.suppress(KeyError):  # Optuna's error where there is no such study
                self._study_id = self._storage.get_study_id_from_name(name)

    def claim(self) -> None:
        """Take the lock of the study on a server. Raises `StudyError` with host and pid of its holder.

        A SQLite database is locked by a file (see `igc_nas.study.lock`).
        """
        if file_of(self.url) is None:
            with self._usable():
                self._lock = _ServerLock(self._storage.engine, self.name)

    def close(self) -> None:
        """Close every connection."""
        with self._usable():
            if self._lock is not None:
                self._lock.release()
            self._storage.remove_session()
            self._storage.engine.dispose()

    @property
    def study_id(self) -> int:
        """The id of the study in the database; `create` must have been called."""
        assert self._study_id is not None
        return self._study_id

    def spec(self) -> StudySpec | None:
        """The study's spec; None if the database does not have the study."""
        if self._study_id is None:
            return None
        with self._usable():
            attributes = self._storage.get_study_user_attrs(self._study_id)
        stored = attributes.get(SPEC)
        if stored is None:
            return None
        try:
            data = json.loads(stored)
            if not isinstance(data, dict):
                raise TypeError(f"{type(data).__name__} is not an object")
            return StudySpec.from_dict(data, f"study {self.name} in the database")
        except ConfigError as error:
            raise StudyError(error.message, error.hint or DAMAGED) from None
        except (ValueError, TypeError, RecursionError):
            raise StudyError(f"the spec of study {self.name} in the database is damaged", DAMAGED) from None

    def create(self, spec: StudySpec) -> None:
        """Write the spec with the latency scale, in a new study if there is none."""
        self._parameters = Parameters(spec.search_space)
        self._distributions = value_distributions(self._parameters)
        with self._usable():
            if self._study_id is None:
                directions = [optuna.study.StudyDirection.MINIMIZE] * len(spec.objectives)
                self._study_id = self._storage.create_new_study(directions, spec.name)
                names = [OBJECTIVES[name].name for name in spec.objectives]
                self._storage.set_study_system_attr(self._study_id, "study:metric_names", names)
                self._storage.set_study_user_attr(self._study_id, PARAMETERS, "values")
            self._storage.set_study_user_attr(self._study_id, SPEC, json.dumps(spec.to_dict()))

    def rows(self) -> list[TrialRow]:
        """All trials in order of their numbers. Raises `StudyError` for a gap in the numbers."""
        with self._usable(), self._storage.engine.connect() as connection:
            found = connection.execute(text(_ROWS), {"key": RECORD, "study": self.study_id}).all()
            rows = [
                TrialRow(trial_id, number, TrialState[state], None if record is None else json.loads(record))
                for trial_id, number, state, record in found
            ]
        if [row.number for row in rows] != [*range(len(rows))]:
            raise StudyError(
                f"the trials of study {self.name} in the database are not numbered from 0 on", _hint(self.url, "")
            )
        return rows

    def has_indices(self) -> bool:
        """Whether it was written by a version whose parameters are indices; Optuna takes no others in such a study."""
        with self._usable():
            attributes = self._storage.get_study_user_attrs(self.study_id)
        return PARAMETERS not in attributes and self.has_trials()

    def clear(self) -> None:
        """Delete the study with its trials; `create` makes it anew."""
        with self._usable():
            self._storage.delete_study(self.study_id)
            self._study_id = None

    def has_trials(self) -> bool:
        """Whether the study has trials."""
        with self._usable():
            return self._storage.get_n_trials(self.study_id) > 0

    def add(self, trial: FrozenTrial, record: Trial) -> int:
        """Write a new trial with its record in one transaction. Returns its id in the database."""
        if self._lock is not None:
            self._lock.keep()
        whole = copy.copy(trial)
        whole.state = _shown_state(record, trial.state)
        if whole.state != TrialState.COMPLETE:
            whole.values = None
        whole.params, whole.distributions = self._shown_parameters(record)
        whole.user_attrs = trial.user_attrs | _facts(record) | _outcome(record) | {RECORD: record.to_json()}
        with self._usable():
            return self._storage.create_new_trial(self.study_id, whole)

    def write(
        self,
        trial_id: int,
        record: Trial,
        state: TrialState,
        values: list[float] | None,
        user_attrs: Mapping[str, Any],
        system_attrs: Mapping[str, Any],
    ) -> None:
        """Write the current state of a trial. The record is written first: `Store` recovers a cut-off write from it."""
        with self._usable():
            self._storage.set_trial_user_attr(trial_id, RECORD, record.to_json())
            state = _shown_state(record, state)
            values = values if state == TrialState.COMPLETE else None
            update_trial(self._storage, trial_id, state, values, {**user_attrs, **_outcome(record)}, system_attrs)

    def _shown_parameters(self, record: Trial) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """The parameters of a trial by value with their distributions; none for a trial of no suggestion."""
        if record.params.keys() != self._parameters.space.parameters.keys():
            return {}, {}
        shown = self._parameters.of_indices(record.params)
        return dict(shown), {name: self._distributions[name] for name in shown}

    def _usable(self) -> contextlib.AbstractContextManager[None]:
        return _usable(self.url, self.name)


def _shown_state(record: Trial, state: TrialState) -> TrialState:
    """A trial's state as Optuna shows it: pruned for what is complete to a sampler and cannot be on the front."""
    never_on_front = record.is_aside or record.state in ("infeasible", "duplicate")
    return TrialState.PRUNED if never_on_front and state == TrialState.COMPLETE else state


def _facts(record: Trial) -> dict[str, Any]:
    """What is known of a trial before it is evaluated, as user attributes."""
    named: dict[str, Any] = {"baseline": record.baseline} if record.baseline else {}
    named |= {} if record.longer_of is None else {"longer_of": record.longer_of}
    if record.arch is None:
        return named
    cost = cost_of(record.arch)
    counts = {"params": cost.params, "macs": cost.macs, "activations": cost.activations}
    return {"id": arch_id(record.arch), "architecture": str(record.arch), **counts, **named}


def _outcome(record: Trial) -> dict[str, Any]:
    """What is known once a trial has ended, as user attributes."""
    measured = record.candidate or record.pruned
    found: dict[str, Any] = {"latency_ms": measured.latency.normalised_ms} if measured else {}
    if record.is_aside and record.candidate:
        found["error"] = record.candidate.score.error
    if record.reason:
        found["reason"] = f"{record.state}: {one_line(record.reason, 500)}"
    return found


@contextlib.contextmanager
def _usable(url: URL, name: str) -> Iterator[None]:
    """Convert every error of the database, its driver or Optuna to a `StudyError` with a hint."""
    try:
        yield
    except IgcNasError:
        raise
    except Exception as error:  # a damaged database makes Optuna and SQLAlchemy raise errors of any kind
        cause = error.__cause__ if isinstance(error, optuna.exceptions.OptunaError) else None
        original = getattr(cause or error, "orig", None) or cause or error
        first = next(iter(str(original).strip().splitlines()), "") or type(original).__name__
        reason = printable(first, lines=False)
        raise StudyError(f"the database of {name} cannot be used: {reason:.160}", _hint(url, reason)) from error


def update_trial(
    storage: BaseStorage,
    trial_id: int,
    state: TrialState,
    values: list[float] | None,
    user_attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any],
) -> None:
    """Set attributes, state and objective values of an unfinished trial in one of Optuna's storages."""
    for key, value in user_attrs.items():
        storage.set_trial_user_attr(trial_id, key, value)
    for key, value in system_attrs.items():
        storage.set_trial_system_attr(trial_id, key, value)
    storage.set_trial_state_values(trial_id, state, values)


def _hint(url: URL, reason: str) -> str:
    file = file_of(url)
    if file is None:
        return f"make sure that the server of {masked(url)} can be reached; the same command continues"
    if "locked" in reason:
        return f"another program, such as a database browser, has locked {file.name}; the same command continues"
    if "full" in reason or "readonly" in reason or "unable to open" in reason:
        return f"check the disk of {file} (free space, write permission); the same command continues"
    return f"move {file.name} away and the same command rebuilds it from trials.jsonl"


def _has_studies(url: URL, name: str) -> bool:
    """Whether the database has Optuna's tables."""
    with _usable(url, name):
        engine = create_engine(_address(url), **_engine_options(url))
        try:
            return inspect(engine).has_table("studies")
        finally:
            engine.dispose()


class _ServerLock:
    """The lock of a study on a PostgreSQL server. The server releases it when our connection ends."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name
        self._acquire()

    def _acquire(self) -> None:
        self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # So that the server notices a machine that has vanished without closing its connection.
        for setting in ("tcp_keepalives_idle = 15", "tcp_keepalives_interval = 5", "tcp_keepalives_count = 3"):
            self._connection.execute(text(f"set {setting}"))
        ours = f"igc-nas {Process.here()}"[:63]
        self._connection.execute(text("select set_config('application_name', :ours, false)"), {"ours": ours})
        if self._connection.execute(text("select pg_try_advisory_lock(:key)"), {"key": self._key}).scalar():
            return
        holder = self._connection.execute(
            text(_HOLDER), {"high": self._key >> 32, "low": self._key & 0xFFFFFFFF}
        ).scalar()
        self._connection.close()
        raise StudyError(
            f"study {self.name} is being searched by {str(holder or 'another process').removeprefix('igc-nas ')}",
            "stop it there, or give this search another --study",
        )

    @property
    def _key(self) -> int:
        return int.from_bytes(hashlib.sha256(f"igc-nas study {self.name}".encode()).digest()[:8]) >> 1

    def keep(self) -> None:
        """Make sure that we still hold the lock, which a restarted server has lost. Raises `StudyError`."""
        try:
            self._connection.execute(text("select 1"))
        except SQLAlchemyError:
            with contextlib.suppress(SQLAlchemyError):
                self._connection.close()
            try:
                self._acquire()
            except SQLAlchemyError as error:
                raise StudyError(f"the server of study {self.name} is gone", "the same command continues") from error

    def release(self) -> None:
        with contextlib.suppress(SQLAlchemyError):
            self._connection.close()


# The only place that relies on Optuna's tables (schema revision v3.2.0.a, which Optuna checks when it connects).
# `RDBStorage.get_all_trials` also builds every parameter and distribution: 1.0 s of CPU for 1,000 trials of 34
# parameters.
_ROWS = """
select trials.trial_id, trials.number, trials.state, attributes.value_json
from trials left join trial_user_attributes as attributes
on attributes.trial_id = trials.trial_id and attributes.key = :key
where trials.study_id = :study order by trials.trial_id
"""

_HOLDER = """
select application_name from pg_locks join pg_stat_activity using (pid)
where locktype = 'advisory' and granted and classid = :high and objid = :low and objsubid = 1
"""


def _address(url: URL) -> str:
    """The URL for SQLAlchemy and Optuna, which parse it again; that of a file does not hold its path."""
    return url.render_as_string(hide_password=False) if file_of(url) is None else f"sqlite:///{DATABASE_FILE}"


def _connector(file: Path) -> Callable[[], sqlite3.Connection]:
    """Opens a SQLite file by its path, which is never part of a URL: it may hold `?`, `%` and any byte but NUL."""
    return lambda: sqlite3.connect(file, timeout=LOCKED_S, check_same_thread=False)


def _engine_options(url: URL) -> dict[str, Any]:
    """Options for SQLAlchemy: a lost server is noticed within seconds, and reconnected to."""
    file = file_of(url)
    if file is not None:
        return {"creator": _connector(file)}
    alive = {"keepalives": 1, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_S, **alive}}


def stored_study(url: URL, name: str, folder: Path | None = None) -> Study | None:
    """Read a study from a database, which may be searched meanwhile; None if it has no study of that name.

    Raises `StudyError`.
    """
    file = file_of(url)
    if file is not None and not is_file(file):
        return None
    if not _has_studies(url, name):
        return None
    database = Database(url, name, read_only=True)
    try:
        spec = database.spec()
        if spec is None:
            return None
        return Study(spec, tuple(row.trial() for row in database.rows()), folder, storage=masked(url))
    finally:
        database.close()


def begun(folder: Path, storage: str | None = None) -> Study | None:
    """The study in a folder, or of the folder's name in a database, if it has trials or a latency scale; else None."""
    study = load_study(folder) if (folder / STUDY_FILE).is_file() else None
    if storage and not (study and study.is_begun):
        study = stored_study(parse_url(storage), folder.name, folder)
    return study if study and study.is_begun else None
