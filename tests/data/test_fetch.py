"""Fetching: from a real server that misbehaves on demand, and from archives and folders of all kinds."""

from __future__ import annotations

import errno
import functools
import gc
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.data.cifar import LAYOUTS
from igc_nas.data.datasets import MANIFEST, DatasetInfo, locate, read_test, read_train
from igc_nas.data.fetch import fetch
from igc_nas.errors import DataError, IgcNasError, UsageError
from tests.data.test_datasets import SmallCifar, change_byte, python2_pickle, small_cifar, tar_of
from tests.support.builders import one_line, taken
from tests.support.shares import examples

Request = http.server.BaseHTTPRequestHandler
Behaviour = Callable[[Request, bytes], None]


class Origin:
    """A web server on this machine that offers `content`; `behave` answers, `asked` keeps the Range of each request."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.behave: Behaviour = serve
        self.asked: list[str | None] = []
        origin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                origin.asked.append(self.headers["Range"])
                origin.behave(self, origin.content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/cifar.tar.gz"


@pytest.fixture
def origin(cifar10: SmallCifar, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    monkeypatch.setenv("no_proxy", "*")
    origin = Origin(cifar10.archive)
    thread = threading.Thread(target=origin.server.serve_forever, args=(0.01,))
    thread.start()
    yield origin
    origin.server.shutdown()
    origin.server.server_close()
    thread.join()


def answer(request: Request, status: int, headers: dict[str, str], body: bytes) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


def wanted(request: Request, content: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a correct answer."""
    asked = request.headers["Range"]
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
    if start >= len(content):
        return 416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}, b""
    length = {"Content-Length": str(len(content) - start)}
    if not asked:
        return 200, length, content
    return 206, length | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}, content[start:]


def serve(request: Request, content: bytes) -> None:
    answer(request, *wanted(request, content))


def cut_after(count: int) -> Behaviour:
    def cut(request: Request, content: bytes) -> None:
        status, headers, body = wanted(request, content)
        answer(request, status, headers, body[:count])

    return cut


def ignore_range(request: Request, content: bytes) -> None:
    answer(request, 200, {"Content-Length": str(len(content))}, content)


def without_length(request: Request, content: bytes) -> None:
    answer(request, 200, {}, content)


def status(code: int, phrase: str | None = None) -> Behaviour:
    def fail(request: Request, content: bytes) -> None:
        request.send_response(code, phrase)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return fail


def length_is(text: str) -> Behaviour:
    return lambda request, content: answer(request, 200, {"Content-Length": text}, content)


def range_is(text: str) -> Behaviour:
    return lambda request, content: answer(request, 206, {"Content-Range": text}, content)


def page(request: Request, content: bytes) -> None:
    body = b"<html>Welcome to our hotel! Please log in.</html>"
    answer(request, 200, {"Content-Length": str(len(body))}, body)


def redirect_to(where: str) -> Behaviour:
    return lambda request, content: answer(request, 302, {"Location": where, "Content-Length": "0"}, b"")


def raw(data: bytes) -> Behaviour:
    def send(request: Request, content: bytes) -> None:
        request.wfile.write(data)

    return send


def reset(request: Request, content: bytes) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def part_of(folder: Path) -> Path:
    return folder / "cifar-10-binary.tar.gz.part"


def assert_whole(info: DatasetInfo, small: SmallCifar) -> None:
    """The installed dataset has the labels and pixels that were made."""
    layout = small.layout
    for (images, labels), names in ((read_train(info), layout.train_files), (read_test(info), (layout.test_file,))):
        np.testing.assert_array_equal(images, small.images(*names)[0])
        np.testing.assert_array_equal(labels, small.images(*names)[1])


def test_a_download_is_verified_and_installed(cifar10: SmallCifar, origin: Origin, tmp_path: Path) -> None:
    info = fetch("cifar10", tmp_path / "data", url=origin.url)
    assert info == locate("auto", tmp_path / "data")
    assert info.label == "cifar10"
    assert_whole(info, cifar10)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-bin"]
    manifest = json.loads((tmp_path / "data" / "cifar-10-batches-bin" / MANIFEST).read_text())
    assert manifest["files"] == cifar10.hashes()
    assert origin.asked == [None]


def test_an_interrupted_download_is_resumed(cifar10: SmallCifar, origin: Origin, tmp_path: Path) -> None:
    origin.behave = cut_after(100_000)
    for have in (100_000, 200_000):
        with pytest.raises(DataError, match=f"after {have:,} of") as raised:
            fetch("cifar10", tmp_path, url=origin.url)
        one_line(raised)
        assert part_of(tmp_path).read_bytes() == origin.content[:have]
        assert locate("auto", tmp_path).synthetic
    origin.behave = serve
    assert_whole(fetch("cifar10", tmp_path, url=origin.url), cifar10)
    assert origin.asked == [None, "bytes=100000-", "bytes=200000-"]
    assert not part_of(tmp_path).exists()


@pytest.mark.parametrize("behave", [ignore_range, without_length], ids=["200", "200 without a length"])
def test_a_server_without_ranges(cifar10: SmallCifar, origin: Origin, tmp_path: Path, behave: Behaviour) -> None:
    part_of(tmp_path).write_bytes(origin.content[:70_001])
    origin.behave = behave
    assert_whole(fetch("cifar10", tmp_path, url=origin.url), cifar10)
    assert origin.asked == ["bytes=70001-"]


def test_a_complete_part_is_not_downloaded_again(cifar10: SmallCifar, origin: Origin, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(origin.content)
    assert_whole(fetch("cifar10", tmp_path, url=origin.url), cifar10)
    assert origin.asked == []


def test_a_part_that_is_too_long_is_discarded(cifar10: SmallCifar, origin: Origin, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(origin.content + b"x")
    assert_whole(fetch("cifar10", tmp_path, url=origin.url), cifar10)
    assert origin.asked == [None]


def test_a_redirect_is_followed(cifar10: SmallCifar, origin: Origin, tmp_path: Path) -> None:
    def once(request: Request, content: bytes) -> None:
        origin.behave = serve
        redirect_to("/elsewhere")(request, content)

    origin.behave = once
    assert_whole(fetch("cifar10", tmp_path, url=origin.url), cifar10)


MISBEHAVIOURS: dict[str, Behaviour] = {
    "403": status(403),
    "404": status(404),
    "404 in red": status(404, "\x1b[31mred\x07"),
    "416": status(416),
    "500": status(500),
    "503": status(503),
    "599": status(599),
    "204": status(204),
    "an empty 200": status(200),
    "a log-in page": page,
    "a length that is none": length_is("lots"),
    "a negative length": length_is("-5"),
    "an endless length": length_is("9" * 400),
    "a short length": length_is("100"),
    "two lengths": length_is("100, 200"),
    "another range": range_is("bytes 0-99/1000"),
    "a range that is none": range_is("all"),
    "an empty range": range_is(""),
    "a redirect to itself": redirect_to("/"),
    "a redirect to a file": redirect_to("file:///etc/passwd"),
    "a redirect to nowhere": redirect_to("http://"),
    "a redirect to a broken address": redirect_to("http://[::1/"),
    "silence": raw(b""),
    "a connection reset": reset,
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "bytes": raw(bytes(range(256)) * 10),
    "an endless header": raw(b"HTTP/1.0 200 OK\r\nX: " + b"x" * 100_000),
    "too many headers": raw(b"HTTP/1.0 200 OK\r\n" + b"X: x\r\n" * 200 + b"\r\n"),
    "broken chunks": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc"),
    "a cut at once": cut_after(0),
}


@pytest.mark.parametrize("behave", MISBEHAVIOURS.values(), ids=MISBEHAVIOURS)
def test_a_network_error_keeps_the_part(cifar10: SmallCifar, origin: Origin, tmp_path: Path, behave: Behaviour) -> None:
    gc.freeze()  # the collection below is of what follows: one of everything takes a third of a second
    part_of(tmp_path).write_bytes(origin.content[:50_000])
    origin.behave = behave
    with pytest.raises(IgcNasError) as raised:
        fetch("cifar10", tmp_path, url=origin.url)
    one_line(raised)
    del raised
    with warnings.catch_warnings():  # http.client leaves an answer open that was cut before its first byte
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert part_of(tmp_path).read_bytes() == origin.content[:50_000]
    origin.behave = serve
    assert_whole(fetch("cifar10", tmp_path, url=origin.url), cifar10)


def test_a_refused_connection(cifar10: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    part_of(tmp_path).write_bytes(b"begun")
    with pytest.raises(DataError, match=r"after 5 of .* Connection refused") as raised:
        fetch("cifar10", tmp_path, url=f"http://127.0.0.1:{port}/a")
    one_line(raised)
    assert "--from" in str(raised.value.hint)
    assert part_of(tmp_path).read_bytes() == b"begun"


def test_a_silent_server_times_out(cifar10: SmallCifar, origin: Origin, tmp_path: Path) -> None:
    tired = threading.Event()
    origin.behave = lambda request, content: tired.wait(10) and None
    with pytest.raises(DataError, match="timed out") as raised:
        fetch("cifar10", tmp_path, url=origin.url, timeout_s=0.2)
    tired.set()
    one_line(raised)


@pytest.mark.parametrize("change", ["a bit", "the beginning of the part", "longer"])
def test_wrong_content_is_removed(cifar10: SmallCifar, origin: Origin, tmp_path: Path, change: str) -> None:
    right = origin.content
    match change:
        case "a bit":
            origin.content = right[:-1] + bytes([right[-1] ^ 1])
        case "the beginning of the part":
            part_of(tmp_path).write_bytes(bytes(1000))
        case "longer":
            origin.behave = lambda request, content: answer(request, 200, {}, content + b"more")
    with pytest.raises(DataError, match="SHA-256 differs") as raised:
        fetch("cifar10", tmp_path, url=origin.url)
    one_line(raised)
    assert list(tmp_path.iterdir()) == []
    assert locate("auto", tmp_path).synthetic


@pytest.mark.parametrize(
    "url",
    ["cifar", "file:///etc/passwd", "ftp://host/a", "http://", "http://[::1", "https://a b/", "http://h:port/",
     "http://\x00/", "http://" + "x" * 5000, "http://ü\ud800/", "\x1b[31m"],
    ids=ascii,
)  # fmt: skip
def test_not_an_http_address(cifar10: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(IgcNasError) as raised:
        fetch("cifar10", tmp_path, url=url)
    one_line(raised)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_at_the_size_of_the_archive(cifar10: SmallCifar, origin: Origin, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for behave in (cut_after(150_000), ignore_range):
        origin.behave = behave
        taken(lambda: fetch("cifar10", tmp_path, url=origin.url, progress=lambda *now: seen.append(now)))
    done = [now for now, _ in seen]
    assert {total for _, total in seen} == {len(origin.content)}
    assert done == sorted(done)
    assert done[0] > 0
    assert done[-1] == len(origin.content)


@pytest.mark.parametrize("name", ["shapes", "imagenet", "", "auto"])
def test_only_cifar_is_fetched(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as raised:
        fetch(name, tmp_path / "data")
    one_line(raised)
    assert not (tmp_path / "data").exists()


# From the user's own archives and folders.


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def in_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        write(folder / name, data)
    return folder


@pytest.fixture(params=["cifar10", "cifar100"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SmallCifar:
    small = small_cifar(request.param)
    monkeypatch.setitem(LAYOUTS, small.layout.name, small.layout)
    return small


SOURCES: dict[str, tuple[bool, Callable[[Path, SmallCifar], Path]]] = {
    "the binary archive": (True, lambda place, small: write(place / "any name", small.archive)),
    "the python archive": (True, lambda place, small: write(place / "any name", small.python_archive)),
    "the python folder": (True, lambda place, small: in_folder(place, small.batches)),
    "above the python folder": (
        True,
        lambda place, small: in_folder(place / small.layout.python_folder, small.batches).parent,
    ),
    "an installed folder": (True, lambda place, small: small.write(place)),
    "above an installed folder": (True, lambda place, small: small.write(place).parent),
    "a binary folder": (False, lambda place, small: in_folder(place, small.files)),
    "a plain tar": (False, lambda place, small: write(place / "a.tar", tar_of(small.files, "w"))),
    "an xz tar": (False, lambda place, small: write(place / "a", tar_of(small.files, "w:xz"))),
    "a bz2 tar": (False, lambda place, small: write(place / "a.zip", tar_of(small.files, "w:bz2"))),
    "a tar with more in it": (
        False,
        lambda place, small: write(place / "a", tar_of({"README": b"x", "a/b/c.bin": b""} | small.files)),
    ),
}


@pytest.mark.parametrize(("official", "make"), SOURCES.values(), ids=SOURCES)
def test_installs(either: SmallCifar, tmp_path: Path, official: bool, make: Callable[[Path, SmallCifar], Path]) -> None:
    name = either.layout.name
    info = fetch(name, tmp_path / "data", source=make(tmp_path / "source", either))
    assert info.label == (name if official else f"{name} (unofficial, sha256:{info.sha256[:12]})")
    assert info == locate(name, tmp_path / "data")
    assert_whole(info, either)


def test_its_own_folder_is_installed(cifar10: SmallCifar, tmp_path: Path) -> None:
    folder = cifar10.write(tmp_path)
    assert fetch("cifar10", tmp_path, source=folder).label == "cifar10"


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "null", '{"files": []}', '{"files": 1}', '{"files": {}}', '{"files": ["a"]}', "[" * 100_000, "\udcff"],
    ids=lambda text: ascii(text)[:20],
)
def test_a_folder_with_a_damaged_manifest_is_unofficial(cifar10: SmallCifar, tmp_path: Path, manifest: str) -> None:
    folder = cifar10.write(tmp_path / "source")
    (folder / MANIFEST).write_bytes(manifest.encode(errors="surrogateescape"))
    assert "unofficial" in fetch("cifar10", tmp_path / "data", source=folder).label


def test_another_archive_is_unofficial_whatever_its_name(cifar10: SmallCifar, tmp_path: Path) -> None:
    files = cifar10.files | {"test_batch.bin": cifar10.files["test_batch.bin"][:-1] + b"\x07"}
    source = write(tmp_path / cifar10.layout.archive, tar_of(files))
    assert "unofficial" in fetch("cifar10", tmp_path / "data", source=source).label


def special(name: str, **fields: Any) -> Callable[[tarfile.TarFile], None]:
    """A member of a tar archive that is no file."""

    def add(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member)

    return add


def tar_with(files: dict[str, bytes], *more: Callable[[tarfile.TarFile], None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for add in more:
            add(tar)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def negative_size(name: str) -> bytes:
    """A tar archive whose first member has a size of -512 bytes in its header (CVE-2025-8194)."""
    data = bytearray(tar_of({name: b""}, "w"))
    data[124:136] = b"\xff" * 10 + b"\xfe\x00"
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    return bytes(data)


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {other: data for other, data in files.items() if other != name}


TEST = "test_batch.bin"

BAD_ARCHIVES: dict[str, Callable[[SmallCifar], bytes]] = {
    "nothing": lambda small: b"",
    "zero bytes": lambda small: bytes(20_000),
    "text": lambda small: b"this is no archive\n" * 100,
    "gzip of text": lambda small: gzip.compress(b"text"),
    "a pickle": lambda small: pickle.dumps([1, 2]),
    "one of its files": lambda small: small.files[TEST],
    "an empty tar": lambda small: tar_of({}),
    "a file is missing": lambda small: tar_of(without(small.files, TEST)),
    "a file is short": lambda small: tar_of(small.files | {TEST: small.files[TEST][:-1]}),
    "a file is empty": lambda small: tar_of(small.files | {TEST: b""}),
    "a wrong label": lambda small: tar_of(small.files | {TEST: b"\x0a" + small.files[TEST][1:]}),
    "unbalanced": lambda small: tar_of(small.files | {TEST: bytes(len(small.files[TEST]))}),
    "CIFAR-100": lambda small: small_cifar("cifar100").archive,
    "an unknown python archive": lambda small: tar_of(small.batches | {"more": b""}),
    "cut in the header": lambda small: small.archive[:5],
    "cut in the middle": lambda small: small.archive[: len(small.archive) // 2],
    "cut at its end": lambda small: small.archive[:-1],
    "cut tar": lambda small: tar_of(small.files, "w")[:100_000],
    "cut xz": lambda small: tar_of(small.files, "w:xz")[:100_000],
    "cut bz2": lambda small: tar_of(small.files, "w:bz2")[:100_000],
    "a flipped byte": lambda small: small.archive[:200_000] + b"\x00\xff\x00" + small.archive[200_003:],
    "a link": lambda small: tar_with(
        without(small.files, TEST), special(TEST, type=tarfile.SYMTYPE, linkname="/etc/passwd")
    ),
    "a hard link": lambda small: tar_with(
        without(small.files, TEST), special(TEST, type=tarfile.LNKTYPE, linkname="../../passwd")
    ),
    "a device": lambda small: tar_with(without(small.files, TEST), special(TEST, type=tarfile.CHRTYPE)),
    "a pipe": lambda small: tar_with(without(small.files, TEST), special(TEST, type=tarfile.FIFOTYPE)),
    "a folder": lambda small: tar_with(without(small.files, TEST), special(TEST, type=tarfile.DIRTYPE)),
    "a negative size": lambda small: negative_size(TEST),
    "a negative size of another": lambda small: negative_size("README"),
    "a size beyond all": lambda small: (
        tar_of(without(small.files, TEST), "w")[:-10240] + tarfile_header(TEST, 10**15) + bytes(1024)
    ),
    "names without end": lambda small: b"".join(tarfile_header("x", 512, b"L") + b"n" * 512 for _ in range(3000)),
}


def tarfile_header(name: str, size: int, kind: bytes = b"0") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("make", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive_is_refused(cifar10: SmallCifar, tmp_path: Path, make: Callable[[SmallCifar], bytes]) -> None:
    source = write(tmp_path / "mine.tar.gz", make(cifar10))
    with pytest.raises(DataError) as raised:
        fetch("cifar10", tmp_path / "data", source=source)
    one_line(raised)
    assert raised.value.hint or "mine.tar.gz" in raised.value.message
    assert locate("auto", tmp_path / "data").synthetic
    assert {path.name for path in tmp_path.rglob("*")} == {"mine.tar.gz", "data"}


@pytest.mark.parametrize("start", ["../../", "/", "../../../../../../tmp/", "data/../../"])
def test_no_member_is_written_outside_the_folder(cifar10: SmallCifar, tmp_path: Path, start: str) -> None:
    """A member is identified by the last part of its name; its path is never used."""
    absolute = str(tmp_path / "outside") + "/" if start == "/" else start
    archive = tar_of({absolute + name: data for name, data in cifar10.files.items()} | {absolute + "evil": b"evil"})
    info = fetch("cifar10", tmp_path / "a" / "b" / "data", source=write(tmp_path / "mine", archive))
    assert_whole(info, cifar10)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"mine", *(f"a/b/data/cifar-10-batches-bin/{name}" for name in cifar10.files)}


def test_a_link_in_the_data_folder_is_not_written_through_by_an_archive(cifar10: SmallCifar, tmp_path: Path) -> None:
    archive = tar_with(cifar10.files, special("cifar-10-batches-bin", type=tarfile.SYMTYPE, linkname=str(tmp_path)))
    info = fetch("cifar10", tmp_path / "data", source=write(tmp_path / "mine", archive))
    assert info.folder is not None
    assert not info.folder.is_symlink()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@examples(100)
@given(data=st.data())
def test_any_damage_of_an_archive_is_one_line_or_harmless(mode: str, data: st.DataObject) -> None:
    small = small_cifar("cifar10", plain=True)
    archive = bytearray(plain_archive(mode))
    for _ in range(data.draw(st.integers(1, 3))):
        # The first 600 bytes are the first header of a plain tar, and most of a compressed one.
        at = data.draw(st.integers(0, len(archive) - 1) | st.integers(0, 600))
        archive[at % len(archive)] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del archive[data.draw(st.integers(0, len(archive))) :]
    with tempfile.TemporaryDirectory() as folder, patch.dict(LAYOUTS, {"cifar10": small.layout}):
        source = write(Path(folder, "mine"), bytes(archive))
        info = taken(lambda: fetch("cifar10", Path(folder, "data"), source=source))
        assert info is None or "unofficial" in info.label


@functools.cache
def plain_archive(mode: str) -> bytes:
    return tar_of(small_cifar("cifar10", plain=True).files, mode)


def test_a_missing_source_is_refused(cifar10: SmallCifar, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").mkdir()
    in_folder(tmp_path / "some", {"data_batch_1.bin": b"", "test_batch": b""})
    for name in ("nothing", "loop", "empty", "some", "nothing/else", "x" * 300):
        with pytest.raises(DataError) as raised:
            fetch("cifar10", tmp_path / "data", source=tmp_path / name)
        one_line(raised)
        assert name[:20] in raised.value.message


def test_a_python_folder_is_read_only_where_its_hashes_are_official(cifar10: SmallCifar, tmp_path: Path) -> None:
    source = in_folder(tmp_path / "source", cifar10.batches)
    change_byte(source / "data_batch_4", at=-1)
    with pytest.raises(DataError, match="data_batch_4 is not the official file") as raised:
        fetch("cifar10", tmp_path / "data", source=source)
    one_line(raised)


@pytest.mark.parametrize("blocked", ["data", "cifar-10-batches-bin", MANIFEST])
def test_an_obstructed_folder_is_refused(cifar10: SmallCifar, tmp_path: Path, blocked: str) -> None:
    data = tmp_path / "data"
    match blocked:
        case "data":
            data.write_text("")
        case "cifar-10-batches-bin":
            data.mkdir()
            (data / blocked).write_text("")
        case _:
            (data / "cifar-10-batches-bin" / MANIFEST).mkdir(parents=True)
    with pytest.raises(DataError) as raised:
        fetch("cifar10", data, source=write(tmp_path / "mine", cifar10.archive))
    one_line(raised)


# An interrupted installation does not count.


@pytest.mark.parametrize("writes", range(13))
def test_a_full_disk_leaves_no_manifest(
    cifar10: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Every file is flushed, and its folder behind it: the disk is full at each of these."""
    folder = small_cifar("cifar10").write(tmp_path / "data")
    change_byte(folder / "data_batch_5.bin", at=-1)
    source = write(tmp_path / "mine", cifar10.archive)
    flush, count = os.fsync, iter(range(100))

    def full(handle: int) -> None:
        if next(count) >= writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(IgcNasError, match="No space left on device") as raised:
            fetch("cifar10", tmp_path / "data", source=source)
    one_line(raised)
    assert not (folder / MANIFEST).exists()
    assert {path.name for path in folder.iterdir()} == set(cifar10.files)
    assert fetch("cifar10", tmp_path / "data", source=source).label == "cifar10"


def test_a_full_disk_keeps_the_download(
    cifar10: SmallCifar, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: object) -> None:
        raise IgcNasError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("igc_nas.data.fetch.write_whole", full)
        with pytest.raises(IgcNasError, match="No space left"):
            fetch("cifar10", tmp_path, url=origin.url)
    assert_whole(fetch("cifar10", tmp_path, url=origin.url), cifar10)
    assert origin.asked == [None]


@pytest.mark.parametrize("bad", ["a file is short", "unbalanced", "a wrong label", "cut in the middle"])
def test_a_refused_source_leaves_the_installation(cifar10: SmallCifar, tmp_path: Path, bad: str) -> None:
    cifar10.write(tmp_path)
    with pytest.raises(DataError):
        fetch("cifar10", tmp_path, source=write(tmp_path / "mine", BAD_ARCHIVES[bad](cifar10)))
    assert locate("cifar10", tmp_path).label == "cifar10"


# Pickles that would run code, in an archive whose hash passes for the official one.


class Call:
    """Pickles as a call of `function`, which may be the result of another call."""

    def __init__(self, function: Callable[..., Any] | Call, *args: object) -> None:
        self.parts = (function, args)

    def __call__(self) -> None:
        """Only callables may be pickled as functions."""

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.parts


def bad_pickles(marker: Path) -> dict[str, bytes]:
    touch = f"touch {marker}"
    python = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    os_module = Call(__import__, "os")
    calls: dict[str, Call] = {
        "os.system": Call(os.system, touch),
        "builtins.eval": Call(eval, python),
        "builtins.exec": Call(exec, python),
        "subprocess.run": Call(subprocess.run, ["touch", str(marker)]),
        "subprocess.check_call": Call(subprocess.check_call, ["touch", str(marker)]),
        "nested getattr": Call(Call(getattr, os_module, "system"), touch),
        "compiled": Call(Call(eval, "exec"), Call(compile, python, "x", "exec")),
        "partial": Call(Call(functools.partial, os.system, touch)),
        "map": Call(list, Call(map, os.system, [touch])),
        "open": Call(open, str(marker), "w"),
        "mkdir": Call(os.mkdir, str(marker)),
        "numpy.save": Call(np.save, str(marker), [1]),
    }
    text = str(marker).encode()
    by_hand = {
        "protocol 0": b"cos\nsystem\n(S'touch " + text + b"'\ntR.",
        "INST": b"(S'touch " + text + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'touch " + text + b"'\no.",
        "in a batch": python2_pickle({"labels": np.zeros(1, np.uint8)}, np.zeros((1, 3072), np.uint8))[:-2]
        + b"U\x01xcos\nsystem\n(S'touch "
        + text
        + b"'\ntRu.",
        "behind a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x13lib.npyio.os.system\x93\x8c"
        + bytes([len(touch)])
        + touch.encode()
        + b"\x85R.",
    }
    return {name: pickle.dumps(call, 4) for name, call in calls.items()} | by_hand


@pytest.mark.parametrize("kind", bad_pickles(Path("marker")))
@pytest.mark.parametrize("where", ["archive", "folder"])
def test_no_pickle_runs_code(
    cifar10: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    marker = tmp_path / "ran"
    pickled = bad_pickles(marker)[kind]
    source = pass_for_official(cifar10, pickled, tmp_path / "source", where, monkeypatch)
    with pytest.raises(DataError, match="is not part of an array") as raised:
        fetch("cifar10", tmp_path / "data", source=source)
    one_line(raised)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "data"}
    assert locate("auto", tmp_path / "data").synthetic


NOT_ALONE = {"open": "leaves a file open", "in a batch": "NumPy warns of it", "behind a dotted name": "NumPy's own"}


@pytest.mark.parametrize("kind", [kind for kind in bad_pickles(Path("marker")) if kind not in NOT_ALONE])
def test_the_standard_unpickler_would_run_the_code(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "ran"
    pickle.loads(bad_pickles(marker)[kind])  # noqa: S301
    assert list(tmp_path.iterdir())


def pass_for_official(
    small: SmallCifar, batch: bytes, place: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A python archive or folder with `batch` as its first file, whose hashes are taken for the official ones."""
    batches = small.batches | {"data_batch_1": batch}
    archive = tar_of(batches)
    md5s = {name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in batches.items()}
    layout = replace(
        small.layout,
        python_archive_md5=hashlib.md5(archive, usedforsecurity=False).hexdigest(),
        python_members=tuple((theirs, md5s[theirs], ours) for theirs, _, ours in small.layout.python_members),
    )
    monkeypatch.setitem(LAYOUTS, "cifar10", layout)
    return write(place, archive) if where == "archive" else in_folder(place, batches)


BATCH = {"labels": np.arange(20, dtype=np.uint8) % 10}

BROKEN_BATCHES: dict[str, bytes] = {
    "nothing": b"",
    "text": b"text",
    "cut": python2_pickle(BATCH, np.zeros((20, 3072), np.uint8))[:-100],
    "a list": pickle.dumps([]),
    "a number": pickle.dumps(1),
    "no labels": pickle.dumps({b"data": np.zeros((20, 3072), np.uint8)}),
    "no data": pickle.dumps({b"labels": [0] * 20}),
    "labels beyond a byte": pickle.dumps({b"labels": [300] * 20, b"data": np.zeros((20, 3072), np.uint8)}),
    "labels of text": pickle.dumps({b"labels": ["cat"] * 20, b"data": np.zeros((20, 3072), np.uint8)}),
    "labels none": pickle.dumps({b"labels": None, b"data": np.zeros((20, 3072), np.uint8)}),
    "a label too few": pickle.dumps({b"labels": [0] * 19, b"data": np.zeros((20, 3072), np.uint8)}),
    "flat data": pickle.dumps({b"labels": [0] * 20, b"data": np.zeros(20 * 3072, np.uint8)}),
    "small images": pickle.dumps({b"labels": [0] * 20, b"data": np.zeros((20, 768), np.uint8)}),
    "an image too many": python2_pickle({"labels": np.zeros(21, np.uint8)}, np.zeros((21, 3072), np.uint8)),
    "a class too many": python2_pickle({"labels": np.full(20, 10, np.uint8)}, np.zeros((20, 3072), np.uint8)),
    "an array beyond memory": b"cnumpy\nndarray\n(\x8a\x07" + (2**50).to_bytes(7, "little") + b"tR.",
    "a persistent id": b"Pmine\n.",
    "an extension": b"\x82\x01.",
    "deep": b"(" * 100_000 + b"t" * 100_000 + b".",
    "an empty stack": b"0.",
    "a memo that is not there": b"h\x01.",
    "a codec that is not there": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00nonetR.",
}


@pytest.mark.parametrize("batch", BROKEN_BATCHES.values(), ids=BROKEN_BATCHES)
def test_a_broken_batch_is_one_line(
    cifar10: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: bytes
) -> None:
    source = pass_for_official(cifar10, batch, tmp_path / "source", "archive", monkeypatch)
    with pytest.raises(DataError) as raised:
        fetch("cifar10", tmp_path / "data", source=source)
    one_line(raised)
    assert locate("auto", tmp_path / "data").synthetic


def test_a_batch_of_todays_pickle_format_is_read(
    cifar10: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = cifar10.images("data_batch_1.bin")
    batch = {b"labels": labels.tolist(), b"data": images.reshape(20, -1), b"filenames": [b"cat.png"] * 20}
    source = pass_for_official(cifar10, pickle.dumps(batch, 2), tmp_path / "source", "folder", monkeypatch)
    assert_whole(fetch("cifar10", tmp_path / "data", source=source), cifar10)


# Two at a time.


def test_a_second_download_is_refused_naming_the_first(cifar10: SmallCifar, origin: Origin, tmp_path: Path) -> None:
    """Both would write the same file; afterwards nothing is left behind."""
    refusals: list[DataError] = []

    def meanwhile(request: Request, content: bytes) -> None:
        origin.behave = serve
        with pytest.raises(DataError) as raised:
            fetch("cifar10", tmp_path, url=origin.url)
        refusals.append(raised.value)
        assert one_line(raised).startswith("cifar-10-binary.tar.gz is being downloaded to ")
        serve(request, content)

    origin.behave = meanwhile
    assert_whole(fetch("cifar10", tmp_path, url=origin.url), cifar10)
    (refusal,) = refusals
    assert refusal.message.endswith(f" by pid {os.getpid()} on {socket.gethostname()}")
    assert refusal.hint == "wait for it, or choose another folder with --data-dir"
    assert origin.asked == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-bin"]


def test_a_download_of_a_killed_process_can_be_resumed(cifar10: SmallCifar, origin: Origin, tmp_path: Path) -> None:
    """The system has freed the lock; its file, the owner's and half of the archive are still there."""
    child = (
        "import sys, time\nfrom pathlib import Path\n"
        "from igc_nas.data.lock import alone\n"
        "with alone(Path(sys.argv[1]), 'cifar-10-binary.tar.gz', 'downloading'):\n"
        "    print('alone', flush=True)\n    time.sleep(60)\n"
    )
    part_of(tmp_path).write_bytes(origin.content[:100_000])
    with subprocess.Popen([sys.executable, "-c", child, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "alone\n"
        with pytest.raises(DataError, match=f"by pid {other.pid} on "):
            fetch("cifar10", tmp_path, url=origin.url)
        other.kill()
    assert len(list(tmp_path.iterdir())) == 3
    assert_whole(fetch("cifar10", tmp_path, url=origin.url), cifar10)
    assert origin.asked == ["bytes=100000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-bin"]
