"""The events of a search, for displays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from igc_nas.arch.config import ArchConfig
from igc_nas.study.finals import TrainingProgress
from igc_nas.study.records import Epoch, Latency, Trial
from igc_nas.study.study import Study


@dataclass(frozen=True)
class Job:
    """An architecture to evaluate as trial `number`, trained from `seed`."""

    number: int
    arch: ArchConfig
    seed: int
    baseline: str | None = field(default=None, kw_only=True)
    """Its name, if it is a baseline."""

    def evaluated_by(self, evaluator: Callable[..., Any], reporter: Any) -> Any:
        """Have an evaluator do it; other kinds of jobs call other methods of it."""
        return evaluator(self.arch, self.seed, reporter)


@dataclass(frozen=True)
class LongerJob(Job):
    """The training of a trial's network anew, for longer (`StudySpec.target`); its latency is known."""

    latency: Latency

    def evaluated_by(self, evaluator: Callable[..., Any], reporter: Any) -> Any:
        """Train by the target's recipe."""
        return evaluator.train_longer(self.arch, self.seed, self.latency, reporter)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Opened:
    """The study is open and has its latency scale; trials follow."""

    study: Study


@dataclass(frozen=True)
class Started:
    """A trial has been submitted to an evaluator."""

    job: Job


@dataclass(frozen=True)
class Progress:
    """A running trial has begun another step ("measuring", "training"), or has finished an epoch of its training."""

    number: int
    doing: str
    epoch: Epoch | None = None
    training: TrainingProgress | None = None
    """Of a training to the end."""
    notice: str | None = None
    """What the user is to know about the worker's machine."""


@dataclass(frozen=True)
class Ended:
    """A trial has ended, in whatever state."""

    trial: Trial


@dataclass(frozen=True)
class Exhausted:
    """The sampler has nothing new to suggest; the search ends when the running trials have ended."""

    reason: str


@dataclass(frozen=True)
class Notice:
    """A message about the executor for the user: a node is not used, a node was lost, Triton does not work."""

    text: str


Event = Opened | Started | Progress | Ended | Exhausted | Notice
