"""`igc-nas train`: train an architecture from scratch on the whole training set."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from igc_nas.cli.loading import architecture, packing_bar, quiet_threads, say_unusable
from igc_nas.cli.options import FILE, as_json, data_dir_option, device_option, image_size_option, studies_dir
from igc_nas.cli.output import put, put_json, say


@dataclass(frozen=True)
class TrainRequest:
    """The options of `igc-nas train`, one field each. None: not given."""

    arch: str
    dataset: str
    image_size: int | None
    epochs: int
    batch: int
    lr: float
    label_smoothing: float
    seed: int
    dtype: str
    forms: str
    threads: int | None
    out: Path | None
    device: str
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
@click.option("--epochs", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Epochs in total.")
@click.option("--batch", type=click.IntRange(1, 65_536), default=128, show_default=True, help="Images per step.")
@click.option(
    "--lr", type=click.FloatRange(0, 100, min_open=True), default=0.2, show_default=True, help="Peak learning rate."
)
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@click.option(
    "--forms",
    type=click.Choice(["fastest", "factored"]),
    default="fastest",
    show_default=True,
    help="Train the network in the form that is fastest on the device, or in factored form.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads, on a CPU. [default: all cores]")
@click.option("-o", "--out", type=FILE, help="Folder of checkpoints and weights. [default: models/ID-DATASET]")
@device_option
@data_dir_option
@studies_dir
@as_json
def train(**options: Any) -> None:
    """Train ARCH from scratch on the whole training set.

    A checkpoint is written after each epoch, and the same command continues an interrupted training. At the end the
    network is evaluated on the test set, once, and its weights are written as safetensors.

    \b
    Examples:
      igc-nas train arch.toml --epochs 30
      igc-nas train igc_cifar10_2m:43 --dataset cifar10 -o models/knee
    """
    from igc_nas.study.defaults import usable_cores

    request = TrainRequest(**options)
    threads = request.threads or usable_cores()
    quiet_threads(threads)
    from igc_nas.evaluation.retraining import Retraining, RetrainOptions

    retrain = RetrainOptions(
        dataset=request.dataset,
        image_size=request.image_size,
        data_dir=request.data_dir,
        device=request.device,
        threads=threads,
        epochs=request.epochs,
        batch=request.batch,
        lr=request.lr,
        label_smoothing=request.label_smoothing,
        dtype=request.dtype,
        forms=request.forms,
        seed=request.seed,
        out=request.out,
    )
    with packing_bar() as progress:
        run = Retraining.open(architecture(request.arch, None, request.root), retrain, progress)
    say_unusable(run.info)
    say(*run.introduction())
    result = run.train(say=say)
    if request.as_json:
        put_json(result)
        return
    put(
        f"test error {100 * result['test_error']:.2f} % on {result['test_images']:,} images of {result['dataset']}",
        f"weights   {result['weights']}",
    )
    say(f"igc-nas export {shlex.quote(str(run.folder))} --format dir -o NAME")
