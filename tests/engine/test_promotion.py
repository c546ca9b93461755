"""Longer trainings of a search's networks: when, of which, recorded how, resumed, and what the front then says."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igc_nas.analysis.dashboard.document import dashboard
from igc_nas.analysis.expectations import expectation_words, with_expectations
from igc_nas.engine.events import Event, LongerJob, Started
from igc_nas.engine.search import Run, search
from igc_nas.samplers.acquisition import expected_improvement
from igc_nas.samplers.cross_validation import MIN_TRIALS
from igc_nas.samplers.promotion import DESIGN, Promotion
from igc_nas.samplers.target_predictor import TargetPredictor
from igc_nas.space.budget import Budget
from igc_nas.study.records import Trial
from igc_nas.study.spec import StudySpec, Target
from igc_nas.study.study import Study, load_study
from tests.support.pages import Page
from tests.support.searches import spec
from tests.support.stubs import late_bloomers

TRIALS = 28


def question() -> StudySpec:
    """A study for the least error, in whose longer trainings a network sees four times the images."""
    made = spec(objectives=("error", "params"), goal="best-error")
    recipe = made.recipe.model_copy(update={"train_size": 4 * made.recipe.train_size, "rungs": ()})
    return made.model_copy(update={"target": Target(images=2 * recipe.samples, recipe=recipe, share=0.4)})


def rows(study: Study) -> list[tuple[Any, ...]]:
    """What a search has found, in order."""
    return [(t.number, t.state, t.id, t.longer_of, t.candidate and t.candidate.score.error) for t in study.trials]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("promotion") / "stub"
    list(search(question(), Run(folder, trials=TRIALS), evaluator=late_bloomers))
    return load_study(folder)


def test_a_share_of_the_images_is_for_longer_trainings(searched: Study) -> None:
    target, recipe = searched.spec.target, searched.spec.recipe
    assert target is not None
    longer = [trial for trial in searched.trials if trial.longer_of is not None]
    spent = len(longer) * target.recipe.samples
    assert len(longer) >= 2
    assert spent - target.recipe.samples <= target.share * (spent + len(searched.candidates) * recipe.samples)
    assert longer[0].number >= MIN_TRIALS
    assert len({trial.longer_of for trial in longer}) == len(longer)
    assert all(trial.id == searched.trial(trial.longer_of or 0).id for trial in longer)


def test_a_longer_training_is_no_candidate(searched: Study) -> None:
    assert len(searched.candidates) == searched.ended == TRIALS
    assert {candidate.score.samples for candidate in searched.candidates} == {searched.spec.recipe.samples}


def test_after_the_design_a_study_that_was_calibrated_here_goes_on(tmp_path: Path) -> None:
    """The first promotions are by size; the others compare on the scale that is fixed when a search begins."""
    base = question()
    assert base.target is not None
    target = base.target.model_copy(update={"share": 0.8})
    made = base.model_copy(update={"target": target, "bounds": {}, "reference_ms": None})
    list(search(made, Run(tmp_path / "stub", trials=20), evaluator=late_bloomers))
    assert len(load_study(tmp_path / "stub").longer) > DESIGN


def test_a_network_over_the_budget_is_neither_promoted_nor_a_rival(searched: Study) -> None:
    """A user may enqueue one: its low error must not keep those within the budget from their turn."""
    target = searched.spec.target
    assert target is not None
    assert len(searched.longer) == DESIGN + 1, "every second one is for the least error alone"
    budget = Budget(params=int(np.median([c.cost.params for c in searched.candidates])))
    changes = {"budget": budget, "target": target.model_copy(update={"share": 0.9})}
    study = replace(searched, spec=searched.spec.model_copy(update=changes))
    found, predictor = Promotion(study.spec).next(study), TargetPredictor(study)
    errors, std = predictor.predicted.errors, predictor.predicted.std
    within = [row for row, c in enumerate(predictor.candidates) if c.cost.params <= (budget.params or 0)]
    worth = {}
    for row in within:
        least = min(errors[other] for other in within if other != row)
        worth[row] = expected_improvement(errors[[row]], std[[row]], np.array([least]))[0]
    free = [row for row in within if predictor.candidates[row].trial not in study.longer]
    assert found == predictor.candidates[max(free, key=lambda row: worth[row])]
    assert min(errors) < min(errors[within]), "a rival would be over the budget"


def test_the_front_is_of_predictions_and_reaches_what_short_trainings_call_bad(searched: Study) -> None:
    expected = with_expectations(searched)
    measured, predicted = searched.pick("best-error"), expected.pick("best-error")
    assert predicted.cost.params > measured.cost.params
    assert predicted.score.error > measured.score.error
    assert expected.error(predicted) < expected.error(measured)
    low, high = expected.expected[predicted.trial].low, expected.expected[predicted.trial].high
    assert low < expected.error(predicted) < high
    assert f"{len(searched.longer)} after" in (expectation_words(expected) or "")


def test_the_knee_of_the_page_is_the_one_that_export_picks(searched: Study) -> None:
    picked = with_expectations(searched).pick("knee").trial
    assert picked != searched.pick("knee").trial
    page = dashboard([searched])
    assert re.findall(r'<td>(\d+) <span class="tag">knee</span>', page) == [str(picked)]
    assert "igc-nas export stub --pick knee -o arch.toml" in re.sub(r"--studies-dir \S+ |\S+/(?=stub)", "", page)
    assert Page(page).data["studies"][0]["knee"] is None


def test_the_sampler_turns_to_large_networks_once_it_has_seen_longer_trainings(searched: Study) -> None:
    first = min(trial.number for trial in searched.trials if trial.longer_of is not None)
    before, after = (
        [c.cost.params for c in searched.candidates if (c.trial > first + 4) is late] for late in (False, True)
    )
    assert sum(after) / len(after) > sum(before) / len(before)


def test_a_search_that_is_interrupted_finds_the_same(searched: Study, tmp_path: Path) -> None:
    run = Run(tmp_path / "stub", trials=TRIALS)
    list(itertools.islice(search(question(), run, evaluator=late_bloomers), 18))
    list(search(question(), run, evaluator=late_bloomers))
    assert rows(load_study(run.folder)) == rows(searched)


def test_a_longer_training_that_is_stopped_is_taken_up(searched: Study, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Started) and isinstance(event.job, LongerJob):
            raise KeyboardInterrupt

    run = Run(tmp_path / "stub", trials=TRIALS)
    with pytest.raises(KeyboardInterrupt):
        list(search(question(), run, evaluator=late_bloomers, on_event=stop))
    (waiting,) = [trial for trial in load_study(run.folder).trials if trial.state == "waiting"]
    assert waiting.longer_of is not None
    list(search(question(), run, evaluator=late_bloomers))
    after = load_study(run.folder)
    assert after.trial(waiting.number).state == "complete"
    assert rows(after) == rows(searched)


def test_a_database_alone_restores_longer_trainings(searched: Study, tmp_path: Path) -> None:
    from igc_nas.engine.store import Store

    assert searched.folder is not None
    folder = tmp_path / "stub"
    folder.mkdir()
    for name in ("study.toml", "study.db"):
        (folder / name).write_bytes((searched.folder / name).read_bytes())
    Store(folder, searched.spec).close()
    assert rows(load_study(folder)) == rows(searched)


def test_a_record_without_the_field_is_no_longer_training() -> None:
    assert Trial.from_json('{"number": 0, "state": "waiting", "params": {}}').longer_of is None
