"""Data on the device, the proxy training, and the exactness that resuming needs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.config import ArchConfig
from igc_nas.data import Images, load_proxy
from igc_nas.dataset import locate
from igc_nas.defaults import default_recipe
from igc_nas.device import Device
from igc_nas.errors import UsageError
from igc_nas.network import build
from igc_nas.spec import Schedule
from igc_nas.train import DivergedError, Training, one_cycle, train_proxy

CPU = Device("cpu", "cpu", "test")
ARCH = ArchConfig.parse({"stem": {"width": 8}, "stage": [{"unit": "igcv1", "L": 4, "M": 4, "blocks": 1, "stride": 2}]})
SCHEDULE = Schedule(epochs=3, batch=16, lr=0.05, crop=1)


def images(count: int = 64, size: int = 8, seed: int = 0) -> Images:
    """Images whose class shows in their brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 30, (count, size, size, 3), generator=generator) + (labels * 22)[:, None, None, None]
    return Images(pixels.to(torch.uint8), labels, torch.full((3,), 110.0), torch.full((3,), 70.0))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_training_continues_exactly_where_its_state_was_taken() -> None:
    whole = Training(build(ARCH, 0), images(), SCHEDULE, CPU, seed=7)
    points = [whole.epoch() for _ in range(3)]
    half = Training(build(ARCH, 0), images(), SCHEDULE, CPU, seed=7)
    half.epoch()
    kept = {name: tensor.clone() for name, tensor in half.state().items()}
    other = Training(build(ARCH, 99), images(), SCHEDULE, CPU, seed=99)
    other.restore(kept)
    assert [other.epoch(), other.epoch()] == points[1:]
    assert same(other.state(), whole.state())


def test_the_seed_decides_a_training() -> None:
    def trained(seed: int) -> dict[str, torch.Tensor]:
        training = Training(build(ARCH, 0), images(), SCHEDULE, CPU, seed)
        training.epoch()
        return training.state()

    assert same(trained(1), trained(1))
    assert not same(trained(1), trained(2))


def test_recalibrated_statistics_are_those_of_the_images() -> None:
    training = Training(build(ARCH, 0), images(), SCHEDULE, CPU, 0)
    training.epoch()
    training.recalibrate()
    norm = training.network.get_submodule("stem.norm")
    with torch.no_grad():
        written = training.network.get_submodule("stem.conv")(training.images.batch(torch.arange(64)))
    assert torch.allclose(norm.running_mean, written.mean((0, 2, 3)), atol=1e-5)
    assert norm.momentum == 0.1


def test_evaluation_counts_every_image_once() -> None:
    training = Training(build(ARCH, 0), images(), SCHEDULE, CPU, 0)
    held_out = images(300, seed=5)
    error, loss = training.evaluate(held_out)
    with torch.inference_mode():
        logits = training.network(held_out.batch(torch.arange(300)))
    assert error == pytest.approx((logits.argmax(1) != held_out.labels).float().mean().item())
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, held_out.labels).item(), rel=1e-4)


def test_a_proxy_learns_what_can_be_learnt() -> None:
    recipe = default_recipe("cpu", epochs=15, batch=32, lr=0.1, crop=0, resolution=8, train_size=320, held_out=100)
    seen = []
    score = train_proxy(
        build(ARCH, 0), images(320), images(100, seed=2), recipe, locate("shapes", None), CPU, 0, on_epoch=seen.append
    )
    assert score.error < 0.3
    assert (score.held_out, score.samples, len(score.curve), tuple(seen)) == (100, 15 * 320, 15, score.curve)
    assert score.curve[-1].loss < score.curve[0].loss
    assert (score.dataset, score.dtype, score.conditions.device) == ("shapes", "float32", "test")


def test_bfloat16_trains_float32_weights() -> None:
    training = Training(build(ARCH, 0), images(), SCHEDULE.model_copy(update={"dtype": "bfloat16"}), CPU, 0)
    point = training.epoch()
    assert np.isfinite(point.loss)
    assert all(p.dtype == torch.float32 for p in training.network.parameters())


def test_divergence_is_an_error_with_a_hint() -> None:
    training = Training(build(ARCH, 0), images(), SCHEDULE.model_copy(update={"lr": 1.0}), CPU, 0)
    torch.nn.init.constant_(training.network.get_submodule("classifier.linear").weight, float("nan"))
    with pytest.raises(DivergedError, match="loss is nan") as caught:
        training.epoch()
    assert caught.value.hint


def test_pause_is_called_between_all_steps() -> None:
    calls: list[int] = []
    training = Training(build(ARCH, 0), images(), SCHEDULE, CPU, 0)
    training.epoch(lambda: calls.append(1))
    assert len(calls) == training.steps_per_epoch == 4


@given(steps=st.integers(2, 400), warmup=st.floats(0.01, 0.99))
def test_one_cycle_rises_to_the_peak_and_falls_to_nothing(steps: int, warmup: float) -> None:
    schedule = Schedule(epochs=1, batch=1, lr=0.3, warmup=warmup)
    rates = [one_cycle(step, steps, schedule) for step in range(steps)]
    top = rates.index(max(rates))
    assert 0 < max(rates) <= 0.3
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) >= 0


def test_crops_and_flips_move_pixels_within_the_mirrored_border() -> None:
    size, crop = 6, 2
    ramp = torch.arange(size * size, dtype=torch.uint8).view(1, size, size, 1).expand(40, size, size, 3).contiguous()
    data = Images(ramp, torch.zeros(40, dtype=torch.int64), torch.zeros(3), torch.ones(3))
    generator = torch.Generator().manual_seed(0)
    batch = data.augmented(torch.arange(40), crop, True, generator)[:, 0]
    padded = np.pad(ramp[0, :, :, 0].numpy(), crop, mode="reflect").astype(np.float32)
    windows = [padded[i : i + size, j : j + size] for i in range(2 * crop + 1) for j in range(2 * crop + 1)]
    allowed = {w.tobytes() for window in windows for w in (window, np.ascontiguousarray(window[:, ::-1]))}
    found = {image.numpy().tobytes() for image in batch.contiguous()}
    assert found <= allowed
    assert len(found) > 20


def test_batches_are_normalised_and_channels_last() -> None:
    batch = images().batch(torch.arange(5))
    assert batch.shape == (5, 3, 8, 8)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch[0, 0, 0, 0].item() == pytest.approx((images().pixels[0, 0, 0, 0].item() - 110) / 70)


def test_a_proxys_splits_are_disjoint_sized_and_seeded() -> None:
    recipe = default_recipe("cpu", train_size=500, held_out=200, resolution=16)
    info = locate("shapes", None)
    train, held_out = load_proxy(info, recipe, 0, torch.device("cpu"))
    assert (len(train), len(held_out), train.pixels.shape[1:]) == (500, 200, (16, 16, 3))
    assert train.labels.bincount().tolist() == [50] * 10
    assert held_out.labels.bincount().tolist() == [20] * 10
    assert not {p.numpy().tobytes() for p in train.pixels} & {p.numpy().tobytes() for p in held_out.pixels}
    other, _ = load_proxy(info, recipe, 1, torch.device("cpu"))
    assert not torch.equal(other.pixels, train.pixels)


def test_a_recipe_that_wants_too_many_images_says_so() -> None:
    with pytest.raises(UsageError, match="train_size \\+ held_out = 22000; shapes has 20000"):
        load_proxy(locate("shapes", None), default_recipe("cpu", train_size=20_000), 0, torch.device("cpu"))


@pytest.mark.gpu
def test_a_proxy_trains_on_a_gpu() -> None:
    device = Device("cuda", "cuda:0", torch.cuda.get_device_name(0))
    recipe = default_recipe("cuda", train_size=2000, held_out=500, epochs=1)
    info = locate("shapes", None)
    train, held_out = load_proxy(info, recipe, 0, device.torch_device)
    assert train_proxy(build(ARCH, 0), train, held_out, recipe, info, device, 0).error < 1
