"""Trainings to the end in worker processes: what each reports, and that a bad one costs itself only."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from igc_nas.data.datasets import DatasetInfo
from igc_nas.engine.events import Event, Progress
from igc_nas.engine.executor import TrialFailed
from igc_nas.engine.trainings import TrainingJob, Trainings
from igc_nas.evaluation.images import Images
from igc_nas.evaluation.retraining import CHECKPOINT_FILE, RESULT_FILE, WEIGHTS_FILE, stored_result
from igc_nas.study.finals import Trained
from tests.support.trainings import CRASHES, arch, held_images, plan


def run(folder: Path, sides: list[int], workers: int = 1, **recipe: Any) -> tuple[dict[int, Any], list[Event]]:
    """The outcome of a training for each side of images, by its place, and the events."""
    jobs = [TrainingJob(place, arch(side), 0, folder / str(place)) for place, side in enumerate(sides)]
    events: list[Event] = []
    with Trainings(plan(**recipe), ("cpu",), workers, 1, events.append) as trainings:
        return {job.number: ended for job, ended in trainings.run(jobs)}, events


def test_a_crash_and_a_divergence_cost_one_training_each(tmp_path: Path) -> None:
    ended, events = run(tmp_path, [8, CRASHES, 8, 7])
    assert isinstance(ended[1], TrialFailed)
    assert (ended[1].failure.kind, "SIGABRT" in ended[1].reason) == ("died", True)
    for place in (0, 2, 3):
        assert isinstance(ended[place], Trained)
        assert stored_result(tmp_path / str(place)) == ended[place]
    assert ended[0].curve == ended[2].curve  # the same seed
    told = [e.training for e in events if isinstance(e, Progress) and e.number == 0 and e.training]
    assert (told[0].images, told[-1].images, told[-1].total) == (0, 192, 192)
    diverged, _ = run(tmp_path / "diverged", [8], lr=100.0, epochs=30, weight_decay=1.0)
    assert diverged[0].failure.kind == "diverged"
    assert not (tmp_path / "diverged" / "0" / RESULT_FILE).exists()


def test_the_speed_of_every_network_is_known_before(tmp_path: Path) -> None:
    jobs = [TrainingJob(place, arch(side), 0, tmp_path / str(place)) for place, side in enumerate((8, 12))]
    with Trainings(plan(), ("cpu",), 1) as trainings:
        speeds = {job.number: speed for job, speed in trainings.images_per_s(jobs)}
        assert all(isinstance(speed, float) and speed > 0 for speed in speeds.values())
        assert len(dict(trainings.run(jobs))) == 2


def held_after_a_light_training(info: DatasetInfo, side: int, device: torch.device) -> Images:
    """The test images, unless the process that has trained holds what only torch.compile and exports need."""
    import igc_nas.engine.evaluator  # noqa: F401 - what a worker of a search needs beside

    found = sorted({"sympy", "torch._dynamo"} & sys.modules.keys())
    if found:
        raise RuntimeError(f"loaded: {found}")
    return held_images(info, side, device)


def test_a_worker_trains_without_the_compiler_of_torch(tmp_path: Path) -> None:
    """Which takes two seconds to load."""
    light = replace(plan(), load_test=held_after_a_light_training)
    with Trainings(light, ("cpu",), 1) as trainings:
        ((_, ended),) = trainings.run([TrainingJob(0, arch(), 0, tmp_path)])
    assert isinstance(ended, Trained), ended


@pytest.mark.slow
def test_a_training_killed_at_any_moment_ends_in_the_same_bits(tmp_path: Path) -> None:
    """kill -9 of the coordinator; its worker ends by itself."""
    command = [sys.executable, "-m", "tests.support.trainings"]

    def steps(folder: Path) -> int:
        file = folder / CHECKPOINT_FILE
        return file.stat().st_mtime_ns if file.is_file() else 0

    whole = tmp_path / "whole"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    killed, seen, unfinished = tmp_path / "killed", 0, 0
    while unfinished < 3 and not (killed / RESULT_FILE).exists():
        with subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            until = time.monotonic() + 60
            while steps(killed) == seen and process.poll() is None and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.05)
            process.kill()
        time.sleep(1)  # the worker notices; it may reach the end before
        seen = steps(killed)
        unfinished += not (killed / RESULT_FILE).exists()
    assert unfinished > 0
    subprocess.run([*command, str(killed)], check=True, capture_output=True)
    assert (killed / WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()
    assert stored_result(killed).curve == stored_result(whole).curve
