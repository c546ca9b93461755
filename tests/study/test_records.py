import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from igc_nas.analysis.tables import candidate_row
from igc_nas.arch.cost import Cost
from igc_nas.errors import StudyError
from igc_nas.study.records import Candidate, Trial
from tests.support.builders import one_line
from tests.support.studies import make_study

TRIAL = make_study(1).trials[0]
assert TRIAL.candidate
CANDIDATE: Candidate = TRIAL.candidate

FLOATS = st.floats(min_value=1e-9, max_value=1e12)


def changed(**latency: Any) -> Trial:
    """The trial with other numbers in its latency, parsed as from a file."""
    data = json.loads(TRIAL.to_json())
    data["candidate"]["latency"] |= latency
    return Trial.from_json(json.dumps(data))


@given(FLOATS, st.lists(FLOATS, max_size=5))
@example(1e-9, [1e12, 0.1 + 0.2, 1e11 / 3, 1e-8 / 3])
def test_a_trial_goes_through_json_without_loss(median: float, samples: list[float]) -> None:
    trial = changed(median_ms=median, samples_ms=samples)
    assert trial.candidate
    assert (trial.candidate.latency.median_ms, trial.candidate.latency.samples_ms) == (median, tuple(samples))
    again = Trial.from_json(trial.to_json())
    assert again == trial
    assert again.to_json() == trial.to_json()


@given(
    st.sampled_from(["infeasible", "duplicate", "failed", "running", "waiting"]),
    st.dictionaries(st.text(max_size=8), st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8), max_size=4),
    st.none() | st.text(max_size=30),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_trial_is_one_line(
    state: Any, params: dict[str, int | str], reason: str | None, over: float | None
) -> None:
    trial = Trial(number=3, state=state, params=params, reason=reason, violation=over, wall_s=over)
    assert "\n" not in trial.to_json()
    assert Trial.from_json(trial.to_json()) == trial


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, 0.0, 5e-324, 1e-10, 1e13, 1e308, -1.0, "5", None, True, [1.0]]
)
def test_a_latency_is_a_positive_number(bad: Any) -> None:
    with pytest.raises(StudyError, match=r"candidate\.latency\.median_ms"):
        changed(median_ms=bad)


@pytest.mark.parametrize("path", ["error", "loss", "train_s"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "0.5", True])
def test_a_score_is_a_finite_number(path: str, bad: Any) -> None:
    data = json.loads(TRIAL.to_json())
    data["candidate"]["score"][path] = bad
    with pytest.raises(StudyError) as raised:
        Trial.from_json(json.dumps(data), "study/trials.jsonl line 7")
    assert one_line(raised).startswith(f"study/trials.jsonl line 7: candidate.score.{path}: ")


@pytest.mark.parametrize("error", [-0.1, 1.1, 50])
def test_an_error_is_a_share(error: float) -> None:
    data = json.loads(TRIAL.to_json())
    data["candidate"]["score"]["error"] = error
    with pytest.raises(StudyError, match=r"score\.error"):
        Trial.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "bad",
    [
        {"params": "706"},
        {"params": 706.5},
        {"params": None},
        {"params": True},
        {"params": -1},
        {"params": 0},
        {"macs": math.nan},
        {"macs": 10**400},
        {"activations": 0},
    ],
)
def test_a_cost_is_counts(bad: dict[str, Any]) -> None:
    data = json.loads(TRIAL.to_json())
    data["candidate"]["cost"] |= bad
    with pytest.raises(StudyError, match=r"candidate\.cost"):
        Trial.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"x"',
        "{}",
        '{"number": -1, "state": "complete", "params": {}}',
        "\x00",
        "[" * 9000,
        '{"number": 0, "state": "done", "params": {}}',
        '{"number": 0, "state": "failed", "params": {"a": 0.5}}',
        '{"number": 0, "state": "failed", "params": {"a\\nb": []}}',
        '{"number": ' + "9" * 5000 + "}",
        '{"number": 0, "state": "failed", "params": {}, "__class__": "os"}',
        b"\xff\xfe\x00",
        b"\x80\x04K\x01.",
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_an_invalid_trial_is_refused_in_one_line(text: str | bytes) -> None:
    with pytest.raises(StudyError) as raised:
        Trial.from_json(text, "line 1")
    assert one_line(raised).startswith("line 1: ")


def test_a_row_is_flat_and_json() -> None:
    row = candidate_row(CANDIDATE)
    assert json.loads(json.dumps(row)) == row
    assert row["latency_ms"] == CANDIDATE.latency.normalised_ms
    assert Cost(row["params"], row["macs"], row["activations"]) == CANDIDATE.cost
    assert row["flops"] == 2 * row["macs"]
