"""Small networks of each unit, and the schedule that tuners choose forms for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.nn.device import Device
from igc_nas.study.spec import Schedule

BATCH = 3
CPU = Device("cpu", "cpu", "test")
SCHEDULE = Schedule(epochs=1, batch=BATCH, lr=0.1, forms="fastest")
Timed = Callable[[str, str], float]
"""Made-up milliseconds of an alternative, by the key of its shape and its name."""


def arch(*stages: dict[str, Any]) -> ArchConfig:
    stage = [{"blocks": 1} | stage for stage in stages]
    return ArchConfig.parse({"input": (3, 7, 7), "classes": 5, "stem": {"width": 8}, "stage": stage})


IGCV1: dict[str, Any] = {"unit": "igcv1", "L": 4, "M": 3}
IGCV2: dict[str, Any] = {"unit": "igcv2", "width": 12, "depth": 3}
IGCV3: dict[str, Any] = {"unit": "igcv3", "width": 8, "expand": 2, "G1": 4, "G2": 2}
ARCHS = {
    "igcv1": arch(IGCV1 | {"blocks": 2, "kernel": 5}),
    "igcv1 residual, strided": arch(IGCV1 | {"residual": True, "stride": 2, "blocks": 2}),
    "igcv2": arch(IGCV2 | {"kernel": 5}, IGCV2 | {"width": 24, "depth": 4, "stride": 2}),
    "igcv3": arch(IGCV3 | {"blocks": 2, "kernel": 5}),
    "conv": arch({"unit": "conv", "width": 8, "residual": True}),
}
EACH = pytest.mark.parametrize("config", ARCHS.values(), ids=ARCHS.keys())
