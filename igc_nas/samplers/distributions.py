"""The parameters of a space as Optuna's distributions, by value and by index."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from igc_nas.space.parameters import Parameters, Value
from igc_nas.space.search_space import SearchSpace


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space's parameters by index, with the same names and choices in every trial."""
    return {
        name: IntDistribution(0, choice - 1) if isinstance(choice, int) else CategoricalDistribution(choice)
        for name, choice in space.parameters.items()
    }


def value_distributions(parameters: Parameters) -> dict[str, BaseDistribution]:
    """The space's parameters by value."""
    return {name: value_distribution(values) for name, values in parameters.choices.items()}


def value_distribution(values: Sequence[Value]) -> BaseDistribution:
    """Integers in equal steps as such, so that samplers and plots know their order; all else as categories."""
    whole: list[Any] = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    steps = {high - low for low, high in pairwise(whole)}
    if len(whole) == len(values) and len(steps) == 1 and min(steps) > 0:
        return IntDistribution(whole[0], whole[-1], step=steps.pop())
    return CategoricalDistribution(tuple(values))
