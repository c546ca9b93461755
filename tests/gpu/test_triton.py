"""BN by Triton's kernels on a GPU: chosen where it is timed faster, given up with a word where it does not compile.

Triton is a fake here, whose kernels note a launch; `tests/nn/lowering/triton_checks.py` runs the real ones.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from igc_nas.engine.doctor import examine
from igc_nas.errors import StudyError
from igc_nas.nn.device import find_devices
from igc_nas.nn.lowering import kernels, triton_norm
from igc_nas.nn.lowering.network_tuner import NetworkTuner
from igc_nas.nn.lowering.pinned_forms import PinnedForms
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.training import LoweredNetwork, NetworkForm
from tests.gpu.builders import GPU, SMALL, images, on_gpu, recipe_of, training_of
from tests.support.fake_cuda import Record

SHORT = SMALL["igcv3"].model_copy(update={"stages": SMALL["igcv3"].stages[:1]})
KERNELS = (
    "part_statistics", "batch_statistics", "normalise", "part_gradients", "batch_gradients", "input_gradient",
)  # fmt: skip
CONSTANT = object()
"""`triton.language.constexpr`: a kernel is compiled for each value of such an argument."""
NAME = "igc_nas.nn.lowering.kernels.norm_triton"


class Kernel:
    """Checks the arguments of a launch and notes it."""

    def __init__(self, function: Any, record: Record) -> None:
        self.function, self.record = function, record
        self.broken = False
        self.constants: set[tuple[Any, ...]] = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(0 < count < 65_536 for count in grid)

        def launch(*arguments: Any) -> None:
            if self.broken:
                raise OSError("gcc is missing")
            given = zip(arguments, inspect.signature(self.function).parameters.values(), strict=True)
            self.constants.add(tuple(argument for argument, parameter in given if parameter.annotation is CONSTANT))
            assert all(a.device == GPU for a in arguments if isinstance(a, torch.Tensor))
            self.record.launches.append(self.function.__name__)

        return launch


@pytest.fixture
def triton(gpu: Record) -> Iterator[ModuleType]:
    """The module of the kernels, made with a Triton that is not there; undone before the fake GPU's own patches are."""
    fake, language = ModuleType("triton"), ModuleType("triton.language")
    language.constexpr = CONSTANT  # type: ignore[attr-defined]
    fake.language = language  # type: ignore[attr-defined]
    fake.jit = lambda function=None, **_: Kernel(function, gpu) if function else fake.jit  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_norm, "available", lambda: True)
        for name, module in {"triton": fake, "triton.language": language, NAME: fake}.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(kernels, "norm_triton", fake, raising=False)
        del sys.modules[NAME], kernels.norm_triton  # imported anew, and removed at the end
        triton_norm._kernels.cache_clear()
        yield triton_norm._kernels()
    triton_norm._kernels.cache_clear()


def tuner(ms: dict[str, float], folder: Path) -> NetworkTuner:
    """A tuner that runs each form once and is told its time."""

    def timer(form: NetworkForm, step: Callable[[], None]) -> Callable[[], float]:
        step()
        return lambda: ms[form]

    recipe, (device, *_) = recipe_of(batch=16), find_devices("cuda")
    return NetworkTuner(recipe, 32, device, TimingCache(), PinnedForms(folder), timer=timer)


@pytest.mark.parametrize(
    ("ms", "form"),
    [
        ({"triton": 1.0, "lowered": 1.2, "nchw": 1.2, "factored": 2.0}, "triton"),
        pytest.param({"triton": 1.2, "lowered": 1.0, "nchw": 1.2, "factored": 2.0}, "lowered", marks=pytest.mark.slow),
        pytest.param({"triton": 1.2, "lowered": 1.2, "nchw": 1.0, "factored": 2.0}, "nchw", marks=pytest.mark.slow),
        ({"triton": 1.0, "lowered": 1.0, "nchw": 1.0, "factored": 2.0}, "lowered"),
    ],
)
def test_the_fastest_form_is_chosen(ms: dict[str, float], form: str, triton: ModuleType, tmp_path: Path) -> None:
    found = tuner(ms, tmp_path)(on_gpu(SHORT), "id")
    assert found is not None
    assert found.form == form


def test_where_it_does_not_compile_this_is_said_once(triton: ModuleType, tmp_path: Path) -> None:
    triton.normalise.broken = True
    ours = tuner({"lowered": 1.0, "nchw": 1.2, "factored": 2.0}, tmp_path)
    with pytest.warns(RuntimeWarning, match=r"not work on Fake GPU, so BN .* \(OSError: gcc is missing\)") as said:
        found = ours(on_gpu(SHORT), "one")
    assert found is not None
    assert found.form == "lowered"
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(on_gpu(SHORT), "another")


def test_one_that_cannot_be_imported_is_given_up(
    triton: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is installed, but a library of its own is missing."""
    triton_norm._kernels.cache_clear()
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, NAME)
        patch.delattr(kernels, "norm_triton")
        patch.setitem(sys.modules, "triton", None)
        with pytest.warns(RuntimeWarning, match=r"Triton does not work on Fake GPU, .* \(ModuleNotFoundError: "):
            found = tuner({"lowered": 1.0, "nchw": 1.2, "factored": 2.0}, tmp_path)(on_gpu(SHORT), "id")
        (finding,) = (each for each in examine().findings if each.topic == "Triton")
    assert found is not None
    assert found.form == "lowered"
    assert finding.value == "cannot be imported"
    assert "ModuleNotFoundError" in str(finding.problem)


def test_a_larger_batch_compiles_nothing_anew(triton: ModuleType) -> None:
    """The check of a network by 8 images finds what does not compile, before the race and the training."""
    network: Any = on_gpu(SHORT)
    form = LoweredNetwork(network, replace(network.plan, input=(3, 32, 32)), {}, torch.bfloat16, "triton")
    constants = []
    for count in (8, 256):
        form(images(count).batch(torch.arange(count, device=GPU))).sum().backward()
        constants.append({name: set(kernel.constants) for name, kernel in vars(triton).items() if name in KERNELS})
    assert constants[0] == constants[1]
    assert all(constants[0].values())


def test_a_training_with_it_continues_only_with_it(
    triton: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ms = {"triton": 1.0, "lowered": 1.2, "nchw": 1.2, "factored": 2.0}
    tuner(ms, tmp_path)(on_gpu(SHORT), "id")
    with monkeypatch.context() as patch:
        patch.setattr(triton_norm, "available", lambda: False)
        with pytest.raises(StudyError, match="started with Triton kernels") as raised:
            tuner(ms, tmp_path)(on_gpu(SHORT), "id")
    assert raised.value.hint is not None
    assert "pip install triton" in raised.value.hint


@pytest.mark.parametrize("unit", ["igcv1", "igcv3"])
def test_a_captured_step_holds_it(unit: str, triton: ModuleType, gpu: Record) -> None:
    """Nothing waits. For each BN there are six launches, and none of PyTorch's for BN or an interleave behind it."""
    training = training_of(SMALL[unit], epochs=2)
    network: Any = training.network
    training.forward = LoweredNetwork(network, replace(network.plan, input=(3, 32, 32)), {}, torch.bfloat16, "triton")
    training.epoch()
    gpu.clear()
    training.epoch()
    assert [reason for reason, _ in gpu.waits] == ["item", "item"]
    assert gpu.captured == gpu.transfers == gpu.cpu_only == []
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    gpu.clear()
    network.train()
    training.forward(images(16).batch(torch.arange(16, device=GPU))).sum().backward()
    assert not [launch for launch in gpu.launches if "batch_norm" in launch]
    for name in ("part_statistics", "batch_statistics", "normalise"):
        assert gpu.launches.count(name) == norms
    for name in ("part_gradients", "batch_gradients", "input_gradient"):
        assert gpu.launches.count(name) == norms
