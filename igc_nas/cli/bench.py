"""`igc-nas bench`: benchmarks, whose results are printed with their conditions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from igc_nas.cli.loading import core_notices, engine_notices, load, load_torch, quiet_threads
from igc_nas.cli.options import COUNT, FILE, SECONDS, Choice, as_json, device_option, runtime_option, studies_dir
from igc_nas.cli.output import put, put_json, put_text, say
from igc_nas.errors import UsageError
from igc_nas.io.console import terminal_width

if TYPE_CHECKING:
    from igc_nas.arch.config import ArchConfig
    from igc_nas.bench.engine import EngineReport
    from igc_nas.bench.report import Report
    from igc_nas.nn.device import Device
    from igc_nas.study.spec import RuntimeName, SamplerName


@click.group()
def bench() -> None:
    """Benchmark lowering, samplers and the search engine.

    Lowering is measured on this machine, over fixed architectures.

    \b
    Examples:
      igc-nas bench deploy
      igc-nas bench sampler --table igc_table --no-landscapes
    """


network_option = click.option(
    "--network", "networks", multiple=True, metavar="NAME", help="Of the 18 networks only this; may be repeated."
)


@bench.command("train")
@network_option
@click.option("--batch", type=click.IntRange(1, 4096), help="Images per step. [default: the recipe's]")
@click.option("--resolution", type=click.IntRange(8, 256), help="Pixels of a side. [default: the recipe's]")
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True, help="Baselines by torch.compile.")
@device_option
@as_json
def train(
    networks: tuple[str, ...], batch: int | None, resolution: int | None, compiled: bool, device: str, as_json: bool
) -> None:
    """Training steps: ours against the fastest of PyTorch's.

    PyTorch's are NCHW and channels-last, float32 and bfloat16, eager and compiled. Compiling takes about a minute for
    each of the 18 networks.

    \b
    Examples:
      igc-nas bench train --no-compile
      igc-nas bench train --network igcv1-l24m2 --batch 128 --resolution 32
    """
    found = _prepared(device)
    from igc_nas.bench.training import bench_train

    _show(bench_train(found, batch, resolution, say, compiled=compiled, archs=_named(networks)), as_json)


@bench.command("deploy")
@network_option
@click.option("--batch", "batches", type=click.IntRange(1, 4096), multiple=True, help="[default: 1 and 32]")
@runtime_option
@click.option("--multiplied-out", is_flag=True, help="With native: also with chains multiplied out.")
@click.option("--rank", type=click.IntRange(3, 1000), metavar="N", help="With native: compare the order of N drawn "
              "architectures with that by MACs, parameters and ONNX Runtime.")  # fmt: skip
@device_option
@as_json
def deploy(
    networks: tuple[str, ...],
    batches: tuple[int, ...],
    latency_runtime: RuntimeName | None,
    multiplied_out: bool,
    rank: int | None,
    device: str,
    as_json: bool,
) -> None:
    """A forward pass: generated C against other runtimes.

    The peers of --runtime native, the default on a CPU with a C compiler, are eager PyTorch, ONNX Runtime, OpenVINO and
    ExecuTorch, those that are installed. With another runtime: its best form against the factored network there.

    \b
    Examples:
      igc-nas bench deploy --batch 1
      igc-nas bench deploy --rank 40
    """
    found = _prepared(device)
    from igc_nas.bench.deployment import bench_deploy
    from igc_nas.evaluation.runtimes import require

    runtime = latency_runtime or found.deployment_runtime
    if runtime == "native":
        from igc_nas.bench.native import bench_native, bench_rank

        if rank is not None:
            if networks:
                raise UsageError("--rank draws its networks: it does not go with --network")
            _show(bench_rank(found, rank, say=say), as_json)
            return
        archs = _named(networks)
        _show(bench_native(found, batches or (1, 32), say, multiplied_out=multiplied_out, archs=archs), as_json)
        return
    if multiplied_out or rank is not None:
        raise UsageError("--multiplied-out and --rank go with --runtime native")
    require(runtime)
    say(*engine_notices(runtime))
    _show(bench_deploy(found, batches or (1, 32), runtime, say, archs=_named(networks)), as_json)


@bench.command("latency")
@click.option("--count", type=click.IntRange(3, 1000), default=20, show_default=True, help="Number of architectures.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@device_option
@as_json
def latency(count: int, seed: int, device: str, as_json: bool) -> None:
    """Latencies repeated, idle and beside a busy process.

    Each architecture is measured twice, in random order.

    \b
    Examples:
      igc-nas bench latency
      igc-nas bench latency --count 40 --json
    """
    found = _prepared(device)
    from igc_nas.bench.latency import bench_latency

    _show(bench_latency(found, count, seed, say), as_json)


@bench.command("search")
@click.option("--trials", type=click.IntRange(2, 1000), default=24, show_default=True, help="Trials of each search.")
@click.option("--chunk", type=click.IntRange(1, 1000), default=6, show_default=True, help="Trials in each turn.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@device_option
@as_json
def search(trials: int, chunk: int, seed: int, device: str, as_json: bool) -> None:
    """A default search against one with --forms factored.

    Both evaluate the same trials, in turns.

    \b
    Examples:
      igc-nas bench search
      igc-nas bench search --trials 12 --chunk 4
    """
    found = _prepared(device, by_workers=True)
    from igc_nas.bench.search import bench_search

    _show(bench_search(found, trials, min(chunk, trials), seed, say), as_json)


@bench.command("workers")
@click.option("--trials", type=click.IntRange(2, 1000), default=24, show_default=True, help="Trials of each setting.")
@click.option("--chunk", type=click.IntRange(2, 1000), default=4, show_default=True, help="Trials in each turn.")
@click.option("--dataset", type=Choice(["auto", "cifar10", "cifar100", "shapes"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@device_option
@as_json
def workers(trials: int, chunk: int, dataset: str, seed: int, device: str, as_json: bool) -> None:
    """Trials an hour: one worker, two, one of two threads.

    Also the share of a trial that measuring takes. Takes twenty minutes on two cores.

    \b
    Examples:
      igc-nas bench workers
      igc-nas bench workers --trials 12 --dataset shapes
    """
    found = _prepared(device, by_workers=True)
    from igc_nas.bench.workers import bench_workers

    _show(bench_workers(found, trials, min(chunk, trials), dataset, seed, say), as_json)


@bench.command("sampler")
@click.option(
    "--table", "tables", metavar="STUDY", multiple=True, help="A study that has evaluated its whole space (repeatable)."
)
@click.option(
    "--landscapes/--no-landscapes", default=True, show_default=True, help="Include errors fitted to recorded trainings."
)
@click.option("--samplers", metavar="A,B,...", help="Also peers: gp, nsga3 (Optuna's), botorch, "
              "smac (extra bench). [default: all but brute-force]")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 1000), default=20, show_default=True, help="Runs of each sampler.")
@click.option(
    "--evaluations", type=click.IntRange(1, 2000), default=200, show_default=True, help="Evaluations of each run."
)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes. [default: one per core]")
@click.option("-o", "--output", type=FILE, help="Record runs in this file (JSON lines), and continue from it.")
@click.option("--html", type=FILE, help="Write the figure as a page, .html.")
@click.option("--png", type=FILE, help="Write the figure as a .png or .svg (needs igc-nas[png]).")
@as_json
@studies_dir
def sampler(
    tables: tuple[str, ...],
    landscapes: bool,
    samplers: str | None,
    seeds: int,
    evaluations: int,
    workers: int | None,
    output: Path | None,
    html: Path | None,
    png: Path | None,
    as_json: bool,
    root: Path,
) -> None:
    """Compare samplers by hypervolume over evaluations.

    Searches are replayed in virtual time on tabular benchmarks (recorded trainings) and on landscapes (errors by a
    model fitted to recorded trainings, and by a formula). Takes a few minutes.

    \b
    Examples:
      igc-nas bench sampler --table igc_table --no-landscapes
      igc-nas bench sampler --samplers known-cost,gp,nsga3 -o runs.jsonl
    """
    quiet_threads(1)
    from igc_nas.bench.samplers.landscapes import landscapes as fitted
    from igc_nas.bench.samplers.plots import figure_files, write_figure
    from igc_nas.bench.samplers.problems import tabular_benchmark
    from igc_nas.bench.samplers.report import SAMPLERS, bench_sampler, parse_samplers
    from igc_nas.study.defaults import usable_cores

    names = parse_samplers(samplers) if samplers is not None else SAMPLERS
    figures = figure_files(html, png)  # raises for an unknown ending, before the replay
    problems = [tabular_benchmark(load(name, root)) for name in tables] + [*(fitted() if landscapes else ())]
    if not problems:
        raise UsageError("nothing to replay", "add --table STUDY, or --landscapes")
    say(*core_notices("workers", workers))
    report = bench_sampler(problems, names, seeds, evaluations, workers or usable_cores(), output, say)
    # The curves are long: one line rather than one for each number.
    if as_json:
        put(json.dumps(report.to_dict(), allow_nan=False))
    else:
        put_text(*report.lines(terminal_width()))
    for path in figures:
        write_figure(report, path)


@bench.command("against-optuna")
@click.option("--time", "time_s", type=SECONDS, default="9m", show_default=True, help="Time of each run.")
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Pairs of runs.")
@click.option("--dataset", default="auto", show_default=True, help="auto, cifar10, cifar100 or shapes.")
@click.option("--budget-params", type=COUNT, default="2M", show_default=True, help="Upper limit on parameters.")
@click.option("-o", "--output", type=FILE, help="Record runs in this file (JSON lines), and continue from it.")
@click.option("--html", type=FILE, help="Write the figure as a page, .html.")
@click.option("--png", type=FILE, help="Write the figure as a .png or .svg (needs igc-nas[png]).")
@device_option
@as_json
def against_optuna(
    time_s: float,
    seeds: int,
    dataset: str,
    budget_params: int,
    output: Path | None,
    html: Path | None,
    png: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """A search against a plain Optuna study, by the clock.

    TPE, the same space, recipe, images and time; runs alternate. The plain study is igc_nas/bench/plain_optuna.py.
    Takes an hour on two cores: 2 x seeds x time. With -o, the same command continues.

    \b
    Examples:
      igc-nas bench against-optuna -o runs.jsonl
      igc-nas bench against-optuna --time 3m --seeds 1 --dataset cifar10
    """
    from igc_nas.bench.samplers.plots import figure_files, write_plotly

    figures = figure_files(html, png)
    found = _prepared(device, by_workers=True)
    from igc_nas.bench.against_optuna import against_optuna_figure, bench_against_optuna

    result = bench_against_optuna(found, time_s, seeds, dataset, budget_params, output, say)
    if as_json:
        put(json.dumps(result.to_dict(), allow_nan=False))
    else:
        put_text(*result.lines(terminal_width()))
    for path in figures:
        write_plotly(against_optuna_figure(result), path)


@bench.command("engine")
@click.option(
    "--trials", type=click.IntRange(2, 1_000_000), default=10_000, show_default=True, help="Trials to evaluate."
)
@click.option("--workers", type=click.IntRange(1, 10_000), default=256, show_default=True, help="Virtual evaluators.")
@click.option(
    "--sampler",
    type=Choice(["known-cost", "stratified", "random", "tpe", "nsga2", "evolution"]),
    default="stratified",
    show_default=True,
    help="Sampler; its time is not counted.",
)
@click.option("--storage", help="Database, in which the study is kept. [default: SQLite in a temporary folder]")
@as_json
def engine(trials: int, workers: int, sampler: SamplerName, storage: str | None, as_json: bool) -> None:
    """Overhead of coordinator and store per trial.

    Trials are evaluated in no time, and recorded in a real database.

    \b
    Examples:
      igc-nas bench engine --trials 1000
      igc-nas bench engine --sampler known-cost --trials 300
    """
    quiet_threads(1)
    from igc_nas.bench.engine import bench_engine

    _show(bench_engine(trials, workers, sampler, storage, say=say), as_json)


def _named(names: tuple[str, ...]) -> dict[str, ArchConfig] | None:
    """The benchmark's networks of these names; None for all. Raises `UsageError` for an unknown name."""
    from igc_nas.bench.report import architectures
    from igc_nas.io.text import nearest

    known = architectures()
    for name in names:
        if name not in known:
            raise UsageError(f"{name!r:.60} is not a network of the benchmark", nearest(name, known, ", ".join(known)))
    return {name: known[name] for name in names} or None


def _prepared(device: str, *, by_workers: bool = False) -> Device:
    """The device, with torch set to one thread on it; a GPU that is used `by_workers` is left to them."""
    quiet_threads(1)
    load_torch()
    from igc_nas.nn.device import configure_torch, find_devices

    found = find_devices(device)[0]
    if found.kind == "cpu" or not by_workers:
        configure_torch(found, 1)
    return found


def _show(report: Report | EngineReport, as_json: bool) -> None:
    if as_json:
        put_json(report.to_dict())
    else:
        put_text(*report.lines(terminal_width()))
