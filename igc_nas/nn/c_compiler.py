"""The C compiler of this machine: code for its processor, kept in the user's cache and loaded from there."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from igc_nas.errors import IgcNasError
from igc_nas.io.files import cache_dir
from igc_nas.io.processes import finished

FLAGS = ("-std=c11", "-O2", "-ffp-contract=fast", "-Wall", "-Wextra", "-pedantic")
"""-std=c11 alone forbids what a fused multiply-add is: -ffp-contract=fast allows it."""
PROCESSOR_FLAGS = (("-march=native",), ("-mcpu=native",), ())
"""Tried in this order: x86 compilers know the first, some ARM compilers only the second."""
TIMEOUT_S = 300.0
NO_COMPILER = "install gcc or clang, or name one in $CC"
"""What to do where there is no C compiler."""


class CompilerError(IgcNasError):
    """There is no C compiler, or it fails."""


def compiler() -> tuple[str, ...] | None:
    """The C compiler's command: `$CC`, else `cc`, `gcc` or `clang`; None where there is none."""
    try:
        words = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # a quotation mark without another
        return None
    if words:
        return tuple(words) if shutil.which(words[0]) else None
    return next(((name,) for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def load(
    text: str,
    cache: Path | None = None,
    flags: tuple[str, ...] = FLAGS,
    *,
    timeout_s: float = TIMEOUT_S,
    leave_failed: bool = True,
) -> ctypes.CDLL:
    """C compiled for this processor and loaded, or taken from `cache`. Raises `CompilerError`.

    `leave_failed`: text that does not compile is left in a file, which the error names.
    """
    command = compiler()
    if command is None:
        raise CompilerError("there is no C compiler", NO_COMPILER)
    name = hashlib.sha256("\0".join([text, *command, *flags, _processor()]).encode()).hexdigest()[:32] + ".so"
    kept = cache / name if cache and _distrust(cache) is None else None
    if kept is not None and _is_ours(kept):
        with contextlib.suppress(OSError):  # a damaged file, or a folder that no code may be loaded from
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="igc-nas-") as folder:
        made = _compile(text, [*command, *flags], Path(folder), timeout_s, leave_failed=leave_failed)
        if kept is not None:
            _keep(made, kept)
        try:
            return ctypes.CDLL(str(made))
        except OSError as error:
            if kept is not None:
                with contextlib.suppress(OSError):  # temporary files may lie where no code may be loaded from
                    return ctypes.CDLL(str(kept))
            raise CompilerError(
                f"compiled code cannot be loaded: {error}", "name a folder in $TMPDIR that is not mounted noexec"
            ) from None


def _compile(text: str, command: list[str], folder: Path, timeout_s: float, *, leave_failed: bool) -> Path:
    source, made = folder / "network.c", folder / "network.so"
    source.write_text(text, encoding="utf-8")
    for processor in PROCESSOR_FLAGS:
        words = [*command, *processor, "-shared", "-fPIC", str(source), "-o", str(made)]
        try:
            status, _, stderr = finished(words, timeout_s)
        except OSError as error:
            said = [str(error)]
            break
        except subprocess.TimeoutExpired:
            said = [f"it took longer than {timeout_s:g} s"]
            break
        if status == 0:
            return made
        said = stderr.decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
    if leave_failed:
        source = Path(shutil.copy(source, tempfile.mkdtemp(prefix="igc-nas-failed-")))
    raise CompilerError(f"the C compiler fails: {said[0]:.300}", shlex.join([*words[:-3], str(source), *words[-2:]]))


def _keep(made: Path, kept: Path) -> None:
    """Add a library to the cache in one step; a cache that cannot be written is none.

    It is flushed before: whoever loads the half of a library that a power cut has left is killed by a bus error.
    """
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
        try:
            file.write(made.read_bytes())
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(kept)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def networks_here() -> Path:
    """The folder of compiled networks."""
    return cache_dir() / "native"


def kernels_here() -> Path:
    """The folder of the compiled kernels of training."""
    return cache_dir() / "kernels"


def unkept_code() -> str | None:
    """In which folder code that is compiled for this machine is not kept, and why, in words.

    None where all is kept, or nothing is compiled.
    """
    folders = (networks_here(), kernels_here()) if compiler() else ()
    unkept = ((folder, reason) for folder in folders if (reason := why_not_kept(folder)))
    return next((f"compiled code is not kept in {folder}: {reason}" for folder, reason in unkept), None)


def why_not_kept(folder: Path, *, by_loader: bool = True) -> str | None:
    """Why code that is compiled now is not kept in a folder for later runs; None where it is.

    `by_loader`: the system's loader loads it, which it does not from a folder that is mounted noexec.
    """
    reason = _distrust(folder)
    if reason is None and not os.access(folder, os.W_OK | os.X_OK):
        reason = "it cannot be written"
    if reason is None and by_loader and os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        reason = "it is mounted noexec"
    return reason


def _distrust(folder: Path) -> str | None:
    """Why code is not loaded from a folder, which is made if need be: what is loaded is run.

    Nobody but this user may write it, or put another in its place: the folder that it lies in belongs to the same user
    or to root, and those above let others write only with the sticky bit, as /tmp does. What groups may write above it
    does not count: with a umask of 002 each user's folders are those of a group of their own.
    """
    if not hasattr(os, "getuid"):
        return "this system does not say who may write it"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        real = folder.resolve()
        own, *above = [path.stat() for path in (real, *real.parents)]
    except OSError as error:
        return f"it cannot be made ({error.strerror})"
    user = os.getuid()
    if own.st_uid != user:
        return "it belongs to another user"
    if above[0].st_uid not in (user, 0):
        return "the folder above it belongs to another user"
    if own.st_mode & _OTHERS or any(each.st_mode & stat.S_IWOTH and not each.st_mode & stat.S_ISVTX for each in above):
        return "others may write it"
    return None


_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def _is_ours(kept: Path) -> bool:
    """Whether a kept library is there and was written by this user: the folder may have been open to others once."""
    try:
        found = kept.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & _OTHERS


@lru_cache(maxsize=1)
def _processor() -> str:
    """What -march=native depends on: code for another processor, in a cache that machines share, may not run."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part", "isa")
    return "\n".join(dict.fromkeys(line for line in lines if line.split("\t")[0].strip() in wanted))
