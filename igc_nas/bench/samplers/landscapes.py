"""Problems whose errors are computed: landscapes fitted to recorded trainings, and a synthetic one.

A fitted landscape predicts the error of any architecture of a space by boosted trees over the choices of the space,
which are neither the model class nor the features of the known-cost sampler's surrogate. What the trees leave
unexplained in cross-validation, beyond the noise of a seed, is added as a fixed deviation of each architecture: so the
landscape is as rough as the recorded errors. The noise of a seed is measured: 40 architectures of `igc_table` were
trained twice. All constants were fixed before any sampler was run on them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.arch.stages import StageConfig
from igc_nas.bench.samplers.problems import Outcome, Problem
from igc_nas.bench.samplers.trees import BoostedTrees, Floats, left_out
from igc_nas.io.resources import shipped
from igc_nas.samplers.cross_validation import spearman
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import Feasible
from igc_nas.space.search_space import SearchSpace, SpaceFile, find_space
from igc_nas.study.defaults import PRUNE_BELOW, default_recipe
from igc_nas.study.objectives import known_values
from igc_nas.study.records import Candidate
from igc_nas.study.spec import LatencySpec, Recipe, StudySpec
from igc_nas.study.study import Study, load_study

LEAST, MOST = 0.01, 1.0
"""Errors are within these."""
LISTED = 10_000
"""The architectures of a space of at most this number can all be evaluated: it has a size, as a table has."""


@dataclass(frozen=True)
class Spread:
    """A standard deviation that changes with the size: exp(`level` + `slope` * log(params / `centre`))."""

    level: float
    slope: float
    centre: float

    def __call__(self, params: float) -> float:
        """The standard deviation of a network."""
        return math.exp(self.level + self.slope * math.log(params / self.centre))

    @classmethod
    def fit(cls, deviations: Floats, params: Floats) -> Spread:
        """The one of highest likelihood for normal `deviations` (n,) of mean 0."""
        from scipy.optimize import minimize

        centre = float(np.exp(np.log(params).mean()))
        sizes, squares = np.log(params / centre), deviations**2

        def loss(found: Floats) -> float:
            logs = found[0] + found[1] * sizes
            return float((logs + squares / (2 * np.exp(2 * logs))).sum())

        level, slope = minimize(loss, [math.log(deviations.std()), 0.0], method="Nelder-Mead").x
        return cls(float(level), float(slope), centre)


@dataclass(frozen=True, eq=False)
class Landscape(Problem):
    """Errors by a function of the architecture: the true ones at each rung of the recipe and, last, at its end.

    `noise` is the standard deviation of the observed final error, by the number of parameters; at a rung it is in
    proportion to the error there. It is a function of the seed and the architecture.
    """

    errors: Callable[[ArchConfig, Cost], Sequence[float]]
    noise: Callable[[float], float]

    def evaluate(self, arch: ArchConfig, identity: str, cost: Cost, seed: int) -> Outcome | None:
        """The outcome, with errors in [`LEAST`, `MOST`]."""
        true = np.clip(self.errors(arch, cost), LEAST, MOST)
        normal = np.random.default_rng([seed, int(identity, 16)]).normal(size=len(true))[::-1]
        observed = np.clip(true + self.noise(cost.params) * normal * true / true[-1], LEAST, MOST)
        known = known_values(cost, math.nan, self.spec.objectives)
        at = self.spec.objectives.index("error")
        samples = [*self.spec.recipe.rungs, self.spec.recipe.samples]
        return Outcome(
            observed=(*known[:at], float(observed[-1]), *known[at:]),
            true=(*known[:at], float(true[-1]), *known[at:]),
            known_costs=known,
            compute=tuple(float(n * cost.macs) for n in samples),
            rung_errors=tuple(map(float, observed[:-1])),
        )

    @property
    def size(self) -> int | None:
        """The number of architectures of a small space."""
        return self.spec.feasible.count if self.spec.search_space.size <= LISTED else None

    @property
    def prune_below(self) -> float:
        """The default where the recipe has rungs."""
        return PRUNE_BELOW if self.spec.recipe.rungs else 0.0

    def _sample(self) -> Iterator[object]:
        rng = np.random.default_rng(0)
        for _ in range(16):
            arch = self.spec.feasible.draw(rng)
            yield self.evaluate(arch, arch_id(arch), cost_of(arch), 0).true  # type: ignore[union-attr]


def landscapes() -> tuple[Landscape, ...]:
    """Two that are fitted to recorded trainings, one of late bloomers, one synthetic; objectives error, params, MACs.

    Fitting and cross-validating takes some seconds.
    """
    small, both = _recorded("igc_table"), _recorded("igc_cifar10_2m", "igc_cifar10")
    noise = _seed_noise()
    table, cifar = FittedErrors.fit(small, noise), FittedErrors.fit(both, noise)
    short = default_recipe("cpu", rungs=())
    long = default_recipe("cpu", epochs=6, train_size=40_000, held_out=5000, batch=128, rungs=LATE_RUNGS)
    of_table = _spec("igc_table", Budget(), short)
    of_cifar = _spec("igc_cifar", Budget(params=2_000_000), short)
    of_long = of_cifar.model_copy(update={"recipe": long})
    late = LateBloomers.fit(cifar, of_cifar.feasible)
    return (
        Landscape("igc_table, fitted", table.about(noise), of_table, _Final(table), noise),
        Landscape("igc_cifar, fitted", cifar.about(noise), of_cifar, _Final(cifar), noise),
        Landscape("late bloomers", late.about, of_long, late, _Scaled(noise, LATE_NOISE)),
        Landscape("rugged", RUGGED, of_cifar, rugged, _Scaled(None, 0.01)),
    )


@dataclass(frozen=True)
class _Scaled:
    """A noise in proportion to another one; without one, the same for all sizes."""

    noise: Spread | None
    factor: float

    def __call__(self, params: float) -> float:
        return self.factor * (self.noise(params) if self.noise else 1.0)


def _spec(space: str, budget: Budget, recipe: Recipe) -> StudySpec:
    path = find_space(space)
    spec = StudySpec(
        name="landscape",
        space_name=path.stem,
        classes=10,
        dataset="none (synthetic landscape)",
        dataset_sha256="0" * 64,
        objectives=("error", "params", "macs"),
        budget=budget,
        recipe=recipe,
        latency=LatencySpec(device="none"),
        space=SpaceFile.load(path),
    )
    return spec.model_copy(update={"bounds": spec.known_bounds()})


# Fitted to recorded trainings.


def _recorded(*names: str) -> tuple[Study, ...]:
    return tuple(load_study(shipped("studies") / name) for name in names)


def _seed_noise() -> Spread:
    """Of a training's error: half of the squared differences of pairs of trainings by two seeds, without their mean.

    The two seeds hold out different images, which moves all errors alike: that is no noise between architectures.
    """
    first, second = _recorded("igc_table", "igc_table/seed1")
    errors = {candidate.id: candidate.score.error for candidate in first.candidates}
    pairs = [(c, c.score.error - errors[c.id]) for c in second.candidates if c.id in errors]
    differences = np.array([difference for _, difference in pairs])
    params = np.array([candidate.cost.params for candidate, _ in pairs], dtype=float)
    return Spread.fit((differences - differences.mean()) / math.sqrt(2), params)


@dataclass(frozen=True, eq=False)
class FittedErrors:
    """The error of an architecture by trees over the choices of its space, plus a fixed deviation of its own.

    The last column of the trees' inputs is the study: errors are predicted for the recipe of the first one. `rank` and
    `rmse` are Spearman's correlation and the error of 10-fold cross-validation over the `n` trials; `spread` is the
    standard deviation of their errors, and `unexplained` that of the cross-validation's residuals, by their median:
    the few networks that did not learn in so short a training are not what sets two good ones apart.
    """

    space: SearchSpace
    trees: BoostedTrees
    noise: Spread
    unexplained: float
    names: tuple[str, ...]
    n: int
    rank: float
    rmse: float
    spread: float

    @classmethod
    def fit(cls, studies: Sequence[Study], noise: Spread) -> FittedErrors:
        """Fitted to the complete trials of studies of one space."""
        space = studies[0].spec.search_space
        trials: list[tuple[int, Candidate]] = [(n, c) for n, study in enumerate(studies) for c in study.candidates]
        inputs = np.array([[*_choices(space, candidate.arch), n] for n, candidate in trials], dtype=float)
        errors = np.array([candidate.score.error for _, candidate in trials])
        predicted = left_out(inputs, errors)
        return cls(
            space=space,
            trees=BoostedTrees(inputs, errors),
            noise=noise,
            unexplained=1.4826 * float(np.median(np.abs(errors - predicted))),
            names=tuple(study.spec.name for study in studies),
            n=len(trials),
            rank=spearman(predicted, errors) or 0.0,
            rmse=float(np.sqrt(np.mean((errors - predicted) ** 2))),
            spread=float(errors.std()),
        )

    def __call__(self, arch: ArchConfig, cost: Cost) -> float:
        """The true error."""
        known = float(self.trees(np.array([[*_choices(self.space, arch), 0.0]]))[0])
        own = math.sqrt(max(0.0, self.unexplained**2 - self.noise(cost.params) ** 2))
        return known + own * _normal("own", arch_id(arch))

    def about(self, noise: Spread) -> str:
        """What it is fitted to, and how well."""
        return (
            f"boosted trees fitted to {self.n} trainings of {' and '.join(self.names)}; left out in 10 folds: rank "
            f"correlation {self.rank:.2f}, rmse {100 * self.rmse:.1f} points of a spread of {100 * self.spread:.1f}; "
            f"noise of a seed {100 * noise(20_000):.1f} points at 20 k parameters, {100 * noise(1e6):.1f} at 1 M"
        )


def _choices(space: SearchSpace, arch: ArchConfig) -> Iterator[float]:
    """The parameters of an architecture as numbers: the index of each choice."""
    encoded: dict[str, Any] = space.encode(arch)
    for name, choice in space.parameters.items():
        yield float(encoded[name] if isinstance(choice, int) else choice.index(encoded[name]))


@dataclass(frozen=True)
class _Final:
    """The errors of a training without rungs."""

    error: FittedErrors

    def __call__(self, arch: ArchConfig, cost: Cost) -> tuple[float]:
        return (self.error(arch, cost),)


# Late bloomers.

SHORT_IMAGES = 6000
LATE_RUNGS = (30_000, 80_000)
LATE_RECORDED = (
    (19_962, 0.352, None),
    (177_178, 0.314, 0.232),
    (369_018, 0.332, None),
    (621_994, 0.353, None),
    (1_045_402, 0.353, None),
    (1_308_722, 0.324, 0.216),
)
"""(params, error after 80,000, after 240,000 images), 16 px, one seed: six networks of `studies/igc_cifar10_2m`."""
DRAWN, OF_A_SIZE = 600, 40
"""Networks drawn to find how good the best of a size are, and the number of those that count as of one size."""
LATE_NOISE = 0.4
"""Of the noise of a short training: errors are that much lower."""


@dataclass(frozen=True, eq=False)
class LateBloomers:
    """Errors in proportion to the short training's: each is `short`'s, times the error of a good network of its size
    after n images over that after 6,000.

    `good` are the logarithms of those errors after 6,000, 80,000 and 240,000 images: polynomials of log(params).
    """

    about = (
        "the same at 240,000 images, rungs at 30,000 and 80,000: large networks pass those of 200 k parameters after "
        "the last rung, as recorded for 6 networks of igc_cifar10_2m"
    )

    short: FittedErrors
    good: tuple[Floats, Floats, Floats]

    @classmethod
    def fit(cls, short: FittedErrors, feasible: Feasible) -> LateBloomers:
        """By least squares: quadratics, through the best tenth of `short` over sizes and through the six networks after
        80,000 images; from there on a power of the images, its exponent a line through the two that went on."""
        rng = np.random.default_rng(0)
        drawn = [(cost_of(arch), arch) for arch in (feasible.draw_stratified(rng) for _ in range(DRAWN))]
        drawn.sort(key=lambda pair: pair[0].params)
        logs = np.log([[cost.params, short(arch, cost)] for cost, arch in drawn]).reshape(-1, OF_A_SIZE, 2)
        first = np.polyfit(np.median(logs[:, :, 0], axis=1), np.quantile(logs[:, :, 1], 0.1, axis=1), 2)
        sizes, at_rung = np.log([row[:2] for row in LATE_RECORDED]).T
        middle = np.polyfit(sizes, at_rung, 2)
        falls = np.array([[math.log(size), math.log(end / at)] for size, at, end in LATE_RECORDED if end])
        fall = np.polyfit(falls[:, 0], falls[:, 1], 1)
        return cls(short, (first, middle, middle + np.array([0.0, *fall])))

    def __call__(self, arch: ArchConfig, cost: Cost) -> tuple[float, ...]:
        """The true errors after `LATE_RUNGS` and 240,000 images."""
        first, middle, last = (float(np.polyval(line, math.log(cost.params))) for line in self.good)
        share = math.log(LATE_RUNGS[0] / SHORT_IMAGES) / math.log(LATE_RUNGS[1] / SHORT_IMAGES)
        logs = np.array([first + share * (middle - first), middle, last])
        return tuple(self.short(arch, cost) * np.exp(logs - first))


# Synthetic.


RUGGED = "SYNTHETIC, noise 0.01: as much from interactions of single choices as from size"


def rugged(arch: ArchConfig, cost: Cost) -> tuple[float]:
    """An error that falls with log params and log MACs, with diminishing returns, and a sum of cosines over choices.

    Each cosine adds an angle for every value of its one to three parameters, drawn by a hash: neighbouring values are
    unrelated.
    """
    chosen = {(n, key): value for n, stage in enumerate(arch.stages) for key, value in _parameters(stage)}
    total = sum(
        amplitude * math.cos(sum(_angle(wave, key, chosen.get(key)) for key in keys))
        for wave, (amplitude, keys) in enumerate(_waves(len(arch.stages)))
    )
    return (0.60 - 0.20 * _returns(cost) + total,)


def _share(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, math.log(value / low) / math.log(high / low)))


def _returns(cost: Cost) -> float:
    """From 0 for the smallest to 1 for the largest network, with diminishing returns."""
    size = (_share(cost.params, 8e3, 2e6) + _share(cost.macs, 1.4e6, 5.2e8)) / 2
    return (1 - math.exp(-2.5 * size)) / (1 - math.exp(-2.5))


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
