"""Studies that version 0.1 has written: they open, show the same front, and go on as they would have gone on there.

`release_0_1` holds two searches made at commit 2e67fd0 with the evaluators of `tests.support.searches`, as they were
left: one that prunes, one over every architecture. `expected.json` has what that commit made of them, and of the
studies that are shipped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from igc_nas.engine.search import Run, search
from igc_nas.io.resources import shipped
from igc_nas.study.lookup import load_architecture
from igc_nas.study.schema import SCHEMA, current_spec, current_trial
from igc_nas.study.study import Study, load_study
from tests.support.searches import evaluate_on_the_way, recorded

RELEASE = Path(__file__).with_name("release_0_1")
EXPECTED = json.loads((RELEASE / "expected.json").read_text(encoding="utf-8"))


def opened(study: Study) -> dict[str, Any]:
    return {"front": [candidate.trial for candidate in study.front()], "hypervolume": study.hypervolume()}


@pytest.mark.parametrize("name", ["pruned", "all"])
@pytest.mark.parametrize("kept", ["all of it", "no database", "no trials.jsonl"])
def test_a_study_of_an_older_release_goes_on(name: str, kept: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RELEASE / name, tmp_path / "release_0_1"))
    old = load_study(folder)
    assert opened(old) == {key: EXPECTED[name][key] for key in ("front", "hypervolume")}
    if kept == "no database":
        (folder / "study.db").unlink()
    if kept == "no trials.jsonl":
        (folder / "trials.jsonl").unlink()
    enqueued = (load_architecture("igcv1-l8m2-d8"),)
    trials = 32 if name == "pruned" else 14
    list(search(old.spec, Run(folder, trials=trials, enqueue=enqueued), evaluate=evaluate_on_the_way))
    assert recorded(load_study(folder)) == EXPECTED[name]["trials"]
    assert f"schema = {SCHEMA}\n" in (folder / "study.toml").read_text(encoding="utf-8")
    assert load_study(folder).trials[: len(old.trials)] == old.trials


@pytest.mark.parametrize("name", EXPECTED["shipped"])
def test_a_shipped_study_shows_the_front_that_it_showed(name: str) -> None:
    assert opened(load_study(shipped("studies") / name)) == EXPECTED["shipped"][name]


def test_what_is_current_stays_as_it_is() -> None:
    for line in (RELEASE / "pruned" / "trials.jsonl").read_text(encoding="utf-8").splitlines():
        current = current_trial(json.loads(line))
        assert current_trial(current) == current
    assert current_spec({"schema": SCHEMA, "sampler": "all"}) == {"schema": SCHEMA, "sampler": "all"}
    assert current_spec(current_spec({"schema": 1, "stop": 0.1})) == {"schema": SCHEMA, "prune_below": 0.1}


def test_a_key_of_both_versions_is_not_guessed_at() -> None:
    assert current_trial({"stopped": 1, "pruned": 2}) == {"stopped": 1, "pruned": 2}
