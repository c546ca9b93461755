"""The time of a search, planned: what a trial takes, and how long a training may be so that enough of them are done.

A trial's seconds follow from exact counts: a training step takes a constant, a time for each convolution (a kernel is
launched), for each MAC and for each activation of its images. The coefficients are measured on a few networks before
the study begins (`igc_nas.evaluation.speed`) and stored with it, so that what depends on them is the same after a
resume; `TrialTimes` corrects them by the trials that have ended.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.layers import convolutions
from igc_nas.arch.plan import plan
from igc_nas.io.records import Frozen
from igc_nas.study.records import Trial

if TYPE_CHECKING:
    from igc_nas.study.spec import Recipe

Floats = NDArray[np.float64]
Seconds = Annotated[float, Field(ge=0, le=1e9)]

FORWARD = 1 / 3
"""The time of a forward pass, as a share of a training step."""
RECALIBRATION_IMAGES, RUNG_IMAGES = 1024, 2000
"""Images in a recalibration of BN statistics, and held-out ones in the score of a rung: a decision to prune needs
fewer than the final error."""
STEP_IMAGES = 32
GRACE = 0.05
"""Trials that run when the time is over may take this share of it more."""
FEWEST_FOR_CORRECTION = 3
LATEST = 20
"""A correction is of this number of trials at most, the latest."""


@dataclass(frozen=True)
class Sizes:
    """What the time of n networks depends on: (n,) MACs, activations and convolutions."""

    macs: Floats
    activations: Floats
    convolutions: Floats

    @classmethod
    def of(cls, archs: Sequence[ArchConfig]) -> Sizes:
        """Of some architectures."""
        costs = [cost_of(arch) for arch in archs]
        columns = ([c.macs for c in costs], [c.activations for c in costs], [_convolutions(arch) for arch in archs])
        return cls(*(np.array(column, dtype=float) for column in columns))


def _convolutions(arch: ArchConfig) -> int:
    return sum(convolutions(block.layers) for block in plan(arch).blocks)


class Speed(Frozen):
    """The seconds of training steps and trials on one device, by one worker."""

    step_s: Seconds
    """Of a step, whatever is trained."""
    convolution_s: Seconds
    """Of a step, for each convolution."""
    mac_s: Seconds
    """Of an image at the space's resolution, for each MAC."""
    activation_s: Seconds
    trial_s: Seconds
    """Of a trial, whatever is trained: building, measuring the latency, choosing forms."""
    trial_steps: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """What the same takes longer for a larger network, in its training steps of `STEP_IMAGES` images."""

    def steps_s(self, sizes: Sizes, steps: float, images: float, area: float) -> Floats:
        """(n,) seconds of training steps on images with `area` times the space's pixels."""
        of_step = self.step_s + self.convolution_s * sizes.convolutions
        return steps * of_step + images * area * (self.mac_s * sizes.macs + self.activation_s * sizes.activations)

    def trials_s(self, sizes: Sizes, recipe: Recipe, side: int) -> Floats:
        """(n,) seconds of trials by a recipe, whose networks take images of `side` pixels at full resolution."""
        scores = 1 + len(recipe.rungs)
        looked_at = (
            recipe.held_out + len(recipe.rungs) * min(RUNG_IMAGES, recipe.held_out) + scores * RECALIBRATION_IMAGES
        )
        steps = recipe.steps + self.trial_steps
        images = recipe.samples + self.trial_steps * STEP_IMAGES + FORWARD * looked_at
        return self.trial_s + self.steps_s(sizes, steps, images, (recipe.resolution / side) ** 2)

    @classmethod
    def fit(
        cls, sizes: Sizes, images: Floats, areas: Floats, seconds: Floats, trial_s: float, trial_steps: float = 0.0
    ) -> Speed:
        """Non-negative least squares, relative to `seconds` (n,) of steps of `images` (n,) at `areas` (n,)."""
        from scipy.optimize import nnls

        pixels = images * areas
        columns = [np.ones(len(seconds)), sizes.convolutions, pixels * sizes.macs, pixels * sizes.activations]
        relative = np.column_stack(columns) / seconds[:, None]
        scale = relative.max(axis=0)
        found = nnls(relative / scale, np.ones(len(seconds)))[0] / scale
        step_s, convolution_s, mac_s, activation_s = map(float, found)
        return cls(
            step_s=step_s,
            convolution_s=convolution_s,
            mac_s=mac_s,
            activation_s=activation_s,
            trial_s=trial_s,
            trial_steps=trial_steps,
        )


class Plan(Frozen):
    """What a study was planned to do when it was made."""

    time_s: Annotated[float, Field(gt=0, le=1e9)]
    workers: Annotated[int, Field(ge=1)]
    trials: Annotated[int, Field(ge=1)]
    """About this number of trials, of networks as the sampler's first draws are."""
    mean_s: Annotated[float, Field(gt=0, le=1e9)]
    """Of one of them."""
    speed: Speed


# The length of a training.

STEPS: tuple[tuple[int, int, int], ...] = (
    (2, 3_000, 16),
    (3, 4_000, 16),
    (4, 3_000, 32),
    (4, 5_000, 32),
    (4, 10_000, 32),
    (5, 16_000, 32),
    (5, 32_000, 32),
    (8, 40_000, 32),
    (16, 45_000, 32),
    (30, 45_000, 32),
)
"""(epochs, images, resolution) of longer and longer trainings: more images before more epochs up to all of CIFAR, and
full resolution from 12,000 images on, where `studies/igc_table` has it rank better than more images at half of it."""
FEWEST_TRIALS, GROWTH = 24, 0.4
"""A training of 6,000 images is worth its time with 24 trials or more; one of n times the images with n^0.4 times as
many. A search that is n times as long so has about n^0.3 times the trials, each n^0.7 times as long."""
LONG = 40_000
"""Trainings of this number of images or more are scored on 5,000 held-out images, and average over more steps."""


def recipe_changes(step: tuple[int, int, int], side: int, images: int) -> dict[str, Any]:
    """The keys of a recipe for one of `STEPS`: images of `side` pixels at most, `images` in the training set."""
    epochs, size, resolution = step
    held_out = min(5000 if epochs * size >= LONG else 4000, images // 10)
    size = min(size, images - held_out)
    samples = epochs * size
    rungs = [samples // 3] if samples < LONG else [samples // 8, 3 * samples // 8]
    average = 0.98 if samples < LONG else 0.995
    return {
        "epochs": epochs,
        "train_size": size,
        "held_out": held_out,
        "resolution": min(resolution, side),
        "rungs": rungs,
        "average": average,
        "crop": max(1, min(resolution, side) // 8),
    }


def trials_for(samples: int) -> int:
    """The number of trials that a training of `samples` images should leave time for."""
    more: float = max(1.0, samples / 6000) ** GROWTH
    return math.ceil(FEWEST_TRIALS * more)


def planned(
    recipes: Sequence[Recipe], speed: Speed, sizes: Sizes, side: int, time_s: float, workers: int, trials: int | None
) -> tuple[Recipe, Plan]:
    """The longest of `recipes` (ascending) that leaves time for enough trials, and the plan by it.

    `sizes` are of networks as the search will train them; `time_s` is without the start. Enough are `trials`, or what
    `trials_for` says. Where none of the recipes leaves time for enough, the shortest is taken.
    """
    best: tuple[Recipe, Plan] | None = None
    for recipe in recipes:
        mean_s = float(speed.trials_s(sizes, recipe, side).mean())
        count = max(1, round(time_s * workers / mean_s))
        if best is not None and count < (trials or trials_for(recipe.samples)):
            break
        best = recipe, Plan(time_s=time_s, workers=workers, trials=trials or count, mean_s=mean_s, speed=speed)
    assert best is not None
    return best


LONGER = 3, 14
"""A longer training has this number of times the images of a short one: enough to change the order, few enough to be
paid for."""
FEWEST_LONGER = 6
"""The longest recipe of which this number fits into the share of the time is taken."""


def target_recipe(
    recipe: Recipe, longer: Sequence[Recipe], speed: Speed, sizes: Sizes, side: int, share_s: float
) -> Recipe | None:
    """The recipe of the longer trainings, from `longer` (ascending), for `share_s` seconds of all workers together.

    None: none of `longer` is within `LONGER` times the images and short enough.
    """
    found = None
    for one in longer:
        ratio, mean_s = one.samples / recipe.samples, float(speed.trials_s(sizes, one, side).mean())
        if LONGER[0] <= ratio <= LONGER[1] and FEWEST_LONGER * mean_s <= share_s:
            found = one
    return found


class TrialTimes:
    """The seconds that a trial will take, from the plan's speed and from the trials that have ended.

    Until enough have ended, they are corrected as those of `like`.
    """

    def __init__(
        self,
        speed: Speed | None,
        recipe: Recipe,
        side: int,
        trials: Iterable[Trial] = (),
        like: TrialTimes | None = None,
    ) -> None:
        self._like = like
        self.speed = speed
        self.recipe = recipe
        self.side = side
        self._seen: list[tuple[float, float]] = []
        """(MACs, or the predicted seconds with a speed; seconds) of complete trials."""
        for trial in trials:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        """Add a trial that has ended; only complete ones count."""
        if trial.state == "complete" and trial.candidate and trial.wall_s:
            self._seen.append((self._basis(trial.candidate.arch), trial.wall_s))

    def _basis(self, arch: ArchConfig) -> float:
        if self.speed is None:
            return float(cost_of(arch).macs)
        return float(self.speed.trials_s(Sizes.of([arch]), self.recipe, self.side)[0])

    def seconds(self, arch: ArchConfig) -> float | None:
        """Of a trial of `arch`; None: nothing is known yet."""
        basis, seen = self._basis(arch), self._seen[-LATEST:]
        if self.speed is not None:
            return basis * self.correction
        if len(seen) < FEWEST_FOR_CORRECTION:
            return None
        from scipy.optimize import nnls

        macs, seconds = np.array(seen).T
        rows = np.column_stack([1 / seconds, macs / macs.max() / seconds])
        constant, slope = nnls(rows, np.ones(len(seconds)))[0]
        return float(constant + slope * basis / macs.max())

    @property
    def correction(self) -> float:
        """Measured over predicted seconds: the median of the latest trials; with fewer than three `like`'s, else 1."""
        seen = self._seen[-LATEST:]
        if self.speed is None or len(seen) < FEWEST_FOR_CORRECTION:
            return self._like.correction if self._like else 1.0
        return statistics.median(seconds / basis for basis, seconds in seen)
