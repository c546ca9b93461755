"""The question as frozen values: what is searched, on which data, by which recipe, for which objectives.

A study's `study.toml` is a `StudySpec`; its trials answer it. Two runs belong to one study only where these are equal.
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
from igc_nas.errors import ConfigError, IgcNasError, InfeasibleError, StudyError
from igc_nas.io.records import Frozen, parse_toml
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import Feasible, feasible
from igc_nas.space.search_space import METRICS, SearchSpace, SpaceFile, search_space
from igc_nas.study.objectives import OBJECTIVES, parse_objectives
from igc_nas.study.records import Latency, Ms
from igc_nas.study.schema import SCHEMA, current_spec

SamplerName = Literal["known-cost", "stratified", "random", "tpe", "nsga2", "evolution", "brute-force"]
DtypeName = Literal["float32", "bfloat16"]
RuntimeName = Literal["eager", "compile", "onnxruntime", "openvino"]
LatencyForms = Literal["within-budget", "any", "factored"]
Bound = Annotated[tuple[float, float], Field(strict=False)]


class Schedule(Frozen):
    """How a network is trained: SGD with Nesterov momentum and a one-cycle learning rate that peaks at `lr`.

    `forms`: networks train in the form that the device runs fastest, or factored as they are written. The function, its
    parameters and their gradients are the same; their rounding is not.
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
    flip: bool = True
    dtype: DtypeName = "float32"
    """What products run in; weights, BN statistics and the optimiser stay float32."""
    forms: Literal["fastest", "factored"] = "factored"


class Recipe(Schedule):
    """The proxy training, the same for every trial of a study.

    `train_size` images (stratified, seeded) an epoch at `resolution` x `resolution` pixels; scored on `held_out` other
    training images.
    """

    train_size: Annotated[int, Field(ge=1)]
    held_out: Annotated[int, Field(ge=1)]
    resolution: Annotated[int, Field(ge=4, le=1024)]
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """What is scored: an exponential average of the weights with this decay per step; 0: the weights themselves."""
    rungs: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, max_length=16)] = ()
    """Samples seen, ascending, at which a training is scored on its way (and may be stopped).

    A training is scored after the batch that a rung falls into, which is not the last one and no other rung's.
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
        """Whole batches that one training is made of; the images that an epoch has left over are not seen."""
        return self.epochs * max(1, self.train_size // self.batch)

    def step_of(self, samples: int) -> int:
        """The number of steps after which so many samples have been seen."""
        return math.ceil(samples / min(self.batch, self.train_size))

    @property
    def samples(self) -> int:
        """Images that one training sees, repeats counted."""
        return self.epochs * self.train_size


class LatencySpec(Frozen):
    """How latency is measured.

    `forms`: a network may run in any form whose parameters obey the study's budget, in any at all, or only factored as
    it is written. `remote`: another machine measures, by a command that is given with each run and never stands here.
    """

    device: str
    """The name of the device that the study's times are of."""
    batch: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = 1
    runtime: RuntimeName = "eager"
    forms: LatencyForms = "factored"
    remote: bool = False
    dtype: Literal["float32"] = "float32"
    memory_format: Literal["contiguous", "channels_last"] = "channels_last"
    input: Image = (3, 32, 32)
    cuda_graph: bool = False
    """On a GPU: replay a captured graph, so that the time is the device's and not that of launching from Python."""
    cold_cache: bool = False
    """On a GPU: overwrite its L2 cache before every pass."""


class Calibration(Frozen):
    """What is measured once, when a study is made, and never moved: the reference and the scale of latency."""

    reference_ms: Ms
    smallest: Latency
    """Of the feasible architecture with the fewest MACs."""
    largest: Latency
    """Of the feasible architecture with the most MACs."""


class StudySpec(Frozen):
    """A study: its question and the conditions that every trial shares.

    `bounds` scale the objectives for the hypervolume (see `igc_nas.study.objectives`); latency's are there once the
    machine has been calibrated. Raises `StudyError` from `from_toml`.
    """

    schema_version: Annotated[int, Field(alias="schema", ge=1)] = SCHEMA
    name: str
    space_name: str
    classes: Annotated[int, Field(ge=2)]
    dataset: str
    dataset_sha256: str
    objectives: Annotated[tuple[str, ...], Field(strict=False)] = ("error", "params", "latency")
    sampler: SamplerName = "known-cost"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    prune_below: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """A training is pruned at a rung where its probability to end on the front is below this; 0: never."""
    budget: Budget = Budget()
    recipe: Recipe
    latency: LatencySpec
    bounds: dict[str, Bound] = Field(default_factory=dict)
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
    def _bounds_make_a_scale(self) -> Self:
        for name, (low, high) in self.bounds.items():
            if name not in OBJECTIVES or not 0 <= low < high or (OBJECTIVES[name].log and low == 0):
                raise ValueError(f"bounds of {name!r:.40}: ({low}, {high}) is no scale")
        return self

    @property
    def search_space(self) -> SearchSpace:
        """The space, as the study keeps it."""
        return search_space(self.space, self.classes, self.space_name)

    @property
    def feasible(self) -> Feasible:
        """The architectures within the budgets on params and MACs. Raises `InfeasibleError`."""
        return feasible(self.search_space, self.budget)

    def to_dict(self) -> dict[str, Any]:
        """Plain data as study.toml holds it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_toml(self) -> str:
        """The text of study.toml."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str, where: str = "study.toml") -> StudySpec:
        """Read study.toml. Raises `StudyError`, also for one that a newer igc-nas has written."""
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

    def question(self) -> dict[str, Any]:
        """What the study asks, without what is fixed once it is calibrated: equal for equal studies."""
        return {key: value for key, value in self.to_dict().items() if key not in ("bounds", "reference_ms")}

    def with_scale(self, calibration: Calibration) -> StudySpec:
        """This spec with the hypervolume's bounds and the reference time fixed.

        Raises `InfeasibleError` where the latency budget is below half of what the network with the fewest MACs takes.
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
        """Bounds of everything that is known before measuring: chance level, smallest feasible to budget or largest."""
        space, heaviest = self.search_space, cost_of(self.feasible.heaviest())
        limits = {"params": self.budget.params, "macs": min(self.budget.macs or heaviest.macs, heaviest.macs)}
        bounds: dict[str, tuple[float, float]] = {"error": (0.0, 1 - 1 / self.classes)}
        for metric in METRICS:
            least, most = (getattr(cost_of(arch), metric) for arch in (space.smallest(metric), space.largest(metric)))
            high = min(limits.get(metric) or most, most)
            bounds[metric] = (float(least), float(max(high, least + 1)))
        bounds["flops"] = (2 * bounds["macs"][0], 2 * bounds["macs"][1])
        return bounds

    def scaled(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Objective values on the study's fixed scale, never below 0; at or beyond 1 they add no hypervolume."""
        return tuple(max(0.0, OBJECTIVES[name].scale(value, *self.bounds[name])) for name, value in values.items())


def default_name(space: str, dataset: str, budget: Budget, seed: int) -> str:
    """A study's name where none is given: space-dataset-budgets-seed."""
    return f"{space}-{dataset}-{budget}-s{seed}"


def training_seed(study_seed: int, identity: str, repeat: int = 0) -> int:
    """The seed that an architecture is initialised and trained from: a function of the study's seed and its id."""
    text = f"{study_seed}/{identity}/{repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
