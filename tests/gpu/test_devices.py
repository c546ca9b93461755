"""Which device a search takes: GPUs of one model that torch has kernels for; never the CPU in silence."""

import os
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pynvml
import pytest
import torch

from igc_nas.bench.search import bench_search
from igc_nas.bench.workers import bench_workers
from igc_nas.engine.doctor import examine
from igc_nas.engine.process_executor import environment
from igc_nas.engine.search import Run, search
from igc_nas.errors import GRAPHS, IgcNasError, UsageError
from igc_nas.evaluation.speed import measure_speed
from igc_nas.io.fallbacks import FallbackWarning
from igc_nas.nn.device import (
    GIVES_GPUS,
    Device,
    configure_torch,
    exact_float32,
    exclusive_mode,
    extent_on,
    find_devices,
    make_deterministic,
    survey_gpus,
)
from igc_nas.nn.nvml import Gpu, InstalledGpus
from igc_nas.study.plan import Speed
from tests.support.commands import Command
from tests.support.fake_cuda import Record, fake_cuda
from tests.support.searches import CONDITIONS, evaluate, spec
from tests.support.stubs import notes_determinism

ARCHS = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


class FakeNvml:
    """A pynvml that knows these GPUs; `driver` None: there is no driver."""

    NVMLError = pynvml.NVMLError

    def __init__(
        self,
        *names: str,
        driver: str | None = "550.54.15",
        cuda: int | None = None,
        fault: type[Exception] = pynvml.NVMLError_LibraryNotFound,
    ) -> None:
        self.names = names
        self.driver = driver
        self.cuda = cuda
        self.fault = fault

    def nvmlInit(self) -> None:
        if self.driver is None:
            raise self.fault

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        if self.cuda is None:
            raise pynvml.NVMLError_FunctionNotFound
        return self.cuda

    def nvmlSystemGetDriverVersion(self) -> str | None:
        return self.driver

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.names[handle]


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs are neither hidden by the environment, as `tests/conftest.py` hides them, nor given by it."""
    for name in GIVES_GPUS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("visible")
@pytest.mark.parametrize(
    ("cuda", "reason"), [(None, "built without CUDA"), ("13.0", "the driver 550.54.15 is too old for torch")]
)
@pytest.mark.parametrize("text", ["auto", "cuda"])
def test_a_gpu_that_torch_cannot_use_is_named(
    text: str, cuda: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(UsageError, match=f"NVIDIA H200: .*{reason}") as caught:
        find_devices(text, FakeNvml("NVIDIA H200", "NVIDIA H200"))
    assert caught.value.message.count("NVIDIA H200") == 1
    assert "--device cpu" in str(caught.value.hint)
    assert find_devices("cpu", FakeNvml("NVIDIA H200"))[0].kind == "cpu"


@pytest.mark.usefixtures("visible")
def test_without_a_gpu_auto_is_the_cpu() -> None:
    assert find_devices("auto", FakeNvml(driver=None))[0].kind == "cpu"
    assert find_devices("auto", FakeNvml())[0].kind == "cpu"
    with pytest.raises(UsageError, match="no CUDA device"):
        find_devices("cuda", FakeNvml(driver=None))


@pytest.mark.parametrize("hidden", ["", "-1", "-1,0", "NoDevFiles"])
def test_a_gpu_that_the_user_hides_is_not_asked_for(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert find_devices("auto", FakeNvml("NVIDIA H200"))[0].kind == "cpu"


@pytest.mark.parametrize("given", ["0", "2,3", "GPU-8f6d0c1e", "MIG-3f2a8c1e"])
def test_a_gpu_that_slurm_gives_is_not_left_in_silence(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with pytest.raises(UsageError, match="NVIDIA H200: "):
        find_devices("auto", FakeNvml("NVIDIA H200"))


@pytest.mark.usefixtures("visible")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUDA_VISIBLE_DEVICES", "0"),
        ("CUDA_VISIBLE_DEVICES", "GPU-8f6d0c1e"),
        ("SLURM_JOB_GPUS", "2,3"),
        ("SLURM_STEP_GPUS", "1"),
        ("NVIDIA_VISIBLE_DEVICES", "all"),
    ],
)
@pytest.mark.parametrize(
    ("cuda", "why", "way_out"),
    [
        (None, "is built without CUDA", r"pip install --force-reinstall torch==[0-9.]+ "),
        ("13.0", "neither torch .* nor the driver's library, NVML, sees one", "a container needs --gpus all"),
    ],
)
def test_a_gpu_that_the_environment_gives_and_nobody_finds_is_missed(
    name: str, value: str, cuda: str | None, why: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without NVML nothing proves that it is there: the CPU is used, in so many words."""
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    no_driver = FakeNvml(driver=None)
    with pytest.warns(
        FallbackWarning, match=f"{name}={value} gives this process a GPU, and .*{why}.*: the CPU"
    ) as said:
        assert find_devices("auto", no_driver)[0].kind == "cpu"
    assert re.search(f"{way_out}.*--device cpu", str(said[0].message))
    with pytest.raises(UsageError, match=f"no CUDA device .*{why}") as caught:
        find_devices("cuda", no_driver)
    assert re.search(f"{way_out}.*--device cpu", str(caught.value.hint))
    assert find_devices("cpu", no_driver)[0].kind == "cpu"


@pytest.mark.usefixtures("visible")
@pytest.mark.parametrize(
    "wish",
    [
        {"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "0"},
        {"CUDA_VISIBLE_DEVICES": "-1", "NVIDIA_VISIBLE_DEVICES": "all"},
        {"NVIDIA_VISIBLE_DEVICES": "void"},
        {"NVIDIA_VISIBLE_DEVICES": "none"},
    ],
)
def test_who_asks_for_no_gpu_is_told_nothing(wish: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in wish.items():
        monkeypatch.setenv(name, value)
    assert find_devices("auto", FakeNvml(driver=None))[0].kind == "cpu"


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("visible")
def test_a_missing_gpu_is_said_once(cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By `search` as a notice, by `doctor` as a finding."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("igc_nas.engine.search.search", lambda *_, **__: iter(()))
    typed = ("search", "--space", "tiny", "--dataset", "shapes", "--trials", 2, "--studies-dir", tmp_path)
    typed = (*typed, "--latency-runtime", "eager", "--recipe", "dtype=float32")  # nothing is compiled or timed
    words = "CUDA_VISIBLE_DEVICES=0 gives this process a GPU"
    assert cli(*typed).err.count(f"notice: {words}") == 1
    doctor = cli("doctor", "--no-check")
    assert words not in doctor.err
    assert doctor.out.count(words) == 1


@pytest.mark.usefixtures("visible")
@pytest.mark.parametrize(
    ("driver", "build", "given", "words"),
    [
        (12040, "13.0", None, "the driver 550.54.15 is too old for torch .*: it is for CUDA 12.4"),
        (12040, "12.8", None, "another process has it, or this user may not open /dev/nvidia"),
        (13000, "12.6", "7", "CUDA_VISIBLE_DEVICES='7' names no GPU of this machine, or another process"),
    ],
)
def test_why_torch_sees_no_gpu(
    driver: int, build: str, given: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers and builds of one major version of CUDA work with each other (CUDA Compatibility)."""
    monkeypatch.setattr(torch.version, "cuda", build)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with pytest.raises(UsageError, match=words):
        find_devices("auto", FakeNvml("NVIDIA H200", cuda=driver))


@pytest.mark.usefixtures("visible")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (pynvml.NVMLError_LibRmVersionMismatch, "its library has another version than its kernel module"),
        (pynvml.NVMLError_NoPermission, "this user may not open it"),
        (pynvml.NVMLError_GpuIsLost, "the GPU is lost"),
        (pynvml.NVMLError_DriverNotLoaded, None),
        (pynvml.NVMLError_LibraryNotFound, None),
    ],
)
def test_a_broken_driver_is_not_taken_for_none(fault: type[Exception], words: str | None) -> None:
    nvml = FakeNvml(driver=None, fault=fault)
    if words is None:
        assert find_devices("auto", nvml)[0].kind == "cpu"
    else:
        with pytest.raises(UsageError, match=f"the NVIDIA driver does not work: {words}"):
            find_devices("auto", nvml)


def test_a_torch_for_amd_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(UsageError, match="is built for AMD's ROCm"):
        find_devices("auto", FakeNvml(driver=None))
    assert find_devices("cpu")[0].kind == "cpu"


def test_a_gpu_on_which_cuda_does_not_start_is_left_out() -> None:
    def name(device: str) -> str:
        if device == "cuda:0":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore")
        return "Fake GPU"

    with fake_cuda(count=2), mock.patch("torch.cuda.get_device_name", name):
        assert [device.torch_name for device in find_devices("auto")] == ["cuda:1"]
        assert survey_gpus().notices == (
            "CUDA does not start on cuda:0: CUDA error: uncorrectable ECC error encountered more",
        )


class Cards:
    """The handles of `find_gpu`, by the last digit of the fake GPUs' UUIDs: compute modes and free GiB."""

    NVMLError = pynvml.NVMLError

    def __init__(self, modes: str, free_gib: tuple[int, ...] = (70, 70)) -> None:
        self.modes, self.free_gib = modes, free_gib

    def find(self, uuid: str) -> Gpu:
        return Gpu(self, int(uuid[-1]))

    def nvmlDeviceGetComputeMode(self, handle: int) -> int:
        names = {
            "D": pynvml.NVML_COMPUTEMODE_DEFAULT,
            "P": pynvml.NVML_COMPUTEMODE_PROHIBITED,
            "E": pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS,
        }
        return int(names[self.modes[handle]])

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(free=self.free_gib[handle] << 30)


@pytest.mark.parametrize(
    ("modes", "free_gib", "workers", "mode"),
    [
        ("DD", (70, 70), 4, None),
        ("DD", (70, 20), 2, None),  # another user has the rest
        ("DE", (70, 70), 2, "cuda:1 is in compute mode EXCLUSIVE_PROCESS"),
    ],
)
def test_workers_of_a_gpu_by_its_mode_and_its_free_memory(
    modes: str, free_gib: tuple[int, ...], workers: int, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igc_nas.study.defaults.usable_cores", lambda: 16)
    monkeypatch.setattr("igc_nas.nn.device.find_gpu", Cards(modes, free_gib).find)
    with fake_cuda(count=2):
        assert extent_on(find_devices("cuda")).workers == workers
        assert exclusive_mode(find_devices("cuda")) == mode


def test_a_gpu_on_which_nothing_may_compute_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igc_nas.nn.device.find_gpu", Cards("PD").find)
    with fake_cuda(count=2):
        assert [device.torch_name for device in find_devices("cuda")] == ["cuda:1"]
        assert "cuda:0, Fake GPU, is in compute mode PROHIBITED" in survey_gpus().notices[0]


def test_a_search_leaves_the_gpu_to_its_workers(cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is planned by a process that ends; until the workers start, nothing makes a CUDA context."""
    asked: list[Any] = []
    found = Speed(step_s=0.01, convolution_s=0, mac_s=1e-12, activation_s=0, trial_s=1)
    monkeypatch.setattr("igc_nas.engine.apart.call_apart", lambda *given, **_: (asked.append(given), found)[1])
    monkeypatch.setattr("igc_nas.engine.search.search", lambda *_, **__: iter(()))
    monkeypatch.setattr("igc_nas.nn.device.find_gpu", Cards("E").find)
    with fake_cuda() as record:
        answer = cli("search", "--space", "tiny", "--dataset", "shapes", "--workers", 2, "--studies-dir", tmp_path)
    assert asked[0][0] is measure_speed
    assert asked[0][4].torch_name == "cuda:0"
    assert record.launches == record.transfers == record.waits == []
    assert "2 workers of 1 thread" in answer.err
    assert "cuda:0 is in compute mode EXCLUSIVE_PROCESS: more than one worker on it needs NVIDIA's MPS" in " ".join(
        answer.err.split()
    )


@pytest.mark.parametrize("bench", ["search", "workers", "against-optuna"])
def test_a_bench_of_searches_leaves_the_gpu_to_their_workers(
    bench: str, cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its conditions are told by a process that ends; nothing here makes a CUDA context, as `set_device` would."""
    monkeypatch.setenv("IGC_NAS_DATA", str(tmp_path))
    asked: list[Any] = []
    conditions = CONDITIONS.model_copy(update={"device": "Fake GPU", "tf32": True})
    monkeypatch.setattr("igc_nas.bench.search.call_apart", lambda *given, **_: (asked.append(given), conditions)[1])
    in_process = {"space": "tiny", "run_search": lambda *given, **more: search(*given, evaluate=evaluate, **more)}
    monkeypatch.setattr("igc_nas.bench.search.bench_search", partial(bench_search, **in_process))
    monkeypatch.setattr("igc_nas.bench.workers.bench_workers", partial(bench_workers, **in_process))
    monkeypatch.setattr("subprocess.Popen", mock.Mock(side_effect=IgcNasError("the search would begin")))
    monkeypatch.setattr("igc_nas.nn.device.find_gpu", Cards("E").find)
    with fake_cuda() as record, mock.patch("torch.cuda.set_device") as set_device:
        sizes = () if bench == "against-optuna" else ("--trials", 2, "--chunk", 2, "--json")
        answer = cli("bench", bench, *sizes)
    assert [given[1].torch_name for given in asked] == ["cuda:0"]
    assert not set_device.called
    assert record.launches == record.transfers == record.waits == []
    if bench == "against-optuna":
        assert "the search would begin" in answer.err
    else:
        assert answer.json["conditions"]["tf32"] is True


def test_memory_is_given_back_on_the_gpu_that_is_meant() -> None:
    """Else, with segments that can grow, memory with queued work on it goes (pytorch/pytorch issue 196258)."""
    emptied: list[int] = []
    with fake_cuda(count=2) as record, mock.patch("torch.cuda.empty_cache") as empty_cache:
        empty_cache.side_effect = lambda: emptied.append(record.current_device)
        find_devices("cuda:1")[0].release_memory()
    assert emptied == [1]


@pytest.mark.parametrize(
    ("capability", "is_supported"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((11, 0), False),
    ],
)
def test_a_gpu_without_kernels_is_left_out(
    capability: tuple[int, int], is_supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_cuda(capability=capability):
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ARCHS)
        assert bool(survey_gpus().supported) is is_supported
        if is_supported:
            assert find_devices("auto")[0].kind == "cuda"
        else:
            for text in ("auto", "cuda", "cuda:0"):
                with pytest.raises(UsageError, match=f"no kernels for cuda:0, Fake GPU .*{capability[0]}"):
                    find_devices(text)


def test_ptx_runs_on_later_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(capability=(12, 1)):
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90", "compute_90"])
        assert survey_gpus().supported


def test_a_search_takes_the_gpus_of_the_first_ones_model() -> None:
    with fake_cuda(count=3, names=("NVIDIA RTX A6000", "NVIDIA T400", "NVIDIA RTX A6000")):
        assert [device.torch_name for device in find_devices("cuda")] == ["cuda:0", "cuda:2"]
        assert find_devices("auto") == find_devices("cuda")
        assert find_devices("cuda:1")[0].name == "NVIDIA T400"
        assert [notice for notice in survey_gpus().notices if "cuda:1 is another model (NVIDIA T400)" in notice]
        with pytest.raises(UsageError, match="it can use cuda:0, cuda:1, cuda:2"):
            find_devices("cuda:3")


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((7, 0), "float16"), ((6, 1), "float32")],
)
def test_the_dtype_is_one_that_the_gpu_has_units_for(capability: tuple[int, int], dtype: str) -> None:
    with fake_cuda(capability=capability):
        assert Device("cuda", "cuda:0", "Fake GPU").fast_dtype == dtype


def test_the_precision_of_a_users_program_is_kept() -> None:
    """Whatever a caller has set by torch's present interface is read, and restored."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with exact_float32():
            assert matmul.fp32_precision == conv.fp32_precision == "ieee"
            assert not matmul.allow_tf32, "torch raises where the older flag says something else"
        assert matmul.fp32_precision == "tf32"
        assert matmul.allow_tf32
        assert conv.fp32_precision == before[1]
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision, conv.fp32_precision = before


@pytest.mark.usefixtures("visible")
def test_a_search_says_what_hinders_it(cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr("igc_nas.nn.device.installed_gpus", lambda _: InstalledGpus("470.1", ("T4",)))
    answer = cli("search", "--space", "tiny", "--dataset", "shapes", "--studies-dir", str(tmp_path))
    assert answer.status == 2
    assert "T4: " in answer.err
    assert "--device cpu" in answer.err


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_results_are_asked_for(deterministic: bool, tmp_path: Path) -> None:
    """A worker has the environment that cuBLAS reads, and torch's and cuDNN's settings; without the option neither."""
    folder = tmp_path / "s"
    list(search(spec(), Run(folder, trials=1, deterministic=deterministic), evaluator=notes_determinism))
    noted = f"{deterministic} {':4096:8' if deterministic else os.environ.get('CUBLAS_WORKSPACE_CONFIG')}"
    assert (folder / "noted").read_text() == noted
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.get_num_threads()
    try:
        with exact_float32(), fake_cuda():
            (gpu,) = find_devices("cuda")
            if deterministic:
                make_deterministic(gpu)
            configure_torch(gpu, 1)
            assert torch.are_deterministic_algorithms_enabled() is cudnn.deterministic is deterministic
            assert cudnn.benchmark is not deterministic
    finally:
        torch.use_deterministic_algorithms(False)
        cudnn.benchmark, cudnn.deterministic = before[:2]
        torch.set_num_threads(before[2])


def test_a_workers_memory_can_grow_and_its_user_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes change with each trial. What the user's environment says of memory and of graphs is kept."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", GRAPHS):
        monkeypatch.delenv(name, raising=False)
    assert environment(1)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert GRAPHS not in environment(1)
    assert environment(1, graphs=False)[GRAPHS] == "0"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    monkeypatch.setenv(GRAPHS, "0")
    assert "PYTORCH_ALLOC_CONF" not in environment(1)
    assert environment(1)[GRAPHS] == "0"


def test_in_wsl_a_workers_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platform.release", lambda: "5.15.153.1-microsoft-standard-WSL2")
    assert "PYTORCH_ALLOC_CONF" not in environment(1)


def test_a_gpu_that_another_process_has_is_a_problem_not_a_crash(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: object) -> None:
        raise torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr("torch.cuda.mem_get_info", busy)
    (found,) = (finding for finding in examine().findings if finding.topic == "cuda:0")
    assert "Fake GPU, compute capability 9.0, memory unknown" in found.value
    assert "busy or unavailable" in str(found.problem)


def test_a_cpu_is_left_as_it_is() -> None:
    make_deterministic(Device("cpu", "cpu", "test"))
    assert not torch.are_deterministic_algorithms_enabled()
