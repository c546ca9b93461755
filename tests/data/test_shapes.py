from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from statistics import fmean
from typing import Literal, cast

import numpy as np
import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.data import shapes
from igc_nas.data.datasets import locate
from igc_nas.data.shapes import CLASS_NAMES, TEST_COUNT, TRAIN_COUNT, load_shapes, make_shapes
from igc_nas.errors import UsageError
from igc_nas.evaluation.images import load_proxy
from igc_nas.evaluation.training import ProxyTask, train_proxy
from igc_nas.nn.device import configure_torch, find_devices
from igc_nas.nn.network import build
from igc_nas.study.defaults import default_recipe
from tests.support.builders import one_line

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

once = functools.cache(make_shapes)


@pytest.mark.parametrize(("split", "count"), [("train", TRAIN_COUNT), ("test", TEST_COUNT)])
def test_images_and_labels_are_bytes_in_cifar_s_shape(split: Split, count: int) -> None:
    images, labels = once(split)
    assert (images.shape, images.dtype) == ((count, 3, 32, 32), np.uint8)
    assert (labels.shape, labels.dtype) == ((count,), np.uint8)


@pytest.mark.parametrize("split", SPLITS)
def test_classes_are_equally_frequent_and_mixed(split: Split) -> None:
    _, labels = once(split)
    assert len(set(np.bincount(labels, minlength=len(CLASS_NAMES)))) == 1
    for tenth in np.split(labels, 10):
        assert np.bincount(tenth, minlength=10).min() > 0.7 * len(tenth) / 10


def test_every_call_returns_the_same_images() -> None:
    for first, again in zip(once("test"), make_shapes("test"), strict=True):
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("damage", ["none", "a byte", "cut", "no archive", "a folder"])
def test_images_are_drawn_once_and_read_again_unless_damaged(
    damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(shapes, "make_shapes", lambda split: (drawn.append(split), once(split))[1])
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path))
    load_shapes("test")
    (kept,) = tmp_path.rglob("*.npz")
    data = bytearray(kept.read_bytes())
    if damage == "a byte":
        data[5_000_000] ^= 1
    kept.write_bytes({"cut": data[:1000], "no archive": b"\0" * 100}.get(damage, data))
    if damage == "a folder":
        kept.unlink()
        kept.mkdir()
    for expected, found in zip(once("test"), load_shapes("test"), strict=True):
        np.testing.assert_array_equal(expected, found)
    assert len(drawn) == (1 if damage == "none" else 2)


def test_the_labels_are_those_of_every_version() -> None:
    """Labels are drawn in whole numbers, so they are the same on every machine and in every version."""
    digests = {split: hashlib.sha256(once(split)[1].tobytes()).hexdigest()[:16] for split in SPLITS}
    assert digests == {"train": "156f91b92b41e72a", "test": "ee61a2fb4551cfa0"}


def test_no_image_is_in_both_sets_or_twice() -> None:
    seen = {image.tobytes() for split in SPLITS for image in once(split)[0]}
    assert len(seen) == TRAIN_COUNT + TEST_COUNT


def test_mean_and_std_are_those_of_the_images(tmp_path: Path) -> None:
    info = locate("shapes", tmp_path)
    assert (info.classes, info.synthetic) == (len(CLASS_NAMES), True)
    values = np.arange(256) / 255
    for channel in range(3):
        counts = np.bincount(once("train")[0][:, channel].ravel(), minlength=256)
        mean = np.average(values, weights=counts)
        std = np.sqrt(np.average((values - mean) ** 2, weights=counts))
        assert (mean, std) == pytest.approx((info.mean[channel], info.std[channel]), abs=1e-3)


@pytest.mark.parametrize("split", ["", "TRAIN", "validation", "train "])
def test_another_split_is_refused(split: str) -> None:
    with pytest.raises(UsageError, match="not one of train, test") as raised:
        load_shapes(cast("Split", split))
    one_line(raised)


def igcv1(L: int, *Ms: int) -> ArchConfig:
    """Of the space igc_cifar: a stem, three IGCV1 stages of 1, 1 and 2 blocks."""
    stages = [{"unit": "igcv1", "L": L, "M": M, "blocks": 1, "stride": 2} for M in Ms]
    stages[0]["stride"], stages[2]["blocks"] = 1, 2
    return ArchConfig.parse({"input": (3, 32, 32), "classes": 10, "stem": {"width": L}, "stage": stages})


@pytest.mark.slow
def test_a_larger_network_does_better(tmp_path: Path) -> None:
    """About ten times the parameters make at least five points less error.

    By the recipe of a CPU for three times as long: its own 2 epochs leave about five points.
    """
    small, large = igcv1(16, 1, 2, 4), igcv1(32, 3, 6, 8)
    assert cost_of(large).params == pytest.approx(10 * cost_of(small).params, rel=0.2)
    recipe = default_recipe("cpu", epochs=6)
    device, info = find_devices("cpu")[0], locate("shapes", tmp_path)
    configure_torch(device, 1)
    task = ProxyTask(*load_proxy(info, recipe, 0, device.torch_device), recipe, info, device)
    errors = {arch: [train_proxy(build(arch, s), task, s).error for s in (0, 1)] for arch in (small, large)}
    assert fmean(errors[large]) <= fmean(errors[small]) - 0.05, list(errors.values())
