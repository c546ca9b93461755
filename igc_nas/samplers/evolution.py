"""Regularised evolution for several objectives: a tournament among the newest trials; its winner is mutated.

Aging and tournaments follow Real et al. 2019 (arXiv 1802.01548, algorithm 1). With several objectives there is no
single best, so the winner is the member of the tournament that the fewest members of the population dominate.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from igc_nas.samplers.history import History
from igc_nas.samplers.mutation import Mutator
from igc_nas.space.encoding import Code
from igc_nas.study.pareto import dominates
from igc_nas.study.spec import StudySpec

POPULATION, TOURNAMENT, ATTEMPTS = 30, 8, 200


class Evolution:
    """Proposes codes for a study from its history; the first `POPULATION` are uniform draws."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.mutator = Mutator(spec.feasible)

    def propose(self, history: History, rng: np.random.Generator) -> Iterator[Code]:
        """Codes in the order in which to try them; some may have been tried before."""
        if len(history.complete) >= POPULATION:
            codes, points = history.complete.codes[-POPULATION:], history.values[-POPULATION:].tolist()
            for _ in range(ATTEMPTS):
                rivals = rng.choice(POPULATION, size=TOURNAMENT, replace=False)
                dominators = [sum(dominates(other, points[i]) for other in points) for i in rivals]
                winner = rivals[int(np.argmin(dominators))]
                yield from self.mutator.kept(self.mutator.mutate(codes[winner : winner + 1], 1, rng))
        while True:
            code = self.spec.feasible.encoding.code(self.spec.feasible.draw(rng))
            assert code is not None
            yield code
