"""The engine benchmark: it counts every trial, times samplers separately, and growth is a ratio of two marks."""

import json
import math
import time
from collections.abc import Iterator

import numpy as np
import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.bench.engine import Costs, EngineReport, Ledger, Stopwatch, bench_engine
from igc_nas.bench.virtual_executor import VirtualExecutor, made_up_latency
from igc_nas.engine.events import Job, Progress
from igc_nas.engine.executor import Message, RungReport, TrialCompleted, TrialFailed, TrialPruned
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import load_study
from tests.support.searches import spec


def question() -> StudySpec:
    return spec(recipe={"rungs": [2000]}, prune_below=0.02)


@pytest.mark.slow
def test_a_short_run_has_all_figures() -> None:
    recipe = {"rungs": [2000]}
    report = bench_engine(300, workers=32, marks=(100, 200), recipe=recipe, prune_below=0.02)
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    states = found["states"]
    assert states["complete"] + states["pruned"] == 300
    assert found["trials"] == 300 + states.get("failed", 0)
    assert [row["trials"] for row in found["bookkeeping"]] == [100, 200, found["trials"]]
    assert [row["n"] for row in found["bookkeeping"]] == [50, 100, found["trials"] // 2]
    for row in found["bookkeeping"]:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["rss_mb"] > 0
    assert set(found["growth"]) == {"100 to 200", f"200 to {found['trials']}", f"100 to {found['trials']}"}
    first, second, _ = found["bookkeeping"]
    assert found["growth"]["100 to 200"]["wall"] == pytest.approx(second["median_ms"] / first["median_ms"], rel=0.01)
    assert set(found["per_second"]) == {"asks", "tells", "trials"}
    assert set(found["apart_ms"]) == {"sampler", "rule", "stub"}
    assert set(found["opening_s"]) == {"load", "front", "hypervolume curve", "igc-nas front", "store"}
    assert all(value > 0 for part in ("per_second", "apart_ms", "opening_s") for value in found[part].values())
    assert found["peak_mb"] >= max(row["rss_mb"] for row in found["bookkeeping"]) - 0.1
    lines = report.lines()
    assert lines[0].startswith(f"bookkeeping of a trial among {found['trials']} by 32 virtual workers (")
    assert any(line.startswith("growth from 100 to 200: ") for line in lines)


def test_growth_is_the_ratio_of_medians() -> None:
    marks = tuple(Costs(n, 50, ms, 2 * ms, ms / 2, 100.0, 1.0) for n, ms in ((100, 2.0), (1000, 3.0), (10_000, 9.0)))
    report = EngineReport(10_000, 4, {}, marks, {}, {}, 0.0, {}, {})
    assert report.growth == {
        "100 to 1000": {"wall": 1.5, "cpu": 1.5},
        "1000 to 10000": {"wall": 3.0, "cpu": 3.0},
        "100 to 10000": {"wall": 4.5, "cpu": 4.5},
    }
    assert EngineReport(100, 4, {}, marks[:1], {}, {}, 0.0, {}, {}).growth == {}


def test_time_apart_is_counted_separately() -> None:
    watch = Stopwatch()
    began = watch.now()
    with watch.apart("sampler"):
        time.sleep(0.05)
    assert watch.apart_s["sampler"][0] >= 0.05
    assert (watch.now() - began)[0] < watch.apart_s["sampler"][0]
    with pytest.raises(KeyError), watch.apart("rule"):
        raise KeyError
    assert set(watch.apart_s) == {"sampler", "rule"}


def test_bookkeeping_is_in_the_order_of_ends() -> None:
    ledger = Ledger()
    for number, seconds in ((0, 1.0), (1, 2.0), (2, 4.0)):
        ledger.asked[number] = np.array([seconds, 0.0])
    ledger.told[2] += 0.5
    assert [ledger.end(number, "complete") for number in (2, 0)] == [True, True]
    assert not ledger.end(7, "duplicate"), "it was not evaluated"
    assert ledger.bookkeeping()[:, 0].tolist() == [4.5, 1.0]
    assert dict(ledger.states) == {"complete": 2, "duplicate": 1}
    assert list(ledger.rss) == [1]


# Virtual evaluators.


def conversation(executor: VirtualExecutor, should_continue: bool = True) -> Iterator[Message]:
    """All messages until no job is left, with the same answer to every rung."""
    while executor.running():
        for message in executor.messages(None):
            yield message
            if isinstance(message, RungReport):
                executor.answer(message.number, should_continue)


def jobs(executor: VirtualExecutor, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        executor.submit(Job(number, executor.spec.feasible.draw(rng), seed=0))


@pytest.mark.parametrize("should_continue", [True, False])
def test_every_trial_ends_once_and_time_never_runs_back(should_continue: bool) -> None:
    with VirtualExecutor(question(), 200, seed=1) as executor:
        jobs(executor, 200)
        assert executor.idle() == 0
        times, ends = [], {}
        for message in conversation(executor, should_continue):
            times.append(executor.now_s)
            if isinstance(message, TrialCompleted | TrialPruned | TrialFailed):
                assert message.number not in ends
                ends[message.number] = message
    assert times == sorted(times)
    assert len(ends) == 200
    kinds = {type(message) for message in ends.values()}
    assert kinds == {TrialCompleted if should_continue else TrialPruned, TrialFailed}
    assert list(ends) != sorted(ends), "they take different times"


def test_a_virtual_trial_sends_the_messages_of_a_real_one() -> None:
    with VirtualExecutor(question(), 1, seed=1) as executor:
        jobs(executor, 1)
        said = list(conversation(executor))
        assert executor.idle() == 1
    assert [type(message) for message in said] == [Progress] * 2 + [RungReport] + [Progress] * 2 + [TrialCompleted]
    end = said[-1]
    assert end.score.rungs == (said[2].rung,)
    assert end.score.curve == tuple(message.epoch for message in said[3:5])
    assert end.score.samples == executor.spec.recipe.samples


def test_invented_records_are_as_long_as_real_ones() -> None:
    arch: ArchConfig = spec().feasible.heaviest()
    made = len(made_up_latency(cost_of(arch), np.random.default_rng(0)).model_dump_json(exclude_none=True))
    real = [len(c.latency.model_dump_json(exclude_none=True)) for c in load_study("igc_cifar10_2m").candidates]
    assert 0.7 < made / (sum(real) / len(real)) < 1.5
    assert math.isfinite(made)
