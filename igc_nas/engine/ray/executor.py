"""Evaluators on a Ray cluster: each is an actor on some node, with the processors or the GPU that a trial takes.

Nodes that do not fit the study (see `igc_nas.engine.ray.actor`) are left out, and said once: latencies are measured on
nodes of the one device that the study names. Evaluators on one node keep quiet for each other; nodes do not wait for
nodes.

A trial whose evaluator is lost, be it the process or the whole node, is tried again, on another; one that has taken
three evaluators with it has failed. A trial that ends with an error has failed at once, as everywhere. Nodes that join
are used while there are fewer evaluators than were asked for.

The study's folder is the coordinator's. A node that sees the same folder (a shared file system) keeps the forms that
it trains in there; elsewhere they are fixed for as long as the evaluator lives.
"""

from __future__ import annotations

import contextlib
import importlib
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from igc_nas.engine.events import Job, Progress
from igc_nas.engine.executor import (
    READY,
    MakeEvaluator,
    Message,
    RungReport,
    TrialCompleted,
    TrialFailed,
    TrialPruned,
    WorkerHandle,
)
from igc_nas.engine.ray.actor import Actor, ActorConfig, versions_here
from igc_nas.engine.ray.nodes import Node, connected, needs_of, no_room, nodes_of
from igc_nas.engine.worker import job_message
from igc_nas.errors import IgcNasError, StudyError
from igc_nas.io.units import format_seconds
from igc_nas.study.process import Process
from igc_nas.study.records import Failure
from igc_nas.study.spec import Calibration, StudySpec

WORDS_S = 10.0
"""How long an actor that has nothing to say waits before it says so."""
LOOK_S = 2.0
"""How often a place that is vacant looks for a node."""
GATHER_S = 60.0
"""How long the latency scale waits for evaluators that are on their way: starting ones would disturb it."""
GRACE_S = 3.0
MOST_DEATHS = 3
"""Evaluators that a trial may take with it; and that may die in a row on a node before they can work."""
TELLING, HEARING = "telling", "hearing"


@dataclass(frozen=True)
class Lost:
    """An actor that is no longer there, or cannot be reached, with what Ray says of it."""

    error: Exception


@dataclass(eq=False)
class ActorHandle(WorkerHandle):
    """An actor, from the coordinator's side. `ref` is the call whose answer is awaited."""

    handle: Any
    node: Node
    place: int
    ref: Any
    begun: bool = False
    """Whether it has found its place."""
    answer: Calibration | IgcNasError | None = None
    """To "calibrate"."""

    def tell(self, kind: str, value: object) -> None:
        """Send a word. An actor that is gone is noticed where its words are awaited."""
        self.handle.tell.options(concurrency_group=TELLING).remote((kind, value))

    def listen(self) -> None:
        """Ask for its next words."""
        self.begun = True
        self.ref = self.handle.words.options(concurrency_group=HEARING).remote(WORDS_S)

    def take(self, job: Job) -> None:
        """Begin a job."""
        self.begin(job)
        self.tell(*job_message(job))


@dataclass
class RayExecutor:
    """An `Executor` of at most `count` actors for a study, each on a CPU or on a GPU (`device`, torch's name)."""

    spec: StudySpec
    device: str
    count: int
    make: MakeEvaluator
    threads: int = 1
    folder: Path | None = None
    """The study's folder."""
    address: str | None = None
    """HOST:PORT; None: that of `$RAY_ADDRESS`, else of the cluster that this machine belongs to."""
    trial_timeout_s: float | None = None
    """A trial that is worked on for longer has failed, and its actor is killed; None: never."""
    say: Callable[[str], None] = lambda _: None
    """Hears of nodes that are left out and of evaluators that are lost."""
    patience_s: float = 180.0
    """How long there may be no evaluator at all."""
    _hired: list[ActorHandle] = field(default_factory=list)
    _waiting: deque[Job] = field(default_factory=deque)
    _deaths: Counter[int] = field(default_factory=Counter)
    """Evaluators that each trial under way has taken with it."""
    _stillborn: Counter[str] = field(default_factory=Counter)
    """Evaluators that have died on each node since one has worked there."""
    _refused: dict[str, tuple[str, IgcNasError]] = field(default_factory=dict)
    """Nodes that are left out, with their host and why."""
    _worked: bool = False
    """Whether any evaluator has been ready."""

    def __enter__(self) -> Self:
        self._run, self._looked, self._alone = uuid.uuid4().hex, -LOOK_S, time.monotonic()
        with contextlib.ExitStack() as stack:
            self._ray = stack.enter_context(connected(self.address))
            self._actor = self._ray.remote(concurrency_groups={TELLING: 1, HEARING: 1})(Actor)
            stack.callback(self._dismiss_all)
            self._fill()
            if not self._hired:
                raise no_room(self._ray, self.device, self.threads)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stack.close()

    def calibrate(self) -> Calibration:
        """Measure the reference and the ends of the latency scale in one actor, before the others work."""
        for _ in range(MOST_DEATHS):
            self._gather()
            hired = next(one for one in self._hired if one.ready)
            hired.tell("calibrate", None)
            while hired in self._hired and hired.answer is None:
                self._pass(LOOK_S)
            if isinstance(hired.answer, Calibration):
                return hired.answer
            if hired.answer is not None:
                raise hired.answer
        raise IgcNasError(f"evaluators died while they measured the latency scale, {MOST_DEATHS} times in a row")

    def _gather(self) -> None:
        """Wait until one actor is ready, and for a while until all are."""
        until = time.monotonic() + GATHER_S
        while not self._ready() or (len(self._ready()) < len(self._hired) and time.monotonic() < until):
            self._pass(LOOK_S)

    def _pass(self, seconds: float) -> None:
        """Let time pass in which no trial is under way."""
        for _ in self.messages(seconds):
            pass

    def tell_spec(self, spec: StudySpec) -> None:
        """Give every actor the spec as it is now (after calibration)."""
        self.spec = spec
        for hired in self._hired:
            hired.tell("spec", spec.to_dict())

    def _ready(self) -> list[ActorHandle]:
        return [hired for hired in self._hired if hired.ready]

    def idle(self) -> int:
        """How many actors wait for a job; one may always wait for the first actor."""
        return max(0, max(1, len(self._ready())) - len(self.running()))

    def running(self) -> list[Job]:
        """The jobs under way, those among them that are to be tried again."""
        return [*(hired.job for hired in self._hired if hired.job), *self._waiting]

    def submit(self, job: Job) -> None:
        """Give a job to an idle actor."""
        self._waiting.append(job)
        self._hand_out()

    def _hand_out(self) -> None:
        for hired in self._ready():
            if hired.job is None and self._waiting:
                hired.take(self._waiting.popleft())

    def answer(self, number: int, go_on: bool) -> None:
        """Tell the actor that is at a rung with trial `number` whether to go on."""
        for hired in self._hired:
            if hired.job and hired.job.number == number:
                hired.tell("go_on", go_on)

    # What actors say.

    def messages(self, timeout: float | None) -> Iterator[Message]:
        """What actors have to say, waiting at most `timeout` seconds for the first word. Replaces the lost."""
        for hired, word in self._words(self._wait_s(timeout)):
            message = self._take_in(hired, word)
            if message is not None:
                yield message
        for hired in [one for one in self._hired if one.left_s(self.trial_timeout_s) == 0.0]:
            yield self._give_up(hired)
        self._keep_up()

    def _wait_s(self, timeout: float | None) -> float:
        """How long to wait for a word: until a trial's time is over, or a vacant place looks for a node again."""
        limits = [timeout, *(hired.left_s(self.trial_timeout_s) for hired in self._hired)]
        limits.append(WORDS_S if len(self._hired) == self.count else LOOK_S)
        return min(limit for limit in limits if limit is not None)

    def _words(self, wait_s: float) -> Iterator[tuple[ActorHandle, object]]:
        awaited = {hired.ref: hired for hired in self._hired}
        if not awaited:
            time.sleep(wait_s)
            return
        self._await(awaited, 1, wait_s)
        for hired in [awaited[ref] for ref in self._await(awaited, len(awaited), 0)]:
            try:
                words = self._ray.get(hired.ref)
            except self._ray.exceptions.RayError as error:
                words = [Lost(error)]
            else:
                hired.listen()
            yield from ((hired, word) for word in words or () if hired in self._hired)

    def _await(self, refs: Iterable[Any], count: int, wait_s: float) -> list[Any]:
        """Those calls that have an answer, once `count` have one."""
        if not count:
            return []
        try:
            found: list[Any] = self._ray.wait(list(refs), num_returns=count, timeout=wait_s)[0]
        except SystemError as error:
            raise error.__cause__ or error from None  # what a handler of a signal has raised meanwhile
        return found

    def _take_in(self, hired: ActorHandle, word: object) -> Message | None:
        """Act on a word; what the coordinator is to hear of it."""
        hired.hear(word)
        match word:
            case Lost(error):
                return self._lose(hired, error)
            case Progress() | RungReport():
                return word
            case TrialCompleted(number) | TrialPruned(number) | TrialFailed(number):
                self._deaths.pop(number, None)
                return word
            case IgcNasError() if not hired.ready:
                self._refuse(hired.node, word)
            case Calibration() | IgcNasError():
                hired.answer = word
            case str() if word == READY:
                self._stillborn.pop(hired.node.id, None)
                self._worked = True
        return None

    def _give_up(self, hired: ActorHandle) -> TrialFailed:
        """End an actor whose trial has taken too long; another will be in its place."""
        assert self.trial_timeout_s is not None
        failed = hired.too_long(self.trial_timeout_s)
        self._deaths.pop(failed.number, None)
        self._dismiss([hired])
        return failed

    def _lose(self, hired: ActorHandle, error: Exception) -> TrialFailed | None:
        """Do without an actor that is gone: its trial is tried again, or has failed where it has taken three."""
        self._dismiss([hired])
        if not hired.ready:
            self._count_stillborn(hired.node, error)
        if hired.job is None:
            return None
        self._deaths[hired.job.number] += 1
        if self._deaths[hired.job.number] < MOST_DEATHS:
            self._waiting.appendleft(hired.job)
            self.say(f"trial {hired.job.number} is tried again: its evaluator on {hired.node.host} was lost")
            return None
        del self._deaths[hired.job.number]
        reason = f"{MOST_DEATHS} evaluators died of it (the last on {hired.node.host})"
        kind = isinstance(error, self._ray.exceptions.OutOfMemoryError)
        return TrialFailed(hired.job.number, reason, Failure(kind="memory" if kind else "died", where=hired.doing))

    # Who works where.

    def _keep_up(self) -> None:
        """Fill places that are vacant and hand out what waits. Raises where nobody is left to work."""
        now = time.monotonic()
        if len(self._hired) < self.count and now - self._looked >= LOOK_S:
            self._fill()
        self._hand_out()
        if self._ready():
            self._alone = now
        elif not self._hired and self._refused and not self._worked:
            raise self._nobody_fits()
        elif now - self._alone > self.patience_s:
            raise IgcNasError(
                f"no evaluator has been at work on the Ray cluster for {format_seconds(self.patience_s)}",
                "`ray status` shows its nodes and what they are busy with; the same command continues",
            )

    def _fill(self) -> None:
        """Hire actors for the places that are vacant, on the nodes with the fewest of ours, while there is room."""
        self._looked = time.monotonic()
        nodes = [node for node in nodes_of(self._ray, self.device, self.threads) if node.id not in self._refused]
        for place in sorted({*range(self.count)} - {hired.place for hired in self._hired}):
            taken = Counter(hired.node.id for hired in self._hired)
            fit = [node for node in nodes if taken[node.id] < node.room]
            if not fit:
                return
            self._hired.append(self._hire(place, min(fit, key=lambda node: (taken[node.id], -node.room))))

    def _hire(self, place: int, node: Node) -> ActorHandle:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        needs = needs_of(self.device, self.threads)
        handle = self._actor.options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            max_restarts=0,
            scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node.id, soft=False),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}},
        ).remote()
        offer = ActorConfig(
            spec=self.spec.to_dict(),
            versions=versions_here(),
            run=self._run,
            place=place,
            places=self.count,
            device="cpu" if self.device == "cpu" else "cuda:0",  # Ray shows an actor its own GPU only
            threads=self.threads,
            folder=None if self.folder is None else str(self.folder.absolute()),
            coordinator=Process.here(),
        )
        begun = handle.begin.options(concurrency_group=TELLING).remote(offer, self.make)
        return ActorHandle(handle, node, place, begun)

    def _count_stillborn(self, node: Node, error: Exception) -> None:
        """A node on which evaluators cannot be made is left out: at once where that is known, else after a few."""
        self._stillborn[node.id] += 1
        cannot = isinstance(error, self._ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False)
        if cannot or self._stillborn[node.id] >= MOST_DEATHS:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._refuse(node, IgcNasError(f"evaluators die there before they can work: {lines[-1].strip()[:200]}"))

    def _refuse(self, node: Node, error: IgcNasError) -> None:
        """Leave a node out, but for the evaluators that already work there."""
        if node.id not in self._refused:
            self._refused[node.id] = (node.host, error)
            self.say(f"node {node.host} is left out: {error.message}")
        self._dismiss([hired for hired in self._hired if hired.node.id == node.id and not hired.ready])

    def _nobody_fits(self) -> IgcNasError:
        errors = [error for _, error in self._refused.values()]
        kinds = {type(error) for error in errors}
        kind = kinds.pop() if len(kinds) == 1 else StudyError
        reasons = dict.fromkeys(f"{host}: {error.message}" for host, error in self._refused.values())
        return kind(f"no node of the Ray cluster fits the study: {'; '.join([*reasons][:4])}", errors[0].hint)

    def _dismiss_all(self) -> None:
        self._dismiss(list(self._hired), clear=True)

    def _dismiss(self, leaving: list[ActorHandle], *, clear: bool = False) -> None:
        """End actors, and what they have started."""
        for hired in leaving:
            self._hired.remove(hired)
        self._looked = -LOOK_S
        with contextlib.suppress(self._ray.exceptions.RayError):
            gone = [one.handle.leave.options(concurrency_group=TELLING).remote(clear) for one in leaving if one.begun]
            self._await(gone, len(gone), GRACE_S)
        for hired in leaving:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(hired.handle)
