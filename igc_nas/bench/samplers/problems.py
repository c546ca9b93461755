"""Problems on which samplers are compared: tabular benchmarks, and synthetic landscapes.

A tabular benchmark is a study that holds every architecture of its space. A landscape computes the error by a formula
of the stages' parameters and the costs; no formula uses the features of the known-cost sampler's surrogate. Landscapes
show how a sampler behaves on an error of a known shape, and nothing about images. Their constants were fixed before any
sampler was run on them.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.arch.stages import StageConfig
from igc_nas.errors import StudyError
from igc_nas.space.budget import Budget
from igc_nas.space.search_space import SpaceFile, find_space
from igc_nas.study.defaults import PRUNE_BELOW, default_recipe
from igc_nas.study.objectives import known_values, values
from igc_nas.study.plan import Sizes, Speed
from igc_nas.study.records import Candidate
from igc_nas.study.spec import LatencySpec, StudySpec
from igc_nas.study.study import Study

NOISE = 0.01
"""Standard deviation of the noise on a landscape's observed error."""


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


_SINCE_0_1: dict[str, object] = {"cutout": 0, "mixup": 0.0, "decay_norms": True}


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


# Landscapes.


@dataclass(frozen=True, eq=False)
class Landscape(Problem):
    """Synthetic errors. The observed error has noise added, which is a function of the seed and the architecture."""

    error: Callable[[ArchConfig, Cost], float]

    def evaluate(self, arch: ArchConfig, identity: str, cost: Cost, seed: int) -> Outcome | None:
        """The outcome by the formula, its error in [0.01, 1]."""
        true_error = _clipped(self.error(arch, cost))
        noise = NOISE * float(np.random.default_rng([seed, int(identity, 16)]).normal())
        known = known_values(cost, math.nan, self.spec.objectives)
        at = self.spec.objectives.index("error")
        observed, true = ((*known[:at], e, *known[at:]) for e in (_clipped(true_error + noise), true_error))
        return Outcome(observed, true, known, (float(self.spec.recipe.samples * cost.macs),))

    def _sample(self) -> Iterator[object]:
        rng = np.random.default_rng(0)
        for _ in range(16):
            arch = self.spec.feasible.draw(rng)
            yield self.evaluate(arch, arch_id(arch), cost_of(arch), 0).true  # type: ignore[union-attr]


def landscapes() -> tuple[Landscape, ...]:
    """Three synthetic landscapes over igc_cifar within 2 M parameters; objectives error, parameters, MACs."""
    spec = _spec("igc_cifar", Budget(params=2_000_000))
    return tuple(
        Landscape(name, f"SYNTHETIC, true errors known, noise {NOISE:g}: {about}", spec, error)
        for name, about, error in (
            ("capacity", "smooth; size with diminishing returns, balance of the stages, units", capacity),
            ("rugged", "as much from interactions of single choices as from size", rugged),
            ("deceptive", "larger is slightly worse; depth and reach decide", deceptive),
        )
    )


def _spec(space: str, budget: Budget) -> StudySpec:
    path = find_space(space)
    spec = StudySpec(
        name="landscape",
        space_name=path.stem,
        classes=10,
        dataset="none (synthetic landscape)",
        dataset_sha256="0" * 64,
        objectives=("error", "params", "macs"),
        budget=budget,
        recipe=default_recipe("cpu", rungs=()),
        latency=LatencySpec(device="none"),
        space=SpaceFile.load(path),
    )
    return spec.model_copy(update={"bounds": spec.known_bounds()})


def capacity(arch: ArchConfig, cost: Cost) -> float:
    """An error that falls with log params and log MACs, with diminishing returns.

    It is higher for stages that do not double in width, for stages of unequal depth, and for more than 6 blocks without
    a shortcut; each unit has an offset of its own in each stage.
    """
    uneven = [abs(math.log2(after.width / before.width) - 1) for before, after in pairwise(arch.stages)]
    blocks = [math.log2(_depth(stage)) for stage in arch.stages]
    offsets = [0.02 * _normal("unit", n, stage.unit) for n, stage in enumerate(arch.stages)]
    plain = sum(stage.blocks for stage in arch.stages if not stage.residual)
    return (
        0.70
        - 0.40 * _returns(cost)
        + 0.03 * sum(uneven)
        + 0.02 * (max(blocks) - min(blocks))
        + 0.006 * max(0, plain - 6)
        + sum(offsets)
    )


def rugged(arch: ArchConfig, cost: Cost) -> float:
    """An error with half of `capacity`'s gain from size, and a sum of cosines over one to three parameters each.

    Each cosine adds an angle for every value of its parameters, drawn by a hash: neighbouring values are unrelated.
    """
    chosen = {(n, key): value for n, stage in enumerate(arch.stages) for key, value in _parameters(stage)}
    total = sum(
        amplitude * math.cos(sum(_angle(wave, key, chosen.get(key)) for key in keys))
        for wave, (amplitude, keys) in enumerate(_waves(len(arch.stages)))
    )
    return 0.60 - 0.20 * _returns(cost) + total


def deceptive(arch: ArchConfig, cost: Cost) -> float:
    """An error that rises a little with the parameters, falls with the receptive field, and is lowest at medium depth.

    A sampler that follows the parameter count is misled.
    """
    unit_effect, receptive_field, stride = 1.0, 1.0, int(arch.stem.stride)
    for stage in arch.stages:
        stride *= stage.stride
        receptive_field += (stage.kernel - 1) * stage.blocks * stride
        unit_effect *= 1 - 0.15 * (stage.unit == "igcv3") + 0.10 * (stage.unit == "igcv2")
    depth = math.log2(sum(_depth(stage) for stage in arch.stages) / 14)
    larger = 0.20 * _share(cost.params, 8e3, 2e6)
    field_effect = 1 - math.exp(-receptive_field / 40)
    return 0.40 + larger - 0.15 * field_effect + 0.05 * depth**2 + 0.05 * unit_effect


def _clipped(error: float) -> float:
    return min(1.0, max(0.01, error))


def _share(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, math.log(value / low) / math.log(high / low)))


def _returns(cost: Cost) -> float:
    """From 0 for the smallest to 1 for the largest network, with diminishing returns."""
    size = (_share(cost.params, 8e3, 2e6) + _share(cost.macs, 1.4e6, 5.2e8)) / 2
    return (1 - math.exp(-2.5 * size)) / (1 - math.exp(-2.5))


def _depth(stage: StageConfig) -> int:
    """The number of units in a row: a residual block has two, except in IGCV3."""
    return stage.blocks * (2 if stage.residual and stage.unit != "igcv3" else 1)


PARAMETERS = ("unit", "width", "blocks", "kernel", "residual", "own")


OWN = frozenset(("L", "M", "depth", "K", "expand", "G1", "G2"))
"""The parameters that a unit of `igc_cifar` has for itself."""


def _parameters(stage: StageConfig) -> Iterator[tuple[str, object]]:
    common = {"unit": stage.unit, "width": stage.width, "blocks": stage.blocks, "kernel": stage.kernel}
    own = sorted((key, value) for key, value in stage.model_dump().items() if key in OWN)
    yield from (common | {"residual": stage.residual, "own": tuple(own)}).items()


Key = tuple[int, str]
"""(stage, parameter)."""


@lru_cache
def _waves(stages: int) -> tuple[tuple[float, tuple[Key, ...]], ...]:
    """(amplitude, keys): one wave for each parameter, then the same number over pairs and over triples of them."""
    rng = np.random.default_rng(20)
    keys = [(stage, name) for stage in range(stages) for name in PARAMETERS]
    found: list[tuple[float, tuple[Key, ...]]] = [(0.012, (key,)) for key in keys]
    for size, amplitude in ((2, 0.010), (3, 0.006)):
        for _ in keys:
            drawn = rng.choice(len(keys), size=size, replace=False)
            found.append((amplitude, tuple(keys[i] for i in drawn)))
    return tuple(found)


@lru_cache(maxsize=65_536)
def _angle(wave: int, key: Key, value: object) -> float:
    return 2 * math.pi * zlib.crc32(f"{wave}/{key}/{value}".encode()) / 2**32


@lru_cache
def _normal(*key: object) -> float:
    return float(np.random.default_rng(zlib.crc32(repr(key).encode())).normal())
