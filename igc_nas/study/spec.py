"""What a study searches, on which data, by which recipe, for which objectives, as frozen records.

A `StudySpec` is stored as the study's `study.toml`. Two searches are of one study only where their `identity` is equal.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from igc_nas.arch.config import Image
from igc_nas.arch.cost import cost_of
from igc_nas.data.packed import ImageSet
from igc_nas.errors import ConfigError, IgcNasError, InfeasibleError, StudyError
from igc_nas.io.records import Frozen, parse_toml
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import Feasible, feasible
from igc_nas.space.search_space import METRICS, SearchSpace, SpaceFile, search_space
from igc_nas.study.objectives import OBJECTIVES, parse_objectives
from igc_nas.study.plan import Plan
from igc_nas.study.records import Candidate, Latency, Ms
from igc_nas.study.schema import SCHEMA, current_spec

Goal = Literal["best-error", "front"]
LEAST_ERROR_SHARE: dict[Goal, float] = {"best-error": 2 / 3, "front": 1 / 3}
"""How much of the scale of each cost lies beyond the budget: what a lower least error counts, whatever it costs.

With the reference point at the budget itself, a network near the budget adds next to nothing to the hypervolume,
however low its error is, and a search for hypervolume never trains one.
"""
SamplerName = Literal["known-cost", "stratified", "random", "tpe", "nsga2", "evolution", "brute-force"]
DtypeName = Literal["float32", "bfloat16", "float16"]
RuntimeName = Literal["eager", "compile", "onnxruntime", "tensorrt", "openvino", "native"]
WITH_OWN_STREAM: tuple[RuntimeName, ...] = ("onnxruntime", "tensorrt")
"""ONNX Runtime's: they launch their kernels on a stream of their own, and have a setting of their own for TF32."""
LatencyForms = Literal["within-budget", "any", "factored"]
Bound = Annotated[tuple[float, float], Field(strict=False)]


class Schedule(Frozen):
    """How a network is trained: SGD with Nesterov momentum and a one-cycle learning rate that peaks at `lr`.

    `forms`: networks train in the form that the device runs fastest, or in the factored one. Both compute the same
    function of the same parameters; they differ in rounding. search_spaces/README.md has every key with its unit.
    """

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch: Annotated[int, Field(ge=1, le=65_536)]
    lr: Annotated[float, Field(gt=0, le=100)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the steps in which the learning rate rises to `lr`; then it falls to 0 along a cosine."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    crop: Annotated[int, Field(ge=0, le=64)] = 4
    """Pixels of padding for the random crop; 0 is no crop."""
    flip: Literal[True, False, "alternating"] = True
    """Whether images are mirrored at random; `alternating`: at random in the first epoch, then the other half in turn
    with the first (Jordan 2024, arXiv 2404.00498, section 3.3)."""
    augment: Literal["batch", "epoch"] = "batch"
    """Whether each batch is cropped and mirrored for itself, or all images at once at the start of each epoch."""
    cutout: Annotated[int, Field(ge=0, le=1024)] = 0
    """Side in pixels of the square that is cut out of each training image; 0: none."""
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Pairs of images are mixed in shares of Beta(mixup, mixup); 0: not mixed."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The scored weights are an exponential average with this decay per step; 0: no average."""
    decay_norms: bool = True
    """Whether weight decay applies to BN's gamma and beta and to biases, too."""
    dtype: DtypeName = "float32"
    """The type of convolutions and products; weights, BN statistics and the optimiser's state are float32."""
    forms: Literal["fastest", "factored"] = "factored"

    @field_validator("flip", mode="before")
    @classmethod
    def _flip_is_no_number(cls, flip: object) -> object:
        if not (isinstance(flip, bool) or flip == "alternating"):  # a Literal takes 1 for True
            raise ValueError("must be true, false or alternating")
        return flip


class Recipe(Schedule):
    """The proxy training, the same for every trial of a study.

    An epoch has `train_size` images (stratified, seeded) at `resolution` x `resolution` pixels; the score is the error
    on `held_out` other images of the training set.
    """

    train_size: Annotated[int, Field(ge=1)]
    held_out: Annotated[int, Field(ge=1)]
    resolution: Annotated[int, Field(ge=4, le=1024)]
    rungs: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, max_length=16)] = ()
    """Numbers of samples seen, ascending, at which a training is scored before its end (and may be pruned).

    The score is taken after the batch that the rung falls into: no other rung's batch, and not the last one.
    """

    @model_validator(mode="after")
    def _rungs_ascend(self) -> Self:
        if any(low >= high for low, high in pairwise((*self.rungs, self.samples))):
            raise ValueError(f"rungs {list(self.rungs)} must ascend and stay below the recipe's {self.samples} samples")
        if any(low >= high for low, high in pairwise((*map(self.step_of, self.rungs), self.steps))):
            raise ValueError(
                f"rungs {list(self.rungs)} must fall into different batches of {self.batch}, "
                f"before the last of the recipe's {self.steps}"
            )
        return self

    @property
    def steps(self) -> int:
        """Batches of one training; images left over at the end of an epoch are skipped."""
        return self.epochs * max(1, self.train_size // self.batch)

    def step_of(self, samples: int) -> int:
        """The number of steps after which `samples` samples have been seen."""
        return math.ceil(samples / min(self.batch, self.train_size))

    @property
    def samples(self) -> int:
        """Images of all epochs of one training."""
        return self.epochs * self.train_size


class LatencySpec(Frozen):
    """How latency is measured.

    `forms`: a network may run in any form whose parameters are within the study's budget, in any form at all, or only
    in the factored one. `remote`: a command measures on another machine; it is given with each run and never stored.
    """

    device: str
    """The name of the device that is measured."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Images of one pass. Latencies, budgets on them and the reference time are of one pass."""
    threads: Annotated[int, Field(ge=1)] = 1
    runtime: RuntimeName = "eager"
    forms: LatencyForms = "factored"
    remote: bool = False
    dtype: DtypeName = "float32"
    """Of weights, activations and the reference network's; a 16-bit one on a GPU only."""
    memory_format: Literal["contiguous", "channels_last"] = "channels_last"
    input: Image = (3, 32, 32)
    cuda_graph: bool = False
    """On a GPU: replay a captured graph, so that the time is that of the kernels, not of their launch from Python."""
    cold_cache: bool = False
    """On a GPU: overwrite its L2 cache before every pass."""


class Calibration(Frozen):
    """Measured once, before a study's first trial, and then fixed: the reference time and the scale of latency."""

    reference_ms: Ms
    smallest: Latency
    """Of the feasible architecture with the fewest MACs."""
    largest: Latency
    """Of the feasible architecture with the most MACs."""


class Target(Frozen):
    """The length of training at which a study predicts errors, and the longer trainings that back the predictions.

    `share` of the time is for trainings by `recipe`, of networks that the short ones and the predictions single out.
    """

    images: Annotated[int, Field(ge=1)]
    """Errors are predicted for trainings of this number of images; those by `recipe` may be shorter."""
    recipe: Recipe
    share: Annotated[float, Field(gt=0, lt=1)]


class StudySpec(Frozen):
    """The settings that all trials of a study share.

    `bounds` are the region of interest in each objective, from which `scale_bounds` follow; those of latency are set by
    the calibration. Raises `StudyError` from `from_toml`.
    """

    schema_version: Annotated[int, Field(alias="schema", ge=1)] = SCHEMA
    name: str
    space_name: str
    classes: Annotated[int, Field(ge=2)]
    dataset: str
    dataset_sha256: str
    images: ImageSet | None = None
    """Of a folder of images of one's own: its classes, counts and statistics; None for a named dataset."""
    objectives: Annotated[tuple[str, ...], Field(strict=False)] = ("error", "params", "latency")
    goal: Goal | None = None
    """`best-error`: the least error within the budget first, and the front that leads there; `front`: all of the front.

    None: a study of version 0.1, whose reference point is at the budget.
    """
    sampler: SamplerName = "known-cost"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    prune_below: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """A training is pruned at a rung where its probability to end on the front is below this; 0: never."""
    budget: Budget = Budget()
    recipe: Recipe
    latency: LatencySpec
    bounds: dict[str, Bound] = Field(default_factory=dict)
    plan: Plan | None = None
    """What the study was planned to do in the time given; no part of what a study is about."""
    target: Target | None = None
    """Planned with the time; None: the front is that of the errors after `recipe`."""
    reference_ms: Ms | None = None
    space: SpaceFile

    @field_validator("objectives")
    @classmethod
    def _known_objectives(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return parse_objectives(",".join(names))
        except IgcNasError as error:
            raise ValueError(error.message) from None

    @model_validator(mode="after")
    def _goal_is_about_the_error(self) -> Self:
        if self.goal and "error" not in self.objectives:
            raise ValueError(f"goal {self.goal} needs the objective error")
        if self.goal == "front" and len(self.objectives) == 1:
            raise ValueError("a front needs two objectives")
        return self

    @model_validator(mode="after")
    def _bounds_make_a_scale(self) -> Self:
        for name, (low, high) in self.bounds.items():
            if name not in OBJECTIVES or not 0 <= low < high or (OBJECTIVES[name].log and low == 0):
                raise ValueError(f"bounds of {name!r:.40}: ({low}, {high}) is not a scale")
        return self

    @property
    def search_space(self) -> SearchSpace:
        """The search space of the study's own copy of the space file."""
        return search_space(self.space, self.classes, self.space_name)

    @property
    def feasible(self) -> Feasible:
        """The architectures within the budgets on params and MACs. Raises `InfeasibleError`."""
        return feasible(self.search_space, self.budget)

    def is_within_budget(self, candidate: Candidate) -> bool:
        """Whether a candidate's costs and measured latency keep within the budget; only then it may be on the front."""
        return self.budget.violation(candidate.cost, candidate.latency.normalised_ms) <= 0

    def recipe_of(self, *, longer: bool) -> Recipe:
        """The recipe of a trial, or that of a longer training."""
        return self.target.recipe if longer and self.target else self.recipe

    @property
    def deployed_limit(self) -> int | None:
        """The most parameters of a form that may be deployed: the budget's, unless any form may; None: no limit."""
        return None if self.latency.forms == "any" else self.budget.params

    def to_dict(self) -> dict[str, Any]:
        """Plain data as study.toml holds it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_toml(self) -> str:
        """The text of study.toml."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str, where: str = "study.toml") -> StudySpec:
        """Read study.toml. Raises `StudyError`, also for a file of a newer igc-nas."""
        try:
            return cls.from_dict(parse_toml(text, where), where)
        except ConfigError as error:
            raise StudyError(error.message, error.hint) from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> StudySpec:
        """A spec of this or an older schema from plain data. Raises `StudyError`, `ConfigError`."""
        schema = data.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise StudyError(
                f"{where}: written by a newer igc-nas (schema {schema}; this one reads {SCHEMA})",
                "pip install --upgrade igc-nas",
            )
        return cls.parse(current_spec(data), where)

    def identity(self) -> dict[str, Any]:
        """The settings without those that are measured or planned before the first trial: equal for equal studies.

        The space is without its texts.
        """
        measured = ("bounds", "reference_ms", "plan", "target")
        found = {key: value for key, value in self.to_dict().items() if key not in measured}
        return found | {"space": self.space.choices()}

    def with_scale(self, calibration: Calibration) -> StudySpec:
        """This spec with the hypervolume's bounds and the reference time fixed.

        Raises `InfeasibleError` where the latency budget is below half the time of the network with the fewest MACs.
        """
        fast, slow = sorted((calibration.smallest.normalised_ms, calibration.largest.normalised_ms))
        limit = self.budget.latency_ms
        if limit is not None and limit < fast / 2:
            raise InfeasibleError(
                f"the feasible architecture of {self.space_name} with the fewest MACs takes {fast:.3g} ms here; "
                f"the budget is {limit:g} ms",
                "raise --budget-latency",
            )
        high = min(slow, limit) if limit and limit > fast else slow
        bounds = self.known_bounds() | {"latency": (fast, max(high, fast * 1.01))}
        return StudySpec.parse(
            self.to_dict()
            | {"bounds": {name: list(bound) for name, bound in bounds.items()}}
            | {"reference_ms": calibration.reference_ms}
        )

    def known_bounds(self) -> dict[str, tuple[float, float]]:
        """Bounds of all objectives but latency.

        The error: 0 to chance level; a cost: the budget's lower limit or the smallest of the space, to the budget or
        the largest.
        """
        space, heaviest = self.search_space, cost_of(self.feasible.heaviest())
        limits = {"params": self.budget.params, "macs": min(self.budget.macs or heaviest.macs, heaviest.macs)}
        lows = {"params": self.budget.min_params, "macs": self.budget.min_macs}
        bounds: dict[str, tuple[float, float]] = {"error": (0.0, 1 - 1 / self.classes)}
        for metric in METRICS:
            least, most = (getattr(cost_of(arch), metric) for arch in (space.smallest(metric), space.largest(metric)))
            high, least = min(limits.get(metric) or most, most), max(lows.get(metric) or least, least)
            bounds[metric] = (float(least), float(max(high, least + 1)))
        bounds["flops"] = (2 * bounds["macs"][0], 2 * bounds["macs"][1])
        return bounds

    def scaled(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Objective values on the study's fixed scale, at least 0; a value of 1 or more adds no hypervolume."""
        return tuple(
            max(0.0, OBJECTIVES[name].scale(value, *self.scale_bounds(name))) for name, value in values.items()
        )

    def scale_bounds(self, name: str, bounds: Bound | None = None) -> Bound:
        """(what is 0, what is 1) on the scale of an objective; `bounds` replace the study's own.

        The reference point of a cost lies beyond its bound, by the share `LEAST_ERROR_SHARE` of the scale: so a network
        that lowers the least error of the study adds at least that share of what it would add if it cost nothing.
        """
        low, high = bounds or self.bounds[name]
        if self.goal is None or not OBJECTIVES[name].log:
            return low, high
        return low, low * (high / low) ** (1 / (1 - LEAST_ERROR_SHARE[self.goal]))

    @property
    def front_objectives(self) -> tuple[str, ...]:
        """The objectives of the study's front: its own; for the error alone the error and the parameters."""
        return self.objectives if len(self.objectives) > 1 else ("error", "params")


def default_name(space: str, dataset: str, budget: Budget, seed: int) -> str:
    """The name of a study without one: space-dataset-budgets-seed."""
    return f"{space}-{dataset}-{budget}-s{seed}"


def training_seed(study_seed: int, identity: str) -> int:
    """The seed that an architecture is initialised and trained from: a function of the study's seed and its id."""
    return int.from_bytes(hashlib.sha256(f"{study_seed}/{identity}/0".encode()).digest()[:7])
