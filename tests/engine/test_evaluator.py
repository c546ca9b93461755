"""One trial in this process: what it spends its time on, and when it is alone."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.data.datasets import locate
from igc_nas.engine import evaluator as evaluate
from igc_nas.engine.device_lock import DeviceLock
from igc_nas.engine.evaluator import Evaluator
from igc_nas.engine.executor import Reporter
from igc_nas.evaluation.latency import Measurer
from igc_nas.nn.device import Device, cpu_name
from igc_nas.nn.lowering.network_tuner import NetworkTuner
from igc_nas.space.budget import Budget
from igc_nas.study.defaults import new_spec
from igc_nas.study.records import Rung, Score, Trial
from tests.support.searches import latency

CPU = Device("cpu", "cpu", cpu_name())
RECIPE = {"epochs": 2, "train_size": 64, "held_out": 32, "resolution": 8, "crop": 1, "batch": 16}
ARCH = ArchConfig.parse(
    {"stem": {"width": 8, "stride": 4}, "stage": [{"unit": "igcv1", "L": 4, "M": 2, "blocks": 1}], "classes": 10}
)


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def evaluator(folder: Path, **changes: Any) -> Evaluator:
    info = locate("shapes", None)
    spec = new_spec(info, CPU.name, space="tiny", name="s", recipe=RECIPE, **changes)
    return Evaluator(spec.model_copy(update={"reference_ms": 1.0}), info, CPU, 1, DeviceLock(folder, 0, 1))


def stubbed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], found: Evaluator) -> None:
    """Phases that do nothing for so many seconds, of which `others` are spent waiting for them, in the choice."""

    def measure(self: Measurer, arch: ArchConfig, reference_ms: float | None) -> Any:
        assert found.room._own.is_locked, "at work"
        time.sleep(seconds["prepare"] / 2)
        with self.alone():
            assert not found.room._own.is_locked
            time.sleep(seconds["measure"])
        time.sleep(seconds["prepare"] / 2)
        return latency(2.0)

    def choose(self: NetworkTuner, *_: Any) -> None:
        time.sleep(seconds["choose"])
        with found.room._waiting():
            time.sleep(seconds["wait"])

    monkeypatch.setattr(Measurer, "__call__", measure)
    monkeypatch.setattr(NetworkTuner, "__call__", choose)
    monkeypatch.setattr(evaluate, "train_proxy", lambda *_: time.sleep(seconds["train"]))


def test_what_a_trial_spends_is_told_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert not found.room._own.is_locked


def test_over_the_latency_budget_nothing_is_chosen_or_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluator(tmp_path, budget=Budget(latency_ms=1.0))
    stubbed(monkeypatch, dict.fromkeys(("prepare", "measure", "choose", "wait", "train"), 0.01), found)
    outcome = found(ARCH, 0)
    assert outcome.score is None
    assert outcome.spent.measure_s > 0
    assert (outcome.spent.choose_s, outcome.spent.train_s) == (0, 0)


def test_a_real_trial(tmp_path: Path) -> None:
    """Only the race and the rounds are alone; others may measure before and after."""
    found = evaluator(tmp_path)
    paused: list[bool] = []
    usual = found.room.pause
    alone = []

    @contextlib.contextmanager
    def measuring() -> Iterator[None]:
        with DeviceLock.measuring(found.room):
            alone.append(len(paused))
            yield
            assert len(paused) == alone[-1], "nobody pauses who is alone"

    found.room.measuring = measuring  # type: ignore[method-assign]
    found.room.pause = lambda: (paused.append(True), usual())[1]  # type: ignore[method-assign]
    found._measure.pause = found._measure.cache.pause = found.room.pause  # type: ignore[union-attr]
    rungs: list[Rung] = []
    outcome = found(ARCH, 0, Reporter(go_on=lambda latency, rung: bool(rungs.append(rung)) or True))
    assert isinstance(outcome.score, Score)
    assert len(alone) == 1
    assert alone[0] > len(outcome.latency.forms) > 1
    assert len(paused) > alone[0]
    spent = outcome.spent
    assert spent.train_s >= outcome.score.train_s - 0.01
    assert min(spent.prepare_s, spent.measure_s, spent.choose_s) > 0


def test_a_trial_keeps_what_it_spent_and_older_ones_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluator(tmp_path)
    stubbed(monkeypatch, dict.fromkeys(("prepare", "measure", "choose", "wait", "train"), 0.0), found)
    spent = found(ARCH, 0).spent
    trial = Trial(number=0, state="running", params={}, spent=spent)
    assert Trial.from_json(trial.to_json()) == trial
    assert Trial.from_json('{"number": 0, "state": "running", "params": {}}').spent is None
