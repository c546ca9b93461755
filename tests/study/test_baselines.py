"""The networks that `--baselines` names, for a study's images, classes and budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from igc_nas.arch.cost import cost_of
from igc_nas.engine.search import Run, search
from igc_nas.errors import ConfigError, StudyError, UsageError
from igc_nas.space.budget import Budget
from igc_nas.study.baselines import SETS, baselines_of
from tests.support.searches import evaluate, spec


def names(*texts: str, **changes: object) -> tuple[list[str], list[str]]:
    found, skipped = baselines_of(texts, spec(**changes))
    return [each.name for each in found], [each.name for each in skipped]


@pytest.mark.parametrize("name", SETS)
def test_every_network_of_a_set_is_there(name: str) -> None:
    found, skipped = baselines_of([name], spec())
    assert tuple(each.name for each in found) == SETS[name]
    assert skipped == ()
    assert len({cost_of(each.arch) for each in found}) == len(found)


def test_sets_and_names_each_once() -> None:
    assert names("igc,resnet20-a", " igcv1-l24m2-d20 , resnet20-a")[0] == [*SETS["igc"], "resnet20-a"]


def test_those_outside_the_budget_are_named() -> None:
    found, skipped = baselines_of(["literature"], spec(budget=Budget(params=200_000)))
    assert found
    assert all(cost_of(each.arch).params <= 200_000 for each in found)
    assert len(found) + len(skipped) == len(SETS["literature"])
    assert next(s.reason for s in skipped if s.name == "resnet20-a") == "269,722 parameters; the budget is 200,000"


def test_a_smaller_one_than_the_budgets_least_is_compared_with() -> None:
    question = spec(budget=Budget(params=3000)).model_copy(update={"budget": Budget(min_params=10**6, params=10**7)})
    assert [each.name for each in baselines_of(["resnet20-a"], question)[0]] == ["resnet20-a"]


def test_they_have_the_studys_images_and_classes() -> None:
    question = spec(latency={"input": [3, 48, 48]}).model_copy(update={"classes": 7})
    ((baseline,), _) = baselines_of(["mobilenetv2-x0.25"], question)
    assert (baseline.arch.input, baseline.arch.classes) == ((3, 48, 48), 7)


def test_images_that_are_too_small_for_one() -> None:
    ((), (skipped,)) = baselines_of(["igcv3-d-imagenet"], spec(latency={"input": [3, 16, 16]}))
    assert "strides multiply to 32" in skipped.reason


def test_files_and_trials(tmp_path: Path) -> None:
    list(search(spec(), Run(tmp_path / "s", trials=1), evaluate=evaluate))
    file = tmp_path / "my net.toml"
    file.write_text("[stem]\nwidth = 8\n[[stage]]\nunit = 'conv'\nwidth = 8\nblocks = 1\n")
    found, _ = baselines_of([str(file), "s:0"], spec(), tmp_path)
    assert [each.name for each in found] == ["my net", "s:0"]
    list(search(spec(), Run(tmp_path / "s", trials=1, baselines=found[:1]), evaluate=evaluate))
    assert baselines_of(["s:1"], spec(), tmp_path)[0][0].name == "my net"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("resnet21-a", ConfigError),
        ("nope", ConfigError),
        ("x.toml", ConfigError),
        ("gone:3", StudyError),
        (" ,", UsageError),
    ],
)
def test_unknown_names(text: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        baselines_of([text], spec(), tmp_path)
