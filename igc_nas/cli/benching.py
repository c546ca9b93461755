"""igc-nas bench: ratios, printed with their conditions; nothing is asserted about a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from igc_nas.cli.loading import quiet_threads
from igc_nas.cli.options import as_json, device_option, runtime_option
from igc_nas.cli.output import put, put_json, say

if TYPE_CHECKING:
    from igc_nas.bench.report import Report
    from igc_nas.device import Device


@click.group()
def bench() -> None:
    """Measure what lowering is worth on this machine: ratios over a fixed set of architectures."""


@bench.command("train")
@click.option("--batch", type=click.IntRange(1, 4096), help="Images per step. [default: the recipe's]")
@click.option("--resolution", type=click.IntRange(8, 256), help="Pixels of a side. [default: the recipe's]")
@device_option
@as_json
def train(batch: int | None, resolution: int | None, device: str, as_json: bool) -> None:
    """Training steps in the chosen forms against the factored network in float32."""
    found = _prepared(device)
    from igc_nas.bench.training import bench_train

    _show(bench_train(found, batch, resolution, say), as_json)


@bench.command("deploy")
@click.option("--batch", "batches", type=click.IntRange(1, 4096), multiple=True, help="[default: 1 and 32]")
@runtime_option
@device_option
@as_json
def deploy(batches: tuple[int, ...], latency_runtime: str | None, device: str, as_json: bool) -> None:
    """One pass in the best form against the factored network."""
    found = _prepared(device)
    from igc_nas.bench.deployment import bench_deploy
    from igc_nas.runtimes import require

    runtime = latency_runtime or "eager"
    require(runtime)  # type: ignore[arg-type]
    _show(bench_deploy(found, batches or (1, 32), runtime, say), as_json)  # type: ignore[arg-type]


@bench.command("latency")
@click.option("--count", type=click.IntRange(3, 1000), default=20, show_default=True, help="Architectures.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@device_option
@as_json
def latency(count: int, seed: int, device: str, as_json: bool) -> None:
    """The same latencies twice, in random order: quiet, and beside a busy neighbour."""
    found = _prepared(device)
    from igc_nas.bench.latencies import bench_latency

    _show(bench_latency(found, count, seed, say), as_json)


@bench.command("search")
@click.option("--trials", type=click.IntRange(2, 1000), default=24, show_default=True, help="Trials of each search.")
@click.option("--chunk", type=click.IntRange(1, 1000), default=6, show_default=True, help="Trials between turns.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@device_option
@as_json
def search(trials: int, chunk: int, seed: int, device: str, as_json: bool) -> None:
    """A default search against one with --forms factored: time for the same trials."""
    found = _prepared(device)
    from igc_nas.bench.searching import bench_search

    _show(bench_search(found, trials, min(chunk, trials), seed, say), as_json)


def _prepared(device: str) -> Device:
    """One thread, and the device."""
    quiet_threads(1)
    from igc_nas.device import find_devices, prepare

    found = find_devices(device)[0]
    prepare(found, 1)
    return found


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        put_json(report.to_dict())
    else:
        put(*report.lines())


COMMANDS = (bench,)
