from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from igc_nas.analysis.plots import finals_figure, finals_picture, front_figure, front_picture
from igc_nas.analysis.surrogate_quality import surrogate_quality
from igc_nas.analysis.views import (
    curves_view,
    disagreements,
    forms_view,
    front_rows,
    front_view,
    hypervolume_view,
    papers_view,
    surrogate_view,
    trials_view,
    unit_mix,
)
from igc_nas.arch.cost import Cost
from igc_nas.errors import StudyError, UsageError
from igc_nas.io.text import plain
from igc_nas.study.finals import FinalsLog, finals_groups
from igc_nas.study.objectives import OBJECTIVES, values
from igc_nas.study.pareto import dominates
from igc_nas.study.records import FormTime, Trial
from igc_nas.study.study import Study
from tests.study.test_finals import final
from tests.support.families import RECIPE, RUNGS, on_the_way
from tests.support.studies import make_spec, make_study

PAIRS = list(itertools.combinations(OBJECTIVES, 2))


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(60, others=["failed", "infeasible", "infeasible", "running"])


# views


@pytest.mark.parametrize("names", [*PAIRS, ("error", "params", "latency"), ("latency", "error", "macs")])
def test_a_front_is_what_brute_force_finds(study: Study, names: tuple[str, ...]) -> None:
    view = front_view(study, names)
    points = [values(c, names) for c in study.candidates]
    expected = [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    assert sorted(view.front) == sorted({points[i]: i for i in reversed(expected)}.values())
    assert list(view.front) == sorted(view.front, key=lambda i: points[i])


def test_columns_are_the_trials(study: Study) -> None:
    view = trials_view(study)
    assert set(view.columns) == set(OBJECTIVES)
    assert view.trial == tuple(trial.number for trial in study.trials)
    assert [view.trial[row] for row in view.complete] == [c.trial for c in study.candidates]
    for row, candidate in zip(view.complete, study.candidates, strict=True):
        assert view.id[row] == candidate.id
        assert view.units[row] == unit_mix(candidate.arch)
        for name, objective in OBJECTIVES.items():
            assert view.columns[name][row] == pytest.approx(objective.of(candidate), rel=1e-4)
        assert view.low_ms[row] <= view.columns["latency"][row] <= view.high_ms[row]
        assert (row in view.noisy) == candidate.latency.noisy


def test_a_trial_that_did_not_complete_has_its_known_values() -> None:
    study = on_the_way()
    arch = study.candidates[0].arch
    over = Trial(number=30, state="infeasible", params={}, arch=arch, reason="over")
    nothing = Trial(number=31, state="infeasible", params={}, reason="no network")
    view = trials_view(Study(study.spec, (*study.trials, over, nothing)))
    for row in range(24, 30):
        pruned = study.trials[row].pruned
        assert pruned
        assert view.columns["error"][row] is None
        assert view.expected[row] == pytest.approx(pruned.expected_error, rel=1e-4)
        assert view.columns["macs"][row] == pruned.cost.macs
        assert view.columns["latency"][row] == pytest.approx(pruned.latency.normalised_ms, rel=1e-4)
    assert (view.columns["params"][30], view.columns["latency"][30]) == (study.candidates[0].cost.params, None)
    assert view.id[30] == study.candidates[0].id
    assert (view.id[31], view.units[31], view.columns["params"][31]) == ("", "", None)


def test_an_interval_is_scaled_to_the_normalised_time(study: Study) -> None:
    latency = study.candidates[0].latency
    low, high = latency.normalised_interval_ms
    assert low / latency.low_ms == pytest.approx(latency.normalised_ms / latency.median_ms)
    assert high / low == pytest.approx(latency.high_ms / latency.low_ms)


def test_members_are_the_studys_own_front(study: Study) -> None:
    view = front_view(study, ("macs", "latency"))
    assert view.members == front_rows(study, study.spec.objectives)
    assert [study.candidates[row] for row in view.members] == list(study.front())


def test_budgets_are_lines_on_their_axes() -> None:
    view = front_view(make_study(3, budget={"params": 10**6, "macs": 10**8, "latency_ms": 5.0}), ("params", "latency"))
    assert view.limits == {"params": 10**6, "macs": 10**8, "flops": 2 * 10**8, "latency": 5.0}
    across, up = front_figure(view, "error").layout.shapes
    assert (across.xref, across.x0, across.x1, across.yref) == ("x", 10**6, 10**6, "paper")
    assert (up.yref, up.y0, up.y1, up.xref) == ("y", 5.0, 5.0, "paper")


@pytest.mark.parametrize(
    ("dataset", "count"), [("cifar10", 5), ("cifar100", 25), ("cifar10 (unofficial, sha256:0)", 5), ("shapes", 0)]
)
def test_papers_by_dataset(dataset: str, count: int) -> None:
    papers = papers_view(make_study(0, dataset=dataset))
    assert len(papers.name) == count
    assert "latency" not in papers.columns
    assert all(len(column) == count for column in papers.columns.values())


def test_the_papers_numbers(study: Study) -> None:
    papers = papers_view(study)
    row = papers.name.index("igcv3-d-cifar")
    assert papers.columns["error"][row] == 0.0504
    assert papers.columns["params"][row] == 2_223_498
    assert papers.source[row] == "IGCV3, IGCV3-D 1.0x"


def test_hypervolume_never_falls(study: Study) -> None:
    view = hypervolume_view(study)
    assert view.trials == tuple(range(1, 61))
    assert all(a <= b for a, b in itertools.pairwise(view.volumes))
    assert view.volumes[-1] == pytest.approx(study.hypervolume())


def test_hypervolume_without_a_scale() -> None:
    view = hypervolume_view(make_study(3, bounds={}))
    assert (view.trials, view.volumes, view.busy_s) == ((), (), ())


def test_busy_time_leaves_out_gaps_between_runs() -> None:
    """Three trials: two beside each other, then a night, then one that ends before the trial begun ahead of it."""
    at = ("2026-01-01T10:00:00+00:00", "2026-01-01T10:00:30+00:00", "2026-01-02T08:00:00+00:00")
    began = (*at, "2026-01-02T08:00:10+00:00")
    walls = (60.0, 90.0, 100.0, 10.0)
    study = make_study(4)
    trials = [
        trial.model_copy(update={"started": started, "wall_s": wall})
        for trial, started, wall in zip(study.trials, began, walls, strict=True)
    ]
    assert hypervolume_view(Study(study.spec, tuple(trials))).busy_s == (60, 120, 220, 220)
    unknown = [trials[0], trials[1].model_copy(update={"started": None}), *trials[2:]]
    assert hypervolume_view(Study(study.spec, tuple(unknown))).busy_s == (60, None, 160, 160)


def test_busy_time_has_the_time_of_longer_trainings() -> None:
    """A longer training of ten minutes between two trials of one, and one that runs beside the last of them."""
    at = ("10:00:00", "10:01:00", "10:11:00", "10:11:00")
    walls, longer_of = (60.0, 600.0, 60.0, 600.0), (None, 0, None, 2)
    study = make_study(4)
    trials = tuple(
        trial.model_copy(update={"started": f"2026-01-01T{clock}+00:00", "wall_s": wall, "longer_of": of})
        for trial, clock, wall, of in zip(study.trials, at, walls, longer_of, strict=True)
    )
    assert hypervolume_view(Study(study.spec, trials)).busy_s == (60, 720)


def test_forms_are_those_that_were_timed(study: Study) -> None:
    view = forms_view(study.candidates)
    assert view.trial == tuple(c.trial for c in study.candidates)
    assert view.chosen == tuple(range(60)), "a candidate without times of its forms has the one it was measured in"
    assert view.median_ms == pytest.approx([c.latency.median_ms for c in study.candidates], rel=1e-4)
    first = study.candidates[0]
    times = {
        name: FormTime(params=2, macs=macs, weight_bytes=8, median_ms=ms, low_ms=ms, high_ms=ms)
        for name, macs, ms in (("factored", 10, 3.0), ("dense", 40, 1.0))
    }
    latency = first.latency.model_copy(update={"forms": times, "form": "dense"})
    view = forms_view([first.model_copy(update={"latency": latency}), study.candidates[1]])
    assert (view.form, view.chosen) == (("factored", "dense", "factored"), (1, 2))
    assert view.macs == (10, 40, study.candidates[1].cost.macs)


def test_a_form_without_an_interval_has_none_in_the_view(study: Study) -> None:
    """It was dropped from the race before its sixth round."""
    first = study.candidates[0]
    form = FormTime(params=2, macs=10, weight_bytes=8, median_ms=3.0)
    latency = first.latency.model_copy(update={"forms": {"factored": form}})
    view = forms_view([first.model_copy(update={"latency": latency})])
    assert (view.median_ms, view.low_ms, view.high_ms) == ((3.0,), (None,), (None,))


def test_curves_are_the_rungs_and_the_end() -> None:
    study = on_the_way()
    view = curves_view(study)
    assert view.trial == tuple(range(30))
    for row, trial in enumerate(study.trials):
        if trial.candidate:
            score = trial.candidate.score
            assert view.samples[row] == (*RUNGS, score.samples)
            assert view.errors[row] == pytest.approx([*(rung.error for rung in score.rungs), score.error], rel=1e-4)
        else:
            assert view.samples[row] == RUNGS


def test_trainings_without_rungs_have_no_curve(study: Study) -> None:
    assert curves_view(study).trial == ()
    mixed = on_the_way(4, 0)
    candidate = mixed.candidates[2]
    bare = candidate.model_copy(update={"score": candidate.score.model_copy(update={"rungs": ()})})
    trials = list(mixed.trials)
    trials[2] = trials[2].model_copy(update={"candidate": bare})
    assert curves_view(Study(mixed.spec, tuple(trials))).trial == (0, 1, 3)


def test_the_surrogate_view_is_its_leave_one_out_quality(study: Study) -> None:
    view, known = surrogate_view(study), surrogate_quality(study)
    assert view
    assert known
    assert view.trial == known.trials == tuple(c.trial for c in study.candidates)
    assert view.observed == pytest.approx([c.score.error for c in study.candidates], rel=1e-4)
    assert view.expected == pytest.approx(known.expected, rel=1e-4)
    assert view.std == pytest.approx(known.deviation, rel=1e-4)
    assert view.sentence == known.sentence()


def test_few_trials_have_no_surrogate_view() -> None:
    assert surrogate_view(make_study(15)) is None


# what studies share


def test_equal_specs_have_no_disagreements() -> None:
    assert disagreements([make_spec(name="a"), make_spec(name="b", seed=1)]) == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset": "shapes"}, "The datasets differ (cifar10; shapes)"),
        ({"dataset_sha256": "1" * 64}, "The datasets differ (cifar10)"),
        ({"recipe": RECIPE | {"epochs": 3, "lr": 0.2}}, "The recipes differ in epochs, lr"),
        ({"latency": {"device": "GPU"}}, "The latency devices differ (Test CPU; GPU)"),
        ({"latency": {"device": "Test CPU", "batch": 8}}, "Latency was measured under different conditions (batch)"),
        ({"objectives": ["error", "macs"]}, "The scales of the hypervolume differ"),
    ],
)
def test_a_disagreement_is_named(changes: dict[str, Any], expected: str) -> None:
    (line,) = disagreements([make_spec(), make_spec(**changes)])
    assert line.startswith(expected)


def test_plain_text() -> None:
    assert plain("a<b>&\"'") == "a&lt;b&gt;&amp;&#34;&#39;"
    assert plain("a\u202eb\x00c") == "a\ufffdb\ufffdc"
    assert plain("größer 你好 שלום") == "größer 你好 שלום"


# the picture


def test_a_figure_is_its_view(study: Study) -> None:
    view = front_view(study, ("params", "error"))
    every, line, *_ = front_figure(view, "latency").data
    columns = view.trials.columns
    assert list(every.x) == [columns["params"][row] for row in view.trials.complete]
    assert list(line.x) == [columns["params"][row] for row in view.front]
    assert list(line.y) == [columns["error"][row] for row in view.front]


@pytest.mark.parametrize(("names", "drawn"), [(("params", "error"), False), (("macs", "latency"), True)])
def test_a_noisy_latency_is_marked_where_it_is_shown(study: Study, names: tuple[str, str], drawn: bool) -> None:
    assert ("noisy latency" in {trace.name for trace in front_figure(front_view(study, names), "error").data}) == drawn


def test_colour_by_an_objective(study: Study) -> None:
    bar = front_figure(front_view(study, ("params", "error")), "latency").layout.coloraxis.colorbar
    assert bar.ticktext[0].endswith(" ms")
    assert len(bar.tickvals) == len(bar.ticktext) == 5


def test_a_picture_needs_its_extra(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError) as caught:
        front_picture(study, tmp_path / "front.png")
    assert caught.value.hint == "pip install 'igc-nas[png]'"


@pytest.mark.parametrize("name", ["front.PNG", "front.svg"])
def test_a_picture_is_titled(study: Study, tmp_path: Path, name: str) -> None:
    drawn: list[Any] = []
    front_picture(study, tmp_path / name, lambda figure, kind: drawn.append(figure) or kind.encode())
    title = drawn[0].layout.title.text
    for expected in ("cifar10", "at most 2M parameters", "60 trials", "Test CPU"):
        assert expected in title
    assert (tmp_path / name).read_text() == name[-3:].lower()


def test_a_picture_of_the_finals(study: Study, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="has no finals"):
        finals_picture(study, tmp_path / "finals.png")
    log = FinalsLog(tmp_path)
    for error, side, trial in ((0.2, 8, None), (0.3, 12, 3), (0.1, 16, 4), (None, 20, 5)):
        log.add(final(error, side, trial=trial, cost=Cost(params=1000 * side, macs=1, activations=1)))
    drawn: list[Any] = []
    finals_picture(
        Study(study.spec, study.trials, tmp_path), tmp_path / "f.svg", lambda f, kind: drawn.append(f) or kind.encode()
    )
    front, own, beside = ([(trace.name, *trace.x), [*trace.y]] for trace in drawn[0].data)
    assert front == [("front of these two axes", 8000, 16000), [0.2, 0.1]]
    assert own == [("the study's candidates", 12000, 16000), [0.3, 0.1]]
    assert beside == [("baselines", 8000), [0.2]]
    assert "4 networks trained on all of" in drawn[0].layout.title.text


def test_the_names_of_near_networks_stand_beside_each_other(study: Study, tmp_path: Path) -> None:
    log = FinalsLog(tmp_path)
    for side, params, error in ((8, 100_000, 0.2), (12, 101_000, 0.2001), (16, 102_000, 0.2002), (20, 9_000_000, 0.9)):
        log.add(final(error, side, name=f"network-{side}", cost=Cost(params=params, macs=1, activations=1)))
    (group,) = finals_groups(Study(study.spec, study.trials, tmp_path).finals)
    (named,) = [trace for trace in finals_figure(group).data if trace.text]
    places = dict(zip(named.text, named.textposition, strict=True))
    assert len({places[f"network-{side}"] for side in (8, 12)}) == 2
    assert places["network-20"].endswith("left"), "at the right end of the plot"


def test_a_missing_browser_is_one_line(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise RuntimeError("Kaleido requires Google Chrome to be installed.\nSee ...")

    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr("plotly.basedatatypes.BaseFigure.to_image", fail)
    with pytest.raises(UsageError, match="requires Google Chrome to be installed") as caught:
        front_picture(study, tmp_path / "front.png")
    assert "\n" not in caught.value.message


def test_a_picture_of_nothing_and_of_another_kind(study: Study, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no completed trial"):
        front_picture(make_study(0), tmp_path / "front.png")
    with pytest.raises(UsageError, match=r"does not end in \.png or \.svg or \.pdf"):
        front_picture(study, tmp_path / "front.gif")
