"""`igc-nas train`: an architecture trained from scratch on the whole training set."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from igc_nas.cli.loading import architecture, quiet_threads
from igc_nas.cli.options import FILE, as_json, data_dir_option, device_option, studies_dir
from igc_nas.cli.output import put, put_json, say


@click.command()
@click.argument("arch")
@click.option("--dataset", type=click.Choice(["auto", "cifar10", "cifar100", "shapes"]), default="auto")
@click.option("--epochs", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Epochs in all.")
@click.option("--batch", type=click.IntRange(1, 65_536), default=128, show_default=True, help="Images per step.")
@click.option("--lr", type=click.FloatRange(0, 100, min_open=True), default=0.2, show_default=True, help="Peak rate.")
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option(
    "--forms",
    type=click.Choice(["fastest", "factored"]),
    default="fastest",
    show_default=True,
    help="Run the network in the form that the device trains fastest, or as it is written.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads, on a CPU. [default: all cores]")
@click.option("-o", "--out", type=FILE, help="Folder of checkpoints and weights. [default: models/ID-DATASET]")
@device_option
@data_dir_option
@studies_dir
@as_json
def train(arch: str, threads: int | None, root: Path, **flags: Any) -> None:
    """Train ARCH on the whole training set; a checkpoint per epoch, the same command continues.

    At the end the test set is opened, once, and the weights are written as safetensors.
    """
    from igc_nas.study.defaults import usable_cores

    threads = threads or usable_cores()
    quiet_threads(threads)
    from igc_nas.evaluation.retraining import Retraining, RetrainOptions

    config = architecture(arch, None, root)
    options = RetrainOptions(threads=threads, **{k: v for k, v in flags.items() if k != "as_json"})
    run = Retraining.open(config, options)
    say(*run.introduction())
    result = run.train(say=lambda line: say(line))
    if flags["as_json"]:
        put_json(result)
    else:
        put(
            f"test error {100 * result['test_error']:.2f} % on {result['test_images']:,} images of {result['dataset']}",
            f"weights   {result['weights']}",
        )
        say(f"igc-nas export {shlex.quote(str(run.folder))} --format dir -o NAME")
