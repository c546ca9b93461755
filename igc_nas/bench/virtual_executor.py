"""Evaluators in virtual time: an `Executor` whose trials take no time and have records as long as real ones."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np

from igc_nas.arch.cost import Cost, cost_of
from igc_nas.engine.events import Job, Progress
from igc_nas.engine.executor import Message, RungReport, TrialCompleted, TrialFailed, TrialPruned
from igc_nas.study.records import Conditions, Epoch, FormTime, Latency, Rung, Score, TimeBreakdown, Unfinished
from igc_nas.study.spec import Calibration, StudySpec

FAILING = 0.02
"""Share of the trials that fail."""
RUNG_NOISE = 0.1
"""Standard deviation of the error at a rung, relative to it."""
ROUNDS = 101
"""Samples of a latency: real ones have 31 or more."""
FORMS = {"factored": 1.3, "folded": 1.2, "semidense": 1.05, "mixed": 1.0}
"""The time of each form, relative to the fastest."""
MACS_PER_MS = 2e7
CONDITIONS = Conditions(
    device="virtual", threads=1, torch="none", igc_nas="none", load=1.0, clock_mhz=2700.0, temperature_c=50.0
)

Script = Generator[tuple[float, Message], bool, None]
"""The messages of a trial: (virtual seconds since the one before, message); the answer to a rung is sent to it."""


@dataclass
class VirtualExecutor:
    """An `Executor` of `count` evaluators. A trial takes a random number of virtual seconds; some trials fail."""

    spec: StudySpec
    count: int
    seed: int = 0
    now_s: float = 0.0
    """Virtual time since the start."""
    _running: dict[int, tuple[Job, Script]] = field(default_factory=dict)
    _queue: list[tuple[float, int, Message]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)
    """Breaks ties in the order of scheduling."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._running.clear()
        self._queue.clear()

    def calibrate(self) -> Calibration:
        """The latency scale, invented from the MACs of the cheapest and the most expensive architecture."""
        rng = np.random.default_rng(self.seed)
        ends = (cost_of(arch) for arch in (self.spec.feasible.lightest(), self.spec.feasible.heaviest()))
        smallest, largest = (made_up_latency(cost, rng) for cost in ends)
        return Calibration(reference_ms=1.0, smallest=smallest, largest=largest)

    def set_spec(self, spec: StudySpec) -> None:
        """Replace the spec after the calibration."""
        self.spec = spec

    def idle(self) -> int:
        """The number of evaluators without a job."""
        return self.count - len(self._running)

    def running(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job, _ in self._running.values()]

    def submit(self, job: Job) -> None:
        """Start a job."""
        script = _script(self.spec, job, np.random.default_rng([self.seed, job.number]))
        self._running[job.number] = (job, script)
        self._schedule(next(script))

    def answer(self, number: int, should_continue: bool) -> None:
        """Continue the training that is at a rung, or prune it."""
        self._schedule(self._running[number][1].send(should_continue))

    def messages(self, timeout: float | None) -> Iterator[Message]:
        """The next message in virtual time."""
        if not self._queue:
            return
        self.now_s, _, message = heapq.heappop(self._queue)
        if isinstance(message, TrialCompleted | TrialPruned | TrialFailed):
            del self._running[message.number]
        elif not isinstance(message, RungReport):  # at a rung, the evaluator waits for the answer
            self._schedule(next(self._running[message.number][1]))
        yield message

    def _schedule(self, step: tuple[float, Message]) -> None:
        after_s, message = step
        heapq.heappush(self._queue, (self.now_s + after_s, next(self._order), message))


def _script(spec: StudySpec, job: Job, rng: np.random.Generator) -> Script:
    """The messages of one evaluation, whose step time is log-normal."""
    step_s = float(rng.lognormal(1.0, 0.5))
    yield 0.0, Progress(job.number, "measuring")
    if rng.random() < FAILING:
        yield step_s, TrialFailed(job.number, f"invented: trial {job.number} fails")
        return
    cost = cost_of(job.arch)
    latency, error = made_up_latency(cost, rng), made_up_error(cost, rng)
    yield step_s, Progress(job.number, "training")
    marks = sorted(_marks(spec))
    done: list[Rung] = []
    curve: list[Epoch] = []
    for samples, is_rung in marks:
        left = 1 + 0.5 * (1 - samples / spec.recipe.samples)
        if not is_rung:
            curve.append(Epoch(samples=samples, loss=2.3 * error * left, train_error=min(1.0, error * left)))
            yield step_s, Progress(job.number, "training", curve[-1])
            continue
        seen = min(1.0, error * left * float(rng.normal(1.0, RUNG_NOISE)))
        done.append(Rung(samples=samples, error=seen, loss=2.3 * seen))
        should_continue = yield step_s, RungReport(job.number, latency, done[-1])
        if not should_continue:
            training = Unfinished(rungs=tuple(done), curve=tuple(curve), train_s=step_s * len(done))
            yield 0.0, TrialPruned(job.number, latency, training, _spent(step_s))
            return
    score = made_up_score(spec, error, tuple(curve), tuple(done))
    yield step_s, TrialCompleted(job.number, latency, score, _spent(step_s))


def _marks(spec: StudySpec) -> Iterator[tuple[int, bool]]:
    """(images seen, is it a rung) for the end of each epoch and for each rung."""
    recipe = spec.recipe
    yield from ((recipe.train_size * epoch, False) for epoch in range(1, recipe.epochs + 1))
    yield from ((at, True) for at in recipe.rungs)


def _spent(step_s: float) -> TimeBreakdown:
    return TimeBreakdown(prepare_s=step_s, measure_s=step_s, choose_s=step_s, train_s=step_s, wait_s=0.0)


def made_up_latency(cost: Cost, rng: np.random.Generator) -> Latency:
    """A latency invented from the MACs, with the number of rounds and forms of a real one."""
    ms = 0.2 + cost.macs / MACS_PER_MS * float(rng.uniform(0.7, 1.3))
    samples = np.round(ms * rng.normal(1.0, 0.01, ROUNDS), 5).tolist()
    forms = {name: _form_time(cost, ms * times) for name, times in FORMS.items()}
    return Latency(
        median_ms=ms,
        low_ms=ms * 0.99,
        high_ms=ms * 1.01,
        normalised_ms=ms,
        normalised_low_ms=ms * 0.99,
        normalised_high_ms=ms * 1.01,
        reference_ms=1.0,
        noisy=False,
        samples_ms=tuple(samples),
        reference_samples_ms=tuple(np.round(rng.normal(1.0, 0.01, ROUNDS), 5).tolist()),
        runtime="eager",
        form="mixed",
        deployed_params=cost.params,
        deployed_macs=cost.macs,
        weight_bytes=4 * cost.params,
        forms=forms,
        batch=1,
        dtype="float32",
        memory_format="channels_last",
        input=(3, 32, 32),
        conditions=CONDITIONS,
    )


def _form_time(cost: Cost, ms: float) -> FormTime:
    return FormTime(
        params=cost.params,
        macs=cost.macs,
        weight_bytes=4 * cost.params,
        median_ms=ms,
        low_ms=ms * 0.99,
        high_ms=ms * 1.01,
    )


def made_up_error(cost: Cost, rng: np.random.Generator) -> float:
    """An error that falls with the logarithms of parameters and MACs, times noise of 8 %."""
    known = 1.2 - 0.05 * math.log10(cost.params) - 0.05 * math.log10(cost.macs)
    return float(np.clip(known * rng.normal(1.0, 0.08), 0.05, 0.95))


def made_up_score(spec: StudySpec, error: float, curve: tuple[Epoch, ...], rungs: tuple[Rung, ...]) -> Score:
    """A score with the error `error` and this curve."""
    return Score(
        error=error,
        loss=2.3 * error,
        held_out=spec.recipe.held_out,
        samples=spec.recipe.samples,
        curve=curve,
        rungs=rungs,
        train_s=10.0,
        dtype=spec.recipe.dtype,
        form="native",
        dataset=spec.dataset,
        dataset_sha256=spec.dataset_sha256,
        conditions=CONDITIONS,
    )
