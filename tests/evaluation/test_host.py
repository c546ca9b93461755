"""Disturbances of a measurement, on a fake machine whose clocks, counters and files the test sets."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from igc_nas.evaluation.host import (
    LEAST_CPU_SHARE,
    LEAST_WATCH_S,
    MOST_NEIGHBOURS,
    Counters,
    NoiseMonitor,
    cpu_clock_mhz,
    load,
)

SHARED = "its processor was shared"
THROTTLED = "the processor throttled"


class Machine:
    """Time passes by `work`: seconds of the wall, of CPU by our thread, by our other threads, and by neighbours."""

    def __init__(self, throttle: Path, cores: int | None = 4) -> None:
        self.wall, self.thread, self.others, self.neighbours = 1000.0, 50.0, 5.0, 9000.0
        self.cores = cores
        self.throttle = throttle
        self.counts: bool = True

    def work(self, wall: float, thread: float | None = None, others: float = 0.0, neighbours: float = 0.0) -> None:
        self.wall += wall
        self.thread += wall if thread is None else thread
        self.others += others
        self.neighbours += neighbours

    def cpu_times(self) -> SimpleNamespace:
        if not self.counts:
            raise OSError("/proc/stat")
        busy = self.neighbours + self.thread + self.others
        return SimpleNamespace(user=0.6 * busy, system=0.3 * busy, nice=0.1 * busy, idle=1e6, iowait=1e6)

    def times(self) -> SimpleNamespace:
        own = self.thread + self.others
        return SimpleNamespace(user=0.7 * own, system=0.3 * own, children_user=1e5, children_system=1e5)

    def counters(self) -> Counters:
        return Counters(
            clock=lambda: self.wall,
            thread_clock=lambda: self.thread,
            process_times=self.times,
            cpu_times=self.cpu_times,
            cores=lambda: self.cores,
            throttle_counts=self.throttle,
        )

    def monitor(self) -> NoiseMonitor:
        return NoiseMonitor(self.counters())


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "core_throttle_count")


def test_an_idle_machine_disturbs_nothing(here: Machine) -> None:
    monitor = here.monitor()
    here.work(2.0)
    assert monitor.disturbances() == ()
    assert monitor.neighbours() == pytest.approx(0.0)


def test_our_own_threads_are_not_neighbours(here: Machine) -> None:
    monitor = here.monitor()
    here.work(2.0, others=6.0)
    assert monitor.disturbances() == ()
    assert monitor.neighbours() == pytest.approx(0.0)


def test_a_busy_neighbour_is_reported(here: Machine) -> None:
    monitor = here.monitor()
    here.work(2.0, neighbours=2.2)
    assert monitor.neighbours() == pytest.approx(1.1)
    assert monitor.disturbances() == ("other processes kept 1.1 cores busy",)


def test_what_happened_before_the_monitor_was_made_is_not_counted(here: Machine) -> None:
    here.work(100.0, thread=3.0, others=5.0, neighbours=300.0)
    here.throttle.write_text("7\n")
    monitor = here.monitor()
    here.work(2.0)
    assert monitor.disturbances() == ()


@pytest.mark.parametrize(
    ("cores", "most"), [(2, MOST_NEIGHBOURS), (4, MOST_NEIGHBOURS), (64, 3.2), (None, MOST_NEIGHBOURS)]
)
def test_a_large_machine_tolerates_more_neighbours(cores: int | None, most: float, here: Machine) -> None:
    here.cores = cores
    for share, reported in ((0.98, False), (1.02, True)):
        monitor = here.monitor()
        here.work(10.0, neighbours=10.0 * most * share)
        assert bool(monitor.disturbances()) is reported


def test_a_thread_that_waits_for_its_core_shares_it(here: Machine) -> None:
    for share, reported in ((LEAST_CPU_SHARE + 0.01, ()), (LEAST_CPU_SHARE - 0.01, (SHARED,))):
        monitor = here.monitor()
        here.work(2.0, thread=2.0 * share)
        assert monitor.disturbances(1) == reported


@pytest.mark.parametrize("threads", [0, 2, 8])
def test_with_several_threads_waiting_is_not_sharing(threads: int, here: Machine) -> None:
    monitor = here.monitor()
    here.work(2.0, thread=0.2, others=1.8)
    assert monitor.disturbances(threads) == ()


def test_neighbours_are_unknown_over_a_short_time(here: Machine) -> None:
    monitor = here.monitor()
    here.work(LEAST_WATCH_S * 0.9, neighbours=10.0)
    assert monitor.neighbours() is None
    assert monitor.disturbances() == ()
    here.work(LEAST_WATCH_S * 0.2)
    assert monitor.neighbours() == pytest.approx(10.0 / (LEAST_WATCH_S * 1.1))


def test_counters_that_lag_give_no_negative_neighbours(here: Machine) -> None:
    monitor = here.monitor()
    here.work(1.0, neighbours=-0.05)
    assert monitor.neighbours() == 0.0


@pytest.mark.parametrize("from_the_start", [True, False])
def test_counters_that_cannot_be_read_report_nothing(from_the_start: bool, here: Machine) -> None:
    here.counts = not from_the_start
    monitor = here.monitor()
    here.counts = from_the_start
    here.work(2.0, neighbours=20.0)
    assert monitor.neighbours() is None
    assert monitor.disturbances() == ()


def test_a_system_without_nice_is_read_too(here: Machine) -> None:
    counters = replace(
        here.counters(),
        cpu_times=lambda: SimpleNamespace(user=here.neighbours, system=here.thread),
        process_times=lambda: SimpleNamespace(user=here.thread, system=0.0),
    )
    monitor = NoiseMonitor(counters)
    here.work(2.0, neighbours=1.0)
    assert monitor.neighbours() == pytest.approx(0.5)


def test_throttling_meanwhile_is_reported(here: Machine) -> None:
    here.throttle.write_text("7\n")
    monitor = here.monitor()
    here.work(2.0)
    assert monitor.disturbances() == ()
    here.throttle.write_text("8\n")
    assert monitor.disturbances() == (THROTTLED,)


@pytest.mark.parametrize("text", ["", "many", "1.5", "-"])
def test_an_unreadable_throttle_count_reports_nothing(text: str, here: Machine) -> None:
    here.throttle.write_text(text)
    monitor = here.monitor()
    here.work(2.0)
    assert monitor.disturbances() == ()


def test_everything_at_once(here: Machine) -> None:
    here.throttle.write_text("0")
    monitor = here.monitor()
    here.throttle.write_text("1")
    here.work(2.0, thread=1.0, neighbours=3.0)
    assert monitor.disturbances() == (SHARED, "other processes kept 1.5 cores busy", THROTTLED)


def test_the_load_where_the_system_has_one() -> None:
    assert load(lambda: (1.2345, 2.0, 3.0)) == 1.23
    assert load(None) is None


def test_the_clock_where_the_system_says_it() -> None:
    def refuse() -> None:
        raise NotImplementedError

    assert cpu_clock_mhz(lambda: SimpleNamespace(current=2699.96)) == 2700.0
    for frequency in (lambda: SimpleNamespace(current=0.0), lambda: None, refuse):
        assert cpu_clock_mhz(frequency) is None


def test_the_real_machine_is_readable() -> None:
    monitor = NoiseMonitor()
    neighbours = monitor.neighbours()
    assert neighbours is None or neighbours >= 0
    assert all(words.isprintable() for words in monitor.disturbances(0))
