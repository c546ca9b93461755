"""Datasets on disk: find, verify and read them, with NumPy only.

CIFAR is read in the binary layout of its authors: a record is a label byte (CIFAR-100: a coarse and a fine one) and
3,072 pixels, red, green, blue. Files that came out of an official archive have a manifest with their hashes
(`igc_nas.data.fetch` writes it); files without one are checked for structure and called `cifar10
(unofficial, sha256:...)`. A folder of images of one's own is packed into arrays (`igc_nas.data.packed`) and called
`folder:NAME (32 px, sha256:...)`; by its hash it is found again without the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igc_nas.data import packed
from igc_nas.data.cifar import LAYOUTS, Layout
from igc_nas.data.image_folder import Problems, Progress, no_progress, shown
from igc_nas.data.packed import ImageSet
from igc_nas.data.shapes import SEED, TRAIN_COUNT, VERSION, load_shapes
from igc_nas.errors import ConfigError, DataError, UsageError
from igc_nas.io.files import read_text, user_folder, user_path
from igc_nas.io.text import nearest

Bytes = NDArray[np.uint8]
Labels = NDArray[np.uint8] | NDArray[np.uint16]
MANIFEST = "igc-nas.json"
SHAPES = "shapes"
NAMES = ("cifar10", "cifar100", SHAPES)
SIDE = 32
"""Pixels of a side of the named datasets' images, and the default for a folder of images."""
OF_A_FOLDER = "folder:"
"""The beginning of the label of a folder of images."""


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset that was found. `label` stands in every record, `sha256` is over its training files.

    `mean` and `std` are per channel (red, green, blue), of pixels from 0 to 1.
    """

    name: str
    label: str
    classes: int
    folder: Path | None
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images: ImageSet | None = None
    """What a folder of images holds; None for the named datasets."""
    problems: Problems | None = None
    """The files of the folder that could not be used, if it was just read."""

    @property
    def side(self) -> int:
        """Pixels of a side of its images."""
        return self.images.size if self.images else SIDE

    @property
    def train_count(self) -> int:
        """Images of the training set, held-out ones included."""
        if self.images:
            return self.images.train
        return LAYOUTS[self.name].train_count if self.name in LAYOUTS else TRAIN_COUNT

    @property
    def synthetic(self) -> bool:
        """Whether igc-nas draws the images itself, so that results say nothing about photographs."""
        return is_synthetic(self.name)


def is_synthetic(label: str) -> bool:
    """Whether this is the name or the label of the dataset that igc-nas draws itself."""
    return label.startswith(SHAPES)


def cifar_of(label: str) -> str | None:
    """`cifar10` or `cifar100`, official or not, by a dataset's label; None for another dataset."""
    name = label.partition(" ")[0]
    return name if name in LAYOUTS else None


def normalisation(label: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) per channel by which images of a dataset are normalised; None for an unknown label."""
    if cifar := cifar_of(label):
        return LAYOUTS[cifar].mean, LAYOUTS[cifar].std
    shapes = _shapes_info()
    return (shapes.mean, shapes.std) if label == shapes.label else None


def data_dir(flag: Path | None = None) -> Path:
    """The folder of datasets: the flag, else `$IGC_NAS_DATA`, else the user's cache folder."""
    return user_folder("IGC_NAS_DATA") if flag is None else user_path(flag)


def locate(
    name: str | Path = "auto",
    folder: Path | None = None,
    *,
    image_size: int | None = None,
    progress: Progress = no_progress,
) -> DatasetInfo:
    """Find and verify a dataset; `auto` is CIFAR-10 where it is in `folder`, else `shapes`.

    Without `folder` it is searched in `data_dir()`. Another `name` is the path of a folder of images, one folder per
    class, which is packed at `image_size` (by default 32) pixels a side. Raises `DataError` where the dataset is
    missing (unless `auto`) or damaged, `UsageError` for an unknown name or an impossible size.
    """
    folder = data_dir(folder)
    if is_folder(name):
        return _own_images(user_path(name), folder, SIDE if image_size is None else image_size, progress)
    if image_size not in (None, SIDE):
        raise UsageError(
            f"the images of {name!r:.40} have {SIDE} x {SIDE} pixels",
            "an image size is for a folder of images of your own",
        )
    if name == SHAPES:
        return _shapes_info()
    if name == "auto":
        there = any(_is_there(place) for place in _places(LAYOUTS["cifar10"], folder))
        return locate("cifar10", folder) if there else _shapes_info()
    if name not in LAYOUTS:
        otherwise = f"use {', '.join(NAMES)}, or the path of a folder of images"
        raise UsageError(f"unknown dataset {name!r:.40}", nearest(str(name), NAMES, otherwise))
    layout = LAYOUTS[str(name)]
    for place in _places(layout, folder):
        if _is_there(place):
            return verify(layout, place)
    raise DataError(
        f"{name} is not in {folder}",
        f"igc-nas data {name} fetches it; igc-nas data {name} --from ARCHIVE_OR_FOLDER installs yours",
    )


def is_folder(name: str | Path) -> bool:
    """Whether this is the path of a folder of images rather than the name of a dataset: a folder, or a path."""
    if isinstance(name, Path):
        return True
    try:
        return name not in ("", "auto", *NAMES) and ("/" in name or os.sep in name or user_path(name).is_dir())
    except (OSError, ValueError):  # a name that no file can have
        return False


def relocate(label: str, sha256: str, folder: Path | None = None) -> DatasetInfo:
    """The dataset of a study, by the label and the hash that its records have.

    A folder of images is not needed again once it is packed. Raises `DataError`; the caller compares the hash.
    """
    if not label.startswith(OF_A_FOLDER):
        return locate(label.partition(" ")[0], folder)
    found = packed.open_packed(sha256, data_dir(folder))
    if found is None:
        raise DataError(
            f"the images of {label:.120} are not packed in {data_dir(folder)}",
            "add --dataset FOLDER, the folder of images that they were packed from",
        )
    return _info(label.removeprefix(OF_A_FOLDER).partition(" ")[0], label, found)


def _own_images(root: Path, folder: Path, size: int, progress: Progress) -> DatasetInfo:
    size = packed.checked_size(size)
    found = packed.pack(root, size, folder, progress)
    name = folder_name(root, size)
    return _info(name, f"{OF_A_FOLDER}{name} ({size} px, sha256:{found.sha256[:12]})", found)


def folder_name(root: Path, size: int) -> str:
    """The name of a folder of images in the names of studies: letters, digits and - _ of the folder's own name."""
    words = re.sub(r"[^A-Za-z0-9_]+", "-", shown(root.resolve().name)).strip("-_")[:40] or "images"
    return words if size == SIDE else f"{words}-{size}px"


def _info(name: str, label: str, found: packed.Packed) -> DatasetInfo:
    images = found.images
    return DatasetInfo(
        name,
        label,
        len(images.classes),
        found.folder,
        found.sha256,
        images.mean,
        images.std,
        images,
        found.problems,
    )


def verify(layout: Layout, folder: Path) -> DatasetInfo:
    """Check a folder in binary layout: sizes, labels, class histogram, and hashes where it has a manifest."""
    files = {name: _read(layout, folder, name) for name in layout.files()}
    check_files(layout, files, str(folder))
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    official = _manifest(folder)
    for name, has in hashes.items():
        if official is not None and official.get(name) != has:
            raise DataError(
                f"{folder / name} is damaged: its SHA-256 is not the installed one", f"igc-nas data {layout.name}"
            )
    together = hashlib.sha256("".join(hashes[name] for name in layout.train_files).encode()).hexdigest()
    label = layout.name if official is not None else f"{layout.name} (unofficial, sha256:{together[:12]})"
    return DatasetInfo(layout.name, label, layout.classes, folder, together, layout.mean, layout.std)


def read_train(info: DatasetInfo) -> tuple[Bytes, Labels]:
    """The training set: images (n, 3, 32, 32), uint8, and labels (n,); CIFAR-100's labels are the fine ones.

    The images of a folder are `info.side` pixels wide and high, and mapped into memory.
    """
    if info.folder is None:
        return load_shapes("train")
    if info.images:
        return packed.read_split(info.folder, "train")
    return _records(info, LAYOUTS[info.name].train_files)


def read_test(info: DatasetInfo) -> tuple[Bytes, Labels]:
    """The test set, as `read_train`."""
    if info.folder is None:
        return load_shapes("test")
    if info.images:
        return packed.read_split(info.folder, "test")
    return _records(info, (LAYOUTS[info.name].test_file,))


def split_held_out(labels: Labels, held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of (all other images, `held_out` images), both ascending: stratified by class, drawn by `seed`.

    Each class has its share of the held-out images, to one image where all classes have as many; so none is held out
    as a whole that is rarer than the others. Raises `UsageError` unless 0 < held_out < n.
    """
    if not 0 < held_out < len(labels):
        raise UsageError(f"cannot hold {held_out} of {len(labels)} images out", f"use 1 to {len(labels) - 1}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(labels)]))
    order = rng.permutation(len(labels))
    # place: the image is that far, 0 to 1, in the drawn order of its class. Those of least place are of all classes.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        place[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    taken = order[np.argsort(place[order], kind="stable")][:held_out]
    mask = np.zeros(len(labels), dtype=bool)
    mask[taken] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def auto_notice(info: DatasetInfo, folder: Path) -> str | None:
    """A warning where `auto` found no CIFAR-10; None where it did."""
    if not info.synthetic or any(_is_there(place) for place in _places(LAYOUTS["cifar10"], folder)):
        return None
    return (
        f"SYNTHETIC images (`shapes`): their errors say nothing about CIFAR-10, which is not in {folder}\n"
        "igc-nas data cifar10 fetches it (170 MB, 30 to 60 minutes); --from ARCHIVE_OR_FOLDER installs yours"
    )


def check_files(layout: Layout, files: Mapping[str, bytes], where: str) -> None:
    """Check the bytes of all files: sizes, labels, and equally frequent classes in each set. Raises `DataError`."""
    for name, data in files.items():
        _check_size(layout, name, len(data))
        worst = int(_labels(layout, data).max())
        if worst >= layout.classes:
            raise DataError(
                f"{where}: {name} holds the label {worst}; {layout.name} has {layout.classes} classes",
                f"igc-nas data {layout.name}",
            )
    for names in (layout.train_files, (layout.test_file,)):
        counts = sum(np.bincount(_labels(layout, files[name]), minlength=layout.classes) for name in names)
        least, most = np.min(counts), np.max(counts)
        if least != most:
            raise DataError(
                f"{where}: {names[0]}... classes have {least} to {most} images; {layout.name} has equally many of each",
                f"igc-nas data {layout.name}",
            )


def _check_size(layout: Layout, name: str, size: int) -> None:
    expected = layout.files()[name] * layout.record
    if size != expected:
        raise DataError(
            f"{name} has {size:,} bytes; {layout.name} has {expected:,} there", f"igc-nas data {layout.name}"
        )


def _places(layout: Layout, folder: Path) -> tuple[Path, ...]:
    """Folders to search: where `igc_nas.data.fetch` installs, then `folder` itself where it has that name."""
    inside = folder / layout.folder
    return (inside, folder) if folder.name == layout.folder else (inside,)


def _is_there(place: Path) -> bool:
    """Whether anything has this name: a file where the folder should be is damaged data, not missing data."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise DataError(
            f"{place!s:.200}: {getattr(error, 'strerror', None) or error}", "choose another folder with --data-dir"
        ) from None
    return True


def _shapes_info() -> DatasetInfo:
    digest = hashlib.sha256(f"{VERSION}/{SEED}".encode()).hexdigest()
    return DatasetInfo(SHAPES, SHAPES, 10, None, digest, (0.499, 0.498, 0.498), (0.19, 0.189, 0.189))


def _read(layout: Layout, folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        # The size is checked first: a pipe has no end, and a file that is too large may not fit into memory.
        _check_size(layout, name, path.stat().st_size)
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", f"igc-nas data {layout.name}") from None
    _check_size(layout, name, len(data))
    return data


def _labels(layout: Layout, data: bytes) -> Bytes:
    return np.frombuffer(data, np.uint8).reshape(-1, layout.record)[:, layout.label_bytes - 1]


def _manifest(folder: Path) -> dict[str, str] | None:
    """SHA-256 by file of an official installation; None where there is no manifest."""
    path = folder / MANIFEST
    try:
        if not path.exists() and not path.is_symlink():
            return None
        manifest = json.loads(read_text(path))
        return {str(name): str(value) for name, value in manifest["files"].items()}
    except (ConfigError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} is damaged", "install the dataset again with igc-nas data") from None


def _records(info: DatasetInfo, names: Sequence[str]) -> tuple[Bytes, Bytes]:
    layout = LAYOUTS[info.name]
    assert info.folder is not None
    parts = [np.frombuffer(_read(layout, info.folder, name), np.uint8).reshape(-1, layout.record) for name in names]
    records = np.concatenate(parts) if len(parts) > 1 else parts[0]
    images = np.ascontiguousarray(records[:, layout.label_bytes :]).reshape(-1, 3, 32, 32)
    return images, np.ascontiguousarray(records[:, layout.label_bytes - 1])
