"""bench workers: trials per hour of one worker, two workers, and one worker with two threads, on the same trials."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from igc_nas.analysis.ranking import RESAMPLES
from igc_nas.analysis.words import recipe_words
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.bench.report import Report, Row
from igc_nas.bench.search import Search, cold_folder, worker_conditions
from igc_nas.data.datasets import data_dir, is_synthetic, locate
from igc_nas.engine.events import Ended, Event, Started
from igc_nas.engine.search import Run, search
from igc_nas.errors import IgcNasError
from igc_nas.nn.device import Device, exclusive_mode
from igc_nas.nn.lowering.fastest_dtype import fastest_dtype
from igc_nas.space.budget import Budget
from igc_nas.study.defaults import new_spec
from igc_nas.study.records import TimeBreakdown
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import load_study

KINDS = {"one": (1, 1), "two_workers": (2, 1), "two_threads": (1, 2)}
"""(workers, threads of each); the others are compared with the first."""
BUDGET = Budget(params=2_000_000)
WARM_UP_RECIPE: dict[str, Any] = {"epochs": 1, "train_size": 256, "held_out": 256, "rungs": []}
"""A very short training to fill the timing cache: the forms' times do not depend on these settings."""


@dataclass
class ChunkRun:
    """A chunk of trials evaluated by `workers` workers: start and end of each in seconds, by the architecture's id.

    The first trial of each worker is its warm-up. Time counts from the end of the last warm-up until the first worker
    is idle, as at the end of a chunk one of two workers waits for the other.
    """

    workers: int
    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    spent: dict[str, TimeBreakdown] = field(default_factory=dict)

    def watch(self, event: Event) -> None:
        """Record the start or end of a trial. Raises `IgcNasError` if it failed: chunks are then not comparable."""
        if isinstance(event, Started):
            self.began[arch_id(event.job.arch)] = time.perf_counter()
        if isinstance(event, Ended) and event.trial.arch:
            if event.trial.candidate is None:
                raise IgcNasError(f"trial {event.trial.number} is {event.trial.state}: {event.trial.reason}")
            identity = arch_id(event.trial.arch)
            self.ended[identity] = time.perf_counter()
            if event.trial.spent:
                self.spent[identity] = event.trial.spent

    @property
    def counted(self) -> tuple[str, ...]:
        """The trials after the warm-up, in the order in which they began."""
        return tuple(self.began)[self.workers :]

    @property
    def window(self) -> tuple[float, float]:
        """(start, end) of the time in which all workers were warm and busy."""
        warm = max(self.ended[identity] for identity in tuple(self.began)[: self.workers])
        return warm, sorted(self.ended.values())[-self.workers]

    @property
    def window_s(self) -> float:
        """Length of `window` in seconds."""
        start, end = self.window
        return end - start

    def trial_s(self, identity: str) -> float:
        """Seconds of one trial."""
        return self.ended[identity] - self.began[identity]

    def share_in_window(self, identity: str) -> float:
        """The share of a trial that lies within the window."""
        start, end = self.window
        within = min(self.ended[identity], end) - max(self.began[identity], start)
        return max(0.0, within) / self.trial_s(identity)

    def work_s(self, baseline: ChunkRun) -> float:
        """Seconds that `baseline` needed for the work done within the window."""
        return sum(self.share_in_window(identity) * baseline.trial_s(identity) for identity in self.counted)


Round = Mapping[str, ChunkRun]
"""One chunk of trials, evaluated by each kind."""


def bench_workers(
    device: Device,
    trials: int = 24,
    chunk: int = 4,
    dataset: str = "auto",
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    space: str = "igc_cifar",
    run_search: Search = search,
) -> Report:
    """`trials` architectures of `space` within 2 M parameters, evaluated by each kind in rounds of at least `chunk`.

    All kinds evaluate the same trials, without pruning, with a timing cache that is filled before. The ratio of a row
    is the speed of two workers over that of one.
    """
    rounds: list[Round] = []
    if mode := exclusive_mode((device,)):
        say(f"{mode}: its two workers need NVIDIA's MPS")
    with cold_folder() as folder:
        spec = _spec(device, dataset, seed, space)
        archs = _architectures(spec, trials + 2, seed)
        small, rest = archs[:2], archs[2:]
        spec = _warmed(spec, archs, folder, device, run_search)
        say("the timing cache is filled")
        for part in np.array_split(np.arange(trials), max(1, trials // chunk)):
            archs = [rest[i] for i in part]
            warmed_up = {kind: (*small[:workers], *archs) for kind, (workers, _) in KINDS.items()}
            rounds.append({kind: _run_chunk(spec, kind, warmed_up[kind], folder, device, run_search) for kind in KINDS})
            say(f"{part[-1] + 1} trials each: {speedup(rounds, 'two_workers'):.2f}x with two workers")
    return _report(rounds, spec, device)


def _spec(device: Device, dataset: str, seed: int, space: str) -> StudySpec:
    return new_spec(
        locate(dataset, data_dir(None)),
        device.name,
        device.kind,
        space=space,
        budget=BUDGET,
        sampler="random",
        seed=seed,
        prune_below=0.0,
        recipe={"dtype": fastest_dtype(device).dtype},
        latency={"runtime": device.deployment_runtime},
    )


def _architectures(spec: StudySpec, count: int, seed: int) -> list[ArchConfig]:
    """`count` distinct architectures of all sizes and units; the two with the fewest MACs, for the warm-up, first."""
    rng = np.random.default_rng(seed)
    found: dict[str, ArchConfig] = {}
    while len(found) < count:
        arch = spec.feasible.draw_stratified(rng)
        found.setdefault(arch_id(arch), arch)
    small = sorted(found, key=lambda identity: cost_of(found[identity]).macs)[:2]
    return [found[identity] for identity in dict.fromkeys((*small, *found))]


def _warmed(
    spec: StudySpec, archs: Sequence[ArchConfig], folder: Path, device: Device, run_search: Search
) -> StudySpec:
    """The spec with its latency scale. Fills the timing cache for these architectures and both numbers of threads."""
    changes = {name: min(most, getattr(spec.recipe, name)) for name, most in WARM_UP_RECIPE.items() if name != "rungs"}
    short = spec.model_copy(update={"recipe": spec.recipe.model_copy(update=changes | {"rungs": ()})})
    for threads in sorted({threads for _, threads in KINDS.values()}, reverse=True):
        place = folder / f"warm-up-{threads}"
        run = Run(place, trials=len(archs), threads=threads, devices=(device.torch_name,), enqueue=tuple(archs))
        for _ in run_search(short, run):
            pass
    scaled = load_study(place).spec
    return spec.model_copy(update={"reference_ms": scaled.reference_ms, "bounds": scaled.bounds})


def _run_chunk(
    spec: StudySpec, kind: str, archs: Sequence[ArchConfig], folder: Path, device: Device, run_search: Search
) -> ChunkRun:
    workers, threads = KINDS[kind]
    done = ChunkRun(workers)
    place = Path(tempfile.mkdtemp(prefix=kind, dir=folder))
    run = Run(
        place / "study",
        trials=len(archs),
        workers=workers,
        threads=threads,
        devices=(device.torch_name,),
        enqueue=tuple(archs),
    )
    for _ in run_search(spec, run, on_event=done.watch):
        pass
    if done.window_s <= 0:
        raise IgcNasError("one worker was done before the other was warm", "raise --chunk")
    return done


def speed(rounds: Sequence[Round], kind: str) -> float:
    """Work done per second, in seconds of one worker's trials (below 1 for one worker: it waits between trials)."""
    work = sum(each[kind].work_s(each["one"]) for each in rounds)
    return work / sum(each[kind].window_s for each in rounds)


def speedup(rounds: Sequence[Round], kind: str) -> float:
    """Trials per hour over those of one worker."""
    return speed(rounds, kind) / speed(rounds, "one")


def trials_per_hour(rounds: Sequence[Round], kind: str) -> float:
    """Trials per hour, for the mix of trials of these rounds."""
    took = [each["one"].trial_s(identity) for each in rounds for identity in each["one"].counted]
    return 3600 * len(took) / sum(took) * speed(rounds, kind)


def _with_interval(rounds: Sequence[Round], of: Callable[[Sequence[Round]], float]) -> Row:
    """A statistic with its 95 % percentile bootstrap interval over rounds; no interval for a single round."""
    found: dict[str, Any] = {"value": of(rounds), "low": None, "high": None}
    if len(rounds) > 1:
        rng = np.random.default_rng(0)
        samples = [of([rounds[i] for i in rng.integers(len(rounds), size=len(rounds))]) for _ in range(RESAMPLES)]
        found["low"], found["high"] = (float(q) for q in np.quantile(samples, [0.025, 0.975]))
    return found


def activity_shares(rounds: Sequence[Round], kind: str) -> dict[str, float]:
    """Share of a trial's time by activity."""
    spent = [each[kind].spent[i] for each in rounds for i in each[kind].counted if i in each[kind].spent]
    seconds = {name: sum(getattr(one, name) for one in spent) for name in TimeBreakdown.model_fields}
    whole = sum(seconds.values())
    return {name.removesuffix("_s"): round(s / whole, 4) for name, s in seconds.items()} if whole else {}


def _report(rounds: Sequence[Round], spec: StudySpec, device: Device) -> Report:
    extra: dict[str, Any] = {
        f"{kind}_trials_per_hour": _with_interval(rounds, lambda some, kind=kind: trials_per_hour(some, kind))  # type: ignore[misc]
        for kind in KINDS
    }
    for kind in ("two_workers", "two_threads"):
        extra[f"{kind}_ratio"] = _with_interval(rounds, lambda some, kind=kind: speedup(some, kind))  # type: ignore[misc]
    shares = {kind: activity_shares(rounds, kind) for kind in KINDS}
    extra["shares"] = shares
    extra["measuring_share"] = sum(shares["one"].get(name, 0.0) for name in ("prepare", "measure", "choose"))
    conditions = {
        **worker_conditions(device),
        "data": spec.dataset + (" (SYNTHETIC)" if is_synthetic(spec.dataset) else ""),
        "recipe": recipe_words(spec.recipe),
    }
    title = "workers: trials by two one-thread workers, and by one two-thread worker, against one one-thread worker"
    return Report(title, tuple(_row(each, place) for place, each in enumerate(rounds, 1)), conditions, extra=extra)


def _row(each: Round, place: int) -> Row:
    return {
        "name": f"round {place}",
        "group": "workers",
        "trials": len(each["one"].counted),
        **{f"{kind}_s": done.window_s for kind, done in each.items()},
        "threads_ratio": speedup([each], "two_threads"),
        "ratio": speedup([each], "two_workers"),
    }
