"""finals.jsonl and what it says: every line validated, half a line left out, means and fronts within one recipe."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.errors import StudyError
from igc_nas.study.defaults import full_recipe
from igc_nas.study.finals import FINALS_FILE, Final, FinalsLog, TestScore, Trained, finals_groups, read_finals
from igc_nas.study.records import Failure
from tests.support.builders import one_line
from tests.support.searches import CONDITIONS, latency
from tests.support.trainings import arch


def final(error: float | None, side: int = 8, seed: int = 0, epochs: int = 10, **changes: Any) -> Final:
    """A training with a test error, or a failed one."""
    network = arch(side)
    trained = None if error is None else Trained(
        test=TestScore(error=error, loss=1.0, images=100),
        curve=(), train_s=1.0, images_per_s=9.0, form="factored", conditions=CONDITIONS,
    )  # fmt: skip
    failed = {} if trained else {"reason": "the loss is nan", "failure": Failure(kind="diverged", where="training")}
    return Final(
        **{
            "name": f"net{side}", "id": arch_id(network), "arch": network, "cost": cost_of(network), "seed": seed,
            "recipe": full_recipe("quick", 8, epochs=epochs), "dataset": "shapes", "dataset_sha256": "0",
            "trained": trained, "started": "2026-01-01T00:00:00+00:00",
        }
        | failed
        | changes
    )  # fmt: skip


def test_finals_are_read_as_they_were_written_and_the_last_record_of_a_training_counts(tmp_path: Path) -> None:
    log = FinalsLog(tmp_path)
    records = [final(0.3, latency=latency(2.0), trial=3), final(None, seed=1), final(0.2, side=12)]
    for record in records:
        log.add(record)
    assert read_finals(tmp_path) == tuple(records)
    again = final(0.25, seed=1)
    FinalsLog(tmp_path).add(again)
    assert read_finals(tmp_path) == (records[0], again, records[2])


@pytest.mark.parametrize("keep", [1, 100, -2])
def test_half_a_line_of_a_killed_process_is_left_out_and_does_not_spoil_the_next(keep: int, tmp_path: Path) -> None:
    FinalsLog(tmp_path).add(final(0.3))
    with (tmp_path / FINALS_FILE).open("a") as file:
        file.write(final(0.2, side=12).to_json()[:keep])
    assert read_finals(tmp_path) == (final(0.3),)
    FinalsLog(tmp_path).add(final(0.1, side=12))
    assert read_finals(tmp_path) == (final(0.3), final(0.1, side=12))


@pytest.mark.parametrize(
    "change",
    [{"schema": 2}, {"seed": -1}, {"trained": None}, {"reason": "both"}, {"new": 1}, {"recipe": {}}, {"name": ""}],
    ids=str,
)
def test_a_wrong_record_is_refused_by_its_line(change: dict[str, Any], tmp_path: Path) -> None:
    line = json.dumps(json.loads(final(0.3).to_json()) | change)
    (tmp_path / FINALS_FILE).write_text(final(0.3).to_json() + "\n" + line + "\n")
    with pytest.raises(StudyError) as raised:
        read_finals(tmp_path)
    assert f"{FINALS_FILE} line 2" in one_line(raised)


@pytest.mark.parametrize("text", ["\0\n", "[]\n", "[" * 100_000 + "\n", '{"schema": NaN}\n'])
def test_what_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / FINALS_FILE).write_text(text)
    with pytest.raises(StudyError) as raised:
        read_finals(tmp_path)
    one_line(raised)


def test_means_and_intervals_are_over_seeds_and_within_a_recipe() -> None:
    records = [final(0.30), final(0.34, seed=1), final(0.32, seed=2), final(None, seed=3), final(0.5, epochs=2)]
    old, new = reversed(finals_groups(records))
    assert (old.recipe.epochs, new.recipe.epochs) == (10, 2)
    (finalist,) = old.finalists
    assert finalist.error == pytest.approx(0.32)
    assert finalist.half_width == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)  # Student's t of 2 degrees
    assert finalist.failed == 1
    assert new.finalists[0].half_width is None


def test_the_deviation_over_seeds_is_pooled_over_networks() -> None:
    records = [final(0.30), final(0.34, seed=1), final(0.20, side=12), final(0.26, side=12, seed=1)]
    (group,) = finals_groups(records)
    deviation = math.sqrt((2 * 0.02**2 + 2 * 0.03**2) / 2)
    assert [f.half_width for f in group.finalists] == pytest.approx([4.3027 * deviation / 2**0.5] * 2, rel=1e-4)


def test_the_second_front_is_of_test_errors_and_of_what_every_network_has() -> None:
    small, large = final(0.4, latency=latency(1.0)), final(0.3, side=12, latency=latency(2.0))
    worse = final(0.35, side=16, latency=latency(3.0))
    (group,) = finals_groups([small, worse, large, final(None, side=20)])
    assert repr(group).startswith("FinalsGroup(")
    assert group._repr_html_().count("<tr>") == 1 + len(group.finalists)
    assert [f.one.name for f in group.finalists] == ["net12", "net16", "net8", "net20"]
    assert group.front(("error", "latency")) == {small.id, large.id}
    (group,) = finals_groups([small, worse, large.model_copy(update={"latency": None})])
    assert group.front(("error", "latency", "macs")) == {small.id, large.id}
