"""The coordinator, with an evaluator that invents its numbers: what is tried, recorded, resumed."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.papers import reference
from igc_nas.arch.plan import arch_id
from igc_nas.engine.coordinator import Evaluate
from igc_nas.engine.events import Ended, Exhausted, Opened, Started
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store
from igc_nas.errors import IgcNasError, StudyError
from igc_nas.samplers.pruner import MIN_COMPLETED, Pruner
from igc_nas.space.budget import Budget
from igc_nas.space.search_space import SearchSpace
from igc_nas.study.baselines import Baseline
from igc_nas.study.records import Latency, Score, Trial
from igc_nas.study.spec import SamplerName, StudySpec, training_seed
from igc_nas.study.study import Study, load_study
from tests.support.searches import RUNGS, evaluate, evaluate_on_the_way, spec
from tests.support.shares import some

SAMPLERS = get_args(SamplerName)


def run(folder: Path, trials: int, question: StudySpec) -> tuple[Trial, ...]:
    list(search(question, Run(folder, trials=trials), evaluate=evaluate))
    return load_study(folder).trials


def timeless(trials: Iterable[Trial]) -> list[Trial]:
    """Trials without what another run may not repeat: when, where and how long."""
    blank = {"started": None, "wall_s": None, "process": None}
    return [trial.model_copy(update=blank) for trial in trials]


@pytest.fixture(scope="module", params=some(SAMPLERS, "known-cost", "brute-force", "nsga2"))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudySpec, list[Trial]]:
    """A study by each sampler, and the trials of its search."""
    question = spec(sampler=request.param, budget=Budget(params=3000), seed=3)
    return question, list(run(tmp_path_factory.mktemp("whole") / "s", 24, question))


def test_a_search_completes_as_many_different_architectures_as_asked(whole: tuple[StudySpec, list[Trial]]) -> None:
    trials = whole[1]
    complete = [t.candidate for t in trials if t.state == "complete"]
    assert len(complete) == 24
    assert len({c.id for c in complete}) == 24
    assert all(c.cost.params <= 3000 and c.cost == cost_of(c.arch) and c.id == arch_id(c.arch) for c in complete)
    assert [t.number for t in trials] == list(range(len(trials)))


def test_a_search_that_is_stopped_again_and_again_ends_with_the_same_trials(
    whole: tuple[StudySpec, list[Trial]], tmp_path: Path
) -> None:
    question, trials = whole
    for count in (1, 5, 11, 17, 24):
        parts = run(tmp_path / "parts", count, question)
    assert timeless(parts) == timeless(trials)


def test_a_search_that_was_killed_at_any_trial_ends_with_the_same_front(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 8, spec())
    for k in (0, 1, 4, 7):
        folder = tmp_path / f"killed{k}"
        killed = search(spec(), Run(folder, trials=8), evaluate=_failing_at(k))
        with pytest.raises(KeyboardInterrupt):
            list(killed)
        assert [t.state for t in load_study(folder).trials] == ["complete"] * k + ["waiting"]
        assert timeless(run(folder, 8, spec())) == timeless(whole)


def _failing_at(k: int):
    calls = iter(range(100))

    def failing(arch, seed):
        if next(calls) == k:
            raise KeyboardInterrupt
        return evaluate(arch, seed)

    return failing


def test_seeds_make_other_studies(tmp_path: Path) -> None:
    first, second = (run(tmp_path / str(seed), 8, spec(seed=seed)) for seed in (0, 1))
    assert {t.candidate.id for t in first} != {t.candidate.id for t in second}
    assert training_seed(0, "a") != training_seed(1, "a") != training_seed(1, "b")


@pytest.mark.parametrize("sampler", some(["tpe", "nsga2"], "nsga2"))
def test_what_is_not_built_is_recorded_and_costs_no_trial(sampler: str, tmp_path: Path) -> None:
    trials = run(tmp_path / "s", 30, spec(sampler=sampler, budget=Budget(params=1500)))
    states = Counter(t.state for t in trials)
    assert states["complete"] == 30
    assert states["infeasible"] + states["duplicate"] > 0
    assert all(t.reason and t.violation is not None for t in trials if t.state == "infeasible")
    assert all(trials[t.same_as].candidate.id == arch_id(t.arch) for t in trials if t.state == "duplicate")


def test_a_space_ends(tmp_path: Path) -> None:
    question = spec(sampler="random", budget=Budget(params=1000))
    events = []
    list(search(question, Run(tmp_path / "s", trials=500), evaluate=evaluate, on_event=events.append))
    within = _enumerate_tiny(1000)
    assert {t.candidate.id for t in load_study(tmp_path / "s").trials} == within
    assert sum(isinstance(e, Exhausted) for e in events) == 1


def _enumerate_tiny(limit: int) -> set[str]:
    space = SearchSpace.load("tiny")
    return {
        arch_id(arch)
        for frame in space.frames
        for one in space.stages[0].following(frame.stem.width)
        for two in space.stages[1].following(one.width)
        if cost_of(arch := space.architecture(frame, (one, two))).params <= limit
    }


def test_the_front_gets_better_by_hypervolume(tmp_path: Path) -> None:
    run(tmp_path / "s", 25, spec())
    curve = [volume for _, volume in load_study(tmp_path / "s").hypervolume_curve()]
    assert curve == sorted(curve)
    assert 0 < curve[0] < curve[-1] < 1


def test_a_failed_trial_does_not_end_a_search(tmp_path: Path) -> None:
    def sometimes(arch, seed):
        if seed % 3 == 0:
            raise RuntimeError("a bad\ntrial")
        return evaluate(arch, seed)

    list(search(spec(), Run(tmp_path / "s", trials=10), evaluate=sometimes))
    trials = load_study(tmp_path / "s").trials
    assert Counter(t.state for t in trials)["complete"] == 10
    assert any(t.state == "failed" and t.arch is not None and t.reason for t in trials)


def test_five_failures_for_one_reason_end_it(tmp_path: Path) -> None:
    def never(arch, seed):
        raise IgcNasError("no such device")

    with pytest.raises(IgcNasError, match="5 trials in a row failed: no such device") as raised:
        list(search(spec(), Run(tmp_path / "s", trials=10), evaluate=never))
    assert raised.value.hint == f"igc-nas status {tmp_path / 's'} shows where"
    assert [t.state for t in load_study(tmp_path / "s").trials] == ["failed"] * 5


def test_failures_that_differ_in_numbers_are_for_one_reason(tmp_path: Path) -> None:
    free = iter(range(100))

    def full(arch, seed):
        raise RuntimeError(f"out of memory: tried to allocate 2.50 MiB, {next(free)} KiB are free at 0x{seed:x}")

    with pytest.raises(IgcNasError, match=r"5 trials in a row failed: RuntimeError: out of memory: .* 4 KiB are free"):
        list(search(spec(), Run(tmp_path / "s", trials=10), evaluate=full))


def test_a_search_can_be_left_in_the_middle(tmp_path: Path) -> None:
    steps = search(spec(), Run(tmp_path / "s", trials=20), evaluate=evaluate)
    first = [next(steps), next(steps)]
    steps.close()
    assert [c.trial for c in first] == [0, 1]
    assert len(run(tmp_path / "s", 3, spec())) == 3


def test_what_is_enqueued_in_a_finished_study_is_continued_by_the_same_command(tmp_path: Path) -> None:
    """The study has its trials; an architecture and a baseline that were interrupted are evaluated nevertheless."""
    asked, folder = spec(), tmp_path / "s"
    run(folder, 4, asked)
    with pytest.raises(KeyboardInterrupt):
        list(search(asked, Run(folder, trials=5), evaluate=interrupted))
    *_, waiting = load_study(folder).trials
    new, baseline = reference("igcv1-l4m2-d5").arch, Baseline("another", reference("igcv1-l8m2-d5").arch)
    again = Run(folder, trials=4, enqueue=(new,), baselines=(baseline,))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            list(search(asked, again, evaluate=interrupted))
    assert len(list(search(asked, again, evaluate=evaluate))) == 1
    trials = load_study(folder).trials
    assert next(trial.state for trial in trials if trial.id == arch_id(new)) == "complete"
    assert [trial.state for trial in trials if trial.baseline] == ["complete"]
    assert trials[waiting.number].state == "waiting", "nobody asks for a fifth"
    assert list(search(asked, again, evaluate=evaluate)) == []


def interrupted(arch: ArchConfig, seed: int) -> tuple[Latency, Score]:
    raise KeyboardInterrupt


def test_a_time_limit_ends_a_search(tmp_path: Path) -> None:
    list(search(spec(), Run(tmp_path / "s", trials=50, timeout_s=1e-9), evaluate=evaluate))
    assert load_study(tmp_path / "s").trials == ()


def test_events_of_a_search(tmp_path: Path) -> None:
    events = []
    list(search(spec(), Run(tmp_path / "s", trials=2), evaluate=evaluate, on_event=events.append))
    assert [type(e) for e in events] == [Opened, Started, Ended, Started, Ended]
    assert events[2].trial.candidate.arch == events[1].job.arch


def test_asking_the_same_of_a_finished_study_does_nothing(tmp_path: Path) -> None:
    before = run(tmp_path / "s", 4, spec())
    assert run(tmp_path / "s", 4, spec()) == before


def test_another_question_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    before = run(tmp_path / "s", 3, spec())
    for change, named in (
        ({"seed": 1}, "seed: 1 asked for, 0 in the study"),
        ({"budget": Budget(params=2000)}, "budget"),
        ({"recipe": {"epochs": 9}}, "recipe.epochs: 9 asked for, 2 in the study"),
        ({"objectives": ("error", "macs")}, "objectives"),
        ({"space": "igc_cifar"}, "space_name: igc_cifar asked for, tiny in the study"),
    ):
        with pytest.raises(StudyError, match=named):
            run(tmp_path / "s", 4, spec(**change))
    assert load_study(tmp_path / "s").trials == before


def test_the_scale_is_fixed_once(tmp_path: Path) -> None:
    run(tmp_path / "s", 2, spec())
    scale = load_study(tmp_path / "s").spec.bounds
    uncalibrated = spec().model_copy(update={"bounds": {}, "reference_ms": None})
    run(tmp_path / "s", 3, uncalibrated)
    assert load_study(tmp_path / "s").spec.bounds == scale
    assert load_study(tmp_path / "s").spec.reference_ms == 1.0


def test_a_budget_that_is_left_away_is_another_question(tmp_path: Path) -> None:
    run(tmp_path / "s", 3, spec(budget=Budget(params=2000)))
    with pytest.raises(StudyError, match=r"budget\.params: none asked for, 2000 in the study"):
        run(tmp_path / "s", 4, spec())


def test_a_study_without_trials_and_scale_may_be_replaced(tmp_path: Path) -> None:
    uncalibrated = spec().model_copy(update={"bounds": {}, "reference_ms": None})
    with Store(tmp_path / "s", uncalibrated):
        pass
    assert len(run(tmp_path / "s", 2, spec(seed=4))) == 2
    assert load_study(tmp_path / "s").spec.seed == 4


# Pruning at rungs, and enqueued architectures.


def pruning(sampler: SamplerName = "known-cost", prune_below: float = 0.3, **changes: Any) -> StudySpec:
    return spec(sampler=sampler, prune_below=prune_below, recipe={"rungs": list(RUNGS)}, **changes)


def run_on_the_way(folder: Path, trials: int, question: StudySpec, **more: Any) -> tuple[Trial, ...]:
    list(search(question, Run(folder, trials=trials, **more), evaluate=evaluate_on_the_way))
    return load_study(folder).trials


@pytest.mark.parametrize("sampler", some(["known-cost", "tpe", "brute-force"], "known-cost"))
def test_hopeless_trainings_are_pruned_and_count(sampler: SamplerName, tmp_path: Path) -> None:
    trials = run_on_the_way(tmp_path / "s", 36, pruning(sampler, 0.5))
    study = load_study(tmp_path / "s")
    stopped = [t for t in trials if t.state == "pruned"]
    assert len(stopped) >= 3
    assert study.ended == len(stopped) + len(study.candidates) == 36
    assert min(t.number for t in stopped) >= MIN_COMPLETED
    ids = [t.pruned.id for t in stopped] + [c.id for c in study.candidates]
    assert len(set(ids)) == 36, "a pruned architecture is not suggested again"
    for trial in stopped:
        known = trial.pruned
        assert (known.id, known.cost, known.seed) == (
            arch_id(trial.arch), cost_of(trial.arch), training_seed(study.spec.seed, arch_id(trial.arch))
        )  # fmt: skip
        assert known.training.rungs == evaluate_on_the_way(trial.arch, 0)[1].rungs[: len(known.training.rungs)]
        assert all(epoch.samples <= known.training.rungs[-1].samples for epoch in known.training.curve)
        assert known.p_front < 0.5
        assert known.std > 0
        assert trial.candidate is None
        assert "its chance to end on the front was" in trial.reason
    assert all([r.samples for r in c.score.rungs] == list(RUNGS) for c in study.candidates)


def test_a_training_is_pruned_by_what_is_known_of_the_trials_before(tmp_path: Path) -> None:
    trials = run_on_the_way(tmp_path / "s", 30, pruning("random", 0.5))
    question = load_study(tmp_path / "s").spec
    for trial in trials:
        before = Study(question, trials[: trial.number])
        pruner = Pruner(question, before.candidates)
        latency, score = evaluate_on_the_way(trial.arch, 0)
        predictions = [pruner.prune(trial.arch, latency, rung) for rung in score.rungs]
        first = next(filter(None, predictions), None)
        assert (trial.state == "pruned") == (first is not None)
        if trial.pruned:
            assert (trial.pruned.p_front, trial.pruned.expected_error, trial.pruned.std) == (
                first.p_front, first.expected_error, first.std
            )  # fmt: skip


@pytest.mark.parametrize("sampler", some(["known-cost", "tpe"], "known-cost"))
def test_an_interrupted_search_with_pruning_gives_the_same_trials(sampler: SamplerName, tmp_path: Path) -> None:
    whole = run_on_the_way(tmp_path / "whole", 32, pruning(sampler, 0.5))
    assert any(t.state == "pruned" for t in whole)
    for trials in (5, 20, 32):
        parts = run_on_the_way(tmp_path / "parts", trials, pruning(sampler, 0.5))
    assert timeless(parts) == timeless(whole)


@pytest.mark.parametrize(
    "question",
    [
        pruning(prune_below=0.0),
        pytest.param(pruning(objectives=("params", "latency")), marks=pytest.mark.slow),
        spec(prune_below=0.5, recipe={"rungs": [1000, 3000]}),  # others than the evaluator's
    ],
)
def test_nothing_is_pruned_unless_asked_for(question: StudySpec, tmp_path: Path) -> None:
    assert {t.state for t in run_on_the_way(tmp_path / "s", 22, question)} <= {"complete", "duplicate", "infeasible"}


def test_pruned_trials_are_not_in_the_pruning_rule(tmp_path: Path) -> None:
    run_on_the_way(tmp_path / "s", 30, pruning(prune_below=0.5))
    study = load_study(tmp_path / "s")
    assert len(Pruner(study.spec, study.candidates).rule.completed) == len(study.candidates) < 30
    ends = [c.model_copy(update={"score": c.score.model_copy(update={"rungs": ()})}) for c in study.candidates]
    assert Pruner(study.spec, ends).rule.bound == 0.0


def test_an_enqueued_architecture_of_the_space_comes_first(tmp_path: Path) -> None:
    question = spec(budget=Budget(params=3000))
    arch = question.feasible.heaviest()
    given = run_enqueued(tmp_path / "s", 3, question, (arch,))
    assert [t.enqueued for t in given] == [True, None, None]
    assert given[0].arch == arch
    assert given[0].params == question.search_space.encode(arch)
    assert given[0].candidate.id == arch_id(arch) not in {t.candidate.id for t in given[1:]}


def run_enqueued(
    folder: Path, trials: int, question: StudySpec, first: tuple[ArchConfig, ...], evaluator: Evaluate = evaluate
) -> tuple[Trial, ...]:
    list(search(question, Run(folder, trials=trials, enqueue=first), evaluate=evaluator))
    return load_study(folder).trials


@pytest.mark.parametrize("sampler", some(SAMPLERS, "known-cost", "tpe"))
def test_an_enqueued_network_outside_the_space(sampler: SamplerName, tmp_path: Path) -> None:
    """A paper's network, far over the budget: it is evaluated and kept, and samplers go on as without it."""
    question = spec(sampler=sampler, budget=Budget(params=3000), seed=2)
    outside = reference("igcv1-l24m2-d20", 10).arch
    trials = run_enqueued(tmp_path / "s", 24 if sampler == "nsga2" else 14, question, (outside,))
    assert (trials[0].enqueued, trials[0].arch, trials[0].params, trials[0].state) == (True, outside, {}, "complete")
    assert trials[0].violation > 0
    assert all(cost_of(t.arch).params <= 3000 for t in trials[1:] if t.state == "complete")
    with Store(tmp_path / "s", question) as store:
        assert store.optuna_study.trials[0].system_attrs["constraints:budget"] == trials[0].violation


def test_an_architecture_enqueued_twice_is_evaluated_once(tmp_path: Path) -> None:
    question = spec()
    small, large = question.feasible.lightest(), question.feasible.heaviest()
    first = (small, large, small)
    run_enqueued(tmp_path / "s", 1, question, first)
    run_enqueued(tmp_path / "s", 3, question, first)
    trials = run_enqueued(tmp_path / "s", 4, question, (*first, large))
    assert [t.enqueued for t in trials] == [True, True, None, None]
    assert timeless(trials) == timeless(run_enqueued(tmp_path / "whole", 4, question, first))


def test_a_given_trial_that_was_cut_is_taken_up(tmp_path: Path) -> None:
    question = spec()
    outside = reference("igcv1-l24m2-d20", 10).arch
    with pytest.raises(KeyboardInterrupt):
        run_enqueued(tmp_path / "s", 3, question, (outside,), _failing_at(0))
    assert [(t.state, t.enqueued) for t in load_study(tmp_path / "s").trials] == [("waiting", True)]
    trials = run(tmp_path / "s", 3, question)  # nobody has to name it again
    assert timeless(trials) == timeless(run_enqueued(tmp_path / "whole", 3, question, (outside,)))


def test_what_fails_or_is_too_slow_is_not_given_again(tmp_path: Path) -> None:
    question = spec(budget=Budget(latency_ms=0.5))
    slow = reference("igcv1-l24m2-d20", 10).arch
    for trials in (2, 3):
        found = run_enqueued(tmp_path / "s", trials, question, (slow,))
    assert [t.state for t in found if t.enqueued] == ["infeasible"]


def test_all_of_a_space_is_searched_to_its_end(tmp_path: Path) -> None:
    question = spec(sampler="brute-force", budget=Budget(params=1000))
    within = _enumerate_tiny(1000)
    assert question.feasible.count == len(within)
    events = []
    list(search(question, Run(tmp_path / "s"), evaluate=evaluate, on_event=events.append))
    trials = load_study(tmp_path / "s").trials
    assert [t.state for t in trials] == ["complete"] * len(within)
    assert {t.candidate.id for t in trials} == within
    assert isinstance(events[-1], Exhausted)
    halves = tmp_path / "halves"
    run(halves, 4, question)
    assert timeless(run(halves, 500, question)) == timeless(trials)
