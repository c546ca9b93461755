"""What samplers are compared on: a study that holds every architecture of its space, or a landscape that is made up.

A landscape's errors are formulas of what an architecture is (its stages as they are written, its costs); none uses what
the known-cost sampler's surrogate is made of. They say what a sampler does with a truth of that shape, and nothing of
images. Constants were written down before any sampler was run on them.
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

from igc_nas.arch.config import ArchConfig, StageConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.errors import StudyError
from igc_nas.space.budget import Budget
from igc_nas.space.search_space import SpaceFile, find_space
from igc_nas.study.defaults import PRUNE_BELOW, default_recipe
from igc_nas.study.objectives import known_values, values
from igc_nas.study.records import Candidate
from igc_nas.study.spec import LatencySpec, StudySpec
from igc_nas.study.study import Study

NOISE = 0.01
"""Standard deviation of what is seen of a landscape's error."""


@dataclass(frozen=True)
class Answer:
    """What evaluating an architecture says: objectives as they are seen and as they are, and what training takes.

    `known` are the objectives but the error. `compute` is samples x MACs up to each of the rungs, then to the end;
    `rungs` the errors there.
    """

    seen: tuple[float, ...]
    true: tuple[float, ...]
    known: tuple[float, ...]
    compute: tuple[float, ...]
    rungs: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Problem:
    """A question with its answers. `spec` has the space, the budget, the objectives and the scale."""

    name: str
    about: str
    spec: StudySpec

    def answer(self, arch: ArchConfig, identity: str, cost: Cost, seed: int) -> Answer | None:
        """What an architecture within the budget gets in the run of a seed; None: it has no answer."""
        raise NotImplementedError

    @property
    def size(self) -> int | None:
        """How many architectures have an answer; None: more than anyone asks for."""
        return None

    @property
    def missing(self) -> int:
        """How many architectures within the budget should have an answer and have none."""
        return 0

    @property
    def stop(self) -> float:
        """The chance below which a training is given up at a rung; 0 where there are no rungs."""
        return 0.0

    def front(self) -> frozenset[str]:
        """The ids of the true front, where all answers are known."""
        return frozenset()

    @cached_property
    def fingerprint(self) -> str:
        """Equal for problems that answer alike: a hash of the question and of answers."""
        question = {
            k: v for k, v in self.spec.identity().items() if k not in ("name", "sampler", "seed", "prune_below")
        }
        text = json.dumps([question, self.spec.to_dict()["bounds"], self.stop, list(self._sample())], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _sample(self) -> Iterator[object]:
        """Answers that tell this problem from another one."""
        raise NotImplementedError


# Tables.


@dataclass(frozen=True, eq=False)
class TabularBenchmark(Problem):
    """The recorded answers of a study. An architecture without one is infeasible, free of charge."""

    study: Study

    @cached_property
    def answers(self) -> dict[str, Answer]:
        """By id, the completed trials within the budget."""
        found = {c.id: self._answer(c) for c in self.study.candidates if self.spec.budget.violation(c.cost) <= 0}
        if not found:
            raise StudyError(f"{self.name} has no completed trial to replay", f"igc-nas search --study {self.name}")
        return found

    def _answer(self, candidate: Candidate) -> Answer:
        seen, score = values(candidate, self.spec.objectives), candidate.score
        complete = len(score.rungs) == len(self.spec.recipe.rungs)
        samples = [*(rung.samples for rung in score.rungs if complete), score.samples]
        return Answer(
            seen,
            seen,
            known_values(candidate.cost, candidate.latency.normalised_ms, self.spec.objectives),
            tuple(float(n * candidate.cost.macs) for n in samples),
            tuple(rung.error for rung in score.rungs if complete),
        )

    def answer(self, arch: ArchConfig, identity: str, cost: Cost, seed: int) -> Answer | None:
        """What the study recorded."""
        return self.answers.get(identity)

    @property
    def size(self) -> int | None:
        """How many architectures have an answer."""
        return len(self.answers)

    @cached_property
    def missing(self) -> int:
        """Architectures within the budgets that the study neither completed nor found too slow."""
        slow = {
            arch_id(t.arch)
            for t in self.study.trials
            if t.state == "infeasible" and t.arch and self.spec.budget.violation(cost_of(t.arch)) <= 0
        }
        return max(0, (self.spec.feasible.count or 0) - len(self.answers.keys() | slow))

    @property
    def stop(self) -> float:
        """The study's own, else the default."""
        return (
            (self.spec.prune_below or PRUNE_BELOW)
            if self.spec.recipe.rungs and "error" in self.spec.objectives
            else 0.0
        )

    def front(self) -> frozenset[str]:
        """The ids of the study's front."""
        return frozenset(candidate.id for candidate in self.study.front())

    def _sample(self) -> Iterator[object]:
        yield from sorted((name, found.seen, found.rungs) for name, found in self.answers.items())


def tabular_benchmark(study: Study) -> TabularBenchmark:
    """A study as a table. Raises `StudyError` for one without a scale, or that lacks most of its space."""
    name = study.spec.name
    if any(objective not in study.spec.bounds for objective in study.spec.objectives):
        raise StudyError(f"{name} has no scale yet", f"igc-nas search --study {name}")
    table = TabularBenchmark(name, "", study.spec, study)
    has, missing = len(table.answers), table.missing
    if missing > has:
        raise StudyError(
            f"{name} holds {has:,} of {has + missing:,} architectures: it is no table",
            "replay on a study of all its space: igc-nas search --sampler all",
        )
    noted = f"{missing:,} of its architectures MISSING" if missing else "complete"
    return replace(table, about=f"table of {has:,} recorded trainings on {study.spec.dataset}, {noted}")


# Landscapes.


@dataclass(frozen=True, eq=False)
class Landscape(Problem):
    """Made-up errors; what is seen of them is blurred by noise that follows from the seed and the architecture."""

    error: Callable[[ArchConfig, Cost], float]

    def answer(self, arch: ArchConfig, identity: str, cost: Cost, seed: int) -> Answer | None:
        """The formula's, in [0.01, 1]."""
        true = _clipped(self.error(arch, cost))
        seen = _clipped(true + NOISE * float(np.random.default_rng([seed, int(identity, 16)]).normal()))
        known = known_values(cost, math.nan, self.spec.objectives)
        at = self.spec.objectives.index("error")
        values_seen, values_true = ((*known[:at], error, *known[at:]) for error in (seen, true))
        return Answer(values_seen, values_true, known, (float(self.spec.recipe.samples * cost.macs),))

    def _sample(self) -> Iterator[object]:
        rng = np.random.default_rng(0)
        for _ in range(16):
            arch = self.spec.feasible.draw(rng)
            yield self.answer(arch, arch_id(arch), cost_of(arch), 0).true  # type: ignore[union-attr]


def landscapes() -> tuple[Landscape, ...]:
    """Made-up errors over igc_cifar within 2 M parameters: error, parameters, MACs."""
    spec = _spec("igc_cifar", Budget(params=2_000_000))
    return tuple(
        Landscape(name, f"SYNTHETIC, truth known, noise {NOISE:g}: {about}", spec, error)
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
    """Falls with log params and log MACs, less and less; stages that do not double in width, or few units, cost."""
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
    """Half of `capacity`'s gain from size, and a sum of waves over one to three choices of the stages each.

    Each wave turns by an angle of its own for every value of its choices: neighbouring values have nothing in common.
    """
    chosen = {(n, key): value for n, stage in enumerate(arch.stages) for key, value in _choices(stage)}
    total = sum(
        height * math.cos(sum(_angle(wave, place, chosen.get(place)) for place in places))
        for wave, (height, places) in enumerate(_waves(len(arch.stages)))
    )
    return 0.60 - 0.20 * _returns(cost) + total


def deceptive(arch: ArchConfig, cost: Cost) -> float:
    """Rises a little with the parameters; falls with the reach of the kernels, and is least at a medium depth."""
    side, reach, stride = 1.0, 1.0, int(arch.stem.stride)
    for stage in arch.stages:
        stride *= stage.stride
        reach += (stage.kernel - 1) * stage.blocks * stride
        side *= 1 - 0.15 * (stage.unit == "igcv3") + 0.10 * (stage.unit == "igcv2")
    depth = math.log2(sum(_depth(stage) for stage in arch.stages) / 14)
    larger = 0.20 * _share(cost.params, 8e3, 2e6)
    return 0.40 + larger - 0.15 * (1 - math.exp(-reach / 40)) + 0.05 * depth**2 + 0.05 * side


def _clipped(error: float) -> float:
    return min(1.0, max(0.01, error))


def _share(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, math.log(value / low) / math.log(high / low)))


def _returns(cost: Cost) -> float:
    """0 for the smallest to 1 for the largest network, rising less and less."""
    size = (_share(cost.params, 8e3, 2e6) + _share(cost.macs, 1.4e6, 5.2e8)) / 2
    return (1 - math.exp(-2.5 * size)) / (1 - math.exp(-2.5))


def _depth(stage: StageConfig) -> int:
    """Units in a row: a residual block is two, but for IGCV3."""
    return stage.blocks * (2 if stage.residual and stage.unit != "igcv3" else 1)


CHOICES = ("unit", "width", "blocks", "kernel", "residual", "own")


def _choices(stage: StageConfig) -> Iterator[tuple[str, object]]:
    common = {"unit": stage.unit, "width": stage.width, "blocks": stage.blocks, "kernel": stage.kernel}
    own = sorted(stage.model_dump(exclude={*common, "stride", "residual"}).items())
    yield from (common | {"residual": stage.residual, "own": tuple(own)}).items()


Place = tuple[int, str]


@lru_cache
def _waves(stages: int) -> tuple[tuple[float, tuple[Place, ...]], ...]:
    """(height, choices): one wave for each choice, then as many over pairs and over triples of choices."""
    rng = np.random.default_rng(20)
    places = [(stage, key) for stage in range(stages) for key in CHOICES]
    found: list[tuple[float, tuple[Place, ...]]] = [(0.012, (place,)) for place in places]
    for size, height in ((2, 0.010), (3, 0.006)):
        for _ in places:
            picked = rng.choice(len(places), size=size, replace=False)
            found.append((height, tuple(places[i] for i in picked)))
    return tuple(found)


@lru_cache(maxsize=65_536)
def _angle(wave: int, place: Place, value: object) -> float:
    return 2 * math.pi * zlib.crc32(f"{wave}/{place}/{value}".encode()) / 2**32


@lru_cache
def _normal(*key: object) -> float:
    return float(np.random.default_rng(zlib.crc32(repr(key).encode())).normal())
