"""Baselines in a search: evaluated first and to the end, recorded by name, and nothing to the sampler and the front."""

from __future__ import annotations

from pathlib import Path

import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.papers import reference
from igc_nas.arch.plan import arch_id
from igc_nas.engine.coordinator import Evaluate
from igc_nas.engine.events import Ended, Event
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store
from igc_nas.errors import IgcNasError
from igc_nas.space.budget import Budget
from igc_nas.study.baselines import Baseline
from igc_nas.study.records import Latency, Score, Trial
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import Study, load_study
from tests.support.searches import RUNGS, evaluate, evaluate_on_the_way, spec
from tests.support.shares import some

OUTSIDE = Baseline("regconv", reference("regconv-w4-d8", 10).arch)
MEMBER = Baseline("member", spec().search_space.smallest("params"))
BOTH = (OUTSIDE, MEMBER)


def run(folder: Path, question: StudySpec, trials: int = 8, how: Evaluate = evaluate, **options: object) -> Study:
    list(search(question, Run(folder, trials=trials, **options), evaluate=how))  # type: ignore[arg-type]
    return load_study(folder)


def own(study: Study) -> list[tuple[object, ...]]:
    """The sampler's trials without their numbers."""
    return [(t.state, t.id, t.params, t.candidate and t.candidate.score) for t in study.trials if not t.baseline]


@pytest.mark.parametrize("sampler", some(["known-cost", "tpe", "nsga2"], "known-cost"))
def test_the_sampler_suggests_the_same_with_and_without(sampler: str, tmp_path: Path) -> None:
    question = spec(sampler=sampler, seed=3)
    alone = run(tmp_path / "alone", question, 14)
    beside = run(tmp_path / "beside", question, 14, baselines=BOTH)
    assert own(beside) == own(alone)
    assert [t.baseline for t in beside.trials[:3]] == ["regconv", "member", None]
    assert beside.front() == tuple(c.model_copy(update={"trial": c.trial + 2}) for c in alone.front())
    assert beside.hypervolume() == alone.hypervolume()
    assert (beside.ended, len(beside.candidates)) == (14, 14)


def test_they_are_trials_by_name_but_no_candidates(tmp_path: Path) -> None:
    study = run(tmp_path / "s", spec(), baselines=BOTH)
    assert [(t.baseline, t.state, t.id) for t in study.baselines] == [
        ("regconv", "complete", arch_id(OUTSIDE.arch)),
        ("member", "complete", arch_id(MEMBER.arch)),
    ]
    assert not {t.number for t in study.baselines} & {c.trial for c in (*study.candidates, *study.front())}
    assert all(not t.params and not t.enqueued for t in study.baselines)
    assert study.pick("trial:0").id == arch_id(OUTSIDE.arch)


def test_they_can_be_added_to_a_study_and_are_evaluated_once(tmp_path: Path) -> None:
    run(tmp_path / "s", spec(), 4)
    once = run(tmp_path / "s", spec(), 4, baselines=BOTH)
    assert [t.number for t in once.baselines] == [4, 5]
    again = run(tmp_path / "s", spec(), 6, baselines=(MEMBER, OUTSIDE))
    assert again.baselines == once.baselines
    assert len(again.candidates) == 6
    assert own(again) == own(run(tmp_path / "alone", spec(), 6))


@pytest.mark.parametrize("lost", ["study.db", "trials.jsonl"])
def test_the_database_and_the_log_restore_each_other(tmp_path: Path, lost: str) -> None:
    before = run(tmp_path / "s", spec(), 5, baselines=BOTH)
    (tmp_path / "s" / lost).unlink()
    after = run(tmp_path / "s", spec(), 9, baselines=BOTH)
    assert after.trials[: len(before.trials)] == before.trials
    assert own(after) == own(run(tmp_path / "alone", spec(), 9))


@pytest.mark.parametrize("stop", some(range(1, 5), 2))
def test_a_stopped_search_takes_them_up_again(tmp_path: Path, stop: int) -> None:
    calls = 0

    def stopped(arch: ArchConfig, seed: int) -> tuple[Latency, Score]:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return evaluate(arch, seed)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "s", spec(), 4, stopped, baselines=BOTH)
    study = run(tmp_path / "s", spec(), 4, baselines=BOTH)
    assert [t.baseline for t in study.baselines] == ["regconv", "member"]
    assert own(study) == own(run(tmp_path / "alone", spec(), 4))


def test_they_are_never_pruned(tmp_path: Path) -> None:
    question = spec(prune_below=0.9, recipe={"rungs": list(RUNGS), "epochs": 3, "train_size": 2000}, seed=1)
    first = run(tmp_path / "s", question, 40, evaluate_on_the_way)
    assert any(trial.state == "pruned" for trial in first.trials)
    bad = tuple(
        Baseline(f"b{number}", trial.arch)
        for number, trial in enumerate(t for t in first.trials if t.state == "pruned" and t.arch)
    )
    study = run(tmp_path / "s", question, 40, evaluate_on_the_way, baselines=bad)
    assert bad
    assert {t.state for t in study.baselines} == {"complete"}


def fails_with(error: Exception, identity: str = arch_id(OUTSIDE.arch)) -> Evaluate:
    def evaluated(arch: ArchConfig, seed: int) -> tuple[Latency, Score]:
        if arch_id(arch) == identity:
            raise error
        return evaluate(arch, seed)

    return evaluated


def test_one_that_fails_is_recorded(tmp_path: Path) -> None:
    study = run(tmp_path / "s", spec(), 3, fails_with(ValueError("no such kernel")), baselines=BOTH)
    failed = study.baselines[0]
    assert (failed.baseline, failed.state, failed.reason) == ("regconv", "failed", "ValueError: no such kernel")
    assert len(study.candidates) == 3
    mended = run(tmp_path / "s", spec(), 3, baselines=BOTH)
    assert [t.state for t in mended.baselines] == ["complete", "complete"]
    assert len([t for t in mended.trials if t.baseline]) == 3


def test_one_that_this_machine_refuses_is_not_tried_again(tmp_path: Path) -> None:
    how = fails_with(IgcNasError("squeeze-excite has no code in C"))
    for _ in range(2):
        study = run(tmp_path / "s", spec(), 3, how, baselines=BOTH)
    assert [t.state for t in study.trials if t.baseline] == ["failed", "complete"]


def test_many_that_fail_alike_do_not_end_the_search(tmp_path: Path) -> None:
    many = tuple(Baseline(f"w{width}", reference(f"regconv-w{width}-d8", 10).arch) for width in range(1, 9))
    names = {arch_id(each.arch) for each in many}

    def evaluated(arch: ArchConfig, seed: int) -> tuple[Latency, Score]:
        if arch_id(arch) in names:
            raise IgcNasError("no code")
        return evaluate(arch, seed)

    study = run(tmp_path / "s", spec(), 3, evaluated, baselines=many)
    assert {t.state for t in study.baselines} == {"failed"}
    assert len(study.candidates) == 3


def test_one_over_the_latency_budget_is_infeasible(tmp_path: Path) -> None:
    question = spec(budget=Budget(latency_ms=0.5))
    study = run(tmp_path / "s", question, 2, baselines=(Baseline("large", reference("regconv-w16-d8", 10).arch),))
    (large,) = study.baselines
    assert large.state == "infeasible"
    assert "the budget is 0.5 ms" in (large.reason or "")


def test_the_time_of_the_search_begins_after_them(tmp_path: Path) -> None:
    """With a time that is over at once the baselines are evaluated and no trial; a hard limit stops them too."""
    after = run(tmp_path / "a", spec(), 5, baselines=BOTH, time_s=1e-9)
    assert [t.baseline for t in after.trials] == ["regconv", "member"]
    assert run(tmp_path / "b", spec(), 5, baselines=BOTH, timeout_s=1e-9).trials == ()


def test_they_are_shown_as_they_end_but_not_yielded(tmp_path: Path) -> None:
    events: list[Event] = []
    found = list(
        search(spec(), Run(tmp_path / "s", trials=2, baselines=BOTH), evaluate=evaluate, on_event=events.append)
    )
    assert len(found) == 2
    assert [e.trial.baseline for e in events if isinstance(e, Ended) and e.trial.baseline] == ["regconv", "member"]


def test_the_store_counts_without_them(tmp_path: Path) -> None:
    question = spec()
    with Store(tmp_path / "s", question) as store:
        store.add(Trial(number=0, state="waiting", params={}, arch=OUTSIDE.arch, baseline="a"))
        assert store.ended == 0
        assert store.consecutive_failures() == 0
        waiting = next(store.waiting(), None)
        assert waiting is not None
        assert waiting.baseline == "a"
        assert len(store.optuna_study.trials) == 0
