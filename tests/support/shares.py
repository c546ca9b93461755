"""How much of a test the normal suite runs: a share of its examples or cases; `-m slow` runs all of them."""

import os
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = 100
"""Examples of a property test in full."""

SHARE = 4
"""The normal suite tries one of so many."""

FULL = "IGC_NAS_TEST_FULL"
"""Environment variable, set by `-m slow` and `-m faults`: property tests try all their examples."""


def examples(count: int, **more: Any) -> settings:
    """The settings of a property test that tries `count` examples in full, a share of them in the normal suite."""
    return settings(max_examples=count if FULL in os.environ else max(2, count // SHARE), **more)


def load_profile() -> None:
    """One Hypothesis profile for people and CI: the same examples each time, and no deadline on a busy machine."""
    profile = examples(EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("ci", profile)
    settings.load_profile("ci")


def some(cases: Iterable[Any], *of: Any) -> list[Any]:
    """The cases of a parametrization; those that `of` does not name run with `-m slow` only."""
    return [pytest.param(case, marks=() if case in of else pytest.mark.slow) for case in cases]
