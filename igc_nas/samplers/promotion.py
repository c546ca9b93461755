"""Promotion: which networks of a search are trained anew, for longer, and when.

A share of the predicted time is for longer trainings, from the `MIN_TRIALS`-th candidate on; they alternate with the
short ones, so that suggestions learn from them. The first `DESIGN` go to the least error in each of as many groups of
like size, the largest networks first: what a longer training changes cannot be predicted before, and differs most with
the size. Each further one goes to the network of the highest expected hypervolume improvement, at the target length,
over the predicted front of all others; in a search for the best error every second one to that of the highest expected
improvement of the least error. So a large network gets its chance by what is expected of it at the target length, and
by how uncertain that is.

The trainings are new ones, from the first image on and with the same seed: a learning rate that has fallen to 0 along
its cosine cannot be taken up again without a warm restart, which would make a promoted training another recipe than
one of that length. (Freeze-thaw and Hyperband continue trainings: Swersky et al. 2014, arXiv 1406.3896; Li et al. 2018,
arXiv 1603.06560.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from igc_nas.arch.config import ArchConfig
from igc_nas.samplers.acquisition import expected_hypervolume_improvement
from igc_nas.samplers.cross_validation import MIN_TRIALS
from igc_nas.samplers.features import Floats
from igc_nas.samplers.target_predictor import TargetPredictor
from igc_nas.space.encoding import Ints
from igc_nas.study.objectives import OBJECTIVES
from igc_nas.study.pareto import nondominated
from igc_nas.study.plan import Sizes
from igc_nas.study.records import Candidate, Trial
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import Study

DESIGN = 4
ORDER = (3, 0, 2, 1)
"""The groups, by size ascending, of the first promotions."""


class Promotion:
    """The promotions of a study, a function of its records alone: the same after a resume."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self._seconds_of: dict[tuple[int, bool], float] = {}
        """By the trial's number, and whether the training is a longer one."""

    def next(self, study: Study, can_end: Callable[[ArchConfig], bool] = lambda _: True) -> Candidate | None:
        """The candidate to train for longer now; None: no longer training is due, or none `can_end`."""
        if not self.is_due(study) or (predictor := TargetPredictor.of(study)) is None:
            return None
        begun = {trial.longer_of for trial in study.trials if trial.longer_of is not None}
        rows = np.flatnonzero([self.spec.is_within_budget(candidate) for candidate in predictor.candidates])
        of = _design if len(begun) < DESIGN else self.worth
        for row in rows[np.argsort(-of(predictor, rows, len(begun)), kind="stable")]:
            candidate: Candidate = predictor.candidates[row]
            if candidate.trial not in begun and can_end(candidate.arch):
                return candidate
        return None

    def is_due(self, study: Study) -> bool:
        """Whether less than the target's share of the predicted seconds was for longer trainings so far."""
        target = self.spec.target
        if target is None or len(study.candidates) < MIN_TRIALS:
            return False
        longer_s, all_s = self._seconds(study)
        return longer_s < target.share * all_s

    def _seconds(self, study: Study) -> tuple[float, float]:
        """(of longer trainings, of all trials) the predicted seconds of what has begun."""
        begun = [t for t in study.trials if t.state not in ("infeasible", "duplicate") and not t.baseline]
        seconds = [(t.longer_of is not None, self._seconds_of_trial(t)) for t in begun]
        return sum(s for is_longer, s in seconds if is_longer), sum(s for _, s in seconds)

    def _seconds_of_trial(self, trial: Trial) -> float:
        number = trial.number if trial.longer_of is None else trial.longer_of
        return self.seconds(number, trial.arch, longer=trial.longer_of is not None) if trial.arch else 0.0

    def seconds(self, number: int, arch: ArchConfig, *, longer: bool) -> float:
        """The predicted seconds of trial `number`, or of training it for longer; without a plan its images."""
        key = (number, longer)
        if key not in self._seconds_of:
            recipe, plan = self.spec.recipe, self.spec.plan
            if longer and self.spec.target:
                recipe = self.spec.target.recipe
            seconds = float(recipe.samples)
            if plan is not None:
                seconds = float(plan.speed.trials_s(Sizes.of([arch]), recipe, self.spec.space.input[1])[0])
            self._seconds_of[key] = seconds
        return self._seconds_of[key]

    def worth(self, predictor: TargetPredictor, rows: Ints, promoted: int) -> Floats:
        """(rows,) of these rows of the candidates, after `promoted` promotions; the others are no rivals."""
        low, high = self.spec.scale_bounds("error")
        mean = (predictor.predicted.errors[rows] - low) / (high - low)
        std = predictor.predicted.std[rows] / (high - low)
        points = np.column_stack([mean, self._known([predictor.candidates[row] for row in rows])])
        if self.spec.goal == "best-error" and promoted % 2:
            points = points[:, :1]
        front = np.array(nondominated(points), dtype=np.int64)
        gain = expected_hypervolume_improvement(mean, std, points[:, 1:], points[front])
        for row in front:  # over the front of all others
            others = np.delete(points, row, 0)
            others = others[nondominated(others)]
            one = slice(row, row + 1)
            gain[one] = expected_hypervolume_improvement(mean[one], std[one], points[one, 1:], others)
        return gain

    def _known(self, candidates: Sequence[Candidate]) -> Floats:
        """(n, objectives but the error) on the study's scale."""
        names = [name for name in self.spec.objectives if name != "error"]
        rows = [self.spec.scaled({name: OBJECTIVES[name].of(c) for name in names}) for c in candidates]
        return np.array(rows, dtype=float).reshape(len(rows), len(names))


def _design(predictor: TargetPredictor, rows: Ints, promoted: int) -> Floats:
    """(rows,) the worth of candidates for one of the first promotions: in its group that of the least error first."""
    sizes = np.array([predictor.candidates[row].cost.params for row in rows])
    groups = np.array_split(np.argsort(sizes, kind="stable"), DESIGN)
    found = np.full(len(sizes), -1.0)
    of_group = groups[ORDER[promoted]]
    found[of_group] = 1 - predictor.predicted.errors[rows[of_group]]
    return found
