"""A training on a GPU: nothing in a step waits, one batch size, the dtypes and layout that are meant."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.bench.training import bench_train
from igc_nas.data.datasets import locate
from igc_nas.errors import GRAPHS, CaptureError, ConfigError
from igc_nas.evaluation.captured_step import CapturedStep
from igc_nas.evaluation.images import Images, load_proxy
from igc_nas.evaluation.training import ProxyTask, ProxyTraining, Training, train_proxy
from igc_nas.nn.cuda_timing import WARM_UPS
from igc_nas.nn.device import Device, Kind, find_devices
from igc_nas.nn.lowering.network_tuner import NetworkTuner
from igc_nas.nn.lowering.training import LoweredNetwork
from igc_nas.nn.network import build
from igc_nas.study.records import Score
from tests.gpu.builders import EACH, FORMS, GPU, SMALL, images, lowered, on_gpu, recipe_of, training_of
from tests.support.fake_cuda import NotCapturableError, Record, fake_cuda
from tests.support.shares import some


def test_a_dataset_is_loaded_onto_the_gpu(gpu: Record) -> None:
    train, held_out = load_proxy(locate("shapes", None), recipe_of(), 0, GPU)
    assert {t.device for t in (train.pixels, train.labels, train.mean, train.std, held_out.pixels)} == {GPU}
    assert train.pixels.dtype == torch.uint8


@pytest.mark.parametrize("form", some(FORMS, FORMS[0], FORMS[-1]))
@EACH
def test_an_epoch_waits_at_its_end_alone(arch: ArchConfig, form: str, gpu: Record) -> None:
    training = training_of(arch, form, epochs=2)
    training.epoch()
    assert gpu.captured[-1] > 50
    assert {search.dtype for search in gpu.searches} == {torch.bfloat16}
    assert all(search.channels_last for search in gpu.searches)
    gpu.clear()
    training.epoch()
    assert [reason for reason, _ in gpu.waits] == ["item", "item"]  # the loss and the error
    assert gpu.transfers == gpu.cpu_only == []
    assert gpu.captured == []
    assert len(gpu.launches) < 10, "a step is one replay"
    floats = [*training.network.parameters(), *(b for b in training.network.buffers() if b.is_floating_point())]
    assert {tensor.dtype for tensor in floats} == {torch.float32}
    assert {state["momentum_buffer"].device for state in training.optimizer.state.values()} == {GPU}


def test_a_network_is_put_on_the_gpu_in_channels_last(gpu: Record) -> None:
    """As `build` makes it, it is in NCHW: cuDNN would convert each weight in each step."""
    recipe = recipe_of()
    training = Training(build(SMALL["igcv1"], 0), images(recipe.train_size), recipe, find_devices("cuda")[0], 0)
    weights = [parameter for parameter in training.network.parameters() if parameter.ndim == 4]
    assert {weight.device for weight in weights} == {GPU}
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert not all(weight.is_contiguous() for weight in weights), "a 1x1 convolution is in both layouts"


@EACH
def test_a_network_in_nchw_has_no_channels_last_convolution(arch: ArchConfig, gpu: Record) -> None:
    """Neither an image nor a weight: cuDNN takes the layout of either."""
    training = training_of(arch, epochs=2)
    network: Any = training.network
    training.forward = LoweredNetwork(network, replace(network.plan, input=(3, 32, 32)), {}, torch.bfloat16, "nchw")
    training.epoch()
    assert gpu.searches
    assert not [search for search in gpu.searches if search.channels_last and search.image[1] > 1]
    gpu.clear()
    training.epoch()
    assert [reason for reason, _ in gpu.waits] == ["item", "item"]
    assert gpu.captured == gpu.transfers == gpu.cpu_only == []


def test_an_evaluation_waits_at_its_end_alone(gpu: Record) -> None:
    training = training_of(SMALL["igcv1"])
    gpu.clear()
    training.evaluate(images(600))
    assert [reason for reason, _ in gpu.waits] == ["item", "item"]


@pytest.mark.parametrize("form", ["factored", "plain"])
def test_recalibrating_waits_for_nothing(form: str, gpu: Record) -> None:
    training = training_of(SMALL["igcv1"], form)
    gpu.clear()
    training.recalibrate()
    assert gpu.waits == []


def test_scoring_has_one_batch_size(gpu: Record) -> None:
    recipe = recipe_of(batch=250, train_size=500, held_out=5000, rungs=[250])
    training = training_of(SMALL["igcv1"], batch=250, train_size=500)
    gpu.clear()
    proxy = ProxyTraining(training, images(5000), recipe, lambda: None)
    proxy.score(250, 2000)
    proxy.score(500)
    assert {search.image[0] for search in gpu.searches} == {250}


@pytest.mark.parametrize("form", ["factored", "plain"])
def test_a_proxy_is_trained_and_scored(form: str, gpu: Record) -> None:
    network = on_gpu(SMALL["igcv1"])
    task = ProxyTask(images(192), images(128), recipe_of(rungs=[64]), locate("shapes", None), find_devices("cuda")[0])
    score = train_proxy(network, task, 0, lowered(network, form))
    assert isinstance(score, Score)
    assert score.conditions.device == "Fake GPU"
    assert gpu.cpu_only == []


def test_a_training_continues_from_a_checkpoint(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_of(SMALL["igcv1"], epochs=2)
    training.epoch()
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in training.state().items()}
    other = training_of(SMALL["igcv1"], epochs=2)
    monkeypatch.setattr(type(other.generator), "set_state", lambda self, state: self)  # a GPU's has another size
    other.restore(state)
    other.epoch()
    assert {state["momentum_buffer"].device for state in other.optimizer.state.values()} == {GPU}


@pytest.mark.parametrize(
    "changes", [{}, {"average": 0.9}, {"momentum": 0.0, "label_smoothing": 0.1, "cutout": 8}, {"flip": "alternating"}]
)
def test_the_captured_step_is_the_step(changes: dict[str, Any]) -> None:
    """On a CPU, where it runs without a graph: two epochs with equal weights, statistics, losses and errors."""
    recipe = recipe_of(dtype="float32", epochs=2, train_size=96, batch=32, resolution=8, average=0.0).model_copy(
        update=changes
    )
    info, cpu = locate("shapes"), Device("cpu", "cpu", "test")
    plain, captured = (
        Training(build(SMALL["igcv1"], 0), load_proxy(info, recipe, 0, torch.device("cpu"))[0], recipe, cpu, 0)
        for _ in range(2)
    )
    for epoch in range(2):
        wanted = plain.epoch()
        captured.network.train()
        order = torch.randperm(96, generator=captured.generator)
        step = CapturedStep(captured)
        step.begin(order, 3 * epoch, torch.zeros(()), torch.zeros((), dtype=torch.int64))
        for _ in range(3):
            step.replay()
        assert step.loss_sum.item() / 3 == wanted.loss
        assert step.wrong.item() / 96 == wanted.train_error
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, captured.network.state_dict()[name]), name
    if plain.average and captured.average:
        for one, other in zip(plain.average.weights, captured.average.weights, strict=True):
            torch.testing.assert_close(one, other)


def test_an_augmented_epoch_saves_the_step_its_augmentation(gpu: Record) -> None:
    """The captured step reads what the host puts in the same place at the start of each epoch."""
    launches = {}
    for augment in ("batch", "epoch"):
        training = training_of(SMALL["igcv1"], augment=augment, flip="alternating", epochs=2)
        training.epoch()
        launches[augment] = gpu.captured[-1]
        gpu.clear()
        training.epoch()
        assert [reason for reason, _ in gpu.waits] == ["item", "item"]
        assert gpu.captured == gpu.transfers == gpu.cpu_only == []
    assert launches["epoch"] <= launches["batch"] - 15


def test_capturing_leaves_no_trace(gpu: Record) -> None:
    """Every tensor that the step changes is copied back, and the generator's state is set."""
    training = training_of(SMALL["igcv1"], average=0.9)
    state = training.generator.get_state()
    copied: list[int] = []
    restored: list[bool] = []
    real = torch.Tensor.copy_

    def noted(self: torch.Tensor, other: torch.Tensor, *arguments: Any) -> torch.Tensor:
        copied.append(id(self))
        return real(self, other, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", noted)
        patch.setattr(
            type(training.generator), "set_state", lambda _, to: restored.append(to.tolist() == state.tolist())
        )
        CapturedStep(training)
    assert restored == [True]
    assert training.average is not None
    changed = [*training.network.parameters(), *training.network.buffers(), *training.average.weights]
    changed += [state["momentum_buffer"] for state in training.optimizer.state.values()]
    assert {id(tensor) for tensor in changed} <= set(copied)


def _warmed_up(run: Callable[[], None], *_: object, **__: object) -> Callable[[], None]:
    """What capturing does to values on a CPU: the warm-up changes them, the capture itself nothing."""
    for _ in range(WARM_UPS):
        run()
    return run


def _with_values(kind: Kind, **changes: Any) -> Training:
    """A training on the CPU, its steps launched (`cpu`) or as they are captured (`cuda`)."""
    recipe = recipe_of(**{"dtype": "float32", "train_size": 96, "batch": 32, "resolution": 8} | changes)
    train, _ = load_proxy(locate("shapes"), recipe, 0, torch.device("cpu"))
    network = build(SMALL["igcv1"], 0)
    return Training(network, train, recipe, Device(kind, "cpu", "test"), 0, lambda x: network(x))


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_training_of_fewer_steps_than_a_warm_up_is_captured(epochs: int) -> None:
    """The warm-up's steps are within the tables of the schedule, and leave no trace."""
    with mock.patch("igc_nas.evaluation.captured_step.captured", _warmed_up):
        launched, captured = (_with_values(kind, epochs=epochs, train_size=32) for kind in ("cpu", "cuda"))
        assert [launched.epoch() for _ in range(epochs)] == [captured.epoch() for _ in range(epochs)]


def _trained(training: Training, after_step: Callable[[int], None] = lambda _: None) -> dict[str, torch.Tensor]:
    """The state after the last epoch."""
    while training.done < training.recipe.epochs:
        training.epoch(after_step=after_step)
    return training.state()


@pytest.mark.parametrize("changes", [{"average": 0.9, "flip": "alternating"}, {"augment": "epoch", "crop": 2}])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_captured_steps_continue_bit_for_bit(step: int, changes: dict[str, Any]) -> None:
    """From the state after a step, within an epoch or at its end: a new graph, whose warm-up leaves no trace."""
    state: dict[str, torch.Tensor] = {}

    def stop(done: int) -> None:
        if done == step:
            state.update({name: tensor.detach().clone() for name, tensor in stopped.state().items()})
            raise KeyboardInterrupt

    with mock.patch("igc_nas.evaluation.captured_step.captured", _warmed_up):
        whole, stopped, continued = (_with_values("cuda", epochs=2, **changes) for _ in range(3))
        with pytest.raises(KeyboardInterrupt):
            _trained(stopped, stop)
        continued.restore(state)
        wanted, found = _trained(whole), _trained(continued)
    assert wanted.keys() == found.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(tensor, found[name])] == []


def test_a_training_that_is_dropped_gives_its_memory_back(gpu: Record) -> None:
    """At once: its graph holds the activations of a whole step, and the next training needs the memory."""
    training = training_of(SMALL["igcv1"])
    gc.disable()
    try:
        training.epoch()
        left = weakref.ref(training)
        del training
        assert left() is None
    finally:
        gc.enable()


def test_in_float16_the_loss_is_scaled(cache: None) -> None:
    """On a GPU without bfloat16 (T4, V100): scaled on the device, within the captured step, kept by a checkpoint."""
    with fake_cuda(capability=(7, 5)) as record:
        assert find_devices("cuda")[0].fast_dtype == "float16"
        training = training_of(SMALL["igcv1"], dtype="float16", epochs=2)
        training.epoch()
        record.clear()
        training.epoch()
        assert [reason for reason, _ in record.waits] == ["item", "item"]
        assert len(training.loss_scale()) == 2
        assert {"loss_scale.0", "loss_scale.1"} <= training.state().keys()


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.2}])
def test_in_float16_the_first_step_may_overflow(
    changes: dict[str, Any], cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launched one by one: the loss is scaled by 65,536 at first, and fused SGD would make no momentum then."""
    monkeypatch.setenv(GRAPHS, "0")
    with fake_cuda(capability=(7, 5)):
        training_of(SMALL["igcv1"], dtype="float16", **changes).epoch()


def test_bench_train_times_a_step_as_it_is_trained(cache: None) -> None:
    """Ours is a captured step, the baselines are launched; one of them is in the dtype that this GPU has units for."""
    untuned = mock.patch.object(NetworkTuner, "__call__", return_value=None)
    with fake_cuda(capability=(7, 5)) as record, untuned:
        report = bench_train(find_devices("cuda")[0], 8, 8, compiled=False, archs={"one": SMALL["igcv1"]})
        (row,) = report.rows
        assert row["ours_ms"] == 1.0, "by the fake GPU's events"
        assert {name for name in row if name.endswith("eager_ms")} == {
            f"{layout}_{dtype}_eager_ms" for layout in ("nchw", "nhwc") for dtype in ("fp32", "bf16", "fp16")
        }
        assert max(record.captured) > 50


def test_float16_is_refused_on_a_cpu() -> None:
    cpu = Device("cpu", "cpu", "test")
    train, _ = load_proxy(locate("shapes"), recipe_of(), 0, torch.device("cpu"))
    with pytest.raises(ConfigError, match="float16 trains on a GPU only"):
        Training(build(SMALL["igcv1"], 0), train, recipe_of(dtype="float16"), cpu, 0)


def test_a_restored_training_captures_its_step_anew(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_of(SMALL["igcv1"], epochs=3)
    training.epoch()
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in training.state().items()}
    monkeypatch.setattr(type(training.generator), "set_state", lambda self, state: self)
    training.restore(state)
    captured = len(gpu.captured)
    training.epoch()
    training.epoch()
    assert len(gpu.captured) == captured + 1


# The harness finds what it is for: each of these faults would be a fault on a GPU.


def _waits(training: Training) -> None:
    forward = training.forward
    training.forward = lambda x: forward(x * float(x.mean()))


def _transfers(training: Training) -> None:
    forward = training.forward
    training.forward = lambda x: forward(x.cpu().to(GPU))


def _is_on_the_cpu(training: Training) -> None:
    training.images = replace(training.images, mean=torch.ones(3), std=torch.ones(3))


def _has_a_cpu_generator(training: Training) -> None:
    training.generator = torch.Generator("cpu")


def _is_in_nchw(training: Training) -> None:
    training.network.to(memory_format=torch.contiguous_format)
    batch = type(training.images).augmented

    class Contiguous(Images):
        def augmented(self, *arguments: Any, **options: Any) -> torch.Tensor:
            return batch(self, *arguments, **options).contiguous()

    training.images = Contiguous(*vars(training.images).values())


def _is_in_float32(training: Training) -> None:
    training.forward = training.network


def _uses_a_cpu_kernel(training: Training) -> None:
    forward = training.forward
    training.forward = lambda x: (
        forward(x)
        + torch.ops.mkldnn._linear_pointwise(x.mean((2, 3)), torch.ones(10, 3, device=GPU), None, "none", [], "")
    )


def _reads_an_address(training: Training) -> None:
    forward = training.forward

    def run(x: torch.Tensor) -> torch.Tensor:
        x.data_ptr()
        return forward(x)

    training.forward = run


FAULTS = [
    _waits, _transfers, _is_on_the_cpu, _has_a_cpu_generator, _is_in_nchw, _is_in_float32, _uses_a_cpu_kernel,
    _reads_an_address,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault: object, gpu: Record) -> None:
    training = training_of(SMALL["igcv1"])
    fault(training)  # type: ignore[operator]
    gpu.clear()
    try:
        training.epoch()
    except (RuntimeError, CaptureError):
        return
    is_found = (
        len(gpu.waits) > 2
        or gpu.transfers
        or gpu.cpu_only
        or any(search.dtype != torch.bfloat16 or not search.channels_last for search in gpu.searches)
    )
    assert is_found


def test_the_harness_refuses_a_wait_in_a_captured_graph(gpu: Record) -> None:
    x = torch.ones(4, device=GPU)
    with pytest.raises(NotCapturableError, match="item"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.sum().item()
    layer = nn.Conv2d(3, 8, 3, device=GPU)
    generator = torch.Generator(GPU)
    with pytest.raises(NotCapturableError, match="generator"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.rand(4, generator=generator, device=GPU)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        F.relu(layer(torch.ones(2, 3, 8, 8, device=GPU))).sum().backward()
    assert gpu.captured[-1] > 3
