"""The speed of training on a device, measured on a few networks before a study begins (`igc_nas.study.plan`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.data.datasets import DatasetInfo
from igc_nas.errors import IgcNasError
from igc_nas.evaluation.images import Images
from igc_nas.evaluation.training import Training
from igc_nas.nn.device import Device, configure_torch
from igc_nas.nn.lowering.network_tuner import NetworkTuner
from igc_nas.nn.lowering.timing_cache import timing_cache_for
from igc_nas.nn.lowering.training import Forward
from igc_nas.nn.network import Network, build
from igc_nas.study.defaults import with_rungs
from igc_nas.study.plan import STEPS, Sizes, Speed, planned, recipe_changes, target_recipe
from igc_nas.study.spec import Recipe, StudySpec, Target

ENOUGH_S = 0.4
"""A network is timed for about this long, and for two steps at least."""
MOST_STEPS = 2000
"""And for this number of steps at most, whose schedule a captured step holds."""
FORMS_S = 8.0
"""About the seconds in which the forms of one network are compiled and timed by an empty cache."""
USUAL_GAIN = 0.5
"""Of the fastest form: its share of the factored one's time, until trials have ended."""
BESIDE_TRAINING = {"cpu": (1.1, 50.0), "cuda": (6.5, 0.0)}
"""(seconds, training steps) that a trial takes beside its training: building, measuring the latency, choosing forms.
On a CPU the least-squares line over the 116 trials of `studies/finals_cifar10`, of batches of 32; on a GPU assumed."""
CHOOSING = 0.53
"""The share of those steps in which forms are chosen."""

LENGTH_KEYS = frozenset(("epochs", "train_size", "resolution"))
"""A recipe with one of these keys is a length chosen by hand."""
DRAWN = 128
"""Networks that stand for those that the search will train."""
TIMING = 0.03
"""About this share of the time is for timing trainings."""
TARGET_EPOCHS, TARGET_FACTOR = 10, 12
"""Errors are predicted for 10 epochs of all images (as many as `finals --preset quick` trains for), but for at most 12
times the images of the longer trainings: 20 times is as far as `igc_table` shows that the predicted order holds."""
START_S = {"cpu": 25.0, "cuda": 30.0}
"""From the command to the first trial: workers start, load the data, and calibrate the scale of latency."""


def planned_spec(
    spec: StudySpec,
    info: DatasetInfo,
    device: Device,
    time_s: float,
    workers: int,
    trials: int | None = None,
    changes: Mapping[str, Any] | None = None,
    promote: float = 0.0,
    *,
    prunes: bool = False,
    measure: Callable[..., Speed] | None = None,
) -> StudySpec:
    """A new study's spec with a plan for `time_s` seconds, and the recipe that is in it.

    `changes` are those that the user made to the recipe: they stay, and a length among them is the only one considered.
    The share `promote` of the time is for longer trainings, where some fit into it. Then nothing is pruned, and there
    are no rungs but those among `changes`: a network that is pruned for its error after a few thousand images, as large
    ones are, could not be promoted. `prunes`: pruning was asked for, and stays. `measure` is `measure_speed` (None), or
    calls it in another process.
    """
    side, given = spec.space.input[1], changes or {}
    if LENGTH_KEYS & given.keys():
        recipes = [spec.recipe]
    else:
        recipes = [_of_length(spec.recipe, recipe_changes(step, side, info.train_count), given) for step in STEPS]
    drawn = typical(spec)
    timed = [drawn[round(share * (DRAWN - 1))] for share in (0.05, 0.5, 0.95)]
    resolutions = sorted({recipe.resolution for recipe in recipes})
    speed = (measure or measure_speed)(timed, spec.recipe, resolutions, device, TIMING * time_s)
    usable_s = max(1.0, time_s - START_S[device.kind])
    sizes = Sizes.of(drawn)
    keeps_rungs = prunes or "rungs" in given
    for share in (promote, 0.0):  # without longer trainings where none fits
        tried = recipes if keeps_rungs or not share else [r.model_copy(update={"rungs": ()}) for r in recipes]
        recipe, plan = planned(tried, speed, sizes, side, (1 - share) * usable_s, workers, trials)
        longer = [_longer(recipe, step, info.train_count) for step in STEPS]
        found = target_recipe(recipe, longer, speed, sizes, side, share * usable_s * workers)
        if found is not None:
            break
    target = None
    if found is not None:
        images = max(found.samples, min(TARGET_EPOCHS * info.train_count, TARGET_FACTOR * found.samples))
        target = Target(images=images, recipe=found, share=promote)
    planned_for = plan.model_copy(update={"time_s": time_s})
    prune_below = spec.prune_below if prunes or target is None else 0.0
    changed = {"recipe": recipe, "plan": planned_for, "target": target, "prune_below": prune_below}
    return spec.model_copy(update=changed)


def typical(spec: StudySpec) -> list[ArchConfig]:
    """Networks as a search will train them, by MACs ascending: draws that are stratified by cost."""
    rng = np.random.default_rng(0)
    return sorted((spec.feasible.draw_stratified(rng) for _ in range(DRAWN)), key=lambda arch: cost_of(arch).macs)


def _longer(recipe: Recipe, step: tuple[int, int, int], images: int) -> Recipe:
    """The recipe with the epochs and images of a step, and what follows from their number."""
    changes = recipe_changes(step, recipe.resolution, images)
    wanted = {key: changes[key] for key in ("epochs", "train_size", "held_out", "average")}
    return recipe.model_copy(update=wanted | {"rungs": ()})


def _of_length(recipe: Recipe, length: Mapping[str, Any], given: Mapping[str, Any]) -> Recipe:
    wanted = {**length, **given}
    made = Recipe.parse(recipe.model_dump() | wanted | {"rungs": ()}, "recipe")
    return with_rungs(made, wanted["rungs"])


def measure_speed(
    archs: Sequence[ArchConfig],
    recipe: Recipe,
    resolutions: Sequence[int],
    device: Device,
    limit_s: float = float("inf"),
    threads: int = 1,
) -> Speed:
    """The speed of training steps of `recipe` on random images of some resolutions, ascending.

    Each network is timed in factored form, at the first resolution first, the smallest and the largest before those
    between them: the fastest step counts, after one to warm up. After `limit_s` seconds the rest is left out, but not
    those two. The gain of the forms that the recipe asks for is that of the middle network at the first resolution;
    where less than `FORMS_S` is left for that, it is the usual one. A GPU's memory is given back: workers need it.
    Raises `IgcNasError` where a GPU has no memory for a step.
    """
    configure_torch(device, threads)
    try:
        return _measured_speed(archs, recipe, resolutions, device, limit_s, threads)
    except torch.OutOfMemoryError:
        quarter = f"batch={max(1, recipe.batch // 4)},lr={recipe.lr / 4:g}"  # lr in proportion (Goyal et al. 2017)
        raise IgcNasError(
            f"{device.name} has no memory for a training step of {recipe.batch} images",
            f"--recipe {quarter} takes less, or give a smaller budget",
        ) from None
    finally:
        device.release_memory()


def _measured_speed(
    archs: Sequence[ArchConfig],
    recipe: Recipe,
    resolutions: Sequence[int],
    device: Device,
    limit_s: float,
    threads: int,
) -> Speed:
    began = time.perf_counter()
    timed: list[tuple[ArchConfig, float, float]] = []
    ends_first = [archs[0], archs[-1], *archs[1:-1]]
    for resolution in resolutions:
        images = _random_images(recipe.batch, resolution, archs[0].classes, device)
        for arch in ends_first:
            if len(timed) < 2 or time.perf_counter() - began < limit_s:
                step_s = _step_s(_training(build(arch.trained_at(resolution), 0), recipe, images, device), device)
                timed.append((arch, (resolution / arch.input[1]) ** 2, step_s))
    gain, (fixed_s, steps) = 1.0, BESIDE_TRAINING[device.kind]
    if recipe.forms == "factored":
        steps *= 1 - CHOOSING
    else:
        gain = USUAL_GAIN
        middle = archs[len(archs) // 2]
        factored_s = next((step_s for arch, _, step_s in timed if arch is middle), None)
        if factored_s and limit_s - (time.perf_counter() - began) >= FORMS_S:
            gain = _fastest_step_s(middle, recipe, resolutions[0], device, threads) / factored_s
    found, areas, seconds = zip(*timed, strict=True)
    images_of_step = np.full(len(timed), float(recipe.batch))
    return Speed.fit(Sizes.of(found), images_of_step, np.array(areas), gain * np.array(seconds), fixed_s, steps)


def _fastest_step_s(arch: ArchConfig, recipe: Recipe, resolution: int, device: Device, threads: int) -> float:
    """Seconds of a training step in the fastest form."""
    scaled = recipe.model_copy(update={"resolution": resolution, "rungs": ()})
    tuner = NetworkTuner.of(scaled, device, timing_cache_for(device.name, threads, "training"))
    arch = arch.trained_at(resolution)
    network = build(arch, 0).to(device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = _random_images(recipe.batch, resolution, arch.classes, device)
    return _step_s(_training(network, recipe, images, device, tuner(network, arch_id(arch))), device)


def _training(
    network: Network, recipe: Recipe, images: Images, device: Device, forward: Forward | None = None
) -> Training:
    """A training of many epochs of one step."""
    return Training(network, images, recipe.model_copy(update={"epochs": MOST_STEPS}), device, 0, forward)


def _step_s(training: Training, device: Device) -> float:
    """Seconds of one training step; an epoch of `training` is one step."""
    training.epoch()
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or (time.perf_counter() - began < ENOUGH_S and training.done < MOST_STEPS):
        device.synchronize()
        started = time.perf_counter()
        training.epoch()
        device.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def _random_images(count: int, side: int, classes: int, device: Device) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, side, side, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (count,), generator=generator)
    middle = torch.full((3,), 127.0), torch.full((3,), 64.0)
    return Images(*(tensor.to(device.torch_device) for tensor in (pixels, labels, *middle)))
