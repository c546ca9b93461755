"""A dataset as tensors on the device: an epoch is a permutation and slices of one tensor.

Images are stored as uint8 of shape (n, H, H, 3); batches are float32 of shape (batch, 3, H, H) in channels-last memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from igc_nas.data.datasets import DatasetInfo, read_test, read_train, split_held_out
from igc_nas.errors import UsageError
from igc_nas.study.spec import Recipe

MOST_MOVED = 4096
"""Images that `Images.moved` moves at a time."""


@dataclass(frozen=True)
class Images:
    """Images of one split as uint8, with the per-channel mean and standard deviation (of 0 to 255) to normalise by."""

    pixels: UInt8[Tensor, "n height width 3"]
    labels: Int64[Tensor, " n"]
    mean: Float[Tensor, " 3"]
    std: Float[Tensor, " 3"]

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, held_out: int, seed: int) -> tuple[Images, Images]:
        """(all other images, `held_out` images): stratified by class, drawn by `seed`. Raises `UsageError`."""
        labels = self.labels.cpu().numpy()
        rest, chosen = (
            torch.from_numpy(part).to(self.labels.device) for part in split_held_out(labels, held_out, seed)
        )
        return (
            replace(self, pixels=self.pixels[rest], labels=self.labels[rest]),
            replace(self, pixels=self.pixels[chosen], labels=self.labels[chosen]),
        )

    def in_order(self, size: int, count: int | None = None) -> Iterator[Int64[Tensor, " b"]]:
        """Indices of the first `count` images (None: all), in batches of `size`."""
        end = len(self) if count is None else min(count, len(self))
        for start in range(0, end, size):
            yield torch.arange(start, min(start + size, end), device=self.labels.device)

    def batch(self, index: Int64[Tensor, " b"]) -> Float[Tensor, "b 3 height width"]:
        """The images of `index`, normalised, not augmented."""
        return self._normalised(self.pixels[index])

    def augmented(
        self,
        index: Int64[Tensor, " b"],
        crop: int,
        flip: bool | Bool[Tensor, " b"],
        generator: torch.Generator,
        *,
        cutout: int = 0,
    ) -> Float[Tensor, "b 3 height width"]:
        """The images of `index`, normalised; padded by `crop` reflected pixels, then cropped and flipped at random.

        `flip` may also say for each image whether it is mirrored. With `cutout`, a square of that side, at a random
        place and cut at the border, is set to the mean colour (DeVries and Taylor 2017).
        """
        batch = self._normalised(self._moved(index, crop, flip, generator))
        if cutout:
            count, size, device = len(index), self.pixels.shape[1], self.pixels.device
            centre = torch.randint(size, (2, count, 1), generator=generator, device=device)
            start = centre - cutout // 2
            places = torch.arange(size, device=device)
            down, across = ((places >= at) & (places < at + cutout) for at in start)
            batch = batch.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0.0)
        return batch

    def moved(self, crop: int, flip: bool | Bool[Tensor, " n"], generator: torch.Generator) -> Images:
        """All images, padded, cropped and flipped as in `augmented`."""
        parts = [
            self._moved(part, crop, flip[part] if isinstance(flip, Tensor) else flip, generator)
            for part in self.in_order(MOST_MOVED)
        ]
        return replace(self, pixels=torch.cat(parts))

    def _moved(
        self, index: Tensor, crop: int, flip: bool | Tensor, generator: torch.Generator
    ) -> UInt8[Tensor, "b height width 3"]:
        if not crop and flip is False:
            return self.pixels[index]
        count, size, device = len(index), self.pixels.shape[1], self.pixels.device
        rows = torch.arange(size, device=device).expand(count, size)
        columns = rows
        if isinstance(flip, Tensor):
            columns = torch.where(flip[:, None], size - 1 - columns, columns)
        elif flip:
            mirror = torch.randint(2, (count, 1), generator=generator, device=device)
            columns = torch.where(mirror.bool(), size - 1 - columns, columns)
        if crop:
            shift = torch.randint(-crop, crop + 1, (2, count, 1), generator=generator, device=device)
            rows, columns = (_reflect(index + by, size) for index, by in zip((rows, columns), shift, strict=True))
        return self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _normalised(self, pixels: Tensor) -> Tensor:
        return ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Pixel indices outside 0 to size - 1 reflected at the border pixels, which are not repeated."""
    return (size - 1 - (size - 1 - index.abs()).abs()).clamp(0, size - 1)


def load_proxy(info: DatasetInfo, recipe: Recipe, seed: int, device: torch.device) -> tuple[Images, Images]:
    """(training images, held-out images) of a recipe: disjoint, stratified by class, drawn from the training set.

    Raises `UsageError` if the dataset has fewer training images than the recipe needs.
    """
    images, labels = read_train(info)
    if recipe.train_size + recipe.held_out > len(labels):
        raise UsageError(
            f"train_size + held_out = {recipe.train_size + recipe.held_out}; {info.label} has {len(labels)} images",
            "lower train_size in the recipe",
        )
    rest, held_out = split_held_out(labels, recipe.held_out, seed)
    if recipe.train_size < len(rest):
        _, chosen = split_held_out(labels[rest], recipe.train_size, seed)
        rest = rest[chosen]
    return (
        _on_device(images[rest], labels[rest], info, recipe.resolution, device),
        _on_device(images[held_out], labels[held_out], info, recipe.resolution, device),
    )


def load_train(info: DatasetInfo, resolution: int, device: torch.device) -> Images:
    """The whole training set."""
    return _on_device(*read_train(info), info, resolution, device)


def load_test(info: DatasetInfo, resolution: int, device: torch.device) -> Images:
    """The test set. Only `igc-nas train` opens it, after the last epoch."""
    return _on_device(*read_test(info), info, resolution, device)


def _on_device(
    images: NDArray[np.uint8], labels: NDArray[Any], info: DatasetInfo, resolution: int, device: torch.device
) -> Images:
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"]))  # a copy of what is mapped into memory
    if resolution != pixels.shape[-1]:
        pixels = torch.cat([_resized(pixels[i : i + 4096], resolution) for i in range(0, len(pixels), 4096)])
    return Images(
        pixels.permute(0, 2, 3, 1).contiguous().to(device),
        torch.from_numpy(labels.astype(np.int64)).to(device),
        (torch.tensor(info.mean) * 255).to(device),
        (torch.tensor(info.std) * 255).to(device),
    )


def _resized(pixels: Tensor, resolution: int) -> Tensor:
    """Pixels at another resolution, as uint8: area-averaged to a smaller, bilinear to a larger one."""
    if resolution < pixels.shape[-1]:
        resized = F.adaptive_avg_pool2d(pixels.float(), resolution)
    else:
        resized = F.interpolate(pixels.float(), size=(resolution, resolution), mode="bilinear", align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)
