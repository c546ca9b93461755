"""Data on the device, the proxy training, and that a restored training continues bit for bit."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest

from igc_nas.arch.config import ArchConfig
from igc_nas.data.datasets import locate
from igc_nas.errors import ConfigError, DivergedError, UsageError
from igc_nas.evaluation.images import Images, load_proxy
from igc_nas.evaluation.training import (
    Average,
    ProxyTask,
    ProxyTraining,
    Training,
    mixed_up,
    one_cycle,
    train_proxy,
)
from igc_nas.nn.device import Device
from igc_nas.nn.network import build
from igc_nas.study.defaults import default_recipe
from igc_nas.study.plan import RUNG_IMAGES
from igc_nas.study.records import Rung, Score, Unfinished
from igc_nas.study.spec import Recipe, Schedule

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


FULL = SCHEDULE.model_copy(
    update={"cutout": 4, "mixup": 0.2, "average": 0.9, "decay_norms": False, "label_smoothing": 0.1}
)


@pytest.mark.parametrize("at", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("changes", [{}, {"flip": "alternating", "augment": "epoch"}])
def test_a_training_continues_exactly_after_any_step(at: int, changes: dict) -> None:
    """Of 3 epochs of 4 steps, by a recipe that draws for everything it can."""
    recipe = FULL.model_copy(update=changes)
    whole, kept = Training(build(ARCH, 0), images(), recipe, CPU, seed=7), {}

    def after_step(steps: int) -> None:
        if steps == at:
            kept.update({name: tensor.clone() for name, tensor in whole.state().items()})

    points = [whole.epoch(after_step=after_step) for _ in range(3)]
    other = Training(build(ARCH, 99), images(), recipe, CPU, seed=99)
    other.restore(kept)
    assert other.steps_done == at
    rest = [other.epoch() for _ in range(3 - other.done)]
    assert rest == points[-len(rest) :]
    assert same(other.state(), whole.state())


@pytest.mark.parametrize("counts", [[0, 0], [5, 80], [2, 33], [-1, -16]])
def test_an_impossible_position_in_an_epoch_is_refused(counts: list[int]) -> None:
    training = Training(build(ARCH, 0), images(), SCHEDULE, CPU, 0)
    kept: dict[str, torch.Tensor] = {}
    training.epoch(after_step=lambda steps: kept.update(training.state()) if steps == 2 else None)
    with pytest.raises(ValueError, match="after step"):
        Training(build(ARCH, 0), images(), SCHEDULE, CPU, 0).restore(kept | {"epoch.counts": torch.tensor(counts)})


def test_weight_decay_can_leave_norms_and_biases_alone() -> None:
    decayed, spared = (
        Training(build(ARCH, 0), images(), SCHEDULE.model_copy(update=change | {"weight_decay": 0.5}), CPU, 0)
        for change in ({"decay_norms": True}, {"decay_norms": False})
    )
    for training in (decayed, spared):
        for parameter in training.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        training.optimizer.step()
    changed = {
        name: not torch.equal(a, b)
        for (name, a), b in zip(spared.network.named_parameters(), decayed.network.parameters(), strict=True)
    }
    assert changed == {name: p.ndim == 1 and bool(p.any()) for name, p in spared.network.named_parameters()}


def test_cutout_cuts_a_square_of_the_mean_colour_anywhere() -> None:
    data = images(400)
    index = torch.arange(400)
    whole = data.augmented(index, 0, False, torch.Generator().manual_seed(1))
    cut = data.augmented(index, 0, False, torch.Generator().manual_seed(1), cutout=4)
    gone = (cut != whole).any(1)
    assert (cut[gone[:, None].expand_as(cut)] == 0).all()
    rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.sum((1, 2)), rows * columns)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (2, 4, 2, 4)
    assert gone.any(0).all()


@pytest.mark.parametrize("augment", ["batch", "epoch"])
def test_alternating_flips_mirror_the_other_half_in_the_next_epoch(augment: str) -> None:
    """Jordan 2024, section 3.3: every image is seen both ways in any two epochs in a row."""
    count, size = 40, 6
    pixels = torch.zeros(count, size, size, 3, dtype=torch.uint8)
    pixels[:, :, 0] = 255  # the left edge is bright
    pixels[:, 2, 2:4] = torch.arange(count, dtype=torch.uint8)[:, None, None]
    marked = Images(pixels, torch.zeros(count, dtype=torch.int64), torch.zeros(3), torch.ones(3))
    recipe = Schedule(epochs=4, batch=8, lr=0.01, crop=0, flip="alternating", augment=augment)
    network, seen = build(ARCH, 0), []

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return network(x)

    training = Training(network, marked, recipe, CPU, 0, forward)
    mirrored = []
    for _ in range(4):
        training.epoch()
        x = torch.cat(seen)
        seen.clear()
        order = x[:, 0, 2, 2].argsort()
        assert torch.equal(x[order, 0, 2, 2], torch.arange(count).float())
        mirrored.append((x[order, 0, 0, -1] == 255).tolist())
    assert mirrored[0] == mirrored[2]
    assert mirrored[1] == mirrored[3] == [not is_mirrored for is_mirrored in mirrored[0]]
    assert 5 < sum(mirrored[0]) < count - 5


def test_an_epoch_augmented_at_once_has_every_image_cropped_and_flipped() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = images(5000, 6)
    moved = plain.moved(1, True, generator)
    assert torch.equal(moved.labels, plain.labels)
    changed = (moved.pixels != plain.pixels).flatten(1).any(1).float().mean()
    assert 0.9 < changed < 0.99, "one of 18 places is the image's own"
    mask = torch.arange(5000) % 2 == 1
    flipped = plain.moved(0, mask, generator).pixels
    assert torch.equal(flipped[~mask], plain.pixels[~mask])
    assert torch.equal(flipped[mask], plain.pixels[mask].flip(2))


def test_mixup_mixes_pairs_in_one_share() -> None:
    generator = torch.Generator().manual_seed(3)
    batch, labels = torch.randn(16, 3, 4, 4), torch.arange(16)
    shares = []
    for _ in range(200):
        mixed, others, share = mixed_up(batch, labels, 0.2, generator)
        assert torch.allclose(mixed, share * batch + (1 - share) * batch[others], atol=1e-6)
        shares.append(float(share))
    assert 0.4 < np.mean(shares) < 0.6
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.15)  # of Beta(a, a)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0])
def test_the_shares_of_mixup_are_of_a_beta_distribution(alpha: float) -> None:
    generator, labels = torch.Generator().manual_seed(0), torch.zeros(2, dtype=torch.int64)
    shares = [float(mixed_up(torch.zeros(2, 1), labels, alpha, generator)[2]) for _ in range(2000)]
    inside = binomtest(
        sum(0.05 < share < 0.95 for share in shares), len(shares), np.diff(beta(alpha, alpha).cdf([0.05, 0.95]))[0]
    )
    assert inside.pvalue > 0.01
    assert abs(np.mean(shares) - 0.5) < 0.05


def test_label_smoothing_gives_every_class_a_share() -> None:
    """Szegedy et al. 2016, arXiv 1512.00567, section 7."""
    smoothed = SCHEDULE.model_copy(update={"label_smoothing": 0.25})
    loss, logits, labels = Training(build(ARCH, 0), images(), smoothed, CPU, seed=0).loss(torch.arange(8), 0)
    log = logits.float().log_softmax(1)
    wanted = -(0.75 * log.gather(1, labels[:, None])[:, 0] + 0.25 * log.mean(1)).mean()
    torch.testing.assert_close(loss, wanted)


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


def test_a_smaller_last_batch_counts_by_its_images_in_recalibrated_statistics() -> None:
    training = Training(build(ARCH, 0), images(36), SCHEDULE, CPU, 0)
    training.recalibrate()
    norm = training.network.get_submodule("stem.norm")
    with torch.no_grad():
        written = training.network.get_submodule("stem.conv")(training.images.batch(torch.arange(36)))
    assert torch.allclose(norm.running_mean, written.mean((0, 2, 3)), atol=1e-5)


def test_a_last_image_alone_is_no_batch_of_a_recalibration() -> None:
    """Where a map is one pixel it has no variance."""
    one_pixel = ArchConfig.parse(
        {"stem": {"width": 8, "stride": 4}, "stage": [{"unit": "conv", "width": 4, "blocks": 1, "stride": 2}]}
    )
    training = Training(build(one_pixel, 0), images(33), SCHEDULE, CPU, 0)
    training.epoch()
    error, _ = training.score(images(20))
    assert 0 <= error <= 1


def test_evaluation_counts_every_image_once() -> None:
    training = Training(build(ARCH, 0), images(), SCHEDULE, CPU, 0)
    held_out = images(300, seed=5)
    error, loss = training.evaluate(held_out)
    with torch.inference_mode():
        logits = training.network(held_out.batch(torch.arange(300)))
    assert error == pytest.approx((logits.argmax(1) != held_out.labels).float().mean().item())
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, held_out.labels).item(), rel=1e-4)


def test_a_proxy_learns() -> None:
    recipe = default_recipe("cpu", epochs=15, batch=32, lr=0.1, crop=0, resolution=8, train_size=320, held_out=100)
    seen = []
    task = ProxyTask(images(320), images(100, seed=2), recipe, locate("shapes", None), CPU)
    score = train_proxy(build(ARCH, 0), task, 0, on_epoch=seen.append)
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


def test_a_training_that_has_ended_takes_no_further_step() -> None:
    """Its schedule says nothing of one; a captured step would read behind the end of its learning rates."""
    training = Training(build(ARCH, 0), images(), SCHEDULE.model_copy(update={"epochs": 1}), CPU, 0)
    training.epoch()
    with pytest.raises(ValueError, match="it is of 1 epochs"):
        training.epoch()


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
    with pytest.raises(UsageError, match="train_size \\+ held_out = 24000; shapes has 20000"):
        load_proxy(locate("shapes", None), default_recipe("cpu", train_size=20_000), 0, torch.device("cpu"))


# Rungs and the weight average.


def recipe_of(**changes) -> Recipe:
    """Three epochs of five whole batches of 16, and four images over."""
    plain = {"epochs": 3, "batch": 16, "lr": 0.05, "crop": 1, "train_size": 84, "held_out": 50, "resolution": 8}
    return Recipe.parse(plain | changes, "recipe")


def finished(recipe: Recipe, rung_images: int = RUNG_IMAGES) -> tuple[ProxyTraining, Rung]:
    training = Training(build(ARCH, 0), images(recipe.train_size), recipe, CPU, seed=7)
    proxy = ProxyTraining(training, images(recipe.held_out, seed=3), recipe, lambda: None, rung_images)
    end = proxy.run(lambda _: None, lambda _: True)
    assert end
    return proxy, end


RUNGS = [[80], [16, 17, 100], [1, 90, 160, 223]]


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("rungs", RUNGS)
def test_a_training_with_rungs_ends_as_one_without(rungs: list[int], average: float) -> None:
    plain, end = finished(recipe_of(average=average))
    with_rungs, same_end = finished(recipe_of(average=average, rungs=rungs))
    assert [rung.samples for rung in with_rungs.rungs] == rungs
    assert same(with_rungs.training.state(), plain.training.state())
    assert (same_end, with_rungs.curve) == (end, plain.curve)


def test_an_average_changes_the_score_and_not_the_training() -> None:
    plain, end = finished(recipe_of())
    averaged, other_end = finished(recipe_of(average=0.9))
    own = {name: value for name, value in averaged.training.state().items() if not name.startswith("average.")}
    assert same(own, plain.training.state())
    assert averaged.curve == plain.curve
    assert other_end.loss != end.loss


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("samples", [1, 40, 80, 81, 223])
def test_a_rungs_score_is_that_of_the_same_state_scored_by_itself(samples: int, average: float) -> None:
    """The weights are copied after every step, and averaged and scored by another training, which has done no step."""
    recipe = recipe_of(average=average, rungs=[samples])
    of, _ = finished(recipe)
    steps = math.ceil(samples / 16)
    reference = Training(build(ARCH, 0), images(84), recipe, CPU, seed=7)
    weights = [copy.deepcopy(dict(reference.network.named_parameters()))]

    def after_step(done: int) -> None:
        if done <= steps:
            weights.append(copy.deepcopy(dict(reference.network.named_parameters())))

    for _ in range(3):
        reference.epoch(after_step=after_step)
    held = weights[0] if average else weights[-1]
    for step, new in enumerate(weights[1:], start=1) if average else ():
        decay = min(average, step / (step + 9))
        held = {name: decay * held[name].detach() + (1 - decay) * new[name].detach() for name in new}
    fresh = Training(build(ARCH, 99), images(84), recipe, CPU, seed=1)
    fresh.network.load_state_dict(fresh.network.state_dict() | {n: w.detach() for n, w in held.items()})
    fresh.recalibrate()
    error, loss = fresh.evaluate(images(50, seed=3))
    (rung,) = of.rungs
    assert rung.samples == samples
    assert rung.error == pytest.approx(error)
    assert rung.loss == pytest.approx(loss, rel=1e-5)


def test_a_rung_is_scored_on_the_first_held_out_images_only() -> None:
    few, end = finished(recipe_of(rungs=[96]), rung_images=30)
    all_of_them, same_end = finished(recipe_of(rungs=[96]))
    assert end == same_end
    assert (30 * few.rungs[0].error) == pytest.approx(round(30 * few.rungs[0].error))
    assert (50 * all_of_them.rungs[0].error) == pytest.approx(round(50 * all_of_them.rungs[0].error))
    assert few.rungs != all_of_them.rungs


def test_an_average_is_put_in_place_and_taken_out_again() -> None:
    network = build(ARCH, 0)
    average = Average(network, 0.9)
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(1.0)
    average.update(1)  # decay 1 / 10: nine tenths of the new weights
    now = copy.deepcopy(network.state_dict())
    name = "stem.conv.weight"
    with average.in_place():
        assert torch.allclose(network.get_parameter(name), before[name] + 0.9, atol=1e-6)
    assert same(network.state_dict(), now)


@pytest.mark.parametrize(("stop_at", "epochs"), [(1, 0), (2, 1), (3, 2)])
def test_a_stopped_training_keeps_its_curve_and_its_rungs(stop_at: int, epochs: int) -> None:
    recipe = recipe_of(rungs=[32, 96, 220])
    whole, _ = finished(recipe)
    asked: list[Rung] = []

    def go_on(rung: Rung) -> bool:
        asked.append(rung)
        return len(asked) < stop_at

    seen = []
    task = ProxyTask(images(84), images(50, seed=3), recipe, locate("shapes", None), CPU)
    score = train_proxy(build(ARCH, 0), task, 7, on_epoch=seen.append, go_on=go_on)
    assert isinstance(score, Unfinished)
    assert score.rungs == tuple(asked) == tuple(whole.rungs[:stop_at])
    assert score.curve == tuple(seen) == tuple(whole.curve[:epochs])


def test_a_score_keeps_the_rungs_and_not_the_end_among_them() -> None:
    recipe = recipe_of(rungs=[32, 96], average=0.5)
    whole, end = finished(recipe)
    task = ProxyTask(images(84), images(50, seed=3), recipe, locate("shapes", None), CPU)
    score = train_proxy(build(ARCH, 0), task, 7)
    assert isinstance(score, Score)
    assert score.rungs == tuple(whole.rungs)
    assert (score.error, score.loss, score.samples) == (end.error, end.loss, 3 * 80)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rungs": [100, 50]}, "rungs [100, 50] must ascend and stay below the recipe's 252 samples"),
        ({"rungs": [50, 50]}, "must ascend"),
        ({"rungs": [50, 252]}, "must ascend and stay below the recipe's 252 samples"),
        ({"rungs": [17, 32]}, "rungs [17, 32] must fall into different batches of 16"),
        ({"rungs": [225]}, "before the last of the recipe's 15"),
        ({"rungs": [250]}, "before the last of the recipe's 15"),
        ({"rungs": [50], "batch": 100, "epochs": 1}, "before the last of the recipe's 1"),
        ({"rungs": [0]}, "recipe: rungs"),
        ({"rungs": [1.5]}, "recipe: rungs"),
        ({"rungs": list(range(10, 180, 10))}, "recipe: rungs"),
        ({"average": 1.0}, "recipe: average"),
        ({"average": -0.1}, "recipe: average"),
        ({"flip": "sometimes"}, "flip: must be true, false or alternating"),
        ({"augment": "never"}, "augment: Input should be 'batch' or 'epoch' (got 'never')"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_of(**changes)
    assert words in caught.value.message


@given(
    epochs=st.integers(1, 5), batch=st.integers(1, 40), train_size=st.integers(1, 100),
    rungs=st.lists(st.integers(1, 500), max_size=5),
)  # fmt: skip
def test_every_rung_of_a_recipe_is_met(epochs: int, batch: int, train_size: int, rungs: list[int]) -> None:
    """A recipe either is refused or has a step of its own for each rung, with one more to come."""
    try:
        recipe = recipe_of(epochs=epochs, batch=batch, train_size=train_size, rungs=rungs)
    except ConfigError:
        return
    training = Training.__new__(Training)
    training.images, training.recipe = images(train_size, 2), recipe
    steps = [recipe.step_of(rung) for rung in rungs]
    assert recipe.steps == epochs * training.steps_per_epoch
    assert steps == sorted(set(steps))
    assert all(0 < step < recipe.steps for step in steps)


@pytest.mark.gpu
def test_a_proxy_trains_on_a_gpu() -> None:
    device = Device("cuda", "cuda:0", torch.cuda.get_device_name(0))
    recipe = default_recipe("cuda", train_size=2000, held_out=500, epochs=1)
    info = locate("shapes", None)
    train, held_out = load_proxy(info, recipe, 0, device.torch_device)
    assert train_proxy(build(ARCH, 0), ProxyTask(train, held_out, recipe, info, device), 0).error < 1
