"""The two places in torch's C++ that must believe in CUDA for fake tensors on `cuda` to have gradients.

Both are private to torch, so `VERIFIED` names the builds on which they were tried; tests are skipped on others.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

VERIFIED = torch.__version__.split("+")[0] == "2.13.0" and sys.platform == "linux" and platform.machine() == "x86_64"

CUDA_SLOT = 1
"""`c10::DeviceType::CUDA`: its place in the registry of device guards."""
POINTER = ctypes.sizeof(ctypes.c_void_p)
RTTI = 2
"""Pointers in front of a C++ object's table of methods (Itanium ABI): offset to top, type information."""
METHODS = 96
"""More methods than torch's CUDA hooks have."""

_alive: list[Any] = []
"""Objects that C++ points to."""


def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob(f"{name}.*"))))


def install_device_guard() -> None:
    """Register torch's no-op device guard for CUDA, which a CPU build leaves out.

    `torch._C._ensureCUDADeviceGuardSet` registers it in place of a guard that counts no device. A CPU build has none,
    so one that answers 0 to everything is put there first.
    """
    torch._C._ensureCUDADeviceGuardSet()
    registry = (ctypes.c_void_p * 24).in_dll(_library("libc10"), "_ZN3c104impl26device_guard_impl_registryE")
    if torch.backends.cuda.is_built() or registry[CUDA_SLOT]:
        return
    zero = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    methods = (ctypes.c_void_p * METHODS)(*[ctypes.cast(zero, ctypes.c_void_p).value] * METHODS)
    guard = ctypes.c_void_p(ctypes.addressof(methods))
    registry[CUDA_SLOT] = ctypes.addressof(guard)
    torch._C._ensureCUDADeviceGuardSet()
    assert registry[CUDA_SLOT] != ctypes.addressof(guard), "torch kept the guard that counts no device"


@contextlib.contextmanager
def cuda_is_the_accelerator() -> Iterator[None]:
    """Within the context `at::accelerator::getAccelerator` answers CUDA, without a CUDA context.

    Autograd asks it for each gradient. It asks the CUDA hooks, a C++ object, by one of their methods; which one is
    found by a table of methods that record their own number. The next two methods say whether a device is available
    and whether it has a context; they answer no.
    """
    if torch.cuda.is_available():
        yield
        return
    library = _library("libtorch_cpu")
    hooks_of, accelerator = library._ZN2at6detail12getCUDAHooksEv, library._ZN2at11accelerator14getAcceleratorEb
    hooks_of.restype, accelerator.argtypes, accelerator.restype = ctypes.c_void_p, [ctypes.c_bool], ctypes.c_uint16
    hooks = ctypes.cast(hooks_of(), ctypes.POINTER(ctypes.c_void_p))
    original = hooks[0]
    assert original is not None

    asked: list[int] = []
    hooks[0] = _table(original, {i: lambda i=i: asked.append(i) or 0 for i in range(16)})
    accelerator(False)
    hooks[0] = _table(original, {asked[0]: lambda: 1, asked[0] + 1: lambda: 0, asked[0] + 2: lambda: 0})
    try:
        yield
    finally:
        hooks[0] = original


def _table(original: int, replaced: dict[int, Any]) -> int:
    """The address of a copy of the method table at `original` in which some methods are Python functions."""
    copy = (ctypes.c_void_p * (METHODS + RTTI)).from_buffer_copy(
        (ctypes.c_void_p * (METHODS + RTTI)).from_address(original - RTTI * POINTER)
    )
    for number, function in replaced.items():
        method = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _, function=function: function())
        copy[number + RTTI] = ctypes.cast(method, ctypes.c_void_p).value
        _alive.append(method)
    _alive.append(copy)
    return ctypes.addressof(copy) + RTTI * POINTER
