"""bench workers: trials per hour of one worker, of two, and of one with two threads, on the same trials in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.bench.report import Report, Row
from igc_nas.bench.search import cold_cache
from igc_nas.data.datasets import data_dir, is_synthetic, locate
from igc_nas.engine.events import Ended, Event, Started
from igc_nas.engine.search import Run, search
from igc_nas.errors import IgcNasError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.nn.device import Device
from igc_nas.space.budget import Budget
from igc_nas.study.defaults import new_spec
from igc_nas.study.records import TimeBreakdown
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import load_study

KINDS = {"one": (1, 1), "two_workers": (2, 1), "two_threads": (1, 2)}
"""(workers, threads of each); the first is what the others are compared with."""
BUDGET = Budget(params=2_000_000)
WARMED: dict[str, Any] = {"epochs": 1, "train_size": 256, "held_out": 256, "rungs": []}
"""A training so short that a trial is hardly more than measuring and choosing; the forms' times are the same."""


@dataclass
class Shift:
    """What some workers did with some trials: when each began and ended, by the architecture's id.

    The first trial of each worker warms its process up. It counts from when these have ended, and until the first
    worker has nothing left to do: with two workers one is always the last.
    """

    workers: int
    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    spent: dict[str, TimeBreakdown] = field(default_factory=dict)

    def watch(self, event: Event) -> None:
        """Note a begin or an end. Raises `IgcNasError` for a trial that failed: there is nothing to compare then."""
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
        """The trials that are not to warm up, in the order in which they began."""
        return tuple(self.began)[self.workers :]

    @property
    def window(self) -> tuple[float, float]:
        """From when to when all workers were at work, warm."""
        warm = max(self.ended[identity] for identity in tuple(self.began)[: self.workers])
        return warm, sorted(self.ended.values())[-self.workers]

    @property
    def window_s(self) -> float:
        """Seconds of it."""
        start, end = self.window
        return end - start

    def took_s(self, identity: str) -> float:
        """Seconds of one trial."""
        return self.ended[identity] - self.began[identity]

    def done(self, identity: str) -> float:
        """The share of a trial that lies within the window."""
        start, end = self.window
        within = min(self.ended[identity], end) - max(self.began[identity], start)
        return max(0.0, within) / self.took_s(identity)

    def work_s(self, standard: Shift) -> float:
        """Seconds that `standard` took for what was done within the window."""
        return sum(self.done(identity) * standard.took_s(identity) for identity in self.counted)


Turn = Mapping[str, Shift]
"""The shifts of one chunk of trials, by kind."""


def bench_workers(
    device: Device,
    trials: int = 24,
    chunk: int = 4,
    dataset: str = "auto",
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """`trials` architectures of igc_cifar within 2 M parameters, at least `chunk` of them by each kind in turns.

    Stopping is off, the trials are the same. What the forms' parts take is known beforehand to all alike. A row's ratio
    is two workers' work in a second against one worker's.
    """
    turns: list[Turn] = []
    with tempfile.TemporaryDirectory(prefix="igc-nas-bench-") as name, cold_cache(Path(name) / "cache"):
        folder = Path(name)
        spec = _spec(device, dataset, seed)
        archs = _architectures(spec, trials + 2, seed)
        small, rest = archs[:2], archs[2:]
        spec = _warmed(spec, archs, folder, device)
        say("the forms' times are known")
        for part in np.array_split(np.arange(trials), max(1, trials // chunk)):
            archs = [rest[i] for i in part]
            turns.append(
                {kind: _shift(spec, kind, (*small[: KINDS[kind][0]], *archs), folder, device) for kind in KINDS}
            )
            say(f"{part[-1] + 1} trials each: {_ratio(turns, 'two_workers'):.2f}x with two workers")
    return _report(turns, spec, device)


def _spec(device: Device, dataset: str, seed: int) -> StudySpec:
    info, recipe = locate(dataset, data_dir(None)), {"dtype": device.fast_dtype}
    return new_spec(
        info, device.name, device.kind, budget=BUDGET, sampler="random", seed=seed, prune_below=0.0, recipe=recipe
    )


def _architectures(spec: StudySpec, count: int, seed: int) -> list[ArchConfig]:
    """Different ones of all sizes and units; the two of fewest MACs, to warm up with, first."""
    rng = np.random.default_rng(seed)
    found: dict[str, ArchConfig] = {}
    while len(found) < count:
        arch = spec.feasible.draw_stratified(rng)
        found.setdefault(arch_id(arch), arch)
    small = sorted(found, key=lambda identity: cost_of(found[identity]).macs)[:2]
    return [found[identity] for identity in dict.fromkeys((*small, *found))]


def _warmed(spec: StudySpec, archs: Sequence[ArchConfig], folder: Path, device: Device) -> StudySpec:
    """The spec with its latency scale; all forms of the architectures are timed, for either number of threads."""
    changes = {name: min(most, getattr(spec.recipe, name)) for name, most in WARMED.items() if name != "rungs"}
    short = spec.model_copy(update={"recipe": spec.recipe.model_copy(update=changes | {"rungs": ()})})
    for threads in sorted({threads for _, threads in KINDS.values()}, reverse=True):
        place = folder / f"warm-up-{threads}"
        run = Run(place, trials=len(archs), threads=threads, devices=(device.torch_name,), enqueue=tuple(archs))
        for _ in search(short, run):
            pass
    scaled = load_study(place).spec
    return spec.model_copy(update={"reference_ms": scaled.reference_ms, "bounds": scaled.bounds})


def _shift(spec: StudySpec, kind: str, archs: Sequence[ArchConfig], folder: Path, device: Device) -> Shift:
    workers, threads = KINDS[kind]
    shift = Shift(workers)
    place = Path(tempfile.mkdtemp(prefix=kind, dir=folder))
    run = Run(
        place / "study",
        trials=len(archs),
        workers=workers,
        threads=threads,
        devices=(device.torch_name,),
        enqueue=tuple(archs),
    )
    for _ in search(spec, run, on_event=shift.watch):
        pass
    if shift.window_s <= 0:
        raise IgcNasError("one worker was done before the other was warm", "raise --chunk")
    return shift


def _speed(turns: Sequence[Turn], kind: str) -> float:
    """Seconds of one worker's trials that are done in a second; of its own less than one, by what is between trials."""
    work = sum(turn[kind].work_s(turn["one"]) for turn in turns)
    return work / sum(turn[kind].window_s for turn in turns)


def _ratio(turns: Sequence[Turn], kind: str) -> float:
    """How many times the trials of one worker a kind does in an hour."""
    return _speed(turns, kind) / _speed(turns, "one")


def _per_hour(turns: Sequence[Turn], kind: str) -> float:
    """Trials an hour, of the mixture that all were given."""
    took = [turn["one"].took_s(identity) for turn in turns for identity in turn["one"].counted]
    return 3600 * len(took) / sum(took) * _speed(turns, kind)


def _with_interval(turns: Sequence[Turn], of: Callable[[Sequence[Turn]], float], resamples: int = 1000) -> Row:
    """A number with its 95 % percentile bootstrap interval over turns; of a single turn there is none."""
    found: dict[str, Any] = {"value": of(turns), "low": None, "high": None}
    if len(turns) > 1:
        rng = np.random.default_rng(0)
        samples = [of([turns[i] for i in rng.integers(len(turns), size=len(turns))]) for _ in range(resamples)]
        found["low"], found["high"] = (float(q) for q in np.quantile(samples, [0.025, 0.975]))
    return found


def _shares(turns: Sequence[Turn], kind: str) -> dict[str, float]:
    """Where the time of a trial goes."""
    spent = [turn[kind].spent[i] for turn in turns for i in turn[kind].counted if i in turn[kind].spent]
    seconds = {name: sum(getattr(one, name) for one in spent) for name in TimeBreakdown.model_fields}
    whole = sum(seconds.values())
    return {name.removesuffix("_s"): round(s / whole, 4) for name, s in seconds.items()} if whole else {}


def _report(turns: Sequence[Turn], spec: StudySpec, device: Device) -> Report:
    extra: dict[str, Any] = {
        f"{kind}_trials_per_hour": _with_interval(turns, lambda some, kind=kind: _per_hour(some, kind))  # type: ignore[misc]
        for kind in KINDS
    }
    for kind in ("two_workers", "two_threads"):
        extra[f"{kind}_ratio"] = _with_interval(turns, lambda some, kind=kind: _ratio(some, kind))  # type: ignore[misc]
    shares = {kind: _shares(turns, kind) for kind in KINDS}
    extra["shares"] = shares
    extra["measuring_share"] = sum(shares["one"].get(name, 0.0) for name in ("prepare", "measure", "choose"))
    conditions = {
        **conditions_of(device).model_dump(exclude_none=True),
        "data": spec.dataset + (" (SYNTHETIC)" if is_synthetic(spec.dataset) else ""),
        "recipe": f"{spec.recipe.dtype}, {spec.recipe.epochs} epochs of {spec.recipe.train_size} images",
    }
    title = "workers: trials by two one-thread workers, and by one two-thread worker, against one one-thread worker"
    return Report(title, tuple(_row(turn, place) for place, turn in enumerate(turns, 1)), conditions, extra=extra)


def _row(turn: Turn, place: int) -> Row:
    return {
        "name": f"turn {place}",
        "group": "workers",
        "trials": len(turn["one"].counted),
        **{f"{kind}_s": shift.window_s for kind, shift in turn.items()},
        "threads_ratio": _ratio([turn], "two_threads"),
        "ratio": _ratio([turn], "two_workers"),
    }
