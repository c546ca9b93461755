"""A folder of images with one folder per class: which files it holds, and each of them as pixels.

    flowers/daisy/*.jpg, flowers/rose/*.png          one set: `igc_nas.data.packed` splits it
    flowers/train/daisy/..., flowers/test/daisy/...  the user's split (`val`, `valid` or `validation` for `test`)

`Train` and `Test`, `training` and `testing` are the same: else they would be two classes that differ in nothing.
A class may have folders within its folder. Names are bytes to a file system: what is no UTF-8 in the name of a class is
written `\\xff`. Hidden files and folders, and files whose ending is of no image format, are left out and counted.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from igc_nas.errors import DataError
from igc_nas.io.text import one_line, printable

if TYPE_CHECKING:
    from PIL.Image import Image

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")
"""The folder beside `train` that holds the test images: the first of these that is there, in letters of either case."""
MOST_CLASSES = 65_535
MOST_BYTES = 256 * 2**20
"""Of an image file."""
MOST_SURVEYED = 10_000
"""The number of images whose headers a survey reads."""
CHUNK = 256
"""The number of images between two reports of progress."""
HINT = "a class is a folder of image files (.jpg, .png, ...)"
MOST_NAMED = 10
"""The number of problems that are kept in words; all are counted."""
NO_FORMATS = frozenset(("EPS", "WMF"))
"""Formats that Pillow hands to other programs (Ghostscript) or to the operating system; these are not read."""
IGNORED_FOLDERS = frozenset(("__MACOSX", "@eaDir"))

Progress = Callable[[str, int, int | None], None]
"""Called with what is done ("listing", "packing"), the number done so far, and the number in all if it is known."""


def no_progress(what: str, done: int, total: int | None) -> None:
    """Takes progress, and shows nothing."""


@dataclass
class Problems:
    """Files that could not be used: their number, and the first few in words."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, path: str, reason: object) -> None:
        """Add a file, by its path in the folder, and why it is left out."""
        self.count += 1
        if len(self.named) < MOST_NAMED:
            self.named.append(f"{shown(path)}: {one_line(reason, 120)}")


@dataclass
class Listing:
    """The image files of a folder. `paths` are relative to `root`; `labels` index `classes`; `is_test` is 0 or 1.

    `fingerprint` is a hash of the classes' folders and of all paths, sizes and times of change, by which an unchanged
    folder is known again.
    """

    root: Path
    classes: tuple[str, ...]
    has_test: bool
    unused: tuple[str, ...] = ()
    """Folders beside `train` that are not used."""
    paths: list[str] = field(default_factory=list)
    labels: array[int] = field(default_factory=lambda: array("H"))
    is_test: array[int] = field(default_factory=lambda: array("b"))
    others: int = 0
    """Files that are no images by their names."""
    problems: Problems = field(default_factory=Problems)
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self, is_test: bool) -> list[int]:
        """The number of image files of each class, in the training set or in the test set."""
        found = Counter(label for label, test in zip(self.labels, self.is_test, strict=True) if test == is_test)
        return [found[label] for label in range(len(self.classes))]


def list_images(root: Path, progress: Progress = no_progress) -> Listing:
    """The image files of a folder, class by class in the order of their names; nothing is opened.

    Raises `DataError` for a folder that cannot be read or has not two or more classes.
    """
    folders = _folders(root)
    train, test = _split(root, folders)
    parts = [(train, False), *([(test, True)] if test else [])]
    names = {part: _folders(root / part) for part, _ in parts}
    of_train = names[parts[0][0]]
    classes = _class_names(root / parts[0][0], of_train)
    for part, is_test in parts:
        extra = [name for name in names[part] if name not in of_train]
        if is_test and extra:
            raise DataError(f"{shown(part)} has the class {shown(extra[0])!r}, train has not", "the sets share classes")
    listing = Listing(root, tuple(classes), test is not None)
    listing.unused = tuple(shown(name) for name in folders if train and name not in (train, test))
    digest = hashlib.sha256(repr(names).encode())
    for part, is_test in parts:
        for name in names[part]:
            label = of_train.index(name)
            for path, status in _files(root, f"{part}/{name}" if part else name, listing):
                listing.paths.append(path)
                listing.labels.append(label)
                listing.is_test.append(is_test)
                known = f"\0{status.st_size}\0{status.st_mtime_ns}\0{is_test}\n"
                digest.update(os.fsencode(path) + known.encode())
                if len(listing) % 1000 == 0:
                    progress("listing", len(listing), None)
    progress("listing", len(listing), len(listing))
    listing.fingerprint = digest.hexdigest()
    return listing


def _split(root: Path, folders: list[str]) -> tuple[str, str | None]:
    """The folders of the training and of the test images; "" and None where the folders are classes.

    A folder without folders is a class, whatever its name, as is `Training` among others of which none is for tests.
    """
    # By bytes, small letters come last: of `Test` and `test` the latter counts.
    known = {name.lower(): name for name in folders}
    train = next((known[name] for name in TRAIN_NAMES if name in known), "")
    test = next((known[name] for name in TEST_NAMES if name in known), None)
    if not train or not _folders(root / train) or (train != "train" and test is None and len(folders) > 1):
        return "", None
    return train, test


def _folders(root: Path) -> list[str]:
    """The names of the folders in a folder, in the order of their bytes. Raises `DataError`."""
    try:
        with os.scandir(root) as entries:
            found = [entry.name for entry in entries if not _is_ignored(entry.name) and _is_folder(entry)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{shown(root)}: {reason}", "name a folder with one folder of images per class") from None
    return sorted(found, key=os.fsencode)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _class_names(root: Path, folders: list[str]) -> list[str]:
    """The classes' names as text. Raises `DataError` unless there are two or more different ones."""
    names = [os.fsencode(name).decode(errors="backslashreplace") for name in folders]
    if len(names) < 2:
        has = f"one folder, {shown(names[0])!r}" if names else "no folder"
        raise DataError(
            f"{shown(root)} has {has}; a folder of images has one folder per class, two or more",
            "e.g. pets/cat/1.jpg and pets/dog/2.jpg, or pets/train/cat/1.jpg",
        )
    if len(names) > MOST_CLASSES:
        raise DataError(f"{shown(root)} has {len(names):,} classes; at most {MOST_CLASSES:,} are possible")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"two classes of {shown(root)} have the same name, {shown(twice)!r}", "rename one of them")
    return names


def _files(root: Path, top: str, listing: Listing) -> Iterator[tuple[str, os.stat_result]]:
    """The image files below a folder, in the order of their paths, links followed; each folder is entered once."""
    endings = _endings()
    entered: set[tuple[int, int]] = set()
    left = [top]
    while left:
        folder = left.pop()
        try:
            status = Path(root, folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(Path(root, folder)) as found:
                entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            listing.problems.add(folder, error.strerror or error)
            continue
        within = []
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if _is_ignored(entry.name):
                continue
            try:
                status = entry.stat()
            except OSError as error:
                listing.problems.add(path, error.strerror or error)
                continue
            ending = Path(entry.name).suffix.lower()
            if stat.S_ISDIR(status.st_mode):
                within.append(path)
            elif not stat.S_ISREG(status.st_mode) or (ending and ending not in endings):
                listing.others += 1
            elif status.st_size > MOST_BYTES:
                listing.problems.add(path, f"{status.st_size:,} bytes; at most {MOST_BYTES:,} are read")
            else:
                yield path, status
        left.extend(reversed(within))


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in IGNORED_FOLDERS


def _endings() -> frozenset[str]:
    """The endings of file names that Pillow knows, of the formats that are read."""
    from PIL import Image

    return frozenset(end for end, name in Image.registered_extensions().items() if name in _formats())


def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.OPEN if name not in NO_FORMATS)


def shown(path: str | Path) -> str:
    """A path of any bytes, for a message of one line."""
    return printable(os.fsencode(path).decode(errors="backslashreplace"), lines=False)[:200]


class UnusableImageError(Exception):
    """A file that is no image, or one that cannot be decoded; the message says why."""


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow warns of nothing but of images of very many pixels, which it refuses (of any thread: the filters are)."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _decoding() -> Iterator[None]:
    """Any exception of a decoder as `UnusableImageError`: a damaged file makes Pillow raise errors of any kind."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnusableImageError:
        raise
    except UnidentifiedImageError:
        raise UnusableImageError("no image of a format that is read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableImageError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except MemoryError:
        raise UnusableImageError("it does not fit into memory") from None
    except Exception as error:
        raise UnusableImageError(str(error).partition("\n")[0] or type(error).__name__) from None


def dimensions(path: Path) -> tuple[int, int, str]:
    """(width, height, mode) of an image as it is stored, from its header. Raises `UnusableImageError`."""
    from PIL import Image

    with _decoding(), Image.open(path, formats=_formats()) as image:
        return image.width, image.height, image.mode


def decoded(data: bytes, side: int) -> NDArray[np.uint8]:
    """An image file as (3, side, side): upright, in colour, resized and cropped to its centre.

    The shorter side becomes `side` (Pillow's antialiased bicubic filter). What is transparent lies on white; of several
    frames the first counts; EXIF's orientation is applied; grey becomes three equal channels, 16 bits become 8. Raises
    `UnusableImageError`. Call it within `quiet_pillow`.
    """
    from PIL import Image, ImageOps

    with _decoding(), Image.open(io.BytesIO(data), formats=_formats()) as image:
        image.draft("RGB", (2 * side, 2 * side))  # a large JPEG is decoded at an eighth of its size or more
        colour = _in_colour(ImageOps.exif_transpose(image))
        shorter = min(colour.size)
        left, top = ((length - shorter) / 2 for length in colour.size)
        box = (left, top, left + shorter, top + shorter)
        fitted = colour.resize((side, side), Image.Resampling.BICUBIC, box, reducing_gap=3.0)
        return np.asarray(fitted).transpose(2, 0, 1)


def _in_colour(image: Image) -> Image:
    """The image in the mode RGB."""
    from PIL import Image

    if image.mode == "F":
        raise UnusableImageError("pixels of floating point")
    if image.mode.startswith("I"):  # grey of 16 or 32 bits, which Pillow's `convert` cuts off at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.max() > 65535 or grey.min() < 0:
            raise UnusableImageError(f"grey values from {grey.min():,} to {grey.max():,}, outside of 16 bits")
        grey = grey // 257 if image.mode != "I" or grey.max() > 255 else grey
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Survey:
    """The images of a listing as they are stored, by the headers of an even sample of them.

    `shorter` has the shorter sides (least, median, most); `modes` counts Pillow's modes ("RGB", "L").
    """

    sampled: int
    shorter: tuple[int, int, int]
    modes: dict[str, int]
    problems: Problems


def survey(listing: Listing, most: int = MOST_SURVEYED, progress: Progress = no_progress) -> Survey:
    """Read the headers of at most `most` images. Raises `DataError` if none of them is an image."""
    count = min(most, len(listing))
    sides, modes, problems = [], Counter[str](), Problems()
    with quiet_pillow():
        for place in range(count):
            path = listing.paths[place * len(listing) // count]
            try:
                width, height, mode = dimensions(listing.root / path)
                sides.append(min(width, height))
                modes[mode] += 1
            except UnusableImageError as error:
                problems.add(path, error)
            if place % CHUNK == CHUNK - 1 or place == count - 1:
                progress("looking at", place + 1, count)
    if not sides:
        first = f"; {problems.named[0]}" if problems.named else ""
        raise DataError(f"{shown(listing.root)} holds no images that can be read{first}", HINT)
    sides.sort()
    shorter = (sides[0], sides[len(sides) // 2], sides[-1])
    return Survey(count, shorter, dict(modes.most_common()), problems)
