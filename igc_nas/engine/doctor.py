"""What this machine offers to a search and what a search would use: devices, runtimes, compilers, memory, data, caches.

Nothing here raises for a machine that lacks something: a missing part is a `Finding` with a problem and a way out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import psutil
import torch

from igc_nas._version import __version__
from igc_nas.analysis.words import MIG
from igc_nas.data.datasets import NAMES, data_dir, locate
from igc_nas.errors import IgcNasError
from igc_nas.evaluation.gpu_session import require_provider
from igc_nas.evaluation.host import is_wsl
from igc_nas.evaluation.runtimes import PACKAGES, require
from igc_nas.io.fallbacks import FallbackWarning
from igc_nas.io.files import cache_dir
from igc_nas.io.text import one_line
from igc_nas.nn.c_compiler import compiler, unkept_code
from igc_nas.nn.device import Device, cpu_name, extent_on, find_devices, get_cuda, survey_gpus
from igc_nas.nn.lowering import native, triton_norm
from igc_nas.nn.nvml import find_gpu, installed_gpus
from igc_nas.study.defaults import default_recipe, usable_cores
from igc_nas.study.spec import RuntimeName

GIB = 2**30
SHARED, LEAST_SHM = Path("/dev/shm"), 64 << 20  # noqa: S108 - only its size is read
"""Where shared memory lies on Linux, and the bytes that it needs."""
LEAST_MEMORY = 2 * GIB
"""Bytes of free memory that one worker needs with torch loaded."""


@dataclass(frozen=True)
class Finding:
    """One fact about this machine. `problem` says what a search cannot use, `hint` what to do about it."""

    topic: str
    value: str
    problem: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Examination:
    """All findings, in the order in which they are printed."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings with a problem."""
        return tuple(finding for finding in self.findings if finding.problem)

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain data."""
        return {"findings": [asdict(finding) for finding in self.findings], "problems": len(self.problems)}


def examine(folder: Path | None = None) -> Examination:
    """Examine this machine; datasets are looked for in `folder` (None: where a search looks)."""
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        _software,
        _devices,
        _defaults,
        _runtimes,
        _compilers,
        _memory,
        lambda: _datasets(data_dir(folder)),
        _cache,
    )
    return Examination(tuple(finding for part in parts for finding in part()))


def _software() -> Iterator[Finding]:
    yield Finding("igc-nas", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    cudnn: Any = torch.backends.cudnn
    cuda = "CPU only"
    if torch.version.cuda:
        kernels = ", ".join(torch.cuda.get_arch_list())
        cuda = f"CUDA {torch.version.cuda}, cuDNN {cudnn.version()}, kernels for {kernels}"
    yield Finding("torch", f"{torch.__version__}, {cuda}")


def _devices() -> Iterator[Finding]:
    survey = survey_gpus()
    yield Finding("processor", f"{cpu_name()}; {usable_cores()} of {os.cpu_count()} cores may be used")
    for gpu in survey.supported:
        problem, hint = None, None
        try:
            free, total = torch.cuda.mem_get_info(gpu.torch_device)
            memory = f"{free / GIB:.0f} of {total / GIB:.0f} GiB free"
        except RuntimeError as error:  # it makes a CUDA context: one process has the GPU for itself, or it is broken
            memory, problem, hint = "memory unknown", one_line(error, 200), "`nvidia-smi` shows what computes on it"
        facts = f"{gpu.name}, compute capability {gpu.capability}, {memory}, trains in {gpu.fast_dtype}"
        yield Finding(gpu.torch_name, facts, problem, hint)
        yield from _sensors(gpu)
    if survey.supported:
        yield _triton()
    hint = "--device cpu searches on the CPU" if not survey.supported else None
    for notice in survey.notices:
        yield Finding("GPU", "not used", notice, hint)
    if survey.missing:
        yield Finding("GPU", "missing", survey.missing, get_cuda())
    installed = installed_gpus()
    if installed:
        yield Finding("NVML", f"driver {installed.driver or 'of unknown version'}")
    elif survey.supported:
        problem = "clocks, temperature, energy and other processes on the GPU are not seen"
        yield Finding("NVML", "missing", problem, "in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility")


def _sensors(gpu: Device) -> Iterator[Finding]:
    """What NVML says of a GPU, and what it does not: of a MIG instance, in WSL, in a virtual machine it lacks some."""
    sensors = find_gpu(gpu.uuid) if gpu.uuid else None
    if sensors is None:
        return
    state = sensors.state()
    known = {
        "clocks": state.sm_clock_mhz is not None,
        "temperature": state.temperature_c is not None,
        "power": state.power_w is not None,
        "throttling": state.throttle is not None,
        "energy": sensors.energy_mj() is not None,
        "the use by other processes": sensors.says_use(),
    }
    lacking = [name for name, is_known in known.items() if not is_known]
    facts = [MIG] if sensors.is_mig else []
    facts += [f"without {', '.join(lacking)}" + (", as usual in WSL" if is_wsl() else "")] if lacking else []
    yield Finding(f"{gpu.torch_name} sensors", "; ".join(facts) or "complete")
    if (mode := sensors.compute_mode()) not in (None, "DEFAULT"):
        hint = "`nvidia-smi -c DEFAULT`, as its administrator, or NVIDIA's MPS lets two workers share it"
        yield Finding(f"{gpu.torch_name} mode", str(mode), "one process has this GPU: one worker uses it", hint)


def _triton() -> Finding:
    if not triton_norm.available():
        return Finding("Triton", "not installed: BN trains by cuDNN alone")
    try:
        import triton
    except Exception as error:  # it loads libraries of its own
        problem = f"BN trains by cuDNN alone: {type(error).__name__}: {one_line(error, 200)}"
        return Finding("Triton", "cannot be imported", problem, "pip install --force-reinstall triton")
    return Finding("Triton", f"{triton.__version__}; BN trains by its kernels where they are timed faster")


def _defaults() -> Iterator[Finding]:
    try:
        _auto()
    except IgcNasError as error:
        yield Finding("--device auto", "refused", error.message, error.hint)
    devices = devices_to_check()
    kind = devices[0].kind
    extent, recipe = extent_on(devices), default_recipe(kind)
    names = ", ".join(device.torch_name for device in devices)
    yield Finding(
        "a search",
        f"uses {names}; workers: {extent.workers}; {recipe.epochs} epochs of {recipe.train_size:,} images "
        f"at {recipe.resolution} pixels in "
        + (devices[0].fast_dtype if kind == "cuda" else "the dtype that a timed step is faster in"),
    )


def _runtimes() -> Iterator[Finding]:
    has_gpu = bool(survey_gpus().supported)
    for runtime in get_args(RuntimeName):
        packages = PACKAGES.get(runtime, ())
        if runtime == "tensorrt" and not has_gpu:
            continue
        try:
            require(runtime)
            if runtime == "tensorrt":
                require_provider("TensorrtExecutionProvider")
        except IgcNasError as error:
            yield Finding(f"runtime {runtime}", "missing", error.message, error.hint)
        else:
            versions = ", ".join(f"{package} {_version(package)}" for package in packages)
            yield Finding(f"runtime {runtime}", versions or "ready")
    if importlib.util.find_spec("ray") is None:
        yield Finding("executor ray", "not installed")
    else:
        yield Finding("executor ray", f"ray {importlib.metadata.version('ray')}")


def _version(package: str) -> str:
    """Of the distribution that a package is of: onnxruntime may be of onnxruntime-gpu."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # to list all distributions takes a quarter of a second
        of = importlib.metadata.packages_distributions().get(package, [package])
        return importlib.metadata.version(of[0])


def _compilers() -> Iterator[Finding]:
    command = compiler()
    if command is None:
        problem = "no kernels in C: CPU training is slower, and the runtime native is missing"
        yield Finding("C compiler", "missing", problem, "install gcc or clang, or name one in $CC")
        return
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).splitlines()
    failure = None if native.available() else "it cannot compile and load the kernels in C"
    yield Finding("C compiler", f"{' '.join(command)}: {lines[0] if lines else 'no version'}", failure)


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    low = memory.available < LEAST_MEMORY
    yield Finding(
        "memory",
        f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free",
        "one worker needs about 2 GiB" if low else None,
        "end other programs" if low else None,
    )
    if sys.platform == "linux" and (not SHARED.is_dir() or shutil.disk_usage(SHARED).total < LEAST_SHM):
        yield Finding(str(SHARED), "small", "Ray and torch share memory by it", "docker run --shm-size=1g")


def _datasets(folder: Path) -> Iterator[Finding]:
    for name in NAMES:
        try:
            info = locate(name, folder)
        except IgcNasError as error:
            yield Finding(f"data {name}", "missing", error.message, error.hint)
        else:
            where = f" in {info.folder}" if info.folder else ", drawn by igc-nas"
            yield Finding(f"data {name}", f"{info.label}, {info.train_count:,} training images{where}")


def _cache() -> Iterator[Finding]:
    try:
        folder = cache_dir()
    except (OSError, RuntimeError) as error:
        yield Finding("cache", "none", str(error), "set IGC_NAS_CACHE to a folder")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"cannot be written: {error.strerror}; forms are timed again in each run"
        yield Finding("cache", str(folder), problem, "set IGC_NAS_CACHE to a folder that can be written")
        return
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    unkept = unkept_code()
    hint = "IGC_NAS_CACHE names another folder, which nobody else can write" if unkept else None
    yield Finding("cache", f"{folder}, {size / 2**20:.1f} MiB", unkept, hint)


def devices_to_check() -> tuple[Device, ...]:
    """The devices that a search would use, the CPU where `auto` is refused."""
    try:
        return _auto()
    except IgcNasError:
        return find_devices("cpu")


def _auto() -> tuple[Device, ...]:
    """`find_devices("auto")`, of which what is missing is a finding and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        return find_devices("auto")
