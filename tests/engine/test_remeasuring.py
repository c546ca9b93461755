"""Measuring a study's candidates again: each in turn, and what of it is recorded."""

from pathlib import Path

import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import arch_id
from igc_nas.engine.remeasuring import SAVE_EVERY, Measure, remeasure, study_measurer
from igc_nas.engine.search import Run, search
from igc_nas.errors import StudyError
from igc_nas.study.records import Latency
from igc_nas.study.study import Study, load_study
from tests.support.searches import evaluate, latency, spec


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of four invented trials."""
    list(search(spec(name="made"), Run(tmp_path / "made", trials=4), evaluate=evaluate))
    return load_study(tmp_path / "made")


def twice_as_slow(study: Study, noisy: tuple[str, ...] = ()) -> Measure:
    """Measures twice the recorded latency; that of the architectures `noisy` is noisy."""
    recorded = {c.id: c.latency.normalised_ms for c in study.candidates}

    def measure(arch: ArchConfig) -> Latency:
        return latency(2 * recorded[arch_id(arch)], noisy=arch_id(arch) in noisy)

    return measure


def test_candidates_are_measured_in_turn_and_nothing_is_written(study: Study) -> None:
    before = {path.name: path.read_bytes() for path in study.folder.iterdir()}
    rows = list(remeasure(study, study.candidates, twice_as_slow(study)))
    assert [row.candidate for row in rows] == list(study.candidates)
    for row in rows:
        assert row.recorded_ms == row.candidate.latency.normalised_ms
        assert row.latency.normalised_ms == 2 * row.recorded_ms
        assert row.change == 1.0
    assert {path.name: path.read_bytes() for path in study.folder.iterdir()} == before


def test_latencies_that_are_not_noisy_are_kept(study: Study) -> None:
    first, second, third, _ = study.candidates
    list(remeasure(study, [first, second, third], twice_as_slow(study, (second.id,)), keep=True))
    for old, new in zip(study.candidates, load_study(study.folder).candidates, strict=True):
        factor = 2 if old in (first, third) else 1
        assert new.latency.normalised_ms == factor * old.latency.normalised_ms


def test_kept_latencies_are_written_on_the_way(tmp_path: Path) -> None:
    list(search(spec(name="made"), Run(tmp_path / "made", trials=SAVE_EVERY + 1), evaluate=evaluate))
    study = load_study(tmp_path / "made")
    rows = remeasure(study, study.candidates, twice_as_slow(study), keep=True)
    for _ in range(SAVE_EVERY):
        next(rows)
    changed = [
        c.latency != old.latency for c, old in zip(load_study(study.folder).candidates, study.candidates, strict=True)
    ]
    assert changed == [True] * SAVE_EVERY + [False]


def test_a_study_of_another_device_or_without_its_command_is_not_measured(study: Study) -> None:
    with pytest.raises(StudyError, match="the study's latencies are of stub"):
        study_measurer(study.spec)
    remote = study.spec.latency.model_copy(update={"remote": True})
    with pytest.raises(StudyError, match="measured by a command") as raised:
        study_measurer(study.spec.model_copy(update={"latency": remote}))
    assert raised.value.hint == "give it with --latency-command"
