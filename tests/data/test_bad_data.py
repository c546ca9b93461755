"""Dataset files and archives that are pipes or devices, unpack to terabytes, or have members of hostile names."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igc_nas.data.cifar import LAYOUTS
from igc_nas.data.datasets import MANIFEST, locate, read_test, read_train
from igc_nas.data.fetch import fetch
from igc_nas.errors import DataError
from tests.data.test_datasets import DAMAGES, SmallCifar, small_cifar, tar_of
from tests.data.test_fetch import BAD_ARCHIVES, BROKEN_BATCHES, TEST, assert_whole, in_folder, tarfile_header, write
from tests.support.builders import one_line, taken
from tests.support.mutations import NO_FILES, as_json, damaged, made, sizes, soon, spoiled

OF_A_FOLDER = ("data_batch_3.bin", "test_batch.bin")


def test_there_are_enough_kinds_of_bad_files() -> None:
    assert len(DAMAGES) + len(BAD_ARCHIVES) + len(BROKEN_BATCHES) + len(BOMBS) + 5 * len(NO_FILES) >= 60


@pytest.mark.parametrize("kind", NO_FILES)
def test_an_archive_that_is_no_file_is_refused_at_once(cifar10: SmallCifar, tmp_path: Path, kind: str) -> None:
    source = made(kind, tmp_path / "mine.tar.gz")
    with soon(), pytest.raises(DataError) as raised:
        fetch("cifar10", tmp_path / "data", source=source)
    assert "mine.tar.gz" in one_line(raised) or kind == "a link to a folder"


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", OF_A_FOLDER)
def test_a_folder_with_a_member_that_is_no_file_is_refused_at_once(
    cifar10: SmallCifar, tmp_path: Path, name: str, kind: str
) -> None:
    source = in_folder(tmp_path / "mine", cifar10.files)
    made(kind, source / name)
    with soon(), pytest.raises(DataError) as raised:
        fetch("cifar10", tmp_path / "data", source=source)
    one_line(raised)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", [*OF_A_FOLDER, MANIFEST])
def test_an_installation_with_a_member_that_is_no_file_is_refused_at_once(
    cifar10: SmallCifar, tmp_path: Path, name: str, kind: str
) -> None:
    folder = cifar10.write(tmp_path)
    made(kind, folder / name)
    for dataset in ("cifar10", "auto"):
        with soon(), pytest.raises(DataError) as raised:
            locate(dataset, tmp_path)
        assert name in one_line(raised)


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_partial_download_that_is_no_file_is_refused_at_once(cifar10: SmallCifar, tmp_path: Path, kind: str) -> None:
    made(kind, tmp_path / f"{cifar10.layout.archive}.part")
    with soon(), pytest.raises(DataError) as raised:
        fetch("cifar10", tmp_path, url="http://127.0.0.1:9/nobody")
    one_line(raised)


# Small archives that unpack to many bytes.

ZEROS, ENOUGH = 50_000_000, 10_000_000
"""Bytes that an archive unpacks to, and the most that may be read of it."""


def packed(opened: Callable[..., object], head: bytes) -> Callable[[Path], None]:
    """An archive of `head` and many zeros."""

    def make(path: Path) -> None:
        with opened(path, "wb") as file:  # type: ignore[attr-defined]
            file.write(head)
            file.write(bytes(ZEROS))

    return make


def fast_gzip(path: Path, mode: str) -> gzip.GzipFile:
    return gzip.open(path, mode, compresslevel=1)


BOMBS: dict[str, Callable[[Path], None]] = {
    "a large member": packed(fast_gzip, tarfile_header("x", ZEROS)),
    "a long name": packed(fast_gzip, tarfile_header("x", ZEROS, b"L")),
    "a long header": packed(fast_gzip, tarfile_header("x", ZEROS, b"x")),
    "a large file of the dataset": packed(fast_gzip, tarfile_header(TEST, ZEROS)),
    "much behind the end": packed(fast_gzip, bytes(1024)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_an_archive_that_unpacks_beyond_the_limit_is_refused(
    cifar10: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Not more than the limit is read."""
    monkeypatch.setattr("igc_nas.data.fetch.MOST_BYTES", ENOUGH)
    source = tmp_path / "mine.tar.gz"
    BOMBS[kind](source)
    assert source.stat().st_size < ENOUGH / 10
    with soon(), pytest.raises(DataError, match="more than 10,000,000 bytes") as raised:
        fetch("cifar10", tmp_path / "data", source=source)
    one_line(raised)


@pytest.mark.parametrize("opened", [gzip.open, bz2.open, lzma.open, open])
def test_archives_of_all_compressions_are_read(
    cifar10: SmallCifar, tmp_path: Path, opened: Callable[..., object]
) -> None:
    source = tmp_path / "mine"
    with opened(source, "wb") as file:  # type: ignore[attr-defined]
        file.write(tar_of(cifar10.files, "w"))
    assert_whole(fetch("cifar10", tmp_path / "data", source=source), cifar10)


# Damaged.


@sizes(60, 1000)
def test_a_damaged_manifest_is_refused_or_equal(count: int, cifar10: SmallCifar, tmp_path: Path) -> None:
    folder, good = cifar10.write(tmp_path), {"dataset": "cifar10", "files": cifar10.hashes()}

    @settings(max_examples=count, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(spoiled(good).map(as_json) | damaged(as_json(good)))
    def check(content: bytes) -> None:
        (folder / MANIFEST).write_bytes(content)
        info = taken(lambda: locate("cifar10", tmp_path))
        if info is not None:
            assert info.label == "cifar10"
            held = json.loads(content)["files"]
            assert {name: held[name] for name in cifar10.files} == cifar10.hashes()

    check()


@sizes(20, 400)
def test_a_damaged_file_is_refused_or_has_other_pixels(count: int, cifar10: SmallCifar, tmp_path: Path) -> None:
    folder = cifar10.write(tmp_path, manifest=False)

    @settings(max_examples=count, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.sampled_from(sorted(cifar10.files)), st.data())
    def check(name: str, data: st.DataObject) -> None:
        (folder / name).write_bytes(data.draw(damaged(cifar10.files[name])))
        info = taken(lambda: locate("cifar10", tmp_path))
        (folder / name).write_bytes(cifar10.files[name])
        if info is not None:
            assert info.label.startswith("cifar10 (unofficial, sha256:")
            for images, labels in (read_train(info), read_test(info)):
                assert len(images) == len(labels)
                assert labels.max() < 10

    check()


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_damaged_archive_is_one_line_or_harmless(mode: str) -> None:
    small = small_cifar("cifar10", plain=True)
    archive = tar_of(small.files, mode)

    @settings(max_examples=300)
    @given(damaged(archive))
    def check(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder, patch.dict(LAYOUTS, {"cifar10": small.layout}), soon(5):
            source = write(Path(folder, "mine"), content)
            info = taken(lambda: fetch("cifar10", Path(folder, "data"), source=source))
            assert info is None or "unofficial" in info.label

    check()


# Names of members.


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "<script>", "../../evil", "/evil", "\u202egnp.bin", "x" * 5000, "a\nb", "con", "-rf", "~"]
)
def test_a_hostile_member_is_not_written(cifar10: SmallCifar, tmp_path: Path, name: str) -> None:
    archive = tar_of(cifar10.files | {name: b"evil", f"{name}/{TEST}.more": b"evil"})
    info = fetch("cifar10", tmp_path / "data", source=write(tmp_path / "mine", archive))
    assert info.folder is not None
    assert {path.name for path in info.folder.iterdir()} == set(cifar10.files)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "data"}


def test_a_link_in_a_source_folder_is_followed_and_not_copied(cifar10: SmallCifar, tmp_path: Path) -> None:
    real = in_folder(tmp_path / "real", cifar10.files)
    source = tmp_path / "mine"
    source.mkdir()
    for path in real.iterdir():
        (source / path.name).symlink_to(path)
    info = fetch("cifar10", tmp_path / "data", source=source)
    shutil.rmtree(real)
    assert_whole(info, cifar10)
    assert info.folder is not None
    assert not any(path.is_symlink() for path in info.folder.iterdir())
