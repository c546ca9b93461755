"""Problems on which samplers are compared, and tabular benchmarks: studies that hold every architecture of a space.

For problems whose errors are computed see `igc_nas.bench.samplers.landscapes`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.errors import StudyError
from igc_nas.study.defaults import PRUNE_BELOW
from igc_nas.study.objectives import known_values, values
from igc_nas.study.plan import Sizes, Speed
from igc_nas.study.records import Candidate
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import Study

SPEED = Speed(step_s=0.0, convolution_s=0.0, mac_s=2.5e-11, activation_s=4e-9, trial_s=2.2)
"""Seconds of a replayed trial, its virtual time: least squares over the 60 trials of `studies/igc_cifar10_2m` (one core
of a Xeon with AMX; 8 in 10 trials took 0.84 to 1.28 times as long as this says)."""


@dataclass(frozen=True)
class Outcome:
    """The result of evaluating an architecture: the objectives as `observed` by a sampler and their `true` values.

    `known_costs` are the objectives without the error. `compute` is samples x MACs up to each rung, and last to the
    end; `rung_errors` are the errors at the rungs.
    """

    observed: tuple[float, ...]
    true: tuple[float, ...]
    known_costs: tuple[float, ...]
    compute: tuple[float, ...]
    rung_errors: tuple[float, ...] = ()


_TEXTS_OF_0_1 = {
    "igc_cifar": {
        "intent": "CIFAR-sized networks from about 20 k to beyond 2 M parameters; units may differ between stages"
    }
}
_SINCE_0_1: dict[str, object] = {"cutout": 0, "mixup": 0.0, "decay_norms": True, "augment": "batch"}


@dataclass(frozen=True, eq=False)
class Problem:
    """A search problem whose results are known. `spec` has the space, the budget, the objectives and the bounds."""

    name: str
    about: str
    spec: StudySpec

    def evaluate(self, arch: ArchConfig, identity: str, cost: Cost, seed: int) -> Outcome | None:
        """The outcome of an architecture within the budget, in the run of a seed; None: the problem has none for it."""
        raise NotImplementedError

    def seconds(self, arch: ArchConfig) -> float:
        """The virtual time of a trial."""
        return float(SPEED.trials_s(Sizes.of([arch]), self.spec.recipe, self.spec.space.input[1])[0])

    @property
    def size(self) -> int | None:
        """The number of architectures that have an outcome; None: all of a large space."""
        return None

    @property
    def missing(self) -> int:
        """The number of architectures within the budget whose outcome should be recorded and is not."""
        return 0

    @property
    def prune_below(self) -> float:
        """The probability of ending on the front below which a training is pruned at a rung; 0 without rungs."""
        return 0.0

    def front(self) -> frozenset[str]:
        """The ids of the true front, where all outcomes are known; else none."""
        return frozenset()

    @cached_property
    def fingerprint(self) -> str:
        """Equal for problems with equal outcomes: a hash of the spec and of outcomes."""
        question = {
            k: v for k, v in self.spec.identity().items() if k not in ("name", "sampler", "seed", "prune_below")
        }
        # The schema's version is no part of the problem; 1 keeps the fingerprints in files of older versions valid.
        question["schema"] = 1
        question["space"] = self.spec.space.to_dict() | _TEXTS_OF_0_1.get(self.spec.space_name, {})  # likewise
        # Keys that version 0.1 had not, at the values by which it trained, likewise.
        question["recipe"] = {k: v for k, v in question["recipe"].items() if _SINCE_0_1.get(k, ...) != v}
        hashed = [question, self.spec.to_dict()["bounds"], self.prune_below, list(self._sample())]
        text = json.dumps(hashed, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _sample(self) -> Iterator[object]:
        """Outcomes that distinguish this problem from others, for its fingerprint."""
        raise NotImplementedError


# Tabular benchmarks.


@dataclass(frozen=True, eq=False)
class TabularBenchmark(Problem):
    """The recorded outcomes of a study. An architecture without one is infeasible, and costs no evaluation."""

    study: Study

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """The outcomes of the completed trials within the budget, by id."""
        found = {c.id: self._outcome(c) for c in self.study.candidates if self.spec.budget.violation(c.cost) <= 0}
        if not found:
            raise StudyError(f"{self.name} has no completed trial to replay", f"igc-nas search --study {self.name}")
        return found

    def _outcome(self, candidate: Candidate) -> Outcome:
        observed, score = values(candidate, self.spec.objectives), candidate.score
        complete = len(score.rungs) == len(self.spec.recipe.rungs)
        samples = [*(rung.samples for rung in score.rungs if complete), score.samples]
        return Outcome(
            observed=observed,
            true=observed,
            known_costs=known_values(candidate.cost, candidate.latency.normalised_ms, self.spec.objectives),
            compute=tuple(float(n * candidate.cost.macs) for n in samples),
            rung_errors=tuple(rung.error for rung in score.rungs if complete),
        )

    def evaluate(self, arch: ArchConfig, identity: str, cost: Cost, seed: int) -> Outcome | None:
        """The recorded outcome."""
        return self.outcomes.get(identity)

    @property
    def size(self) -> int | None:
        """The number of recorded outcomes."""
        return len(self.outcomes)

    @cached_property
    def missing(self) -> int:
        """The architectures within the budget that the study neither completed nor found too slow."""
        slow = {
            arch_id(t.arch)
            for t in self.study.trials
            if t.state == "infeasible" and t.arch and self.spec.budget.violation(cost_of(t.arch)) <= 0
        }
        return max(0, (self.spec.feasible.count or 0) - len(self.outcomes.keys() | slow))

    @property
    def prune_below(self) -> float:
        """The study's own value, else the default."""
        return (
            (self.spec.prune_below or PRUNE_BELOW)
            if self.spec.recipe.rungs and "error" in self.spec.objectives
            else 0.0
        )

    def front(self) -> frozenset[str]:
        """The ids of the study's front."""
        return frozenset(candidate.id for candidate in self.study.front())

    def _sample(self) -> Iterator[object]:
        yield from sorted((id_, outcome.observed, outcome.rung_errors) for id_, outcome in self.outcomes.items())


def tabular_benchmark(study: Study) -> TabularBenchmark:
    """A study as a tabular benchmark.

    Raises `StudyError` for a study without bounds, or one that lacks more than half of its space.
    """
    name = study.spec.name
    if any(objective not in study.spec.bounds for objective in study.spec.objectives):
        raise StudyError(f"{name} has no bounds yet", f"igc-nas search --study {name}")
    benchmark = TabularBenchmark(name, "", study.spec, study)
    has, missing = len(benchmark.outcomes), benchmark.missing
    if missing > has:
        raise StudyError(
            f"{name} holds {has:,} of {has + missing:,} architectures: too few for a tabular benchmark",
            "make a study of the whole space: igc-nas search --sampler brute-force",
        )
    noted = f"{missing:,} of its architectures MISSING" if missing else "complete"
    return replace(benchmark, about=f"table of {has:,} recorded trainings on {study.spec.dataset}, {noted}")
