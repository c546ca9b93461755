"""Timing by a clock that the test turns: alternatives take turns, caps hold, slow ones are dropped, intervals cover."""

import math
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import quantile_test

from igc_nas.nn.timing import LEAST_FOR_INTERVAL, Race, median_interval, raced, round_robin, timed, typical, warmed

samples_ms = st.lists(st.floats(0.01, 1e4), min_size=LEAST_FOR_INTERVAL, max_size=40)


class Clock:
    """Seconds that pass only in `work`."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def spend() -> None:
            self.now += seconds

        return spend

    def timed(self, seconds: float) -> Callable[[], float]:
        return timed(self.work(seconds), clock=self)


@pytest.fixture
def clock() -> Clock:
    return Clock()


# Rounds.


def test_runs_take_turns_after_a_warm_up() -> None:
    turns: list[str] = []

    def run(name: str) -> Callable[[], float]:
        return lambda: turns.append(name) or len(turns)

    found = round_robin({"a": run("a"), "b": run("b"), "c": run("c")}, rounds=3, cap_s=1e9, warm_up=2)
    assert turns == [*"aabbcc", *"abc", *"abc", *"abc"]
    assert found == {"a": [7, 10, 13], "b": [8, 11, 14], "c": [9, 12, 15]}


def test_no_runs_have_no_samples() -> None:
    assert round_robin({}, rounds=3, cap_s=1.0) == {}


@pytest.mark.parametrize(("cap_s", "rounds"), [(0.0, 2), (3.9, 2), (4.0, 3), (6.5, 4), (1e9, 5)])
def test_a_cap_ends_rounds_early_but_not_before_the_second(clock: Clock, cap_s: float, rounds: int) -> None:
    """A round takes two seconds and starts only if the cap is not yet over."""
    found = round_robin({name: clock.timed(1.0) for name in "ab"}, rounds=5, cap_s=cap_s, clock=clock)
    assert {name: len(samples) for name, samples in found.items()} == {"a": rounds, "b": rounds}


def test_a_cap_keeps_the_least_number_of_rounds(clock: Clock) -> None:
    assert len(round_robin({"a": clock.timed(1.0)}, rounds=9, cap_s=0.0, least=6, clock=clock)["a"]) == 6


def test_a_warm_up_does_not_count_towards_the_cap(clock: Clock) -> None:
    found = round_robin({"slow": clock.timed(1.0)}, rounds=4, cap_s=4.5, warm_up=50, clock=clock)
    assert len(found["slow"]) == 4


def test_a_single_round_is_possible(clock: Clock) -> None:
    assert round_robin({"a": clock.timed(0.5)}, rounds=1, cap_s=0.0, warm_up=0, clock=clock) == {"a": [500.0]}


def test_queued_work_is_waited_for(clock: Clock) -> None:
    run = timed(clock.work(0.25), synchronize=clock.work(0.5), clock=clock)
    assert [run(), run()] == [750.0, 750.0]
    assert clock.timed(0.25)() == 250.0


def test_a_warmed_run_is_the_second_of_two() -> None:
    calls: list[int] = []
    assert warmed(lambda: calls.append(1))() >= 0
    assert len(calls) == 2


# Races.


class Paced:
    """Runs with given times, the last of them repeated; `order` notes who ran."""

    def __init__(self, **times: list[float]) -> None:
        self.order: list[str] = []
        self.runs = {name: self.run(name, list(values)) for name, values in times.items()}

    def run(self, name: str, left: list[float]) -> Callable[[], float]:
        def once() -> float:
            self.order.append(name)
            return left.pop(0) if len(left) > 1 else left[0]

        return once


def smallest(name: str) -> int:
    """Sizes in the order of the names."""
    return ord(name[0])


def test_a_race_is_run_in_turns_after_a_warm_up() -> None:
    paced = Paced(a=[900.0, 1.0, 4.0, 6.0], b=[1.0, 1.0, 5.0, 7.0])
    samples = Race(rounds=3, cap_s=1e9).run(paced.runs)
    assert samples == {"a": [1.0, 4.0, 6.0], "b": [1.0, 5.0, 7.0]}
    assert paced.order == [*"ab", *"ab", *"ab", *"ab"]


def test_slow_alternatives_are_dropped_by_their_median_and_keep_their_times() -> None:
    """One slow round in three is an outlier; two are not."""
    paced = Paced(slow=[1.0, 1.51], outlier=[1.0, 1.2, 60.0, 1.0], fast=[1.0])
    samples = Race(rounds=4, cap_s=1e9, tie=0.3).run(paced.runs)
    assert {name: len(found) for name, found in samples.items()} == {"slow": 3, "outlier": 4, "fast": 4}
    assert list(samples) == ["slow", "outlier", "fast"]
    edge = Paced(edge=[1.5], fast=[1.0])
    assert len(Race(rounds=4, cap_s=1e9).run(edge.runs)["edge"]) == 4, "1.5 is not above 1.5"


def test_the_rounds_before_the_first_drop_can_be_chosen() -> None:
    for rounds in (1, 2, 3):
        paced = Paced(slow=[4.0], fast=[1.0], also=[1.0])
        samples = Race(rounds=5, cap_s=1e9, drop_after=rounds).run(paced.runs)
        assert (len(samples["slow"]), len(samples["fast"])) == (rounds, 5)


def test_an_alternative_that_seldom_ties_is_dropped_after_five_rounds() -> None:
    seldom, sometimes = [1.1], [1.1, 1.1, 1.1, 1.0] * 10
    samples = Race(rounds=15, cap_s=1e9).run(Paced(leader=[1.0], seldom=seldom, sometimes=sometimes).runs)
    assert {name: len(found) for name, found in samples.items()} == {"leader": 15, "seldom": 5, "sometimes": 15}


def test_a_race_ends_when_one_is_left() -> None:
    paced = Paced(slow=[4.0], fast=[1.0])
    assert Race(rounds=9, cap_s=1e9).run(paced.runs) == {"slow": [4.0] * 3, "fast": [1.0] * 3}
    alone = Paced(only=[9.0, 1.0, 2.0])
    assert Race(rounds=9, cap_s=1e9).run(alone.runs) == {"only": [1.0, 2.0, 2.0]}


@pytest.mark.parametrize(("cap_s", "rounds"), [(0.0, 3), (6.0, 4), (1e9, 5)])
def test_a_cap_ends_a_race_early_but_not_before_the_third_round(clock: Clock, cap_s: float, rounds: int) -> None:
    runs = {"a": clock.timed(1.0), "b": clock.timed(1.0)}
    samples = Race(rounds=5, cap_s=cap_s, warm_up=10, clock=clock).run(runs)
    assert {name: len(found) for name, found in samples.items()} == {"a": rounds, "b": rounds}


@pytest.mark.parametrize(
    ("times", "winner"),
    [
        ({"a": 1.02, "b": 1.0}, "a"),
        ({"a": 1.03, "b": 1.0}, "b"),
        ({"a": 1.0, "b": 1.0}, "a"),
        ({"a": 1.04, "b": 1.02, "c": 1.0}, "b"),
    ],
)
def test_the_smallest_of_those_that_tie_wins(times: dict[str, float], winner: str) -> None:
    samples = {name: [ms] * 7 for name, ms in times.items()}
    assert Race(rounds=7, cap_s=1.0).winner(samples, smallest) == winner


def test_of_equal_sizes_the_faster_wins() -> None:
    samples = {"a": [1.01] * 3, "b": [1.0] * 3}
    assert Race(rounds=3, cap_s=1.0).winner(samples, lambda _: 0) == "b"


def test_a_dropped_alternative_does_not_win_when_the_machine_slows_down() -> None:
    """Its times are of the first rounds, the finalists' mostly of later ones."""
    slowing = [1.0] * 4 + [5.0]
    race = Race(rounds=15, cap_s=1e9)
    samples = race.run(Paced(dropped=[2.0], near=slowing, fast=slowing).runs)
    assert race.winner(samples, lambda name: name != "dropped") == "near"
    times = race.times(samples)
    assert times == {"dropped": 10.0, "near": 5.0, "fast": 5.0}, "twice as long as the fastest in the same rounds"


def test_times_are_medians_and_of_two_rounds_the_smaller() -> None:
    paced = Paced(a=[9.0, 1.0, 1.2, 1.4, 1.6, 9.0], b=[9.0, 1.3])
    assert raced(paced.runs, rounds=3, cap_s=1e9) == {"a": 1.4, "b": 1.3}
    paced = Paced(slow=[1.0, 4.0, 3.0, 0.1], fast=[1.0, 1.0, 2.0, 50.0])
    assert raced(paced.runs, rounds=3, cap_s=1e9) == {"slow": 3.0, "fast": 1.0}
    assert len(paced.order) == 6
    assert raced(Paced(slow=[1.51], fast=[1.0]).runs, rounds=1, cap_s=1e9, drop_above=2.0) == {
        "slow": 1.51,
        "fast": 1.0,
    }


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.floats(0.01, 10), min_size=9, max_size=9), min_size=1))
def test_a_winner_is_a_finalist_within_the_tie(times: dict[str, list[float]]) -> None:
    race = Race(rounds=8, cap_s=1e9)
    samples = race.run(Paced(**times).runs)
    winner = race.winner(samples, smallest)
    finalists = [name for name in samples if len(samples[name]) == max(map(len, samples.values()))]
    assert winner in finalists
    assert typical(samples[winner]) <= 1.02 * min(typical(samples[name]) for name in finalists)
    assert race.times(samples).keys() == times.keys()


# Intervals.


@given(samples_ms)
def test_an_interval_is_two_samples_around_the_median(samples: list[float]) -> None:
    interval = median_interval(samples)
    assert interval is not None
    low, high = interval
    assert {low, high} <= set(samples)
    assert low <= median(samples) <= high
    assert type(low) is type(high) is float


@given(st.integers(LEAST_FOR_INTERVAL, 1000))
def test_an_interval_is_that_of_scipy(n: int) -> None:
    wanted = quantile_test(range(n), p=0.5).confidence_interval(0.95)
    assert median_interval(range(n)) == (wanted.low, wanted.high)


@pytest.mark.parametrize("n", range(6))
def test_fewer_than_six_samples_have_no_interval(n: int) -> None:
    assert median_interval([1.0] * n) is None


@given(st.floats(0.1, 1e3), st.integers(6, 40))
def test_equal_samples_have_an_interval_of_no_width(value: float, n: int) -> None:
    assert median_interval([value] * n) == (value, value)


@pytest.mark.parametrize("n", [6, 15, 31])
def test_intervals_cover_the_true_median_with_95_percent(n: int) -> None:
    """Exponential times, whose median is ln 2: skewed, as real ones are. The bound is three standard errors wide."""
    rng, trials = np.random.default_rng(n), 4000
    covered = 0
    for samples in rng.exponential(size=(trials, n)).tolist():
        interval = median_interval(samples)
        assert interval is not None
        covered += interval[0] <= math.log(2) <= interval[1]
    assert covered / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_intervals_of_many_samples_are_not_wider_than_needed() -> None:
    """Exact coverage of 301 samples is 0.957: far below 1."""
    rng = np.random.default_rng(0)
    intervals = [median_interval(samples) or (0.0, 0.0) for samples in rng.exponential(size=(2000, 301)).tolist()]
    assert sum(low <= math.log(2) <= high for low, high in intervals) / 2000 < 0.975
