"""What the machine did meanwhile, told by a machine that the test runs: clocks, counters and files are its own."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from igc_nas.evaluation import host as machine
from igc_nas.evaluation.host import LEAST_CPU_SHARE, LEAST_WATCH_S, MOST_NEIGHBOURS, NoiseMonitor, cpu_clock_mhz, load

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


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine(tmp_path / "core_throttle_count")
    clocks = SimpleNamespace(perf_counter=lambda: found.wall, thread_time=lambda: found.thread)
    monkeypatch.setattr(machine, "time", clocks)
    monkeypatch.setattr(machine, "os", SimpleNamespace(times=found.times, getloadavg=lambda: (1.2345, 2.0, 3.0)))
    psutil = SimpleNamespace(cpu_times=found.cpu_times, cpu_count=lambda: found.cores)
    monkeypatch.setattr(machine, "psutil", psutil)
    monkeypatch.setattr(machine, "THROTTLE_COUNTS", found.throttle)
    return found


def test_an_idle_machine_disturbs_nobody(here: Machine) -> None:
    watch = NoiseMonitor()
    here.work(2.0)
    assert watch.disturbances() == ()
    assert watch.neighbours() == pytest.approx(0.0)


def test_our_own_threads_are_no_neighbours(here: Machine) -> None:
    watch = NoiseMonitor()
    here.work(2.0, others=6.0)
    assert watch.disturbances() == ()
    assert watch.neighbours() == pytest.approx(0.0)


def test_a_busy_neighbour_is_told(here: Machine) -> None:
    watch = NoiseMonitor()
    here.work(2.0, neighbours=2.2)
    assert watch.neighbours() == pytest.approx(1.1)
    assert watch.disturbances() == ("other processes kept 1.1 cores busy",)


def test_what_was_before_the_watch_is_not_its_business(here: Machine) -> None:
    here.work(100.0, thread=3.0, others=5.0, neighbours=300.0)
    here.throttle.write_text("7\n")
    watch = NoiseMonitor()
    here.work(2.0)
    assert watch.disturbances() == ()


@pytest.mark.parametrize(
    ("cores", "most"), [(2, MOST_NEIGHBOURS), (4, MOST_NEIGHBOURS), (64, 3.2), (None, MOST_NEIGHBOURS)]
)
def test_a_large_machine_bears_more_neighbours(cores: int | None, most: float, here: Machine) -> None:
    here.cores = cores
    for share, told in ((0.98, False), (1.02, True)):
        watch = NoiseMonitor()
        here.work(10.0, neighbours=10.0 * most * share)
        assert bool(watch.disturbances()) is told


def test_a_thread_that_waits_for_its_core_shares_it(here: Machine) -> None:
    for share, told in ((LEAST_CPU_SHARE + 0.01, ()), (LEAST_CPU_SHARE - 0.01, (SHARED,))):
        watch = NoiseMonitor()
        here.work(2.0, thread=2.0 * share)
        assert watch.disturbances(1) == told


@pytest.mark.parametrize("threads", [0, 2, 8])
def test_a_thread_that_waits_for_others_shares_nothing(threads: int, here: Machine) -> None:
    watch = NoiseMonitor()
    here.work(2.0, thread=0.2, others=1.8)
    assert watch.disturbances(threads) == ()


def test_nothing_is_said_of_neighbours_within_a_moment(here: Machine) -> None:
    watch = NoiseMonitor()
    here.work(LEAST_WATCH_S * 0.9, neighbours=10.0)
    assert watch.neighbours() is None
    assert watch.disturbances() == ()
    here.work(LEAST_WATCH_S * 0.2)
    assert watch.neighbours() == pytest.approx(10.0 / (LEAST_WATCH_S * 1.1))


def test_counters_that_lag_are_no_negative_neighbours(here: Machine) -> None:
    watch = NoiseMonitor()
    here.work(1.0, neighbours=-0.05)
    assert watch.neighbours() == 0.0


@pytest.mark.parametrize("from_the_start", [True, False])
def test_counters_that_cannot_be_read_claim_nothing(from_the_start: bool, here: Machine) -> None:
    here.counts = not from_the_start
    watch = NoiseMonitor()
    here.counts = from_the_start
    here.work(2.0, neighbours=20.0)
    assert watch.neighbours() is None
    assert watch.disturbances() == ()


def test_a_system_without_nice_is_read_too(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.psutil, "cpu_times", lambda: SimpleNamespace(user=here.neighbours, system=here.thread))
    monkeypatch.setattr(machine.os, "times", lambda: SimpleNamespace(user=here.thread, system=0.0))
    watch = NoiseMonitor()
    here.work(2.0, neighbours=1.0)
    assert watch.neighbours() == pytest.approx(0.5)


def test_a_throttle_meanwhile_is_told(here: Machine) -> None:
    here.throttle.write_text("7\n")
    watch = NoiseMonitor()
    here.work(2.0)
    assert watch.disturbances() == ()
    here.throttle.write_text("8\n")
    assert watch.disturbances() == (THROTTLED,)


@pytest.mark.parametrize("text", ["", "many", "1.5", "-"])
def test_a_throttle_count_that_is_none_claims_nothing(text: str, here: Machine) -> None:
    here.throttle.write_text(text)
    watch = NoiseMonitor()
    here.work(2.0)
    assert watch.disturbances() == ()


def test_everything_at_once(here: Machine) -> None:
    here.throttle.write_text("0")
    watch = NoiseMonitor()
    here.throttle.write_text("1")
    here.work(2.0, thread=1.0, neighbours=3.0)
    assert watch.disturbances() == (SHARED, "other processes kept 1.5 cores busy", THROTTLED)


def test_the_load_where_the_system_says_it(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load() == 1.23
    monkeypatch.setattr(machine, "os", SimpleNamespace())
    assert load() is None


def test_the_clock_where_the_system_says_it(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NotImplementedError

    for freq, wanted in (
        (lambda: SimpleNamespace(current=2699.96), 2700.0),
        (lambda: SimpleNamespace(current=0.0), None),
        (lambda: None, None),
        (refuse, None),
    ):
        monkeypatch.setattr(machine.psutil, "cpu_freq", freq, raising=False)
        assert cpu_clock_mhz() == wanted


def test_the_real_machine_is_readable() -> None:
    watch = NoiseMonitor()
    neighbours = watch.neighbours()
    assert neighbours is None or neighbours >= 0
    assert all(words.isprintable() for words in watch.disturbances(0))
