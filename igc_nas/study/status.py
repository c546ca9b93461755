"""The status of a study: its trials by state, what runs where, what failed and why, and the next commands."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Any

from igc_nas.io.resources import is_installed
from igc_nas.study.lock import LockHolder, Running, holder_of
from igc_nas.study.names import search_command, storage_option, study_argument
from igc_nas.study.records import Trial
from igc_nas.study.study import Study

MOST_COMMANDS_FOR_FAILURES = 3


@dataclass(frozen=True)
class Status:
    """A study with the process that searches it; `owner` is None if none is known to run."""

    study: Study
    owner: LockHolder | None

    @property
    def counts(self) -> dict[str, int]:
        """The number of trials in each state that occurs, without the baselines."""
        return dict(Counter(trial.state for trial in self.study.trials if not trial.is_aside))

    @property
    def baseline_counts(self) -> dict[str, int]:
        """The number of baselines in each state that occurs."""
        return dict(Counter(trial.state for trial in self.study.baselines))

    @property
    def failed(self) -> tuple[Trial, ...]:
        """The trials that failed."""
        return tuple(trial for trial in self.study.trials if trial.state == "failed")

    @property
    def notices(self) -> dict[str, int]:
        """What did not work and was done in another way, and the first trial of which it was said."""
        said = ((text, trial.number) for trial in reversed(self.study.trials) for text in trial.notices or ())
        return dict(said)

    @property
    def running(self) -> tuple[tuple[Trial, Running | None], ...]:
        """The trials whose process is not known to be dead, each with its progress where the process reports it."""
        progress = {running.number: running for running in self.owner.running} if self.owner else {}
        begun = (trial for trial in self.study.trials if trial.state == "running" and trial.process)
        return tuple((t, progress.get(t.number)) for t in begun if t.process and t.process.is_alive() is not False)

    @property
    def interrupted(self) -> tuple[Trial, ...]:
        """The trials that the next search resumes: those that wait, and those whose process is dead."""
        running = {trial.number for trial, _ in self.running}
        return tuple(
            trial
            for trial in self.study.trials
            if trial.state == "waiting" or (trial.state == "running" and trial.number not in running)
        )

    def next_commands(self) -> tuple[str, ...]:
        """The commands to type next, the most urgent first."""
        folder, name, storage = self.study.folder, self.study.spec.name, self.study.storage
        argument, stored = study_argument(folder, name), storage_option(folder, storage)
        shown = () if folder is None else self.failed[-MOST_COMMANDS_FOR_FAILURES:]  # `show` reads folders only
        commands = [f"igc-nas show {argument}:{t.number}" for t in shown if t.arch]
        own = folder is None or not is_installed(folder)
        if self.owner is None and not self.running and own:
            commands.append(search_command(folder, name, storage))
        if self.study.candidates:
            page = "" if folder else f" -o {shlex.quote(name)}.html"
            commands += [f"igc-nas front {argument}{stored}", f"igc-nas dashboard {argument}{stored}{page}"]
        return tuple(commands)

    def to_dict(self) -> dict[str, Any]:
        """The output of `status --json`."""
        study, volume = self.study, self.study.hypervolume()
        return {
            "study": study.spec.name,
            "dataset": study.spec.dataset,
            "folder": None if study.folder is None else str(study.folder),
            "searched_by": None if self.owner is None else self.owner.model_dump(exclude={"running"}),
            "trials": self.counts,
            "baselines": self.baseline_counts,
            "front": len(study.front()),
            "hypervolume": volume,
            "running": [_running(trial, progress) for trial, progress in self.running],
            "interrupted": [trial.number for trial in self.interrupted],
            "failed": [_failed(trial) for trial in self.failed],
            "notices": self.notices,
            "next": list(self.next_commands()),
        }


def status_of(study: Study) -> Status:
    """The current status of a study."""
    return Status(study, holder_of(study.folder) if study.folder else None)


def _running(trial: Trial, progress: Running | None) -> dict[str, Any]:
    where = {} if trial.process is None else {"host": trial.process.host, "pid": trial.process.pid}
    reported = {} if progress is None else progress.model_dump(exclude={"number", "since"})
    return {"trial": trial.number, "since": trial.started, **where, **reported, "summary": str(trial.arch)}


def _failed(trial: Trial) -> dict[str, Any]:
    failure = {} if trial.failure is None else trial.failure.model_dump()
    arch = None if trial.arch is None else trial.arch.to_dict()
    return {"trial": trial.number, **failure, "reason": trial.reason, "started": trial.started, "arch": arch}
