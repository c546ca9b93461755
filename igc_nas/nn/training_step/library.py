"""The kernels of a training step, compiled at first use for this machine's processor and kept in the user's cache."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from igc_nas.nn.c_compiler import CompilerError, kernels_here, load
from igc_nas.nn.training_step.tiles import tiles_text

KERNELS = Path(__file__).parent / "kernels"


def source(dtype: torch.dtype, lanes: int) -> str:
    """The kernels as one C text; activations are stored in `dtype`, float32 or bfloat16."""
    defines = [f"#define LANES {lanes}", *(["#define BF16"] if dtype == torch.bfloat16 else [])]
    return "\n".join([*defines, (KERNELS / "vectors.h").read_text(), tiles_text(), (KERNELS / "step.c").read_text()])


def available(dtype: torch.dtype, lanes: int) -> bool:
    """Whether the kernels can be compiled and loaded on this machine."""
    try:
        library(dtype, lanes)
    except (CompilerError, OSError, AttributeError):
        return False
    return True


def has_pairs(loaded: ctypes.CDLL) -> bool:
    """Whether the kernels multiply pairs of bfloat16, for which the processor has instructions."""
    return bool(ctypes.c_int.in_dll(loaded, "igc_nas_pairs").value)


@cache
def library(dtype: torch.dtype, lanes: int) -> ctypes.CDLL:
    """The kernels, loaded. Raises `CompilerError`."""
    loaded = load(source(dtype, lanes), kernels_here(), leave_failed=False)
    loaded.igc_nas_step.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long]
    loaded.igc_nas_step.restype = None
    return loaded
