"""The worth of a recipe that a search says at its start is what the recorded trainings give."""

from __future__ import annotations

import json

import pytest

from igc_nas.analysis.proxy_worth import MACS_TAU, VALIDATED, Validated, worth_words
from igc_nas.analysis.ranking import kendall
from igc_nas.io.resources import shipped
from igc_nas.study.study import load_study
from tests.support.searches import spec

TABLE = shipped("studies") / "igc_table"
RECIPES = json.loads((TABLE / "recipes.json").read_text(encoding="utf-8"))["recipes"]
LONG = {candidate.id: candidate for candidate in load_study(TABLE / "long").candidates}


@pytest.mark.parametrize("recipe", VALIDATED, ids=lambda recipe: recipe.name)
def test_each_tau_is_that_of_the_recorded_trainings(recipe: Validated) -> None:
    last = {id_: points[-1] for id_, points in RECIPES[recipe.name].items() if points}
    ids = [id_ for id_ in last if id_ in LONG]
    found = kendall([last[id_][1] for id_ in ids], [LONG[id_].score.error for id_ in ids])
    assert found == pytest.approx(recipe.tau, abs=0.005)
    assert last[ids[0]][0] == pytest.approx(recipe.epochs * recipe.train_size, rel=0.02)


def test_the_tau_of_macs_is_that_of_the_long_trainings() -> None:
    found = kendall([-c.cost.macs for c in LONG.values()], [c.score.error for c in LONG.values()])
    assert found == pytest.approx(MACS_TAU, abs=0.005)


def test_a_recipe_like_none_of_them_is_said_to_be_unvalidated() -> None:
    made = spec()
    other = made.model_copy(update={"recipe": made.recipe.model_copy(update={"epochs": 40, "rungs": ()})})
    assert "tau 0.42" in worth_words(made)
    assert "in tiny not validated" in worth_words(made)
    assert "not validated" in worth_words(other)
    assert "tau" not in worth_words(other)
