"""Finals: trainings from scratch on the whole training set, each tested once; their records, and what they say.

`finals.jsonl`, beside a study's `trials.jsonl`, has a line for each training that has ended. A network is trained from
several seeds; trainings are compared within one recipe only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost
from igc_nas.errors import StudyError
from igc_nas.io.files import append_line, write_whole
from igc_nas.io.records import Frozen, first_problem
from igc_nas.io.text import plain
from igc_nas.io.units import fixed_count
from igc_nas.study.pareto import nondominated
from igc_nas.study.records import Conditions, Epoch, Failure, Fraction, Latency, read_records
from igc_nas.study.spec import Schedule

FINALS_FILE, FINALS_FOLDER = "finals.jsonl", "finals"
SCHEMA = 1

Seconds = Annotated[float, Field(ge=0)]


class TestScore(Frozen):
    """The one look at the test set: the share of wrongly classified images, the mean loss, the number of images."""

    __test__ = False  # no test case of pytest

    error: Fraction
    loss: float
    images: Annotated[int, Field(ge=1)]


class Trained(Frozen):
    """The result of a training from scratch; `curve` has a point for each epoch."""

    test: TestScore
    curve: Annotated[tuple[Epoch, ...], Field(strict=False)]
    train_s: Seconds
    """Seconds of training, over all runs of an interrupted one."""
    images_per_s: Seconds
    form: str
    latency: Latency | None = None
    """Of the network, under the conditions of the study; None if the training did not measure it."""
    conditions: Conditions


class TrainingProgress(Frozen):
    """How far a training is: `images` of `total` have been seen, at `images_per_s` now."""

    epoch: int
    """The epoch under way, from 1."""
    epochs: int
    images: int
    total: int
    images_per_s: Seconds
    train_error: Fraction | None = None
    """Of the epoch under way, on augmented images, by the weights of each step."""
    held_out_error: Fraction | None = None
    """After the last whole epoch; None without held-out images."""

    @property
    def left_s(self) -> float | None:
        """Estimated seconds to the end of the training."""
        return (self.total - self.images) / self.images_per_s if self.images_per_s else None


class Final(Frozen):
    """A training of a final that has ended: `trained`, or failed with a `reason`.

    `name` is how the network is called in tables: `trial 12`, or a name of the literature.
    """

    schema_version: Annotated[int, Field(alias="schema", ge=1)] = SCHEMA
    name: Annotated[str, Field(min_length=1, max_length=200)]
    id: str
    arch: ArchConfig
    cost: Cost
    trial: Annotated[int, Field(ge=0)] | None = None
    """The study's trial; None for a baseline."""
    seed: Annotated[int, Field(ge=0)]
    recipe: Schedule
    dataset: str
    dataset_sha256: str
    latency: Latency | None = None
    """Under the study's conditions: the trial's own, or measured for a baseline."""
    trained: Trained | None = None
    reason: str | None = None
    failure: Failure | None = None
    started: str
    """UTC, ISO 8601: when its last run began."""

    def __repr__(self) -> str:
        outcome = f"test_error={self.trained.test.error:.4f}" if self.trained else f"reason={self.reason!r:.100}"
        return f"Final({self.name!r}, id={self.id!r}, seed={self.seed}, epochs={self.recipe.epochs}, {outcome})"

    __str__ = __repr__

    @model_validator(mode="after")
    def _ended_in_one_way(self) -> Final:
        if (self.trained is None) == (self.reason is None):
            raise ValueError("a training has a result or a reason why it failed")
        return self

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What makes it one training: network, seed, recipe and data."""
        return self.id, self.seed, self.recipe.model_dump_json(), self.dataset_sha256

    def folder(self, study: Path) -> Path:
        """Where its training is kept, checkpoints and at the end weights, in the folder of its study."""
        return study / FINALS_FOLDER / recipe_folder(self.recipe) / f"{self.id}-s{self.seed}"

    def to_json(self) -> str:
        """One line of finals.jsonl."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


def recipe_folder(recipe: Schedule) -> str:
    """The name of the folder of all trainings by a recipe: `10-epochs-3fa2c1`."""
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
    return f"{recipe.epochs}-epochs-{digest[:6]}"


def read_finals(folder: Path | None) -> tuple[Final, ...]:
    """The finals of a study's folder; of several lines for one training the last counts. Raises `StudyError`.

    An incomplete last line (finals are being trained) is left out.
    """
    if folder is None:
        return ()
    return tuple({final.key: final for final in read_records(folder / FINALS_FILE, _read)}.values())


def _read(line: bytes, where: str) -> Final:
    try:
        final = Final.model_validate_json(line)
    except ValidationError as error:
        raise StudyError(first_problem(error, where)) from None
    if final.schema_version > SCHEMA:
        raise StudyError(f"{where}: written by a newer igc-nas", "pip install --upgrade igc-nas")
    return final


class FinalsLog:
    """finals.jsonl of a folder, open for writing: the caller holds the lock. Raises `StudyError` for a damaged file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FINALS_FILE
        self.finals = {final.key: final for final in read_finals(folder)}
        if self.finals:  # without the half of a line that a killed process may have left
            write_whole(self.path, "".join(final.to_json() + "\n" for final in self.finals.values()))

    def add(self, final: Final) -> None:
        """Append a training that has ended. Raises `StudyError` if it cannot be written."""
        try:
            append_line(self.path, final.to_json())
        except OSError as error:
            raise StudyError(f"cannot write {self.path}: {error.strerror or error}") from None
        self.finals[final.key] = final


@dataclass(frozen=True)
class Finalist:
    """One network under one recipe, with its trainings from several seeds.

    `spread` is (the standard deviation over seeds, its degrees of freedom), pooled over the networks of the recipe.
    """

    finals: tuple[Final, ...]
    spread: tuple[float, int] = (math.nan, 0)

    @property
    def one(self) -> Final:
        """A record with what all of them share: name, architecture, cost."""
        return self.finals[-1]

    @cached_property
    def errors(self) -> tuple[float, ...]:
        """The test errors of those that have ended well."""
        return tuple(final.trained.test.error for final in self.finals if final.trained)

    @property
    def error(self) -> float | None:
        """The mean test error over seeds."""
        return sum(self.errors) / len(self.errors) if self.errors else None

    @cached_property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean over seeds (Student's t of the pooled deviation); None for one seed."""
        if len(self.errors) < 2:
            return None
        from scipy.stats import t

        deviation, freedom = self.spread
        return float(t.ppf(0.975, freedom)) * deviation / math.sqrt(len(self.errors))

    @property
    def latency(self) -> Latency | None:
        """The latency under the study's conditions, if one of the records has it."""
        return next((final.latency for final in self.finals if final.latency), None)

    @property
    def failed(self) -> int:
        """The number of trainings that failed."""
        return sum(final.trained is None for final in self.finals)


@dataclass(frozen=True)
class FinalsGroup:
    """All networks that were trained by one recipe on the same data, by test error ascending."""

    recipe: Schedule
    dataset: str
    finalists: tuple[Finalist, ...]

    def __repr__(self) -> str:
        return f"FinalsGroup({len(self.finalists)} networks, {self.recipe.epochs} epochs on {self.dataset!r:.100})"

    def _repr_html_(self) -> str:
        """The networks as a table, for a notebook."""
        head = "".join(f"<th>{title}</th>" for title in ("network", "test error", "seeds", "parameters", "MACs"))
        rows = "".join(f"<tr>{''.join(f'<td>{plain(cell)}</td>' for cell in _cells(f))}</tr>" for f in self.finalists)
        return f"<p>{plain(repr(self))}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def front(self, objectives: Sequence[str]) -> frozenset[str]:
        """The ids on the second front: test error, with those of `objectives` that every network has."""
        known = [f for f in self.finalists if f.error is not None]
        others = [name for name in objectives if name != "error"]
        if any(f.latency is None for f in known):
            others = [name for name in others if name != "latency"]
        points = [(f.error or 0.0, *(_value(f, name) for name in others or ["params"])) for f in known]
        return frozenset(known[place].one.id for place in nondominated(points))


def _cells(finalist: Finalist) -> tuple[str, ...]:
    spread = "" if finalist.half_width is None else f" ± {100 * finalist.half_width:.2f}"
    error = "failed" if finalist.error is None else f"{100 * finalist.error:.2f}{spread} %"
    cost = finalist.one.cost
    return finalist.one.name, error, str(len(finalist.errors)), fixed_count(cost.params), fixed_count(cost.macs)


def _value(finalist: Finalist, objective: str) -> float:
    if objective == "latency":
        assert finalist.latency is not None
        return finalist.latency.normalised_ms
    return float(finalist.one.cost.as_dict()[objective])


def _spread(finalists: Sequence[Finalist]) -> tuple[float, int]:
    """`Finalist.spread`: with two seeds of each, one network's own deviation would say next to nothing."""
    squares = sum((error - (f.error or 0.0)) ** 2 for f in finalists for error in f.errors)
    freedom = sum(max(0, len(f.errors) - 1) for f in finalists)
    return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)


def finals_groups(finals: Iterable[Final]) -> list[FinalsGroup]:
    """The finals by recipe and data, the one that was written to last first."""
    groups: dict[tuple[str, str], dict[str, list[Final]]] = {}
    for final in finals:
        key = (final.recipe.model_dump_json(), final.dataset_sha256)
        groups[key] = groups.pop(key, {})  # to the end
        groups[key].setdefault(final.id, []).append(final)
    found = []
    for networks in reversed(groups.values()):
        each = [Finalist(tuple(sorted(own, key=lambda f: f.seed))) for own in networks.values()]
        finalists = [replace(finalist, spread=_spread(each)) for finalist in each]
        finalists.sort(key=lambda f: (math.inf if f.error is None else f.error, f.one.cost.params))
        first = finalists[0].one
        found.append(FinalsGroup(first.recipe, first.dataset, tuple(finalists)))
    return found
