"""`shapes`: a small image set that igc-nas draws itself, for trials without CIFAR-10.

It is SYNTHETIC: ten kinds of figure (circle, ellipse, square, ...) of random place, size, rotation and colour, in low
contrast on a textured ground, among fragments of other figures, partly covered, blurred and noisy. A figure's colour
leans towards one of its class: as with photographs, a short training learns colours first, forms later.
A larger network does better than a small one after a short training; results say nothing about CIFAR-10.

Figures are signed distance functions (negative inside) in their own frame, where the figure reaches about radius 1;
see https://iquilezles.org/articles/distfunctions2d for the idea.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from igc_nas.errors import IgcNasError, UsageError
from igc_nas.io.files import cache_dir, read_bytes, write_whole

CLASS_NAMES: Final = (
    "circle",
    "ellipse",
    "square",
    "triangle",
    "pentagon",
    "star",
    "cross",
    "ring",
    "crescent",
    "heart",
)
TRAIN_COUNT: Final = 20_000
TEST_COUNT: Final = 4_000
SEED: Final = 20_170_707
VERSION: Final = "shapes-2"
"""Name of this generator; any change of a pixel needs another number."""

_SIZE: Final = 32
_CHUNK: Final = 250  # images at a time, so that the working arrays stay in a core's cache
_LEAN: Final = 0.9  # against colour steps of up to 1 a channel; at 0 a training of 100 steps learns nothing
_STREAM: Final = {"train": 0, "test": 1}
_COUNT: Final = {"train": TRAIN_COUNT, "test": TEST_COUNT}
_MOST_KEPT: Final = 1 << 27
"""Bytes of the largest file of drawn images that is read; the larger split takes 62 MB."""

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]


class _Random:
    """Random numbers from PCG64's raw bits, which NumPy keeps stable across versions, unlike its distributions."""

    def __init__(self, stream: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence((SEED, stream)))

    def raw(self, count: int) -> NDArray[np.uint64]:
        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)

    def uniform(self, low: float, high: float, *shape: int) -> Floats:
        unit = (self.raw(int(np.prod(shape))) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return (unit * np.float32(high - low) + np.float32(low)).reshape(shape)

    def noise(self, *shape: int) -> Floats:
        """Triangular noise in -1..1: the difference of two bytes, four of them from one raw number."""
        count = int(np.prod(shape))
        pairs = self.raw(-(-count // 4)).view(np.uint8)[: 2 * count].reshape(2, count).astype(np.float32)
        noise: Floats = (pairs[0] - pairs[1]) * np.float32(1 / 255)
        return noise.reshape(shape)


def _regular(x: Floats, y: Floats, corners: int) -> tuple[Floats, Floats]:
    """The largest and the second largest distance to the side lines of a regular polygon around the origin."""
    first = np.full_like(x, -np.inf)
    second = first.copy()
    for angle in np.arange(corners) * (2 * np.pi / corners):
        side = np.float32(np.sin(angle)) * x + np.float32(np.cos(angle)) * y
        np.maximum(second, np.minimum(first, side), out=second)
        np.maximum(first, side, out=first)
    return first, second


def _circle(x: Floats, y: Floats) -> Floats:
    distance: Floats = np.hypot(x, y) - np.float32(0.85)
    return distance


def _ellipse(x: Floats, y: Floats) -> Floats:
    distance: Floats = (np.hypot(x, y * np.float32(1 / 0.75)) - np.float32(0.95)) * np.float32(0.85)
    return distance


def _square(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.75)


def _triangle(x: Floats, y: Floats) -> Floats:
    return _regular(x, y, 3)[0] - np.float32(0.58)


def _pentagon(x: Floats, y: Floats) -> Floats:
    return _regular(x, y, 5)[0] - np.float32(0.78)


def _star(x: Floats, y: Floats) -> Floats:
    # A pentagram is where at most one of the five sides of its inner pentagon is crossed.
    return _regular(x, y, 5)[1] - np.float32(0.42)


def _cross(x: Floats, y: Floats) -> Floats:
    wide, tall = np.abs(x), np.abs(y)
    inner, outer = np.minimum(wide, tall), np.maximum(wide, tall)
    return np.maximum(outer - np.float32(0.92), inner - np.float32(0.4))


def _ring(x: Floats, y: Floats) -> Floats:
    distance: Floats = np.abs(np.hypot(x, y) - np.float32(0.64)) - np.float32(0.27)
    return distance


def _crescent(x: Floats, y: Floats) -> Floats:
    disk, bite = np.hypot(x, y) - np.float32(0.92), np.float32(0.62) - np.hypot(x - np.float32(0.55), y)
    distance: Floats = np.maximum(disk, bite)
    return distance


def _heart(x: Floats, y: Floats) -> Floats:
    # Turned by 45 degrees, a heart is a square with a half disk on two neighbouring sides.
    square = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.5)
    lobes = np.minimum(np.hypot(x - np.float32(0.5), y), np.hypot(x, y - np.float32(0.5))) - np.float32(0.5)
    distance: Floats = np.minimum(square, lobes)
    return distance


_FIGURES: Final[tuple[Callable[[Floats, Floats], Floats], ...]] = (
    _circle,
    _ellipse,
    _square,
    _triangle,
    _pentagon,
    _star,
    _cross,
    _ring,
    _crescent,
    _heart,
)

_AXIS: Final = np.arange(_SIZE, dtype=np.float32) - np.float32((_SIZE - 1) / 2)


def _column(values: Floats) -> Floats:
    """(n,) -> (n, 1, 1), to be spread over the pixels of its image."""
    return values[:, None, None]


def _slope(rng: _Random, n: int) -> Floats:
    """A plane of random direction over each image, pixels from its centre: (n, 32, 32)."""
    angle = rng.uniform(0, 2 * np.pi, n)
    slope: Floats = np.cos(angle)[:, None, None] * _AXIS + np.sin(angle)[:, None, None] * _AXIS[:, None]
    return slope


def _coverage(rng: _Random, kinds: Bytes, reach: tuple[float, float], off: float) -> Floats:
    """The share of each pixel that a figure of each kind covers, 0..1: (n, 32, 32); `reach` and `off` in pixels."""
    n = len(kinds)
    radius, angle = rng.uniform(*reach, n), rng.uniform(0, 2 * np.pi, n)
    stretch = rng.uniform(0.88, 1.14, n)
    across = _AXIS - rng.uniform(-off, off, n)[:, None]
    down = _AXIS - rng.uniform(-off, off, n)[:, None]
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    x = (cos * stretch)[:, None, None] * across[:, None, :] + (sin * stretch)[:, None, None] * down[:, :, None]
    y = (cos / stretch)[:, None, None] * down[:, :, None] - (sin / stretch)[:, None, None] * across[:, None, :]
    distance = np.empty_like(x)
    for kind, figure in enumerate(_FIGURES):
        chosen = np.flatnonzero(kinds == kind)
        distance[chosen] = figure(x[chosen], y[chosen])
    softness = rng.uniform(1.0, 2.6, n)
    coverage: Floats = np.clip(np.float32(0.5) - distance * _column(radius / softness), 0, 1)
    return coverage


def _texture(rng: _Random, n: int) -> Floats:
    """Waves of random direction, length and strength: (n, 32, 32)."""
    phase = _slope(rng, n) * _column(rng.uniform(0.2, 1.6, n)) + _column(rng.uniform(0, 2 * np.pi, n))
    waves: Floats = np.sin(phase) * _column(rng.uniform(0, 1, n))
    return waves


def _tint(rng: _Random, n: int, contrast: tuple[float, float], lean: Floats | float = 0.0) -> Floats:
    """A step in colour space, of a length in `contrast` and a random direction that leans to `lean` (n, 3): (n, 3)."""
    step = rng.uniform(-1, 1, n, 3) + lean
    length = np.maximum(np.sqrt((step * step).sum(axis=1)), np.float32(0.1))
    tint: Floats = step * (rng.uniform(*contrast, n) / length)[:, None]
    return tint


def _lean(labels: Bytes) -> Floats:
    """The direction to which the colour of each class leans, evenly around the colour circle: (n,) -> (n, 3)."""
    hue = labels.astype(np.float32)[:, None] * np.float32(2 * np.pi / len(CLASS_NAMES))
    third = np.float32(2 * np.pi / 3)
    return np.float32(_LEAN) * np.cos(hue - third * np.arange(3, dtype=np.float32))


def _lay(image: Floats, coverage: Floats, tint: Floats) -> None:
    """Shift the covered pixels of `image` (n, 3, 32, 32) by `tint` (n, 3), in place."""
    for channel in range(3):
        image[:, channel] += coverage * _column(tint[:, channel])


def _ground(rng: _Random, n: int) -> Floats:
    """A plain colour, a gradient and waves: (n, 3, 32, 32)."""
    image = np.empty((n, 3, _SIZE, _SIZE), np.float32)
    image[:] = (rng.uniform(0.25, 0.75, n, 3))[:, :, None, None]
    _lay(image, _slope(rng, n), _tint(rng, n, (0.0, 0.015)))
    _lay(image, _texture(rng, n), _tint(rng, n, (0.02, 0.1)))
    return image


def _draw(rng: _Random, labels: Bytes) -> Bytes:
    """One image per label: (n,) -> (n, 3, 32, 32)."""
    n = len(labels)
    image = _ground(rng, n)
    for _ in range(2):  # fragments: other figures, each cut off by a line through it
        others = (rng.raw(n) % np.uint64(len(CLASS_NAMES))).astype(np.uint8)
        cut = np.clip(_slope(rng, n) + _column(rng.uniform(-8, 8, n)), 0, 1)
        _lay(image, _coverage(rng, others, (4, 8), 14) * cut, _tint(rng, n, (0.1, 0.3)))
    body = _coverage(rng, labels, (6, 11.5), 5.5)
    _lay(image, body, _tint(rng, n, (0.25, 0.65), _lean(labels)))
    _lay(image, body * _slope(rng, n), _tint(rng, n, (0.0, 0.02)))
    _lay(image, body * _texture(rng, n), _tint(rng, n, (0.02, 0.1)))
    bar = np.abs(_slope(rng, n) + _column(rng.uniform(-14, 14, n)))
    _lay(image, np.clip(_column(rng.uniform(0.5, 2.5, n)) - bar, 0, 1), _tint(rng, n, (0.1, 0.4)))
    image += rng.noise(*image.shape) * rng.uniform(0.02, 0.16, n)[:, None, None, None]
    image *= np.float32(255)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def make_shapes(split: Literal["train", "test"]) -> tuple[Bytes, Bytes]:
    """Draw a split: images (n, 3, 32, 32) and labels (n,), both uint8; n is 20,000 (train) or 4,000 (test).

    Classes are equally frequent, in mixed order. Every call on one machine returns the same pixels; under another NumPy
    or processor a pixel may differ in its last bit. Raises `UsageError` for another word.
    """
    if split not in _COUNT:
        raise UsageError(f"split {split!r} is not one of train, test")
    rng = _Random(_STREAM[split])
    count = _COUNT[split]
    labels = (np.argsort(rng.raw(count), kind="stable") % len(CLASS_NAMES)).astype(np.uint8)
    images = np.empty((count, 3, _SIZE, _SIZE), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _draw(rng, labels[part])
    return images, labels


def load_shapes(split: Literal["train", "test"]) -> tuple[Bytes, Bytes]:
    """The arrays of `make_shapes`, which takes seconds: drawn once, kept in the cache folder and read from there.

    They are drawn again where that file is damaged, and each time where it cannot be written. Raises `UsageError` as
    `make_shapes` does.
    """
    place = cache_dir() / "shapes" / f"{VERSION}-{split}.npz"
    kept = _kept(place)
    if kept is not None:
        return kept
    images, labels = make_shapes(split)
    archive = io.BytesIO()
    np.savez(archive, images=images, labels=labels)
    with contextlib.suppress(OSError, IgcNasError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, archive.getvalue(), durable=False)
    return images, labels


def _kept(place: Path) -> tuple[Bytes, Bytes] | None:
    """The arrays in an archive, whose checksums are verified by reading; None where there is none or it is damaged."""
    try:
        with np.load(io.BytesIO(read_bytes(place, _MOST_KEPT)), allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]
    except (IgcNasError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
