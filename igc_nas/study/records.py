"""The records of a trial: `ArchConfig -> Cost -> Latency -> Score -> Candidate`, each made from the one before.

All records are frozen and round-trip through JSON exactly (floats by their shortest exact decimal).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost
from igc_nas.arch.plan import arch_id
from igc_nas.errors import ConfigError, StudyError
from igc_nas.io.files import MOST_RECORDS, read_bytes
from igc_nas.io.records import Frozen, first_problem
from igc_nas.io.text import one_line
from igc_nas.study.process import Process
from igc_nas.study.schema import current_trial

Ms = Annotated[float, Field(ge=1e-9, le=1e12)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Samples = Annotated[tuple[Ms, ...], Field(strict=False)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]

# complete: trained and scored. pruned: its training was stopped at a rung, as it was unlikely to reach the front.
# infeasible: the sampler's suggestion is no valid architecture, or is over budget.
# duplicate: its architecture is already in the study. failed: an error in building, measuring or training.
# running: being evaluated. waiting: to be evaluated by the next search.
TrialState = Literal["complete", "pruned", "infeasible", "duplicate", "failed", "running", "waiting"]
FINISHED: frozenset[TrialState] = frozenset(("complete", "pruned", "infeasible", "duplicate", "failed"))

# diverged: a loss or a result is not finite. memory: out of memory. timeout: the trial exceeded its time limit.
# died: the process that evaluated it ended. lost: its record is missing. refused: an `IgcNasError`, which says why this
# machine or installation cannot evaluate it. error: any other exception.
FailureKind = Literal["diverged", "memory", "timeout", "died", "lost", "refused", "error"]


class Conditions(Frozen):
    """The machine and software on which something was measured. None: this machine does not report it."""

    device: str
    threads: int
    torch: str
    igc_nas: str
    load: float | None = None
    """Load average of the machine over the last minute."""
    clock_mhz: float | None = None
    """Clock of the CPU, or of the GPU's multiprocessors."""
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    """Power of the whole GPU board."""
    throttle: Texts | None = None
    """Reasons for which the clocks are throttled; empty: none."""
    tf32: bool | None = None
    """Whether float32 matrix products may use TF32 on a GPU."""
    mig: bool | None = None
    """True on a MIG instance: clocks, temperature, power and energy are its whole card's."""


class FormTime(Frozen):
    """One form of a network in the race: what it holds, what it executes for one image, and its time.

    `low_ms` to `high_ms` is the 95 % interval of the median; None where the form was timed in fewer than six rounds.
    """

    params: Count
    macs: Count
    weight_bytes: Count
    median_ms: Ms
    low_ms: Ms | None = None
    high_ms: Ms | None = None


class Latency(Frozen):
    """Time of one forward pass in milliseconds, normalised by a reference network timed in the same rounds.

    `normalised_ms` is the objective: the median over rounds of network / reference, times the study's `reference_ms`,
    with the 95 % interval of that median. `median_ms` is the median of the network's own times, `low_ms` to `high_ms`
    its interval.

    The network ran as `form`, the fastest of the forms that the study allows; `deployed_params`, `deployed_macs` and
    `weight_bytes` are that form's. `forms` has the times of the rounds in which it was chosen; `samples_ms` were
    measured after that.
    """

    median_ms: Ms
    low_ms: Ms
    high_ms: Ms
    normalised_ms: Ms
    normalised_low_ms: Ms | None = None
    normalised_high_ms: Ms | None = None
    reference_ms: Ms
    noisy: bool
    noise: Texts = ()
    """Reasons why it is noisy."""
    samples_ms: Samples
    reference_samples_ms: Samples
    runtime: str
    form: str = "factored"
    deployed_params: Count | None = None
    """None in old records, which have the factored form only: its parameters are those of the cost."""
    deployed_macs: Count | None = None
    weight_bytes: Count | None = None
    forms: dict[str, FormTime] = Field(default_factory=dict)
    batch: int
    dtype: str
    memory_format: str
    cuda_graph: bool = False
    cold_cache: bool = False
    input: Annotated[tuple[int, int, int], Field(strict=False)]
    energy_mj: Ms | None = None
    """Energy of one pass above idle, in millijoules; None if not requested or not measurable."""
    conditions: Conditions

    def __repr__(self) -> str:
        return (
            f"Latency(median_ms={self.median_ms:.4g}, low_ms={self.low_ms:.4g}, high_ms={self.high_ms:.4g}, "
            f"normalised_ms={self.normalised_ms:.4g}, n={self.n}, noisy={self.noisy}, runtime={self.runtime!r}, "
            f"form={self.form!r}, batch={self.batch})"
        )

    __str__ = __repr__

    @property
    def n(self) -> int:
        """Number of rounds."""
        return len(self.samples_ms)

    @property
    def per_image_ms(self) -> float:
        """`median_ms` by the images of a pass."""
        return self.median_ms / self.batch

    @property
    def normalised_interval_ms(self) -> tuple[float, float]:
        """The 95 % interval of `normalised_ms`; in old records without one, the interval of `median_ms`, scaled."""
        if self.normalised_low_ms is not None and self.normalised_high_ms is not None:
            return self.normalised_low_ms, self.normalised_high_ms
        ratio = self.normalised_ms / self.median_ms
        return self.low_ms * ratio, self.high_ms * ratio


class Epoch(Frozen):
    """One point of a learning curve: after `samples` images, the mean training loss and error since the last point."""

    samples: int
    loss: float
    train_error: Fraction
    held_out_error: Fraction | None = None
    """On held-out images after the epoch, for a training that has some and no rungs."""


class Rung(Frozen):
    """An intermediate score after `samples` training images: `error` and `loss` on (the first) held-out images.

    The network is scored as at the end (see `igc_nas.evaluation.training`); the training then continues unchanged.
    """

    samples: Annotated[int, Field(ge=1)]
    error: Fraction
    loss: float


class Score(Frozen):
    """The result of the proxy training: `error` is the share of `held_out` images that are classified wrongly."""

    error: Fraction
    loss: float
    held_out: int
    samples: int
    curve: Annotated[tuple[Epoch, ...], Field(strict=False)]
    rungs: Annotated[tuple[Rung, ...], Field(strict=False)] = ()
    """The scores at the recipe's rungs, ascending; the final score is not among them."""
    train_s: Annotated[float, Field(ge=0)]
    dtype: str
    form: str = "factored"
    """Form in which it was trained: `lowered`, `native` (lowered, with igc_nas's own kernels) or `factored`."""
    dataset: str
    dataset_sha256: str
    conditions: Conditions

    def __repr__(self) -> str:
        return (
            f"Score(error={self.error:.4f}, held_out={self.held_out}, samples={self.samples}, "
            f"dataset={self.dataset!r:.80}, train_s={self.train_s:.1f})"
        )

    __str__ = __repr__


class Candidate(Frozen):
    """A trained and measured architecture: trial `trial` of its study. `id` is the canonical id of the network."""

    trial: Annotated[int, Field(ge=0)]
    id: str
    arch: ArchConfig
    cost: Cost
    latency: Latency
    score: Score
    seed: int

    def __repr__(self) -> str:
        return (
            f"Candidate(trial={self.trial}, id={self.id!r}, error={self.score.error:.4f}, params={self.cost.params}, "
            f"macs={self.cost.macs}, latency_ms={self.latency.normalised_ms:.3f})"
        )

    __str__ = __repr__

    @property
    def deployed_params(self) -> int:
        """Parameters of the form that was measured, which is the one to deploy; else of the factored network."""
        return self.latency.deployed_params or self.cost.params

    @property
    def deployed_macs(self) -> int:
        """MACs of the form that was measured, as `deployed_params`."""
        return self.latency.deployed_macs or self.cost.macs

    @field_validator("cost")
    @classmethod
    def _cost_is_counts(cls, cost: Cost) -> Cost:
        if not all(1 <= count < 2**63 for count in (cost.params, cost.macs, cost.activations)):
            raise ValueError("params, macs and activations are counts from 1 on")
        return cost


class Unfinished(Frozen):
    """A training that was stopped at the last of `rungs`."""

    rungs: Annotated[tuple[Rung, ...], Field(strict=False, min_length=1)]
    curve: Annotated[tuple[Epoch, ...], Field(strict=False)]
    train_s: Annotated[float, Field(ge=0)]


class Pruned(Frozen):
    """What is known about an architecture whose training was pruned.

    `expected_error` with `std` is the final error that was predicted at the rung, `p_front` the probability that it
    would have ended on the front.
    """

    id: str
    cost: Cost
    latency: Latency
    training: Unfinished
    p_front: Fraction
    expected_error: float
    std: Annotated[float, Field(ge=0)]
    seed: int


class TimeBreakdown(Frozen):
    """The seconds of a trial by activity; waiting for other workers counts in `wait_s` only."""

    prepare_s: Annotated[float, Field(ge=0)]
    """Building the forms to be timed and checking that they compute the same; other workers may run."""
    measure_s: Annotated[float, Field(ge=0)]
    """Measuring, while no other worker runs."""
    choose_s: Annotated[float, Field(ge=0)]
    """Timing and choosing the forms for training."""
    train_s: Annotated[float, Field(ge=0)]
    """Training and scoring."""
    wait_s: Annotated[float, Field(ge=0)]
    """Waiting for the device: for another worker's measurement, or for exclusive use."""


class Failure(Frozen):
    """The kind of a trial's failure and where it happened; `Trial.reason` has the message.

    `where` is the activity and, if an exception was raised, its place: `training (train.py:101 in epoch)`.
    """

    kind: FailureKind
    where: str


class Trial(Frozen):
    """One trial of a study, in any state. `params` is the sampler's suggestion, as Optuna stores it."""

    number: Annotated[int, Field(ge=0)]
    state: TrialState
    params: dict[str, int | str]
    arch: ArchConfig | None = None
    candidate: Candidate | None = None
    pruned: Pruned | None = None
    reason: str | None = None
    """Why it is infeasible, failed, or a duplicate ("the architecture of trial 3")."""
    failure: Failure | None = None
    enqueued: bool | None = None
    """True if a user enqueued this architecture; a sampler did not suggest it."""
    baseline: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """The name of a network that the search is compared with: no candidate of the study, and never pruned."""
    longer_of: Annotated[int, Field(ge=0)] | None = None
    """The trial whose network it trains anew, for longer (`StudySpec.target`): no candidate of its own."""
    same_as: int | None = None
    """The trial that a duplicate repeats."""
    violation: float | None = None
    """Relative excess over the budget (0.5: 50 % too much); 1 if the suggestion is no valid architecture."""
    started: str | None = None
    """UTC, ISO 8601."""
    wall_s: float | None = None
    remeasured: str | None = None
    """UTC, ISO 8601: when its latency was measured again, after it had ended."""
    spent: TimeBreakdown | None = None
    """None if the trial did not end, and in old records."""
    notices: Texts | None = None
    """What did not work on the machine and was done in another way, such as Triton's kernels."""
    process: Process | None = None
    """The searching process of a running trial; meaningful only while it holds the lock (`igc_nas.study.lock`)."""
    notes: dict[str, Any] | None = None
    """Attributes that an Optuna sampler stores with a trial, such as NSGA-II's generation."""

    def __repr__(self) -> str:
        what = repr(self.candidate) if self.candidate else repr(self.reason) if self.reason else str(self.arch)
        return f"Trial(number={self.number}, state={self.state!r}, {one_line(what, 120)})"

    __str__ = __repr__

    @property
    def id(self) -> str | None:
        """The canonical id of its network; None if it has no architecture."""
        known = self.candidate or self.pruned
        if known:
            return known.id
        return arch_id(self.arch) if self.arch else None

    @property
    def is_aside(self) -> bool:
        """Whether no sampler has suggested it and none learns of it as a trial: a baseline, or a longer training."""
        return self.baseline is not None or self.longer_of is not None

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_schema(cls, data: Any) -> Any:
        return current_trial(data) if isinstance(data, dict) else data

    def to_json(self) -> str:
        """One line of trials.jsonl."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "trial") -> Trial:
        """Read a line of trials.jsonl. Raises `StudyError`."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise StudyError(first_problem(error, where)) from None


Record = TypeVar("Record")


def read_records(path: Path, parse: Callable[[bytes, str], Record]) -> Iterator[Record]:
    """The records of a file with one a line; none where there is no file. Raises `StudyError`.

    `parse` gets a line and its place. An incomplete last line is left out: its process is writing it, or was killed.
    """
    if not (path.exists() or path.is_symlink()):
        return
    try:
        *complete, last = read_bytes(path, MOST_RECORDS).split(b"\n")
    except ConfigError as error:
        raise StudyError(error.message, error.hint) from None
    for number, line in enumerate(complete, start=1):
        if line:
            yield parse(line, f"{path.parent.name}/{path.name} line {number}")
    with suppress(StudyError):
        if last:
            yield parse(last, path.name)
