"""One trial in this process: the time of each step, and when it has the device alone."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.data.datasets import locate
from igc_nas.engine import evaluator as evaluator_module
from igc_nas.engine.device_lock import DeviceLock
from igc_nas.engine.evaluator import Evaluator
from igc_nas.engine.executor import Reporter
from igc_nas.nn.device import Device, cpu_name
from igc_nas.space.budget import Budget
from igc_nas.study.defaults import new_spec
from igc_nas.study.records import Latency, Rung, Score, Trial
from igc_nas.study.spec import Target
from tests.support.caches import own_cache
from tests.support.searches import latency

CPU = Device("cpu", "cpu", cpu_name())
RECIPE = {"epochs": 2, "train_size": 64, "held_out": 32, "resolution": 8, "crop": 1, "batch": 16}
ARCH = ArchConfig.parse(
    {"stem": {"width": 8, "stride": 4}, "stage": [{"unit": "igcv1", "L": 4, "M": 2, "blocks": 1}], "classes": 10}
)


@pytest.fixture(autouse=True)
def no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    own_cache(tmp_path / "cache", monkeypatch)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def evaluator(folder: Path, **changes: Any) -> Evaluator:
    info = locate("shapes", None)
    spec = new_spec(info, CPU.name, space="tiny", name="s", recipe=RECIPE, **changes)
    return Evaluator(spec.model_copy(update={"reference_ms": 1.0}), info, CPU, 1, DeviceLock(folder, 0, 1))


def stubbed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], found: Evaluator) -> None:
    """Replace each step by one that sleeps; the choice of forms also waits for others."""
    timings, alone = found.measurer.cache, found.measurer.alone

    class Measure:
        cache = timings

        def __call__(self, arch: ArchConfig, reference_ms: float | None) -> Latency:
            return measure()

    def measure() -> Latency:
        assert found.lock.is_shared
        time.sleep(seconds["prepare"] / 2)
        with alone():
            assert not found.lock.is_shared
            time.sleep(seconds["measure"])
        time.sleep(seconds["prepare"] / 2)
        return latency(2.0)

    def choose(*_: Any) -> None:
        time.sleep(seconds["choose"])
        with found.lock.waiting():
            time.sleep(seconds["wait"])

    found.measurer, found.tuner = Measure(), choose  # type: ignore[assignment]
    monkeypatch.setattr(evaluator_module, "train_proxy", lambda *_: time.sleep(seconds["train"]))


def test_the_time_of_each_step_is_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluator(tmp_path)
    seconds = {"prepare": 0.1, "measure": 0.15, "choose": 0.2, "wait": 0.25, "train": 0.3}
    stubbed(monkeypatch, seconds, found)
    for _ in range(2):
        began = time.perf_counter()
        spent = found(ARCH, 0).spent.model_dump()
        took = time.perf_counter() - began
        for name, expected in seconds.items():
            assert expected <= spent[f"{name}_s"] + 1e-3, name
        assert sum(spent.values()) <= took + 0.01
    assert not found.lock.is_shared


def test_over_the_latency_budget_nothing_is_chosen_or_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluator(tmp_path, budget=Budget(latency_ms=1.0))
    stubbed(monkeypatch, dict.fromkeys(("prepare", "measure", "choose", "wait", "train"), 0.01), found)
    outcome = found(ARCH, 0)
    assert outcome.score is None
    assert outcome.spent.measure_s > 0
    assert (outcome.spent.choose_s, outcome.spent.train_s) == (0, 0)


def test_a_real_trial(tmp_path: Path) -> None:
    """Only the race and the final rounds have the device alone; others may measure before and after."""
    found = evaluator(tmp_path)
    paused: list[bool] = []
    usual = found.lock.pause
    alone = []

    @contextlib.contextmanager
    def measuring() -> Iterator[None]:
        with DeviceLock.exclusive(found.lock):
            alone.append(len(paused))
            yield
            assert len(paused) == alone[-1], "a measurement does not pause"

    found.lock.exclusive = measuring  # type: ignore[method-assign]
    found.lock.pause = lambda: (paused.append(True), usual())[1]  # type: ignore[method-assign]
    found.measurer.pause = found.measurer.cache.pause = found.lock.pause  # type: ignore[union-attr]
    rungs: list[Rung] = []

    class Rungs(Reporter):
        def should_continue(self, latency: Latency, rung: Rung) -> bool:
            rungs.append(rung)
            return True

    outcome = found(ARCH, 0, Rungs())
    assert isinstance(outcome.score, Score)
    assert len(alone) == 1
    assert alone[0] > len(outcome.latency.forms) > 1
    assert len(paused) > alone[0]
    spent = outcome.spent
    assert spent.train_s >= outcome.score.train_s - 0.01
    assert min(spent.prepare_s, spent.measure_s, spent.choose_s) > 0


def test_a_trial_keeps_its_times_and_older_trials_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluator(tmp_path)
    stubbed(monkeypatch, dict.fromkeys(("prepare", "measure", "choose", "wait", "train"), 0.0), found)
    spent = found(ARCH, 0).spent
    trial = Trial(number=0, state="running", params={}, spent=spent)
    assert Trial.from_json(trial.to_json()) == trial
    assert Trial.from_json('{"number": 0, "state": "running", "params": {}}').spent is None


def test_a_longer_training_is_by_the_targets_recipe_and_the_same_each_time(tmp_path: Path) -> None:
    found = evaluator(tmp_path, latency={"forms": "factored"})
    longer = found.spec.recipe.model_copy(update={"epochs": 3, "train_size": 128, "rungs": (), "forms": "factored"})
    found.spec = found.spec.model_copy(update={"target": Target(images=2 * longer.samples, recipe=longer, share=0.4)})
    found.tuner = lambda *_: None  # type: ignore[assignment]
    one, two = (found.train_longer(ARCH, 7, latency(2.0), Reporter()) for _ in range(2))
    assert isinstance(one.score, Score)
    assert isinstance(two.score, Score)
    assert (one.score.samples, one.score.held_out) == (3 * 128, longer.held_out)
    assert (one.score.error, one.score.loss) == (two.score.error, two.score.loss)
    assert one.latency == latency(2.0)
