"""What a trial leaves behind: `ArchConfig -> Cost -> Latency -> Score -> Candidate`, each made from the one before.

All records are frozen and go through JSON without loss (floats by their shortest exact text).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost
from igc_nas.arch.plan import arch_id
from igc_nas.errors import StudyError
from igc_nas.io.records import Frozen, first_problem
from igc_nas.io.units import format_count
from igc_nas.study.process import Process
from igc_nas.study.schema import current_trial

Ms = Annotated[float, Field(ge=1e-9, le=1e12)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Samples = Annotated[tuple[Ms, ...], Field(strict=False)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]

# complete: trained and scored. pruned: given up at a rung, as one that would hardly reach the front.
# infeasible: the sampler's suggestion is no valid architecture, or is over budget.
# duplicate: an architecture that the study has already. failed: building, measuring or training went wrong.
# running and waiting: under way, or to be taken up by the next search.
TrialState = Literal["complete", "pruned", "infeasible", "duplicate", "failed", "running", "waiting"]
FINISHED: frozenset[TrialState] = frozenset(("complete", "pruned", "infeasible", "duplicate", "failed"))

# diverged: a loss or a result that is not finite. memory: there was not enough. timeout: it took longer than a trial
# may. died: the process that evaluated it ended. lost: a record of it is missing. refused: what was asked cannot be
# done here, in words of our own. error: anything else that was raised.
FailureKind = Literal["diverged", "memory", "timeout", "died", "lost", "refused", "error"]


class Conditions(Frozen):
    """The machine and software under which a number was taken. None is what this machine does not tell."""

    device: str
    threads: int
    torch: str
    igc_nas: str
    load: float | None = None
    """Load average of the machine over the last minute, where the system says it."""
    clock_mhz: float | None = None
    """Clock of the processor, or of the GPU's multiprocessors."""
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    """Power of the whole GPU board."""
    throttle: Texts | None = None
    """What holds the clocks down; empty: nothing does."""
    tf32: bool | None = None
    """Whether float32 products may run in TF32 on a GPU."""


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
    """Time of one forward pass, in milliseconds, with the state of the machine cancelled out.

    Rounds of the network and of a fixed reference network alternate. `normalised_ms` is the median over rounds of
    network / reference, times the study's `reference_ms`: the objective, with the 95 % interval of that
    median. `median_ms` is the plain median, `low_ms` to `high_ms` its interval.

    The network ran as `form`, the fastest of `forms` that the study allows; `deployed_params`, `deployed_macs` and
    `weight_bytes` are that form's. `forms` are the times of the rounds in which it was chosen; these samples are fresh.
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
    """Why it is noisy, in words."""
    samples_ms: Samples
    reference_samples_ms: Samples
    runtime: str
    form: str = "factored"
    deployed_params: Count | None = None
    """None in records that know of no other form than the factored, which holds the parameters of the cost."""
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
    """Energy of one pass above idle, in millijoules, where it was asked for and can be measured."""
    conditions: Conditions

    @property
    def n(self) -> int:
        """Number of rounds."""
        return len(self.samples_ms)

    @property
    def normalised_interval_ms(self) -> tuple[float, float]:
        """The 95 % interval of `normalised_ms`; where a record has none, the raw one scaled to it."""
        if self.normalised_low_ms is not None and self.normalised_high_ms is not None:
            return self.normalised_low_ms, self.normalised_high_ms
        ratio = self.normalised_ms / self.median_ms
        return self.low_ms * ratio, self.high_ms * ratio


class Epoch(Frozen):
    """One point of a learning curve: after `samples` images, the mean training loss and error since the last point."""

    samples: int
    loss: float
    train_error: Fraction


class Rung(Frozen):
    """What a training said on its way, after `samples` images: `error` and `loss` on (the first) held-out images.

    The network is scored as it would be at the end (see `igc_nas.evaluation.training`), and goes on from where it was.
    """

    samples: Annotated[int, Field(ge=1)]
    error: Fraction
    loss: float


class Score(Frozen):
    """What the proxy training said: `error` is the share of `held_out` images that are classified wrongly."""

    error: Fraction
    loss: float
    held_out: int
    samples: int
    curve: Annotated[tuple[Epoch, ...], Field(strict=False)]
    rungs: Annotated[tuple[Rung, ...], Field(strict=False)] = ()
    """The scores at the recipe's rungs, ascending; the end, which `error` is of, is not among them."""
    train_s: Annotated[float, Field(ge=0)]
    dtype: str
    form: str = "factored"
    """How the network was run while it was trained: `lowered`, `native` (by kernels of our own, too) or `factored`."""
    dataset: str
    dataset_sha256: str
    conditions: Conditions


class Candidate(Frozen):
    """A trained and measured architecture: trial `trial` of its study. `id` is the canonical id of the network."""

    trial: Annotated[int, Field(ge=0)]
    id: str
    arch: ArchConfig
    cost: Cost
    latency: Latency
    score: Score
    seed: int

    @field_validator("cost")
    @classmethod
    def _cost_is_counts(cls, cost: Cost) -> Cost:
        if not all(1 <= count < 2**63 for count in (cost.params, cost.macs, cost.activations)):
            raise ValueError("params, macs and activations are counts from 1 on")
        return cost


class Unfinished(Frozen):
    """A training that was told to stop at the last of `rungs`."""

    rungs: Annotated[tuple[Rung, ...], Field(strict=False, min_length=1)]
    curve: Annotated[tuple[Epoch, ...], Field(strict=False)]
    train_s: Annotated[float, Field(ge=0)]


class Pruned(Frozen):
    """What is known of an architecture whose training was given up.

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
    """Where the time of a trial went, in seconds; what is spent waiting for others is in `wait_s` alone."""

    prepare_s: Annotated[float, Field(ge=0)]
    """Building the forms of the network that is measured, and comparing what they compute; beside others."""
    measure_s: Annotated[float, Field(ge=0)]
    """Measuring, alone on the device."""
    choose_s: Annotated[float, Field(ge=0)]
    """Choosing the forms to train in."""
    train_s: Annotated[float, Field(ge=0)]
    """Training and scoring."""
    wait_s: Annotated[float, Field(ge=0)]
    """Waiting for others who measured, or to be alone."""


class Failure(Frozen):
    """Why a trial failed, beside its `reason` in words: of which kind, and where.

    `where` is what was being done and, where an error was raised, the place: `training (train.py:101 in epoch)`.
    """

    kind: FailureKind
    where: str


class Trial(Frozen):
    """One trial of a study, whatever became of it. `params` is what the sampler chose, as Optuna holds it."""

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
    """True where a person asked for this architecture, and no sampler."""
    same_as: int | None = None
    """The trial that a duplicate repeats."""
    violation: float | None = None
    """How far over the budget, relative (0.5: half as much again); 1 where the suggestion is no network at all."""
    started: str | None = None
    """UTC, ISO 8601."""
    wall_s: float | None = None
    spent: TimeBreakdown | None = None
    """None where it did not end, and in records that do not know."""
    process: Process | None = None
    """Whose it is while it runs: for no longer than the study's lock is held (see `igc_nas.study.lock`)."""
    notes: dict[str, Any] | None = None
    """What a sampler of Optuna's keeps beside a trial, such as NSGA-II's generation."""

    @property
    def id(self) -> str | None:
        """The canonical id of its network; None where it has none."""
        known = self.candidate or self.pruned
        if known:
            return known.id
        return arch_id(self.arch) if self.arch else None

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


def deployed_text(candidate: Candidate | Pruned) -> str:
    """The form that a candidate's latency is of, and what it holds and executes: `mixed 237.2k 35.64M 0.95 MB`."""
    latency = candidate.latency
    if latency.deployed_params is None or latency.deployed_macs is None or latency.weight_bytes is None:
        return latency.form
    counts = f"{format_count(latency.deployed_params)} {format_count(latency.deployed_macs)}"
    return f"{latency.form} {counts} {latency.weight_bytes / 1e6:.2f} MB"
