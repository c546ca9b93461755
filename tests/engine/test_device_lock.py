"""The device lock, with real processes: a measurement is alone, and a dead holder releases it."""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from igc_nas.engine.device_lock import GATE_FILE, DeviceLock

SPAWN = multiprocessing.get_context("spawn")


def work(folder: Path, index: int, workers: int, log: Path, stop: Event) -> None:
    """Train in steps of a few milliseconds, each noted with its begin and end."""
    lock = DeviceLock(folder, index, workers)
    with lock.shared(), log.open("a", buffering=1) as file:
        while not stop.is_set():
            lock.pause()
            begin = time.monotonic()
            time.sleep(0.003)
            file.write(f"{begin} {time.monotonic()}\n")


def measure_for_ever(folder: Path, workers: int, inside: Event) -> None:
    with DeviceLock(folder, 0, workers).exclusive():
        inside.set()
        time.sleep(600)


def may_enter(folder: Path) -> bool:
    """Whether another worker could use the device now."""
    try:
        with FileLock(folder / GATE_FILE, timeout=0):
            return True
    except Timeout:
        return False


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the lock of two trainers."""
    return tmp_path_factory.mktemp("device")


@pytest.fixture(scope="module")
def trainers(shared: Path):
    """Two trainers, workers 1 and 2, and the logs of their steps."""
    stop = SPAWN.Event()
    logs = [shared / f"log{index}" for index in (1, 2)]
    processes = [SPAWN.Process(target=work, args=(shared, i, 3, logs[i - 1], stop)) for i in (1, 2)]
    for process in processes:
        process.start()
    until = time.monotonic() + 30
    while not all(log.exists() and log.stat().st_size for log in logs) and time.monotonic() < until:
        time.sleep(0.05)
    yield logs
    stop.set()
    for process in processes:
        process.join(10)
        process.kill()


def steps(log: Path) -> list[tuple[float, float]]:
    lines = [line.split() for line in log.read_text().split("\n")[:-1]]
    return [(float(begin), float(end)) for begin, end in lines]


def test_no_step_runs_during_a_measurement(trainers: list[Path], shared: Path) -> None:
    lock = DeviceLock(shared, 0, 3)
    alone = []
    for _ in range(5):
        with lock.exclusive():
            begin = time.monotonic()
            time.sleep(0.06)
            alone.append((begin, time.monotonic()))
        time.sleep(0.05)
    for log in trainers:
        done = steps(log)
        assert not [s for s in done for q in alone if s[0] < q[1] and q[0] < s[1]]
        assert any(s[0] > alone[-1][1] for s in done), "they go on afterwards"


def test_a_killed_measurer_releases_the_lock(trainers: list[Path], shared: Path) -> None:
    inside = SPAWN.Event()
    measurer = SPAWN.Process(target=measure_for_ever, args=(shared, 3, inside))
    measurer.start()
    assert inside.wait(30)
    before = [len(steps(log)) for log in trainers]
    time.sleep(0.1)
    assert [len(steps(log)) for log in trainers] == before
    assert measurer.pid is not None
    os.kill(measurer.pid, signal.SIGKILL)
    measurer.join()
    until = time.monotonic() + 10
    while [len(steps(log)) for log in trainers] <= before and time.monotonic() < until:
        time.sleep(0.02)
    assert all(len(steps(log)) > n for log, n in zip(trainers, before, strict=True))


def test_a_single_worker_never_waits(tmp_path: Path) -> None:
    lock = DeviceLock(tmp_path, 0, 1)
    with lock.exclusive():
        pass
    with lock.shared():
        lock.pause()
    with lock.exclusive():
        pass


def work_and_measure(folder: Path, index: int, log: Path, rounds: int) -> None:
    """Measure from time to time while at work, as a trial does."""
    lock = DeviceLock(folder, index, 2)
    with log.open("a", buffering=1) as file:
        for _ in range(rounds):
            with lock.shared():
                lock.pause()
                with lock.exclusive():
                    begin = time.monotonic()
                    time.sleep(0.01)
                    file.write(f"{begin} {time.monotonic()}\n")
                lock.pause()
        file.write(f"{lock.waited_s} 0\n")


def test_two_workers_that_measure_do_not_deadlock(tmp_path: Path) -> None:
    logs = [tmp_path / f"log{index}" for index in (0, 1)]
    processes = [SPAWN.Process(target=work_and_measure, args=(tmp_path, i, logs[i], 20)) for i in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    (*first, (waited, _)), (*second, _) = map(steps, logs)
    assert len(first) == len(second) == 20
    assert not [1 for a in first for b in second if a[0] < b[1] and b[0] < a[1]], "each is alone"
    assert waited >= 0


def test_the_shared_lock_is_taken_again_after_measuring(tmp_path: Path) -> None:
    lock = DeviceLock(tmp_path, 0, 2)
    with lock.shared():
        with lock.exclusive():
            assert not lock.is_shared
            assert not may_enter(tmp_path)
        assert lock.is_shared
        with pytest.raises(RuntimeError), lock.exclusive():
            raise RuntimeError
        assert lock.is_shared, "also where measuring fails"
    assert not lock.is_shared
    assert may_enter(tmp_path)


def test_the_time_spent_waiting_for_others_is_counted(tmp_path: Path) -> None:
    lock, other = DeviceLock(tmp_path, 0, 2), DeviceLock(tmp_path, 1, 2)
    with lock.shared():
        lock.pause()
    with lock.exclusive():
        time.sleep(0.05)
    assert lock.waited_s < 0.05, "no other worker is there, and measuring is not waiting"
    entered = threading.Event()

    def measure() -> None:
        with other.exclusive():
            entered.set()
            time.sleep(0.1)

    def pause() -> None:
        lock.pause()
        work()  # which releases the lock at its end

    def work() -> None:
        with lock.shared():
            pass

    def measure_too() -> None:
        with lock.exclusive():
            pass

    for wait in (pause, work, measure_too):
        before = lock.waited_s
        thread = threading.Thread(target=measure)
        thread.start()
        assert entered.wait(30)
        entered.clear()
        wait()
        thread.join()
        assert 0.03 < lock.waited_s - before < 5


def test_waiting_for_another_machine_is_counted(tmp_path: Path) -> None:
    lock = DeviceLock(tmp_path, 0, 1)
    with lock.remote():
        time.sleep(0.05)
    assert lock.waited_s < 0.05
