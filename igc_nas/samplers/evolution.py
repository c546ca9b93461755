"""Regularised evolution for several objectives: a tournament among the youngest, and one mutation of its winner.

Aging and tournaments are those of Real et al. 2019 (arXiv 1802.01548, algorithm 1); the winner is the member of the
tournament that the fewest of the population dominate, for several objectives have no single best.
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
    """Proposes codes for a study by its history; the first `POPULATION` are uniform draws."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.moves = Mutator(spec.feasible)

    def propose(self, history: History, rng: np.random.Generator) -> Iterator[Code]:
        """Codes in the order in which they should be tried; some may have been."""
        if len(history.complete) >= POPULATION:
            codes, points = history.complete.codes[-POPULATION:], history.values[-POPULATION:].tolist()
            for _ in range(ATTEMPTS):
                rivals = rng.choice(POPULATION, size=TOURNAMENT, replace=False)
                beaten = [sum(dominates(other, points[i]) for other in points) for i in rivals]
                winner = rivals[int(np.argmin(beaten))]
                children, _ = self.moves.kept(self.moves.mutate(codes[winner : winner + 1], 1, rng))
                yield from (tuple(map(int, child)) for child in children)
        while True:
            code = self.spec.feasible.encoding.code(self.spec.feasible.draw(rng))
            assert code is not None
            yield code
