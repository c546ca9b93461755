"""The lock of a GPU: workers of all searches of a user share it, whatever folder their run has."""

import tempfile
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from igc_nas.data.datasets import locate
from igc_nas.engine.device_lock import GATE_FILE, DeviceLock, gpu_folder, lock_for
from igc_nas.engine.executor import WorkerSlot
from igc_nas.nn.device import Device, find_devices
from tests.support.fake_cuda import fake_cuda


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[WorkerSlot]:
    """The worker slots of two runs on one machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return [WorkerSlot(locate("shapes"), "cuda:0", 1, tmp_path / name) for name in ("one", "two")]


def steps_while(lock: DeviceLock, measurer: DeviceLock) -> tuple[int, int]:
    """Steps of a training in 0.3 s before and while `measurer` has its device alone; the training then goes on."""
    steps, stop = [0], threading.Event()

    def train() -> None:
        with lock.shared():
            while not stop.is_set():
                lock.pause()
                steps[0] += 1
                time.sleep(0.002)

    thread = threading.Thread(target=train)
    thread.start()
    time.sleep(0.3)
    before = steps[0]
    with measurer.exclusive():
        began = steps[0]
        time.sleep(0.3)
        during = steps[0] - began
    until = time.monotonic() + 10
    while steps[0] == began + during and time.monotonic() < until:
        time.sleep(0.005)
    assert steps[0] > began + during, "it goes on afterwards"
    stop.set()
    thread.join()
    return before, during


def test_searches_on_one_gpu_wait_for_each_other_and_on_two_do_not(runs: list[WorkerSlot]) -> None:
    with fake_cuda(count=2):
        first, second = find_devices("cuda")
        locks = [lock_for(slot, first) for slot in runs]
        before, during = steps_while(locks[0], locks[1])
        assert before
        assert not during
        before, during = steps_while(locks[0], lock_for(runs[1], second))
        assert during


def test_workers_take_places_of_their_own(runs: list[WorkerSlot]) -> None:
    with fake_cuda():
        (gpu,) = find_devices("cuda")
        locks = [lock_for(slot, gpu) for slot in (*runs, runs[0])]
        gate = FileLock(gpu_folder(str(gpu.uuid)) / GATE_FILE, timeout=0)
        with locks[0].shared(), locks[1].shared(), locks[2].shared():
            assert all(lock.is_shared for lock in locks)
        with locks[1].shared(), locks[1].exclusive(), pytest.raises(TimeoutError), gate:
            pass
        with locks[2].exclusive():
            assert not locks[1].is_shared, "its place is free again"


def test_runs_on_a_cpu_have_locks_of_their_own(runs: list[WorkerSlot]) -> None:
    cpu = Device("cpu", "cpu", "a CPU")
    with lock_for(runs[0], cpu).exclusive(), lock_for(runs[1], cpu).shared():
        pass
    assert not list(Path(tempfile.gettempdir()).glob("igc-nas-locks-*"))
