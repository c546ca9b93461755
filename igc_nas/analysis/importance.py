"""Importance of architecture parameters: which values the front prefers, and how much variance a parameter explains.

A parameter is one of a stage: its unit, width, kernel, and the papers' letters. A search is not a balanced experiment:
a sampler tries good values more often, and in combination with other good values. So the importances are of each
parameter alone and are reported with their n: shares of the values, and the explained variance as epsilon squared (eta
squared corrected for the part that chance explains; Kelley 1935).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igc_nas.arch.config import ArchConfig
from igc_nas.study.study import Study

MOST_VALUES = 8
"""A numeric parameter with more values is grouped into `RANGES` ranges."""
RANGES = 4
MIN_TRIALS = 10
"""Explained variance is not computed for fewer trials."""


@dataclass(frozen=True)
class ValueShare:
    """A value of a parameter: the number of evaluated trials that have it, and of members of the front.

    `p` is that of Fisher's exact test (two-sided): the probability that a front of random evaluated trials would differ
    as much or more.
    """

    value: str
    evaluated: int
    front: int
    p: float


@dataclass(frozen=True)
class ExplainedVariance:
    """The share of the variance that a parameter explains alone (epsilon squared, 0 to 1), and the p of its F test."""

    share: float
    p: float


@dataclass(frozen=True)
class ParameterImportance:
    """A parameter with more than one value among the `evaluated` trials that have it (units differ in parameters).

    `front` is the number of those trials on the front. `error` and `latency` (of its logarithm) are None for fewer than
    `MIN_TRIALS` trials, with no more trials than values, and where all trials are equal.
    """

    name: str
    """`stage1.width`, `stem.width`."""
    evaluated: int
    front: int
    shares: tuple[ValueShare, ...]
    error: ExplainedVariance | None
    latency: ExplainedVariance | None


def parameter_importances(study: Study, most_values: int = MOST_VALUES) -> tuple[ParameterImportance, ...]:
    """The importance of every parameter that varies among the completed trials, stage by stage.

    A numeric parameter with more than `most_values` values is grouped into `RANGES` ranges.
    """
    members = {candidate.trial for candidate in study.front()}
    parameters = [parameters_of(candidate.arch) for candidate in study.candidates]
    errors = np.array([candidate.score.error for candidate in study.candidates])
    times = np.log10([candidate.latency.normalised_ms for candidate in study.candidates])
    on_front = np.array([candidate.trial in members for candidate in study.candidates], dtype=bool)
    found = []
    for name in sorted({name for of_arch in parameters for name in of_arch}, key=_position):
        rows = [row for row, of_arch in enumerate(parameters) if name in of_arch]
        labels = _labels([parameters[row][name] for row in rows], most_values)
        if len(set(labels)) > 1:
            variances = (_explained_variance(labels, target[rows]) for target in (errors, times))
            front = on_front[rows]
            shares = _shares(labels, [label for label, is_member in zip(labels, front, strict=True) if is_member])
            found.append(ParameterImportance(name, len(rows), int(front.sum()), shares, *variances))
    return tuple(found)


def parameters_of(arch: ArchConfig) -> dict[str, str | int]:
    """The parameters of an architecture by name: `stage1.unit`, `stage1.width`, `stage1.L`, ..."""
    found: dict[str, str | int] = {"stem.width": arch.stem.width}
    for number, stage in enumerate(arch.stages, start=1):
        own = {key: value for key, value in stage if isinstance(value, str | int)} | {"width": stage.width}
        found |= {f"stage{number}.{key}": value for key, value in own.items()}
    return found | ({"head.pool": arch.head.pool} if arch.head and arch.head.pool else {})


ORDER = ("unit", "width", "blocks", "kernel", "stride", "residual", "L", "M", "depth", "K", "expand", "G1", "G2")


def _position(name: str) -> tuple[int, int]:
    """Sort key: the stem first, then stage by stage, the head last; within a stage by `ORDER`."""
    part, _, key = name.partition(".")
    number = {"stem": 0, "head": 1_000}[part] if part in ("stem", "head") else int(part.removeprefix("stage"))
    return number, ORDER.index(key) if key in ORDER else len(ORDER)


def _labels(values: Sequence[str | int], most_values: int) -> list[str]:
    """The values as texts; more than `most_values` numbers as ranges with about equal counts."""
    numbers = sorted({value for value in values if isinstance(value, int)})
    if len(numbers) <= most_values:
        return [("yes" if value else "no") if isinstance(value, bool) else str(value) for value in values]
    edges = np.quantile([int(value) for value in values], np.linspace(0, 1, RANGES + 1)[1:-1], method="inverted_cdf")
    ranges: dict[int, list[int]] = {}
    for number in numbers:
        ranges.setdefault(int(np.searchsorted(edges, number)), []).append(number)
    label = {n: f"{group[0]}–{group[-1]}" if len(group) > 1 else str(n) for group in ranges.values() for n in group}
    return [label[int(value)] for value in values]


def _shares(labels: Sequence[str], members: Sequence[str]) -> tuple[ValueShare, ...]:
    """The share of each value, from the labels of all trials and of the front's members."""
    from scipy.stats import fisher_exact

    evaluated, front = Counter(labels), Counter(members)
    found = []
    for value, n in sorted(evaluated.items(), key=lambda item: _order(item[0])):
        # The front against the other trials, and the value against the other values.
        inside, others = front[value], n - front[value]
        table = [[inside, len(members) - inside], [others, len(labels) - len(members) - others]]
        found.append(ValueShare(value, n, inside, float(fisher_exact(np.array(table)).pvalue)))
    return tuple(found)


def _order(value: str) -> tuple[float, str]:
    head = value.partition("–")[0]
    return (float(head) if head.isdigit() else 0.0, value)


def _explained_variance(labels: Sequence[str], target: NDArray[np.float64]) -> ExplainedVariance | None:
    """Of `target` (n,) by the groups of equal `labels` (n,): one-way analysis of variance."""
    from scipy.stats import f_oneway

    of_label = np.array(labels)
    groups = [target[of_label == label] for label in np.unique(of_label)]
    n, k = len(target), len(groups)
    if n < MIN_TRIALS or n <= k or np.ptp(target) == 0:
        return None
    if all(np.ptp(group) == 0 for group in groups):
        return ExplainedVariance(1.0, 0.0)  # F is infinite
    test = f_oneway(*groups)
    # epsilon^2 = (SS_between - df_between * MS_within) / SS_total, in units of MS_within
    between = float(test.statistic) * (k - 1)
    return ExplainedVariance(max(0.0, (between - (k - 1)) / (between + n - k)), float(test.pvalue))
