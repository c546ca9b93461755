"""`igc-nas dashboard`: write or serve studies as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from igc_nas.cli.loading import load
from igc_nas.cli.options import FILE, storage_option, studies_dir
from igc_nas.cli.output import put, say
from igc_nas.errors import UsageError

if TYPE_CHECKING:
    from igc_nas.analysis.dashboard.server import Server
    from igc_nas.study.study import Study

PORT = 8321


@click.command()
@click.argument("study", nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, help="File to write. [default: dashboard.html in the study's folder]")
@click.option("--picture", type=FILE, help="Also write the front as a .png, .svg or .pdf (needs igc-nas[png]).")
@click.option("--finals-picture", type=FILE, help="Also write the finals as a .png, .svg or .pdf (needs igc-nas[png]).")
@click.option(
    "--serve", "is_served", is_flag=True, help="Serve the page on 127.0.0.1 and update it while the search runs."
)
@click.option("--port", type=click.IntRange(0, 65_535), help=f"Port of --serve; 0: any free port. [default: {PORT}]")
@storage_option
@studies_dir
def dashboard(
    study: tuple[str, ...],
    out: Path | None,
    picture: Path | None,
    finals_picture: Path | None,
    is_served: bool,
    port: int | None,
    storage: str | None,
    root: Path,
) -> None:
    """Write or serve studies as one self-contained page.

    It shows fronts, trials, choices, forms and trainings, of several studies side by side.

    \b
    Examples:
      igc-nas dashboard igc_cifar10_2m -o page.html
      igc-nas dashboard mine --serve
    """
    if is_served and (out or picture or finals_picture):
        raise UsageError("--serve writes no file", "leave out -o and the pictures, or --serve")
    if port is not None and not is_served:
        raise UsageError("--port is a port to serve on", "add --serve")
    loaded = [load(name, root, storage) for name in study]
    if is_served:
        server = served(study, loaded, PORT if port is None else port, storage, root)
        put(server.url)
        say("to this machine only, updated while the search runs. Ctrl-C ends it")
        server.wait()
    put(*map(str, written(loaded, out, picture, finals_picture)))


def written(
    studies: Sequence[Study], out: Path | None, picture: Path | None, finals_picture: Path | None
) -> list[Path]:
    """Write the page of studies, and pictures of one; returns the files, the page first. Raises `UsageError`."""
    from igc_nas.analysis import plots
    from igc_nas.analysis.dashboard.document import write_dashboard

    asked = ((picture, plots.front_picture), (finals_picture, plots.finals_picture))
    pictures = [(file, draw) for file, draw in asked if file]
    first, *more = studies
    if more and (out is None or pictures):
        raise UsageError(
            "a picture is of one study" if pictures else "the page of several studies has no folder", "-o page.html"
        )
    if out is None and first.folder is None:
        raise UsageError(f"{first.spec.name} is read from a database and has no folder here", "name the file with -o")
    if out is not None and out.suffix.lower() not in ("", ".html", ".htm"):
        raise UsageError(f"the page is HTML, {out.name!r:.120} is not", "name it .html; --picture writes a picture")
    for file, _ in pictures:
        plots.picture_kind(file)  # raises for an unknown ending, before the page is written
    page = out or _page_of(first)
    write_dashboard(studies, page)
    for file, draw in pictures:
        draw(first, file)
    return [page, *(file for file, _ in pictures)]


def _page_of(study: Study) -> Path:
    """The default page of a study: in its folder; in the working folder for a study inside the installed package."""
    from igc_nas.io.resources import is_installed
    from igc_nas.study.study import PAGE_FILE

    folder = study.folder or Path()
    if is_installed(folder):
        return Path(f"{folder.name}.html")
    return folder / PAGE_FILE


def served(names: Sequence[str | Path], studies: Sequence[Study], port: int, storage: str | None, root: Path) -> Server:
    """The server of a page of studies, which reads them by their `names` again where they are in a `storage`.

    Raises `UsageError` where no study is named, or the port is not available.
    """
    from functools import partial

    from igc_nas.analysis.dashboard.server import Page, Server, WatchedStudy

    stored = storage is not None
    watched = [
        WatchedStudy(s, partial(load, n, root, storage) if stored else None)
        for n, s in zip(names, studies, strict=True)
    ]
    return Server(Page(watched), port)
