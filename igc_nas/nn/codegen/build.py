"""Generated C compiled for this machine: once for each architecture, kept in the user's cache, loaded and called.

The weights are an argument, so what is compiled depends on the architecture, the compiler and the processor alone.
"""

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
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igc_nas.errors import IgcNasError
from igc_nas.nn.codegen.emit import Source
from igc_nas.nn.lowering.timing_cache import cache_dir

FLAGS = ("-std=c11", "-O2", "-march=native", "-ffp-contract=fast", "-Wall", "-Wextra", "-pedantic")
"""-std=c11 alone forbids what a fused multiply-add is: -ffp-contract=fast allows it."""
TIMEOUT_S = 300.0
NO_COMPILER = "install gcc or clang, or name one in $CC"
"""What to do where there is no C compiler."""

ENTRY = """\
void igc_nas_run(const float *images, int count, float *logits, const float *weights, void *workspace)
{{
    for (int n = 0; n < count; ++n)
        forward(images + (size_t)n * {image}, logits + (size_t)n * {classes}, weights, workspace);
}}
"""


class CompilerError(IgcNasError):
    """There is no C compiler, or it fails."""


def compiler() -> tuple[str, ...] | None:
    """The C compiler's command: `$CC`, else `cc`, `gcc` or `clang`; None where there is none."""
    words = shlex.split(os.environ.get("CC", ""))
    if words:
        return tuple(words) if shutil.which(words[0]) else None
    return next(((name,) for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


@dataclass(frozen=True)
class Compiled:
    """A network in machine code. Not for several threads at once: it has one workspace."""

    function: Callable[..., None]
    weights: NDArray[np.float32]
    workspace: NDArray[np.float32]
    image: tuple[int, int, int]
    classes: int

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(batch, channels, height, width) float32 images to (batch, classes) logits."""
        images = np.ascontiguousarray(images, np.float32)
        if images.shape[1:] != self.image:
            raise ValueError(f"images of {images.shape[1:]}; the network is compiled for {self.image}")
        return self.bound(images)()

    def bound(self, images: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
        """A function of no arguments that runs the network on these images, contiguous and in float32.

        Numpy takes a microsecond to tell an address: here it does once, as a program in C knows its addresses.
        """
        count, places = len(images), (self.weights.ctypes.data, self.workspace.ctypes.data)
        read = images.ctypes.data

        def run(images: NDArray[np.float32] = images) -> NDArray[np.float32]:
            logits = np.empty((count, self.classes), np.float32)
            self.function(read, count, logits.ctypes.data, *places)
            return logits

        return run


def compiled(source: Source, cache: Path | None = None) -> Compiled:
    """Compile, or take from `cache`, and load. Raises `CompilerError` with the compiler's first line and command."""
    channels, height, width = source.image
    entry = ENTRY.format(image=channels * height * width, classes=source.classes)
    library = load(source.text + "\n" + entry, cache)
    function = library.igc_nas_run
    pointer = ctypes.c_void_p
    function.argtypes, function.restype = [pointer, ctypes.c_int, pointer, pointer, pointer], None
    return Compiled(function, _aligned(source.weights), _aligned_zeros(source.arena), source.image, source.classes)


def load(text: str, cache: Path | None = None) -> ctypes.CDLL:
    """C compiled for this processor and loaded, or taken from `cache`. Raises `CompilerError`."""
    command = compiler()
    if command is None:
        raise CompilerError("there is no C compiler", NO_COMPILER)
    name = hashlib.sha256("\0".join([text, *command, *FLAGS, _processor()]).encode()).hexdigest()[:32] + ".so"
    kept = cache / name if cache and _distrust(cache) is None else None
    if kept is not None and _is_ours(kept):
        with contextlib.suppress(OSError):  # a damaged file, or a folder that no code may be loaded from
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="igc-nas-") as folder:
        made = _compile(text, command, Path(folder))
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


def _compile(text: str, command: tuple[str, ...], folder: Path) -> Path:
    source, made = folder / "network.c", folder / "network.so"
    source.write_text(text, encoding="utf-8")
    words = [*command, *FLAGS, "-shared", "-fPIC", str(source), "-o", str(made)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    except (OSError, subprocess.TimeoutExpired) as error:
        said, done = [str(error)], None
    if done is None or done.returncode:
        kept = Path(tempfile.mkdtemp(prefix="igc-nas-failed-")) / source.name
        shutil.copyfile(source, kept)
        raise CompilerError(f"the C compiler fails: {said[0]:.300}", shlex.join([*words[:-3], str(kept), *words[-2:]]))
    return made


def _keep(made: Path, kept: Path) -> None:
    """Add a library to the cache in one step; a cache that cannot be written is none."""
    try:
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            file.write(made.read_bytes())
        Path(file.name).replace(kept)
    except OSError:
        return


def networks_here() -> Path:
    """The folder of compiled networks."""
    return cache_dir() / "native"


def kernels_here() -> Path:
    """The folder of the compiled kernels of training steps."""
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


def _aligned_zeros(count: int) -> NDArray[np.float32]:
    """`count` floats from a multiple of 64 bytes on."""
    raw = np.zeros(count + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return raw[start : start + count]


def _aligned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    found = _aligned_zeros(len(values))
    found[:] = values
    return found
