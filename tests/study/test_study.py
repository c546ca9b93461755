import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.errors import StudyError, UsageError
from igc_nas.study.objectives import OBJECTIVES, parse_objectives, values
from igc_nas.study.pareto import dominates, hypervolume
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study, load_study, parse_limits
from tests.support.builders import one_line
from tests.support.studies import make_study


@cache
def study(n: int = 40) -> Study:
    return make_study(n, others=("infeasible", "duplicate", "failed", "running", "waiting"))


EMPTY = Study(study().spec, ())


def write(folder: Path, lines: Sequence[str], end: str = "\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(study().spec.to_toml(), encoding="utf-8")
    (folder / "trials.jsonl").write_text("\n".join(lines) + end, encoding="utf-8")
    return folder


LINES = [trial.to_json() for trial in study().trials]


def test_a_folder_is_read_back_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "studies" / "mine", LINES)
    for found in (load_study("mine", tmp_path / "studies"), load_study(folder), load_study(str(folder))):
        assert found == Study(study().spec, study().trials, folder)
        assert found.front() == study().front()


def test_a_candidate_that_was_measured_again_over_the_limit_leaves_the_front() -> None:
    found = study()
    slowest = max(found.front(), key=lambda c: c.latency.normalised_ms)
    limit = slowest.latency.normalised_ms
    spec = found.spec.model_copy(update={"budget": found.spec.budget.model_copy(update={"latency_ms": limit})})
    trials = tuple(t for t in found.trials if not t.candidate or t.candidate.latency.normalised_ms <= limit)
    assert slowest in Study(spec, trials).front()
    slower = slowest.model_copy(update={"latency": slowest.latency.model_copy(update={"normalised_ms": limit * 1.01})})
    again = tuple(t.model_copy(update={"candidate": slower}) if t.number == slowest.trial else t for t in trials)
    assert slowest.trial not in {c.trial for c in Study(spec, again).front()}


def test_a_study_without_trials_yet(tmp_path: Path) -> None:
    folder = write(tmp_path / "new", [])
    assert load_study(folder).trials == ()
    (folder / "trials.jsonl").unlink()
    found = load_study(folder)
    assert (found.trials, found.front(), found.hypervolume()) == ((), (), 0)


@given(st.integers(1, len(LINES[-1].encode())))
def test_a_last_line_that_is_being_written_is_left_out(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = write(tmp_path_factory.mktemp("s") / "torn", LINES)
    whole = (folder / "trials.jsonl").read_bytes()
    (folder / "trials.jsonl").write_bytes(whole[: -cut - 1])
    assert load_study(folder).trials == study().trials[:-1]


def test_a_last_line_that_lacks_only_its_end_counts(tmp_path: Path) -> None:
    assert load_study(write(tmp_path / "torn", LINES, end="")).trials == study().trials


@pytest.mark.parametrize("bad", ["{", LINES[3][:-9], "{}", "null", "\x00" * 40, '{"number": 1e400}', "\ufffd"])
@pytest.mark.parametrize("line", [1, 3, len(LINES)])
def test_a_damaged_line_is_named(tmp_path: Path, bad: str, line: int) -> None:
    folder = write(tmp_path / "bad", [*LINES[: line - 1], bad, *LINES[line:]])
    with pytest.raises(StudyError) as raised:
        load_study(folder)
    assert one_line(raised).startswith(f"bad/trials.jsonl line {line}: ")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "bad", LINES)
    (folder / "trials.jsonl").write_bytes(b"\xff\xfe\n" + b"\n".join(line.encode() for line in LINES))
    with pytest.raises(StudyError, match=r"bad/trials.jsonl line 1"):
        load_study(folder)
    (folder / "study.toml").write_bytes(b"\xc3(")
    with pytest.raises(StudyError, match=r"study.toml is not UTF-8"):
        load_study(folder)


def test_of_several_lines_for_one_trial_the_last_counts(tmp_path: Path) -> None:
    first = study().trials[0]
    running = replace(study(), trials=(first.model_copy(update={"state": "running", "candidate": None}),))
    lines = [running.trials[0].to_json(), "", *reversed(LINES)]
    assert load_study(write(tmp_path / "twice", lines)).trials == study().trials


def test_only_completed_trials_are_candidates() -> None:
    assert [c.trial for c in study().candidates] == list(range(40))
    assert len(study().trials) == 45


@pytest.mark.parametrize(
    "names", [None, *itertools.combinations(OBJECTIVES, 2), ("error", "params", "macs"), ("latency", "error", "macs")]
)
def test_the_front_is_what_no_candidate_dominates(names: tuple[str, ...] | None) -> None:
    axes = names or study().spec.objectives
    points = {c.trial: values(c, axes) for c in study().candidates}
    brute = {t for t, p in points.items() if not any(dominates(q, p) for q in points.values())}
    front = study().front(names)
    assert {points[c.trial] for c in front} == {points[t] for t in brute}
    assert len({points[c.trial] for c in front}) == len(front)
    firsts = [values(c, axes)[0] for c in front]
    assert firsts == sorted(firsts)


def test_the_curve_ends_at_the_hypervolume_and_never_falls() -> None:
    curve = study().hypervolume_curve()
    assert [count for count, _ in curve] == list(range(1, 41))
    volumes = [volume for _, volume in curve]
    assert volumes == sorted(volumes)
    assert volumes[-1] == pytest.approx(study().hypervolume())
    for count in (1, 7, 25):
        points = [study().scaled(c) for c in study().candidates[:count]]
        assert volumes[count - 1] == pytest.approx(hypervolume(points, (1, 1, 1)))
    assert 0 < volumes[-1] < 1


def test_the_front_of_one_objective_is_its_least_value() -> None:
    best = min(study().candidates, key=lambda c: c.score.error)
    assert study().front("error") == (best,)
    least = study().scaled(best, "error")[0]
    assert study().hypervolume("error") == pytest.approx(1 - least)
    assert study().hypervolume_curve("error")[-1][1] == pytest.approx(1 - least)


def test_before_the_calibration_there_is_no_hypervolume() -> None:
    fresh = Study(study().spec.model_copy(update={"bounds": {}}), study().trials)
    assert fresh.hypervolume() is None
    assert fresh.hypervolume_curve() == []
    assert fresh.pick("knee") in fresh.front()


def test_pick_knee_and_best_error() -> None:
    candidates = study().candidates
    assert study().pick("knee") in study().front()
    assert study().pick("best-error").score.error == min(c.score.error for c in candidates)
    assert study().pick("trial:7") == candidates[7]


@given(st.sampled_from(["params", "macs", "flops", "activations"]), st.integers(10**4, 10**9))
def test_pick_under_a_limit_is_the_best_within(name: str, limit: int) -> None:
    within = [c for c in study().candidates if OBJECTIVES[name].of(c) <= limit]
    rule = f"under:{name}={limit}"
    if within:
        assert study().pick(rule) == min(within, key=lambda c: (c.score.error, c.cost.params))
    else:
        with pytest.raises(StudyError):
            study().pick(rule)


def test_pick_under_several_limits() -> None:
    def within(c: Candidate) -> bool:
        return c.cost.params <= 10**6 and c.latency.normalised_ms <= 40

    picked = study().pick("under:params=1M,latency=40ms")
    assert within(picked)
    assert picked.score.error == min(c.score.error for c in study().candidates if within(c))


def test_the_smallest_of_the_front_is_picked_by_what_is_deployed() -> None:
    picked = study().pick("smallest")
    assert picked in study().front()
    assert picked.deployed_params == min(c.deployed_params for c in study().front())


def test_a_limit_that_nothing_meets_names_the_nearest() -> None:
    smallest = min(study().candidates, key=lambda c: c.cost.params)
    with pytest.raises(StudyError) as raised:
        study().pick("under:params=1k")
    assert one_line(raised) == "no completed trial of test-study is within that"
    assert raised.value.hint is not None
    assert raised.value.hint.startswith(f"the nearest is trial:{smallest.trial} (params ")


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ("trial:45", StudyError, "test-study has no trial 45; it has trials 0 to 44"),
        ("trial:999999999", StudyError, "test-study has no trial 999999999"),
        ("trial:40", StudyError, "trial 40 of test-study is infeasible"),
        ("trial:42", StudyError, "trial 42 of test-study is failed"),
        ("trial:43", StudyError, "trial 43 of test-study is running"),
        ("trial:", UsageError, "unknown pick"),
        ("trial:-1", UsageError, "unknown pick"),
        ("trial:1e3", UsageError, "unknown pick"),
        ("trial:\u0663", UsageError, "unknown pick"),
        ("trial:" + "9" * 5000, UsageError, "unknown pick"),
        ("", UsageError, "unknown pick ''"),
        ("best", UsageError, "unknown pick 'best'"),
        ("knee:3", UsageError, "unknown pick"),
        ("a\nb", UsageError, "unknown pick"),
        ("under:", UsageError, "unknown pick"),
        ("under:params", UsageError, "'params' is not a limit"),
        ("under:params=", UsageError, "'params=' is not a limit"),
        ("under:error=0.1", UsageError, "'error=0.1' is not a limit"),
        ("under:size=3M", UsageError, "'size=3M' is not a limit"),
        ("under:params=1M,", UsageError, "'' is not a limit"),
        ("under:params=0", UsageError, "params '0'"),
        ("under:params=inf", UsageError, "params 'inf'"),
        ("under:latency=5", UsageError, "latency '5'"),
        ("under:macs=30ms", UsageError, "macs '30ms'"),
    ],
)
def test_a_pick_that_names_nothing_is_refused(rule: str, error: type[StudyError], message: str) -> None:
    with pytest.raises(error) as raised:
        study().pick(rule)
    assert one_line(raised).startswith(message)


def test_nothing_can_be_picked_before_the_first_trial() -> None:
    with pytest.raises(StudyError) as raised:
        EMPTY.pick("knee")
    assert one_line(raised) == "test-study has no completed trial yet"
    with pytest.raises(StudyError, match="it has no trials yet"):
        EMPTY.trial(0)


def test_limits_and_objectives_are_written_by_name() -> None:
    assert parse_limits("params=500k,latency=2ms") == {"params": 500_000, "latency": 2.0}
    assert parse_objectives(" error, params ,latency") == ("error", "params", "latency")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("error,parms", "did you mean params?"),
        ("error,qqq", "choose from error, params, macs, flops, latency, activations"),
        ("", "choose from"),
        ("params", "e.g. error,params,latency"),
        ("error,error", "e.g."),
        ("error,params,macs,latency", "e.g."),
        ("error,params,", "choose from"),
        ("Error,params", ""),
        ("error;params", ""),
    ],
)
def test_objectives_that_are_refused(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_objectives(text)
    one_line(raised)
    assert (raised.value.hint or "").startswith(hint)


@given(st.floats(1e-3, 1e12), st.floats(1e-3, 1e12), st.floats(1e-3, 1e12))
def test_scales_put_low_at_0_and_high_at_1_and_keep_the_order(a: float, b: float, c: float) -> None:
    low, middle, high = sorted((a, b, c))
    if high < low * 1.01:
        return
    for objective in OBJECTIVES.values():
        assert objective.scale(low, low, high) == 0
        assert objective.scale(high, low, high) == pytest.approx(1)
        assert 0 <= objective.scale(middle, low, high) <= 1 + 1e-9


def test_a_candidate_over_the_budget_is_not_feasible() -> None:
    """An enqueued network may exceed the budget; it is a candidate, but not on the front."""
    whole = make_study(20)
    limit = sorted(c.cost.params for c in whole.candidates)[9]
    budget = whole.spec.budget.model_copy(update={"params": limit})
    tight = replace(whole, spec=whole.spec.model_copy(update={"budget": budget}))
    assert len(tight.candidates) == 20
    assert len(tight.feasible_candidates) == 10
    assert {c.id for c in tight.front()} <= {c.id for c in tight.feasible_candidates}
    assert tight.hypervolume_curve()[-1] == (10, pytest.approx(tight.hypervolume()))
    assert tight.pick("best-error").cost.params <= limit
    nothing = replace(whole, spec=whole.spec.model_copy(update={"budget": budget.model_copy(update={"params": 1})}))
    assert nothing.front() == ()
    assert nothing.pick("knee") in nothing.candidates


def test_reprs_are_one_line_and_pages_are_tables() -> None:
    study = make_study(4, others=["failed"])
    arch = study.candidates[0].arch
    best = study.front()[0]
    for what in (study, study.front(), study.front()[:1], best, best.latency, best.score, *study.trials, arch):
        assert "\n" not in repr(what)
        assert len(repr(what)) <= 300
    assert study.front("error, macs") == study.front(("error", "macs"))
    with pytest.raises(UsageError, match="unknown objective 'speed'"):
        study.front(("error", "speed"))
    assert study._repr_html_().count("<tr>") == study.front()._repr_html_().count("<tr>") == 1 + len(study.front())
    assert arch._repr_html_().count("<span") == 3 + len(arch.stages) + bool(arch.head)
