"""Timing that cancels drift: alternatives take turns, so that a slow phase of the machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import TypeVar

import torch

Name = TypeVar("Name")
Timer = Callable[[], float]
"""Runs something once and returns its milliseconds (see `timed`)."""

NEVER_MS = 1e9
"""The time of a run that cannot be used, as the device has no memory for it. Finite, as caches hold finite times."""
CAPPED_ROUNDS = 3
"""Rounds that a race has even where they take longer than `cap_s`: the median of three survives one outlier."""
PAIRED_ROUNDS, SELDOM = 5, 0.1
"""After `PAIRED_ROUNDS`, an alternative is dropped if it tied or beat the leader in less than this share of rounds."""
LEAST_FOR_INTERVAL = 6
"""With fewer samples not even (minimum, maximum) covers the median with 95 %: 1 - 2 / 2**5 is 0.94."""


def round_robin(
    runs: Mapping[Name, Timer],
    rounds: int,
    cap_s: float,
    warm_up: int = 1,
    least: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Milliseconds of each run in `rounds` rounds; no new round starts after `cap_s` seconds and `least` rounds."""
    _warm_up(runs, warm_up)
    samples: dict[Name, list[float]] = {name: [] for name in runs}
    until = clock() + cap_s
    for done in range(rounds):
        if done >= least and clock() > until:
            break
        for name, run in runs.items():
            samples[name].append(run())
    return samples


@dataclass(frozen=True)
class Race:
    """Finds the fastest of several alternatives in rounds; those that cannot win are dropped on the way.

    After `drop_after` rounds an alternative is dropped if it takes more than `drop_above` times as long as the leader;
    after five rounds also if it is slower than the leader by more than `tie` in nearly every round. The race ends after
    `rounds` rounds, when one alternative is left, or after `cap_s` seconds (but not before the third round). Times that
    differ by at most the share `tie` count as equal.
    """

    rounds: int
    cap_s: float
    drop_above: float = 1.5
    tie: float = 0.02
    drop_after: int = 3
    warm_up: int = 1
    clock: Callable[[], float] = time.perf_counter

    def run(self, runs: Mapping[Name, Timer]) -> dict[Name, list[float]]:
        """Milliseconds of each run, round by round, after `warm_up` runs of each that are not recorded.

        Lists of dropped runs are shorter. The first entries of all lists are of the same rounds.
        """
        _warm_up(runs, self.warm_up)
        samples: dict[Name, list[float]] = {name: [] for name in runs}
        left = dict(runs)
        until = self.clock() + self.cap_s
        for done in range(self.rounds):
            if done >= self.drop_after:
                leader = samples[min(left, key=lambda name: typical(samples[name]))]
                left = {name: run for name, run in left.items() if self._may_win(samples[name], leader)}
                if len(left) == 1:
                    break
            if done >= CAPPED_ROUNDS and self.clock() > until:
                break
            for name, run in left.items():
                samples[name].append(run())
        return samples

    def _may_win(self, times: list[float], leader: list[float]) -> bool:
        if typical(times) > self.drop_above * typical(leader):
            return False
        ties = sum(ms <= leading * (1 + self.tie) for ms, leading in zip(times, leader, strict=True))
        return len(times) < PAIRED_ROUNDS or ties >= SELDOM * len(times)

    def winner(self, samples: Mapping[Name, list[float]], size: Callable[[Name], int]) -> Name:
        """The smallest of the alternatives that tie with the fastest; of equal sizes the faster.

        Only those that were never dropped can win: others have times of the first rounds alone.
        """
        finalists = _finalists(samples)
        least = min(finalists.values())
        close = [name for name, ms in finalists.items() if ms <= least * (1 + self.tie)]
        return min(close, key=lambda name: (size(name), finalists[name]))

    @staticmethod
    def times(samples: Mapping[Name, list[float]]) -> dict[Name, float]:
        """Milliseconds of each alternative, comparable although dropped ones were timed in the first rounds only.

        A dropped one's time is its ratio to the fastest in the rounds that both ran, times the fastest's overall time.
        """
        finalists = _finalists(samples)
        fastest = min(finalists, key=lambda name: finalists[name])
        shared = {name: samples[fastest][: len(found)] for name, found in samples.items()}
        return {
            name: finalists.get(name, finalists[fastest] * typical(found) / typical(shared[name]))
            for name, found in samples.items()
        }


def raced(runs: Mapping[Name, Timer], rounds: int, cap_s: float, drop_above: float = 1.5) -> dict[Name, float]:
    """Milliseconds of each run by a race that drops slow ones after two rounds and then has `rounds` more."""
    race = Race(2 + rounds, cap_s, drop_above, drop_after=2)
    return race.times(race.run(runs))


def timed(
    run: Callable[[], object],
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timer:
    """`run` as a function that returns its milliseconds; `synchronize` waits for work that it has queued on a GPU.

    A run that the device has no memory for takes `NEVER_MS`.
    """

    def once() -> float:
        started = clock()
        try:
            run()
            synchronize()
        except (MemoryError, torch.OutOfMemoryError):
            return NEVER_MS
        return (clock() - started) * 1000

    return once


def warmed(run: Callable[[], object], synchronize: Callable[[], None] = lambda: None) -> Timer:
    """Like `timed`, but each timed run follows an untimed one: alternatives in turns evict each other's caches."""
    once = timed(run, synchronize)

    def second() -> float:
        once()
        return once()

    return second


def typical(samples: Sequence[float]) -> float:
    """The median; of one or two samples the smaller, as disturbances only ever add time."""
    return median(samples) if len(samples) > 2 else min(samples)


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """95 % confidence interval of the median between two order statistics; None for fewer than six samples.

    Distribution-free and exact (Conover 1999, Practical Nonparametric Statistics, section 3.2): the coverage is at
    least 95 % for independent samples of any continuous distribution.
    """
    if len(samples) < LEAST_FOR_INTERVAL:
        return None
    low, high = _interval_ranks(len(samples))
    ordered = sorted(samples)
    return ordered[low], ordered[high]


@cache
def _interval_ranks(n: int) -> tuple[int, int]:
    """Indices of the interval's ends among n sorted samples, which leave at most 1/40 of Binomial(n, 1/2) on each side.

    `scipy.stats.quantile_test` gives the same; to import it takes a third of the time in which a worker starts.
    """
    below, outcomes, tail = 0, 1, 1
    while 40 * tail < 2**n:
        outcomes = outcomes * (n - below) // (below + 1)
        below, tail = below + 1, tail + outcomes
    return below - 1, n - below


def _finalists(samples: Mapping[Name, list[float]]) -> dict[Name, float]:
    """Milliseconds of the alternatives that were never dropped."""
    rounds = max(map(len, samples.values()))
    return {name: typical(found) for name, found in samples.items() if len(found) == rounds}


def _warm_up(runs: Mapping[Name, Timer], times: int) -> None:
    for run in runs.values():
        for _ in range(times):
            run()
