"""Commands that make something: train, dashboard, data."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from igc_nas.cli.loading import architecture, load, quiet_threads
from igc_nas.cli.options import FILE, as_json, data_dir_option, device_option, storage_option, studies_dir
from igc_nas.cli.output import put, put_json, say
from igc_nas.errors import UsageError

if TYPE_CHECKING:
    from igc_nas.study.study import Study

PORT = 8321


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
    from igc_nas.evaluation.retraining import LongRun

    config = architecture(arch, None, root)
    run = LongRun.prepare(config, threads=threads, **{k: v for k, v in flags.items() if k != "as_json"})
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


@click.command()
@click.argument("study", nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, help="File to write. [default: dashboard.html in the study's folder]")
@click.option("--picture", type=FILE, help="Write the front as a .png or .svg picture, too (needs igc-nas[png]).")
@click.option(
    "--serve", "is_served", is_flag=True, help="Serve the page to this machine's browsers; it follows the search."
)
@click.option("--port", type=click.IntRange(0, 65_535), help=f"Port of --serve; 0 takes a free one. [default: {PORT}]")
@storage_option
@studies_dir
def dashboard(
    study: tuple[str, ...],
    out: Path | None,
    picture: Path | None,
    is_served: bool,
    port: int | None,
    storage: str | None,
    root: Path,
) -> None:
    """Write STUDY, or several side by side, as one self-contained page: fronts, trials, choices, forms, trainings."""
    from igc_nas.analysis.dashboard.document import write_dashboard
    from igc_nas.analysis.plots import front_picture
    from igc_nas.study.study import PAGE_FILE

    if is_served and (out or picture):
        raise UsageError("--serve writes no file", "leave out -o and --picture, or --serve")
    if port is not None and not is_served:
        raise UsageError("--port is a port to serve on", "add --serve")
    first, *more = loaded = [load(name, root, storage) for name in study]
    if is_served:
        _serve(study, loaded, PORT if port is None else port, storage, root)
    if more and (out is None or picture):
        raise UsageError(
            "a picture is of one study" if picture else "the page of several studies has no folder", "-o page.html"
        )
    if out is None and first.folder is None:
        raise UsageError(f"{first.spec.name} is read from a database and has no folder here", "name the file with -o")
    page = out or (first.folder or Path()) / PAGE_FILE
    write_dashboard(loaded, page)
    put(str(page))
    if picture:
        front_picture(first, picture)
        put(str(picture))


def _serve(names: Sequence[str], studies: Sequence[Study], port: int, storage: str | None, root: Path) -> NoReturn:
    """Serve the page until Ctrl-C."""
    from functools import partial

    from igc_nas.analysis.dashboard.server import Page, Server, Watched

    stored = storage is not None
    watched = [
        Watched(s, partial(load, n, root, storage) if stored else None) for n, s in zip(names, studies, strict=True)
    ]
    server = Server(Page(watched), port)
    put(server.url)
    say("to this machine only; it follows the search. Ctrl-C ends it")
    server.run()


@click.command()
@click.argument("name", type=click.Choice(["cifar10", "cifar100", "shapes"]))
@click.option("--from", "source", type=FILE, help="An archive or folder that you have: binary or python layout.")
@click.option("--url", help="Another place to download the official archive from.")
@data_dir_option
@as_json
def data(name: str, source: Path | None, url: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Fetch a dataset, verify it, and put it where searches look; a download that was cut goes on."""
    from igc_nas.data.datasets import data_dir as resolve
    from igc_nas.data.fetch import fetch

    folder = resolve(data_dir)
    with _download_bar() as progress:
        info = fetch(name, folder, source=source, url=url, progress=progress)
    facts = {"dataset": info.label, "folder": str(info.folder), "classes": info.classes, "sha256": info.sha256}
    put_json(facts) if as_json else put(f"{info.label} is in {info.folder}")


@contextlib.contextmanager
def _download_bar() -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    from igc_nas.io.console import console

    screen = console(stderr=True)
    bars = Bars(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=screen, disable=not screen.is_terminal,
    )  # fmt: skip
    with bars:
        task = bars.add_task("download", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


COMMANDS = (train, dashboard, data)
