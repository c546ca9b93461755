"""Evaluators on a Ray cluster: each is an actor on some node, with the CPUs and the GPU, or the share of
one, that a trial needs.

Nodes that do not fit the study (see `igc_nas.engine.ray.actor`) are not used, which is reported once: latencies are
measured on the one device that the study names. Evaluators on the same node share its device by a lock (see
`igc_nas.engine.device_lock`); nodes do not wait for each other.

A trial whose evaluator is lost, be it the process or the whole node, is retried on another one; it fails when it has
lost three. A trial that ends with an error fails at once. Nodes that join are used while there are fewer evaluators
than asked for.

The study's folder is the coordinator's. A node that sees the same folder (a shared file system) keeps the forms of
trainings there; on other nodes they are fixed for the lifetime of the evaluator.
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
    Calibrate,
    MakeEvaluator,
    Message,
    Request,
    RungAnswer,
    RungReport,
    RunJob,
    SetSpec,
    TrialCompleted,
    TrialFailed,
    TrialPruned,
    WorkerHandle,
)
from igc_nas.engine.process_executor import environment
from igc_nas.engine.ray.actor import Actor, ActorConfig, versions_here
from igc_nas.engine.ray.nodes import Node, connected, needs_of, no_room, nodes_of
from igc_nas.errors import IgcNasError, StudyError
from igc_nas.io.units import format_seconds
from igc_nas.study.process import Process
from igc_nas.study.records import Failure
from igc_nas.study.spec import Calibration, StudySpec

RECEIVE_S = 10.0
"""Longest time that a call for messages waits in an actor, in seconds."""
PLACEMENT_S = 2.0
"""Seconds between two attempts to place an actor."""
GATHER_S = 60.0
"""How long the calibration waits for actors that are starting, which would disturb it."""
GRACE_S = 3.0
MOST_DEATHS = 3
"""The number of evaluators that a trial may lose, and that may die in a row on a node before they are ready."""
SEND, RECEIVE = "send", "receive"
"""Concurrency groups: calls of different groups do not wait for each other."""


@dataclass(frozen=True)
class Lost:
    """An actor that has died or cannot be reached, with Ray's error."""

    error: Exception


@dataclass(eq=False)
class ActorHandle(WorkerHandle):
    """An actor, as the executor tracks it. `ref` is the pending call."""

    actor: Any
    node: Node
    index: int
    ref: Any
    is_placed: bool = False
    """Whether Ray has started it on its node."""
    calibration: Calibration | IgcNasError | None = None
    """The answer to `Calibrate`."""

    def send(self, request: Request) -> None:
        """Send a request. That an actor has died is noticed when its messages are received."""
        self.actor.request.options(concurrency_group=SEND).remote(request)

    def receive(self) -> None:
        """Call for its next messages."""
        self.is_placed = True
        self.ref = self.actor.messages.options(concurrency_group=RECEIVE).remote(RECEIVE_S)

    def submit(self, job: Job) -> None:
        """Start a job."""
        self.assign(job)
        self.send(RunJob(job))


@dataclass
class RayExecutor:
    """An `Executor` of at most `count` actors for a study, each on a CPU or a GPU (`device`, torch's name).

    `per_gpu` of them share a GPU.
    """

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
    """A trial that takes longer has failed, and its actor is killed; None: no limit."""
    notify: Callable[[str], None] = lambda _: None
    """Called with a line for the user about nodes that are not used and evaluators that are lost."""
    per_gpu: int = 1
    deterministic: bool = False
    """Whether results on a GPU are equal bit for bit."""
    max_idle_s: float = 180.0
    """Seconds without any ready evaluator after which the search ends."""
    _handles: list[ActorHandle] = field(default_factory=list)
    _pending: deque[Job] = field(default_factory=deque)
    _deaths: Counter[int] = field(default_factory=Counter)
    """The number of evaluators that each running trial has lost."""
    _stillborn: Counter[str] = field(default_factory=Counter)
    """The number of evaluators that have died on each node since one was ready there."""
    _excluded: dict[str, tuple[str, IgcNasError]] = field(default_factory=dict)
    """Nodes that are not used, by id: host and reason."""
    _was_ready: bool = False
    """Whether any evaluator has ever been ready."""
    _graphs: bool = True
    """Whether new actors train by CUDA graphs: not after a trial for which CUDA recorded none."""

    def __enter__(self) -> Self:
        self._run_id, self._placed_at, self._ready_at = uuid.uuid4().hex, -PLACEMENT_S, time.monotonic()
        self._needs = needs_of(self.device, self.threads, self.per_gpu)
        with contextlib.ExitStack() as stack:
            self._ray = stack.enter_context(connected(self.address))
            self._actor_class = self._ray.remote(concurrency_groups={SEND: 1, RECEIVE: 1})(Actor)
            stack.callback(self._stop_all)
            self._place_actors()
            if not self._handles:
                raise no_room(self._ray, self._needs)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stack.close()

    def calibrate(self) -> Calibration:
        """Measure the reference and the ends of the latency scale in one actor, while the others are idle."""
        for _ in range(MOST_DEATHS):
            self._wait_until_ready()
            handle = next(one for one in self._handles if one.ready)
            handle.send(Calibrate())
            while handle in self._handles and handle.calibration is None:
                self._run_for(PLACEMENT_S)
            if isinstance(handle.calibration, Calibration):
                return handle.calibration
            if handle.calibration is not None:
                raise handle.calibration
        raise IgcNasError(f"evaluators died while they measured the latency scale, {MOST_DEATHS} times in a row")

    def _wait_until_ready(self) -> None:
        """Wait until one actor is ready, and at most `GATHER_S` seconds until all are."""
        until = time.monotonic() + GATHER_S
        while not self.ready() or (len(self.ready()) < len(self._handles) and time.monotonic() < until):
            self._run_for(PLACEMENT_S)

    def _run_for(self, seconds: float) -> None:
        """Handle messages for some seconds in which no trial runs."""
        for _ in self.messages(seconds):
            pass

    def set_spec(self, spec: StudySpec) -> None:
        """Replace the spec of every actor, after the calibration."""
        self.spec = spec
        for handle in self._handles:
            handle.send(SetSpec(spec.to_dict()))

    def ready(self) -> list[ActorHandle]:
        """The actors whose evaluator is ready."""
        return [handle for handle in self._handles if handle.ready]

    def idle(self) -> int:
        """The number of ready actors without a job; 1 while none is ready, for a job that waits for the first one."""
        return max(0, max(1, len(self.ready())) - len(self.running()))

    def running(self) -> list[Job]:
        """The jobs that have not ended, including those that will be retried."""
        return [*(handle.job for handle in self._handles if handle.job), *self._pending]

    def submit(self, job: Job) -> None:
        """Give a job to an idle actor."""
        self._pending.append(job)
        self._assign_jobs()

    def _assign_jobs(self) -> None:
        for handle in self.ready():
            if handle.job is None and self._pending:
                handle.submit(self._pending.popleft())

    def answer(self, number: int, should_continue: bool) -> None:
        """Answer the `RungReport` of trial `number`."""
        for handle in self._handles:
            if handle.job and handle.job.number == number:
                handle.send(RungAnswer(should_continue))

    # Messages of actors.

    def messages(self, timeout: float | None) -> Iterator[Message]:
        """The messages of actors, waiting at most `timeout` seconds for the first one. Replaces lost actors."""
        for handle, received in self._receive(self._wait_s(timeout)):
            message = self._handle(handle, received)
            if message is not None:
                yield message
        for handle in [one for one in self._handles if one.left_s(self.trial_timeout_s) == 0.0]:
            yield self._time_out(handle)
        self._maintain()

    def _wait_s(self, timeout: float | None) -> float:
        """How long to wait for a message: until a trial times out, or an actor is to be placed."""
        limits = [timeout, *(handle.left_s(self.trial_timeout_s) for handle in self._handles)]
        limits.append(RECEIVE_S if len(self._handles) == self.count else PLACEMENT_S)
        return min(limit for limit in limits if limit is not None)

    def _receive(self, wait_s: float) -> Iterator[tuple[ActorHandle, object]]:
        awaited = {handle.ref: handle for handle in self._handles}
        if not awaited:
            time.sleep(wait_s)
            return
        self._await(awaited, 1, wait_s)
        for handle in [awaited[ref] for ref in self._await(awaited, len(awaited), 0)]:
            try:
                received = self._ray.get(handle.ref)
            except self._ray.exceptions.RayError as error:
                received = [Lost(error)]
            else:
                handle.receive()
            yield from ((handle, message) for message in received or () if handle in self._handles)

    def _await(self, refs: Iterable[Any], count: int, wait_s: float) -> list[Any]:
        """The calls that have ended, once `count` of them have."""
        if not count:
            return []
        try:
            found: list[Any] = self._ray.wait(list(refs), num_returns=count, timeout=wait_s)[0]
        except SystemError as error:
            raise error.__cause__ or error from None  # raised by a signal handler meanwhile
        return found

    def _handle(self, handle: ActorHandle, message: object) -> Message | None:
        """Act on a message of an actor. Returns the message for the coordinator, if there is one."""
        handle.update(message)
        match message:
            case Lost(error):
                return self._lose(handle, error)
            case Progress() | RungReport():
                return message
            case TrialCompleted(number) | TrialPruned(number) | TrialFailed(number):
                self._deaths.pop(number, None)
                if isinstance(message, TrialFailed):
                    self._graphs = self._graphs and not message.recorded_no_graph
                return message
            case IgcNasError() if not handle.ready:
                self._exclude(handle.node, message)
            case Calibration() | IgcNasError():
                handle.calibration = message
            case str() if message == READY:
                self._stillborn.pop(handle.node.id, None)
                self._was_ready = True
        return None

    def _time_out(self, handle: ActorHandle) -> TrialFailed:
        """Kill an actor whose trial has taken too long; another one replaces it."""
        assert self.trial_timeout_s is not None
        failed = handle.timed_out(self.trial_timeout_s)
        self._deaths.pop(failed.number, None)
        self._stop([handle])
        return failed

    def _lose(self, handle: ActorHandle, error: Exception) -> TrialFailed | None:
        """Remove a lost actor. Its trial is retried, or has failed if it has lost `MOST_DEATHS` of them."""
        self._stop([handle])
        if not handle.ready:
            self._count_stillborn(handle.node, error)
        if handle.job is None:
            return None
        self._deaths[handle.job.number] += 1
        if self._deaths[handle.job.number] < MOST_DEATHS:
            self._pending.appendleft(handle.job)
            self.notify(f"trial {handle.job.number} is retried: its evaluator on {handle.node.host} was lost")
            return None
        del self._deaths[handle.job.number]
        reason = f"{MOST_DEATHS} evaluators died of it (the last on {handle.node.host})"
        kind = isinstance(error, self._ray.exceptions.OutOfMemoryError)
        return TrialFailed(handle.job.number, reason, Failure(kind="memory" if kind else "died", where=handle.step))

    # Placement.

    def _maintain(self) -> None:
        """Place missing actors and assign waiting jobs. Raises if no node fits, or none is ready for too long."""
        now = time.monotonic()
        if len(self._handles) < self.count and now - self._placed_at >= PLACEMENT_S:
            self._place_actors()
        self._assign_jobs()
        if self.ready():
            self._ready_at = now
        elif not self._handles and self._excluded and not self._was_ready:
            raise self._no_node_fits()
        elif now - self._ready_at > self.max_idle_s:
            raise IgcNasError(
                f"no evaluator has been at work on the Ray cluster for {format_seconds(self.max_idle_s)}",
                "`ray status` shows its nodes and what they are busy with; the same command continues",
            )

    def _place_actors(self) -> None:
        """Start the missing actors, each on the node with the fewest of ours that has room."""
        self._placed_at = time.monotonic()
        nodes = [node for node in nodes_of(self._ray, self._needs) if node.id not in self._excluded]
        for index in sorted({*range(self.count)} - {handle.index for handle in self._handles}):
            taken = Counter(handle.node.id for handle in self._handles)
            fit = [node for node in nodes if taken[node.id] < node.capacity]
            if not fit:
                return
            self._handles.append(self._start(index, min(fit, key=lambda node: (taken[node.id], -node.capacity))))

    def _start(self, index: int, node: Node) -> ActorHandle:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        actor = self._actor_class.options(
            num_cpus=self._needs["CPU"],
            num_gpus=self._needs.get("GPU", 0),
            max_restarts=0,
            scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node.id, soft=False),
            runtime_env={"env_vars": environment(self.threads, self.deterministic, graphs=self._graphs)},
        ).remote()
        config = ActorConfig(
            spec=self.spec.to_dict(),
            versions=versions_here(),
            run=self._run_id,
            index=index,
            count=self.count,
            device="cpu" if self.device == "cpu" else "cuda:0",  # Ray shows an actor its own GPU only
            threads=self.threads,
            deterministic=self.deterministic,
            folder=None if self.folder is None else str(self.folder.absolute()),
            coordinator=Process.here(),
        )
        started = actor.start.options(concurrency_group=SEND).remote(config, self.make)
        return ActorHandle(actor, node, index, started)

    def _count_stillborn(self, node: Node, error: Exception) -> None:
        """Exclude a node where evaluators cannot start: at once if Ray says so, else after `MOST_DEATHS` of them."""
        self._stillborn[node.id] += 1
        cannot = isinstance(error, self._ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False)
        if cannot or self._stillborn[node.id] >= MOST_DEATHS:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._exclude(node, IgcNasError(f"evaluators die there before they are ready: {lines[-1].strip()[:200]}"))

    def _exclude(self, node: Node, error: IgcNasError) -> None:
        """Place no more actors on a node. Those that are ready there stay."""
        if node.id not in self._excluded:
            self._excluded[node.id] = (node.host, error)
            self.notify(f"node {node.host} is not used: {error.message}")
        self._stop([handle for handle in self._handles if handle.node.id == node.id and not handle.ready])

    def _no_node_fits(self) -> IgcNasError:
        errors = [error for _, error in self._excluded.values()]
        kinds = {type(error) for error in errors}
        kind = kinds.pop() if len(kinds) == 1 else StudyError
        reasons = dict.fromkeys(f"{host}: {error.message}" for host, error in self._excluded.values())
        return kind(f"no node of the Ray cluster fits the study: {'; '.join([*reasons][:4])}", errors[0].hint)

    def _stop_all(self) -> None:
        self._stop(list(self._handles), clear=True)

    def _stop(self, handles: list[ActorHandle], *, clear: bool = False) -> None:
        """Stop actors, and what they have started."""
        for handle in handles:
            self._handles.remove(handle)
        self._placed_at = -PLACEMENT_S
        with contextlib.suppress(self._ray.exceptions.RayError):
            stopped = [h.actor.stop.options(concurrency_group=SEND).remote(clear) for h in handles if h.is_placed]
            self._await(stopped, len(stopped), GRACE_S)
        for handle in handles:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(handle.actor)
