"""Which device a search takes: GPUs of one model that torch has kernels for; never the CPU in silence."""

import os
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

from igc_nas.engine.doctor import examine
from igc_nas.engine.process_executor import environment
from igc_nas.engine.search import Run, search
from igc_nas.errors import UsageError
from igc_nas.nn.cuda_timing import GRAPHS
from igc_nas.nn.device import (
    Device,
    configure_torch,
    exact_float32,
    find_devices,
    make_deterministic,
    survey_gpus,
)
from tests.support.commands import Command
from tests.support.fake_cuda import Record, fake_cuda
from tests.support.searches import spec
from tests.support.stubs import notes_determinism

ARCHS = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


class FakeNvml:
    """A pynvml that knows these GPUs; `driver` None: there is no driver."""

    NVMLError = pynvml.NVMLError

    def __init__(self, *names: str, driver: str | None = "550.54.15") -> None:
        self.names = names
        self.driver = driver

    def nvmlInit(self) -> None:
        if self.driver is None:
            raise pynvml.NVMLError_LibraryNotFound

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
    """GPUs are not hidden by the environment, as `tests/conftest.py` hides them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


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


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_the_user_hides_is_not_asked_for(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert find_devices("auto", FakeNvml("NVIDIA H200"))[0].kind == "cpu"


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
        assert matmul.fp32_precision == "tf32"
        assert conv.fp32_precision == before[1]
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


@pytest.mark.usefixtures("visible")
def test_a_search_says_what_hinders_it(cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr("igc_nas.nn.device.installed_gpus", lambda _: SimpleNamespace(driver="470.1", names=("T4",)))
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
