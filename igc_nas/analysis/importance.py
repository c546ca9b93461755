"""Which choices a study's front prefers, and how much of the errors and latencies each choice explains by itself.

A choice is a value of a stage: its unit, its width, the kernel, the papers' letters. A search is no balanced
experiment: what a sampler likes it tries more often, and together with other things it likes. So these numbers are told
with their n, and as what they are: shares, and variance explained by one choice alone (epsilon squared, which is eta
squared less what chance explains; Kelley 1935).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igc_nas.arch.config import ArchConfig
from igc_nas.study.study import Study

MOST_VALUES = 8
"""A number with more values than this is put into ranges."""
RANGES = 4
LEAST = 10
"""Trials below which nothing is said about what a choice explains."""


@dataclass(frozen=True)
class Share:
    """A value of a choice: how many of the evaluated trials have it, and how many of the front.

    `p` is how often a front drawn from the evaluated trials by lot would differ as much (hypergeometric, two-sided).
    """

    value: str
    evaluated: int
    front: int
    p: float


@dataclass(frozen=True)
class Effect:
    """The share of the variance that a choice explains by itself, 0 to 1, and the p of its F test."""

    share: float
    p: float


@dataclass(frozen=True)
class Choice:
    """A choice that varies among the `evaluated` trials that have it (not every unit has every letter).

    `error` and `latency` (of its logarithm) are None where there are too few trials to tell.
    """

    name: str
    """`stage1.width`, `stem.width`."""
    evaluated: int
    front: int
    shares: tuple[Share, ...]
    error: Effect | None
    latency: Effect | None


def choices_of(study: Study) -> tuple[Choice, ...]:
    """Every choice that varies among the completed trials, stage by stage."""
    members = {candidate.trial for candidate in study.front()}
    known = [settings(candidate.arch) for candidate in study.candidates]
    errors = np.array([candidate.score.error for candidate in study.candidates])
    times = np.log10([candidate.latency.normalised_ms for candidate in study.candidates])
    on_front = np.array([candidate.trial in members for candidate in study.candidates], dtype=bool)
    found = []
    for name in sorted({name for each in known for name in each}, key=_place):
        rows = [row for row, each in enumerate(known) if name in each]
        labels = _labelled([known[row][name] for row in rows])
        if len(set(labels)) > 1:
            effects = (_effect(labels, target[rows]) for target in (errors, times))
            front = on_front[rows]
            shares = _shares(labels, [label for label, is_member in zip(labels, front, strict=True) if is_member])
            found.append(Choice(name, len(rows), int(front.sum()), shares, *effects))
    return tuple(found)


def settings(arch: ArchConfig) -> dict[str, str | int]:
    """What was chosen for an architecture, by name: `stage1.unit`, `stage1.width`, `stage1.L`, ..."""
    found: dict[str, str | int] = {"stem.width": arch.stem.width}
    for number, stage in enumerate(arch.stages, start=1):
        own = {key: value for key, value in stage if value is not None} | {"width": stage.width}
        found |= {f"stage{number}.{key}": value for key, value in own.items()}
    return found


ORDER = ("unit", "width", "blocks", "kernel", "stride", "residual", "L", "M", "depth", "K", "expand", "G1", "G2")


def _place(name: str) -> tuple[int, int]:
    """Stem first, then stage by stage; within a stage what all units have, then the papers' letters."""
    part, _, key = name.partition(".")
    number = int(part.removeprefix("stage")) if part != "stem" else 0
    return number, ORDER.index(key) if key in ORDER else len(ORDER)


def _labelled(values: Sequence[str | int]) -> list[str]:
    """Values as words, in ranges of about equal counts where they are many."""
    numbers = sorted({value for value in values if isinstance(value, int)})
    if len(numbers) <= MOST_VALUES:
        return [_word(value) for value in values]
    edges = np.quantile([int(value) for value in values], np.linspace(0, 1, RANGES + 1)[1:-1], method="inverted_cdf")
    ranges: dict[int, list[int]] = {}
    for number in numbers:
        ranges.setdefault(int(np.searchsorted(edges, number)), []).append(number)
    word = {n: f"{group[0]}–{group[-1]}" if len(group) > 1 else str(n) for group in ranges.values() for n in group}
    return [word[int(value)] for value in values]


def _word(value: str | int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _shares(labels: Sequence[str], members: Sequence[str]) -> tuple[Share, ...]:
    evaluated, front = Counter(labels), Counter(members)
    return tuple(
        Share(value, n, front[value], _by_lot(len(labels), n, len(members), front[value]))
        for value, n in sorted(evaluated.items(), key=lambda item: _order(item[0]))
    )


def _order(value: str) -> tuple[float, str]:
    head = value.partition("–")[0]
    return (float(head) if head.isdigit() else 0.0, value)


def _by_lot(total: int, marked: int, drawn: int, seen: int) -> float:
    """The probability that `drawn` of `total`, `marked` of which are of a kind, hold a count as unlikely as `seen`."""
    counts = range(max(0, drawn - (total - marked)), min(drawn, marked) + 1)
    logs = {k: _log_choose(marked, k) + _log_choose(total - marked, drawn - k) for k in counts}
    whole = _log_choose(total, drawn)
    return min(1.0, sum(math.exp(log - whole) for log in logs.values() if log <= logs[seen] + 1e-9))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _effect(labels: Sequence[str], target: NDArray[np.float64]) -> Effect | None:
    """What `labels` explain of `target` (n,): epsilon squared, not below 0, and the p of the F test."""
    from scipy.special import fdtrc

    _, level = np.unique(np.array(labels), return_inverse=True)
    n, k = len(target), int(level.max()) + 1
    centred = target - target.mean()
    total = float(centred @ centred)
    if n < LEAST or n <= k or total <= 0:
        return None
    sums, counts = np.bincount(level, centred), np.bincount(level)
    between = float((sums**2 / counts).sum())
    within = max(total - between, 0.0)
    noise = within / (n - k)
    share = max(0.0, (between - (k - 1) * noise) / total)
    p = float(fdtrc(k - 1, n - k, between / (k - 1) / noise)) if noise > 0 else 0.0
    return Effect(share, p)
