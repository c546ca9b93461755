"""Devices that trials run on: how to find them, their names, their fastest dtype, their default runtime."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from igc_nas.errors import ConfigError, UsageError
from igc_nas.io.fallbacks import FallbackWarning
from igc_nas.io.text import nearest_and_all, one_line
from igc_nas.nn.c_compiler import compiler
from igc_nas.nn.nvml import InstalledGpus, driver_fault, find_gpu, installed_gpus
from igc_nas.study.defaults import Extent, default_extent
from igc_nas.study.spec import DtypeName, RuntimeName

Kind = Literal["cpu", "cuda"]
MOST_TEXT = 200
"""Characters of a CUDA error."""
GIVES_GPUS = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "NVIDIA_VISIBLE_DEVICES")
"""Environment variables by which a user, a Slurm job and the NVIDIA Container Toolkit name the GPUs of a process."""


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
        """The dtype that a GPU has units for: bfloat16 since Ampere, float16 on Volta and Turing, else float32.

        On a CPU float32: which one trains faster is timed (`fastest_dtype`).
        """
        if self.kind == "cpu":
            return "float32"
        capability = torch.cuda.get_device_capability(self.torch_device)
        return "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"

    def check_trains_in(self, dtype: DtypeName) -> None:
        """Raise `ConfigError` for float16 on a CPU: the kernels in C take float32 and bfloat16."""
        if self.kind == "cpu" and dtype == "float16":
            raise ConfigError("float16 trains on a GPU only", "use dtype=float32 or dtype=bfloat16")

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

    @property
    def capability(self) -> str | None:
        """A GPU's compute capability, `9.0`; None for a CPU."""
        if self.kind != "cuda":
            return None
        return "{}.{}".format(*torch.cuda.get_device_capability(self.torch_device))

    @property
    def memory(self) -> int | None:
        """Bytes of a GPU's memory; None for a CPU."""
        if self.kind != "cuda":
            return None
        return int(torch.cuda.get_device_properties(self.torch_device).total_memory)

    @property
    def free_memory(self) -> int | None:
        """Bytes of a GPU's memory that no process has now, all of it where NVML does not say; None for a CPU.

        torch would make a CUDA context to ask for it.
        """
        gpu = find_gpu(self.uuid) if self.uuid else None
        free = gpu.free_memory() if gpu else None
        return self.memory if free is None else free

    @property
    def compute_mode(self) -> str | None:
        """How many processes may compute on a GPU, by NVML's name (`COMPUTE_MODES`); None: unknown, or a CPU."""
        gpu = find_gpu(self.uuid) if self.uuid else None
        return gpu.compute_mode() if gpu else None

    def release_memory(self) -> None:
        """Give a GPU's unused memory back to the driver, for other processes on it and for tensors of other sizes.

        Raises nothing: where the CUDA context is lost, the error that is on its way says why.
        """
        if self.kind == "cuda":
            gc.collect()
            # With segments that can grow it waits for the current device only, whichever's memory it gives back.
            with contextlib.suppress(RuntimeError), torch.cuda.device(self.torch_device):
                torch.cuda.empty_cache()

    @contextlib.contextmanager
    def memory_released(self) -> Iterator[None]:
        """`release_memory` at the end of the block, in which nothing may outlive an error: its frames hold tensors."""
        try:
            yield
        except BaseException as error:
            if self.kind == "cuda":
                _clear_frames(error)
            raise
        finally:
            self.release_memory()


def _clear_frames(error: BaseException | None) -> None:
    """Forget the local variables of the functions that an error, and those that it came of, have ended."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@dataclass(frozen=True, slots=True)
class GpuSurvey:
    """The NVIDIA GPUs of this machine.

    `supported` are those that torch sees and has kernels for; `left_out` says of each other one why it is not used.
    `missing` says why there is none although the environment gives one to this process.
    """

    supported: tuple[Device, ...]
    left_out: tuple[str, ...]
    missing: str | None = None

    @property
    def of_one_model(self) -> tuple[Device, ...]:
        """The supported GPUs with the first one's name: latencies of two models cannot be compared."""
        return tuple(device for device in self.supported if device.name == self.supported[0].name)

    @property
    def notices(self) -> tuple[str, ...]:
        """Why each GPU that `of_one_model` leaves out is not used."""
        others = [device for device in self.supported if device.name != self.supported[0].name]
        return (
            *self.left_out,
            *(f"{d.torch_name} is another model ({d.name}): --device {d.torch_name} uses it alone" for d in others),
        )


def survey_gpus(nvml: Any = None) -> GpuSurvey:
    """Which GPUs torch can use, and why not the others; `nvml` is pynvml or, in tests, a fake.

    Where CUDA_VISIBLE_DEVICES hides all GPUs, none is mentioned.
    """
    if torch.version.hip is not None:
        return GpuSurvey((), (f"torch {torch.__version__} is built for AMD's ROCm: igc-nas runs on NVIDIA GPUs",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver; the survey says it
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices: list[Device] = []
    left_out: list[str] = []
    missing = None
    for name in (f"cuda:{index}" for index in range(count)):
        try:
            device = Device("cuda", name, torch.cuda.get_device_name(name))
            problem = _why_unusable(device)
        except Exception as error:  # whatever CUDA finds wrong when it starts; torch has no common class for it
            left_out.append(f"CUDA does not start on {name}: {one_line(error, MOST_TEXT)}")
        else:
            devices += [device] if problem is None else []
            left_out += [problem] if problem is not None else []
    if not count and not _hides_all(os.environ.get("CUDA_VISIBLE_DEVICES")):
        if installed := installed_gpus(nvml):
            left_out += [f"{name}: {_why_invisible(installed)}" for name in dict.fromkeys(installed.names)]
        elif fault := driver_fault(nvml):
            left_out.append(f"the NVIDIA driver does not work: {fault}")
        elif given := _given_gpu():
            missing = f"{given} gives this process a GPU, and {_why_no_gpu()}"
    return GpuSurvey(tuple(devices), tuple(left_out), missing)


_NAMES_GPU = re.compile(r"\s*([0-9]|GPU-|MIG-|all\b)")


def _hides_all(visible: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES asks for no GPU: it is empty, -1, or begins with no index and no UUID.

    Slurm writes what it gives to a job, and `NoDevFiles` into a job without a GPU.
    """
    return visible is not None and not _NAMES_GPU.match(visible)


def _given_gpu() -> str | None:
    """What gives this process a GPU: a variable of `GIVES_GPUS` with its value, or a device's file; None: nothing."""
    for name in GIVES_GPUS:
        if _NAMES_GPU.match(value := os.environ.get(name, "")):
            return f"{name}={value:.60}"
    return next((str(file) for file in sorted(Path("/dev").glob("nvidia[0-9]*"))), None)


def _why_no_gpu() -> str:
    """Why there is no GPU for torch where NVML lists none either."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return f"neither torch {torch.__version__} nor the driver's library, NVML, sees one"


def get_cuda() -> str:
    """What to do so that torch sees the GPU."""
    if torch.version.cuda is None:
        version = torch.__version__.partition("+")[0]
        line = f"pip install --force-reinstall torch=={version}"
        return f"its build for CUDA on Linux: {line} (others: https://pytorch.org/get-started)"
    return "mend it (the build of torch for each driver: https://pytorch.org/get-started; a container needs --gpus all)"


def _why_unusable(device: Device) -> str | None:
    """Why a GPU that torch sees is not used; None where it is."""
    if not _has_kernels_for(device):
        return (
            f"torch {torch.__version__} has no kernels for {device.torch_name}, {device.name} "
            f"(compute capability {device.capability}; it has {', '.join(torch.cuda.get_arch_list())})"
        )
    if device.compute_mode == "PROHIBITED":
        return f"{device.torch_name}, {device.name}, is in compute mode PROHIBITED: no process may compute on it"
    return None


def _has_kernels_for(device: Device) -> bool:
    """Whether this torch runs on a GPU: binaries work on later GPUs of their major version, PTX on all later ones.

    (CUDA C++ Programming Guide, Binary Compatibility and PTX Compatibility.)
    """
    major, minor = torch.cuda.get_device_capability(device.torch_device)
    for text in torch.cuda.get_arch_list():
        kind, _, version = text.partition("_")
        digits = re.sub(r"\D", "", version)
        at = int(digits[:-1]), int(digits[-1])
        if (kind == "sm" and at[0] == major and at[1] <= minor) or (kind == "compute" and at <= (major, minor)):
            return True
    return False


def _why_invisible(installed: InstalledGpus) -> str:
    """Why torch sees no GPU although NVML does."""
    build = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{build} is built without CUDA"
    driver = f"the driver{f' {installed.driver}' if installed.driver else ''}"
    if installed.cuda is None:
        return f"{driver} is too old for {build}, or the GPU is in use"
    if installed.cuda[0] < int(torch.version.cuda.partition(".")[0]):  # of one major version all work with each other
        return f"{driver} is too old for {build}: it is for CUDA {installed.cuda[0]}.{installed.cuda[1]}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = f"CUDA_VISIBLE_DEVICES={visible!r:.60} names no GPU of this machine, or " if visible else ""
    return f"{build} sees no GPU: {named}another process has it, or this user may not open /dev/nvidia*"


def find_devices(text: str, nvml: Any = None) -> tuple[Device, ...]:
    """The devices of `auto` (GPUs if there are any, else the CPU), `cpu`, `cuda` (GPUs of the first's model), `cuda:N`.

    Raises `UsageError` for another text, for a GPU that torch cannot use, and for `auto` on a machine whose only GPUs
    torch cannot use: a search on the CPU has another recipe and other latencies than the user expects. Where the
    environment gives a GPU that is not found, `auto` is the CPU with a `FallbackWarning`.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::([0-9]{1,3}))?", text)
    if not match:
        known, meant = ("auto", "cpu", "cuda", "cuda:0"), text.replace("gpu", "cuda")
        raise UsageError(f"unknown device {text!r:.40}", nearest_and_all(meant, known, "use auto, cpu, cuda or cuda:0"))
    if text == "cpu":
        return (Device("cpu", "cpu", cpu_name()),)
    survey = survey_gpus(nvml)
    if match[1] is not None:
        found = tuple(device for device in survey.supported if device.torch_name == text)
        if not found and survey.supported:
            there = ", ".join(device.torch_name for device in survey.supported)
            raise UsageError(f"there is no {text} that torch can use; it can use {there}", f"use {there}")
    else:
        found = survey.of_one_model
    if found:
        return found
    if survey.left_out:
        raise UsageError("; ".join(survey.left_out), f"{get_cuda()}, or add --device cpu")
    if text == "auto":
        if survey.missing:
            instead = f"{survey.missing}: the CPU is used. {get_cuda()}; --device cpu says that the CPU is meant"
            warnings.warn(instead, FallbackWarning, stacklevel=2)
        return (Device("cpu", "cpu", cpu_name()),)
    why = survey.missing or _why_no_gpu()
    raise UsageError(f"no CUDA device is visible to torch: {why}", f"{get_cuda()}, or add --device cpu")


def extent_on(devices: Sequence[Device]) -> Extent:
    """The time and workers of a default search on some devices: of GPUs, by the one with the least free memory.

    One worker for each GPU that one process has for itself.
    """
    free = None if exclusive_mode(devices) else min((device.free_memory or 0) for device in devices)
    return default_extent(devices[0].kind, len(devices), gpu_memory=free)


def exclusive_mode(devices: Sequence[Device]) -> str | None:
    """That a GPU among some devices can be used by one process only, in words; None where all can be shared."""
    for device in devices:
        if (mode := device.compute_mode or "").startswith("EXCLUSIVE"):
            return f"{device.torch_name} is in compute mode {mode}"
    return None


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
def without_cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN choose its engines by its heuristics instead of timing them for each new shape."""
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compare float32 results: TF32, which keeps 10 bits of the mantissa, and cuDNN's benchmark mode are off.

    With benchmark mode on, cuDNN would time its engines for shapes that are compared once and never run again.
    """
    kept = [flag.fp32_precision for flag in TF32_FLAGS]
    _set_fp32("ieee", "ieee")
    try:
        with without_cudnn_benchmark():
            yield
    finally:
        _set_fp32(*kept)


_BACKENDS: Any = torch.backends
TF32_FLAGS = (_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv)
"""Where torch keeps the precision of float32 products. (The older `allow_tf32` raises where it differs from these.)"""


def uses_tf32() -> bool:
    """Whether float32 convolutions on a GPU are computed in TF32."""
    return bool(_BACKENDS.cudnn.conv.fp32_precision == "tf32")


def _set_fp32(*precisions: str) -> None:
    """Set each of `TF32_FLAGS`, and the older flag of products: torch.compile of torch 2.10 reads it."""
    with warnings.catch_warnings():  # some versions of torch warn of the older one
        warnings.simplefilter("ignore")
        _BACKENDS.cuda.matmul.allow_tf32 = precisions[0] == "tf32"
    for flag, precision in zip(TF32_FLAGS, precisions, strict=True):
        flag.fp32_precision = precision


def configure_torch(device: Device, threads: int) -> None:
    """Configure torch in this process: number of threads, the CUDA device, TF32 on, cuDNN's benchmark mode on."""
    torch.set_num_threads(threads)
    if device.kind == "cpu":
        keep_freed_memory()
    if device.kind == "cuda":
        torch.cuda.set_device(device.torch_device)
        _set_fp32("tf32", "tf32")
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        matmul = _BACKENDS.cuda.matmul  # sums over all pixels of a batch: their parts are added in float32
        matmul.allow_bf16_reduced_precision_reduction = matmul.allow_fp16_reduced_precision_reduction = False


def make_deterministic(device: Device) -> None:
    """Let this process compute on a GPU bit for bit as another one does, before `configure_torch`.

    CUBLAS_WORKSPACE_CONFIG must be `:4096:8` from the start of the process. An operator without a deterministic kernel
    raises `RuntimeError`. cuDNN takes deterministic engines and does not time them. A CPU's results are equal anyway.
    """
    if device.kind == "cuda":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic = True


M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt (malloc.h)."""


def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed memory for the next tensor, instead of returning it to the system.

    By default it maps every large tensor anew, and the system zeroes its pages when they are first touched: at batch
    128 of 32 x 32 images that was half of the time of a training step. All threads share one arena: a second one maps
    every tensor over 64 MiB anew, and a failed allocation moves the main thread to it. Does nothing with another C
    library.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
