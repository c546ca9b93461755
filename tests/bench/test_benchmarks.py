"""Benchmarks: what a report says of its rows, and each bench for real on two tiny architectures (no time is judged)."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.bench import training
from igc_nas.bench.deployment import bench_deploy
from igc_nas.bench.latency import bench_latency, busy_process, drawn_architectures, measured_twice
from igc_nas.bench.report import Report, Row, architectures
from igc_nas.bench.search import KINDS as FORMS
from igc_nas.bench.search import bench_search
from igc_nas.bench.training import bench_train
from igc_nas.bench.workers import KINDS, ChunkRun, activity_shares, bench_workers, speed, speedup, trials_per_hour
from igc_nas.engine.events import Ended, Job, Started
from igc_nas.engine.search import Run, search
from igc_nas.errors import IgcNasError
from igc_nas.evaluation.latency import Instruments, Measurer
from igc_nas.nn.device import Device, cpu_name
from igc_nas.nn.lowering import variants
from igc_nas.nn.lowering.timing_cache import timing_cache_for
from igc_nas.nn.lowering.training import NetworkForm
from igc_nas.nn.timing import Race
from igc_nas.study.records import Candidate, TimeBreakdown, Trial
from igc_nas.study.spec import LatencySpec, StudySpec
from tests.support.caches import own_cache
from tests.support.searches import evaluate
from tests.support.searches import latency as stub_latency

CPU = Device("cpu", "cpu", cpu_name())
TINY = {
    "one": ArchConfig.parse(
        {"stem": {"width": 8, "stride": 4}, "stage": [{"unit": "igcv1", "L": 4, "M": 2, "blocks": 1}]}
    ),
    "two": ArchConfig.parse(
        {
            "classes": 2,
            "stem": {"width": 8, "stride": 4},
            "stage": [{"unit": "igcv3", "width": 12, "expand": 2, "G1": 2, "G2": 2, "blocks": 1}],
        }
    ),
}
SHORT = Race(rounds=3, cap_s=0.2)
ROWS: tuple[Row, ...] = (
    {"name": "a", "group": "x", "params": 1000, "ratio": 2.0},
    {"name": "b", "group": "x", "params": 2000, "ratio": 8.0},
    {"name": "c", "group": "y", "params": None, "ratio": 0.5},
)

pytestmark = pytest.mark.usefixtures("times_of_the_module")


@pytest.fixture(autouse=True)
def small_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two tiny architectures, few rounds, no data of the user's."""
    monkeypatch.setenv("IGC_NAS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(training, "architectures", lambda: TINY)
    monkeypatch.setattr(training, "ROUNDS", 3)
    monkeypatch.setattr(training, "CAP_S", 0.2)
    monkeypatch.setattr(variants, "CAP_S", 0.001)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Reports.


def test_a_report_says_the_geometric_mean_and_the_least_of_its_rows() -> None:
    found = Report("title", ROWS, {"device": "here", "threads": 1}).to_dict()
    assert found["bench"] == "title"
    assert found["geomean"] == pytest.approx(2.0)
    assert found["min"] == 0.5
    assert found["groups"] == {
        "x": {"geomean": pytest.approx(4.0), "min": 2.0, "n": 2},
        "y": {"geomean": pytest.approx(0.5), "min": 0.5, "n": 1},
    }
    assert found["rows"] == list(ROWS)
    assert found["conditions"] == {"device": "here", "threads": 1}


def test_geomean_and_min_are_over_the_main_groups() -> None:
    found = Report("title", ROWS, {}, main=("x",)).to_dict()
    assert (found["geomean"], found["min"]) == (pytest.approx(4.0), 2.0)
    assert len(found["rows"]) == 3
    assert set(found["groups"]) == {"x", "y"}
    both = Report("title", ROWS, {}, main=("y", "x")).to_dict()
    assert (both["geomean"], both["min"]) == (pytest.approx(2.0), 0.5)


def test_extra_figures_are_reported() -> None:
    found = Report("title", ROWS, {}, extra={"overall_ratio": 1.5}).to_dict()
    assert found["overall_ratio"] == 1.5
    assert list(found)[-2:] == ["rows", "conditions"]


def test_a_report_as_text_has_a_table_its_means_and_conditions() -> None:
    report = Report("title", ROWS, {"device": "here", "load": None, "batch": 4}, ("x",), {"overall_ratio": 1.2345})
    lines = report.lines()
    assert lines[:2] == ["title", ""]
    assert [line.split() for line in lines[2:6]] == [
        ["name", "group", "params", "times"],
        ["a", "x", "1000", "2"],
        ["b", "x", "2000", "8"],
        ["c", "y", "0.5"],
    ]
    assert len({len(line) for line in lines[2:6]}) == 1, "columns are as wide in every line"
    words = [" ".join(line.split()) for line in lines[7:]]
    assert words[:3] == [
        "x geometric mean 4.00 least 2.00 n 2",
        "y geometric mean 0.50 least 0.50 n 1",
        "main groups geometric mean 4.00 least 2.00 n 2",
    ]
    assert "overall_ratio: 1.23" in words
    assert words[-1] == "device here, batch 4"


def test_the_architectures_are_of_all_units_and_sizes() -> None:
    found = architectures()
    assert {stage.unit for arch in found.values() for stage in arch.stages} >= {"igcv1", "igcv2", "igcv3"}
    assert len({arch_id(arch) for arch in found.values()}) == len(found) >= 6
    params = [cost_of(arch).params for arch in found.values()]
    assert min(params) < 50_000
    assert max(params) > 500_000


# The benches, for real.


def as_json(report: Report) -> dict[str, Any]:
    """What --json prints, read again."""
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))


def consistent(found: dict[str, Any]) -> None:
    ratios = [row["ratio"] for row in found["rows"]]
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)
    assert min(ratios) <= found["min"] <= found["geomean"] * (1 + 1e-9)
    assert found["geomean"] <= max(ratios) * (1 + 1e-9)
    assert found["conditions"]["device"] == CPU.name
    assert found["conditions"]["threads"] == 1


def test_bench_deploy() -> None:
    said: list[str] = []
    report = bench_deploy(CPU, (1, 2), "eager", said.append, archs=TINY, race=SHORT, rounds=3)
    found = as_json(report)
    consistent(found)
    assert [(row["name"], row["batch"]) for row in found["rows"]] == [(n, b) for b in (1, 2) for n in TINY]
    assert set(found["groups"]) == {f"{unit} batch {batch}" for unit in ("igcv1", "igcv3") for batch in (1, 2)}
    for row in found["rows"]:
        cost = cost_of(TINY[row["name"]])
        assert (row["params"], row["macs"]) == (cost.params, cost.macs)
        assert row["form"] in ("folded", "semidense", "dense", "mixed")
        assert row["ratio"] == pytest.approx(row["factored_nchw_ms"] / row["best_ms"]), (
            "to the factored network in NCHW"
        )
        faster = min(row["factored_nchw_ms"], row["factored_channels_last_ms"])
        assert row["times_faster_format"] == pytest.approx(faster / row["best_ms"])
    assert len(said) == 4
    assert found["conditions"]["runtime"] == "eager"
    assert len(report.lines()) > 8


@pytest.mark.slow
def test_bench_deploy_in_another_runtime() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = as_json(bench_deploy(CPU, (1,), "onnxruntime", archs=TINY, race=SHORT, rounds=3))
    consistent(found)
    assert all(row["factored_channels_last_ms"] is None for row in found["rows"])
    assert found["conditions"]["runtime"] == "onnxruntime"


@pytest.mark.slow
def test_bench_train() -> None:
    said: list[str] = []
    found = as_json(bench_train(CPU, batch=4, resolution=8, say=said.append, compiled=False, archs=TINY))
    consistent(found)
    assert [row["name"] for row in found["rows"]] == list(TINY)
    assert (found["conditions"]["batch"], found["conditions"]["resolution"]) == (4, 8)
    assert found["conditions"]["torch_compile"] == "left out"
    assert len(said) == len(TINY)
    variants = [f"{layout}_{dtype}_eager" for layout in ("nchw", "nhwc") for dtype in ("fp32", "bf16")]
    for row in found["rows"]:
        assert row["form"] in get_args(NetworkForm)
        baselines = {variant: row[f"{variant}_ms"] for variant in variants}
        assert row["best_baseline"] == min(baselines, key=baselines.__getitem__)
        assert row["ratio"] == pytest.approx(min(baselines.values()) / row["ours_ms"], rel=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
def test_bench_train_with_torch_compile() -> None:
    name, arch = next(iter(TINY.items()))
    found = as_json(bench_train(CPU, batch=4, resolution=8, archs={name: arch}))
    row = found["rows"][0]
    if found["conditions"]["torch_compile"] != "yes":
        pytest.skip(found["conditions"]["torch_compile"])
    assert row["compile_s"] > 0
    assert all(row[f"{layout}_{dtype}_compile_ms"] > 0 for layout in ("nchw", "nhwc") for dtype in ("fp32", "bf16"))


def test_bench_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache(tmp_path / "cache", monkeypatch)
    said: list[str] = []
    before = psutil.Process().children()
    spec = LatencySpec(device=CPU.name, forms="any")
    cache = timing_cache_for(CPU.name, spec.threads, "deployment")
    measurer = Measurer(spec, CPU, cache=cache, cap_s=0.0, instruments=Instruments(warm_up=lambda *_: None))
    report = bench_latency(CPU, say=said.append, archs=[*TINY.values()] * 2, measurer=measurer)
    found = as_json(report)
    consistent(found)
    assert psutil.Process().children() == before, "the neighbour is gone"
    assert [row["group"] for row in found["rows"]] == ["quiet"] * 4 + ["busy neighbour"] * 4
    for row in found["rows"]:
        first, second = row["first_ms"], row["second_ms"]
        assert row["ratio"] == pytest.approx(max(first, second) / min(first, second))
        assert row["ratio"] >= 1
        assert 0 <= row["noisy"] <= 2
    quiet = [row["ratio"] for row in found["rows"] if row["group"] == "quiet"]
    assert found["geomean"] == pytest.approx(math.prod(quiet) ** 0.25)
    for group in ("quiet", "busy neighbour"):
        assert found[group]["median_difference"] >= 0
        assert -1 <= found[group]["rank_correlation"] <= 1
        assert 0 <= found[group]["noisy_share"] <= 1
    assert len(said) == 2 + 4 * 4
    assert list((tmp_path / "cache").rglob("*.json")), "chain times are kept"


def test_the_order_of_bench_latency_is_random_and_repeats() -> None:
    archs = [cheap(width) for width in range(1, 9)]

    def order(seed: int) -> list[ArchConfig]:
        seen: list[ArchConfig] = []

        def measure(arch: ArchConfig) -> Any:
            seen.append(arch)
            return stub_latency(cost_of(arch).macs / 1e6)

        found = measured_twice(archs, measure, seed, lambda _: None)
        assert [arch for arch, _, _ in found] == archs
        assert all(first == second == stub_latency(cost_of(arch).macs / 1e6) for arch, first, second in found)
        return seen

    assert order(0) == order(0) != order(1)
    assert order(0) != archs + archs
    assert all(order(0).count(arch) == 2 for arch in archs)


def cheap(width: int) -> ArchConfig:
    return ArchConfig.parse({"stem": {"width": width}, "stage": [{"unit": "conv", "width": width, "blocks": 1}]})


def test_the_neighbour_ends_with_the_bench() -> None:
    before = psutil.Process().children()

    def interrupted() -> None:
        with busy_process():
            (child,) = (process for process in psutil.Process().children() if process not in before)
            assert child.is_running()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert psutil.Process().children() == before


def test_the_architectures_of_bench_latency_are_drawn_by_the_seed() -> None:
    first, again = drawn_architectures(2, 0), drawn_architectures(3, 0)
    assert first == again[:2]
    assert first[0] != first[1]
    assert all(cost_of(arch).params <= 2_000_000 for arch in again)


class Searches:
    """Searches in this process with invented latencies and errors; records their specs, runs and candidates."""

    def __init__(self) -> None:
        self.specs: list[StudySpec] = []
        self.runs: list[Run] = []
        self.candidates: dict[str, list[str]] = defaultdict(list)
        """Canonical ids by the name of the study."""

    def __call__(self, spec: StudySpec, run: Run, **more: Any) -> Iterator[Candidate]:
        self.specs.append(spec)
        self.runs.append(run)
        for candidate in search(spec, run, evaluate=evaluate, **more):
            self.candidates[spec.name].append(candidate.id)
            yield candidate


def test_bench_search() -> None:
    said: list[str] = []
    found = as_json(bench_search(CPU, trials=4, chunk=2, say=said.append, space="tiny", run_search=Searches()))
    consistent(found)
    assert [row["trials"] for row in found["rows"]] == [2, 4]
    for row in found["rows"]:
        assert row["ratio"] == pytest.approx(row["factored_s"] / row["fastest_s"])
    totals = {kind: sum(row[f"{kind}_s"] for row in found["rows"]) for kind in FORMS}
    assert found["overall_ratio"] == pytest.approx(totals["factored"] / totals["fastest"])
    for kind in FORMS:
        assert found[f"{kind}_trials_per_hour"] == pytest.approx(3600 * 4 / totals[kind])
        assert found["shares"][kind]["trials"] == 4
    assert found["conditions"]["data"].startswith("shapes")
    assert len(said) == 2


def test_both_searches_of_bench_search_see_the_same_architectures() -> None:
    searches = Searches()
    bench_search(CPU, trials=4, chunk=4, space="tiny", run_search=searches)
    assert searches.candidates["factored"] == searches.candidates["fastest"]
    assert len(searches.candidates["factored"]) == 4
    specs = {spec.name: spec for spec in searches.specs}
    assert [specs[kind].recipe.forms for kind in FORMS] == ["factored", "fastest"]
    assert {specs[kind].latency.runtime for kind in FORMS} == {CPU.deployment_runtime}
    assert specs["factored"].recipe.dtype == "float32"


def test_bench_search_runs_until_all_trials_are_complete() -> None:
    found = as_json(bench_search(CPU, trials=5, chunk=2, space="tiny", run_search=Searches()))
    assert found["rows"][-1]["trials"] == 5


# Workers.


def tiny_workers_bench(searches: Searches, **arguments: Any) -> Report:
    """bench workers on the tiny space and synthetic images."""
    return bench_workers(CPU, dataset="shapes", space="tiny", run_search=searches, **arguments)


def test_bench_workers_evaluates_the_same_trials_with_every_kind() -> None:
    searches = Searches()
    said: list[str] = []
    found = as_json(tiny_workers_bench(searches, trials=5, chunk=2, say=said.append))
    consistent(found)
    assert [row["trials"] for row in found["rows"]] == [3, 2], "none is too short"
    assert len(said) == 1 + 2
    *warming, runs = [run.threads for run in searches.runs[:2]], searches.runs[2:]
    assert warming == [[2, 1]], "the forms are timed for either number of threads beforehand"
    assert [(run.workers, run.threads) for run in runs] == [*KINDS.values()] * 2
    given = [[arch_id(arch) for arch in run.enqueue] for run in runs]
    for turn in (given[:3], given[3:]):
        after = [archs[workers:] for archs, (workers, _) in zip(turn, KINDS.values(), strict=True)]
        assert after[0] == after[1] == after[2], "after one to warm each worker up"
    assert len({identity for archs in given[::3] for identity in archs[1:]}) == 5
    timed = {arch_id(arch) for arch in searches.runs[0].enqueue}
    assert timed >= {identity for archs in given for identity in archs}


def test_bench_workers_runs_the_default_recipe_without_pruning() -> None:
    searches = Searches()
    tiny_workers_bench(searches, trials=2, chunk=2)
    short, *_, spec = searches.specs
    assert (spec.prune_below, spec.budget.params, spec.recipe.epochs, spec.recipe.train_size) == (
        0.0,
        2_000_000,
        2,
        3000,
    )
    assert (short.recipe.epochs, short.recipe.rungs) == (1, ())
    same = ("batch", "resolution", "dtype", "forms")
    assert all(getattr(short.recipe, name) == getattr(spec.recipe, name) for name in same), "what times are kept by"
    assert spec.bounds


@pytest.mark.slow
def test_bench_workers_reports_rates_ratios_and_shares() -> None:
    searches = Searches()
    found = as_json(tiny_workers_bench(searches, trials=4, chunk=2))
    for name in (*(f"{kind}_trials_per_hour" for kind in KINDS), "two_workers_ratio", "two_threads_ratio"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    alone = as_json(tiny_workers_bench(searches, trials=2, chunk=2))
    assert alone["two_workers_ratio"]["low"] is None, "a single turn has no interval"
    assert found["conditions"]["data"].startswith("shapes")


def chunk_run(workers: int, *times: tuple[str, float, float]) -> ChunkRun:
    """The names of trials, when they began and when they ended."""
    return ChunkRun(workers, {name: at for name, at, _ in times}, {name: at for name, _, at in times})


def test_a_chunk_counts_while_all_workers_are_warm_and_busy() -> None:
    one = chunk_run(1, ("w", 0, 5), ("a", 5, 15), ("b", 15, 25), ("c", 25, 45))
    assert (one.window, one.counted) == ((5, 45), ("a", "b", "c"))
    assert one.work_s(one) == one.window_s == 40
    two = chunk_run(2, ("v", 0, 4), ("w", 0, 5), ("a", 4, 16), ("b", 5, 17), ("c", 16, 40))
    assert two.counted == ("a", "b", "c")
    assert two.window == (5, 17), "from then on one worker has nothing left"
    assert [two.share_in_window(name) for name in "abc"] == [pytest.approx(11 / 12), 1.0, pytest.approx(1 / 24)]
    assert two.work_s(one) == pytest.approx(10 * 11 / 12 + 10 + 20 / 24)
    rounds = [{"one": one, "two_workers": two}]
    assert speed(rounds, "one") == 1
    assert speed(rounds, "two_workers") == pytest.approx(20 / 12)
    assert trials_per_hour(rounds, "one") == pytest.approx(3600 * 3 / 40)


def test_ratios_are_those_of_the_trials_an_hour() -> None:
    """Also where a worker waits for its next trial."""
    one = chunk_run(1, ("w", 0, 5), ("a", 6, 15), ("b", 17, 25))
    two = chunk_run(2, ("v", 0, 4), ("w", 0, 5), ("a", 5, 15), ("b", 5, 15))
    rounds = [{"one": one, "two_workers": two}]
    per_hour = [trials_per_hour(rounds, kind) for kind in ("one", "two_workers")]
    assert per_hour[0] == pytest.approx(3600 * 2 / 20)
    assert speedup(rounds, "two_workers") == pytest.approx(per_hour[1] / per_hour[0])


def test_two_workers_that_share_the_trials_are_twice_as_fast() -> None:
    one = chunk_run(1, ("w", 0, 1), *((str(i), 1 + i, 2 + i) for i in range(10)))
    two = chunk_run(2, ("v", 0, 1), ("w", 0, 1), *((str(i), 1 + i // 2, 2 + i // 2) for i in range(10)))
    assert speed([{"one": one, "two_workers": two}], "two_workers") == pytest.approx(2)


def test_activities_are_reported_as_shares_of_a_trial() -> None:
    one = chunk_run(1, ("w", 0, 1), ("a", 1, 11), ("b", 11, 21))
    one.spent["w"] = TimeBreakdown(prepare_s=9, measure_s=9, choose_s=9, train_s=9, wait_s=9)
    one.spent["a"] = TimeBreakdown(prepare_s=0.5, measure_s=1, choose_s=0.5, train_s=8, wait_s=0)
    one.spent["b"] = TimeBreakdown(prepare_s=0.5, measure_s=1, choose_s=0.5, train_s=6, wait_s=2)
    shares = activity_shares([{"one": one}], "one")
    assert shares == {"prepare": 0.05, "measure": 0.1, "choose": 0.05, "train": 0.7, "wait": 0.1}


def test_a_trial_that_fails_ends_the_bench() -> None:
    watched = ChunkRun(1)
    trial = Trial(number=3, state="failed", params={}, arch=TINY["one"], reason="it broke")
    watched.watch(Started(Job(3, TINY["one"], 0)))
    with pytest.raises(IgcNasError, match="trial 3 is failed: it broke"):
        watched.watch(Ended(trial))


def test_a_chunk_that_is_too_short_is_an_error() -> None:
    searches = Searches()
    with pytest.raises(IgcNasError, match="one worker was done before the other was warm"):
        tiny_workers_bench(searches, trials=1, chunk=1)
