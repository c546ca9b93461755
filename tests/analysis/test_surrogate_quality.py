"""The quality of a study's surrogate: the numbers are those of a surrogate fitted without the trial in question."""

import numpy as np
import pytest

from igc_nas.analysis.surrogate_quality import predicted_errors, surrogate_quality
from igc_nas.samplers.cross_validation import MIN_TRIALS, spearman
from igc_nas.samplers.features import Features
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study
from tests.support.families import blurred, by_quality, make, make_papers, stop

N = 40


def by_depth(candidate: Candidate) -> float:
    """An error that the parameter count predicts badly: it falls with the MACs for each parameter."""
    return float(np.clip(0.9 - 0.2 * np.log10(candidate.cost.macs / candidate.cost.params), 0, 1))


def test_too_few_trials_have_no_surrogate() -> None:
    assert surrogate_quality(make(0, by_depth)) is None
    assert surrogate_quality(make(MIN_TRIALS - 1, by_depth)) is None
    assert surrogate_quality(make(MIN_TRIALS, by_depth)) is not None


def test_networks_of_other_spaces_do_not_count() -> None:
    """An enqueued network of a paper has no code in the space, so the surrogate has no features of it."""
    papers = make_papers(lambda accuracy: 1 - accuracy)
    assert len(papers.candidates) >= MIN_TRIALS
    assert surrogate_quality(papers) is None
    study = make(MIN_TRIALS, by_depth)
    with_papers = Study(study.spec, study.trials + papers.trials)
    assert surrogate_quality(with_papers) == surrogate_quality(study)


def test_pruned_trials_are_not_validated() -> None:
    found = surrogate_quality(stop(make(N, by_depth, {2000: by_depth}), 30))
    assert found
    assert found.trials == tuple(range(30))


def test_the_prediction_of_a_trial_is_made_without_it() -> None:
    """One error is set to 1: its own prediction stays close to what it was."""
    found = surrogate_quality(make(N, by_depth))
    assert found
    assert found.validation.n == len(found.errors) == len(found.expected) == len(found.deviation) == N
    assert found.errors == pytest.approx([by_depth(c) for c in make(N, by_depth).candidates])
    assert min(found.deviation) > 0

    wrong = surrogate_quality(make(N, lambda c: 1.0 if c.trial == 3 else by_depth(c)))
    assert wrong
    assert wrong.errors[3] == 1.0
    usual = np.median(np.abs(np.array(found.errors) - found.expected))
    assert abs(wrong.expected[3] - found.errors[3]) < 0.3 < abs(wrong.expected[3] - 1.0)
    assert usual < 0.05


def test_the_newest_of_many_are_validated() -> None:
    study = make(N, by_depth)
    found, last = surrogate_quality(study, most_points=20), surrogate_quality(Study(study.spec, study.trials[20:]))
    assert found
    assert found.trials == tuple(range(20, N))
    assert found == last


def test_the_sentence_says_whether_the_surrogate_is_used() -> None:
    learnt, noise = surrogate_quality(make(N, by_depth)), surrogate_quality(make(N, by_quality))
    assert learnt
    assert noise
    assert learnt.validation.is_better
    assert learnt.validation.rank > 0.8
    assert "not used" not in learnt.sentence()
    assert f"{N} errors: rank correlation {learnt.validation.rank:.2f} by the surrogate" in learnt.sentence()
    assert learnt.validation.rank == pytest.approx(spearman(np.array(learnt.expected), np.array(learnt.errors)))
    assert noise.validation.rank < 0.5
    assert noise.validation.is_better == ("not used" not in noise.sentence())


def test_equal_errors_are_not_ranked() -> None:
    found = surrogate_quality(make(MIN_TRIALS, lambda c: 0.5))
    assert found
    assert (found.validation.rank, found.validation.is_better) == (0.0, False)
    assert found.expected == pytest.approx([0.5] * MIN_TRIALS)
    assert "not used" in found.sentence()


def test_features_are_those_of_the_studys_own_space() -> None:
    encoding = make(1, by_depth).spec.feasible.encoding
    candidate = make(1, by_depth).candidates[0]
    code = encoding.code(candidate.arch)
    assert code is not None
    archs = encoding.priced([code])
    assert archs.cost("params") == [candidate.cost.params]
    assert len(Features(encoding).of(archs).whole) == 1


def test_predicted_errors_have_less_noise_than_measured_ones() -> None:
    """The predictions for a study with noise are nearer to the errors without it than the noisy errors are."""
    smooth = make(120, by_depth)
    noisy = make(120, blurred(by_depth, 0.03, 0))
    without_noise = {c.id: c.score.error for c in smooth.candidates}
    measured = {c.id: c.score.error for c in noisy.candidates}
    predicted = predicted_errors(noisy)
    assert predicted.keys() == without_noise.keys()
    assert _distance(predicted, without_noise) < 0.7 * _distance(measured, without_noise)


def _distance(a: dict[str, float], b: dict[str, float]) -> float:
    return float(np.sqrt(np.mean([(a[name] - b[name]) ** 2 for name in b])))


def test_too_few_trials_have_no_predicted_errors() -> None:
    assert predicted_errors(make(MIN_TRIALS - 1, by_depth)) == {}
