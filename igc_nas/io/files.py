"""Read files of limited size; write a file or a folder whole or not at all, so that no reader ever sees half of one."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from igc_nas.errors import ConfigError, IgcNasError


def write_whole(path: Path, data: str | bytes, *, durable: bool = True) -> None:
    """Replace the contents of `path` in one step: a temporary file beside it, flushed to the disk, then renamed.

    Unless `durable` it is not flushed, and may be lost in a power cut. Text is written as UTF-8, line ends unchanged. A
    symbolic link is followed; a device or a pipe is written to directly. Raises `IgcNasError` where the file cannot be
    written, on a full disk too; then an older file of that name is still there, whole.
    """
    content = data.encode() if isinstance(data, str) else data
    with _in_one_line(path):
        target = path.resolve()
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            with _temporary(target, content, durable) as temporary:
                temporary.replace(target)
            if durable:
                _sync_folder(target.parent)


def write_together(files: Mapping[Path, str | bytes]) -> None:
    """Replace the contents of files that belong together, as `write_whole` does those of one.

    The first one is renamed when all are on the disk: where it is full none is replaced.
    """
    with contextlib.ExitStack() as stack:
        ready: list[tuple[Path, Path]] = []
        for path, data in files.items():
            with _in_one_line(path):
                content = data.encode() if isinstance(data, str) else data
                ready.append((stack.enter_context(_temporary(path.resolve(), content, durable=True)), path))
        for temporary, path in ready:
            with _in_one_line(path):
                temporary.replace(path.resolve())
                _sync_folder(path.resolve().parent)


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Raise `IgcNasError` where `path` cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links, before Python 3.13
        reason = getattr(error, "strerror", None) or error
        raise IgcNasError(f"cannot write {path}: {reason}") from None


@contextlib.contextmanager
def _temporary(target: Path, content: bytes, durable: bool) -> Iterator[Path]:
    """A temporary file beside `target` with this content, which is removed if it is still there at the end."""
    temporary = target.with_name(f".igc-nas-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file is one of `write_whole` that its process, killed, has left."""
    return path.name.startswith(".igc-nas-") and path.suffix == ".tmp"


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that replaces it, flushed, when the block ends without an exception.

    An existing folder is replaced: the caller has checked that it may be. Raises `IgcNasError` where that fails; then,
    as after an exception in the block, the old folder is still there.
    """
    target = path.resolve()
    temporary, old = (target.with_name(f".igc-nas-{secrets.token_hex(8)}.{word}") for word in ("tmp", "old"))
    try:
        try:
            temporary.mkdir()
        except OSError as error:
            raise IgcNasError(f"cannot write {path}: {error.strerror or error}") from None
        yield temporary
        try:
            _take_place(temporary, target, old)
        except OSError as error:
            raise IgcNasError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, target: Path, old: Path) -> None:
    _sync_folder(temporary)
    there = target.exists()
    if there:
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if there:
            old.rename(target)
        raise
    _sync_folder(target.parent)
    if there:
        shutil.rmtree(old, ignore_errors=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, or leave the file unchanged: half a line would damage the next one. Raises `OSError`.

    A last line without its end, as some editors leave it, gets one.
    """
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        begin = b"" if file.read(1) in (b"", b"\n") else b"\n"
        left = memoryview(begin + line.encode() + b"\n")
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def _sync_folder(folder: Path) -> None:
    """Flush a rename in `folder`, on systems that can open a folder (POSIX)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def user_path(path: str | Path) -> Path:
    """A path as people give it, with a leading `~` or `~user` expanded; unchanged where nobody has that home."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # no such user, or no home; a name that no file can have
        return Path(path)


def user_folder(variable: str) -> Path:
    """The folder that an environment variable names, else the user's cache folder.

    A user without a home (a container's number that has no account) has one among the temporary files.
    """
    if os.environ.get(variable):
        return user_path(os.environ[variable])
    import platformdirs

    try:
        found = Path(platformdirs.user_cache_dir("igc-nas"))
    except (RuntimeError, KeyError, OSError):  # neither $HOME nor an account
        found = Path("~")
    if found.is_absolute():
        return found
    return Path(tempfile.gettempdir()) / f"igc-nas-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


def cache_dir() -> Path:
    """The folder of all caches: `IGC_NAS_CACHE`, else the user's cache folder."""
    return user_folder("IGC_NAS_CACHE")


MOST_TEXT, MOST_RECORDS = 4_000_000, 1 << 30
"""Bytes of the largest configuration file and of the largest file of records that are read."""


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """A text file of at most `most` bytes. Raises `ConfigError` where it is none or cannot be read."""
    return decoded(read_bytes(path, most), path.name)


def decoded(data: bytes, name: str) -> str:
    """Text as editors save it: UTF-8, or UTF-16 with its byte-order mark; marks are dropped. Raises `ConfigError`."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not UTF-8 text", "save it as UTF-8") from None


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """The contents of a file of at most `most` bytes. Raises `ConfigError` where it is none or cannot be read.

    Pipes and devices are refused before they are opened: reading one may never end.
    """
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ConfigError(f"{path} is a pipe or a device, no file")
        if status.st_size > most:
            raise ConfigError(f"{path.name} is too large to be read ({status.st_size} bytes; at most {most})")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ConfigError(f"{path!s:.200}: {getattr(error, 'strerror', None) or error}") from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_file(path: Path) -> bool:
    """`path.is_file()`, but False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
