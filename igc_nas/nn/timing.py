"""Timing that cancels drift: candidates take turns, so that what slows the machine for a while slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

Name = TypeVar("Name")


def round_robin(
    runs: Mapping[Name, Callable[[], float]], rounds: int, cap_s: float, warm_up: int = 1
) -> dict[Name, list[float]]:
    """Milliseconds of each run in `rounds` rounds; each run returns its own time (see `timed`).

    Rounds end early where `cap_s` seconds are over, but not before the second one.
    """
    for run in runs.values():
        for _ in range(warm_up):
            run()
    samples: dict[Name, list[float]] = {name: [] for name in runs}
    until = time.perf_counter() + cap_s
    for done in range(rounds):
        if done >= 2 and time.perf_counter() > until:
            break
        for name, run in runs.items():
            samples[name].append(run())
    return samples


def raced(
    runs: Mapping[Name, Callable[[], float]], rounds: int, cap_s: float, hopeless: float = 1.5
) -> dict[Name, float]:
    """Median milliseconds of each run in interleaved rounds.

    Each warms up by one run and is timed twice; those that take more than `hopeless` times the least then keep that
    time and do not enter the rounds, nor does one that is left alone.
    """
    for run in runs.values():
        run()
    found = {name: min(run(), run()) for name, run in runs.items()}
    least = min(found.values())
    rivals = {name: run for name, run in runs.items() if found[name] <= hopeless * least}
    if len(rivals) == 1:
        return found
    times = {name: median(samples) for name, samples in round_robin(rivals, rounds, cap_s, warm_up=0).items()}
    worst = hopeless * min(times.values())  # who is out stays out, also where the machine was faster then
    return {name: times.get(name, max(early, worst)) for name, early in found.items()}


def timed(run: Callable[[], object], synchronize: Callable[[], None] = lambda: None) -> Callable[[], float]:
    """`run` as a function that returns its milliseconds; `synchronize` waits for what it has queued on a device."""

    def once() -> float:
        started = time.perf_counter()
        run()
        synchronize()
        return (time.perf_counter() - started) * 1000

    return once


def warmed(run: Callable[[], object], synchronize: Callable[[], None] = lambda: None) -> Callable[[], float]:
    """As `timed`, after a run that is not timed: candidates in turns empty each other's caches."""
    once = timed(run, synchronize)

    def second() -> float:
        once()
        return once()

    return second


def median(samples: list[float]) -> float:
    """The median, as a float."""
    return float(np.median(samples))


def median_interval(samples: list[float], level: float = 0.95, resamples: int = 1000) -> tuple[float, float]:
    """Percentile bootstrap interval of the median (Efron 1979), from a fixed seed."""
    rng = np.random.default_rng(0)
    values = np.asarray(samples)
    medians = np.median(values[rng.integers(len(values), size=(resamples, len(values)))], axis=1)
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
