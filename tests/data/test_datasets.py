"""Datasets on disk. The small CIFAR that `small_cifar` makes is real files and archives of a smaller `Layout`."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.data.cifar import LAYOUTS, PIXELS, Layout
from igc_nas.data.datasets import MANIFEST, Bytes, auto_notice, data_dir, locate, read_test, read_train, split_held_out
from igc_nas.errors import DataError, UsageError
from tests.support.builders import one_line

COUNTS = {"cifar10": (100, 20), "cifar100": (200, 100)}


@dataclass(frozen=True)
class SmallCifar:
    """A CIFAR of a few images, in both layouts; `layout` has the hashes of its archives."""

    layout: Layout
    files: dict[str, bytes]
    archive: bytes
    batches: dict[str, bytes]
    python_archive: bytes

    def images(self, *names: str) -> tuple[Bytes, Bytes]:
        """What was written: images and (fine) labels."""
        data = np.frombuffer(b"".join(self.files[name] for name in names), np.uint8).reshape(-1, self.layout.record)
        return data[:, self.layout.label_bytes :].reshape(-1, 3, 32, 32), data[:, self.layout.label_bytes - 1]

    def write(self, data: Path, manifest: bool = True) -> Path:
        """Install into a data folder by hand."""
        folder = data / self.layout.folder
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        if manifest:
            (folder / MANIFEST).write_text(json.dumps({"files": self.hashes()}))
        return folder

    def hashes(self) -> dict[str, str]:
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}


@functools.cache
def small_cifar(name: str, plain: bool = False) -> SmallCifar:
    """Balanced classes; noise for images or, where `plain`, black ones that compress well."""
    train, test = COUNTS[name]
    layout = replace(LAYOUTS[name], train_count=train, test_count=test)
    rng = np.random.default_rng(3)
    files, batches = {}, {}
    theirs = {ours: name for name, _, ours in layout.python_members}
    for file, count in layout.files().items():
        labels = rng.permutation(np.arange(count * layout.label_bytes, dtype=np.uint8).reshape(count, -1) % 10)
        labels[:, -1] = rng.permutation(count) % layout.classes
        pixels = rng.integers(0, 1 if plain else 256, (count, PIXELS), dtype=np.uint8)
        files[file] = np.concatenate([labels, pixels], axis=1).tobytes()
        keys = ("labels",) if layout.label_bytes == 1 else ("coarse_labels", "fine_labels")
        batches[theirs[file]] = python2_pickle(dict(zip(keys, labels.T, strict=True)), pixels)
    archive = tar_of({f"{layout.folder}/{name}": data for name, data in files.items()})
    python = tar_of({f"{layout.python_folder}/{name}": data for name, data in batches.items()})
    layout = replace(
        layout,
        archive_size=len(archive),
        archive_sha256=hashlib.sha256(archive).hexdigest(),
        python_archive_md5=hashlib.md5(python, usedforsecurity=False).hexdigest(),
        python_members=tuple(
            (theirs, hashlib.md5(batches[theirs], usedforsecurity=False).hexdigest(), ours)
            for theirs, _, ours in layout.python_members
        ),
    )
    return SmallCifar(layout, files, archive, batches, python)


def tar_of(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def python2_pickle(labels: Mapping[str, Bytes], pixels: Bytes) -> bytes:
    """A batch as Python 2 and the NumPy of 2009 wrote it, opcode by opcode."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"M" + struct.pack("<H", len(pixels)) + b"M" + struct.pack("<H", PIXELS) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    lists = [
        text(key.encode()) + b"](" + b"".join(b"K" + bytes([v]) for v in row) + b"e" for key, row in labels.items()
    ]
    return b"\x80\x02}(" + text(b"data") + array + b"".join(lists) + b"u."


@pytest.fixture
def cifar100(monkeypatch: pytest.MonkeyPatch) -> SmallCifar:
    small = small_cifar("cifar100")
    monkeypatch.setitem(LAYOUTS, "cifar100", small.layout)
    return small


def test_an_installed_dataset_is_found_and_named(cifar10: SmallCifar, tmp_path: Path) -> None:
    folder = cifar10.write(tmp_path)
    info = locate("cifar10", tmp_path)
    assert (info.name, info.label, info.classes, info.folder, info.synthetic) == (
        "cifar10", "cifar10", 10, folder, False,
    )  # fmt: skip
    assert locate("auto", tmp_path) == info


def test_files_without_a_manifest_are_unofficial(cifar10: SmallCifar, tmp_path: Path) -> None:
    folder = cifar10.write(tmp_path, manifest=False)
    info = locate("auto", tmp_path)
    assert info.label == f"cifar10 (unofficial, sha256:{info.sha256[:12]})"
    change_byte(folder / "data_batch_3.bin", at=-1)
    assert locate("cifar10", tmp_path).label not in (info.label, "cifar10")


def test_the_test_set_does_not_change_the_name_of_the_training_set(cifar10: SmallCifar, tmp_path: Path) -> None:
    folder = cifar10.write(tmp_path, manifest=False)
    before = locate("cifar10", tmp_path)
    change_byte(folder / "test_batch.bin", at=-1)
    assert locate("cifar10", tmp_path).sha256 == before.sha256


def test_a_data_folder_may_be_the_dataset_itself(cifar10: SmallCifar, tmp_path: Path) -> None:
    folder = cifar10.write(tmp_path)
    assert locate("auto", folder).folder == folder


def test_an_installation_inside_the_folder_comes_first(cifar10: SmallCifar, tmp_path: Path) -> None:
    outer = tmp_path / cifar10.layout.folder
    assert locate("cifar10", cifar10.write(outer).parent).folder == outer / cifar10.layout.folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_named_dataset_that_is_missing_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is not in") as raised:
        locate(name, tmp_path)
    one_line(raised)
    assert f"igc-nas data {name}" in str(raised.value.hint)


def test_auto_is_shapes_only_where_cifar10_is_missing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere" / "else"):
        info = locate("auto", folder)
        assert (info.label, info.synthetic, info.folder) == ("shapes", True, None)
    assert locate("shapes", tmp_path) == info


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar", "did you mean cifar10?"),
        ("cifar-100", "did you mean cifar100?"),
        ("shape", "did you mean shapes?"),
        ("imagenet", "use cifar10, cifar100, shapes, or the path of a folder of images"),
    ],
)
def test_an_unknown_name_gets_a_hint(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match="unknown dataset") as raised:
        locate(name, tmp_path)
    one_line(raised)
    assert raised.value.hint == hint


@pytest.mark.parametrize("name", ["", "auto ", "\x1b[31m", "cifar10\n", "x" * 5000, "<b>"])
def test_an_unknown_name_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as raised:
        locate(name, tmp_path)
    one_line(raised)


def test_images_are_read_as_they_were_written(cifar10: SmallCifar, tmp_path: Path) -> None:
    cifar10.write(tmp_path)
    info = locate("cifar10", tmp_path)
    for (images, labels), names in (
        (read_train(info), cifar10.layout.train_files),
        (read_test(info), (cifar10.layout.test_file,)),
    ):
        wanted_images, wanted_labels = cifar10.images(*names)
        np.testing.assert_array_equal(images, wanted_images)
        np.testing.assert_array_equal(labels, wanted_labels)
        assert images.flags.c_contiguous
        assert images.dtype == labels.dtype == np.uint8


def test_a_record_is_label_red_green_blue(cifar10: SmallCifar, tmp_path: Path) -> None:
    folder = cifar10.write(tmp_path, manifest=False)
    data = bytearray((folder / "test_batch.bin").read_bytes())
    data[1 : 1 + PIXELS] = bytes([1] * 1024 + [2] * 1024 + [3] * 1023 + [4])
    (folder / "test_batch.bin").write_bytes(data)
    image = read_test(locate("cifar10", tmp_path))[0][0]
    assert [set(channel.flatten()) for channel in image] == [{1}, {2}, {3, 4}]
    assert image[2, 31, 31] == 4


def test_cifar100_has_the_fine_labels(cifar100: SmallCifar, tmp_path: Path) -> None:
    cifar100.write(tmp_path)
    info = locate("cifar100", tmp_path)
    images, labels = read_train(info)
    assert (info.label, info.classes) == ("cifar100", 100)
    assert np.bincount(labels).tolist() == [2] * 100
    np.testing.assert_array_equal(images, cifar100.images("train.bin")[0])
    np.testing.assert_array_equal(read_test(info)[1], cifar100.images("test.bin")[1])


def test_shapes_need_no_folder(tmp_path: Path) -> None:
    images, labels = read_test(locate("shapes", tmp_path))
    assert len(images) == len(labels) == 4000
    assert list(tmp_path.iterdir()) == []


# Damaged folders: an error, also for `auto`.

Damage = Callable[[Path], object]
CIFAR10 = LAYOUTS["cifar10"]
RECORD = 3073
SIZE = 20 * RECORD


def change_byte(path: Path, at: int, to: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[at] = data[at] ^ 1 if to is None else to
    path.write_bytes(data)


def cut(name: str, size: int) -> Damage:
    return lambda folder: os.truncate(folder / name, size)


def append(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + data)


def set_byte(name: str, at: int, to: int | None = None) -> Damage:
    return lambda folder: change_byte(folder / name, at, to)


def relabel(name: str) -> Damage:
    """Give the first image another valid label."""
    return lambda folder: change_byte(folder / name, 0, ((folder / name).read_bytes()[0] + 1) % 10)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    """Put something else in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def manifest(text: str | bytes) -> Damage:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / MANIFEST).write_bytes(data)


def changed_hashes(change: Callable[[dict[str, object]], object]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text())
        change(content["files"])
        (folder / MANIFEST).write_text(json.dumps(content))

    return damage


def swapped(folder: Path) -> None:
    first, second = ((folder / name).read_bytes() for name in CIFAR10.train_files[:2])
    (folder / CIFAR10.train_files[0]).write_bytes(second)
    (folder / CIFAR10.train_files[1]).write_bytes(first)


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def replaced(make: Callable[[Path], object]) -> Damage:
    """Put something else in the place of the whole folder."""

    def damage(folder: Path) -> None:
        emptied(folder)
        folder.rmdir()
        make(folder)

    return damage


DAMAGES: dict[str, Damage] = {
    **{f"{name} removed": remove(name) for name in CIFAR10.files()},
    **{f"{name} a folder": instead(name, Path.mkdir) for name in CIFAR10.files()},
    **{f"{name} empty": cut(name, 0) for name in CIFAR10.files()},
    **{f"{name} a byte longer": append(name, b"\x00") for name in CIFAR10.files()},
    **{f"{name} flipped first pixel": set_byte(name, 1) for name in CIFAR10.files()},
    **{f"{name} flipped last pixel": set_byte(name, -1) for name in CIFAR10.files()},
    **{
        f"{name} cut at {size}": cut(name, size)
        for name in ("data_batch_1.bin", "test_batch.bin")
        for size in (1, 512, RECORD - 1, RECORD, SIZE // 2, SIZE - RECORD, SIZE - 1)
    },
    **{
        f"{name} label {label} in record {record}": set_byte(name, record * RECORD, label)
        for name in ("data_batch_1.bin", "data_batch_5.bin", "test_batch.bin")
        for record, label in ((0, 10), (11, 128), (19, 255))
    },
    **{f"{name} unbalanced": relabel(name) for name in ("data_batch_1.bin", "data_batch_5.bin", "test_batch.bin")},
    "an image too many": append("data_batch_2.bin", bytes(RECORD)),
    "twice as long": append("data_batch_2.bin", bytes(SIZE)),
    "all zero": lambda folder: (folder / "data_batch_4.bin").write_bytes(bytes(SIZE)),
    "all 255": lambda folder: (folder / "data_batch_4.bin").write_bytes(b"\xff" * SIZE),
    "text": lambda folder: (folder / "test_batch.bin").write_text("<html>" * 1000),
    "files exchanged": swapped,
    "a file of a terabyte": cut("data_batch_2.bin", 10**12),
    "a dangling link": instead("data_batch_2.bin", lambda path: path.symlink_to("nowhere")),
    "a link to itself": instead("data_batch_2.bin", lambda path: path.symlink_to(path)),
    "a pipe": instead("data_batch_2.bin", os.mkfifo),
    "an endless device": instead("data_batch_2.bin", lambda path: path.symlink_to("/dev/zero")),
    "an empty folder": emptied,
    "a file for a folder": replaced(lambda path: path.write_text("")),
    "a dangling link for a folder": replaced(lambda path: path.symlink_to("nowhere")),
    "a link to itself for a folder": replaced(lambda path: path.symlink_to(path)),
    "manifest empty": manifest(""),
    "manifest text": manifest("whole"),
    "manifest cut": lambda folder: os.truncate(folder / MANIFEST, 200),
    "manifest zero bytes": manifest(bytes(200)),
    "manifest not UTF-8": manifest(b'{"files": {"\xff": 1}}'),
    "manifest UTF-16": manifest('{"files": {}}'.encode("utf-16")),
    "manifest with a BOM": manifest('\ufeff{"files": {}}'),
    "manifest null": manifest("null"),
    "manifest a number": manifest("1"),
    "manifest a list": manifest("[]"),
    "manifest a long number": manifest("9" * 5000),
    "manifest deep": manifest("[" * 100_000),
    "manifest without files": manifest('{"dataset": "cifar10"}'),
    "manifest files null": manifest('{"files": null}'),
    "manifest files a list": manifest('{"files": ["data_batch_1.bin"]}'),
    "manifest files a text": manifest('{"files": "all"}'),
    "manifest of no file": manifest('{"files": {}}'),
    "manifest of other files": manifest('{"files": {"train.bin": "0"}}'),
    "manifest without a file": changed_hashes(lambda files: files.pop("test_batch.bin")),
    "manifest with another hash": changed_hashes(lambda files: files.update({"data_batch_2.bin": "0" * 64})),
    "manifest with a null": changed_hashes(lambda files: files.update({"data_batch_2.bin": None})),
    "manifest with a list": changed_hashes(lambda files: files.update({"data_batch_2.bin": []})),
    "manifest a folder": instead(MANIFEST, Path.mkdir),
    "manifest a link to itself": instead(MANIFEST, lambda path: path.symlink_to(path)),
}


def test_there_are_enough_kinds_of_damage() -> None:
    assert len(DAMAGES) >= 60


@pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_line_and_never_shapes(cifar10: SmallCifar, tmp_path: Path, damage: Damage) -> None:
    folder = cifar10.write(tmp_path)
    damage(folder)
    for name in ("cifar10", "auto"):
        with pytest.raises(DataError) as raised:
            locate(name, tmp_path)
        one_line(raised)
        assert "igc-nas data" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("data_batch_3.bin removed", r"data_batch_3.bin: No such file"),
        ("data_batch_3.bin a byte longer", r"data_batch_3.bin has 61,461 bytes; cifar10 has 61,460"),
        ("data_batch_3.bin flipped last pixel", r"data_batch_3.bin is damaged: its SHA-256"),
        ("test_batch.bin label 128 in record 11", r"test_batch.bin holds the label 128; cifar10 has 10 classes"),
        ("data_batch_5.bin unbalanced", r"classes have 9 to 11 images"),
        ("test_batch.bin unbalanced", r"test_batch.bin.* classes have 1 to 3 images"),
        ("manifest of no file", r"damaged"),
    ],
)
def test_damage_is_named(cifar10: SmallCifar, tmp_path: Path, damage: str, says: str) -> None:
    DAMAGES[damage](cifar10.write(tmp_path))
    with pytest.raises(DataError, match=says):
        locate("cifar10", tmp_path)


@pytest.mark.parametrize("damage", ["test.bin removed", "train.bin label", "train.bin cut", "unbalanced"])
def test_damaged_cifar100(cifar100: SmallCifar, tmp_path: Path, damage: str) -> None:
    folder = cifar100.write(tmp_path, manifest=False)
    match damage:
        case "test.bin removed":
            (folder / "test.bin").unlink()
        case "train.bin label":
            change_byte(folder / "train.bin", 1, 100)
        case "train.bin cut":
            os.truncate(folder / "train.bin", 200 * 3073)
        case "unbalanced":
            change_byte(folder / "train.bin", 1, (cifar100.images("train.bin")[1][0] + 1) % 100)
    with pytest.raises(DataError) as raised:
        locate("cifar100", tmp_path)
    one_line(raised)


def test_a_failing_disk_is_one_line(cifar10: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    cifar10.write(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(DataError, match=r"data_batch_1.bin: Input/output error") as raised:
        locate("auto", tmp_path)
    one_line(raised)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize("where", ["", "cifar-10-batches-bin", "cifar-10-batches-bin/test_batch.bin"])
def test_a_file_without_read_permission_is_one_line(cifar10: SmallCifar, tmp_path: Path, where: str) -> None:
    cifar10.write(tmp_path / "data")
    closed = tmp_path / "data" / where
    mode = closed.stat().st_mode
    closed.chmod(0)
    with pytest.raises(DataError) as raised:
        locate("auto", tmp_path / "data")
    closed.chmod(mode)
    one_line(raised)


@pytest.mark.parametrize("name", ["x" * 300, "null\0byte"], ids=["too long", "null byte"])
@pytest.mark.parametrize("dataset", ["cifar10", "auto"])
def test_an_impossible_folder_is_one_line(tmp_path: Path, name: str, dataset: str) -> None:
    with pytest.raises(DataError):
        locate(dataset, tmp_path / name)


def test_damage_between_finding_and_reading(cifar10: SmallCifar, tmp_path: Path) -> None:
    folder = cifar10.write(tmp_path)
    info = locate("cifar10", tmp_path)
    os.truncate(folder / "data_batch_1.bin", 5000)
    with pytest.raises(DataError, match=r"5,000 bytes"):
        read_train(info)


# Holding images out.


@given(
    labels=st.lists(st.integers(0, 9), min_size=2, max_size=300),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)
def test_held_out_images_are_stratified(labels: list[int], share: float, seed: int) -> None:
    of = np.array(labels, dtype=np.uint8)
    count = min(len(of) - 1, max(1, round(share * len(of))))
    rest, held_out = split_held_out(of, count, seed)
    assert sorted([*rest, *held_out]) == list(range(len(of)))
    assert len(held_out) == count
    taken, there = np.bincount(of[held_out], minlength=10), np.bincount(of, minlength=10)
    kinds = np.count_nonzero(there)
    assert (abs(taken - count * there / len(of)) <= 0.5 + kinds * there / len(of) / 2).all()


def test_a_rare_class_is_not_held_out_as_a_whole() -> None:
    """Of a folder of one's own: no network could learn what only the held-out images show."""
    labels = np.repeat(np.arange(3, dtype=np.uint8), [1000, 1000, 20])
    rest, held_out = split_held_out(labels, 202, seed=0)
    assert np.bincount(labels[held_out]).tolist() == [100, 100, 2]
    assert np.bincount(labels[rest]).tolist() == [900, 900, 18]


@given(classes=st.integers(1, 100), each=st.integers(1, 20), data=st.data())
def test_equal_classes_have_equal_shares_of_the_held_out_images(classes: int, each: int, data: st.DataObject) -> None:
    labels = (np.arange(classes * each) % classes).astype(np.uint8)
    if len(labels) < 2:
        return
    _, held_out = split_held_out(labels, data.draw(st.integers(1, len(labels) - 1)), seed=0)
    counts = np.bincount(labels[held_out], minlength=classes)
    assert counts.max() - counts.min() <= 1


def test_the_seed_decides_what_is_held_out() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 50)
    first, again, other = (split_held_out(labels, 100, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


@pytest.mark.parametrize("count", [-1, 0, 10, 11])
def test_all_or_no_images_cannot_be_held_out(count: int) -> None:
    with pytest.raises(UsageError, match="use 1 to 9") as raised:
        split_held_out(np.arange(10, dtype=np.uint8), count, 0)
    assert one_line(raised) == f"cannot hold {count} of 10 images out"


# The folder of datasets, and the notice where there is none.


def test_flag_comes_before_environment_before_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGC_NAS_DATA", str(tmp_path / "environment"))
    assert data_dir(tmp_path / "flag") == tmp_path / "flag"
    assert data_dir() == tmp_path / "environment"
    for unset in (lambda: monkeypatch.setenv("IGC_NAS_DATA", ""), lambda: monkeypatch.delenv("IGC_NAS_DATA")):
        unset()
        assert data_dir() == Path(platformdirs.user_cache_dir("igc-nas"))


def test_the_notice_about_shapes_is_two_lines(cifar10: SmallCifar, tmp_path: Path) -> None:
    notice = auto_notice(locate("auto", tmp_path), tmp_path)
    assert notice is not None
    for words in (str(tmp_path), "SYNTHETIC", "\nigc-nas data cifar10 ", "--from", "nothing about CIFAR-10"):
        assert words in notice
    assert notice.count("\n") == 1
    cifar10.write(tmp_path)
    assert auto_notice(locate("auto", tmp_path), tmp_path) is None


def test_the_real_cifar10() -> None:
    given_folder = os.environ.get("IGC_NAS_TEST_CIFAR")
    if not given_folder:
        pytest.skip("IGC_NAS_TEST_CIFAR names no folder that holds cifar-10-batches-bin")
    info = locate("cifar10", Path(given_folder))
    assert info.label.startswith("cifar10")
    for (images, labels), each in ((read_train(info), 5000), (read_test(info), 1000)):
        assert images.shape == (10 * each, 3, 32, 32)
        assert np.bincount(labels).tolist() == [each] * 10
    images, _ = read_train(info)
    for channel in range(3):
        counts = np.bincount(images[:, channel].ravel(), minlength=256)
        mean = np.average(np.arange(256) / 255, weights=counts)
        std = np.sqrt(np.average((np.arange(256) / 255 - mean) ** 2, weights=counts))
        assert (mean, std) == pytest.approx((info.mean[channel], info.std[channel]), abs=1e-3)
