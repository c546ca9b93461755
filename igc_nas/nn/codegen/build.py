"""Generated C compiled for this machine: once for each architecture, kept in the user's cache, loaded and called.

The weights are an argument, so what is compiled depends on the architecture, the compiler and the processor alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igc_nas.nn.c_compiler import load
from igc_nas.nn.codegen.emit import Source

ENTRY = """\
void igc_nas_run(const float *images, int count, float *logits, const float *weights, void *workspace)
{{
    for (int n = 0; n < count; ++n)
        forward(images + (size_t)n * {image}, logits + (size_t)n * {classes}, weights, workspace);
}}
"""


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


def _aligned_zeros(count: int) -> NDArray[np.float32]:
    """`count` floats from a multiple of 64 bytes on."""
    raw = np.zeros(count + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return raw[start : start + count]


def _aligned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    found = _aligned_zeros(len(values))
    found[:] = values
    return found
