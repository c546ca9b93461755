"""The limits of a study, and the one definition of "within budget" that searches, samplers and reports share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from igc_nas.arch.cost import Cost
from igc_nas.io.records import Frozen
from igc_nas.io.units import exact_count

Value = TypeVar("Value", float, NDArray[np.float64])


class Budget(Frozen):
    """Upper limits, and lower ones on params and MACs, all inclusive; None is no limit.

    Counts are those of `Cost`, MACs for one image; `latency_ms` limits the normalised latency, in milliseconds.
    """

    params: Annotated[int, Field(ge=1)] | None = None
    macs: Annotated[int, Field(ge=1)] | None = None
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    min_params: Annotated[int, Field(ge=1)] | None = None
    min_macs: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> Self:
        for name, low, high in (("params", self.min_params, self.params), ("MACs", self.min_macs, self.macs)):
            if low is not None and high is not None and low > high:
                raise ValueError(f"at least {low:,} and at most {high:,} {name} exclude each other")
        return self

    def __str__(self) -> str:
        parts = [f"params{_range_text(self.min_params, self.params)}"] if self.params or self.min_params else []
        parts += [f"macs{_range_text(self.min_macs, self.macs)}"] if self.macs or self.min_macs else []
        parts += [f"latency{self.latency_ms:g}ms"] if self.latency_ms else []
        return "-".join(parts) or "any"

    @property
    def is_limited(self) -> bool:
        """Whether there is an upper limit."""
        return any(limit is not None for limit in (self.params, self.macs, self.latency_ms))

    def violation(self, cost: Cost | None = None, latency_ms: float | None = None) -> float:
        """The largest excess over a limit (or lack below a lower one), as a share: 0 or below is within budget.

        What is None is not known yet and violates nothing; -1 where no limit applies.
        """
        known: dict[str, float] = {} if cost is None else {"params": cost.params, "macs": cost.macs}
        if latency_ms is not None:
            known["latency_ms"] = latency_ms
        return max(self._excesses(known), default=-1.0)

    def allows(self, costs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) which rows of `costs` (n, metrics), params first and MACs second, are within budget."""
        within = np.ones(len(costs), dtype=bool)
        for excess in self._excesses({"params": costs[:, 0].astype(float), "macs": costs[:, 1].astype(float)}):
            within &= excess <= 0
        return within

    def _excesses(self, known: Mapping[str, Value]) -> list[Value]:
        limits = {"params": self.params, "macs": self.macs, "latency_ms": self.latency_ms}
        least = {"params": self.min_params, "macs": self.min_macs}
        over = [known[name] / limit - 1 for name, limit in limits.items() if limit is not None and name in known]
        return over + [limit / known[name] - 1 for name, limit in least.items() if limit is not None and name in known]

    def excess_text(self, cost: Cost) -> str | None:
        """The limit that a cost exceeds, in words; None where it is within budget."""
        for what, value, limit in (("parameters", cost.params, self.params), ("MACs", cost.macs, self.macs)):
            if limit is not None and value > limit:
                return f"{value:,} {what}; the budget is {limit:,}"
        for what, value, limit in (("parameters", cost.params, self.min_params), ("MACs", cost.macs, self.min_macs)):
            if limit is not None and value < limit:
                return f"{value:,} {what}; the least is {limit:,}"
        return None


def _range_text(low: int | None, high: int | None) -> str:
    """`2M`, `500k..2M`, `500k..`."""
    most = exact_count(high) if high else ""
    return most if low is None else f"{exact_count(low)}..{most}"
