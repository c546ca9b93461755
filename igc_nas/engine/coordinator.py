"""The coordinator of a search: asks the sampler, submits architectures to evaluators and records the results."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.engine.events import Ended, Event, Exhausted, Job, LongerJob, Notice, Opened, Progress, Started
from igc_nas.engine.executor import (
    Executor,
    Message,
    RungReport,
    TrainingEnded,
    TrainingTimed,
    TrialCompleted,
    TrialFailed,
    TrialPruned,
)
from igc_nas.engine.store import BUDGET, Store, running_here
from igc_nas.engine.worker import failed, validated
from igc_nas.errors import ConfigError, IgcNasError, StudyError
from igc_nas.samplers.promotion import Promotion
from igc_nas.samplers.pruner import FinalErrorPrediction, Pruner
from igc_nas.samplers.study_sampler import MOST_REPEATS, ExhaustedError, StudySampler
from igc_nas.study.baselines import Baseline
from igc_nas.study.lock import Running
from igc_nas.study.names import study_argument
from igc_nas.study.plan import GRACE, TrialTimes
from igc_nas.study.records import Candidate, Latency, Pruned, Score, Trial, TrialState, Unfinished
from igc_nas.study.spec import training_seed

SAME_FAILURES = 5
NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")
"""What differs between two messages of one cause: bytes of memory, addresses, sizes."""
SHOW_EVERY_S = 10.0
"""Longest time between two updates of the file that shows readers which trials run."""

Evaluate = Callable[[ArchConfig, int], tuple[Latency, Score]]
"""(architecture, training seed) -> (latency, score): an evaluator of the user's own, or of a test."""


@dataclass(frozen=True)
class Limits:
    """When a search ends, and what it evaluates first."""

    trials: int | None = None
    """The number of trials to complete or prune, including those of earlier searches."""
    deadline: float | None = None
    """A time of `time.monotonic` at which trials that still run are left to the next search."""
    time_s: float | None = None
    """Seconds of the search, from its beginning or the end of the baselines: no trial is started that is not expected
    to end in them, and those that run then have `GRACE` of them more."""
    enqueue: tuple[ArchConfig, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    began: float = field(default_factory=time.monotonic)
    """The time of `time.monotonic` at which the search began."""


class Coordinator:
    """Runs a search: the only writer of its study."""

    def __init__(self, store: Store, limits: Limits, on_event: Callable[[Event], None]) -> None:
        self.store = store
        self.limits = limits
        self.on_event = on_event
        self.exhausted = False
        self.ended_baselines = 0
        self.failures: Counter[str] = Counter()
        self.notices: dict[str, None] = {}
        """What workers have said about their machine, in order; each is said to the user once."""
        self.running: dict[int, Running] = {}
        self.began: dict[int, float] = {}
        self.predictions: dict[int, FinalErrorPrediction] = {}
        """The predictions of trainings that were told to stop, by trial number."""
        self.deadline = limits.deadline
        self.end: float | None = None
        """A time of `time.monotonic`: no trial is started that is not expected to end before it."""
        self.enqueued: list[ArchConfig | Baseline] = [
            *{arch_id(arch): arch for arch in limits.enqueue if self._is_new(arch)}.values(),
            *{arch_id(each.arch): each for each in limits.baselines if self._is_new_baseline(each)}.values(),
        ]
        self.asked = self._waiting_of_limits()
        """The numbers of the trials of enqueued architectures and baselines that wait: an earlier search left them."""
        self.first_with_id = {
            identity: number
            for number, trial in sorted(store.trials.items(), reverse=True)
            if trial.state != "duplicate" and not trial.is_aside and (identity := trial.id)
        }
        spec = store.spec
        side = spec.space.input[1]
        speed, ended = spec.plan.speed if spec.plan else None, store.trials.values()
        self.trial_times = TrialTimes(speed, spec.recipe, side, (t for t in ended if t.longer_of is None))
        self.longer_times = TrialTimes(
            speed,
            spec.target.recipe if spec.target else spec.recipe,
            side,
            (t for t in ended if t.longer_of is not None),
            like=self.trial_times,
        )
        self.promotion: Promotion | None = None
        """Constructed when the scale of latency is known; None: no network is trained for longer."""
        self._pruner: Pruner | None = None
        """Constructed when the first training is at a rung."""

    def _is_new(self, arch: ArchConfig) -> bool:
        """Whether an enqueued architecture is evaluated: every trial of it that the study has is a failed one."""
        identity = arch_id(arch)
        trials = [trial for trial in self.store.trials.values() if trial.id == identity and not trial.is_aside]
        return all(trial.state == "failed" for trial in trials)

    def _is_new_baseline(self, baseline: Baseline) -> bool:
        """Whether a baseline is evaluated: the study has no trial of it but failed ones that may end otherwise now."""
        identity = arch_id(baseline.arch)
        trials = [trial for trial in self.store.trials.values() if trial.baseline and trial.id == identity]
        return all(t.state == "failed" and t.failure and t.failure.kind != "refused" for t in trials)

    def _waiting_of_limits(self) -> frozenset[int]:
        enqueued, baselines = map(arch_id, self.limits.enqueue), (arch_id(each.arch) for each in self.limits.baselines)
        asked = {False: {*enqueued}, True: {*baselines}}
        return frozenset(
            trial.number
            for trial in self.store.waiting()
            if trial.longer_of is None and trial.id in asked[trial.baseline is not None]
        )

    # The search, by an evaluator in this process or by an executor.

    def run_inline(self, evaluate: Evaluate) -> Generator[Candidate, None, None]:
        """Search one trial after another, in this process. `evaluate` has one recipe: none is trained for longer."""
        if self.store.spec.reference_ms is None and not self.store.spec.bounds:
            known = self.store.spec.known_bounds()
            self.store.fix_scale(self.store.spec.model_copy(update={"bounds": known}))
        self._begin()
        while not self.has_enough(0) and (job := self._next_job()):
            if isinstance(job, LongerJob):
                raise StudyError(f"trial {job.number} is a longer training", "search without an evaluate of your own")
            try:
                latency, score = evaluate(job.arch, job.seed)
                message = self._replay_rungs(job.number, validated(latency, Latency), validated(score, Score))
            except Exception as error:
                message = failed(job.number, error, "evaluating")
            yield from self._handle(message)

    def run(self, executor: Executor) -> Generator[Candidate, None, None]:
        """Search with one running trial for each evaluator of the executor."""
        if self.store.spec.reference_ms is None:
            self.store.fix_scale(self.store.spec.with_scale(executor.calibrate()))
        executor.set_spec(self.store.spec)
        self.promotion = Promotion(self.store.spec) if self.store.spec.target else None
        self._begin()
        while not self._is_over():
            while executor.idle() and not self.has_enough(len(executor.running())) and (job := self._next_job()):
                executor.submit(job)
            if not executor.running():
                return
            for message in executor.messages(self._wait_s()):
                if isinstance(message, RungReport):
                    executor.answer(message.number, self.should_continue(message))
                else:
                    yield from self._handle(message)
            self.store.lock.show(self.running.values())

    def _begin(self) -> None:
        """Construct the sampler, which needs the latency scale."""
        self._end_of_baselines()
        self.store.optuna_study.sampler = StudySampler(
            self.store.spec,
            self.first_with_id.keys(),
            self.store.consecutive_failures,
            self._can_end,
            lambda: self.store.study.longer.values(),
        )
        self.on_event(Opened(self.store.study))

    def _end_of_baselines(self) -> None:
        """Let the time of the search begin if all baselines have ended; at first, if there is none."""
        time_s = self.limits.time_s
        if time_s is None or self.end is not None or self._has_baselines_left():
            return
        began = self.limits.began if not self.ended_baselines else time.monotonic()
        self.end = began + time_s
        self.deadline = min(self.end + GRACE * time_s, math.inf if self.deadline is None else self.deadline)

    def _has_baselines_left(self) -> bool:
        left = (trial for trial in self.store.trials.values() if trial.state in ("running", "waiting"))
        return any(isinstance(each, Baseline) for each in self.enqueued) or any(trial.baseline for trial in left)

    def _is_over(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _can_end(self, arch: ArchConfig, *, longer: bool = False) -> bool:
        """Whether a trial, or a longer training, that is started now is expected to end in the time of this search."""
        if self.end is None:
            return True
        times = self.longer_times if longer else self.trial_times
        return time.monotonic() + (times.seconds(arch) or 0.0) < self.end

    def _wait_s(self) -> float:
        left = math.inf if self.deadline is None else self.deadline - time.monotonic()
        return max(0.0, min(left, SHOW_EVERY_S))

    def has_enough(self, running: int) -> bool:
        """Whether no trial is to be started beside the `running` ones.

        Enqueued architectures and baselines are evaluated even if the study has the number of trials asked for.
        """
        target = self.limits.trials
        running -= sum(self.store.trials[number].is_aside for number in self.running)
        asked = self.enqueued or any(self.store.trials[number].state == "waiting" for number in self.asked)
        return self._is_over() or (not asked and target is not None and self.store.ended + running >= target)

    # What is tried next.

    def _next_job(self) -> Job | None:
        """The next job: what is enqueued, a trial that waits and can end, a longer training, or a suggestion."""
        waiting = list(self.store.waiting())
        if asked := next((trial for trial in waiting if trial.number in self.asked), None):
            return self._start(self.store.resume(asked.number))
        if self.enqueued:
            new = self.enqueued.pop(0)
            return self._start(self._add_baseline(new) if isinstance(new, Baseline) else self._add_enqueued(new))
        if found := next((trial for trial in waiting if self._is_resumed(trial)), None):
            return self._start(self.store.resume(found.number))
        can_end = partial(self._can_end, longer=True)
        if self.promotion and (promoted := self.promotion.next(self.store.study, can_end)):
            return self._start(self._add(promoted.arch, longer_of=promoted.trial))
        for _ in range(MOST_REPEATS if not self.exhausted else 0):
            if self._is_over():
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

    def _is_resumed(self, trial: Trial) -> bool:
        """Whether a trial that waits is taken up now. One that would not end waits on, and smaller ones are tried."""
        return trial.arch is None or self._can_end(trial.arch, longer=trial.longer_of is not None)

    def _exhaust(self, reason: str) -> None:
        self.exhausted = True
        left = [str(trial.number) for trial in self.store.waiting()]
        later = f"; the next search resumes trial{'s' * (len(left) > 1)} {', '.join(left)}" if left else ""
        self.on_event(Exhausted(reason + later))

    def _start(self, trial: Trial) -> Job:
        assert trial.arch is not None
        seed = training_seed(self.store.spec.seed, arch_id(trial.arch))
        job = Job(trial.number, trial.arch, seed, baseline=trial.baseline)
        if trial.longer_of is not None and (first := self.store.trials[trial.longer_of].candidate):
            job = LongerJob(trial.number, trial.arch, seed, first.latency)
        self.began[trial.number] = time.monotonic()
        self.running[trial.number] = Running(number=trial.number, doing="starting", since=trial.started or "")
        self.on_event(Started(job))
        return job

    def _add_enqueued(self, arch: ArchConfig) -> Trial:
        """Add a trial of an enqueued architecture. It has parameters for the sampler if it is in the search space."""
        spec = self.store.spec
        try:
            params = spec.search_space.encode(arch)
        except ConfigError:
            params = {}
        self.first_with_id[arch_id(arch)] = len(self.store.trials)
        return self._add(arch, params=params, violation=spec.budget.violation(cost_of(arch)), enqueued=True)

    def _add_baseline(self, baseline: Baseline) -> Trial:
        """Add a trial of a baseline. It is nothing to the sampler, which may suggest the same architecture."""
        violation = self.store.spec.budget.violation(cost_of(baseline.arch))
        return self._add(baseline.arch, violation=violation, baseline=baseline.name)

    def _add(self, arch: ArchConfig, **facts: Any) -> Trial:
        """Add a trial that no sampler suggested."""
        trial = Trial(number=len(self.store.trials), arch=arch, **{"state": "running", "params": {}} | facts)
        return self.store.add(running_here(trial))

    def _suggest(self) -> Trial:
        """Ask the sampler once. The trial is running, infeasible, or a duplicate."""
        spec = self.store.spec
        asked = self.store.optuna_study.ask()
        trial = Trial(number=len(self.store.trials), state="running", params={})
        try:
            arch = spec.search_space.suggest(asked)
        except ConfigError as error:
            asked.set_constraint(BUDGET, 1.0)
            return _changed(trial, "infeasible", params=asked.params, reason=error.message, violation=1.0)
        cost, identity = cost_of(arch), arch_id(arch)
        violation = spec.budget.violation(cost)
        asked.set_constraint(BUDGET, violation)
        known = {"params": asked.params, "arch": arch, "violation": violation}
        if violation > 0:
            return _changed(trial, "infeasible", reason=spec.budget.excess_text(cost), **known)
        if identity in self.first_with_id:
            first = self.first_with_id[identity]
            return _changed(trial, "duplicate", reason=f"the architecture of trial {first}", same_as=first, **known)
        self.first_with_id[identity] = trial.number
        return running_here(_changed(trial, "running", **known))

    # Pruning.

    def pruning_prediction(self, report: RungReport) -> FinalErrorPrediction | None:
        """The prediction by which a training at a rung is pruned; None if it continues."""
        trial = self.store.trials[report.number]
        if trial.arch is None or trial.is_aside or not self.store.spec.prune_below:
            return None
        self._pruner = self._pruner or Pruner(self.store.spec, self.store.study.candidates)
        return self._pruner.prune(trial.arch, report.latency, report.rung)

    def should_continue(self, report: RungReport) -> bool:
        """Whether a training at a rung continues."""
        prediction = self.pruning_prediction(report)
        if prediction is not None:
            self.predictions[report.number] = prediction
        return prediction is None

    def _replay_rungs(self, number: int, latency: Latency, score: Score) -> Message:
        """Ask the pruner about the rungs of a finished training, as if it had been asked during the training."""
        for count, rung in enumerate(score.rungs, start=1):
            if not self.should_continue(RungReport(number, latency, rung)):
                curve = tuple(epoch for epoch in score.curve if epoch.samples <= rung.samples)
                return TrialPruned(
                    number, latency, Unfinished(rungs=score.rungs[:count], curve=curve, train_s=score.train_s)
                )
        return TrialCompleted(number, latency, score)

    # Messages of evaluators.

    def _handle(self, message: Message) -> Iterator[Candidate]:
        if isinstance(message, Progress):
            self._update_progress(message)
            return
        assert not isinstance(message, RungReport | TrainingTimed | TrainingEnded)
        trial = self._ended_trial(message)
        self.running.pop(trial.number, None)
        self.store.finish(trial)
        self.on_event(Ended(trial))
        if trial.baseline:
            self.ended_baselines += 1
            self._end_of_baselines()
            return
        if trial.state == "failed":
            self._count_failure(trial.reason or "")
            return
        self.failures.clear()
        if trial.longer_of is not None:
            self.longer_times.add(trial)
            return
        self.trial_times.add(trial)
        if trial.candidate:
            if self._pruner:
                self._pruner.add(trial.candidate)
            yield trial.candidate

    def _update_progress(self, progress: Progress) -> None:
        if progress.notice is not None:
            self._notice(progress.number, progress.notice)
            return
        before, epoch = self.running[progress.number], progress.epoch
        training = {"samples": epoch.samples, "train_error": epoch.train_error} if epoch else {}
        self.running[progress.number] = before.model_copy(update={"doing": progress.doing, **training})
        self.on_event(progress)

    def _notice(self, number: int, text: str) -> None:
        """Keep what a worker says with its trial, and say it to the user if it is new."""
        trial = self.store.trials[number]
        self.store.trials[number] = trial.model_copy(update={"notices": (*(trial.notices or ()), text)})
        if text not in self.notices:
            self.notices[text] = None
            self.on_event(Notice(text))

    def _ended_trial(self, message: TrialCompleted | TrialPruned | TrialFailed) -> Trial:
        trial = self.store.trials[message.number]
        wall = round(time.monotonic() - self.began.pop(message.number), 3)
        trial = trial.model_copy(update={"process": None, "wall_s": wall})
        if isinstance(message, TrialFailed):
            return _changed(trial, "failed", reason=message.reason, failure=message.failure)
        trial = trial.model_copy(update={"spent": message.spent})
        assert trial.arch is not None
        if isinstance(message, TrialPruned):
            return self._pruned_trial(trial, trial.arch, message)
        budget, measured = self.store.spec.budget, message.latency.normalised_ms
        violation = budget.violation(latency_ms=measured)
        if message.score is None or violation > 0:
            reason = f"{measured:.3f} ms; the budget is {budget.latency_ms or math.inf:g} ms"
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

    def _pruned_trial(self, trial: Trial, arch: ArchConfig, message: TrialPruned) -> Trial:
        prediction, at = self.predictions.pop(trial.number), message.training.rungs[-1].samples
        pruned = Pruned(
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
        return _changed(trial, "pruned", pruned=pruned, reason=reason)

    def _count_failure(self, reason: str) -> None:
        """Raise `IgcNasError` after `SAME_FAILURES` in a row for a reason that differs in its numbers at most."""
        same = NUMBER.sub("#", reason)
        if same not in self.failures:
            self.failures.clear()
        self.failures[same] += 1
        if self.failures[same] >= SAME_FAILURES:
            name = study_argument(self.store.folder, self.store.spec.name)
            raise IgcNasError(f"{SAME_FAILURES} trials in a row failed: {reason}", f"igc-nas status {name} shows where")


def _changed(trial: Trial, state: TrialState, **changes: object) -> Trial:
    return trial.model_copy(update={"state": state, **changes})
