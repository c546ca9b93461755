"""The objectives by name: all are minimised, all are read from a `Candidate`.

The hypervolume is that of scaled objectives: the error linearly, all others by their logarithm, each to [0, 1] by the
study's scale (`StudySpec.scale_bounds`); the reference point is (1, ..., 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from igc_nas.arch.cost import Cost
from igc_nas.errors import UsageError
from igc_nas.io.text import nearest
from igc_nas.study.records import Candidate


@dataclass(frozen=True, slots=True)
class Objective:
    """A number of a candidate to minimise; `label` is its axis title, with the unit."""

    name: str
    label: str
    of: Callable[[Candidate], float]
    log: bool = True

    def scale(self, value: float, low: float, high: float) -> float:
        """`value` on the scale where `low` is 0 and `high` is 1 (logarithmic unless it is the error)."""
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return (value - low) / (high - low)


OBJECTIVES: dict[str, Objective] = {
    o.name: o
    for o in (
        Objective("error", "held-out error", lambda c: c.score.error, log=False),
        Objective("params", "parameters", lambda c: c.cost.params),
        Objective("macs", "MACs", lambda c: c.cost.macs),
        Objective("flops", "FLOPs", lambda c: c.cost.flops),
        Objective("latency", "latency (ms)", lambda c: c.latency.normalised_ms),
        Objective("activations", "activations", lambda c: c.cost.activations),
    )
}


def parse_objectives(text: str) -> tuple[str, ...]:
    """`"error,params,latency"` -> the names. The error alone, or two or three different ones; raises `UsageError`."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in OBJECTIVES:
            hint = nearest(name, OBJECTIVES, f"choose from {', '.join(OBJECTIVES)}")
            hint = "the error is 1 - accuracy: write error" if name == "accuracy" else hint
            raise UsageError(f"unknown objective {name!r:.40}", hint)
    if names != ("error",) and (len(set(names)) != len(names) or len(names) not in (2, 3)):
        raise UsageError(
            f"objectives {text!r:.80}: name two or three different ones, or error alone", "e.g. error,params,latency"
        )
    return names


def known_values(cost: Cost, latency_ms: float, names: Sequence[str]) -> tuple[float, ...]:
    """The objectives other than the error, in the order of `names`: they are known before a network is trained."""
    known = cost.as_dict() | {"latency": latency_ms}
    return tuple(known[name] for name in names if name != "error")


def values(candidate: Candidate, names: Sequence[str]) -> tuple[float, ...]:
    """The objectives of a candidate, in the order of `names`."""
    return tuple(OBJECTIVES[name].of(candidate) for name in names)
