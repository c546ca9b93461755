"""Whether a training goes on at a rung, by what the trials of its study that have ended let expect.

The rule is that of `igc_nas.samplers.pruner`, its beliefs are those of `igc_nas.analysis.surrogate_quality`. A judge takes each trial in once
and keeps what it needs of it, so that a judgement need not walk through all records of a long study.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, replace

from igc_nas.analysis.surrogate_quality import Forecast
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.samplers.cross_validation import LEAST_FOR_TRUST
from igc_nas.samplers.pruner import Ended, Outlook, Rule
from igc_nas.samplers.surrogate import MOST_POINTS
from igc_nas.space.encoding import Code
from igc_nas.study.objectives import known_values
from igc_nas.study.records import Candidate, Latency, Rung
from igc_nas.study.spec import StudySpec


@dataclass(frozen=True, order=True)
class _Known:
    """An ended trial of the study's own space: its number, what names its network, its error."""

    trial: int
    code: Code
    error: float


class Judge:
    """Judges by the completed trials that it has been told of, in whichever order."""

    def __init__(self, spec: StudySpec, candidates: Iterable[Candidate] = ()) -> None:
        self.spec = spec
        self._known: list[_Known] = []
        self._ended: list[tuple[int, Code | None, Ended]] = []
        """The contenders that have a score at every rung, by number."""
        self._rule: Rule | None = None
        self._forecast: Forecast | None = None
        for candidate in candidates:
            self.learn(candidate)

    def learn(self, candidate: Candidate) -> None:
        """Take a completed trial in."""
        self._rule = self._forecast = None
        spec, number, score = self.spec, candidate.trial, candidate.score
        code = spec.feasible.catalog.code(candidate.arch)
        if code is not None:
            insort(self._known, _Known(number, code, score.error))
        if len(score.rungs) == len(spec.recipe.rungs) and spec.over_budget(candidate.cost) is None:
            costs = known_values(candidate.cost, candidate.latency.normalised_ms, spec.objectives)
            ended = Ended(costs, tuple(rung.error for rung in score.rungs), score.error)
            insort(self._ended, (number, code, ended), key=lambda item: item[0])

    @property
    def forecast(self) -> Forecast | None:
        """What the surrogate expects of the study's space; None below `LEAST_FOR_TRUST` completed trials of it."""
        if self._forecast is None and len(self._known) >= LEAST_FOR_TRUST:
            newest = self._known[-MOST_POINTS:]
            catalog = self.spec.feasible.catalog
            self._forecast = Forecast(catalog, [k.code for k in newest], [k.error for k in newest])
        return self._forecast

    @property
    def rule(self) -> Rule:
        """When trainings may be stopped, from those that have ended with a score at every rung."""
        if self._rule is None:
            beliefs = self.forecast.left_out if self.forecast else {}
            ended = [_with_belief(ended, beliefs.get(code or ())) for _, code, ended in self._ended]
            self._rule = Rule(ended, self.spec.stop)
        return self._rule

    def outlook(self, arch: ArchConfig, latency: Latency, rung: Rung) -> Outlook | None:
        """Why a training at a rung is to be given up; None: it goes on."""
        spec = self.spec
        if not spec.stop or "error" not in spec.objectives:
            return None
        if rung.samples not in spec.recipe.rungs:
            return None  # an evaluator of one's own may look where nobody else does
        costs = known_values(cost_of(arch), latency.normalised_ms, spec.objectives)
        code = spec.feasible.catalog.code(arch) if self.forecast else None
        belief = self.forecast.of(code) if self.forecast and code else None
        outlook = self.rule.outlook(costs, spec.recipe.rungs.index(rung.samples), rung.error, belief)
        return outlook if outlook and outlook.chance < self.rule.bound else None


def _with_belief(ended: Ended, belief: float | None) -> Ended:
    return ended if belief is None else replace(ended, belief=belief)
