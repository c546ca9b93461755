"""A folder of images packed into arrays, once per content and size: `images/ID/*.npy` in the folder of datasets.

The id is a hash of the images' files, their classes, the split and the size; names of files and the folder's own name
do not count. Within a class, images are in the order of their hashes. Without a `test` folder, a fifth of the images
of each class (rounded, one or more) are test images: those of the least hashes, so the split follows from the content.

`images/listings/` remembers the content of a folder by the paths, sizes and times of its files: an unchanged folder is
not read again. Arrays are verified by their hashes whenever they are opened, and are mapped into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from igc_nas.data.image_folder import (
    CHUNK,
    HINT,
    Listing,
    Problems,
    Progress,
    UnusableImageError,
    decoded,
    list_images,
    no_progress,
    quiet_pillow,
    shown,
)
from igc_nas.data.lock import alone
from igc_nas.errors import ConfigError, DataError, IgcNasError, UsageError
from igc_nas.io.files import read_text, sha256_of, write_whole
from igc_nas.io.records import Frozen
from igc_nas.io.text import printable

VERSION = 1
"""Of what is packed and how: a change of one pixel of one image is another version."""
TEST_SHARE = 5
"""Without a test set of the user's own, one of this number of images is a test image."""
LARGEST_SIDE, SMALLEST_SIDE = 1024, 4
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
ARRAYS = tuple(f"{split}_{what}.npy" for split in SPLITS for what in ("images", "labels"))

Three = Annotated[tuple[float, float, float], Field(strict=False)]


class ImageSet(Frozen):
    """Images of one's own: `size` x `size` pixels, of `classes`; `mean` and `std` of the training images, 0 to 1."""

    size: Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE)]
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=2)]
    train: Annotated[int, Field(ge=1)]
    """Training images, held-out ones included."""
    test: Annotated[int, Field(ge=1)]
    mean: Three
    std: Three


class Manifest(Frozen):
    """What stands beside the arrays; `files` are their hashes by name."""

    version: int
    sha256: str
    images: ImageSet
    files: dict[str, str]


class Remembered(Frozen):
    """A listing's content as it was packed, and what was left out."""

    sha256: str
    unusable: int = 0
    named: Annotated[tuple[str, ...], Field(strict=False)] = ()


@dataclass(frozen=True)
class Packed:
    """A packed folder of images: where it lies, its hash, and the files that could not be used."""

    folder: Path
    sha256: str
    images: ImageSet
    problems: Problems


def checked_size(size: int) -> int:
    """A side at which images are packed, as Python's integer. Raises `UsageError` for any other."""
    whole = int(size) if isinstance(size, Integral) else 0
    if not SMALLEST_SIDE <= whole <= LARGEST_SIDE:
        raise UsageError(f"an image size is from {SMALLEST_SIDE} to {LARGEST_SIDE} pixels, whole; it is {size!r:.40}")
    return whole


def pack(root: Path, size: int, data_dir: Path, progress: Progress = no_progress) -> Packed:
    """Pack a folder of images into `data_dir`, or find it packed. Raises `DataError`."""
    listing = list_images(root, progress)
    known = remembered(listing, size, data_dir)
    if known is not None and (found := _whole(known.sha256, data_dir)) is not None:
        return Packed(*found, Problems(known.unusable, list(known.named)))
    place = data_dir / "images"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{shown(place)}: {error.strerror or error}", "choose another folder with --data-dir") from None
    with alone(place, "packing", f"images are being packed in {shown(place)}"):
        for old in place.glob(".packing-*"):  # of a process that was killed
            shutil.rmtree(old, ignore_errors=True)
        _check_space(len(listing), size, place)
        temporary = place / f".packing-{secrets.token_hex(4)}"
        try:
            temporary.mkdir()
            sha256, images = _pack(listing, size, temporary, progress)
            if _whole(sha256, data_dir) is None:
                shutil.rmtree(folder_of(sha256, data_dir), ignore_errors=True)
                temporary.rename(folder_of(sha256, data_dir))
            _remember(listing, size, sha256, data_dir)
        except (OSError, IgcNasError) as error:
            if isinstance(error, DataError):
                raise
            reason = error.message if isinstance(error, IgcNasError) else error.strerror or error
            raise DataError(f"the images cannot be packed into {shown(place)}: {reason}", "--data-dir FOLDER") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Packed(folder_of(sha256, data_dir), sha256, images, listing.problems)


def _check_space(count: int, size: int, place: Path) -> None:
    """Raise `DataError` where the disk has no room for all images twice: as they are decoded, and in their order."""
    needed, free = 2 * count * 3 * size**2, shutil.disk_usage(place).free
    if needed > free:
        raise DataError(
            f"to pack {count:,} images of {size} x {size} pixels takes {needed / 1e9:,.1f} GB of {shown(place)}, "
            f"which has {free / 1e9:,.1f} GB free",
            "choose another folder with --data-dir, or a smaller --image-size",
        )


def open_packed(sha256: str, data_dir: Path) -> Packed | None:
    """The packed images of this content; None if they are not in `data_dir`. Raises `DataError` for damaged ones."""
    found = _opened(sha256, data_dir)
    return None if found is None else Packed(*found, Problems())


def read_split(folder: Path, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Images (n, 3, size, size), mapped into memory, and labels (n,) of a split. Raises `DataError`."""
    try:
        images = np.load(folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / f"{split}_labels.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(folder, error) from None
    return images, labels


def folder_of(sha256: str, data_dir: Path) -> Path:
    """Where the images of a content are packed."""
    return data_dir / "images" / sha256[:16]


def remembered(listing: Listing, size: int, data_dir: Path) -> Remembered | None:
    """What an unchanged folder held when it was packed at this size; None if it was not."""
    try:
        return Remembered.parse(json.loads(read_text(_memory(listing, size, data_dir))))
    except (ConfigError, ValueError, TypeError, RecursionError):
        return None


def _remember(listing: Listing, size: int, sha256: str, data_dir: Path) -> None:
    path = _memory(listing, size, data_dir)
    path.parent.mkdir(exist_ok=True)
    known = Remembered(sha256=sha256, unusable=listing.problems.count, named=tuple(listing.problems.named))
    write_whole(path, known.model_dump_json())


def _memory(listing: Listing, size: int, data_dir: Path) -> Path:
    text = f"{VERSION}/{size}/{os.fsencode(listing.root.resolve())!r}/{listing.fingerprint}"
    return data_dir / "images" / "listings" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


# Packing: the images are decoded once, in the order of the listing, then written in the order of their hashes.


def _pack(listing: Listing, size: int, folder: Path, progress: Progress) -> tuple[str, ImageSet]:
    """Pack the images of a listing into `folder`; returns their hash and what they are."""
    if not len(listing):
        raise DataError(f"{shown(listing.root)} holds no images", _formats_hint(listing))
    drafts = _new_array(folder / "drafts.npy", (len(listing), 3, size, size))
    hashes, usable = _decode(listing, size, drafts, progress)
    labels, is_test = np.frombuffer(listing.labels, np.uint16), np.frombuffer(listing.is_test, np.int8).astype(bool)
    if not listing.has_test:
        is_test = _test_images(hashes, labels, usable, len(listing.classes))
    _check_classes(listing, labels, is_test, usable)
    digest = hashlib.sha256(json.dumps([VERSION, size, listing.classes]).encode())
    counts, statistics, files = {}, {}, {}
    for split, chosen in (("train", usable & ~is_test), ("test", usable & is_test)):
        rows = np.flatnonzero(chosen)
        keys: list[NDArray[Any]] = [*_sort_keys(hashes[rows]), labels[rows]]
        rows = rows[np.lexsort(keys)]
        digest.update(f"{split} {len(rows)}".encode() + labels[rows].astype("<u2").tobytes() + hashes[rows].tobytes())
        counts[split] = len(rows)
        statistics[split] = _write(folder / f"{split}_images.npy", drafts, rows)
        np.save(folder / f"{split}_labels.npy", labels[rows], allow_pickle=False)
    del drafts
    (folder / "drafts.npy").unlink()
    files = {name: sha256_of(folder / name) for name in ARRAYS}
    mean, std = statistics["train"]
    images = ImageSet(
        size=size, classes=listing.classes, train=counts["train"], test=counts["test"], mean=mean, std=std
    )
    sha256 = digest.hexdigest()
    manifest = Manifest(version=VERSION, sha256=sha256, images=images, files=files)
    write_whole(folder / "manifest.json", json.dumps(manifest.model_dump(mode="json")))
    return sha256, images


def _decode(
    listing: Listing, size: int, drafts: NDArray[np.uint8], progress: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Decode all images of a listing into `drafts`: the files' SHA-256 (n, 32), and which of them are usable (n,)."""
    hashes = np.zeros((len(listing), 32), np.uint8)
    usable = np.zeros(len(listing), bool)

    def read(row: int) -> str | None:
        try:
            data = (listing.root / listing.paths[row]).read_bytes()
            drafts[row] = decoded(data, size)
        except UnusableImageError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)
        hashes[row] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        usable[row] = True
        return None

    with quiet_pillow(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(listing), CHUNK):
            rows = range(start, min(start + CHUNK, len(listing)))
            for row, reason in zip(rows, pool.map(read, rows), strict=True):
                if reason is not None:
                    listing.problems.add(listing.paths[row], reason)
            progress("packing", rows.stop, len(listing))
    return hashes, usable


def _test_images(
    hashes: NDArray[np.uint8], labels: NDArray[np.uint16], usable: NDArray[np.bool_], classes: int
) -> NDArray[np.bool_]:
    """The test images (n,): of each class one of `TEST_SHARE`, those whose files have the least hashes."""
    is_test = np.zeros(len(labels), bool)
    for label in range(classes):
        rows = np.flatnonzero(usable & (labels == label))
        count = max(1, round(len(rows) / TEST_SHARE)) if len(rows) > 1 else 0
        is_test[rows[np.lexsort(_sort_keys(hashes[rows]))][:count]] = True
    return is_test


def _sort_keys(hashes: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], ...]:
    """Hashes (n, 32) as keys of `np.lexsort`, which sorts by the last one first."""
    return tuple(hashes.view(">u8").T[::-1])


def _new_array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """An array in a new file, mapped into memory; its space is taken now: on a full disk a later write kills us."""
    array: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _check_classes(
    listing: Listing, labels: NDArray[np.uint16], is_test: NDArray[np.bool_], usable: NDArray[np.bool_]
) -> None:
    """Raise `DataError` for a class without a training image, and where there is no test image."""
    counts = np.bincount(labels[usable & ~is_test], minlength=len(listing.classes))
    problems = listing.problems
    unusable = f"; {problems.count:,} files cannot be used, the first: {problems.named[0]}" if problems.count else ""
    if not counts.all():
        empty = np.flatnonzero(counts == 0)
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"the class {shown(listing.classes[empty[0]])!r}{more} of {shown(listing.root)} has no training image"
            + unusable,
            _formats_hint(listing),
        )
    if not (usable & is_test).any():
        raise DataError(f"{shown(listing.root)} has no test image{unusable}", "two or more images per class are needed")


def _formats_hint(listing: Listing) -> str:
    others = f"{listing.others:,} files are not images by their names; " if listing.others else ""
    return others + HINT


def _write(path: Path, drafts: NDArray[np.uint8], rows: NDArray[np.int64]) -> tuple[Three, Three]:
    """Write the images of `rows` as an array; returns their mean and standard deviation per channel, of 0 to 1."""
    shape = (len(rows), *drafts.shape[1:])
    written = _new_array(path, shape)
    total, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for start in range(0, len(rows), CHUNK):
        part = drafts[rows[start : start + CHUNK]]
        written[start : start + CHUNK] = part
        wide = part.astype(np.int64)
        total += wide.sum(axis=(0, 2, 3))
        squares += (wide * wide).sum(axis=(0, 2, 3))
    written.flush()
    count = float(len(rows) * shape[2] * shape[3])
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean * mean, 1.0))  # images of one colour have no deviation
    one, two, three = (round(float(value) / 255, 6) for value in mean)
    four, five, six = (round(float(value) / 255, 6) for value in std)
    return (one, two, three), (four, five, six)


# Opening.


def _opened(sha256: str, data_dir: Path) -> tuple[Path, str, ImageSet] | None:
    """(folder, hash, what it holds) of packed images, verified; None if there are none. Raises `DataError`."""
    folder = folder_of(sha256, data_dir)
    if not folder.is_dir():
        return None
    try:
        manifest = Manifest.parse(json.loads(read_text(folder / "manifest.json")))
        wrong = [name for name in ARRAYS if sha256_of(folder / name) != manifest.files.get(name)]
    except (OSError, ConfigError, ValidationError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(folder, error) from None
    if manifest.version != VERSION or manifest.sha256 != sha256:
        return None
    if wrong:
        raise _damaged(folder, f"{wrong[0]} is not as it was written")
    return folder, sha256, manifest.images


def _whole(sha256: str, data_dir: Path) -> tuple[Path, str, ImageSet] | None:
    """As `_opened`, but None for damaged ones too, where they can be packed again."""
    with contextlib.suppress(DataError):
        return _opened(sha256, data_dir)
    return None


def _damaged(folder: Path, reason: object) -> DataError:
    first = printable(str(reason).partition("\n")[0], lines=False)[:120]
    return DataError(f"the packed images in {shown(folder)} are damaged: {first}", "remove that folder and pack again")
