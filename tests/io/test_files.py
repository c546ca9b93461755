from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from igc_nas.errors import IgcNasError
from igc_nas.io.files import append_line, whole_folder, write_whole


def test_text_and_bytes_are_written_unchanged(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "größer\r\n")
    write_whole(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == "größer\r\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("a much longer old text")
    write_whole(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a"
    path.write_text("old")
    monkeypatch.setattr(*((os, "fsync") if name == "fsync" else (Path, "replace")), full)
    with pytest.raises(IgcNasError, match=r"cannot write .*No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("before", "after"), [("", "new\n"), ("old\n", "old\nnew\n"), ("old", "old\nnew\n")])
def test_a_line_is_added_as_a_line_of_its_own(before: str, after: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(before)
    append_line(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == after


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(IgcNasError, match="No such file or directory") as caught:
        write_whole(tmp_path / "nowhere" / "a", "text")
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(IgcNasError, match="cannot write"):
        write_whole(tmp_path, "text")
    assert tmp_path.is_dir()


def test_a_name_as_long_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_whole(path, "text")
    assert path.read_text() == "text"


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_a_link_is_followed_and_a_pipe_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", "through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "through"
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_whole(tmp_path / "pipe", "flow")
    reader.join(5)
    assert read == [b"flow"]
    assert (tmp_path / "pipe").is_fifo()


# Folders.


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with whole_folder(tmp_path / "out") as folder:
            assert folder.parent == tmp_path
            (folder / "a").write_text(text)
            assert text == "first" or (tmp_path / "out" / "a").read_text() == "first"
        assert (tmp_path / "out" / "a").read_text() == text
        assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("there", [False, True])
def test_a_block_that_fails_leaves_the_old_folder(there: bool, tmp_path: Path) -> None:
    if there:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a").write_text("old")

    def interrupted() -> None:
        with whole_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if there else [])
    assert not there or (tmp_path / "out" / "a").read_text() == "old"


def test_a_failed_replacement_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(IgcNasError, match=r"cannot write .*Permission denied"), whole_folder(tmp_path / "out"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_folder_in_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IgcNasError, match="cannot write"), whole_folder(tmp_path / "nowhere" / "out"):
        pass
