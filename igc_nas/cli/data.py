"""`igc-nas data`: download, verify and install a dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from igc_nas.cli.options import FILE, as_json, data_dir_option
from igc_nas.cli.output import put, put_json


@click.command()
@click.argument("name", type=click.Choice(["cifar10", "cifar100", "shapes"]))
@click.option(
    "--from", "source", type=FILE, help="A local archive or folder, in binary or python layout, to install from."
)
@click.option("--url", help="Another address of the official archive.")
@data_dir_option
@as_json
def data(name: str, source: Path | None, url: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Download, verify and install a dataset.

    An interrupted download is resumed.
    """
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
