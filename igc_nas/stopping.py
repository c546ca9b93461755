"""When a training may be given up: at a rung, where its chance to end on the front has become small.

The end is predicted from the rung by a line through the trials that have ended, with what that line leaves over as the
uncertainty. A candidate competes only with trials whose known costs are all no greater than its own: it ends on the
front if it beats the best of these, for any other one it cannot be dominated by. So among candidates at one rung a
dominated one never has the better chance.

Before the rule may stop anything it is replayed on the recorded rungs: where it would have stopped a member of the
front, its bound is lowered until it would not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from igc_nas.catalog import Ints
from igc_nas.features import Floats
from igc_nas.pareto import nondominated

LEAST_ENDED = 12
"""Trials that must have ended before anything is stopped."""
BELOW = 0.999
LEAST_DEVIATION = 1e-4


@dataclass(frozen=True)
class Ended:
    """A trial that was trained to the end: its known `costs` (any scale), its errors at the rungs, and at the end."""

    costs: tuple[float, ...]
    rungs: tuple[float, ...]
    error: float


@dataclass(frozen=True)
class Outlook:
    """What a rung lets expect: the error at the end with its standard deviation, and the chance to reach the front."""

    expected_error: float
    deviation: float
    chance: float


@dataclass(frozen=True)
class _Line:
    """end = offset + slope * rung, leaving a standard deviation."""

    offset: float
    slope: float
    deviation: float

    def chance(self, rung: float, best: float) -> float:
        """The probability that the end is below `best`."""
        z = (best - self.offset - self.slope * rung) / self.deviation
        return 0.5 * math.erfc(-z / math.sqrt(2))


class Rule:
    """The rule of a study, from the trials that have `ended`; a chance below `asked` (loosened: `bound`) stops.

    All of `ended` have the same number of rungs.
    """

    def __init__(self, ended: Sequence[Ended], asked: float) -> None:
        self.ended = ended
        self.asked = asked
        self._errors = np.array([trial.error for trial in ended])
        self._rungs = np.array([trial.rungs for trial in ended])
        self._costs = np.array([trial.costs for trial in ended])

    @cached_property
    def bound(self) -> float:
        """The chance below which a training is stopped; 0 where too few trials have ended to tell."""
        if len(self.ended) < LEAST_ENDED:
            return 0.0
        members = nondominated([(trial.error, *trial.costs) for trial in self.ended])
        return min([self.asked, *(BELOW * self._replayed(member) for member in members)])

    def _replayed(self, member: int) -> float:
        """The least chance that a trial would have been given on its way, had all others ended before it."""
        others = np.delete(np.arange(len(self.ended)), member)
        trial = self.ended[member]
        return min(
            (self._outlook(trial.costs, rung, error, others).chance for rung, error in enumerate(trial.rungs)),
            default=1.0,
        )

    def outlook(self, costs: Sequence[float], rung: int, error: float) -> Outlook | None:
        """What to expect of a candidate with these known costs and this error at the `rung`-th rung (from 0).

        None where too few trials have ended to tell.
        """
        if len(self.ended) < LEAST_ENDED:
            return None
        return self._outlook(costs, rung, error, np.arange(len(self.ended)))

    def _outlook(self, costs: Sequence[float], rung: int, error: float, among: Ints) -> Outlook:
        line = _line(self._rungs[among, rung], self._errors[among])
        rivals = among[(self._costs[among] <= np.asarray(costs)).all(axis=1)]
        chance = line.chance(error, float(self._errors[rivals].min())) if len(rivals) else 1.0
        return Outlook(line.offset + line.slope * error, line.deviation, chance)


def _line(rungs: Floats, ends: Floats) -> _Line:
    """The least-squares line, never falling; its deviation is that of a prediction."""
    n = len(rungs)
    spread = float(((rungs - rungs.mean()) ** 2).sum())
    slope = max(0.0, float(((rungs - rungs.mean()) * ends).sum()) / spread) if len(set(rungs)) > 1 else 0.0
    left = ends - ends.mean() - slope * (rungs - rungs.mean())
    deviation = math.sqrt(float((left**2).sum()) / max(1, n - 2) * (1 + 2 / n))
    return _Line(float(ends.mean()) - slope * float(rungs.mean()), slope, max(LEAST_DEVIATION, deviation))
