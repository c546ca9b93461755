"""Devices that trials run on: how to find them, their names, their fastest dtype, their default runtime."""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from igc_nas.errors import UsageError
from igc_nas.nn.codegen.build import compiler
from igc_nas.study.spec import DtypeName, RuntimeName

Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Device:
    """One device. `name` is its model, as studies record it; `torch_name` its name in torch (`cpu`, `cuda:0`)."""

    kind: Kind
    torch_name: str
    name: str

    @property
    def torch_device(self) -> torch.device:
        """The device as a torch object."""
        return torch.device(self.torch_name)

    @property
    def fast_dtype(self) -> DtypeName:
        """The dtype in which lowered networks train fastest: bfloat16 on GPUs with bfloat16 and on CPUs with AMX.

        On a CPU, bfloat16 slows factored networks down: oneDNN has no fast kernels for their grouped convolutions.
        """
        if self.kind == "cuda":
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        # Private; the public torch.cpu.get_capabilities() is not in torch 2.10, which we support.
        return "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"

    def dtype_for(self, forms: str) -> DtypeName:
        """The dtype in which networks train fastest with `forms` (`fastest` or `factored`)."""
        return "float32" if forms == "factored" and self.kind == "cpu" else self.fast_dtype

    @property
    def deployment_runtime(self) -> RuntimeName:
        """The runtime of latencies by default: generated C on a CPU with a C compiler, else eager PyTorch."""
        return "native" if self.kind == "cpu" and compiler() is not None else "eager"

    @property
    def uuid(self) -> str | None:
        """The GPU's UUID, its identifier in NVML; None for a CPU."""
        if self.kind != "cuda":
            return None
        return str(torch.cuda.get_device_properties(self.torch_device).uuid)

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.torch_device)


def find_devices(text: str) -> tuple[Device, ...]:
    """The devices of `auto` (GPUs if there are any, else the CPU), `cpu`, `cuda` (all visible GPUs) or `cuda:N`.

    Raises `UsageError` for another text and for a device that torch does not see.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::([0-9]{1,3}))?", text)
    if not match:
        raise UsageError(f"unknown device {text!r:.40}", "use auto, cpu, cuda or cuda:0")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "cpu" or (text == "auto" and not count):
        return (Device("cpu", "cpu", cpu_name()),)
    if not count:
        raise UsageError("no CUDA device is visible to torch", "use --device cpu, or install a CUDA build of torch")
    wanted = range(count) if match[1] is None else (int(match[1]),)
    if wanted[-1] >= count:
        raise UsageError(f"there is no {text}; torch sees {count} CUDA device(s)", "use cuda:0")
    return tuple(Device("cuda", f"cuda:{i}", torch.cuda.get_device_name(i)) for i in wanted)


def cpu_name() -> str:
    """The processor's model name; if that is unknown, its architecture."""
    if sys.platform == "darwin":
        return subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
        ).stdout.strip()
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Disable TF32, which keeps only 10 bits of the mantissa, to compare float32 results."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def configure_torch(device: Device, threads: int) -> None:
    """Configure torch in this process: number of threads, the CUDA device, TF32 on, cuDNN's benchmark mode on."""
    torch.set_num_threads(threads)
    if device.kind == "cuda":
        torch.cuda.set_device(device.torch_device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
