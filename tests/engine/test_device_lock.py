"""The quiet room, with real processes: who measures is alone, and a dead holder frees it."""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from filelock import Timeout

from igc_nas.engine.device_lock import DeviceLock

SPAWN = multiprocessing.get_context("spawn")


def work(folder: Path, seat: int, seats: int, log: Path, stop: Event) -> None:
    """Train in steps of a few milliseconds, each noted with its begin and end."""
    room = DeviceLock(folder, seat, seats)
    with room.working(), log.open("a", buffering=1) as file:
        while not stop.is_set():
            room.pause()
            begin = time.monotonic()
            time.sleep(0.003)
            file.write(f"{begin} {time.monotonic()}\n")


def measure_for_ever(folder: Path, seats: int, inside: Event) -> None:
    with DeviceLock(folder, 0, seats).measuring():
        inside.set()
        time.sleep(600)


@pytest.fixture
def trainers(tmp_path: Path):
    """Two trainers in seats 1 and 2, and the logs of their steps."""
    stop = SPAWN.Event()
    logs = [tmp_path / f"log{seat}" for seat in (1, 2)]
    processes = [SPAWN.Process(target=work, args=(tmp_path, i, 3, logs[i - 1], stop)) for i in (1, 2)]
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


def test_nobody_works_while_one_measures(trainers: list[Path], tmp_path: Path) -> None:
    room = DeviceLock(tmp_path, 0, 3)
    quiet = []
    for _ in range(5):
        with room.measuring():
            begin = time.monotonic()
            time.sleep(0.06)
            quiet.append((begin, time.monotonic()))
        time.sleep(0.05)
    for log in trainers:
        done = steps(log)
        assert not [s for s in done for q in quiet if s[0] < q[1] and q[0] < s[1]]
        assert any(s[0] > quiet[-1][1] for s in done), "they go on afterwards"


def test_a_killed_measurer_leaves_the_room(trainers: list[Path], tmp_path: Path) -> None:
    inside = SPAWN.Event()
    measurer = SPAWN.Process(target=measure_for_ever, args=(tmp_path, 3, inside))
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


def test_a_room_of_one_is_always_quiet(tmp_path: Path) -> None:
    room = DeviceLock(tmp_path, 0, 1)
    with room.measuring():
        pass
    with room.working():
        room.pause()
    with room.measuring():
        pass


def work_and_measure(folder: Path, seat: int, log: Path, rounds: int) -> None:
    """Measure from time to time while at work, as a trial does."""
    room = DeviceLock(folder, seat, 2)
    with log.open("a", buffering=1) as file:
        for _ in range(rounds):
            with room.working():
                room.pause()
                with room.measuring():
                    begin = time.monotonic()
                    time.sleep(0.01)
                    file.write(f"{begin} {time.monotonic()}\n")
                room.pause()
        file.write(f"{room.waited_s} 0\n")


def test_two_who_measure_while_at_work_do_not_wait_for_each_other_for_ever(tmp_path: Path) -> None:
    logs = [tmp_path / f"log{seat}" for seat in (0, 1)]
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


def test_measuring_at_work_leaves_one_at_work(tmp_path: Path) -> None:
    room, other = DeviceLock(tmp_path, 0, 2), DeviceLock(tmp_path, 1, 2)
    with room.working():
        with room.measuring():
            assert not room._own.is_locked
            with pytest.raises(Timeout):
                other._gate.acquire(timeout=0)
        assert room._own.is_locked
        with pytest.raises(RuntimeError), room.measuring():
            raise RuntimeError
        assert room._own.is_locked, "also where measuring fails"
    assert not room._own.is_locked
    other._gate.acquire(timeout=0)


def test_the_time_that_is_waited_for_others_is_counted(tmp_path: Path) -> None:
    room, other = DeviceLock(tmp_path, 0, 2), DeviceLock(tmp_path, 1, 2)
    with room.working():
        room.pause()
    with room.measuring():
        time.sleep(0.05)
    assert room.waited_s < 0.05, "there is nobody; measuring is no waiting"
    entered = threading.Event()

    def measure() -> None:
        with other.measuring():
            entered.set()
            time.sleep(0.1)

    for wait in (room.pause, lambda: room.working().__enter__(), lambda: room.measuring().__enter__()):
        before = room.waited_s
        thread = threading.Thread(target=measure)
        thread.start()
        assert entered.wait(30)
        entered.clear()
        wait()
        thread.join()
        assert 0.03 < room.waited_s - before < 5
        for lock in (room._own, room._gate, *room._others):
            lock.release(force=True)


def test_waiting_for_another_machine_is_counted(tmp_path: Path) -> None:
    room = DeviceLock(tmp_path, 0, 1)
    with room.remotely():
        time.sleep(0.05)
    assert room.waited_s < 0.05
