"""Folders of small images, one folder per class, as a user has them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "fish")


def image(seed: int, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Image.Image:
    """An image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def image_folder(
    root: Path, counts: Sequence[int] = (5, 6, 7), classes: Sequence[str | bytes] = CLASSES, ending: str = "png"
) -> Path:
    """A folder of images that all differ: `counts` of each class."""
    for number, (name, count) in enumerate(zip(classes, counts, strict=True)):
        folder = root / os.fsdecode(name)
        folder.mkdir(parents=True, exist_ok=True)
        for place in range(count):
            image(1000 * number + place).save(folder / f"{place}.{ending}")
    return root
