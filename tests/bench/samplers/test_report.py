"""bench sampler: problems, replays in virtual time, the verdicts on their curves, and the command."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.bench.samplers.landscapes import Landscape, landscapes
from igc_nas.bench.samplers.peers import NEEDS
from igc_nas.bench.samplers.plots import figure_kind, sampler_figure, write_figure
from igc_nas.bench.samplers.problems import Outcome, Problem, TabularBenchmark, tabular_benchmark
from igc_nas.bench.samplers.replay import Replay, replay
from igc_nas.bench.samplers.report import (
    SAMPLERS,
    Band,
    Comparison,
    PruningEffect,
    SamplerReport,
    bench_sampler,
    parse_samplers,
    pricing_effect,
    pruning_effect,
)
from igc_nas.bench.samplers.runs import Task, run_tasks
from igc_nas.bench.samplers.trees import BoostedTrees, left_out
from igc_nas.cli import main
from igc_nas.errors import StudyError, UsageError
from igc_nas.samplers.brute_force import BruteForce
from igc_nas.samplers.history import History
from igc_nas.space.budget import Budget
from igc_nas.study.pareto import hypervolume, running_hypervolume
from igc_nas.study.records import Candidate, Rung, Trial
from igc_nas.study.spec import SamplerName, StudySpec
from igc_nas.study.study import STUDY_FILE, TRIALS_FILE, Study
from tests.support.searches import evaluate
from tests.support.searches import spec as tiny_spec
from tests.support.shares import some

RUNGS = (1500, 3000)
BUDGET = 1_400


@cache
def full_study() -> Study:
    """Every architecture of `tiny` within 1,400 parameters, with computed errors; at a rung they are 0.1 higher."""
    spec = tiny_spec(name="table", budget=Budget(params=BUDGET), recipe={"rungs": RUNGS}, prune_below=0.05)
    return Study(spec, tuple(trial(n, arch) for n, arch in enumerate(architectures(spec))))


def architectures(spec: StudySpec) -> list[ArchConfig]:
    encoding = spec.feasible.encoding
    none, values = encoding.priced([]), np.zeros((0, 3))
    codes = BruteForce(spec).propose(History(none, values, none, values, none), np.random.default_rng(0))
    return [ArchConfig.parse(encoding.architecture(code).to_dict()) for code in codes]


def trial(number: int, arch: ArchConfig) -> Trial:
    latency, score = evaluate(arch, 0)
    rungs = tuple(Rung(samples=at, error=min(1.0, score.error + 0.1), loss=1.0) for at in RUNGS)
    score = score.model_copy(update={"rungs": rungs, "samples": 6000})
    found = Candidate(
        trial=number, id=arch_id(arch), arch=arch, cost=cost_of(arch), latency=latency, score=score, seed=0
    )
    return Trial(number=number, state="complete", params={}, arch=arch, candidate=found)


@cache
def table() -> TabularBenchmark:
    return tabular_benchmark(full_study())


@cache
def landscape(name: str = "rugged") -> Landscape:
    return next(found for found in all_landscapes() if found.name == name)


@cache
def all_landscapes() -> tuple[Landscape, ...]:
    return landscapes()


# Problems.


def test_a_tabular_benchmark_returns_the_recorded_outcome() -> None:
    candidate = full_study().candidates[3]
    outcome = table().evaluate(candidate.arch, candidate.id, candidate.cost, 7)
    assert outcome is not None
    known = (candidate.cost.params, candidate.latency.normalised_ms)
    assert outcome.observed == outcome.true == (candidate.score.error, *known)
    assert outcome.known_costs == known
    assert outcome.compute == tuple(n * candidate.cost.macs for n in (*RUNGS, 6000))
    assert outcome.rung_errors == (candidate.score.error + 0.1,) * 2
    assert (table().size, table().missing) == (len(full_study().candidates), 0)
    assert "complete" in table().about
    assert table().prune_below == 0.05
    assert table().front() == {candidate.id for candidate in full_study().front()}


def test_a_tabular_benchmark_counts_the_missing_outcomes() -> None:
    whole = full_study()
    slow = whole.trials[0].model_copy(update={"state": "infeasible", "candidate": None})
    lacking = tabular_benchmark(Study(whole.spec, (slow, *whole.trials[4:])))
    assert lacking.missing == 3, "an architecture that was too slow is not missing"
    assert "3 of its architectures MISSING" in lacking.about
    arch = whole.trials[1].arch
    assert arch is not None
    assert lacking.evaluate(arch, arch_id(arch), cost_of(arch), 0) is None
    assert lacking.fingerprint != table().fingerprint


def test_a_study_that_lacks_most_of_its_space_is_no_tabular_benchmark() -> None:
    whole = full_study()
    with pytest.raises(StudyError, match="too few for a tabular benchmark") as raised:
        tabular_benchmark(Study(whole.spec, whole.trials[:5]))
    assert "--sampler brute-force" in (raised.value.hint or "")
    with pytest.raises(StudyError, match="no completed trial"):
        tabular_benchmark(Study(whole.spec, ()))
    with pytest.raises(StudyError, match="no bounds"):
        tabular_benchmark(Study(whole.spec.model_copy(update={"bounds": {}}), whole.trials))


NAMES = ("igc_table, fitted", "igc_cifar, fitted", "late bloomers", "rugged")


@pytest.mark.parametrize("name", NAMES)
def test_a_landscape_has_true_errors_and_noise_by_the_seed(name: str) -> None:
    problem = landscape(name)
    rungs = len(problem.spec.recipe.rungs)
    assert (problem.size, problem.missing, problem.front()) == (288 if "table" in name else None, 0, frozenset())
    rng, true, noise = np.random.default_rng(0), [], []
    for _ in range(60):
        arch = problem.spec.feasible.draw_stratified(rng)
        cost, identity = cost_of(arch), arch_id(arch)
        outcome, again, other = (problem.evaluate(arch, identity, cost, seed) for seed in (1, 1, 2))
        assert outcome is not None
        assert other is not None
        assert outcome == again
        assert outcome.true == other.true != outcome.observed != other.observed
        assert outcome.true[1:] == outcome.observed[1:] == outcome.known_costs == (cost.params, cost.macs)
        assert len(outcome.rung_errors) == rungs == len(outcome.compute) - 1
        assert 0.01 < outcome.true[0] < 1, "no error is cut off"
        true.append(outcome.true[0])
        noise.append(outcome.observed[0] - outcome.true[0])
    assert np.std(true) > np.std(noise), "more is to be found than noise"
    assert 0.002 < np.std(noise) < 0.02


def test_a_fitted_landscape_says_what_it_is_fitted_to_and_how_well() -> None:
    assert re.match(
        r"boosted trees fitted to 288 trainings of igc_table; left out in 10 folds: rank correlation 0\.8\d, rmse "
        r"1\.\d points of a spread of 2\.0; noise of a seed 1\.\d points at 20 k parameters",
        landscape(NAMES[0]).about,
    )
    assert landscape("rugged").about.startswith("SYNTHETIC")


def test_large_networks_are_late_bloomers() -> None:
    problem = landscape("late bloomers")
    rng = np.random.default_rng(1)
    drawn = [(cost_of(arch), arch) for arch in (problem.spec.feasible.draw_stratified(rng) for _ in range(800))]
    errors = np.array([problem.errors(arch, cost) for cost, arch in drawn])
    params = np.array([cost.params for cost, _ in drawn])
    best_large, best_medium = (
        np.quantile(errors[(params > least) & (params <= most)], 0.1, axis=0)
        for least, most in ((1e6, 2e6), (100_000, 300_000))
    )
    after = dict(zip((*problem.spec.recipe.rungs, problem.spec.recipe.samples), best_large - best_medium, strict=True))
    assert list(after) == [30_000, 80_000, 240_000]
    assert after[30_000] > 0.005
    assert after[80_000] > 0.0
    assert after[240_000] < -0.005


def test_trees_recover_steps_and_their_interactions() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 4, size=(300, 5)).astype(float)
    values = (
        0.5 + 0.1 * (inputs[:, 0] > 1) - 0.08 * ((inputs[:, 1] > 2) & (inputs[:, 2] < 2)) + rng.normal(0, 0.01, 300)
    )
    assert np.corrcoef(left_out(inputs, values), values)[0, 1] > 0.95
    constant = BoostedTrees(inputs[:9], np.full(9, 0.25))
    assert constant(inputs) == pytest.approx(0.25)


def test_a_fingerprint_distinguishes_the_outcomes() -> None:
    assert len({problem.fingerprint for problem in (*all_landscapes(), table())}) == 5
    assert tabular_benchmark(full_study()).fingerprint == table().fingerprint
    assert dataclasses.replace(landscape(), name="other", about="other").fingerprint == landscape().fingerprint
    changed = dataclasses.replace(landscape(), errors=lambda arch, cost: (0.5,))
    assert changed.fingerprint != landscape().fingerprint


def test_the_fingerprint_is_that_of_version_0_1() -> None:
    """Otherwise the replays in older files would be run again."""
    assert landscape("rugged").fingerprint == "045365b67b7f"


# Replays.


def test_volumes_are_those_of_the_points_so_far() -> None:
    rng = np.random.default_rng(0)
    points: list[Any] = [tuple(point) for point in rng.random((60, 3)) * 1.1]
    points[7], points[9] = None, points[8]
    found = list(running_hypervolume(points))
    for n, volume in enumerate(found, start=1):
        so_far = [point for point in points[:n] if point is not None]
        assert volume == pytest.approx(hypervolume(so_far, (1.0,) * 3))
    assert found == sorted(found)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("made_up", [True, False])
def test_every_sampler_is_replayed(sampler: SamplerName, made_up: bool) -> None:
    problem: Problem = landscape() if made_up else table()
    found = replay(problem, sampler, 1, 20)
    assert len(found.volumes) == 20
    assert list(found.volumes) == sorted(found.volumes)
    assert found.volumes[-1] > 0
    assert list(found.compute) == sorted(found.compute)
    assert (found.pruned, found.lost) == (0, ())


@pytest.mark.parametrize("sampler", some(["known-cost", "tpe"], "known-cost"))
def test_a_replay_follows_from_problem_sampler_and_seed(sampler: SamplerName) -> None:
    first = replay(table(), sampler, 3, 20)
    assert replay(table(), sampler, 3, 20) == first != replay(table(), sampler, 4, 20)
    assert replay(table(), sampler, 3, 12).volumes == first.volumes[:12], "a shorter replay is its beginning"


@dataclasses.dataclass(frozen=True, eq=False)
class Watched(TabularBenchmark):
    """A tabular benchmark that records the architectures that it is asked for."""

    asked: list[str] = dataclasses.field(default_factory=list)

    def evaluate(self, arch: ArchConfig, identity: str, cost: Any, seed: int) -> Outcome | None:
        self.asked.append(identity)
        assert cost.params <= BUDGET
        return super().evaluate(arch, identity, cost, seed)


@pytest.mark.parametrize("sampler", some((name for name in SAMPLERS if name != "tpe"), "known-cost", "stratified"))
def test_a_table_is_searched_to_its_end_with_no_architecture_twice(sampler: SamplerName) -> None:
    watched = Watched("watched", "", full_study().spec, full_study())
    size = len(full_study().candidates)
    found = replay(watched, sampler, 0, size + 10)
    assert len(found.volumes) == size
    assert len(set(watched.asked)) == len(watched.asked) == size
    assert found.volumes[-1] == pytest.approx(full_study().hypervolume())


def test_an_architecture_without_an_outcome_is_no_evaluation() -> None:
    whole = full_study()
    lacking = tabular_benchmark(Study(whole.spec, whole.trials[len(whole.trials) // 4 :]))
    for sampler in ("known-cost", "nsga2"):
        found = replay(lacking, sampler, 0, 1000)  # type: ignore[arg-type]
        assert len(found.volumes) == lacking.size


def test_pruning_saves_compute() -> None:
    full = replay(table(), "stratified", 0, 1000)
    pruned = replay(table(), "stratified", 0, 1000, prune_below=0.05)
    assert pruned.pruned > 5
    assert len(pruned.volumes) == len(full.volumes)
    assert pruned.compute[-1] < 0.95 * full.compute[-1]
    assert set(pruned.lost) <= table().front()
    until = replay(table(), "stratified", 0, 1000, compute=full.compute[9])
    assert until.compute == full.compute[:10]


# Many runs, and their file.


def tasks(seeds: int = 2, samplers: Sequence[SamplerName] = ("random", "stratified")) -> list[Task]:
    return [Task(table().fingerprint, sampler, seed, 8) for sampler in samplers for seed in range(seeds)]


def test_runs_are_the_same_in_other_processes() -> None:
    assert run_tasks([table()], tasks(), workers=2) == run_tasks([table()], tasks())


def test_runs_continue_from_their_file(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    first = run_tasks([table()], tasks(1), file=file)
    with file.open("a") as out:
        out.write('{"name": "cut sh')
    said: list[str] = []
    both = run_tasks([table()], tasks(2), file=file, say=said.append)
    assert {task: both[task] for task in first} == first
    recorded, *ran = said
    assert recorded.startswith("2 of 4 runs are in ")
    assert [line.partition(": 0.")[0] for line in ran] == ["1/2 table random seed 1", "2/2 table stratified seed 1"]
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["table"] * 4
    said.clear()
    assert run_tasks([table()], tasks(2), file=file, say=said.append) == both
    assert len(said) == 1, "nothing was run"
    file.write_text(file.read_text().rstrip("\n"))  # as some editors save it
    assert len(run_tasks([table()], tasks(3), file=file)) == 6
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["table"] * 6


def test_a_file_of_version_0_1_is_read(tmp_path: Path) -> None:
    """It had `stop` for `prune_below`, and `stopped` for `pruned`."""
    task = {
        "problem": table().fingerprint,
        "sampler": "random",
        "seed": 0,
        "evaluations": 2,
        "stop": 0.05,
        "compute": 9.0,
    }
    result = {"volumes": [0.1, 0.2], "compute": [4.0, 9.0], "stopped": 1, "lost": ["a"]}
    (tmp_path / "runs.jsonl").write_text(json.dumps({"name": "table", "task": task, "replay": result}) + "\n")
    asked = Task(table().fingerprint, "random", 0, 2, prune_below=0.05, compute=9.0)
    found = run_tasks([table()], [asked], file=tmp_path / "runs.jsonl")
    assert found == {asked: Replay((0.1, 0.2), (4.0, 9.0), pruned=1, lost=("a",))}


@pytest.mark.parametrize("line", ["nothing", '{"task": {}}', "[]", '{"task": {"a": 1}, "replay": {}}'])
def test_a_file_that_is_not_one_of_replays_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(UsageError, match=r"runs\.jsonl line 1 is not a run of bench sampler"):
        run_tasks([table()], tasks(), file=file)


# Verdicts.


def band(*mean: float, half: float = 0.0) -> Band:
    return Band(mean, tuple(m - half for m in mean), tuple(m + half for m in mean))


def rising(at_end: float, half: float = 0.01, length: int = 200) -> Band:
    return band(*(at_end * n / length for n in range(1, length + 1)), half=half)


def compared(curves: dict[str, Band], missing: int = 0, goal_at: int = 200) -> Comparison:
    return Comparison("made", "about", None, missing, goal_at, curves)


def reached(found: Comparison) -> list[bool | None]:
    return [verdict.reached for verdict in found.verdicts()]


def test_a_band_is_students_t() -> None:
    found = Band.of([[1.0, 2.0], [3.0, 2.0], [2.0]])
    half = 4.302653 * 1.0 / math.sqrt(3)
    assert found.mean == (2.0, 2.0)
    assert found.low[1] == found.high[1] == 2.0
    assert (found.low[0], found.high[0]) == (pytest.approx(2 - half, abs=1e-4), pytest.approx(2 + half, abs=1e-4))
    assert found.text(1).startswith("2.0000 [-0.48")
    assert found.text(3) == "-"


def test_a_clear_winner_reaches_every_goal() -> None:
    found = compared({"known-cost": rising(0.9), "random": rising(0.2), "tpe": rising(0.4)})
    assert reached(found) == [True] * 5
    assert found.goal == pytest.approx(0.2)
    assert found.needed("known-cost") == 45
    assert found.needed("random") == 200


def test_bands_that_touch_are_not_apart() -> None:
    found = compared({"known-cost": rising(0.9, half=0.2), "random": rising(0.2), "tpe": rising(0.4)})
    assert reached(found) == [True, True, True, False, True]


def test_a_loser_reaches_no_goal() -> None:
    found = compared({"known-cost": rising(0.3), "random": rising(0.2), "tpe": rising(0.4)})
    assert reached(found) == [False, False, False, False, False]
    assert "tpe 0.0600" in found.verdicts()[0].why
    assert "134 to reach 0.2000; a quarter is 50" in found.verdicts()[-1].why
    never = compared({"known-cost": rising(0.1), "random": rising(0.2)})
    assert "never to reach" in never.verdicts()[-1].why
    assert reached(never)[-1] is False


def test_equal_is_not_above() -> None:
    assert reached(compared({"known-cost": rising(0.4), "tpe": rising(0.4)}))[:3] == [False] * 3


def test_goals_without_replays_are_not_judged() -> None:
    short = compared({"known-cost": rising(0.9, length=50), "random": rising(0.1, length=50)})
    assert reached(short) == [True, None, None, None, None]
    assert reached(compared({"random": rising(0.1), "tpe": rising(0.2)})) == [None] * 5
    assert reached(compared({"known-cost": rising(0.1)})) == [None] * 5
    assert reached(compared({"known-cost": rising(0.9), "tpe": rising(0.2)}))[-1] is None


def test_a_table_with_missing_outcomes_is_not_judged() -> None:
    found = compared({"known-cost": rising(0.9), "random": rising(0.2)}, missing=7)
    assert reached(found) == [None] * 5
    assert all(verdict.why.startswith("the table lacks 7; ") for verdict in found.verdicts())


def effect(full: list[Replay], pruned: list[Replay]) -> PruningEffect:
    return pruning_effect(table(), "known-cost", full, pruned)


def test_pruning_is_compared_with_full_training_over_compute() -> None:
    full = [Replay((0.1, 0.2, 0.4), (10.0, 20.0, 30.0))] * 3
    sooner = [Replay((0.1, 0.2, 0.4, 0.4), (6.0, 12.0, 18.0, 31.0), 2, ("a",))] * 3
    found = effect(full, sooner)
    assert found.share == pytest.approx(0.6)
    assert (found.trainings_pruned, found.lost, found.front) == (2.0, 1.0, len(table().front()))
    assert found.area[0].mean[0] == pytest.approx((0.1 + 0.2) / 3, abs=0.01)
    assert found.area[1].mean[0] == pytest.approx((0.1 + 0.2) / 5 + 0.4 * 0.4, abs=0.01)
    assert [verdict.reached for verdict in found.verdicts()] == [True, True]
    worse = effect(full, [Replay((0.05, 0.2, 0.3), (10.0, 20.0, 30.0))] * 3)
    assert worse.share is None
    assert [verdict.reached for verdict in worse.verdicts()] == [False, False]
    same = effect(full, full)
    assert same.share == 1.0
    assert [verdict.reached for verdict in same.verdicts()] == [True, False]


def test_prices_are_compared_over_time() -> None:
    plain = [Replay((0.1, 0.2, 0.4), (1.0, 2.0, 3.0), seconds=(10.0, 20.0, 30.0))] * 3
    sooner = [Replay((0.1, 0.3, 0.4, 0.5), (1.0,) * 4, seconds=(3.0, 9.0, 15.0, 29.0))] * 3
    found = pricing_effect(plain, sooner)
    assert found.share == pytest.approx(0.5)
    assert found.evaluations == (3.0, 4.0)
    assert (found.plain.mean[-1], found.priced.mean[-1]) == (0.4, 0.5)
    assert [verdict.reached for verdict in found.verdicts()] == [True]
    same = pricing_effect(plain, plain)
    assert (same.share, [verdict.reached for verdict in same.verdicts()]) == (1.0, [False])


PEERS = ["nsga3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gp", "botorch", "smac"))]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_replayed_from_feasible_draws(name: str) -> None:
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module)
    found = replay(landscape(), name, 0, 12)
    assert len(found.volumes) == 12
    assert found.volumes[-1] > 0
    assert replay(landscape(), name, 0, 10).volumes == found.volumes[:10]


def test_a_replay_with_a_plan_ends_when_its_time_is_spent() -> None:
    plain = replay(landscape(), "known-cost", 0, 12)
    priced = replay(landscape(), "known-cost", 0, 12, time_s=plain.seconds[-1])
    assert priced.seconds[-2] < plain.seconds[-1] <= priced.seconds[-1]
    assert len(priced.volumes) == len(priced.seconds)


# The report.


@cache
def report() -> SamplerReport:
    return bench_sampler([table(), landscape()], ("known-cost", "random"), 3, 12)


def test_the_report_has_the_numbers_of_the_replays() -> None:
    found = json.loads(json.dumps(report().to_dict(), allow_nan=False))
    assert (found["seeds"], found["evaluations"]) == (3, 12)
    assert "duplicate suggestions are not counted" in found["rules"]
    on_table, made_up = found["problems"]
    assert on_table["size"] == table().size
    assert on_table["goal_at"] == table().size // 2  # type: ignore[operator]
    assert (made_up["size"], made_up["goal_at"]) == (None, 200)
    assert made_up["about"].startswith("SYNTHETIC")
    rows = [replay(landscape(), "random", seed, 12).volumes for seed in range(3)]
    curve = made_up["curves"]["random"]
    assert curve["mean"] == pytest.approx(np.mean(rows, axis=0), abs=1e-5)
    assert len(curve["mean"]) == len(curve["low"]) == len(curve["high"]) == 12
    assert [s["sampler"] for s in on_table["pruning"]] == ["known-cost"], "Optuna's samplers are not pruned"
    assert made_up["pruning"] == []
    assert len(on_table["verdicts"]) == 8
    assert len(made_up["verdicts"]) == 6
    assert len(made_up["pricing"]["priced"]["mean"]) == len(made_up["pricing"]["plain"]["mean"])


def test_the_report_for_people() -> None:
    lines = report().lines()
    assert any(line.startswith("rugged: SYNTHETIC") for line in lines)
    assert any(line.startswith("table: table of ") for line in lines)
    assert sum("not judged" in line for line in lines) >= 5
    assert any("area under the hypervolume over compute" in line for line in lines)
    assert "optuna" in lines[-1]


def test_a_table_smaller_than_the_evaluations_is_searched_whole() -> None:
    found = bench_sampler([table()], ("random",), 3, 10_000).results[0]
    assert len(found.curves["random"].mean) == table().size < 100
    needed = found.needed("random")
    assert needed is not None
    assert needed <= found.goal_at


def test_too_few_seeds_and_unknown_samplers_are_refused() -> None:
    with pytest.raises(UsageError, match="2 seeds are too few") as raised:
        bench_sampler([table()], ("random",), 2, 5)
    assert raised.value.hint == "--seeds 20"
    assert parse_samplers("tpe, random,tpe") == ("tpe", "random")
    assert parse_samplers("gp,nsga3") == ("gp", "nsga3")


def test_a_peer_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="sampler botorch needs botorch and optuna_integration") as raised:
        parse_samplers("random,botorch")
    assert raised.value.hint == "pip install 'igc-nas[bench]'"


def test_unknown_samplers_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown sampler 'bayes'"):
        parse_samplers("random,bayes")


def test_the_figure_draws_the_numbers_of_the_report(tmp_path: Path) -> None:
    figure = sampler_figure(report())
    lines = [trace for trace in figure.data if trace.fill is None]
    assert [trace.name for trace in lines] == [
        *("known-cost", "random") * 2, "known-cost", "known-cost, pruning",
    ]  # fmt: skip
    assert [trace.showlegend for trace in lines] == [True, True, False, False, False, True]
    assert tuple(lines[2].y) == report().results[1].curves["known-cost"].mean
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["table", "rugged", "table: pruning at rungs"]
    write_figure(report(), tmp_path / "samplers.html")
    assert "rugged" in (tmp_path / "samplers.html").read_text()
    with pytest.raises(UsageError, match=r"does not end in \.html or \.png or \.svg"):
        figure_kind(Path("samplers.pdf"))


def test_a_picture_needs_kaleido(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="kaleido") as raised:
        write_figure(report(), tmp_path / "samplers.png")
    assert "igc-nas[png]" in (raised.value.hint or "")


# The command.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the table in ./studies."""
    monkeypatch.chdir(tmp_path)
    study = full_study()
    target = tmp_path / "studies" / "table"
    target.mkdir(parents=True)
    (target / STUDY_FILE).write_text(study.spec.to_toml())
    (target / TRIALS_FILE).write_text("".join(trial.to_json() + "\n" for trial in study.trials))
    return tmp_path


ARGUMENTS = (
    "bench",
    "sampler",
    "--no-landscapes",
    "--table",
    "table",
    "--samplers",
    "random,stratified",
    "--workers",
    "1",
)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = [*ARGUMENTS, "--seeds", "3", "--evaluations", "6", "-o", "runs.jsonl", "--html", "samplers.html"]
    assert main([*typed, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [problem["problem"] for problem in found["problems"]] == ["table"]
    assert list(found["problems"][0]["curves"]) == ["random", "stratified"]
    assert err.count(" seed ") == 9
    assert (folder / "samplers.html").stat().st_size > 1_000_000
    assert main(typed) == 0
    out, err = capsys.readouterr()
    assert "sampler" in out
    assert "not judged" in out
    assert err.count(" seed ") == 0, "all runs are in the file"


@pytest.mark.parametrize(
    ("more", "status", "message", "hint"),
    [
        (("--samplers", "bayes"), 2, "unknown sampler 'bayes'", "choose from known-cost"),
        (("--seeds", "2"), 2, "2 seeds are too few", "--seeds 20"),
        (("--table", "nowhere"), 4, "nowhere", ""),
        (("--html", "samplers.png"), 2, "does not end in .html", "name it samplers.html"),
        (("--png", "samplers.gif"), 2, "does not end in .png or .svg", "name it samplers.png"),
        (("--png", "samplers.html"), 2, "does not end in .png or .svg", "name it samplers.png"),
    ],
)
def test_wrong_input_is_one_line_and_a_hint(
    more: tuple[str, ...], status: int, message: str, hint: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGUMENTS, *more]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert hint in err
    assert len(err.splitlines()) <= 2


def test_nothing_to_replay(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sampler", "--no-landscapes"]) == 2
    assert "--table STUDY" in capsys.readouterr().err
