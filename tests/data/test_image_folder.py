"""A folder of images of one's own: what is read of it, how each image becomes pixels, how it is packed and found."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from igc_nas.data import packed
from igc_nas.data.datasets import DatasetInfo, folder_name, is_folder, locate, read_test, read_train, relocate
from igc_nas.data.image_folder import UnusableImageError, decoded, list_images, quiet_pillow, survey
from igc_nas.errors import ConfigError, DataError, UsageError
from igc_nas.evaluation.images import load_proxy, load_test, load_train
from igc_nas.study.defaults import new_spec
from igc_nas.study.spec import StudySpec
from tests.support.builders import one_line
from tests.support.images import CLASSES, image, image_folder


def own(root: Path, data: Path, size: int = 8) -> DatasetInfo:
    return locate(root, data, image_size=size)


def pixels(picture: Image.Image, side: int, kind: str = "PNG", **options: object) -> np.ndarray:
    """What is packed of a picture that is saved in a format."""
    file = io.BytesIO()
    picture.save(file, kind, **options)  # type: ignore[arg-type]
    with quiet_pillow():
        return decoded(file.getvalue(), side)


# An image as pixels.


@pytest.mark.parametrize("side", [4, 9, 28, 64])
@pytest.mark.parametrize("size", [(28, 28), (40, 28), (28, 41), (1, 300), (3, 1)])
def test_every_image_becomes_square_and_of_three_channels(size: tuple[int, int], side: int) -> None:
    assert pixels(image(0, size), side).shape == (3, side, side)


def test_an_image_of_the_right_size_is_as_it_was() -> None:
    picture = image(3, (28, 28), "L")
    assert (pixels(picture, 28) == np.asarray(picture)).all()


def test_the_centre_is_kept() -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    assert (pixels(Image.fromarray(wide), 8) == 255).all()


def test_exif_turns_the_image_upright() -> None:
    upright = Image.fromarray(np.repeat(np.array([[255], [0]], np.uint8), 8, axis=0).repeat(16, axis=1))  # top is white
    exif = Image.Exif()
    exif[0x0112] = 3  # by 180 degrees
    turned = pixels(upright, 8, "PNG", exif=exif)
    assert turned[0, 0].max() < 40
    assert turned[0, -1].min() > 215


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    picture = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    if mode == "P":
        picture = picture.quantize(4)
    assert (
        pixels(picture.convert(mode) if mode != "P" else picture, 8, "TIFF" if mode == "PA" else "PNG") == 255
    ).all()


@pytest.mark.parametrize(("mode", "dtype", "value", "expected"), [
    ("I;16", np.uint16, 65535, 255), ("I;16", np.uint16, 257 * 7, 7), ("I", np.int32, 200, 200), ("1", np.bool_, 1, 255)
])  # fmt: skip
def test_grey_of_any_depth_is_grey_of_eight_bits(mode: str, dtype: type, value: int, expected: int) -> None:
    picture = Image.fromarray(np.full((8, 8), value, dtype))
    assert picture.mode == mode
    assert (pixels(picture, 8, "TIFF") == expected).all()


@pytest.mark.parametrize("value", [65536, 2**31 - 1, -1])
def test_grey_beyond_sixteen_bits_is_no_image(value: int) -> None:
    picture = Image.fromarray(np.array([[0, value]] * 2, np.int32))
    with pytest.raises(UnusableImageError, match="outside of 16 bits"):
        pixels(picture, 8, "TIFF")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "ICO"])
def test_formats(kind: str) -> None:
    picture = Image.new("RGB", (16, 16), (200, 100, 50))
    assert np.abs(pixels(picture, 16, kind).mean(axis=(1, 2)) - (200, 100, 50)).max() < 3


def test_of_several_frames_the_first_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    assert pixels(frames[0], 8, "GIF", save_all=True, append_images=frames[1:]).min() == 255


def bomb() -> bytes:
    """A PNG whose header promises 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 5_000, 5_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(/etc/passwd) run\n%%EOF\n"
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "text": b"not an image",
    "zeros": bytes(5000),
    "a header alone": b"\x89PNG\r\n\x1a\n",
    "a decompression bomb": bomb(),
    "PostScript, which Pillow hands to Ghostscript": EPS,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_image_is_refused(kind: str) -> None:
    with quiet_pillow(), pytest.raises(UnusableImageError) as raised:
        decoded(DAMAGED[kind], 8)
    assert "\n" not in str(raised.value)


@given(data=st.data())
def test_a_damaged_image_is_read_or_refused(data: st.DataObject) -> None:
    file = io.BytesIO()
    image(0).save(file, data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])))
    raw = bytearray(file.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[place] ^= data.draw(st.integers(1, 255))
    with quiet_pillow(), contextlib.suppress(UnusableImageError):
        assert decoded(bytes(raw[: data.draw(st.integers(1, len(raw)))]), 8).shape == (3, 8, 8)


# A folder.


def test_a_folder_is_packed(tmp_path: Path) -> None:
    info = own(image_folder(tmp_path / "pets"), tmp_path / "data")
    assert info.images is not None
    assert (info.name, info.classes, info.side) == ("pets-8px", 3, 8)
    assert info.label == f"folder:pets-8px (8 px, sha256:{info.sha256[:12]})"
    assert info.images.classes == CLASSES
    images, labels = read_train(info)
    assert images.shape == (15, 3, 8, 8)
    assert np.bincount(labels).tolist() == [4, 5, 6]
    assert isinstance(images, np.memmap)
    assert np.bincount(read_test(info)[1]).tolist() == [1, 1, 1]
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in read_test(info)[0]}
    assert info.mean == pytest.approx(images.mean(axis=(0, 2, 3)) / 255, abs=1e-6)
    assert info.std == pytest.approx(images.std(axis=(0, 2, 3)) / 255, abs=1e-6)


def test_it_is_found_again_without_its_folder(tmp_path: Path) -> None:
    info = own(image_folder(tmp_path / "pets"), tmp_path / "data")
    shutil.rmtree(tmp_path / "pets")
    again = relocate(info.label, info.sha256, tmp_path / "data")
    assert (again.label, again.sha256, again.images) == (info.label, info.sha256, info.images)
    with pytest.raises(DataError, match="not packed"):
        relocate(info.label, "0" * 64, tmp_path / "data")


def test_an_unchanged_folder_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder(tmp_path / "pets")
    info = own(root, tmp_path / "data")
    monkeypatch.setattr(packed, "decoded", lambda *_: pytest.fail("read again"))
    assert own(root, tmp_path / "data") == info


def test_a_class_without_images_is_seen_in_a_folder_that_was_packed(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    own(root, tmp_path / "data")
    (root / "horse").mkdir()
    with pytest.raises(DataError, match=r"'horse' of .* has no training image"):
        own(root, tmp_path / "data")


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    """Names of files, times and places do not count; images, classes, size and split do."""
    root = image_folder(tmp_path / "pets")
    sha256 = own(root, tmp_path / "data").sha256
    moved = shutil.copytree(root, tmp_path / "moved")
    (moved / "cat" / "0.png").rename(moved / "cat" / "zz.png")
    os.utime(moved / "dog" / "1.png", (0, 0))
    assert own(moved, tmp_path / "data").sha256 == sha256
    assert own(moved, tmp_path / "data", 9).sha256 != sha256
    changes: dict[str, Callable[[Path], object]] = {
        "image": lambda folder: image(99).save(folder / "cat" / "new.png"),
        "class": lambda folder: (folder / "cat").rename(folder / "bird"),
        "label": lambda folder: (folder / "cat" / "0.png").rename(folder / "dog" / "x.png"),
    }
    for name, change in changes.items():
        other = shutil.copytree(root, tmp_path / name)
        change(other)
        assert own(other, tmp_path / "data").sha256 != sha256


def test_a_split_of_the_users_own_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    image_folder(root / "train")
    image_folder(root / "val", (2, 1), ("cat", "dog"))
    image_folder(root / "extra")
    info = own(root, tmp_path / "data")
    assert info.images is not None
    assert (info.images.train, info.images.test) == (18, 3)
    assert list_images(root).unused == ("extra",)


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("train", "Test"), ("TRAIN", "VAL"), ("training", "testing"), ("Training", "Validation")],
)
def test_a_split_is_known_in_any_case(tmp_path: Path, train: str, test: str) -> None:
    image_folder(tmp_path / "pets" / train)
    image_folder(tmp_path / "pets" / test, (2, 1), ("cat", "dog"))
    listing = list_images(tmp_path / "pets")
    assert listing.classes == CLASSES
    assert (listing.counts(False), listing.counts(True), listing.unused) == ([5, 6, 7], [2, 1, 0], ())


def test_a_class_may_be_called_training(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "days", classes=("Training", "match", "rest"))
    assert list_images(root).classes == ("Training", "match", "rest")
    image_folder(root / "Training")  # folders within a class
    assert list_images(root).classes == ("Training", "match", "rest")


def test_folders_within_a_class_links_and_other_files(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    (root / "cat" / "more" / "deep").mkdir(parents=True)
    image(50).save(root / "cat" / "more" / "deep" / "a.JPG")
    image(51).save(root / "cat" / "without-ending", "PNG")
    (root / "cat" / "more" / "loop").symlink_to(root / "cat")
    (root / "cat" / "self").symlink_to("self")
    (root / "loop").symlink_to("loop")
    (root / "cat" / "nowhere.png").symlink_to("gone.png")
    (root / "cat" / "linked.png").symlink_to(root / "dog" / "0.png")
    (root / "cat" / "labels.csv").write_text("a,b")
    (root / "cat" / ".DS_Store").write_bytes(b"\0")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "README.md").write_text("pets")
    os.mkfifo(root / "cat" / "pipe.png")
    listing = list_images(root)
    assert listing.classes == CLASSES
    assert listing.counts(False)[0] == 8
    assert listing.others == 2
    assert listing.problems.count == 2  # the two broken links
    assert own(root, tmp_path / "data").train_count > 14


def test_what_cannot_be_read_is_counted_and_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", (20, 20, 20))
    for number, data in enumerate(DAMAGED.values()):
        (root / "dog" / f"bad{number}\n\x1b[31m.png").write_bytes(data)
    good = (root / "dog" / "0.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(good[: len(good) // 2])
    info = own(root, tmp_path / "data")
    assert info.problems is not None
    assert info.problems.count == len(DAMAGED) + 1
    assert all(line.isprintable() and line.startswith("dog/") for line in info.problems.named)
    assert own(root, tmp_path / "data").problems == info.problems  # remembered
    assert info.images is not None
    assert info.images.train + info.images.test == 60


@pytest.mark.parametrize("names", [(b"\xff\xfe", b"\xff\xfd"), ("<b>", "a\nb"), ("a" * 255, "研究"), ("=1+1", " ")])
def test_classes_of_any_name(tmp_path: Path, names: tuple[str | bytes, ...]) -> None:
    info = own(image_folder(tmp_path / "x", (8, 8), names), tmp_path / "data")
    spec = new_spec(info, "cpu", space="tiny")
    assert StudySpec.from_toml(spec.to_toml()) == spec
    assert spec.images is not None
    assert len(set(spec.images.classes)) == 2
    json.dumps(spec.images.classes).encode()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda root: None, "No such file"),
    "a file": (lambda root: root.write_bytes(b""), "Not a directory"),
    "no class": (lambda root: root.mkdir(), "has no folder"),
    "images without a class": (lambda root: (root.mkdir(), image(0).save(root / "a.png")), "has no folder"),
    "one class": (lambda root: image_folder(root, (5,), ("cat",)), "has one folder, 'cat'"),
    "a class without images": (lambda root: image_folder(root, (5, 0, 5)), "'dog' of"),
    "two such": (lambda root: image_folder(root, (5, 0, 0)), "(and 1 more)"),
    "no images": (lambda root: image_folder(root, (0, 0, 0)), "holds no images"),
    "one image per class": (lambda root: image_folder(root, (1, 1, 1)), "no test image"),
    "another class in the test set": (
        lambda root: (image_folder(root / "train"), image_folder(root / "test", (1,), ("bird",))), "'bird'",
    ),
    "nothing but broken images": (
        lambda root: [(image_folder(root, (0, 0), ("a", "b")) / name / "x.png").write_bytes(b"x") for name in "ab"],
        "no image of a format that is read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_folders_get_one_line(tmp_path: Path, kind: str) -> None:
    make, words = BAD[kind]
    make(tmp_path / "pets")
    with pytest.raises(DataError) as raised:
        own(tmp_path / "pets", tmp_path / "data")
    assert words in one_line(raised)
    assert not list((tmp_path / "data").glob("images/.packing*"))


@pytest.mark.parametrize("size", [0, 3, 1025, 16.0, "16", True])
def test_impossible_sizes(tmp_path: Path, size: Any) -> None:
    with pytest.raises(UsageError, match=f"pixels, whole; it is {size!r}"):
        own(image_folder(tmp_path / "pets"), tmp_path / "data", size)


def test_a_size_of_numpy_is_a_size(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    assert own(root, tmp_path / "data", np.int64(9)).sha256 == own(root, tmp_path / "other", 9).sha256  # type: ignore[arg-type]


def test_named_datasets_have_their_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="32 x 32"):
        locate("shapes", tmp_path, image_size=64)


def test_a_damaged_array_is_refused_and_packed_again(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    info = own(root, tmp_path / "data")
    assert info.folder is not None
    for name, change in {
        "train_images.npy": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        "test_labels.npy": lambda data: data[:50],
        "manifest.json": lambda data: b"[" * 10_000,
    }.items():
        path = info.folder / name
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(DataError, match="damaged"):
            relocate(info.label, info.sha256, tmp_path / "data")
        assert own(root, tmp_path / "data").sha256 == info.sha256
        relocate(info.label, info.sha256, tmp_path / "data")


def test_two_that_pack_at_a_time(tmp_path: Path) -> None:
    root, entered, go_on = image_folder(tmp_path / "pets"), threading.Event(), threading.Event()

    def wait(what: str, done: int, total: int | None) -> None:
        if what == "packing":
            entered.set()
            assert go_on.wait(20)

    first = threading.Thread(target=lambda: locate(root, tmp_path / "data", progress=wait))
    first.start()
    assert entered.wait(20)
    try:
        with pytest.raises(DataError, match="are being packed"):
            locate(root, tmp_path / "data")
    finally:
        go_on.set()
        first.join()
    assert locate(root, tmp_path / "data").train_count == 15


def test_a_full_disk_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError) as raised:
        own(image_folder(tmp_path / "pets"), tmp_path / "data")
    assert "No space left" in one_line(raised)
    assert not list((tmp_path / "data").glob("images/.packing*"))


def test_a_disk_without_room_is_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**7))
    monkeypatch.setattr(packed, "decoded", None)
    with pytest.raises(DataError, match=r"18 images of 1024 x 1024 pixels takes 0\.1 GB of .*, which has 0\.0 GB free"):
        own(image_folder(tmp_path / "pets"), tmp_path / "data", 1024)


def test_a_listing_takes_little_memory_an_image(tmp_path: Path) -> None:
    """A folder of a million images (of which this is a two-hundredth) is listed in 240 MB, and packed from there."""
    root = image_folder(tmp_path / "pets", (1, 1, 1))
    for name in CLASSES:
        for number in range(5_000 // len(CLASSES)):
            (root / name / f"IMG_{number:08d}.png").hardlink_to(root / name / "0.png")
    done: list[int] = []
    tracemalloc.start()
    listing = list_images(root, lambda _, count, __: done.append(count))
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(listing) > 5_000 - 3
    assert kept / len(listing) < 200
    assert most / len(listing) < 1000  # while a class of a third of them is sorted
    assert len(done) >= 5


def test_a_survey_reads_an_even_sample(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", (10, 10, 10))
    (root / "fish" / "0.png").write_bytes(b"x")
    found = survey(list_images(root), most=3)
    assert (found.sampled, found.shorter, found.modes) == (3, (9, 9, 9), {"RGB": 2})
    assert found.problems.count == 1


def test_names_of_folders_in_the_names_of_studies() -> None:
    assert folder_name(Path("/x/my pets (2)"), 32) == "my-pets-2"
    assert folder_name(Path("/x/研究"), 64) == "images-64px"
    assert folder_name(Path("/"), 32) == "images"


def test_what_is_a_folder_rather_than_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10", "pets"):
        (tmp_path / name).mkdir()
    assert [name for name in ("cifar10", "./cifar10", "pets", "nope", "a/b", "x\0", "auto") if is_folder(name)] == [
        "./cifar10", "pets", "a/b",
    ]  # fmt: skip


# Studies of them.


def test_a_study_has_what_the_folder_holds(tmp_path: Path) -> None:
    info = own(image_folder(tmp_path / "pets", (40, 40, 40)), tmp_path / "data", 28)
    spec = new_spec(info, "cpu", space="tiny")
    assert (spec.classes, spec.dataset, spec.dataset_sha256, spec.images) == (3, info.label, info.sha256, info.images)
    assert spec.space.input == spec.latency.input == (3, 28, 28)
    assert spec.feasible.lightest().input == (3, 28, 28)
    assert (spec.recipe.resolution, spec.recipe.crop) == (14, 1)
    assert spec.recipe.train_size + spec.recipe.held_out == 96
    assert spec.name.startswith("tiny-pets-28px-")
    assert StudySpec.from_toml(spec.to_toml()) == spec
    assert new_spec(info, "gpu", "cuda", space="tiny").recipe.resolution == 28


def test_a_study_of_a_named_dataset_has_no_new_keys() -> None:
    assert "images" not in new_spec(locate("shapes"), "cpu", space="tiny").to_dict()


def test_a_side_that_is_less_than_the_strides_is_refused(tmp_path: Path) -> None:
    info = own(image_folder(tmp_path / "pets"), tmp_path / "data", 4)
    file = tmp_path / "deep.toml"
    stage = "\n[[stage]]\nstride = 2\nblocks = 1\n[stage.conv]\nwidth = [8, 16]\n"
    file.write_text(f"[stem]\nwidth = 8\n{3 * stage}")
    with pytest.raises(ConfigError, match="strides multiply to 8: of 4 x 4"):
        new_spec(info, "cpu", space=file)


def test_trainings_read_the_packed_images(tmp_path: Path) -> None:
    info = own(image_folder(tmp_path / "pets", (20, 20, 20)), tmp_path / "data", 12)
    spec, cpu = new_spec(info, "cpu", space="tiny"), torch.device("cpu")
    train, held_out = load_proxy(info, spec.recipe, 0, cpu)
    assert train.pixels.shape[1:] == (6, 6, 3)
    assert len(train) + len(held_out) == 48
    whole = load_train(info, 12, cpu)
    assert whole.pixels.shape == (48, 12, 12, 3)
    every = whole.batch(next(whole.in_order(48)))
    assert every.mean(dim=(0, 2, 3)) == pytest.approx([0, 0, 0], abs=1e-3)
    assert len(load_test(info, 12, cpu)) == 12
