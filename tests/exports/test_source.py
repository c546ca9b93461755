"""Sources to export, and the config file with its comments, for trials in every state."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.analysis.words import recipe_words
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.errors import StudyError, UsageError
from igc_nas.exports.source import Source, TrainingResult, config_text, facts, unfinished_text
from igc_nas.study.lookup import load_architecture
from igc_nas.study.records import Trial
from igc_nas.study.study import Study
from tests.support.builders import one_line
from tests.support.exports import STUDY, hostile
from tests.support.families import by_size, make, stop
from tests.support.hostile import COMMENTS


def picked(rule: str, study: Study = STUDY) -> Source:
    return Source.of_trial(study, study.pick_trial(rule))


@pytest.mark.parametrize("pick", ["knee", "best-error", "trial:3", "under:params=2M"])
def test_an_exported_file_is_the_architecture(pick: str, tmp_path: Path) -> None:
    candidate = STUDY.pick(pick)
    path = tmp_path / "arch.toml"
    path.write_text(config_text(picked(pick)), encoding="utf-8")
    assert load_architecture(path) == candidate.arch
    assert cost_of(load_architecture(path)) == candidate.cost


def test_an_exported_file_states_its_trial_costs_and_measurements() -> None:
    candidate = STUDY.pick("knee")
    comment, _, _ = config_text(picked("knee")).partition("\n\n")
    for fact in (
        f"trial {candidate.trial} of test-study, id {candidate.id}",
        str(candidate.arch),
        f"{candidate.cost.params:,} parameters",
        f"{100 * candidate.score.error:.2f} % on 2,000 images of cifar10",
        recipe_words(STUDY.spec.recipe),
        f"n = {candidate.latency.n}",
        "eager, batch 1, 1 thread, float32, channels_last, on Test CPU",
    ):
        assert fact in comment


def test_a_noisy_latency_is_marked() -> None:
    source = picked("knee")
    candidate = source.trial.candidate
    for noisy in (False, True):
        latency = candidate.latency.model_copy(update={"noisy": noisy})
        trial = source.trial.model_copy(update={"candidate": candidate.model_copy(update={"latency": latency})})
        assert ("(noisy)" in config_text(replace(source, trial=trial))) is noisy


@pytest.mark.parametrize("name", COMMENTS)
def test_a_hostile_name_stays_in_its_comment(name: str) -> None:
    _check_hostile(name)


@given(st.text(max_size=80))
def test_any_name_stays_in_its_comment(name: str) -> None:
    _check_hostile(name)


def _check_hostile(name: str) -> None:
    source = hostile(name)
    text = config_text(source)
    assert ArchConfig.from_toml(text) == source.arch
    lines = text.splitlines()
    blank = lines.index("")
    assert blank == 8 + 2  # with two lines of legend
    assert all(line.startswith("# ") and line.isprintable() for line in lines[:blank])
    assert not any(line.startswith("#") for line in lines[blank:])
    assert text.encode()
    assert all(value.isprintable() for value in source.metadata.values())


# Trials that did not end well have an architecture, too.


def with_trial(trial: Trial) -> Study:
    return Study(STUDY.spec, (*STUDY.trials, trial))


def test_a_pruned_trial_says_that_it_has_no_final_error() -> None:
    study = stop(make(4, by_size, {2000: by_size, 4000: by_size}), at=2)
    source = picked("trial:3", study)
    pruned = study.trial(3).pruned
    text = config_text(source)
    assert ArchConfig.from_toml(text) == study.trial(3).arch
    assert f"pruned, no final error: {100 * pruned.training.rungs[-1].error:.2f} % held-out error after 4,000" in text
    assert "probability of reaching the front 1.0 %" in text
    assert f"latency {pruned.latency.normalised_ms:.3f} ms" in text
    assert unfinished_text(source).startswith("pruned, no final error")
    assert unfinished_text(picked("trial:0", study)) is None


def test_a_failed_trial_exports_only_its_architecture() -> None:
    failed = Trial(number=5, state="failed", params={}, arch=STUDY.trial(1).arch, reason="the loss is not finite")
    source = picked("trial:5", with_trial(failed))
    text = config_text(source)
    assert ArchConfig.from_toml(text) == STUDY.trial(1).arch
    assert "the trial is failed: the loss is not finite; it has no error and no latency" in text
    assert "latency conditions" not in text


def test_a_trial_without_an_architecture_is_refused_and_the_nearest_named() -> None:
    study = with_trial(Trial(number=5, state="infeasible", params={}, reason="3,000,000 parameters"))
    with pytest.raises(StudyError, match=r"trial 5 of test-study is infeasible and has no architecture") as raised:
        study.pick_trial("trial:5")
    one_line(raised)
    assert raised.value.hint == "the nearest that is complete is trial:4"
    with pytest.raises(StudyError, match="has no trial 9"):
        study.pick_trial("trial:9")
    with pytest.raises(StudyError, match="no completed trial") as raised:
        study.pick_trial("under:params=1")
    assert raised.value.hint.startswith("the nearest is trial:")
    with pytest.raises(UsageError, match="unknown pick"):
        study.pick_trial("trial:1e3")


def test_another_number_of_classes_changes_the_id_and_is_stated() -> None:
    source = Source.of_trial(STUDY, STUDY.trial(0), classes=77)
    assert (source.arch.classes, source.id) == (77, arch_id(source.arch))
    first, second, *_ = facts(source)
    assert STUDY.trial(0).candidate.id in first
    assert second == f"here with 77 classes: id {source.id}"


def test_trained_weights_are_exported_with_their_test_error() -> None:
    arch = load_architecture("igcv1-l4m2-d8")
    result = TrainingResult(
        id=arch_id(arch), test_error=0.0621, test_images=10_000, dataset="cifar10", epochs=30, seed=4
    )
    source = Source(arch, "igcv1-l4m2-d8", trained=result)
    assert "weights: test error 6.21 % on 10,000 images of cifar10 after 30 epochs, seed 4" in config_text(source)
    assert source.metadata["params"] == str(source.cost.params)
    assert "study" not in source.metadata
