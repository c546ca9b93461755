"""The coordinator of a search: asks the sampler, hands architectures to evaluators, records what they say."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.engine.events import Ended, Event, Exhausted, Job, Opened, Progress, Started
from igc_nas.engine.executor import Executor, Message, RungReport, TrialCompleted, TrialFailed, TrialPruned
from igc_nas.engine.store import BUDGET, Store, running_here
from igc_nas.engine.worker import failed
from igc_nas.errors import ConfigError, IgcNasError
from igc_nas.samplers.pruner import FinalErrorPrediction, Pruner
from igc_nas.samplers.study_sampler import MOST_REPEATS, ExhaustedError, StudySampler
from igc_nas.study.lock import Running
from igc_nas.study.records import Candidate, Latency, Pruned, Score, Trial, TrialState, Unfinished
from igc_nas.study.spec import Calibration, training_seed

SAME_FAILURES = 5
SIGN_OF_LIFE_S = 10.0
"""How long readers wait, at most, to see that a search is there."""

Evaluate = Callable[[ArchConfig, int], tuple[Latency, Score]]
"""(architecture, training seed) -> what was measured: the seam for tests and for evaluators of one's own."""


@dataclass(frozen=True)
class Limits:
    """How far a search goes, and what it evaluates first."""

    trials: int | None = None
    """Trials that are complete or stopped, in all."""
    deadline: float | None = None
    """By `time.monotonic`."""
    enqueue: tuple[ArchConfig, ...] = ()


class Coordinator:
    """Owns a study while it is searched."""

    def __init__(self, store: Store, limits: Limits, on_event: Callable[[Event], None]) -> None:
        self.store = store
        self.limits = limits
        self.on_event = on_event
        self.exhausted = False
        self.failures: Counter[str] = Counter()
        self.running: dict[int, Running] = {}
        self.began: dict[int, float] = {}
        self.predictions: dict[int, FinalErrorPrediction] = {}
        """Of trainings that were told to stop."""
        self.enqueued = list({arch_id(arch): arch for arch in limits.enqueue if self._is_new(arch)}.values())
        self.first_with_id = {
            identity: number
            for number, trial in sorted(store.trials.items(), reverse=True)
            if trial.state != "duplicate" and (identity := trial.id)
        }
        self._judge: Pruner | None = None
        """Made when the first training is at a rung."""

    def _is_new(self, arch: ArchConfig) -> bool:
        """Whether an architecture that a person gives is to be evaluated: it is not there, or has failed."""
        identity = arch_id(arch)
        there = [trial for trial in self.store.trials.values() if trial.id == identity]
        return all(trial.state == "failed" for trial in there)

    # The search, by an evaluator here or by an executor's.

    def inline(self, evaluate: Evaluate) -> Generator[Candidate, None, None]:
        """Search one trial after another, in this process."""
        if self.store.spec.reference_ms is None and not self.store.spec.bounds:
            known = self.store.spec.known_bounds()
            self.store.fix_scale(self.store.spec.model_copy(update={"bounds": known}))
        self._opened()
        while not self.enough(0) and (job := self._next_job()):
            try:
                latency, score = evaluate(job.arch, job.seed)
                message = self._until_stopped(job.number, latency, score)
            except Exception as error:
                message = failed(job.number, error, "evaluating")
            yield from self._handle(message)

    def with_executor(self, executor: Executor) -> Generator[Candidate, None, None]:
        """Search with as many trials at a time as the executor has evaluators."""
        if self.store.spec.reference_ms is None:
            self._calibrated(executor.calibrate())
        executor.tell_spec(self.store.spec)
        self._opened()
        while not self._late():
            while executor.idle() and not self.enough(len(executor.running())) and (job := self._next_job()):
                executor.submit(job)
            if not executor.running():
                return
            for message in executor.messages(self._patience()):
                if isinstance(message, RungReport):
                    executor.answer(message.number, self.go_on(message))
                else:
                    yield from self._handle(message)
            self.store.lock.show(self.running.values())

    def _opened(self) -> None:
        """The study's scale is fixed: from here on trials are asked for."""
        self.store.optuna_study.sampler = StudySampler(
            self.store.spec, self.first_with_id.keys(), self.store.consecutive_failures
        )
        self.on_event(Opened(self.store.study))

    def _calibrated(self, calibration: Calibration) -> None:
        """Fix the study's scale, once."""
        self.store.fix_scale(self.store.spec.with_scale(calibration))

    def _late(self) -> bool:
        return self.limits.deadline is not None and time.monotonic() >= self.limits.deadline

    def _patience(self) -> float:
        left = math.inf if self.limits.deadline is None else self.limits.deadline - time.monotonic()
        return max(0.0, min(left, SIGN_OF_LIFE_S))

    def enough(self, running: int) -> bool:
        """Whether the trials asked for are complete, or will be when those that run are.

        What a person gives is evaluated however many there are.
        """
        asked_for = self.limits.trials
        return self._late() or (not self.enqueued and asked_for is not None and self.store.ended + running >= asked_for)

    # What is tried next.

    def _next_job(self) -> Job | None:
        """A trial that an earlier run left, one that a person gives, or the sampler's next within the budget."""
        waiting = self.store.waiting()
        if waiting:
            return self._start(self.store.resume(waiting.number))
        if self.enqueued:
            return self._start(self._enqueued(self.enqueued.pop(0)))
        for _ in range(MOST_REPEATS if not self.exhausted else 0):
            if self._late():
                return None
            try:
                trial = self.store.add(self._suggest())
            except ExhaustedError as error:
                self._exhaust(error.message)
                return None
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
        self.began[trial.number] = time.monotonic()
        self.running[trial.number] = Running(number=trial.number, doing="starting", since=trial.started or "")
        self.on_event(Started(job))
        return job

    def _enqueued(self, arch: ArchConfig) -> Trial:
        """A trial of an architecture that no sampler chose; Optuna knows its parameters where it is of the space."""
        spec = self.store.spec
        try:
            params = spec.search_space.encode(arch)
        except ConfigError:
            params = {}
        violation = spec.feasible.violation(cost_of(arch))
        trial = Trial(
            number=len(self.store.trials), state="running", params=params, arch=arch, violation=violation, enqueued=True
        )
        self.first_with_id[arch_id(arch)] = trial.number
        trial = running_here(trial)
        self.store.add(trial)
        return trial

    def _suggest(self) -> Trial:
        """Ask the sampler once. What comes back is running, infeasible, or a duplicate."""
        spec = self.store.spec
        asked = self.store.optuna_study.ask()
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

    # Whether a training goes on.

    def judged(self, at: RungReport) -> FinalErrorPrediction | None:
        """Why a training at a rung is to be given up; None: it goes on."""
        trial = self.store.trials[at.number]
        if trial.arch is None or not self.store.spec.prune_below:
            return None
        self._judge = self._judge or Pruner(self.store.spec, self.store.study.candidates)
        return self._judge.prediction(trial.arch, at.latency, at.rung)

    def go_on(self, at: RungReport) -> bool:
        """Whether a training at a rung goes on."""
        prediction = self.judged(at)
        if prediction is not None:
            self.predictions[at.number] = prediction
        return prediction is None

    def _until_stopped(self, number: int, latency: Latency, score: Score) -> Message:
        """What a training that reported afterwards would have come to, had it been asked at its rungs."""
        for place, rung in enumerate(score.rungs, start=1):
            if not self.go_on(RungReport(number, latency, rung)):
                curve = tuple(epoch for epoch in score.curve if epoch.samples <= rung.samples)
                return TrialPruned(
                    number, latency, Unfinished(rungs=score.rungs[:place], curve=curve, train_s=score.train_s)
                )
        return TrialCompleted(number, latency, score)

    # What evaluators say.

    def _handle(self, message: Message) -> Iterator[Candidate]:
        if isinstance(message, Progress):
            self._progress(message)
            return
        assert not isinstance(message, RungReport)
        trial = self._ended(message)
        self.running.pop(trial.number, None)
        self.store.finish(trial)
        self.on_event(Ended(trial))
        if trial.state == "failed":
            self._count_failure(trial.reason or "")
            return
        self.failures.clear()
        if trial.candidate:
            if self._judge:
                self._judge.learn(trial.candidate)
            yield trial.candidate

    def _progress(self, progress: Progress) -> None:
        before, epoch = self.running[progress.number], progress.epoch
        far = {"samples": epoch.samples, "train_error": epoch.train_error} if epoch else {}
        self.running[progress.number] = before.model_copy(update={"doing": progress.doing, **far})
        self.on_event(progress)

    def _ended(self, message: TrialCompleted | TrialPruned | TrialFailed) -> Trial:
        trial = self.store.trials[message.number]
        wall = round(time.monotonic() - self.began.pop(message.number), 3)
        trial = trial.model_copy(update={"process": None, "wall_s": wall})
        if isinstance(message, TrialFailed):
            return _changed(trial, "failed", reason=message.reason, failure=message.failure)
        trial = trial.model_copy(update={"spent": message.spent})
        assert trial.arch is not None
        if isinstance(message, TrialPruned):
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

    def _halted(self, trial: Trial, arch: ArchConfig, message: TrialPruned) -> Trial:
        prediction, at = self.predictions.pop(trial.number), message.training.rungs[-1].samples
        stopped = Pruned(
            id=arch_id(arch),
            cost=cost_of(arch),
            latency=message.latency,
            training=message.training,
            p_front=prediction.p_front,
            expected_error=prediction.expected_error,
            std=prediction.std,
            seed=training_seed(self.store.spec.seed, arch_id(arch)),
        )
        reason = f"after {at:,} samples its chance to end on the front was {prediction.p_front:.2g}"
        return _changed(trial, "pruned", pruned=stopped, reason=reason)

    def _count_failure(self, reason: str) -> None:
        if reason not in self.failures:
            self.failures.clear()
        self.failures[reason] += 1
        if self.failures[reason] >= SAME_FAILURES:
            raise IgcNasError(f"{SAME_FAILURES} trials in a row failed: {reason}", "igc-nas status shows where")


def _changed(trial: Trial, state: TrialState, **changes: object) -> Trial:
    return trial.model_copy(update={"state": state, **changes})
