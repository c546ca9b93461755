"""Fetch a dataset: download it or read the user's copy, verify it, install it in the binary layout.

An interrupted installation is not taken for a complete one: files are written whole, the manifest last. No archive is
unpacked to disk, and no data can run code: the python layout is unpickled only where its hash is the official one, by
an unpickler that builds NumPy arrays and nothing else.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.client
import io
import json
import lzma
import pickle
import socket
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from igc_nas.data.cifar import LAYOUTS, Layout
from igc_nas.data.datasets import MANIFEST, SHAPES, DatasetInfo, check_files, verify
from igc_nas.data.lock import alone
from igc_nas.errors import ConfigError, DataError, UsageError
from igc_nas.io.files import read_bytes, read_text, sha256_of, write_whole
from igc_nas.io.text import nearest_and_all, one_line

TIMEOUT_S = 60
CHUNK = 1 << 16
MOST_BYTES = 3 * max(layout.train_count * layout.record for layout in LAYOUTS.values())
"""Of an archive, packed and unpacked: three times the largest training set, which no archive of these reaches."""

Report = Callable[[int, int], None]
"""Called with (bytes so far, total bytes)."""


def fetch(
    name: str,
    folder: Path,
    *,
    source: Path | None = None,
    url: str | None = None,
    progress: Report = lambda done, total: None,
    timeout_s: float = TIMEOUT_S,
) -> DatasetInfo:
    """Install a dataset into `folder` and return it.

    Without `source` the official binary archive is downloaded (from `url`, else from its authors); an interrupted
    download is resumed, and a server that is silent for `timeout_s` seconds ends it. `source` is an archive or a
    folder, in binary or python layout. Raises `DataError`, and `UsageError` for `shapes`, which is built in.
    """
    if name == SHAPES:
        raise UsageError("shapes is built in; there is nothing to fetch", "igc-nas search --dataset shapes")
    if name not in LAYOUTS:
        raise UsageError(
            f"unknown dataset {name!r:.40}", nearest_and_all(str(name), LAYOUTS, f"use {', '.join(LAYOUTS)}")
        )
    layout = LAYOUTS[name]
    _make(folder)
    if source is None:
        with alone(folder, layout.archive, f"{layout.archive} is being downloaded to {folder}"):
            archive = download(layout, folder, url or layout.url, progress, timeout_s)
            info = _install(layout, folder, archive, *_found(layout, archive))
            archive.unlink()
        return info
    return _install(layout, folder, source, *_found(layout, source))


def download(layout: Layout, folder: Path, url: str, progress: Report, timeout_s: float = TIMEOUT_S) -> Path:
    """Download the official archive to `folder`, or resume its download; verified by size and SHA-256."""
    if not url.startswith(("https://", "http://")):
        raise UsageError(f"{url!r:.120} is not an http or https address")
    part = folder / f"{layout.archive}.part"
    if part.exists() and not part.is_file():
        raise DataError(f"{part} is not a file", "remove it and try again")
    if not part.exists() or part.stat().st_size != layout.archive_size:
        _continue(layout, part, url, progress, timeout_s)
    size = part.stat().st_size
    if size < layout.archive_size:
        raise DataError(
            f"the download stopped after {size:,} of {layout.archive_size:,} bytes",
            "the same command goes on from there",
        )
    if size != layout.archive_size or sha256_of(part) != layout.archive_sha256:
        part.unlink()
        raise DataError(f"{url} is not the official {layout.archive}: its SHA-256 differs", "try again, or use --from")
    return part


def _continue(layout: Layout, part: Path, url: str, progress: Report, timeout_s: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have > layout.archive_size:
        part.unlink()
        have = 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            # A server without ranges answers 200 and sends the whole archive: the bytes that are here are skipped.
            resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            length = answer.headers.get("Content-Length", str(layout.archive_size))
            if not resumed and (answer.status != 200 or length != str(layout.archive_size)):
                raise DataError(
                    f"{url:.200} has {length!a:.40} bytes; {layout.archive} has {layout.archive_size}",
                    "is there a log-in page in between? try again, or use --from",
                )
            _receive(answer, part, 0 if resumed else have, layout.archive_size, progress)
    except urllib.error.HTTPError as error:
        error.close()
        phrase = http.client.responses.get(error.code, "")  # the server's own phrase may hold anything
        raise DataError(f"{url} answered {error.code} {phrase}".rstrip(), "try again later, or use --from") from None
    except ValueError as error:
        raise UsageError(f"{url!r:.120} is not an http or https address: {one_line(error, 120)}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, socket.gaierror):
            raise DataError(
                f"no network: the address of {urllib.parse.urlsplit(url).hostname!s:.120} is not found",
                f"where there is one the same command goes on; igc-nas data {layout.name} --from FILE takes an archive "
                "you have",
            ) from None
        has = f"{part.stat().st_size if part.exists() else 0:,} of {layout.archive_size:,} bytes"
        raise DataError(
            f"the download of {layout.archive} was cut after {has}: {one_line(reason, 120)}",
            f"the same command goes on from there; igc-nas data {layout.name} --from FILE takes an archive you have",
        ) from None


def _receive(answer: IO[bytes], part: Path, skip: int, total: int, progress: Report) -> None:
    with part.open("ab") as file:
        done = file.tell()
        while chunk := answer.read(CHUNK):
            done += file.write(chunk[skip:])
            skip = max(0, skip - len(chunk))
            progress(done, total)
            if done > total:
                return


# Reading the user's copy: the bytes of every file in binary layout, and whether they are the official ones.

Found = tuple[dict[str, bytes], bool]


def _found(layout: Layout, path: Path) -> Found:
    try:
        return _from_folder(layout, path) if path.is_dir() else _from_archive(layout, path)
    except ConfigError as error:
        raise DataError(error.message, error.hint) from None
    except OSError as error:
        raise DataError(f"{error.filename or path!s:.200}: {one_line(error.strerror or error, 120)}") from None


def _from_archive(layout: Layout, path: Path) -> Found:
    size = path.stat().st_size
    if not path.is_file():
        raise DataError(f"{path} is a pipe or a device, not an archive", "save it as a file first")
    if size > MOST_BYTES:
        raise DataError(f"{path} has {size:,} bytes: too many for an archive of {layout.name}")
    try:
        sha256 = sha256_of(path)
        if sha256 == layout.archive_sha256:
            return _members(path, layout.files()), True
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        if md5 == layout.python_archive_md5:
            names = {theirs: None for theirs, _, _ in layout.python_members}
            found = _members(path, names)
            return {ours: _converted(layout, found[theirs]) for theirs, _, ours in layout.python_members}, True
        return _members(path, layout.files()), False
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path.name} ({size:,} bytes) is not a readable {layout.name} archive: {one_line(error, 120)}",
            f"the official one is {layout.archive}, {layout.archive_size:,} bytes",
        ) from None


def _members(path: Path, names: Mapping[str, object]) -> dict[str, bytes]:
    """The members of a tar archive with these names, in any folder of it, read into memory."""
    found: dict[str, bytes] = {}
    limit = 2 * max(layout.train_count * layout.record for layout in LAYOUTS.values())
    with _unpacked(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.size < 0:  # tarfile would seek back and read it for ever
                raise tarfile.ReadError("a member of negative size")
            name = member.name.rpartition("/")[2]
            if name in names and member.isfile() and member.size <= limit:
                content = tar.extractfile(member)
                assert content is not None
                found[name] = content.read()
        while file.read(CHUNK):  # a compressed archive has its checksum at the end
            pass
    missing = sorted(set(names) - set(found))
    if missing:
        raise DataError(f"{path.name} has no file {missing[0]}", "is it the archive of this dataset?")
    return found


def _unpacked(path: Path) -> _Limited:
    with path.open("rb") as file:
        beginning = file.read(6)
    for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if beginning.startswith(magic):
            return _Limited(opened(path))
    return _Limited(path.open("rb"))


class _Limited(io.RawIOBase):
    """`file`, refusing to read or seek beyond `MOST_BYTES`: a few kilobytes may unpack to terabytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(min(size, MOST_BYTES + 1) if size >= 0 else MOST_BYTES + 1)
        self._check(self._file.tell())
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._check(offset)
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()

    @staticmethod
    def _check(place: int) -> None:
        if place > MOST_BYTES:
            raise tarfile.ReadError(f"more than {MOST_BYTES:,} bytes")


def _from_folder(layout: Layout, path: Path) -> Found:
    for place in (path, path / layout.folder, path / layout.python_folder):
        if all((place / name).is_file() for name in layout.files()):
            files = {name: read_bytes(place / name, MOST_BYTES) for name in layout.files()}
            return files, _manifest_is_of(place, files)
        if all((place / theirs).is_file() for theirs, _, _ in layout.python_members):
            return _python_folder(layout, place), True
    wanted = ", ".join(layout.files())
    raise DataError(f"{path} holds no {layout.name}", f"a folder with {wanted} (binary), or the python archive's files")


def _python_folder(layout: Layout, place: Path) -> dict[str, bytes]:
    found = {}
    for theirs, md5, ours in layout.python_members:
        data = read_bytes(place / theirs, MOST_BYTES)
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise DataError(
                f"{place / theirs} is not the official file (its MD5 differs), and no other pickle is read",
                "use the binary archive",
            )
        found[ours] = _converted(layout, data)
    return found


def _manifest_is_of(place: Path, files: Mapping[str, bytes]) -> bool:
    """Whether igc-nas installed a folder from an official archive, by its manifest."""
    try:
        hashes = dict(json.loads(read_text(place / MANIFEST))["files"])
    except (ConfigError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return all(hashes.get(name) == hashlib.sha256(data).hexdigest() for name, data in files.items())


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays, lists and strings, as in CIFAR's python files; anything else is refused."""

    _ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        if name == "_reconstruct":
            module = "numpy._core.multiarray" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core.multiarray"
        return super().find_class(module, name)


def _converted(layout: Layout, pickled: bytes) -> bytes:
    """A file of the python layout, converted to the binary one."""
    try:
        batch = _ArraysOnly(io.BytesIO(pickled), encoding="bytes").load()
        keys = (b"labels",) if layout.label_bytes == 1 else (b"coarse_labels", b"fine_labels")
        labels = np.stack([np.asarray(batch[key], dtype=np.uint8) for key in keys], axis=1)
        return np.concatenate([labels, np.asarray(batch[b"data"], dtype=np.uint8)], axis=1).tobytes()
    except Exception as error:  # unpickling may raise any exception (documentation of pickle.UnpicklingError)
        raise DataError(f"a python batch of {layout.name} cannot be read: {one_line(error, 120)}") from None


def _install(layout: Layout, folder: Path, source: Path, files: Mapping[str, bytes], official: bool) -> DatasetInfo:
    check_files(layout, files, str(source))
    place = folder / layout.folder
    _make(place)
    try:
        (place / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{place / MANIFEST}: {error.strerror or error}", "remove it and try again") from None
    for name, data in files.items():
        write_whole(place / name, data)
    if official:
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        manifest = {"dataset": layout.name, "archive_sha256": layout.archive_sha256, "files": hashes}
        write_whole(place / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return verify(layout, place)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}", "choose another folder with --data-dir") from None
