"""What the sampler's surrogate knows of a study's errors: how well it ranks and how surely, told to people.

The surrogate is the one that `--sampler known-cost` asks, fitted to the completed trials; each is predicted from all
others (leave-one-out).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from igc_nas.features import Features
from igc_nas.results import Study
from igc_nas.surrogate import MOST_POINTS, Surrogate
from igc_nas.trust import LEAST_FOR_TRUST, Trust, trust_in


@dataclass(frozen=True)
class Knowledge:
    """For each of `trials`: the error, and what the surrogate would have said (`expected`, `deviation`) without it."""

    trust: Trust
    trials: tuple[int, ...]
    errors: tuple[float, ...]
    expected: tuple[float, ...]
    deviation: tuple[float, ...]

    def sentence(self) -> str:
        """What is to be said of it, in one sentence."""
        t = self.trust
        verdict = "" if t.is_better else "; no better than the parameter count, so it is not followed"
        return (
            f"left out one by one, {t.n} errors are ranked with correlation {t.rank:.2f} by the surrogate, "
            f"{t.rank_by_params:.2f} by the parameter count{verdict}; its 68 % intervals hold {t.within_68:.0%}, "
            f"its 95 % intervals {t.within_95:.0%}"
        )


def knowledge_of(study: Study) -> Knowledge | None:
    """The knowledge of a study; None below `LEAST_FOR_TRUST` completed trials of its own space.

    Of more than `MOST_POINTS` the newest are judged.
    """
    catalog = study.spec.feasible.catalog
    coded = [(candidate, catalog.code(candidate.arch)) for candidate in study.candidates]
    known = [(candidate, code) for candidate, code in coded if code is not None][-MOST_POINTS:]
    if len(known) < LEAST_FOR_TRUST:
        return None
    codes = np.array([code for _, code in known], dtype=np.int64)
    errors = np.array([candidate.score.error for candidate, _ in known])
    costs = catalog.price(codes)[1]
    surrogate = Surrogate(Features(catalog).of(codes, costs), errors)
    mean, deviation = surrogate.left_out()
    return Knowledge(
        trust=trust_in(surrogate, errors, costs[:, 0]),
        trials=tuple(candidate.trial for candidate, _ in known),
        errors=tuple(map(float, errors)),
        expected=tuple(map(float, mean)),
        deviation=tuple(map(float, deviation)),
    )
