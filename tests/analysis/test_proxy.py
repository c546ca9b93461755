import dataclasses
import json
from pathlib import Path

import pytest
from scipy.stats import kendalltau

from igc_nas.analysis.proxy import Predictor, ProxyReport, proxy_report, versus
from igc_nas.analysis.ranking import Tau
from igc_nas.errors import StudyError
from igc_nas.study.study import Study, load_study
from tests.support.builders import one_line
from tests.support.families import LONG, RECIPE, RUNGS, blurred, by_quality, by_size, make, make_papers, stop, write

N = 60


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with rungs of falling noise, a longer training, another seed and the papers' networks."""
    folder = tmp_path_factory.mktemp("family") / "short"
    rungs = {at: blurred(by_quality, noise, at) for at, noise in zip(RUNGS, (0.6, 0.25), strict=True)}
    write(folder, make(N, blurred(by_quality, 0.1, 0), rungs, name="short"))
    write(folder / "long", make(N, by_quality, recipe=LONG, name="long"))
    write(folder / "seed1", _seeded())
    write(folder / "papers", make_papers(lambda accuracy: 1 - accuracy))
    return folder


def _seeded() -> Study:
    study = make(N, blurred(by_quality, 0.1, 1), name="again")
    return Study(study.spec.model_copy(update={"seed": 1}), study.trials)


@pytest.fixture(scope="module")
def found(family: Path) -> ProxyReport:
    return proxy_report(load_study(family))


def only(found: ProxyReport, kind: str) -> Predictor:
    (row,) = (row for row in found.predictors if row.kind == kind)
    return row


def report_of(folder: Path, **studies: Study) -> ProxyReport:
    """A study `short` with others in its folder."""
    write(folder / "short", studies.pop("short"))
    for name, study in studies.items():
        write(folder / "short" / name, study)
    return proxy_report(load_study(folder / "short"))


# What is compared with what.


def test_the_reference_is_the_longest_training_in_the_folder(found: ProxyReport) -> None:
    assert (found.study.name, found.reference.name, found.own_end) == ("short", "short/long", False)
    assert (found.study.samples, found.reference.samples, found.longer) == (8000, 80_000, 10)
    assert (found.shared, found.bins) == (N, 3)
    assert found.study.recipe["epochs"] == 2
    assert found.reference.recipe["epochs"] == 20


def test_every_predictor_is_there_in_order(found: ProxyReport) -> None:
    assert [(row.kind, row.samples) for row in found.predictors] == [
        ("rung", 2000),
        ("rung", 4000),
        ("end", 8000),
        ("loss", 8000),
        ("surrogate", 8000),
        ("target", 8000),
        ("seed", 8000),
        ("params", None),
        ("macs", None),
        ("random", None),
    ]
    assert {row.overall.n for row in found.predictors} == {N}
    assert only(found, "seed").study == "short/seed1"


def test_numbers_are_those_of_scipy(found: ProxyReport, family: Path) -> None:
    short, long = load_study(family).candidates, load_study(family / "long").candidates
    truth = [c.score.error for c in long]
    assert only(found, "end").overall.tau == pytest.approx(kendalltau([c.score.error for c in short], truth).statistic)
    assert only(found, "params").overall.tau == pytest.approx(kendalltau([-c.cost.params for c in short], truth)[0])
    assert only(found, "macs").overall.tau == pytest.approx(kendalltau([-c.cost.macs for c in short], truth)[0])
    for at in (0, 1):
        rung = kendalltau([c.score.rungs[at].error for c in short], truth).statistic
        assert found.of("rung")[at].overall.tau == pytest.approx(rung)
    (repeat,) = found.repeats
    again = [c.score.error for c in load_study(family / "seed1").candidates]
    assert repeat.overall.tau == pytest.approx(kendalltau([c.score.error for c in short], again).statistic)
    assert (repeat.study, repeat.seed) == ("short/seed1", 1)


def test_a_proxy_that_sees_quality_beats_the_parameter_count(found: ProxyReport) -> None:
    first, second = found.of("rung")
    end = only(found, "end")
    assert (first.overall.tau or 0) < (second.overall.tau or 0) < (end.overall.tau or 0)
    assert end.versus_params == "above"
    assert end.params == only(found, "params").overall
    assert end.over_params is not None
    assert end.over_params.tau == pytest.approx((end.overall.tau or 0) - (end.params.tau or 0))
    assert (end.inside.low or 0) > 0.5
    assert (end.recall_25 or 0) > 0.6


def test_the_random_predictor_has_the_values_expected_by_chance(found: ProxyReport) -> None:
    row = only(found, "random")
    assert (row.overall.tau, row.inside.tau) == (0, 0)
    assert (row.recall_10, row.recall_25) == (6 / 60, 15 / 60)


def test_everything_goes_into_json(found: ProxyReport) -> None:
    plain = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    assert plain["predictors"][2]["kind"] == "end"
    assert plain["figures"][0]["points"][0]["printed_accuracy"] == 0.5111


def test_the_order_of_trials_does_not_matter(tmp_path: Path) -> None:
    rungs = {2000: blurred(by_quality, 0.3, 5)}
    short, long = make(30, blurred(by_quality, 0.1, 0), rungs), make(30, by_quality, recipe=LONG)
    forward = report_of(tmp_path / "a", short=short, long=long)
    mixed = Study(short.spec, tuple(t.model_copy(update={"number": 29 - t.number}) for t in short.trials))
    backward = report_of(tmp_path / "b", short=mixed, long=long)
    for one, other in zip(forward.predictors, backward.predictors, strict=True):
        assert (one.overall.tau, one.inside.tau) == pytest.approx((other.overall.tau, other.inside.tau))
        assert (one.recall_10, one.recall_25) == pytest.approx((other.recall_10, other.recall_25))


# A proxy without value is reported as such.


def test_a_proxy_that_only_sees_size_is_no_better_than_the_parameter_count(tmp_path: Path) -> None:
    found = report_of(tmp_path, short=make(N, by_size), long=make(N, blurred(by_size, 0.02, 0), recipe=LONG))
    end = only(found, "end")
    assert (end.versus_params, end.overall.tau) == ("overlaps", only(found, "params").overall.tau)
    assert end.over_params is not None
    assert (end.over_params.tau, end.over_params.low, end.over_params.high) == (0, 0, 0)


def test_a_proxy_that_is_worse_than_the_parameter_count(tmp_path: Path) -> None:
    found = report_of(tmp_path, short=make(N, by_quality), long=make(N, by_size, recipe=LONG))
    assert only(found, "end").versus_params == "below"
    assert only(found, "params").overall.tau == 1
    assert only(found, "params").recall_10 == 1


def test_a_proxy_with_the_errors_of_the_reference(tmp_path: Path) -> None:
    found = report_of(tmp_path, short=make(20, by_quality), long=make(20, by_quality, recipe=LONG))
    end = only(found, "end")
    assert end.overall == end.inside == Tau(20, 1, 1, 1)
    assert end.recall_10 == end.recall_25 == 1


@pytest.mark.parametrize(
    ("one", "other", "word"),
    [
        (Tau(9, 0.5, 0.4, 0.6), Tau(9, 0.2, 0.1, 0.3), "above"),
        (Tau(9, 0.2, 0.1, 0.3), Tau(9, 0.5, 0.4, 0.6), "below"),
        (Tau(9, 0.5, 0.3, 0.6), Tau(9, 0.2, 0.1, 0.3), "overlaps"),
        (Tau(9), Tau(9, 0.2, 0.1, 0.3), None),
        (Tau(9, 0.2, 0.1, 0.3), Tau(9, 0.2), None),
    ],
)
def test_where_intervals_lie(one: Tau, other: Tau, word: str | None) -> None:
    assert versus(one, other) == word


# Which reference.


def test_without_a_longer_training_the_reference_is_the_own_end(tmp_path: Path) -> None:
    rungs = {2000: blurred(by_quality, 0.1, 3)}
    found = report_of(tmp_path, short=make(20, by_quality, rungs), papers=make_papers(lambda a: 1 - a), again=_seeded())
    assert found.own_end
    assert (found.reference.name, found.longer) == ("short", 1)
    assert [row.kind for row in found.predictors] == ["rung", "seed", "params", "macs", "random"]
    assert only(found, "seed").overall == found.repeats[0].overall


def test_a_study_without_a_folder_has_no_relatives() -> None:
    found = proxy_report(make(20, by_quality))
    assert (found.own_end, found.repeats) == (True, ())
    assert [row.kind for row in found.predictors] == ["params", "macs", "random"]


def test_a_given_reference_comes_before_the_longest(tmp_path: Path, family: Path) -> None:
    other = write(tmp_path / "other", make(40, by_size, recipe=RECIPE | {"epochs": 1}, name="other"))
    found = proxy_report(load_study(family), load_study(other))
    assert (found.reference.name, found.shared, found.longer) == ("other", 40, 0.5)
    again = proxy_report(load_study(family), load_study(family / "seed1"))
    assert [row.kind for row in again.predictors] == [
        "rung", "rung", "end", "loss", "surrogate", "params", "macs", "random",
    ]  # fmt: skip
    own = proxy_report(load_study(family), load_study(family / ".." / "short"))
    assert own.own_end


def test_of_longer_trainings_the_longest_with_enough_in_common(tmp_path: Path) -> None:
    recipes = {"a": LONG, "b": RECIPE | {"epochs": 50}, "c": RECIPE | {"epochs": 100}}
    others = {name: make(20 if name != "c" else 4, by_quality, recipe=recipe) for name, recipe in recipes.items()}
    found = report_of(tmp_path, short=make(20, by_quality), **others)
    assert found.reference.name == "short/b"
    assert [(row.study, row.samples, row.overall.tau) for row in found.of("longer")] == [("short/a", 80_000, 1.0)]


def test_a_study_of_other_data_or_recipe_is_no_repeat(tmp_path: Path) -> None:
    spec = _seeded().spec
    others = {
        "data": spec.model_copy(update={"dataset_sha256": "1" * 64}),
        "recipe": spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"lr": 0.2})}),
        "seed": spec.model_copy(update={"seed": 0}),
    }
    related = {name: Study(other, _seeded().trials) for name, other in others.items()}
    assert report_of(tmp_path, short=make(20, by_quality), **related).repeats == ()


def test_pruned_trainings_count_at_their_rungs(tmp_path: Path) -> None:
    rungs = {at: blurred(by_quality, 0.1, at) for at in RUNGS}
    short = stop(make(30, by_quality, rungs), at=18)
    found = report_of(tmp_path, short=short, long=make(30, by_quality, recipe=LONG))
    assert (found.study.completed, found.study.pruned, found.shared) == (18, 12, 30)
    assert {row.kind: row.overall.n for row in found.predictors} == {
        "rung": 30, "end": 18, "loss": 18, "surrogate": 18, "target": 18, "params": 30, "macs": 30, "random": 30,
    }  # fmt: skip
    assert proxy_report(load_study(tmp_path / "short"), load_study(tmp_path / "short")).shared == 18


def test_a_rung_of_few_architectures_is_counted_and_not_ranked(tmp_path: Path) -> None:
    short, few = make(20, by_quality), make(4, by_quality, {2000: by_quality})
    mixed = Study(short.spec, (*few.trials, *short.trials[4:]))
    (rung,) = report_of(tmp_path, short=mixed, long=make(20, by_quality, recipe=LONG)).of("rung")
    assert (rung.overall, rung.recall_10, rung.versus_params) == (Tau(4), None, None)


# The papers' figures.


def test_a_proxy_that_agrees_with_the_figures(found: ProxyReport) -> None:
    assert [(figure.trained, len(figure.points)) for figure in found.figures] == [(9, 9), (11, 11), (6, 6)]
    for figure in found.figures:
        taus = {row.kind: row.overall for row in figure.taus if row.kind != "rung"}
        assert taus["end"] == Tau(figure.trained, 1, 1, 1)
        assert (taus["params"].tau or 0) < 1
        assert figure.study is not None
        assert figure.study.name == "short/papers"
        assert all(point.error == pytest.approx(1 - point.printed_accuracy) for point in figure.points)


def test_a_proxy_that_ranks_a_figure_in_reverse(tmp_path: Path) -> None:
    found = report_of(tmp_path, short=make(20, by_quality), papers=make_papers(lambda accuracy: accuracy))
    for figure in found.figures:
        (end,) = (row.overall.tau for row in figure.taus if row.kind == "end")
        assert end == -1


def test_the_papers_networks_may_be_trained_on_other_data(tmp_path: Path) -> None:
    papers = make_papers(lambda a: 1 - a, classes=100)
    hundred = papers.spec.model_copy(update={"classes": 100, "dataset": "cifar100", "dataset_sha256": "2" * 64})
    found = report_of(tmp_path, short=make(20, by_quality), papers=Study(hundred, papers.trials))
    assert [figure.trained for figure in found.figures] == [9, 11, 6]
    assert {figure.study.dataset for figure in found.figures if figure.study} == {"cifar100"}


def test_figures_of_another_recipe_do_not_count(tmp_path: Path) -> None:
    papers = make_papers(lambda a: 1 - a, recipe=RECIPE | {"lr": 0.2})
    found = report_of(tmp_path, short=make(20, by_quality), papers=papers)
    assert [(figure.study, figure.trained) for figure in found.figures] == [(None, 0)] * 3
    assert all(row.overall.tau is None for figure in found.figures for row in figure.taus)


# Too little to rank.


def refused(study: Study, truth: Study | None = None) -> tuple[str, str]:
    with pytest.raises(StudyError) as raised:
        proxy_report(study, truth)
    return one_line(raised), raised.value.hint or ""


def test_too_few_trials_in_the_study(tmp_path: Path) -> None:
    message, hint = refused(load_study(write(tmp_path / "short", make(4, by_quality, name="tiny"))))
    assert message == "tiny has 4 completed trials; rankings need at least 5 architectures"
    assert hint == f"igc-nas search --studies-dir {tmp_path} --study short --trials 5"


def test_pruned_trials_count_in_the_number_of_trials_that_is_proposed(tmp_path: Path) -> None:
    study = stop(make(9, by_quality, {2000: by_quality}), 1)
    message, hint = refused(load_study(write(tmp_path / "short", study)))
    assert message.startswith("short has 1 completed trial; ")
    assert hint.endswith("--trials 13")


def test_too_few_in_common(tmp_path: Path) -> None:
    write(tmp_path / "short", make(20, by_quality, name="short"))
    write(tmp_path / "short" / "long", make(3, by_quality, recipe=LONG))
    message, hint = refused(load_study(tmp_path / "short"))
    assert message.startswith("short and short/long have 3 architectures in common")
    assert f"igc-nas search --studies-dir {tmp_path / 'short'} --study long" in hint


def test_other_classes_have_nothing_in_common() -> None:
    message, hint = refused(make(20, by_quality), make_papers(lambda a: 1 - a, classes=100))
    assert "0 architectures in common" in message
    papers = make_papers(lambda a: 1 - a, classes=100)
    hundred = Study(papers.spec.model_copy(update={"classes": 100}), papers.trials)
    assert "has 10 classes and papers 100: no network is the same" in refused(make(20, by_quality), hundred)[1]
    assert "igc-nas search --study papers" in hint


def test_a_related_study_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "short", make(20, by_quality))
    (tmp_path / "short" / "long").mkdir()
    (tmp_path / "short" / "long" / "study.toml").write_text("name = ")
    assert "long/study.toml" in refused(load_study(tmp_path / "short"))[0]


def test_a_longer_training_is_predicted_from_the_other_architectures() -> None:
    found = proxy_report(load_study("igc_table"))
    (row,) = found.of("target")
    assert row.overall.n == found.shared
    assert (row.overall.tau or 0) > 0.75
    assert (row.inside.tau or 0) > 0.65
    for other in found.of("longer"):  # another training of the network itself, up to as long as the reference's
        assert (row.overall.tau or 0) > (other.overall.tau or 0)
    assert found.target_within is not None
    assert found.target_within[1] > 0.85
