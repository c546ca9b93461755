"""The limits of a study, and the one definition of "within budget" that searches, samplers and reports share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from igc_nas.arch.cost import Cost
from igc_nas.io.records import Frozen
from igc_nas.io.units import exact_count

Value = TypeVar("Value", float, NDArray[np.float64])


class Budget(Frozen):
    """Upper limits, all inclusive; None is no limit. `latency_ms` limits the normalised latency."""

    params: Annotated[int, Field(ge=1)] | None = None
    macs: Annotated[int, Field(ge=1)] | None = None
    latency_ms: Annotated[float, Field(gt=0)] | None = None

    def __str__(self) -> str:
        parts = [f"params{exact_count(self.params)}"] if self.params else []
        parts += [f"macs{exact_count(self.macs)}"] if self.macs else []
        parts += [f"latency{self.latency_ms:g}ms"] if self.latency_ms else []
        return "-".join(parts) or "any"

    def violation(self, cost: Cost | None = None, latency_ms: float | None = None) -> float:
        """The largest excess over a limit, as a share of that limit: 0 or below is within budget, as Optuna has it.

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
        return [known[name] / limit - 1 for name, limit in limits.items() if limit is not None and name in known]

    def excess_text(self, cost: Cost) -> str | None:
        """The limit that a cost exceeds, in words; None where it is within budget."""
        for what, value, limit in (("parameters", cost.params, self.params), ("MACs", cost.macs, self.macs)):
            if limit is not None and value > limit:
                return f"{value:,} {what}; the budget is {limit:,}"
        return None
