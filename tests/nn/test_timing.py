"""Timing by a clock that the test turns: turns are taken, caps are kept, summaries are the textbook's."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.nn import timing
from igc_nas.nn.timing import median, median_interval, raced, round_robin, timed

samples_ms = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=40)


class Clock:
    """Seconds that pass only when somebody works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def spend() -> None:
            self.now += seconds

        return spend


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", found)
    return found


def test_runs_take_turns_after_a_warm_up() -> None:
    turns: list[str] = []

    def run(name: str) -> Callable[[], float]:
        return lambda: turns.append(name) or len(turns)

    found = round_robin({"a": run("a"), "b": run("b"), "c": run("c")}, rounds=3, cap_s=1e9, warm_up=2)
    assert turns == [*"aabbcc", *"abc", *"abc", *"abc"]
    assert found == {"a": [7, 10, 13], "b": [8, 11, 14], "c": [9, 12, 15]}


def test_nothing_needs_no_rounds() -> None:
    assert round_robin({}, rounds=3, cap_s=1.0) == {}


@pytest.mark.parametrize(("cap_s", "rounds"), [(0.0, 2), (3.9, 2), (4.0, 3), (6.5, 4), (1e9, 5)])
def test_a_cap_ends_rounds_early_but_not_before_the_second(clock: Clock, cap_s: float, rounds: int) -> None:
    """A round takes two seconds, and one starts where the cap is not yet over."""
    runs = {name: timed(clock.work(1.0)) for name in "ab"}
    found = round_robin(runs, rounds=5, cap_s=cap_s)
    assert {name: len(samples) for name, samples in found.items()} == {"a": rounds, "b": rounds}


def test_a_warm_up_does_not_count_towards_the_cap(clock: Clock) -> None:
    assert len(round_robin({"slow": timed(clock.work(1.0))}, rounds=4, cap_s=4.5, warm_up=50)["slow"]) == 4


def test_a_single_round_may_be_asked_for(clock: Clock) -> None:
    assert round_robin({"a": timed(clock.work(0.5))}, rounds=1, cap_s=0.0, warm_up=0) == {"a": [500.0]}


class Paced:
    """Runs whose times are written down, for ever the last; who ran when is noted."""

    def __init__(self, **times: list[float]) -> None:
        self.order: list[str] = []
        self.runs = {name: self.run(name, list(values)) for name, values in times.items()}

    def run(self, name: str, left: list[float]) -> Callable[[], float]:
        def once() -> float:
            self.order.append(name)
            return left.pop(0) if len(left) > 1 else left[0]

        return once


def test_rivals_race_in_turns_after_their_warm_up() -> None:
    """What the warm-up took is not told, the first run's time (an allocation, a compilation) not even heeded."""
    paced = Paced(a=[900.0, 1.0, 1.1, 4.0, 6.0, 5.0], b=[1.0, 1.2, 70.0, 7.0, 7.0, 9.0], c=[1.0, 1.5, 1.5, 3.0])
    assert raced(paced.runs, rounds=3, cap_s=1e9) == {"a": 5.0, "b": 7.0, "c": 3.0}
    assert paced.order == [*"abc", *"aabbcc", *["a", "b", "c"] * 3]


def test_the_hopeless_do_not_enter_the_rounds() -> None:
    """One accident in two does not make it hopeless."""
    paced = Paced(slow=[1.0, 9.0, 1.51, 0.1], even=[1.0, 1.5, 60.0, 1.2], fast=[50.0, 1.0])
    found = raced(paced.runs, rounds=4, cap_s=1e9)
    assert found == {"slow": 1.51, "even": 1.2, "fast": 1.0}
    assert list(found) == ["slow", "even", "fast"]
    assert paced.order[9:] == ["even", "fast"] * 4
    again = Paced(slow=[1.0, 1.51, 1.51, 0.1], fast=[1.0])
    assert raced(again.runs, rounds=3, cap_s=1e9, hopeless=2.0) == {"slow": 0.1, "fast": 1.0}


def test_who_is_left_alone_need_not_race() -> None:
    """Nor who was alone from the start: the lesser of two times is told."""
    paced = Paced(only=[9.0, 8.0, 7.0, 1.0])
    assert raced(paced.runs, rounds=3, cap_s=1e9) == {"only": 7.0}
    assert paced.order == ["only"] * 3
    paced = Paced(slow=[1.0, 4.0, 3.0, 0.1], fast=[1.0, 1.0, 2.0, 50.0])
    assert raced(paced.runs, rounds=3, cap_s=1e9) == {"slow": 3.0, "fast": 1.0}
    assert len(paced.order) == 6


def test_a_race_ends_early_by_the_clock_too(clock: Clock) -> None:
    """Two rounds at least; the warm-up does not count towards the cap."""
    for cap_s, rounds in ((0.0, 2), (4.9, 3), (1e9, 5)):
        ran: list[str] = []

        def run(name: str, seconds: float, ran: list[str] = ran) -> Callable[[], float]:
            work = clock.work(seconds)
            return timed(lambda: (ran.append(name), work()))

        runs = {"a": run("a", 1.0), "b": run("b", 1.25), "c": run("c", 60.0)}
        assert raced(runs, 5, cap_s) == {"a": 1000.0, "b": 1250.0, "c": 60_000.0}
        assert ran == [*"abc", *"aabbcc", *["a", "b"] * rounds]


def test_the_hopeless_do_not_win_where_the_machine_slows_down() -> None:
    """Their time is of another moment than the rounds, and the least of two is less than a median."""
    paced = Paced(fast=[1.0, 1.0, 1.0, 5.0], near=[1.2, 1.2, 1.2, 6.0], slow=[4.0, 4.0, 4.0, 20.0])
    found = raced(paced.runs, rounds=5, cap_s=1e9)
    assert min(found, key=lambda name: found[name]) == "fast"


def test_what_a_run_queued_is_waited_for(clock: Clock) -> None:
    run = timed(clock.work(0.25), synchronize=clock.work(0.5))
    assert [run(), run()] == [750.0, 750.0]
    assert timed(clock.work(0.25))() == 250.0


@given(samples_ms)
def test_the_median_is_a_plain_float(samples: list[float]) -> None:
    assert type(median(samples)) is float
    assert median(samples) == sorted(samples)[len(samples) // 2] or len(samples) % 2 == 0
    assert min(samples) <= median(samples) <= max(samples)


@given(samples_ms)
def test_an_interval_lies_around_within_the_samples_and_repeats(samples: list[float]) -> None:
    low, high = median_interval(samples)
    assert min(samples) <= low <= high <= max(samples)
    assert (low, high) == median_interval(samples)
    wider = median_interval(samples, level=0.99)
    assert wider[0] <= low
    assert high <= wider[1]


def test_an_interval_holds_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [median_interval(list(rng.normal(5.0, 1.0, 25)), resamples=200) for _ in range(300)]
    held = sum(low <= 5.0 <= high for low, high in intervals)
    assert 0.90 <= held / 300 <= 0.99


@given(st.floats(0.1, 1e3), st.integers(1, 20))
def test_samples_that_agree_leave_no_doubt(value: float, n: int) -> None:
    assert median_interval([value] * n) == (value, value)
