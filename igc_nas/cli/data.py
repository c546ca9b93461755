"""`igc-nas data`: download, verify and install a dataset; show or pack a folder of images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igc_nas.cli.loading import packing_bar
from igc_nas.cli.options import FILE, as_json, data_dir_option, image_size_option
from igc_nas.cli.output import put_json, put_text
from igc_nas.errors import UsageError
from igc_nas.io.console import table_lines, terminal_width
from igc_nas.io.files import user_path
from igc_nas.io.text import nearest

if TYPE_CHECKING:
    from igc_nas.data.image_folder import Listing, Survey

MOST_CLASSES = 20
"""The number of classes of a folder that are listed."""


@click.command()
@click.argument("name", metavar="NAME|FOLDER")
@click.option(
    "--from", "source", type=FILE, help="A local archive or folder, in binary or python layout, to install from."
)
@click.option("--url", help="Another address of the official archive.")
@image_size_option
@click.option("--pack", "packs", is_flag=True, help="Pack the folder of images now; a search or training does it too.")
@data_dir_option
@as_json
def data(
    name: str,
    source: Path | None,
    url: str | None,
    image_size: int | None,
    packs: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Download and verify a dataset, or show a folder of images.

    NAME is cifar10 or cifar100; an interrupted download is resumed. FOLDER has one folder of images per class, or a
    train and a test (or val) folder of such; what it holds is printed, and what would be packed.

    \b
    Examples:
      igc-nas data cifar10
      igc-nas data cifar10 --from cifar-10-binary.tar.gz
    """
    from igc_nas.data.cifar import LAYOUTS
    from igc_nas.data.datasets import data_dir as resolve
    from igc_nas.data.datasets import is_folder
    from igc_nas.data.fetch import fetch

    folder = resolve(data_dir)
    if is_folder(name):
        if source or url:
            raise UsageError("--from and --url are for cifar10 and cifar100", "leave them out")
        _show_folder(user_path(name), image_size, folder, packs=packs, as_json=as_json)
        return
    if image_size or packs:
        raise UsageError("--image-size and --pack are for a folder of images", "leave them out, or name a folder")
    if name not in (*LAYOUTS, "shapes"):
        hint = nearest(name, LAYOUTS, f"use {', '.join(LAYOUTS)}, or the path of a folder of images")
        raise UsageError(f"unknown dataset {name!r:.80}", hint)
    with _download_bar() as progress:
        info = fetch(name, folder, source=source, url=url, progress=progress)
    facts = {"dataset": info.label, "folder": str(info.folder), "classes": info.classes, "sha256": info.sha256}
    put_json(facts) if as_json else put_text(f"{info.label} is in {info.folder}")


def _show_folder(root: Path, image_size: int | None, data_dir: Path, *, packs: bool, as_json: bool) -> None:
    """Print what a folder of images holds, and what is or would be packed of it."""
    from igc_nas.data.datasets import SIDE, locate
    from igc_nas.data.image_folder import list_images, survey
    from igc_nas.data.packed import checked_size

    size = checked_size(SIDE if image_size is None else image_size)
    with packing_bar() as progress:
        packed = locate(root, data_dir, image_size=size, progress=progress) if packs else None
        listing = list_images(root, progress)
        facts = folder_facts(listing, survey(listing, progress=progress), size, data_dir)
    if packed is not None:
        facts["dataset"] = packed.label
    put_json(facts) if as_json else put_text(*_lines(facts))


def folder_facts(listing: Listing, seen: Survey, size: int, data_dir: Path) -> dict[str, Any]:
    """What a folder of images holds, and what is packed of it, or would be."""
    from igc_nas.data.image_folder import shown
    from igc_nas.data.packed import folder_of, remembered

    known = remembered(listing, size, data_dir)
    train, test = listing.counts(False), listing.counts(True)
    if known is not None:
        unusable, named = known.unusable, known.named
    else:
        unusable = listing.problems.count + seen.problems.count
        named = (*listing.problems.named, *seen.problems.named)
    return {
        "folder": shown(listing.root),
        "images": len(listing),
        "classes": [
            {"name": shown(name), "train": of_train, "test": of_test}
            for name, of_train, of_test in zip(listing.classes, train, test, strict=True)
        ],
        "split": "its own" if listing.has_test else "none",
        "not_used": listing.unused,
        "other_files": listing.others,
        "unusable": unusable,
        "unusable_named": named,
        "sampled": seen.sampled,
        "shorter_side": dict(zip(("least", "median", "most"), seen.shorter, strict=True)),
        "modes": seen.modes,
        "image_size": size,
        "bytes": 3 * size * size * len(listing),
        "packed_in": None if known is None else str(folder_of(known.sha256, data_dir)),
    }


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    from igc_nas.data.packed import TEST_SHARE

    classes, size = facts["classes"], facts["image_size"]
    least, median, most = facts["shorter_side"].values()
    some = "" if facts["sampled"] == facts["images"] else f" (of {facts['sampled']:,} that were looked at)"
    yield f"folder    {facts['folder']}"
    yield f"images    {facts['images']:,} of {len(classes):,} classes"
    if facts["split"] == "none":
        yield f"split     none: 1 of {TEST_SHARE} images of each class will be test images, chosen by their content"
    else:
        yield f"split     {sum(c['train'] for c in classes):,} train, {sum(c['test'] for c in classes):,} test"
    if facts["not_used"]:
        yield f"not used  {', '.join(facts['not_used'])}"
    yield f"sides     the shorter one {least:,} to {most:,} pixels, median {median:,}{some}"
    yield f"modes     {', '.join(f'{mode} {count:,}' for mode, count in facts['modes'].items())}{some}"
    if facts["other_files"]:
        yield f"others    {facts['other_files']:,} files whose names are not those of images"
    if facts["unusable"]:
        yield f"unusable  {facts['unusable']:,} files{some}, among them"
        yield from (f"          {line}" for line in facts["unusable_named"])
    where = f", in {facts['packed_in']}" if facts["packed_in"] else ""
    verb = "is" if where else "would be"
    yield f"packed    {verb} {facts['images'] - facts['unusable']:,} x 3 x {size} x {size}, " + (
        f"{facts['bytes'] / 1e6:,.1f} MB{where}"
    )
    if "dataset" in facts:
        yield f"dataset   {facts['dataset']}"
    if empty := [known["name"] for known in classes if not known["train"]]:
        more = f" and {len(empty) - 3:,} more" if len(empty) > 3 else ""
        yield f"EMPTY     {', '.join(empty[:3])}{more}: a class without images is refused, move its folder away"
    yield ""
    columns = ("train",) if facts["split"] == "none" else ("train", "test")
    rows = [(known["name"], *(f"{known[name]:,}" for name in columns)) for known in classes[:MOST_CLASSES]]
    yield from table_lines(("class", *columns), rows, ("class",), terminal_width())
    if len(classes) > MOST_CLASSES:
        yield f"and {len(classes) - MOST_CLASSES:,} more classes"


@contextlib.contextmanager
def _download_bar() -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    from igc_nas.io.console import console

    screen = console()
    bars = Bars(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=screen, disable=not screen.is_terminal,
    )  # fmt: skip
    with bars:
        task = bars.add_task("download", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
