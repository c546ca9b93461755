"""Trainings to the end on a few small images, in worker processes."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.data.datasets import DatasetInfo, locate
from igc_nas.engine.trainings import TrainingJob, TrainingPlan, Trainings
from igc_nas.evaluation.images import Images
from igc_nas.study.defaults import full_recipe

CRASHES = 9
"""Images of this side end the process that reads them."""


def arch(side: int = 8) -> ArchConfig:
    """A small network for images of `side` pixels."""
    stage = {"unit": "igcv1", "L": 4, "M": 4, "blocks": 1, "stride": 2}
    return ArchConfig.parse({"input": (3, side, side), "stem": {"width": 8}, "stage": [stage]})


def images(count: int, side: int, seed: int) -> Images:
    """Small images whose class shows in their brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 30, (count, side, side, 3), generator=generator) + (labels * 22)[:, None, None, None]
    return Images(pixels.to(torch.uint8), labels, torch.full((3,), 110.0), torch.full((3,), 70.0))


def few(_: DatasetInfo, side: int, device: torch.device) -> Images:
    """64 training images; of `CRASHES` pixels: the end of the process."""
    if side == CRASHES:
        os.abort()
    return images(64, side, seed=0)


def held_images(_: DatasetInfo, side: int, device: torch.device) -> Images:
    """30 images to test on."""
    return images(30, side, seed=1)


def plan(forms_folder: Path | None = None, **recipe: Any) -> TrainingPlan:
    """Three epochs of four steps, factored."""
    changes = {"epochs": 3, "batch": 16, "lr": 0.05, "average": 0.9, "forms": "factored"} | recipe
    return TrainingPlan(
        full_recipe("quick", 8, **changes),
        locate("shapes"),
        forms_folder=forms_folder,
        load_train=few,
        load_test=held_images,
    )


def main(folder: str) -> None:
    """Train one network for 15 epochs in a worker process, with a checkpoint after each step."""
    often = replace(plan(epochs=15), checkpoint_every_s=0.0)
    with Trainings(often, ("cpu",), 1) as trainings:
        ((_, ended),) = trainings.run([TrainingJob(0, arch(), 0, Path(folder))])
        print(ended)


if __name__ == "__main__":
    main(*sys.argv[1:])
