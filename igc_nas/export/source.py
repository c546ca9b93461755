"""What is exported: an architecture with all that is known of it, and the config file that says so. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.io.text import printable
from igc_nas.study.records import Candidate, Latency, Pruned, Trial, deployed_text
from igc_nas.study.spec import Recipe
from igc_nas.study.study import Study


@dataclass(frozen=True)
class Trained:
    """What the result of a long training says of its weights."""

    test_error: float
    test_images: int
    dataset: str
    epochs: int | None = None
    seed: int | None = None

    def __str__(self) -> str:
        after = "" if self.epochs is None else f" after {self.epochs} epoch(s)"
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"test error {100 * self.test_error:.2f} % on {self.test_images:,} images of {self.dataset}{after}{seed}"


@dataclass(frozen=True)
class Source:
    """An architecture, where it comes from, and what is known of it.

    `name` is what was asked for: a file's name without its folders, a paper's network. `trial` is one of `study`.
    `trained` is of the weights that go with it.
    """

    arch: ArchConfig
    name: str
    study: Study | None = None
    trial: Trial | None = None
    trained: Trained | None = None

    @classmethod
    def of_trial(cls, study: Study, trial: Trial, classes: int | None = None) -> Source:
        """A trial's architecture, whatever became of it; it must have one."""
        found = trial.candidate.arch if trial.candidate else trial.arch
        assert found is not None
        arch = found if classes is None else found.with_classes(classes)
        return cls(arch, f"trial {trial.number} of {study.spec.name}", study, trial)

    @cached_property
    def id(self) -> str:
        """The canonical id."""
        return arch_id(self.arch)

    @cached_property
    def cost(self) -> Cost:
        """Exact counts."""
        return cost_of(self.arch)

    @property
    def measured(self) -> Candidate | Pruned | None:
        """What the trial left: a latency, and an error at its end or where it was stopped."""
        if self.trial is None:
            return None
        return self.trial.candidate or self.trial.pruned

    @property
    def metadata(self) -> dict[str, str]:
        """What a file of another format says of it: short text by key."""
        from igc_nas._version import __version__

        found: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "architecture": self.arch,
            "params": self.cost.params,
            "macs": self.cost.macs,
            "study": self.study.spec.name if self.study else None,
            "trial": self.trial.number if self.trial else None,
            "trained": self.trained,
            "igc_nas": __version__,
        }
        return {key: printable(str(value), lines=False) for key, value in found.items() if value is not None}


def config_text(source: Source) -> str:
    """The architecture as TOML, under comments with what is known of it and under which conditions."""
    return comments(facts(source)) + "\n" + source.arch.to_toml()


def comments(lines: tuple[str, ...]) -> str:
    """Lines as comments of TOML or Python; what a file holds stays in its line."""
    return "".join(f"# {printable(line, lines=False)}".rstrip() + "\n" for line in lines)


def facts(source: Source) -> tuple[str, ...]:
    """What is known of an architecture, a line each: what it is, what it costs, what was measured, and of what."""
    return (*_identity(source), *_findings(source), *([f"weights: {source.trained}"] if source.trained else []))


def _identity(source: Source) -> Iterator[str]:
    searched = None if source.trial is None or source.trial.arch is None else arch_id(source.trial.arch)
    yield f"{source.name}, id {searched or source.id}"
    if searched not in (None, source.id):
        yield f"here with {source.arch.classes} classes: id {source.id}"
    yield str(source.arch)
    cost = source.cost
    yield f"{cost.params:,} parameters, {cost.macs:,} MACs, {cost.activations:,} activations"


def _findings(source: Source) -> Iterator[str]:
    if source.study is None or source.trial is None:
        return
    if (unfinished := unfinished_text(source)) is not None:
        yield unfinished
    elif isinstance(source.measured, Candidate):
        yield error_text(source.study, source.measured)
    if source.measured is not None:
        yield from latency_lines(source.measured)


def unfinished_text(source: Source) -> str | None:
    """What became of a trial that did not end well; None for one that did, and where there is none."""
    trial, study = source.trial, source.study
    if trial is None or study is None or trial.candidate is not None:
        return None
    if trial.pruned is not None:
        return error_text(study, trial.pruned)
    why = f": {trial.reason}" if trial.reason else ""
    return f"the trial is {trial.state}{why}; it has no error and no latency, this is its architecture alone"


def error_text(study: Study, measured: Candidate | Pruned) -> str:
    """What the proxy training said, at its end or where it was stopped."""
    if isinstance(measured, Candidate):
        score = measured.score
        return (
            f"held-out error {100 * score.error:.2f} % on {score.held_out:,} images of {score.dataset} "
            f"after a proxy training of {recipe_text(study.spec.recipe)}"
        )
    last = measured.training.rungs[-1]
    return (
        f"stopped, no final error: {100 * last.error:.2f} % held-out error after {last.samples:,} images of "
        f"{study.spec.dataset}; expected at the end {100 * measured.expected_error:.1f} % "
        f"(standard deviation {100 * measured.std:.1f} %), "
        f"a chance of {100 * measured.p_front:.1f} % to reach the front"
    )


def latency_lines(measured: Candidate | Pruned) -> Iterator[str]:
    """A latency with its conditions, a line each."""
    latency = measured.latency
    yield (
        f"latency {latency.normalised_ms:.3f} ms{' (noisy)' if latency.noisy else ''}; measured "
        f"{latency.median_ms:.3f} ms, 95 % interval {latency.low_ms:.3f} to {latency.high_ms:.3f}, n = {latency.n}"
    )
    yield f"that is of the form {deployed_text(measured)} (parameters, MACs, weights as deployed)"
    yield f"latency conditions: {conditions_text(latency)}"


def conditions_text(latency: Latency) -> str:
    """What a latency was measured under."""
    return (
        f"{latency.runtime}, batch {latency.batch}, {latency.conditions.threads} thread(s), "
        f"{latency.dtype}, {latency.memory_format}, on {latency.conditions.device}"
    )


def recipe_text(recipe: Recipe) -> str:
    """A proxy recipe in words."""
    return (
        f"{recipe.epochs} epoch(s) of {recipe.train_size:,} images at {recipe.resolution} px "
        f"(batch {recipe.batch}, lr {recipe.lr:g}, {recipe.dtype}, {recipe.forms} forms)"
    )
