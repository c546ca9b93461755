"""An architecture to export with everything known about it, and its config file. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from igc_nas.analysis.expectations import member_words
from igc_nas.analysis.words import (
    conditions_words,
    counted,
    form_words,
    front_end_words,
    interval_words,
    recipe_words,
)
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.data.datasets import normalisation
from igc_nas.data.packed import ImageSet
from igc_nas.io.records import Frozen
from igc_nas.io.text import printable
from igc_nas.study.front_table import legend_lines
from igc_nas.study.records import Candidate, Pruned, Trial
from igc_nas.study.study import Study

HEADER_WIDTH = 110
"""Characters of a line of the legend in a file's header."""


class TrainingResult(Frozen):
    """The test error of trained weights, and what it was measured on: what is read of a training's result.json."""

    model_config = ConfigDict(extra="ignore")

    id: str
    test_error: Annotated[float, Field(ge=0, le=1)]
    test_images: Annotated[int, Field(ge=1)]
    dataset: str
    epochs: int | None = None
    seed: int | None = None
    images: ImageSet | None = None
    """Of a folder of images: its classes and statistics."""

    def __str__(self) -> str:
        after = "" if self.epochs is None else f" after {counted(self.epochs, 'epoch')}"
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"test error {100 * self.test_error:.2f} % on {self.test_images:,} images of {self.dataset}{after}{seed}"


@dataclass(frozen=True)
class Source:
    """An architecture to export, where it comes from, and what is known about it.

    `name` is how the user named it: a file's name without its folders, or a paper's network. `trial` belongs to
    `study`. `trained` is the result of the training that produced its weights.
    """

    arch: ArchConfig
    name: str
    study: Study | None = None
    trial: Trial | None = None
    trained: TrainingResult | None = None
    limit: int | None = None
    """The most parameters that may be deployed; None: no limit."""

    @classmethod
    def of_trial(cls, study: Study, trial: Trial, classes: int | None = None) -> Source:
        """A trial's architecture, in any state of the trial; a trial without one is a programming error."""
        found = trial.candidate.arch if trial.candidate else trial.arch
        assert found is not None
        arch = found if classes is None else found.with_classes(classes)
        return cls(arch, f"trial {trial.number} of {study.spec.name}", study, trial)

    def at(self, arch: ArchConfig) -> Source:
        """The same for images of another size: what the trial measured is not known of it."""
        if arch == self.arch:
            return self
        return Source(arch, f"{self.name} at {arch.input[1]} pixels", trained=self.trained, limit=self.limit)

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
        """The trial's record with latency and error; None if it was neither completed nor pruned."""
        if self.trial is None:
            return None
        return self.trial.candidate or self.trial.pruned

    @property
    def dataset(self) -> str:
        """The label of the dataset the weights were trained on, or else the study's; empty if neither is known."""
        if self.trained:
            return self.trained.dataset
        return self.study.spec.dataset if self.study else ""

    @property
    def images(self) -> ImageSet | None:
        """What is known of the folder of images that `dataset` is; None for a named dataset, and if it is not known."""
        if self.trained:
            return self.trained.images
        return self.study.spec.images if self.study else None

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, standard deviation) per channel by which the dataset's images are normalised; None if not known."""
        return (self.images.mean, self.images.std) if self.images else normalisation(self.dataset)

    @property
    def what(self) -> str:
        """What the network is made of, in words that follow "a classifier"; "" where it has no unit of IGC."""
        igc = any(stage.unit.startswith("igcv") for stage in self.arch.stages)
        return " of interleaved group convolutions" if igc else ""

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata for files of other formats: short printable text by key."""
        from igc_nas._version import __version__

        metadata: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "architecture": self.arch,
            "params": self.cost.params,
            "macs": self.cost.macs,
            "study": self.study.spec.name if self.study else None,
            "trial": self.trial.number if self.trial else None,
            "trained": self.trained,
            **self._image_metadata(),
            "igc_nas": __version__,
        }
        return {key: printable(str(value), lines=False) for key, value in metadata.items() if value is not None}

    def _image_metadata(self) -> dict[str, str]:
        """The normalisation of the images, and the classes of a folder of images, as JSON."""
        known: dict[str, Any] = dict(zip(("mean", "std"), self.statistics or (), strict=False))
        if self.images:
            known["classes"] = [printable(name, lines=False) for name in self.images.classes]
        return {key: json.dumps(value, ensure_ascii=False) for key, value in known.items()}


def config_text(source: Source) -> str:
    """The architecture as TOML, below comments that state what is known about it and under which conditions."""
    return comments(facts(source)) + "\n" + source.arch.to_toml(source.limit)


def comments(lines: tuple[str, ...]) -> str:
    """Lines as comments of TOML or Python. Each line is made printable, so text from a file cannot end its comment."""
    return "".join(f"# {printable(line, lines=False)}".rstrip() + "\n" for line in lines)


def facts(source: Source) -> tuple[str, ...]:
    """What is known about an architecture, one line per fact: identity, costs, measurements with their conditions."""
    return (*_identity(source), *_measurements(source), *([f"weights: {source.trained}"] if source.trained else []))


def _identity(source: Source) -> Iterator[str]:
    searched = None if source.trial is None or source.trial.arch is None else arch_id(source.trial.arch)
    yield f"{source.name}, id {searched or source.id}"
    if searched not in (None, source.id):
        yield f"here with {source.arch.classes} classes: id {source.id}"
    yield str(source.arch)
    yield from legend_lines([source.arch], HEADER_WIDTH)
    cost = source.cost
    yield f"{cost.params:,} parameters, {cost.macs:,} MACs, {cost.activations:,} activations"


def _measurements(source: Source) -> Iterator[str]:
    if source.study is None or source.trial is None:
        return
    if (unfinished := unfinished_text(source)) is not None:
        yield unfinished
    elif isinstance(source.measured, Candidate):
        yield error_text(source.study, source.measured)
        yield from member_words(source.study, source.measured)
        if end := front_end_words(source.study):
            yield end
    if source.measured is not None:
        yield from latency_lines(source.measured)


def unfinished_text(source: Source) -> str | None:
    """Why a trial has no final error; None for a completed trial, and for a source without a trial."""
    trial, study = source.trial, source.study
    if trial is None or study is None or trial.candidate is not None:
        return None
    if trial.pruned is not None:
        return error_text(study, trial.pruned)
    why = f": {trial.reason}" if trial.reason else ""
    return f"the trial is {trial.state}{why}; it has no error and no latency, only an architecture"


def error_text(study: Study, measured: Candidate | Pruned) -> str:
    """The error of the proxy training, at its end or at the rung where it was pruned."""
    if isinstance(measured, Candidate):
        score = measured.score
        return (
            f"held-out error {100 * score.error:.2f} % on {score.held_out:,} images of {score.dataset} "
            f"after a proxy training of {recipe_words(study.spec.recipe)}"
        )
    last = measured.training.rungs[-1]
    return (
        f"pruned, no final error: {100 * last.error:.2f} % held-out error after {last.samples:,} images of "
        f"{study.spec.dataset}; expected at the end {100 * measured.expected_error:.1f} % "
        f"(standard deviation {100 * measured.std:.1f} %), "
        f"probability of reaching the front {100 * measured.p_front:.1f} %"
    )


def latency_lines(measured: Candidate | Pruned) -> Iterator[str]:
    """A latency, its form and its conditions, one line each."""
    latency = measured.latency
    yield (
        f"normalised latency {latency.normalised_ms:.3f} ms{' (noisy)' if latency.noisy else ''}; raw "
        f"{latency.median_ms:.3f} ms, {interval_words(latency.low_ms, latency.high_ms, latency.n)}"
    )
    yield f"latency of the form {form_words(measured, whole=True)}"
    yield f"latency conditions: {conditions_words(latency)}"
