"""`igc-nas train`: train an architecture from scratch to the end, and test it once."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igc_nas.arch.config import ArchConfig
from igc_nas.cli.loading import (
    architecture,
    code_notices,
    core_notices,
    limit_of,
    load_torch,
    packing_bar,
    quiet_threads,
    say_unusable,
)
from igc_nas.cli.options import (
    FILE,
    RecipeRequest,
    as_json,
    data_dir_option,
    deterministic_option,
    device_option,
    image_size_option,
    recipe_options,
    studies_dir,
)
from igc_nas.cli.output import put, put_json, say
from igc_nas.errors import UsageError

if TYPE_CHECKING:
    from igc_nas.engine.trainings import TrainingJob, TrainingPlan

WATCHED, WATCHED_SHARE = 1000, 50
"""Images that are held out unless told: 1,000, at most a fiftieth of the training set."""


@dataclass(frozen=True)
class TrainRequest(RecipeRequest):
    """The options of `igc-nas train`, one field each. None: not given."""

    arch: str | ArchConfig
    dataset: str
    image_size: int | None
    validate: int | None
    seed: int
    threads: int | None
    out: Path | None
    device: str
    deterministic: bool
    data_dir: Path | None
    root: Path
    as_json: bool


@click.command()
@click.argument("arch")
@click.option(
    "--dataset",
    default="auto",
    show_default=True,
    help="auto, cifar10, cifar100, shapes, or a folder of images.",
)
@image_size_option
@recipe_options
@click.option(
    "--validate",
    type=click.IntRange(0),
    metavar="N",
    help="Hold N training images out and show their accuracy after each epoch; 0: train on all. [default: 1000]",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads, on a CPU. [default: all cores]")
@click.option("-o", "--out", type=FILE, help="Folder of checkpoints and weights. [default: models/ID-DATASET]")
@device_option
@deterministic_option
@data_dir_option
@studies_dir
@as_json
def train(**options: Any) -> None:
    """Train ARCH from scratch to the end.

    The time it takes is measured and printed first. The same command continues an interrupted training where it was.
    At the end the network is evaluated on the test set, once, and its weights are written as safetensors.

    \b
    Examples:
      igc-nas train arch.toml --preset full
      igc-nas train igc_cifar10_2m:43 --dataset cifar10 -o models/knee
    """
    request = TrainRequest(**options)
    result, folder = trained(request)
    if request.as_json:
        put_json(result)
        return
    put(
        f"test error {100 * result['test_error']:.2f} % on {result['test_images']:,} images of {result['dataset']}",
        f"weights   {result['weights']}",
    )
    say(f"igc-nas export {shlex.quote(str(folder))} --format dir -o NAME")


def trained(request: TrainRequest) -> tuple[dict[str, Any], Path]:
    """Run the training that is requested, with its progress: (its result, its folder)."""
    from igc_nas.study.defaults import usable_cores

    threads = request.threads or usable_cores()
    say(*core_notices("threads", request.threads))
    quiet_threads(threads)
    plan, job, device = _prepared(request, threads)
    _train(plan, job, device, threads, deterministic=request.deterministic)
    return _result(job.folder), job.folder


def _prepared(request: TrainRequest, threads: int) -> tuple[TrainingPlan, TrainingJob, str]:
    """(the plan, the training, torch's name of the device); says what is trained, and claims its folder."""
    from igc_nas.analysis.words import schedule_words
    from igc_nas.arch.cost import check_input, check_side, cost_of
    from igc_nas.arch.plan import arch_id
    from igc_nas.cli.study_flags import parse_recipe
    from igc_nas.data.datasets import auto_notice, data_dir, is_folder, locate
    from igc_nas.io.units import format_count
    from igc_nas.study.front_table import legend

    arch = architecture(request.arch, None, request.root)
    check_input(arch)
    parse_recipe(request.recipe)
    where = data_dir(request.data_dir)
    size = request.image_size
    if is_folder(request.dataset) and size is None:
        size = arch.input[1]
    with packing_bar() as progress:
        info = locate(request.dataset, where, image_size=size, progress=progress)
    say_unusable(info)
    load_torch()  # what is wrong with the request has been said
    from igc_nas.cli.recipes import full_recipe_of
    from igc_nas.engine.trainings import TrainingJob, TrainingPlan
    from igc_nas.evaluation.retraining import RUN_FILE, Retraining
    from igc_nas.nn.device import find_devices

    device = find_devices(request.device)[0]
    if info.images:
        arch = arch.with_side(info.side)
        check_side(arch)
    notice = auto_notice(info, where) if request.dataset == "auto" else None
    arch = arch.with_classes(info.classes)
    watched = min(WATCHED, info.train_count // WATCHED_SHARE) if request.validate is None else request.validate
    if watched >= info.train_count:
        raise UsageError(
            f"cannot hold {watched:,} of {info.train_count:,} training images out", "give --validate a smaller number"
        )
    folder = request.out or Path("models") / f"{arch_id(arch)}-{info.name}"
    recipe = full_recipe_of(request, arch.input[1], device, threads, [folder / RUN_FILE])
    plan = TrainingPlan(recipe, info, watched)
    job = TrainingJob(0, arch, request.seed, folder)
    cost, limit = cost_of(arch), limit_of(request.arch, request.root)
    Retraining(plan.spec(job), info, device, folder).claim(limit if limit and cost.params <= limit else None)
    data = f"{info.train_count - watched:,} training images of {info.label}" + (
        f"; {watched:,} more are held out to watch" if watched else ""
    )
    say(
        *([notice, ""] if notice else []),
        *code_notices(device.kind),
        f"network   {arch}",
        f"          {format_count(cost.params)} parameters, {format_count(cost.macs)} MACs",
        f"          {legend([arch])}",
        f"data      {data}",
        f"recipe    {schedule_words(plan.schedule)}",
        f"device    {device.name}",
        f"folder    {folder}",
        "stop      Ctrl-C; the same command continues",
    )
    return plan, job, device.torch_name


def _train(plan: TrainingPlan, job: TrainingJob, device: str, threads: int, *, deterministic: bool) -> None:
    """Train in a process of its own, with its time said first. Raises `StudyError`, `IgcNasError` where it fails."""
    from igc_nas.engine.executor import TrialFailed
    from igc_nas.engine.training_display import TrainingDisplay, clock_in
    from igc_nas.engine.trainings import Trainings
    from igc_nas.evaluation.retraining import RESULT_FILE, stored_result
    from igc_nas.io.units import format_seconds
    from igc_nas.study.lock import StudyLock

    if (job.folder / RESULT_FILE).is_file():
        stored_result(job.folder)  # raises for a damaged one
        return
    taken = "{name} is being trained by {holder}"
    lock = StudyLock(job.folder, taken=taken, hint="wait for it, or train into another folder with -o")
    display = TrainingDisplay({0: "training"}, is_alone=True)
    try:
        with display, Trainings(plan, (device,), 1, threads, display.show, deterministic) as trainings:
            images = plan.schedule.epochs * (plan.info.train_count - plan.validate)
            for _, speed in trainings.images_per_s([job]):
                if isinstance(speed, TrialFailed):
                    raise _failure(speed)
                seconds = images / speed
                display.say(
                    f"time      about {format_seconds(seconds)} from its start ({images:,} images at {speed:,.0f} a "
                    f"second), until {clock_in(seconds)}"
                )
            for _, ended in trainings.run([job]):
                if isinstance(ended, TrialFailed):
                    raise _failure(ended)
    finally:
        lock.release()


def _failure(failed: Any) -> Exception:
    from igc_nas.errors import IgcNasError, StudyError

    if failed.failure.kind == "refused":
        return StudyError(failed.reason, "move it away to start this training again")
    hint = "train with a lower --lr" if failed.failure.kind == "diverged" else None
    return IgcNasError(f"the training failed: {failed.reason} ({failed.failure.where})", hint)


def _result(folder: Path) -> dict[str, Any]:
    """The content of result.json, in the order in which it was written, without the curve."""
    import json

    from igc_nas.evaluation.retraining import RESULT_FILE
    from igc_nas.io.files import read_text

    result: dict[str, Any] = json.loads(read_text(folder / RESULT_FILE))
    return result
