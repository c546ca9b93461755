"""The quiet room, with real processes: who measures is alone, and a dead holder frees it."""

import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from igc_nas.room import QuietRoom

SPAWN = multiprocessing.get_context("spawn")


def work(folder: Path, seat: int, seats: int, log: Path, stop: Event) -> None:
    """Train in steps of a few milliseconds, each noted with its begin and end."""
    room = QuietRoom(folder, seat, seats)
    with room.working(), log.open("a", buffering=1) as file:
        while not stop.is_set():
            room.pause()
            begin = time.monotonic()
            time.sleep(0.003)
            file.write(f"{begin} {time.monotonic()}\n")


def measure_for_ever(folder: Path, seats: int, inside: Event) -> None:
    with QuietRoom(folder, 0, seats).measuring():
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
    room = QuietRoom(tmp_path, 0, 3)
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
    room = QuietRoom(tmp_path, 0, 1)
    with room.measuring():
        pass
    with room.working():
        room.pause()
    with room.measuring():
        pass
