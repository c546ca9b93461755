"""Which candidates are trained to the end: evenly along the front, or by surrogate and proxy together."""

from dataclasses import replace

import pytest

from igc_nas.analysis.finalists import expected_errors, finalists, spread
from igc_nas.errors import StudyError, UsageError
from igc_nas.study.expected import Expected
from tests.support.studies import make_study

STUDY = make_study(40)


def test_the_front_is_covered_from_end_to_end() -> None:
    front = STUDY.front()
    params = sorted(c.cost.params for c in front)
    for most in (2, 3, len(front) - 1):
        picked = spread(STUDY, front, most)
        assert len({c.id for c in picked}) == most
        assert (picked[0].cost.params, picked[-1].cost.params) == (params[0], params[-1])
    assert len(spread(STUDY, front, 100)) == len(front)
    assert spread(STUDY, front, 1)[0].score.error == min(c.score.error for c in front)


def test_the_best_within_limits_are_those_that_surrogate_and_proxy_expect_to_be() -> None:
    expected = expected_errors(STUDY)
    assert expected is not None
    limit = sorted(c.cost.params for c in STUDY.candidates)[20]
    within = [c for c in STUDY.candidates if c.cost.params <= limit]
    picks = finalists(STUDY, [f"under:params={limit}"], 5)
    best = sorted(within, key=lambda c: expected[c.id])[:5]
    assert [pick.candidate.id for pick in picks] == [c.id for c in best]
    assert [pick.expected for pick in picks] == [expected[c.id] for c in best]
    assert picks[0].why.startswith("rank 1 (proxy alone ")


def test_where_errors_are_predicted_at_a_longer_length_they_rank() -> None:
    """The other way round than the short trainings do: large networks are the best ones there."""
    ranked = sorted(STUDY.candidates, key=lambda c: c.score.error)
    expected = {c.trial: Expected(0.3 - 0.001 * place, 0.1, 0.4) for place, c in enumerate(ranked)}
    study = replace(STUDY, expected=expected)
    picks = finalists(study, ["under:params=100G"], 3)
    assert [pick.candidate for pick in picks] == ranked[:-4:-1]
    assert [pick.expected for pick in picks] == [expected[pick.candidate.trial].error for pick in picks]
    assert picks[0].candidate == study.pick("under:params=100G"), "as export picks"
    assert spread(study, STUDY.candidates, 1) == [ranked[-1]]


def test_too_few_trials_are_ranked_by_the_proxy_alone() -> None:
    study = make_study(6)
    picks = finalists(study, ["under:params=100G"], 3)
    errors = sorted(c.score.error for c in study.candidates)[:3]
    assert [pick.candidate.score.error for pick in picks] == errors
    assert [(pick.why, pick.expected) for pick in picks] == [(f"proxy rank {n}", None) for n in (1, 2, 3)]


def test_a_network_picked_twice_takes_part_once_with_both_reasons() -> None:
    picks = finalists(STUDY, ["front", "knee", "best-error", f"trial:{STUDY.pick('knee').trial}"], 100)
    assert len({pick.candidate.id for pick in picks}) == len(picks)
    assert "front; knee; trial:" in "".join(pick.why for pick in picks)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ("best", UsageError),
        ("under:", UsageError),
        ("under:size=3", UsageError),
        ("trial:999", StudyError),
        ("under:params=1", StudyError),
    ],
)
def test_wrong_rules_are_refused(rule: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        finalists(STUDY, [rule], 3)
