"""Defaults by kind of device: the proxy's recipe, the time, the workers."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from igc_nas.data.datasets import SIDE, DatasetInfo
from igc_nas.errors import ConfigError
from igc_nas.space.budget import Budget
from igc_nas.space.search_space import SpaceFile, find_space
from igc_nas.study.names import check_study_name
from igc_nas.study.spec import (
    WITH_OWN_STREAM,
    Goal,
    LatencySpec,
    Recipe,
    SamplerName,
    Schedule,
    StudySpec,
    default_name,
)

PRUNE_BELOW = 0.02
"""A training is pruned at a rung where its probability to end on the front is below this."""
MEMORY_PER_WORKER = 2 * 2**30
WORKERS_PER_GPU, GPU_MEMORY_PER_WORKER = 2, 16 * 2**30
"""Two, because while one measures, chooses forms or starts, the other one trains; not confirmed on a GPU."""
STEP_MEMORY, BESIDE_MEMORY = 11 * 2**30, 2**30
"""Bytes that the heaviest architectures of igc_cifar keep for the backward pass of 500 images (the median one keeps 3
GiB; by their tensors, not measured on a GPU), and what CUDA and the images take beside it."""
LEAST_BATCH_SHARE = 1 / 4
MOST_WORKERS = 8
"""Latency is measured by one worker at a time, and the others pause: more workers would mostly wait."""

RECIPES: dict[str, dict[str, Any]] = {
    # One core trains a mid-sized network in about 10 s: few images, at half resolution. The command line
    # takes the device's dtype (`igc_nas.nn.lowering.fastest_dtype`) instead of this one.
    "cpu": {
        "epochs": 2,
        "train_size": 3000,
        "held_out": 4000,
        "average": 0.98,
        "rungs": [2000],
        "batch": 32,
        "resolution": 16,
        "lr": 0.1,
        "crop": 2,
        "dtype": "float32",
        "forms": "fastest",
    },
    # A proposal: no study on a GPU has confirmed it (`igc-nas report` on one does). 360 steps of 180,000 images: a
    # network of 25 M MACs is trained by 1.35e13 MACs (a backward pass takes twice those of a forward pass), 120 times
    # those of the CPU's recipe at 16 pixels. Large batches because a step of a small network is bound by its launches
    # and by BN's memory traffic; one batch size that divides train_size, held_out and RUNG_IMAGES, as cuDNN searches
    # for each other one; lr and smoothing after KellerJordan/cifar10-airbench, whose batches have 1,024 images and
    # more.
    "cuda": {
        "epochs": 4,
        "train_size": 45_000,
        "held_out": 5000,
        "average": 0.99,
        "rungs": [45_000],
        "batch": 500,
        "resolution": 32,
        "lr": 0.4,
        "label_smoothing": 0.1,
        "crop": 4,
        "dtype": "bfloat16",
        "forms": "fastest",
    },
}


PRESETS: dict[str, dict[str, Any]] = {
    # Trainings to the end. SGD with Nesterov momentum 0.9, batch 128, weight decay 5e-4, random crops and flips are the
    # usual recipe for CIFAR (He et al. 2016, arXiv 1512.03385; Zagoruyko and Komodakis 2016, 1605.07146); a cosine
    # (Loshchilov and Hutter 2017, 1608.03983) after a warm-up (Goyal et al. 2017, 1706.02677), no weight decay on norms
    # and biases and label smoothing 0.1 are He et al. 2019 (1812.01187).
    # quick: the schedule is short, so the peak is high (Smith and Topin 2017, 1708.07120), and a network that sees each
    # image ten times needs no further regularisation.
    "quick": {"epochs": 10, "lr": 0.2, "warmup": 0.2, "average": 0.999},
    # full: 200 epochs as of WRN, cutout of half the side (DeVries and Taylor 2017, 1708.04552).
    "full": {"epochs": 200, "lr": 0.1, "warmup": 0.025, "average": 0.9995, "cutout": 16},
}
LR_BATCH = 128
"""The batch that the presets' learning rates are for; for another one they are scaled linearly (Goyal et al. 2017).
Their crop and cutout are for images of `SIDE` pixels, and are scaled with the side."""


def default_preset(kind: str) -> str:
    """The preset for a kind of device."""
    return "full" if kind == "cuda" else "quick"


def full_recipe(preset: str, side: int, **changes: Any) -> Schedule:
    """The recipe of a training to the end, for images of `side` pixels, with changes. Raises `ConfigError`."""
    recipe: dict[str, Any] = {"batch": LR_BATCH, "label_smoothing": 0.1, "decay_norms": False, "forms": "fastest"}
    recipe |= {"crop": 4, "cutout": 0} | PRESETS[preset]
    recipe["lr"] *= changes.get("batch", LR_BATCH) / LR_BATCH
    recipe |= {key: recipe[key] * side // SIDE for key in ("crop", "cutout")}
    return Schedule.parse(recipe | changes, "recipe")


@dataclass(frozen=True)
class Extent:
    """The time of a default search, and its workers."""

    time_s: float
    workers: int


def default_recipe(kind: str, **changes: Any) -> Recipe:
    """The proxy recipe for a kind of device (`cpu` or `cuda`), with changes. Raises `ConfigError`.

    Without `rungs` in the changes, the default rungs before the end of the changed recipe are kept.
    """
    if kind == "cpu" and changes.get("dtype") == "float16":
        raise ConfigError("recipe: dtype: float16 trains on a GPU only", "use dtype=float32 or dtype=bfloat16")
    if "rungs" in changes:
        return Recipe.parse(RECIPES[kind] | changes, "recipe")
    recipe = Recipe.parse(RECIPES[kind] | changes | {"rungs": []}, "recipe")
    return with_rungs(recipe, RECIPES[kind]["rungs"])


def fitting_batch(gpu_memory: int) -> dict[str, Any]:
    """What a GPU of so many bytes changes in the default recipe; nothing where a step of the heaviest networks fits.

    Half of the batch or a quarter, and a learning rate in proportion (Goyal et al. 2017).
    """
    share = 1.0
    while share > LEAST_BATCH_SHARE and BESIDE_MEMORY + share * STEP_MEMORY > gpu_memory:
        share /= 2
    default = RECIPES["cuda"]
    return {} if share == 1.0 else {"batch": int(share * default["batch"]), "lr": share * default["lr"]}


def with_rungs(recipe: Recipe, rungs: Iterable[int]) -> Recipe:
    """The recipe with those of `rungs` that come before its end."""
    return recipe.model_copy(update={"rungs": tuple(at for at in rungs if recipe.step_of(at) < recipe.steps)})


def default_extent(
    kind: str,
    devices: int = 1,
    *,
    cores: int | None = None,
    memory: int | None = None,
    gpu_memory: int | None = None,
) -> Extent:
    """The time of a default search, and its workers.

    `cores` and `memory` (bytes) default to what this process may use; `gpu_memory` is that of the GPU that has least
    (None: unknown, one worker a GPU).
    """
    cores = cores or usable_cores()
    if kind == "cuda":
        per_gpu = max(1, min(WORKERS_PER_GPU, cores // devices, (gpu_memory or 0) // GPU_MEMORY_PER_WORKER))
        return Extent(time_s=2 * 3600, workers=devices * per_gpu)
    memory = psutil.virtual_memory().available if memory is None else memory
    workers = max(1, min(cores, memory // MEMORY_PER_WORKER, MOST_WORKERS))
    return Extent(time_s=10 * 60, workers=workers)


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and by the CPU quotas of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.floor(quota) for quota in cpu_quotas())]))


def cpu_quotas(root: Path = Path("/")) -> Iterator[float]:
    """The CPU quotas, in cores, of this process's control groups and of those that contain them (cgroup v1 and v2).

    `root` has the folders `proc` and `sys`. A container sees its own group at the mount point.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    mounts = root / "sys/fs/cgroup"
    groups: list[Path] = [mounts, mounts / "cpu", mounts / "cpu,cpuacct"]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = [""] if not controllers else ["cpu", "cpu,cpuacct"] if "cpu" in controllers.split(",") else []
        for name in names:
            group = (mounts / name).joinpath(*(part for part in path.split("/") if part not in ("", "..")))
            groups += [group, *(parent for parent in group.parents if parent.is_relative_to(mounts / name))]
    for group in dict.fromkeys(groups):
        for read in (_quota_v2, _quota_v1):
            with contextlib.suppress(OSError, ValueError):  # no such file, or no limit: "max", -1
                yield read(group)


def _quota_v2(group: Path) -> float:
    quota, period = (group / "cpu.max").read_text().split()
    return int(quota) / int(period)


def _quota_v1(group: Path) -> float:
    quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    if quota <= 0:
        raise ValueError("no limit")
    return quota / period


def new_spec(
    info: DatasetInfo,
    device_name: str,
    kind: str = "cpu",
    *,
    space: str | Path = "igc_cifar",
    name: str | None = None,
    budget: Budget | None = None,
    objectives: tuple[str, ...] | None = None,
    goal: Goal | None = None,
    sampler: SamplerName = "known-cost",
    seed: int = 0,
    prune_below: float = PRUNE_BELOW,
    recipe: Mapping[str, Any] | None = None,
    latency: Mapping[str, Any] | None = None,
) -> StudySpec:
    """The spec of a new study, with the defaults for the kind of device. The runtime of its latencies is eager.

    The command line takes the device's dtype and runtime: `recipe={"dtype": fastest_dtype(device).dtype}`,
    `latency={"runtime": device.deployment_runtime}`.

    Without `objectives` they are error, parameters and latency. Without `goal` it is `best-error` where there is an
    upper limit and at most the error is named as objective, else `front`.

    `info` comes from `igc_nas.data.datasets.locate`, the device's name and kind from `igc_nas.nn.device.find_devices`.
    Raises `ConfigError` for an unknown space or a wrong recipe, `InfeasibleError` where nothing fits the budget.
    """
    path = find_space(str(space))
    file = SpaceFile.load(path)
    if info.images:
        file = file.with_side(info.side)
    if file.input[0] != 3 or file.input[1] != file.input[2]:
        raise ConfigError(f"{path.name}: input {list(file.input)} is not that of square colour images, [3, H, H]")
    budget = budget or Budget()
    goal = goal or _default_goal(budget, objectives)
    objectives = objectives or ("error", "params", "latency")
    if goal and "error" not in objectives:
        raise ConfigError(f"goal {goal} needs the objective error")
    if goal == "front" and len(objectives) == 1:
        raise ConfigError("a front needs two objectives", "leave out --goal, or name a second one: error,params")
    spec = StudySpec(
        name=check_study_name(name or default_name(path.stem, info.name, budget, seed)),
        space_name=path.stem,
        classes=info.classes,
        dataset=info.label,
        dataset_sha256=info.sha256,
        images=info.images,
        objectives=objectives,
        goal=goal,
        sampler=sampler,
        seed=seed,
        prune_below=prune_below,
        budget=budget,
        recipe=_fitting_recipe(kind, info, recipe or {}),
        latency=_latency_spec(device_name, kind, file, latency or {}),
        space=file,
    )
    spec.feasible.lightest()  # raises where nothing fits
    spec.search_space.check_side()
    _check_batch(spec)
    return spec


def _check_batch(spec: StudySpec) -> None:
    """Raise `ConfigError` where batch norm would see one value of a channel, which has no variance."""
    recipe, stride = spec.recipe, spec.search_space.total_stride
    if min(recipe.batch, recipe.train_size) == 1 and recipe.resolution <= stride:
        raise ConfigError(
            f"recipe: batch norm needs more than one pixel of a batch; a batch of 1 image has one in the last stage of "
            f"{spec.space_name}, whose strides multiply to {stride}",
            f"use batch=2 or more, or resolution={2 * stride}",
        )


def _default_goal(budget: Budget, objectives: tuple[str, ...] | None) -> Goal | None:
    if objectives == ("error",) or (objectives is None and budget.is_limited):
        return "best-error"
    return "front" if objectives is None or "error" in objectives else None


def _latency_spec(device_name: str, kind: str, space: SpaceFile, changes: Mapping[str, Any]) -> LatencySpec:
    defaults = {"device": device_name, "input": space.input, "forms": "within-budget", "cuda_graph": kind == "cuda"}
    if changes.get("runtime") in WITH_OWN_STREAM:
        defaults["cuda_graph"] = False
    if changes.get("runtime") == "native":  # it runs the factored network, on images as they are given
        if changes.get("forms", "factored") != "factored":
            raise ConfigError("the runtime native runs factored networks only", "leave out --latency-forms")
        defaults |= {"forms": "factored", "memory_format": "contiguous"}
    return LatencySpec.parse(defaults | dict(changes), "latency")


def _fitting_recipe(kind: str, info: DatasetInfo, changes: Mapping[str, Any]) -> Recipe:
    """The default recipe with changes, its images cut to the dataset's. Raises where the changes need more images.

    The default resolution is the recipe's share of the images' side (a half on a CPU), the crop an eighth of that.
    """
    if info.images:
        changes = {"resolution": max(4, RECIPES[kind]["resolution"] * info.side // SIDE), **changes}
    recipe = default_recipe(kind, **changes)
    if info.images and "crop" not in changes:
        recipe = recipe.model_copy(update={"crop": recipe.resolution // 8})
    held_out = recipe.held_out if "held_out" in changes else min(recipe.held_out, max(1, info.train_count // 10))
    rest = info.train_count - held_out
    train_size = recipe.train_size if "train_size" in changes else min(recipe.train_size, rest)
    if not 0 < train_size <= rest:
        raise ConfigError(
            f"recipe: train_size + held_out = {train_size + held_out}; {info.label} has {info.train_count} images",
            "lower train_size",
        )
    fitting = recipe.model_copy(update={"held_out": held_out, "train_size": train_size})
    if "rungs" in changes:
        return Recipe.parse(fitting.model_dump(), "recipe")  # a smaller train_size may bring the end before a rung
    return with_rungs(fitting, recipe.rungs)
