"""The error that a network is expected to have after a training of a given length."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Expected:
    """A predicted error: its median and 95 % interval."""

    error: float
    low: float
    high: float
