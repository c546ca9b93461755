"""The search: one coordinator asks the sampler, hands architectures to evaluators, and records what they say.

for candidate in search(spec):
    print(candidate.cost.params, candidate.score.error)
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from igc_nas.config import ArchConfig
from igc_nas.cost import cost_of
from igc_nas.dataset import data_dir, locate
from igc_nas.errors import ConfigError, IgcNasError, StudyError
from igc_nas.events import Ended, Event, Exhausted, Job, Opened, Progress, Started
from igc_nas.knowledge import Forecast, forecast_of
from igc_nas.objectives import known_values
from igc_nas.plan import arch_id
from igc_nas.record import Candidate, Latency, Score, Stopped, Trial, TrialState, Unfinished
from igc_nas.results import Study, is_begun, load_study
from igc_nas.sampler.choice import MOST_REPEATS, ExhaustedError, StudySampler
from igc_nas.spec import Calibration, LatencySpec, StudySpec, differences
from igc_nas.stopping import Ended as EndedTrial
from igc_nas.stopping import Outlook, Rule
from igc_nas.store import BUDGET, Store, running_here
from igc_nas.workers import AtRung, Failed, Halted, Measured, Message, Workers, reason_of

SAME_FAILURES = 5

Evaluate = Callable[[ArchConfig, int], tuple[Latency, Score]]
"""(architecture, training seed) -> what was measured: the seam for tests and for evaluators of one's own."""


@dataclass(frozen=True)
class Run:
    """How a search is run: nothing here changes a result. None leaves a limit out."""

    folder: Path
    trials: int | None = None
    """Trials that are complete, or stopped at a rung, in all: earlier runs included."""
    timeout_s: float | None = None
    """Seconds of this run; trials under way then are taken up by the next one."""
    workers: int = 1
    threads: int = 1
    devices: tuple[str, ...] = ()
    """torch's names, `("cuda:0", "cuda:1")`; none: those of this machine that the study's latencies are of."""
    data_dir: Path | None = None
    storage: str | None = None
    latency_command: str | None = None
    """What measures where the study's latencies are another machine's."""
    first: tuple[ArchConfig, ...] = ()
    """Architectures to evaluate before the sampler is asked, of the space or not, within the budgets or not."""


def search(
    spec: StudySpec,
    run: Run | None = None,
    *,
    evaluate: Evaluate | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Iterator[Candidate]:
    """Search, yielding each candidate as it is completed; the study in `run.folder` is continued where there is one.

    With `evaluate`, trials run one after another in this process; otherwise in worker processes (started by spawn: a
    script needs the usual `if __name__ == "__main__":`). Closing the iterator stops the search: trials under way wait
    for the next run.

    Raises `StudyError` where the store cannot be used or is of another question, `DataError`, `InfeasibleError`, and
    `IgcNasError` after five failures in a row for one reason.
    """
    run = run or Run(Path("studies") / spec.name)
    with Store(run.folder, continued(spec, run.folder), run.storage) as store:
        coordinator = _Coordinator(store, run, on_event)
        steps = coordinator.inline(evaluate) if evaluate else coordinator.with_workers()
        with closing(steps):
            yield from steps


def continued(spec: StudySpec, folder: Path) -> StudySpec:
    """The spec of the study in `folder`, with the scale that it has fixed, where there is one; else `spec`.

    Raises `StudyError` where that study asks another question than `spec`.
    """
    if not is_begun(folder):
        return spec
    there = load_study(folder).spec
    different = list(differences(spec.question(), there.question()))
    if different:
        raise StudyError(
            f"study {there.name} is there and asks another question: {'; '.join(different[:4])}",
            "search into another folder",
        )
    return there


def training_seed(study_seed: int, identity: str, repeat: int = 0) -> int:
    """The seed that an architecture is initialised and trained from: a function of the study's seed and its id."""
    text = f"{study_seed}/{identity}/{repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def matching_devices(latency: LatencySpec) -> tuple[str, ...]:
    """torch's names of this machine's devices that a study's latencies are of; all, where another machine measures.

    Raises `StudyError` where there is none.
    """
    from igc_nas.device import find_devices

    if latency.remote:
        return tuple(device.torch_name for device in find_devices("auto"))
    name = latency.device
    here = (*find_devices("auto"), *find_devices("cpu"))
    found = tuple(dict.fromkeys(device.torch_name for device in here if device.name == name))
    if not found:
        has = ", ".join(dict.fromkeys(device.name for device in here))
        raise StudyError(f"the study's latencies are of {name}; this machine has {has}", "start another study here")
    return found


def rule_of(study: Study, forecast: Forecast | None = None) -> Rule:
    """When a study's trainings may be stopped, from those that have ended with a score at every rung."""
    code_of = study.spec.feasible.catalog.code
    beliefs = {c.id: forecast.left_out.get(code_of(c.arch) or ()) for c in study.contenders} if forecast else {}
    names, rungs = study.spec.objectives, study.spec.recipe.rungs
    ended = [
        EndedTrial(
            known_values(candidate.cost, candidate.latency.normalised_ms, names),
            tuple(rung.error for rung in candidate.score.rungs),
            candidate.score.error,
            beliefs.get(candidate.id),
        )
        for candidate in study.contenders
        if len(candidate.score.rungs) == len(rungs)
    ]
    return Rule(ended, study.spec.stop)


class _Coordinator:
    """Owns the study while it is searched: proposes jobs, turns messages into records."""

    def __init__(self, store: Store, run: Run, on_event: Callable[[Event], None]) -> None:
        self.store = store
        self.run = run
        self.on_event = on_event
        self.deadline = None if run.timeout_s is None else time.monotonic() + run.timeout_s
        self.exhausted = False
        self.failures: Counter[str] = Counter()
        self.started: dict[int, float] = {}
        self.outlooks: dict[int, Outlook] = {}
        """Of trainings that were told to stop."""
        self.first_with_id = {
            arch_id(trial.arch): number
            for number, trial in sorted(store.trials.items(), reverse=True)
            if trial.arch and trial.state != "duplicate"
        }

    def judged(self, at: AtRung) -> Outlook | None:
        """Why a training at a rung is to be given up; None: it goes on."""
        spec, trial = self.store.spec, self.store.trials[at.number]
        if not spec.stop or "error" not in spec.objectives or trial.arch is None:
            return None
        if at.rung.samples not in spec.recipe.rungs:
            return None  # an evaluator of one's own may look where nobody else does
        costs = known_values(cost_of(trial.arch), at.latency.normalised_ms, spec.objectives)
        forecast = forecast_of(self.store.study)
        rule = rule_of(self.store.study, forecast)
        code = spec.feasible.catalog.code(trial.arch) if forecast else None
        belief = forecast.of(code) if forecast and code else None
        outlook = rule.outlook(costs, spec.recipe.rungs.index(at.rung.samples), at.rung.error, belief)
        return outlook if outlook and outlook.chance < rule.bound else None

    def go_on(self, at: AtRung) -> bool:
        """Whether a training at a rung goes on."""
        outlook = self.judged(at)
        if outlook is not None:
            self.outlooks[at.number] = outlook
        return outlook is None

    def _until_stopped(self, number: int, latency: Latency, score: Score) -> Message:
        """What a training that reported afterwards would have come to, had it been asked at its rungs."""
        for place, rung in enumerate(score.rungs, start=1):
            if not self.go_on(AtRung(number, latency, rung)):
                curve = tuple(epoch for epoch in score.curve if epoch.samples <= rung.samples)
                return Halted(
                    number, latency, Unfinished(rungs=score.rungs[:place], curve=curve, train_s=score.train_s)
                )
        return Measured(number, latency, score)

    def inline(self, evaluate: Evaluate) -> Generator[Candidate, None, None]:
        if self.store.spec.reference_ms is None and not self.store.spec.bounds:
            known = self.store.spec.known_bounds()
            self.store.spec = self.store.spec.model_copy(update={"bounds": known})
        self.opened()
        while not self._enough(0) and (job := self._next_job()):
            try:
                latency, score = evaluate(job.arch, job.seed)
                message = self._until_stopped(job.number, latency, score)
            except Exception as error:
                message = Failed(job.number, reason_of(error))
            yield from self._handle(message)

    def with_workers(self) -> Generator[Candidate, None, None]:
        spec, run = self.store.spec, self.run
        if self._enough(0):
            return
        info = locate(spec.dataset.split(" ")[0], data_dir(run.data_dir))
        if (info.label, info.sha256) != (spec.dataset, spec.dataset_sha256):
            raise StudyError(f"the dataset is {info.label}; the study is about {spec.dataset}", "use another --study")
        devices = run.devices or matching_devices(spec.latency)
        with Workers(spec, info, devices, run.workers, run.threads, run.folder, run.latency_command) as workers:
            if spec.reference_ms is None:
                self.calibrated(workers.calibrate())
            workers.tell_spec(self.store.spec)
            self.opened()
            yield from self._drive(workers)

    def opened(self) -> None:
        """The study's scale is fixed: from here on trials are asked for."""
        self.store.live.sampler = StudySampler(self.store.spec, self.first_with_id.keys(), self.store.in_vain)
        self.on_event(Opened(self.store.study))

    def calibrated(self, calibration: Calibration) -> None:
        """Fix the study's scale, once."""
        self.store.spec = self.store.spec.with_scale(calibration)
        self.store.write_evidence()

    def _drive(self, workers: Workers) -> Iterator[Candidate]:
        while not self._late():
            while workers.idle() and not self._enough(len(workers.running())) and (job := self._next_job()):
                workers.submit(job)
            if not workers.running():
                return
            left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            for message in workers.messages(left):
                if isinstance(message, AtRung):
                    workers.answer(message.number, self.go_on(message))
                else:
                    yield from self._handle(message)

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _enough(self, running: int) -> bool:
        """Whether the trials asked for are complete, or will be when those that run are."""
        return self._late() or (self.run.trials is not None and self.store.study.ended + running >= self.run.trials)

    def _next_job(self) -> Job | None:
        """A trial that an earlier run left, or the sampler's next new architecture within the budget."""
        waiting = self.store.waiting()
        if waiting:
            return self._start(self.store.resume(waiting[0].number))
        for arch in self.run.first:
            if arch_id(arch) not in self.first_with_id:
                return self._start(self._given(arch))
        for _ in range(MOST_REPEATS if not self.exhausted else 0):
            if self._late():
                return None
            try:
                trial = self._suggest()
            except ExhaustedError as error:
                self._exhaust(error.message)
                return None
            self.store.add(trial)
            if trial.state == "running":
                return self._start(trial)
            self.on_event(Ended(trial))
        if not self.exhausted:
            suggestions = f"{MOST_REPEATS:,} suggestions of {self.store.spec.sampler} in a row"
            self._exhaust(f"{suggestions} were over budget, no network, or in the study already")
        return None

    def _exhaust(self, reason: str) -> None:
        self.exhausted = True
        self.on_event(Exhausted(reason))

    def _start(self, trial: Trial) -> Job:
        assert trial.arch is not None
        seed = training_seed(self.store.spec.seed, arch_id(trial.arch))
        job = Job(trial.number, trial.arch, seed)
        self.started[trial.number] = time.monotonic()
        self.on_event(Started(job))
        return job

    def _given(self, arch: ArchConfig) -> Trial:
        """A trial of an architecture that no sampler chose; Optuna knows its parameters where it is of the space."""
        spec = self.store.spec
        try:
            params = spec.search_space.encode(arch)
        except ConfigError:
            params = {}
        violation = spec.feasible.violation(cost_of(arch))
        trial = Trial(
            number=len(self.store.trials), state="running", params=params, arch=arch, violation=violation, given=True
        )
        self.first_with_id[arch_id(arch)] = trial.number
        self.store.give(running_here(trial))
        return trial

    def _suggest(self) -> Trial:
        """Ask the sampler once. What comes back is running, infeasible, or a duplicate."""
        spec, live = self.store.spec, self.store.live
        asked = live.ask()
        trial = Trial(number=asked.number, state="running", params={})
        try:
            arch = spec.search_space.suggest(asked)
        except ConfigError as error:
            asked.set_constraint(BUDGET, 1.0)
            return _changed(trial, "infeasible", params=asked.params, reason=error.message, violation=1.0)
        cost, identity = cost_of(arch), arch_id(arch)
        violation = spec.feasible.violation(cost)
        asked.set_constraint(BUDGET, violation)
        known = {"params": asked.params, "arch": arch, "violation": violation}
        if reason := spec.over_budget(cost):
            return _changed(trial, "infeasible", reason=reason, **known)
        if identity in self.first_with_id:
            first = self.first_with_id[identity]
            return _changed(trial, "duplicate", reason=f"the architecture of trial {first}", same_as=first, **known)
        self.first_with_id[identity] = trial.number
        return running_here(_changed(trial, "running", **known))

    def _handle(self, message: Message) -> Iterator[Candidate]:
        if isinstance(message, Progress | AtRung):
            if isinstance(message, Progress):
                self.on_event(message)
            return
        trial = self._ended(message)
        self.store.finish(trial)
        self.on_event(Ended(trial))
        if trial.state == "failed":
            self._count_failure(trial.reason or "")
            return
        self.failures.clear()
        if trial.candidate:
            yield trial.candidate

    def _ended(self, message: Measured | Halted | Failed) -> Trial:
        trial = self.store.trials[message.number]
        wall = round(time.monotonic() - self.started.pop(message.number), 3)
        trial = trial.model_copy(update={"host": None, "pid": None, "wall_s": wall})
        if isinstance(message, Failed):
            return _changed(trial, "failed", reason=message.reason)
        assert trial.arch is not None
        if isinstance(message, Halted):
            return self._halted(trial, trial.arch, message)
        limit, took = self.store.spec.budget.latency_ms or math.inf, message.latency.normalised_ms
        if message.score is None or took > limit:
            reason, violation = f"{took:.3f} ms; the budget is {limit:g} ms", took / limit - 1
            return _changed(trial, "infeasible", reason=reason, violation=violation)
        candidate = Candidate(
            trial=trial.number,
            id=arch_id(trial.arch),
            arch=trial.arch,
            cost=cost_of(trial.arch),
            latency=message.latency,
            score=message.score,
            seed=training_seed(self.store.spec.seed, arch_id(trial.arch)),
        )
        return _changed(trial, "complete", candidate=candidate)

    def _halted(self, trial: Trial, arch: ArchConfig, message: Halted) -> Trial:
        outlook, at = self.outlooks.pop(trial.number), message.training.rungs[-1].samples
        stopped = Stopped(
            id=arch_id(arch),
            cost=cost_of(arch),
            latency=message.latency,
            training=message.training,
            chance=outlook.chance,
            expected_error=outlook.expected_error,
            deviation=outlook.deviation,
            seed=training_seed(self.store.spec.seed, arch_id(arch)),
        )
        reason = f"after {at:,} samples its chance to end on the front was {outlook.chance:.2g}"
        return _changed(trial, "stopped", stopped=stopped, reason=reason)

    def _count_failure(self, reason: str) -> None:
        if reason not in self.failures:
            self.failures.clear()
        self.failures[reason] += 1
        if self.failures[reason] >= SAME_FAILURES:
            raise IgcNasError(f"{SAME_FAILURES} trials in a row failed: {reason}")


def _changed(trial: Trial, state: TrialState, **changes: object) -> Trial:
    return trial.model_copy(update={"state": state, **changes})
