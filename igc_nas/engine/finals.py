"""Finals of a study: its picks and the baselines, trained to the end by one recipe from several seeds, and recorded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.data.datasets import DatasetInfo
from igc_nas.engine.events import Event
from igc_nas.engine.executor import TrialFailed
from igc_nas.engine.trainings import TrainingJob, TrainingPlan, Trainings, stored_latency
from igc_nas.errors import StudyError
from igc_nas.study.finals import FINALS_FOLDER, Final, FinalsLog, Trained, recipe_folder
from igc_nas.study.lock import StudyLock, now
from igc_nas.study.records import Latency
from igc_nas.study.spec import Schedule
from igc_nas.study.study import Study


@dataclass(frozen=True)
class Entrant:
    """A network of the finals: a trial of the study, or a baseline. `why` it takes part is shown, not recorded."""

    name: str
    arch: ArchConfig
    why: str
    trial: int | None = None
    latency: Latency | None = None

    @cached_property
    def id(self) -> str:
        """The canonical id."""
        return arch_id(self.arch)


@dataclass
class Finals:
    """The finals of `entrants` by `recipe` from the seeds 0 to `seeds` - 1; a context manager, which holds their lock.

    `measure`: baselines without a latency are measured under the study's conditions. Raises `StudyError` if another
    process trains finals of the study, or its finals.jsonl is damaged.
    """

    study: Study
    entrants: Sequence[Entrant]
    recipe: Schedule
    info: DatasetInfo
    seeds: int = 1
    measure: bool = True
    retry_failed: bool = False
    _started: dict[int, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        if self.study.folder is None:
            raise StudyError(f"{self.study.spec.name} has no folder")
        self.folder = self.study.folder / FINALS_FOLDER
        self._lock = StudyLock(
            self.folder,
            taken=f"finals of {self.study.folder.name} are being trained by {{holder}}",
            hint="wait for it, or stop it there; front --finals and dashboard read them meanwhile",
        )
        try:
            self.log = FinalsLog(self.study.folder)
            self.jobs = self._jobs()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._lock.release()

    @property
    def plan(self) -> TrainingPlan:
        """What the trainings have in common."""
        self._by_recipe.mkdir(parents=True, exist_ok=True)
        return TrainingPlan(self.recipe, self.info, forms_folder=self._by_recipe, study=self.study.spec.to_dict())

    @property
    def _by_recipe(self) -> Path:
        return self.folder / recipe_folder(self.recipe)

    def _jobs(self) -> dict[int, tuple[Entrant, TrainingJob]]:
        """All trainings that have not ended, by number: every network from the first seed, then from the next one."""
        found: dict[int, tuple[Entrant, TrainingJob]] = {}
        numbered = [(seed, entrant) for seed in range(self.seeds) for entrant in self.entrants]
        for number, (seed, entrant) in enumerate(numbered):
            final = self._final(entrant, seed)
            folder, ended = final.folder(self.folder.parent), self.log.finals.get(final.key)
            if ended is not None and (ended.trained or not self.retry_failed):
                continue
            if ended is not None:
                shutil.rmtree(folder, ignore_errors=True)
            wants = self.measure and entrant.latency is None
            file = self.folder / f"latency-{entrant.id}.json" if wants else None
            found[number] = (entrant, TrainingJob(number, entrant.arch, seed, folder, file))
        return found

    def images_per_s(self, trainings: Trainings) -> Iterator[tuple[Entrant, float | TrialFailed]]:
        """How fast each network will train; one whose first steps fail already is recorded as failed."""
        first = {entrant.id: job for entrant, job in reversed(self.jobs.values())}
        for job, speed in trainings.images_per_s(list(first.values())):
            entrant = self.jobs[job.number][0]
            yield entrant, speed
            if isinstance(speed, TrialFailed):
                for number, (other, lost) in list(self.jobs.items()):
                    if other.id == entrant.id:
                        self._record(other, lost, speed)
                        del self.jobs[number]

    def run(self, trainings: Trainings) -> Iterator[tuple[int, Final]]:
        """Train all that have not ended; yields each one's number and record."""
        jobs = [job for _, job in self.jobs.values()]
        for job, ended in trainings.run(jobs):
            yield job.number, self._record(self.jobs[job.number][0], job, ended)

    def started(self, event: Event) -> None:
        """Note when a training begins."""
        job = getattr(event, "job", None)
        if job is not None:
            self._started[job.number] = now()

    def _record(self, entrant: Entrant, job: TrainingJob, ended: Trained | TrialFailed) -> Final:
        changes: dict[str, Any]
        if isinstance(ended, TrialFailed):
            changes = {"reason": ended.reason, "failure": ended.failure}
            latency = entrant.latency or (stored_latency(job.latency_file) if job.latency_file else None)
        else:
            changes = {"reason": None, "trained": ended.model_copy(update={"latency": None})}
            latency = entrant.latency or ended.latency
        started = self._started.get(job.number, now())
        final = self._final(entrant, job.seed).model_copy(update=changes | {"latency": latency, "started": started})
        self.log.add(final)
        return final

    def _final(self, entrant: Entrant, seed: int) -> Final:
        """The record of a training, as far as it is known before."""
        return Final(
            name=entrant.name,
            id=entrant.id,
            arch=entrant.arch,
            cost=cost_of(entrant.arch),
            trial=entrant.trial,
            seed=seed,
            recipe=self.recipe,
            dataset=self.info.label,
            dataset_sha256=self.info.sha256,
            reason="",
            started=now(),
        )
