"""The suggestions of every sampler, in an Optuna study in memory, with errors computed from the architecture."""

import dataclasses
import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.cli.search import search as search_command
from igc_nas.engine.events import Ended, Event, Exhausted
from igc_nas.engine.search import Run, search
from igc_nas.errors import UsageError
from igc_nas.samplers.brute_force import BruteForce
from igc_nas.samplers.cross_validation import LeaveOneOut
from igc_nas.samplers.distributions import distributions
from igc_nas.samplers.evolution import POPULATION, Evolution
from igc_nas.samplers.features import Features
from igc_nas.samplers.history import EXPECTED, History, LongerTrainings, Memory
from igc_nas.samplers.known_cost import STARTUP, KnownCost
from igc_nas.samplers.mutation import Mutator
from igc_nas.samplers.study_sampler import ExhaustedError, StudySampler
from igc_nas.space.budget import Budget
from igc_nas.space.encoding import Code
from igc_nas.study.objectives import values
from igc_nas.study.pareto import dominates, hypervolume
from igc_nas.study.plan import Plan, Sizes, Speed
from igc_nas.study.spec import SamplerName, StudySpec, Target
from igc_nas.study.study import load_study
from tests.support.builders import one_line
from tests.support.searches import evaluate, spec
from tests.support.shares import examples, some

NAMES: tuple[SamplerName, ...] = get_args(SamplerName)
OURS = tuple(name for name in NAMES if name not in ("tpe", "nsga2"))

Error = Callable[[ArchConfig], float]

TINY, LARGE = spec(budget=Budget(params=3000)), spec(space="igc_cifar", budget=Budget(params=650_000, macs=40_000_000))
TWO = spec(space="igc_cifar", objectives=("error", "params"), budget=Budget(params=650_000))


def with_sampler(base: StudySpec, sampler: SamplerName, seed: int = 0) -> StudySpec:
    """`base` with another sampler and seed."""
    assert base.feasible.counter is not None
    return base.model_copy(update={"sampler": sampler, "seed": seed})


def smooth(arch: ArchConfig) -> float:
    """An error that falls with the parameters, and less so with IGCV2 units and small kernels."""
    units = sum(stage.unit == "igcv2" for stage in arch.stages) - 0.5 * sum(
        stage.unit == "igcv1" for stage in arch.stages
    )
    kernels = sum(stage.kernel == 5 for stage in arch.stages)
    return float(0.9 * (500 / cost_of(arch).params) ** 0.15 * (1 + 0.08 * units - 0.05 * kernels))


class Loop:
    """A study of `spec` in memory; `known` are the ids of its architectures."""

    def __init__(self, spec: StudySpec, error: Error = smooth) -> None:
        self.spec = spec
        self.error = error
        self.known: set[str] = set()
        self.study = optuna.create_study(directions=["minimize"] * len(spec.objectives))
        self.study.sampler = StudySampler(spec, self.known)

    def ask(self) -> tuple[optuna.Trial, ArchConfig]:
        trial = self.study.ask()
        arch = self.spec.search_space.suggest(trial)
        self.known.add(arch_id(arch))
        return trial, arch

    def tell(self, trial: optuna.Trial, arch: ArchConfig) -> None:
        cost = cost_of(arch)
        values = cost.as_dict() | {"error": self.error(arch), "latency": cost.macs / 5e5}
        self.study.tell(trial, [float(values[name]) for name in self.spec.objectives])

    def go(self, count: int) -> list[ArchConfig]:
        found = []
        for _ in range(count):
            trial, arch = self.ask()
            self.tell(trial, arch)
            found.append(arch)
        return found

    @property
    def history(self) -> History:
        return Memory(self.spec.search_space, self.spec.feasible.encoding).history(self.study, -1)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


# Every sampler.


def test_the_command_line_offers_every_sampler() -> None:
    option = next(option for option in search_command.params if option.name == "sampler")
    assert tuple(option.type.choices) == NAMES
    assert f"default: {StudySpec.model_fields['sampler'].default}" in option.help


@pytest.mark.parametrize("name", OURS)
def test_ours_suggest_valid_new_architectures_within_the_budget(name: SamplerName) -> None:
    loop = Loop(with_sampler(TINY, name))
    found = loop.go(40)
    assert len({arch_id(arch) for arch in found}) == 40
    for arch in found:
        assert TINY.feasible.contains(cost_of(arch))
        assert TINY.search_space.decode(TINY.search_space.encode(arch)) == arch


@pytest.mark.parametrize("name", [name for name in OURS if name != "brute-force"])
def test_ours_suggest_them_in_the_default_space_with_two_budgets(name: SamplerName) -> None:
    loop = Loop(with_sampler(LARGE, name))
    found = loop.go(36)
    assert len({arch_id(arch) for arch in found}) == 36
    assert all(LARGE.feasible.contains(cost_of(arch)) for arch in found)


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
@pytest.mark.parametrize("base", [TINY, LARGE], ids=["tiny", "igc_cifar"])
def test_optunas_start_from_feasible_draws(name: SamplerName, base: StudySpec) -> None:
    found = Loop(with_sampler(base, name)).go(9)
    assert len({arch_id(arch) for arch in found}) == 9
    assert all(base.feasible.contains(cost_of(arch)) for arch in found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("told", [0, 5, 20, 35])
def test_a_suggestion_follows_from_seed_number_and_history(name: SamplerName, told: int) -> None:
    loop = Loop(with_sampler(TINY, name, seed=4))
    while len(loop.study.trials) < told:  # Optuna's samplers may suggest an invalid or a known architecture
        trial = loop.study.ask()
        try:
            arch = TINY.search_space.suggest(trial)
        except UsageError:
            loop.study.tell(trial, state=TrialState.PRUNED)
            continue
        loop.known.add(arch_id(arch))
        loop.tell(trial, arch)
    following = loop.study.ask(distributions(TINY.search_space)).params
    other = Loop(loop.spec)
    other.known |= loop.known
    other.study.add_trials(loop.study.get_trials()[:-1])
    assert other.study.ask(distributions(TINY.search_space)).params == following


@pytest.mark.parametrize("name", ["known-cost", "evolution", "stratified", "random", "brute-force"])
def test_different_seeds_suggest_different_architectures(name: SamplerName) -> None:
    one, other = (Loop(with_sampler(TINY, name, seed)).go(12) for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize("name", OURS)
@examples(15)
@given(order=st.permutations(range(14)))
def test_the_order_in_which_trials_end_does_not_matter(name: SamplerName, order: list[int]) -> None:
    in_turn, shuffled = (Loop(with_sampler(TINY, name, seed=2)) for _ in range(2))
    asked = [[loop.ask() for _ in range(14)] for loop in (in_turn, shuffled)]
    assert [arch for _, arch in asked[0]] == [arch for _, arch in asked[1]]
    for trial, arch in asked[0]:
        in_turn.tell(trial, arch)
    for place in order:
        shuffled.tell(*asked[1][place])
    assert in_turn.ask()[1] == shuffled.ask()[1]


@pytest.mark.parametrize("name", OURS)
def test_a_running_architecture_is_not_suggested_again(name: SamplerName) -> None:
    loop = Loop(with_sampler(TINY, name))
    loop.go(20)
    found = [loop.ask()[1] for _ in range(10)]
    assert len({arch_id(arch) for arch in found}) == 10


def test_trials_without_a_feasible_result_are_no_part_of_the_history() -> None:
    """A failed one without parameters, one of another space, a pruned one without a prediction, an infeasible one."""
    loop = Loop(with_sampler(TINY, "known-cost"))
    loop.go(15)
    before, of_tiny = loop.history, distributions(TINY.search_space)
    params = next(
        TINY.search_space.encode(loop.spec.feasible.encoding.architecture(code))
        for code in codes_of(TINY)
        if code not in before.seen
    )
    made = optuna.trial.create_trial
    loop.study.add_trial(made(state=TrialState.FAIL))
    loop.study.add_trial(made(values=[0.1, 1.0, 1.0]))
    loop.study.add_trial(made(params=params, distributions=of_tiny, state=TrialState.PRUNED))
    loop.study.add_trial(
        made(params=params, distributions=of_tiny, values=[0.0, 1.0, 1.0], system_attrs={"constraints:budget": 0.1})
    )
    assert loop.history.seen == before.seen
    assert loop.history.values.tolist() == before.values.tolist()
    loop.study.add_trial(made(params=params, distributions=of_tiny, values=[0.0, 1.0, 1.0]))
    assert len(loop.history.complete) == len(before.complete) + 1
    loop.ask()


# Brute force.


def test_brute_force_suggests_every_architecture_once_and_is_exhausted() -> None:
    loop = Loop(with_sampler(spec(), "brute-force"))
    found = loop.go(160)
    assert len({arch_id(arch) for arch in found}) == 160 == loop.spec.search_space.size
    with pytest.raises(ExhaustedError) as raised:
        loop.ask()
    one_line(raised)


def test_brute_force_keeps_within_the_budget() -> None:
    assert len(BruteForce(with_sampler(TINY, "brute-force"))) == TINY.feasible.count == 138


def test_a_brute_force_search_ends_by_itself(tmp_path: Path) -> None:
    events: list[Event] = []
    small = with_sampler(spec(budget=Budget(params=1200)), "brute-force")
    found = list(search(small, Run(tmp_path / "s"), evaluate=evaluate, on_event=events.append))
    assert len(found) == small.feasible.count
    assert len({candidate.id for candidate in found}) == len(found)
    assert [type(event) for event in events[-2:]] == [Ended, Exhausted]
    assert {trial.state for trial in load_study(tmp_path / "s").trials} == {"complete"}


def test_brute_force_refuses_a_large_space() -> None:
    with pytest.raises(UsageError) as raised:
        StudySampler(with_sampler(LARGE, "brute-force"), ())
    assert one_line(raised) == ("igc_cifar holds 26,238,069,504 architectures; brute-force takes at most 100,000")


@pytest.mark.parametrize("name", some(["known-cost", "evolution", "stratified", "random"], "known-cost", "stratified"))
def test_a_search_reports_an_exhausted_space(name: SamplerName, tmp_path: Path) -> None:
    events: list[Event] = []
    small = with_sampler(spec(budget=Budget(params=1000)), name)
    found = list(search(small, Run(tmp_path / "s", trials=50), evaluate=evaluate, on_event=events.append))
    assert len(found) == small.feasible.count < 50
    assert isinstance(events[-1], Exhausted)


# Known costs.


@pytest.mark.parametrize(
    "objectives",
    some(
        [
            ("error", "params", "latency"),
            ("error", "macs"),
            ("error", "flops", "activations"),
            ("latency", "error"),
            ("params", "macs"),
            ("latency", "params"),
            ("activations", "flops", "latency"),
        ],
        ("error", "flops", "activations"),
        ("latency", "error"),
        ("params", "macs"),
    ),
)
def test_known_cost_takes_any_objectives(objectives: tuple[str, ...]) -> None:
    base = spec(objectives=objectives, budget=Budget(params=3000, latency_ms=0.6))
    found = Loop(with_sampler(base, "known-cost")).go(24)
    assert len({arch_id(arch) for arch in found}) == 24


def test_known_cost_learns_to_keep_a_latency_budget() -> None:
    """A latency is known only by measuring, so the first suggestions may exceed the budget."""
    limited = spec(budget=Budget(params=5090, latency_ms=0.4))
    loop = Loop(with_sampler(limited, "known-cost"))
    loop.go(STARTUP + 16)
    later = loop.go(20)
    free = sum(cost_of(arch).macs / 5e5 <= 0.4 for arch in Loop(with_sampler(limited, "random")).go(100)) / 100
    assert free < 0.8
    assert sum(cost_of(arch).macs / 5e5 <= 0.4 for arch in later) >= 19


def scaled_hypervolume(base: StudySpec, archs: list[ArchConfig], error: Error) -> float:
    points = [base.scaled({"error": error(arch), "params": cost_of(arch).params}) for arch in archs]
    return hypervolume(points, (1.0, 1.0))


@pytest.mark.slow
def test_known_cost_finds_better_fronts_than_random_draws() -> None:
    volumes: dict[str, list[float]] = {
        name: [scaled_hypervolume(TWO, Loop(with_sampler(TWO, name, seed)).go(40), smooth) for seed in range(5)]
        for name in ("known-cost", "stratified", "random")
    }
    assert min(volumes["known-cost"]) > 1.1 * max(volumes["stratified"])
    assert min(volumes["known-cost"]) > 1.3 * max(volumes["random"])


@pytest.fixture
def begun() -> Loop:
    """A study of the default space with 24 completed trials."""
    loop = Loop(with_sampler(TWO, "known-cost"))
    loop.study.add_trials(first_24())
    loop.known |= {arch_id(TWO.search_space.decode(trial.params)) for trial in first_24()}
    return loop


@cache
def first_24() -> list[optuna.trial.FrozenTrial]:
    loop = Loop(with_sampler(TWO, "known-cost"))
    loop.go(24)
    return loop.study.get_trials()


def test_a_running_trial_counts_with_its_predicted_error(begun: Loop) -> None:
    """Otherwise suggestions in a row would all be near the first of them."""
    sampler, history = KnownCost(begun.spec), begun.history
    posterior = sampler.fit(history)
    first = next(sampler.propose_by_acquisition(history, posterior, np.random.default_rng(0)))
    candidate = sampler.encoding.priced([first])
    running = History(history.complete, history.values, history.pruned, history.expected, candidate)
    fronts = (sampler.front(now, posterior) for now in (history, running))
    before, after = (sampler.acquisition(candidate, front, posterior)[0] for front in fronts)
    assert after < 0.75 * before
    assert next(sampler.propose_by_acquisition(running, posterior, np.random.default_rng(0))) != first


def planned(base: StudySpec, time_s: float) -> StudySpec:
    """The spec with a plan, by which the seconds of a trial are those of its MACs."""
    speed = Speed(step_s=0, convolution_s=0, mac_s=2e-10, activation_s=0, trial_s=2)
    return base.model_copy(update={"plan": Plan(time_s=time_s, workers=1, trials=40, mean_s=30, speed=speed)})


def test_prices_count_less_the_less_time_is_left(begun: Loop) -> None:
    history, none = begun.history, begun.spec.feasible.encoding.priced([])
    nothing = History(none, np.empty((0, 2)), none, np.empty((0, 2)), none)
    assert KnownCost(begun.spec).cooling(history) == 0
    spent = 1 - KnownCost(planned(begun.spec, 1e6)).cooling(history)
    assert 0 < spent < 1
    assert KnownCost(planned(begun.spec, 1e6)).cooling(nothing) == 1
    assert KnownCost(planned(begun.spec, 2e6)).cooling(history) == pytest.approx(1 - spent / 2)
    assert KnownCost(planned(begun.spec, 1e6 * spent / 2)).cooling(history) == 0


def test_longer_trainings_spend_time_too(begun: Loop) -> None:
    recipe = begun.spec.recipe.model_copy(update={"train_size": 10 * begun.spec.recipe.train_size, "rungs": ()})
    target = Target(images=recipe.samples, recipe=recipe, share=0.4)
    spec = planned(begun.spec, 1e9).model_copy(update={"target": target})
    history = begun.history
    longer = dataclasses.replace(history, longer=LongerTrainings(history.complete.rows(np.arange(2)), ()))
    short, both = (1 - KnownCost(spec).cooling(each) for each in (history, longer))
    assert both > 1.2 * short


def test_a_candidate_is_worth_its_improvement_over_its_seconds(begun: Loop) -> None:
    """At the start of the plan the order is that by price, at its end that without a plan."""
    history, firsts = begun.history, []
    for base in (begun.spec, planned(begun.spec, 1e9), planned(begun.spec, 1.0)):
        sampler = KnownCost(base)
        proposals = sampler.propose_by_acquisition(history, sampler.fit(history), np.random.default_rng(0))
        firsts.append([next(proposals) for _ in range(5)])
    macs = [begun.spec.feasible.encoding.priced(codes).cost("macs").mean() for codes in firsts]
    assert firsts[0] == firsts[2]
    assert macs[1] < macs[0]


def test_a_search_by_prices_resumes_exactly(tmp_path: Path) -> None:
    asked = planned(spec(budget=Budget(params=3000), goal="best-error"), 300)
    for folder, stops in (("once", (26,)), ("twice", (13, 26))):
        for trials in stops:
            list(search(asked, Run(tmp_path / folder, trials=trials), evaluate=evaluate))
    once, twice = (load_study(tmp_path / folder) for folder in ("once", "twice"))
    assert [t.id for t in once.trials] == [t.id for t in twice.trials]
    assert twice.spec.plan == asked.plan


def test_suggestions_in_a_row_are_spread(begun: Loop) -> None:
    in_a_row = [np.log(cost_of(begun.ask()[1]).params) for _ in range(6)]
    gaps = [high - low for low, high in pairwise(sorted(in_a_row))]
    assert max(in_a_row) - min(in_a_row) > 1
    assert min(gaps) > 0.1


NO_BETTER = LeaveOneOut(n=20, rank=0.3, rank_by_params=0.4, within_68=0.7, within_95=0.9)


def test_a_surrogate_that_ranks_no_better_than_the_parameter_count_is_not_used(begun: Loop) -> None:
    sampler, history = KnownCost(begun.spec, validate=lambda *_: NO_BETTER), begun.history
    posterior = sampler.fit(history)
    parents = sampler.front_codes(history)
    mutations = used = 0
    for seed in range(30):
        code = next(sampler.propose(history, np.random.default_rng(seed)))
        assert not (history.complete.codes == code).all(axis=1).any()
        mutations += int((parents != code).sum(axis=1).min() <= 2)
        used += code == next(sampler.propose_by_acquisition(history, posterior, np.random.default_rng(seed)))
    assert 7 <= mutations <= 23  # one in two; a stratified draw is hardly ever this near to the front
    assert used <= 1


def test_a_surrogate_that_ranks_better_is_used(begun: Loop) -> None:
    sampler = KnownCost(begun.spec, validate=lambda *_: LeaveOneOut(20, 0.9, 0.4, 0.7, 0.9))
    posterior = sampler.fit(begun.history)
    for seed in range(3):
        best = next(sampler.propose_by_acquisition(begun.history, posterior, np.random.default_rng(seed)))
        assert next(sampler.propose(begun.history, np.random.default_rng(seed))) == best


def test_the_first_suggestions_are_stratified_draws() -> None:
    one, other = (Loop(with_sampler(TINY, name, seed=8)).go(STARTUP) for name in ("known-cost", "stratified"))
    assert one == other


def recorded_history(base: StudySpec, n: int) -> History:
    """The first n trials of the shipped study under 2 M parameters."""
    candidates, encoding = load_study("igc_cifar10_2m").candidates[:n], base.feasible.encoding
    codes = [code for c in candidates if (code := encoding.code(c.arch)) is not None]
    rows = np.array([values(c, base.objectives) for c in candidates])
    none = encoding.priced([])
    return History(encoding.priced(codes), rows, none, np.empty((0, 2)), none)


@pytest.mark.parametrize("objectives", [("error", "params", "latency"), ("error",)])
def test_a_search_for_the_best_error_proposes_networks_that_the_old_scale_left_alone(objectives: Any) -> None:
    """A replay of recorded trials, in which nothing over 500 k was proposed after trial 5."""
    old = load_study("igc_cifar10_2m").spec
    new = old.model_copy(update={"goal": "best-error", "objectives": objectives})
    over: dict[str, int] = {}
    for name, base in (("old", old), ("new", new)):
        sampler = KnownCost(base)
        first = [next(sampler.propose(recorded_history(base, n), np.random.default_rng(n))) for n in (20, 28, 36, 44)]
        over[name] = int((base.feasible.encoding.priced(first).cost("params") > 200_000).sum())
    assert over["old"] < over["new"]


def test_a_good_network_at_the_budget_is_seen() -> None:
    """5 % error at 1.9 M parameters adds more to the hypervolume than all of the recorded front's own gains."""
    study = load_study("igc_cifar10_2m")
    found = {}
    for goal in (None, "front", "best-error"):
        spec = study.spec.model_copy(update={"goal": goal})
        points = [
            spec.scaled(dict(zip(spec.objectives, values(c, spec.objectives), strict=True))) for c in study.front()
        ]
        good = spec.scaled({"error": 0.05, "params": 1.9e6, "latency": 4.0})
        found[goal] = hypervolume([*points, good], (1, 1, 1)) - hypervolume(points, (1, 1, 1))
    assert found[None] < 0.003
    assert found["front"] > 0.1
    assert found["best-error"] > 0.3


def test_a_search_with_a_goal_begins_in_every_bin_of_cost_up_to_the_budget() -> None:
    base = spec(space="igc_cifar", budget=Budget(params=650_000), goal="best-error")
    for seed in (0, 1):
        archs = Loop(with_sampler(base, "known-cost", seed)).go(STARTUP)
        params = [cost_of(arch).params for arch in archs]
        assert len({np.searchsorted([bin_.most for bin_ in base.feasible.bins], p) for p in params}) == STARTUP


def test_a_planned_search_begins_with_cheap_networks_and_no_dear_one() -> None:
    base = spec(space="igc_cifar", budget=Budget(params=2_000_000), sampler="known-cost", goal="best-error")
    speed = Speed(step_s=0, convolution_s=2e-4, mac_s=4e-11, activation_s=5e-9, trial_s=3)
    plan = Plan(time_s=300, workers=1, trials=20, mean_s=15, speed=speed)
    loop = Loop(base.model_copy(update={"plan": plan}))
    archs = loop.go(STARTUP)
    seconds = speed.trials_s(Sizes.of(archs), base.recipe, 32)
    params = [cost_of(arch).params for arch in archs]
    assert params[:3] == sorted(params[:3]), "one bin of cost after the other"
    assert max(seconds) <= 0.05 * 300
    assert max(params) > 300_000, "large networks have their turn"


def test_a_search_for_the_least_error_alone(tmp_path: Path) -> None:
    asked = spec(objectives=("error",), goal="best-error", budget=Budget(params=3000))
    for folder, stops in (("once", (30,)), ("twice", (11, 30))):
        for trials in stops:
            list(search(asked, Run(tmp_path / folder, trials=trials), evaluate=evaluate))
    once, twice = (load_study(tmp_path / folder) for folder in ("once", "twice"))
    assert [t.id for t in once.trials] == [t.id for t in twice.trials]
    assert once.front()[0] == once.pick("best-error")
    assert [c.cost.params for c in once.front()] == sorted((c.cost.params for c in once.front()), reverse=True)
    assert once.hypervolume() is not None


def test_errors_that_are_all_at_chance_do_not_stop_a_search() -> None:
    assert len(Loop(with_sampler(TINY, "known-cost"), error=lambda _: 0.9).go(24)) == 24


def test_a_pruned_trial_counts_by_the_standard_deviation_of_its_prediction() -> None:
    """A certain prediction of a high error raises the surrogate's there; an uncertain one hardly does."""
    loop = Loop(with_sampler(TINY, "known-cost"), error=lambda arch: 0.5)
    loop.go(20)
    sampler = KnownCost(loop.spec)
    trial, arch = loop.ask()
    code = sampler.encoding.code(arch)
    assert code is not None
    at = sampler.features.of(sampler.encoding.priced([code]))
    means = []
    for deviation in (0.001, 5.0):
        stopped = optuna.trial.create_trial(
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={EXPECTED: [0.8, deviation]},
            state=TrialState.PRUNED,
        )
        other = optuna.create_study(directions=["minimize"] * 3)
        other.add_trials([*loop.study.get_trials()[:-1], stopped])
        memory = Memory(loop.spec.search_space, sampler.encoding)
        history = memory.history(other, -1)
        assert len(history.pruned) == 1
        assert history.seen.issuperset(history.pruned)
        means.append(sampler.fit(history).surrogates["error"].predict(at)[0][0])
    scale = loop.spec.bounds["error"][1]
    assert means[0] > means[1]
    assert means[1] == pytest.approx(0.5 / scale, abs=0.02)


def test_a_new_study_has_its_bounds_before_its_first_trial(tmp_path: Path) -> None:
    """A new spec has none: the search fixes them, and known-cost needs them."""
    fixed = spec(objectives=("error", "params"))
    new = fixed.model_copy(update={"bounds": {}, "reference_ms": None})
    assert len(list(search(new, Run(tmp_path / "s", trials=STARTUP + 4), evaluate=evaluate))) == STARTUP + 4


# Features and mutations.


def test_features_distinguish_architectures_and_hold_their_costs() -> None:
    encoding = TINY.feasible.encoding
    archs = encoding.priced(codes_of(TINY))
    inputs = Features(encoding).of(archs)
    assert np.exp(inputs.whole[:, :3]) == pytest.approx(archs.costs)
    rows = np.concatenate([inputs.whole, inputs.parts], axis=1)
    assert np.isfinite(rows).all()
    assert len(np.unique(rows.round(9), axis=0)) == len(archs)


def codes_of(base: StudySpec) -> list[Code]:
    """Every code within the budget of a small space."""
    return list(
        BruteForce(with_sampler(base, "brute-force")).propose(
            Loop(with_sampler(base, "brute-force")).history, np.random.default_rng()
        )
    )


@given(st.integers(0, 2**32))
def test_mutations_change_one_place_or_two(seed: int) -> None:
    mutator, parents = Mutator(TINY.feasible), np.array(codes_of(TINY)[:5])
    children = mutator.mutate(parents, 40, np.random.default_rng(seed))
    distances = (children[:, None, :] != parents[None, :, :]).sum(axis=2).min(axis=1)
    assert (distances <= 2).all()
    assert (distances > 0).any()


@given(st.integers(0, 2**32))
def test_a_crossover_takes_each_place_from_a_parent(seed: int) -> None:
    mutator, parents = Mutator(TINY.feasible), np.array(codes_of(TINY)[:4])
    for child in mutator.crossover(parents, 20, np.random.default_rng(seed)):
        assert all(value in parents[:, place] for place, value in enumerate(child))


def test_neighbours_differ_in_one_parameter_and_are_symmetric() -> None:
    mutator = Mutator(LARGE.feasible)
    for level, table in enumerate(mutator.encoding.stages):
        for option in range(0, len(table.options), 37):
            for near in map(int, mutator.neighbours(level, option)):
                one, other = table.options[option].model_dump(), table.options[near].model_dump()
                assert sum(one[key] != other[key] for key in one) == 1
                assert option in mutator.neighbours(level, near)


@given(st.integers(0, 2**32))
def test_kept_codes_are_valid_within_the_budget_and_unique(seed: int) -> None:
    mutator, rng = Mutator(TINY.feasible), np.random.default_rng(seed)
    tables = mutator.encoding.stages
    codes = np.column_stack([np.zeros(60, dtype=np.int64), *(rng.integers(len(t.options), size=60) for t in tables)])
    kept = mutator.kept(codes)
    inside = {tuple(code) for code in codes.tolist()} & set(codes_of(TINY))
    assert sorted(kept) == sorted(inside)
    for name in ("params", "macs", "flops", "activations"):
        costs = [cost_of(mutator.encoding.architecture(code)).as_dict()[name] for code in kept]
        assert kept.cost(name).tolist() == costs


def test_evolution_mutates_those_that_few_dominate() -> None:
    loop = Loop(with_sampler(LARGE, "evolution"))
    loop.go(POPULATION)
    history, evolution = loop.history, Evolution(loop.spec)
    points = history.values.tolist()
    dominators = np.array([sum(dominates(other, point) for other in points) for point in points])
    ranks = []
    for seed in range(40):
        child = next(iter(evolution.propose(history, np.random.default_rng(seed))))
        distances = (history.complete.codes != child).sum(axis=1)
        assert distances.min() <= 2
        ranks.append(dominators[distances == distances.min()].min())
    assert np.mean(ranks) < 0.5 * dominators.mean()


# The memory of a study.


@examples(40)
@given(
    st.lists(st.sampled_from(["ask", "ask", "complete", "prune", "fail", "infeasible", "read"]), max_size=40),
    st.randoms(use_true_random=False),
)
def test_the_memory_agrees_with_a_walk_over_all_trials(steps: list[str], rng: random.Random) -> None:
    """Trials end in any order, some share an architecture, and the history may have been read between two of them."""
    space, archs = TINY.search_space, [TINY.feasible.draw(np.random.default_rng(n)) for n in range(6)]
    study = optuna.create_study(directions=["minimize"] * 3, sampler=optuna.samplers.RandomSampler())
    memory, running = Memory(space, TINY.feasible.encoding), []
    for step in [*steps, "read"]:
        if step == "ask":
            study.enqueue_trial(space.encode(rng.choice(archs)))
            running.append(study.ask(distributions(space)))
        elif step == "read":
            _compare(memory.history(study, -1), study)
        elif running:
            _end(study, running.pop(rng.randrange(len(running))), step, rng)


def _end(study: optuna.Study, trial: optuna.Trial, step: str, rng: random.Random) -> None:
    states = {"prune": TrialState.PRUNED, "fail": TrialState.FAIL}
    if step == "prune":
        trial.set_user_attr(EXPECTED, [rng.random(), rng.random()])
    trial.set_constraint("budget", 1.0 if step == "infeasible" else -0.5)
    values = None if step in states else [rng.random(), 1000.0, rng.random()]
    study.tell(trial, values, state=states.get(step, TrialState.COMPLETE))


def _compare(found: History, study: optuna.Study) -> None:
    """With a walk over all trials: each state in order of the numbers, each architecture once."""
    groups: dict[str, dict[Code, Any]] = {"complete": {}, "pruned": {}, "running": {}}
    for trial in study.trials:
        code = TINY.feasible.encoding.code(TINY.search_space.decode(trial.params))
        assert code is not None
        if trial.state == TrialState.COMPLETE and trial.system_attrs["constraints:budget"] <= 0:
            groups["complete"].setdefault(code, trial.values)
        elif trial.state == TrialState.PRUNED:
            groups["pruned"].setdefault(code, trial.user_attrs[EXPECTED])
        elif trial.state == TrialState.RUNNING:
            groups["running"].setdefault(code, None)
    for name, expected in groups.items():
        rows = getattr(found, name)
        assert list(rows) == list(expected)
        assert rows.costs.tolist() == TINY.feasible.encoding.price(rows.codes)[1].tolist()
    assert found.values.tolist() == list(groups["complete"].values())
    assert found.expected.tolist() == list(groups["pruned"].values())
    assert found.seen == {code for group in groups.values() for code in group}
