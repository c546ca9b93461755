"""An architecture on its way out of a study, as a file that says where it comes from."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.architecture import load_architecture
from igc_nas.config import ArchConfig
from igc_nas.cost import cost_of
from igc_nas.export import config_text, recipe_text
from studies import make_study

STUDY = make_study(5)
HOSTILE = [
    "a\nclasses = 3",
    "a\r\nclasses = 3",
    "a\rb",
    "a\u2028b",
    "a\x85b",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe",
    "<script>alert(1)</script>",
    '"""',
    "\x00",
    "\ud800",
    "#",
    "[stem]",
    "",
]


@pytest.mark.parametrize("pick", ["knee", "best-error", "trial:3", "under:params=2M"])
def test_an_exported_file_is_the_architecture(pick: str, tmp_path: Path) -> None:
    candidate = STUDY.pick(pick)
    path = tmp_path / "arch.toml"
    path.write_text(config_text(STUDY, candidate), encoding="utf-8")
    assert load_architecture(path) == candidate.arch
    assert cost_of(load_architecture(path)) == candidate.cost


def test_an_exported_file_says_what_it_was_chosen_for() -> None:
    candidate = STUDY.pick("knee")
    comment, _, _ = config_text(STUDY, candidate).partition("\n\n")
    for fact in (
        f"trial {candidate.trial} of test-study, id {candidate.id}",
        str(candidate.arch),
        f"{candidate.cost.params:,} parameters",
        f"{100 * candidate.score.error:.2f} % on 2,000 images of cifar10",
        recipe_text(STUDY.spec.recipe),
        f"n = {candidate.latency.n}",
        "eager, batch 1, 1 thread(s), float32, channels_last, on Test CPU",
    ):
        assert fact in comment


def test_a_noisy_latency_is_called_so() -> None:
    candidate = STUDY.pick("knee")
    for noisy in (False, True):
        latency = candidate.latency.model_copy(update={"noisy": noisy})
        text = config_text(STUDY, candidate.model_copy(update={"latency": latency}))
        assert ("(noisy)" in text) is noisy


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_in_its_comment(name: str) -> None:
    _check_hostile(name)


@given(st.text(max_size=80))
def test_any_name_stays_in_its_comment(name: str) -> None:
    _check_hostile(name)


def _check_hostile(name: str) -> None:
    """The study's name, the dataset and the device come from files that anybody may have written."""
    candidate = STUDY.pick("trial:0")
    conditions = candidate.latency.conditions.model_copy(update={"device": name})
    candidate = candidate.model_copy(
        update={
            "latency": candidate.latency.model_copy(update={"conditions": conditions}),
            "score": candidate.score.model_copy(update={"dataset": name}),
        }
    )
    text = config_text(replace(STUDY, spec=STUDY.spec.model_copy(update={"name": name})), candidate)
    assert ArchConfig.from_toml(text) == candidate.arch
    lines = text.splitlines()
    blank = lines.index("")
    assert blank == 7
    assert all(line.startswith("# ") and line.isprintable() for line in lines[:blank])
    assert not any(line.startswith("#") for line in lines[blank:])
    assert text.encode()
