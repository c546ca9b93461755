"""Training: single epochs, for a proxy training and for a retraining; and the proxy that scores a candidate.

SGD with Nesterov momentum and a one-cycle learning rate. Weights, BN statistics and the optimiser state are float32,
convolutions run in the recipe's dtype. Within an epoch the CPU never waits for the GPU.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.data.datasets import DatasetInfo
from igc_nas.errors import DivergedError
from igc_nas.evaluation.captured_step import CapturedStep
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.images import Images
from igc_nas.nn.cuda_timing import trains_in_graphs
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.network_tuner import TrainingForm
from igc_nas.nn.lowering.training import Forward, factored_forward
from igc_nas.study.plan import RECALIBRATION_IMAGES, RUNG_IMAGES
from igc_nas.study.records import Epoch, Rung, Score, Unfinished
from igc_nas.study.spec import Recipe, Schedule

Pause = Callable[[], None]
"""Called between steps, so that other processes can measure latencies meanwhile."""


@dataclass(frozen=True)
class _OpenEpoch:
    """An epoch that has begun: the generator's state before its permutation, its steps so far, and their sums."""

    generator: Tensor
    step: int
    loss_sum: Tensor
    wrong: Tensor
    seen: int

    def tensors(self) -> dict[str, Tensor]:
        """Its part of a `Training.state`."""
        counts = torch.tensor([self.step, self.seen])
        return {
            "epoch.generator": self.generator,
            "epoch.counts": counts,
            "epoch.loss_sum": self.loss_sum,
            "epoch.wrong": self.wrong,
        }


class SGD(torch.optim.SGD):
    """PyTorch's SGD without what makes ready for torch.compile.

    Its decorators load TorchDynamo and SymPy, compiled or not, which takes a worker two seconds to start.
    """

    add_param_group = unwrap(torch.optim.SGD.add_param_group)
    zero_grad = unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class Training:
    """The training of one network, epoch by epoch.

    `forward` runs the network in another form (`igc_nas.nn.lowering`); None: factored. All randomness comes from one
    generator seeded with `seed`, so `state` and `restore` continue a training bit for bit, from between two epochs or
    from within one (after any step). On a GPU the step is a CUDA graph, unless `capture` is
    False or trainings use none (`trains_in_graphs`).
    """

    def __init__(
        self,
        network: nn.Module,
        images: Images,
        recipe: Schedule,
        device: Device,
        seed: int,
        forward: Forward | None = None,
        *,
        capture: bool = True,
    ) -> None:
        self.device = device
        self.network = network.to(device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward = forward or factored_forward(self.network, device.kind, getattr(torch, recipe.dtype))
        self.images = images
        self.recipe = recipe
        self.done = 0
        of_flips = torch.Generator(device.torch_device).manual_seed(seed + 1)
        self._mirrored_first = torch.randint(
            2, (len(images),), generator=of_flips, device=device.torch_device, dtype=torch.uint8
        )
        """For alternating flips: 1 for the images that are mirrored in the first epoch, in the third, ..."""
        self._moved: Images | None = None
        """The images as this epoch has them, where all are augmented at its start. A captured step reads them."""
        self.generator = torch.Generator(device.torch_device).manual_seed(seed)
        self.optimizer = SGD(
            self._parameter_groups(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=True,
        )
        self.average = Average(self.network, recipe.average) if recipe.average else None
        device.check_trains_in(recipe.dtype)
        self.scaler = torch.amp.GradScaler(device.kind, enabled=recipe.dtype == "float16")
        if self.scaler.is_enabled():
            self.begin_momentum()
        self._open: _OpenEpoch | None = None
        """The epoch that has begun and not ended."""
        # Mixup is not captured: its Beta share is drawn by rejection.
        self._is_captured = capture and device.kind == "cuda" and not recipe.mixup and trains_in_graphs()
        self._captured: CapturedStep | None = None

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters, or those of weight decay and those without (BN's gamma and beta, biases)."""
        parameters = list(self.network.parameters())
        if self.recipe.decay_norms:
            return [{"params": parameters}]
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches per epoch; 1 where there are fewer images than a batch."""
        return max(1, len(self.images) // self.recipe.batch)

    @property
    def batch(self) -> int:
        """Images of a step: the recipe's, or all of them if there are fewer."""
        return min(self.recipe.batch, len(self.images))

    @property
    def running_loss(self) -> float | None:
        """The mean loss of the open epoch so far; None between two epochs. Waits for the device."""
        return self._open.loss_sum.item() / self._open.step if self._open else None

    @property
    def running_error(self) -> float | None:
        """The training error of the open epoch so far; None between two epochs. Waits for the device."""
        return self._open.wrong.item() / self._open.seen if self._open else None

    @property
    def steps_done(self) -> int:
        """Steps since the start of the training, those of an open epoch included."""
        return self.done * self.steps_per_epoch + (self._open.step if self._open else 0)

    def epoch(self, pause: Pause = lambda: None, after_step: Callable[[int], None] = lambda _: None) -> Epoch:
        """Train one epoch, or the rest of one that `restore` has opened.

        `after_step` is called with the number of steps done since the start of the training; it may take the `state`.
        Raises `DivergedError` if the mean loss of the epoch is not finite, `ValueError` behind the recipe's last epoch:
        its schedule says nothing of further steps, and a captured step would read behind its end.
        """
        if self.done >= self.recipe.epochs:
            raise ValueError(f"the training has ended: it is of {self.recipe.epochs} epochs")
        self.network.train()
        order, now = self._begin_epoch()
        first = self.done * self.steps_per_epoch
        advance = self._replaying(order, now) if self._is_captured else self._step
        for place in range(now.step, self.steps_per_epoch):
            pause()
            self._open = now = advance(place, order, now)
            after_step(first + place + 1)
        self._open = None
        self.done += 1
        loss_mean = now.loss_sum.item() / self.steps_per_epoch
        if not math.isfinite(loss_mean):
            raise DivergedError(f"the training loss is {loss_mean} after epoch {self.done}", "lower lr in the recipe")
        return Epoch(samples=self.done * now.seen, loss=loss_mean, train_error=now.wrong.item() / now.seen)

    def _begin_epoch(self) -> tuple[Tensor, _OpenEpoch]:
        """(the permutation of the epoch, its progress): of the open epoch, or of a new one."""
        device, count = self.images.labels.device, len(self.images)
        if self._open is not None:
            before = torch.Generator(device)
            before.set_state(self._open.generator.cpu())
            order = torch.randperm(count, generator=before, device=device)
            self._augment_epoch(before)
            return order, self._open
        begun = _OpenEpoch(
            generator=self.generator.get_state(),
            step=0,
            loss_sum=torch.zeros((), device=self.device.torch_device),
            wrong=torch.zeros((), device=self.device.torch_device, dtype=torch.int64),
            seen=0,
        )
        order = torch.randperm(count, generator=self.generator, device=device)
        self._augment_epoch(self.generator)
        return order, begun

    def _augment_epoch(self, generator: torch.Generator) -> None:
        """Augment all images, by a recipe that does so at the start of each epoch."""
        if self.recipe.augment == "epoch":
            every = torch.arange(len(self.images), device=self.images.labels.device)
            moved = self.images.moved(self.recipe.crop, self._flips(every, self.done), generator)
            if self._moved is None:
                self._moved = moved
            else:
                self._moved.pixels.copy_(moved.pixels)

    def _flips(self, index: Tensor, epoch: int | Tensor) -> bool | Tensor:
        """Whether images are mirrored in an epoch; True: at random."""
        if self.recipe.flip != "alternating":
            return self.recipe.flip
        return (self._mirrored_first[index] + epoch) % 2 == 1

    def _replaying(self, order: Tensor, now: _OpenEpoch) -> Callable[[int, Tensor, _OpenEpoch], _OpenEpoch]:
        """`_step` by replays of the captured step, which holds the sums of the epoch."""
        step = self._captured = self._captured or CapturedStep(self)
        step.begin(order, self.done * self.steps_per_epoch + now.step, now.loss_sum, now.wrong)
        batch = min(self.recipe.batch, len(self.images))

        def replay(place: int, order: Tensor, now: _OpenEpoch) -> _OpenEpoch:
            step.replay()
            return replace(now, step=place + 1, loss_sum=step.loss_sum, wrong=step.wrong, seen=now.seen + batch)

        return replay

    def _step(self, place: int, order: Tensor, now: _OpenEpoch) -> _OpenEpoch:
        step, recipe = self.done * self.steps_per_epoch + place, self.recipe
        index = order[place * recipe.batch : (place + 1) * recipe.batch]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        loss, logits, labels = self.loss(index, self.done)
        self.descend(loss)
        if self.average:
            self.average.update(step + 1)
        return replace(
            now,
            step=place + 1,
            loss_sum=now.loss_sum + loss.detach(),
            wrong=now.wrong + (logits.detach().argmax(1) != labels).sum(),
            seen=now.seen + len(index),
        )

    def descend(self, loss: Tensor) -> None:
        """One step of the optimiser. In float16 the loss is scaled, and a step with an overflow changes no weight."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def begin_momentum(self) -> None:
        """Make the momentum of each parameter that has none: zeros, as momentum * 0 + gradient is the first step's.

        Fused SGD would make it uninitialised, and leave it so in a first step with an overflow.
        """
        for parameter in self.network.parameters():
            if self.recipe.momentum and "momentum_buffer" not in self.optimizer.state[parameter]:
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter).detach()

    def loss_scale(self) -> tuple[Tensor, ...]:
        """The tensors of the loss scaling, which the step changes; none where the loss is not scaled."""
        if not self.scaler.is_enabled():
            return ()
        self.scaler.scale(torch.zeros((), device=self.device.torch_device))  # makes them, if they are not yet
        scale, growth = self.scaler._scale, self.scaler._growth_tracker  # no public access but by a copy to the host
        assert scale is not None
        assert growth is not None
        return scale, growth

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step of the training."""
        return one_cycle(step, self.steps_per_epoch * self.recipe.epochs, self.recipe)

    def average_share(self, step: int) -> float:
        """The share of the new weights in their average after a step of the training; 1 without an average."""
        return self.average.share(step + 1) if self.average else 1.0

    def loss(self, index: Tensor, epoch: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, logits, labels) of a batch of augmented images in an epoch (the first is 0)."""
        recipe, labels = self.recipe, self.images.labels[index]
        crop, flip = (recipe.crop, self._flips(index, epoch)) if self._moved is None else (0, False)
        images = self._moved or self.images
        batch = images.augmented(index, crop, flip, self.generator, cutout=recipe.cutout)
        if recipe.mixup:
            batch, others, share = mixed_up(batch, labels, recipe.mixup, self.generator)
        logits = self.forward(batch)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        if recipe.mixup:
            other = F.cross_entropy(logits.float(), others, label_smoothing=recipe.label_smoothing)
            loss = torch.lerp(other, loss, share)
        return loss, logits, labels

    @torch.no_grad()
    def recalibrate(self, pause: Pause = lambda: None, images: int | None = RECALIBRATION_IMAGES) -> None:
        """Recompute the BN statistics as means over `images` training images (None: all) with the current weights.

        The running averages are of earlier weights; at the end of a short training these differ much from the last.
        """
        norms = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d)]
        usual = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
        self.network.train()
        batch, seen = self.recipe.batch, 0
        if images is not None and self.device.kind == "cuda" and images > batch:
            images -= images % batch  # a smaller last batch would have cuDNN search anew
        for index in self.images.in_order(batch, images):
            if seen and len(index) == 1 < batch:
                break  # one image has no variance where a map is one pixel
            pause()
            seen += len(index)
            for norm in norms:  # a cumulative average; a momentum of None would count batches, and wait for the GPU
                norm.momentum = len(index) / seen
            self.forward(self.images.batch(index))
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum

    @torch.inference_mode()
    def evaluate(self, images: Images, pause: Pause = lambda: None, count: int | None = None) -> tuple[float, float]:
        """(error rate, mean loss) on the first `count` of `images` (None: all), in evaluation mode."""
        count = len(images) if count is None else min(count, len(images))
        self.network.eval()
        wrong = torch.zeros((), device=self.device.torch_device, dtype=torch.int64)
        loss = torch.zeros((), device=self.device.torch_device)
        for index in images.in_order(self._evaluation_batch(count), count):
            pause()
            logits = self.forward(images.batch(index)).float()
            labels = images.labels[index]
            wrong += (logits.argmax(1) != labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
        return wrong.item() / count, loss.item() / count

    def score(self, images: Images, pause: Pause = lambda: None, count: int | None = None) -> tuple[float, float]:
        """(error rate, mean loss) on the first `count` of `images` (None: all), as a final score would be taken now.

        It is of the averaged weights, if the recipe averages, with recomputed BN statistics: the running ones belong to
        the weights of single steps. The training's state is left unchanged. Raises `DivergedError` if the loss is not
        finite.
        """
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.network.buffers()]
        with self.average.in_place() if self.average else contextlib.nullcontext():
            self.recalibrate(pause)
            error, loss = self.evaluate(images, pause, count)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        self.network.train()
        if not math.isfinite(loss):
            raise DivergedError(f"the held-out loss is {loss}", "lower lr in the recipe")
        return error, loss

    def _evaluation_batch(self, count: int) -> int:
        """Images per batch of an evaluation. On a GPU one that divides `count` where there is one: cuDNN's benchmark
        mode would search anew for every convolution of a smaller last batch."""
        most = max(256, self.recipe.batch)
        if self.device.kind == "cpu":
            return most
        return next((size for size in range(most, most // 4, -1) if count % size == 0), most)

    def adopt_average(self) -> None:
        """Give the network the averaged weights, if the recipe averages: for the end of a training."""
        if self.average:
            self.average.adopt()

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs, as tensors.

        Weights and BN statistics, momentum, averaged weights, the generator's state, the number of finished epochs, and
        the position within an open epoch.
        """
        tensors = {f"model.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        if self.average:
            tensors |= {f"average.{name}": value for name, value in self._averaged().items()}
        tensors |= {f"loss_scale.{i}": tensor for i, tensor in enumerate(self.loss_scale())}
        if self.recipe.flip == "alternating":
            tensors["mirrored_first"] = self._mirrored_first
        tensors |= {"generator": self.generator.get_state(), "done": torch.tensor(self.done)}
        return tensors | (self._open.tensors() if self._open else {})

    def _averaged(self) -> dict[str, Tensor]:
        """The averaged weights by the names of the parameters."""
        names = [name for name, _ in self.network.named_parameters()]
        return dict(zip(names, self.average.weights, strict=True)) if self.average else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Load a `state`. Raises `KeyError`, `TypeError`, `ValueError` or `RuntimeError` for another training's."""
        if tensors["done"].dtype != torch.int64:
            raise TypeError("its epoch number is not an integer")
        done = int(tensors["done"])
        if not 0 <= done <= self.recipe.epochs:
            raise ValueError(f"it is after epoch {done} of {self.recipe.epochs}")
        model = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
        self.network.load_state_dict(model)
        opened = self._opened(tensors, done)
        for name, parameter in self.network.named_parameters():
            if (done or opened) and self.recipe.momentum:
                # Fused SGD walks weight and momentum in memory order: the buffer must have the weight's strides.
                buffer = torch.empty_like(parameter).detach()
                self.optimizer.state[parameter]["momentum_buffer"] = _copied(tensors, f"momentum.{name}", buffer)
        for name, weight in self._averaged().items():
            _copied(tensors, f"average.{name}", weight)
        for i, tensor in enumerate(self.loss_scale()):
            _copied(tensors, f"loss_scale.{i}", tensor)
        if self.recipe.flip == "alternating":
            _copied(tensors, "mirrored_first", self._mirrored_first)
        self.generator.set_state(tensors["generator"].cpu())
        self.done, self._open = done, opened
        self._captured = None  # its graph writes to the tensors that were replaced

    def _opened(self, tensors: dict[str, Tensor], done: int) -> _OpenEpoch | None:
        """The epoch that a state was taken in; None if it was taken between two."""
        if "epoch.counts" not in tensors:
            return None
        step, seen = (int(count) for count in tensors["epoch.counts"])
        if done == self.recipe.epochs or not 0 < step <= self.steps_per_epoch or seen != step * self.batch:
            raise ValueError(f"it is after step {step} of an epoch of {self.steps_per_epoch}")
        device = self.device.torch_device
        return _OpenEpoch(
            generator=tensors["epoch.generator"].cpu(),
            step=step,
            loss_sum=_copied(tensors, "epoch.loss_sum", torch.zeros((), device=device)),
            wrong=_copied(tensors, "epoch.wrong", torch.zeros((), device=device, dtype=torch.int64)),
            seen=seen,
        )


def _copied(tensors: dict[str, Tensor], name: str, to: Tensor) -> Tensor:
    """`to` with the values of tensor `name`. Raises `KeyError` or `ValueError` if it is missing or does not fit."""
    found = tensors[name]
    if (found.shape, found.dtype) != (to.shape, to.dtype):
        raise ValueError(f"{name} has another shape or dtype than its weight")
    return to.copy_(found)


def mixed_up(batch: Tensor, labels: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(images, the labels of the second images, the share of the first ones), as Zhang et al. 2018 (mixup) mix a batch.

    Each image is mixed with another one of the batch; the share, of Beta(`alpha`, `alpha`), is the batch's.
    """
    # In float32 both gammas of a small alpha are often the smallest number there is, and their share one half.
    gammas = torch._standard_gamma(torch.full((2,), alpha, device=batch.device, dtype=torch.float64), generator)
    share = (gammas[0] / gammas.sum()).float()
    order = torch.randperm(len(batch), generator=generator, device=batch.device)
    return torch.lerp(batch[order], batch, share), labels[order], share


def one_cycle(step: int, steps: int, recipe: Schedule) -> float:
    """Learning rate of step `step` of `steps`: a line up to `lr`, then a cosine down to 0 (Smith and Topin 2017)."""
    rise = max(1.0, recipe.warmup * steps)
    if step < rise:
        return recipe.lr * (step + 1) / (rise + 1)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


class Average:
    """An exponential moving average of a network's weights, updated after every step.

    The decay after t steps is min(`decay`, t / (t + 9)): a constant one would keep the random first weights too long.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = list(network.parameters())
        self.weights = [weight.detach().clone() for weight in self._weights]
        """The averaged weights, in the order of the parameters."""

    def share(self, steps: int) -> float:
        """The share of the current weights, the result of the `steps`-th step, in their new average."""
        return 1 - min(self.decay, steps / (steps + 9))

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Average in the current weights, the result of the `steps`-th step."""
        torch._foreach_lerp_(self.weights, [w.detach() for w in self._weights], self.share(steps))

    @torch.no_grad()
    def move(self, share: Tensor) -> None:
        """Like `update`, with the share on the device."""
        difference = torch._foreach_sub([w.detach() for w in self._weights], self.weights)
        torch._foreach_mul_(difference, share)
        torch._foreach_add_(self.weights, difference)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context the network has the averaged weights, afterwards its own again."""
        own = [weight.detach().clone() for weight in self._weights]
        self.adopt()
        try:
            yield
        finally:
            self._set(own)

    def adopt(self) -> None:
        """Give the network the averaged weights."""
        self._set(self.weights)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)


class _Pruned(Exception):  # noqa: N818 - not an error: it unwinds the epoch
    """`go_on` returned False at a rung."""


class ProxyTraining:
    """One proxy training with its rungs, each scored by `Training.score`."""

    def __init__(
        self, training: Training, held_out: Images, recipe: Recipe, pause: Pause, rung_images: int = RUNG_IMAGES
    ) -> None:
        self.training = training
        self.held_out = held_out
        self.recipe = recipe
        self.pause = pause
        self.rung_images = rung_images
        self.rungs: list[Rung] = []
        self.curve: list[Epoch] = []
        batch = min(recipe.batch, len(training.images))
        self._rung_after = {math.ceil(samples / batch): samples for samples in recipe.rungs}

    def run(self, on_epoch: Callable[[Epoch], None], go_on: Callable[[Rung], bool]) -> Rung | None:
        """Train to the end and score it; None if `go_on` returned False at a rung. Raises `DivergedError`."""

        def after_step(steps: int) -> None:
            samples = self._rung_after.get(steps)
            if samples is not None and steps < self.recipe.epochs * self.training.steps_per_epoch:
                self.rungs.append(self.score(samples, self.rung_images))
                if not go_on(self.rungs[-1]):
                    raise _Pruned

        try:
            for _ in range(self.recipe.epochs):
                self.curve.append(self.training.epoch(self.pause, after_step))
                on_epoch(self.curve[-1])
        except _Pruned:
            return None
        return self.score(self.curve[-1].samples)

    def score(self, samples: int, images: int | None = None) -> Rung:
        """Score the current weights, reached after `samples` images, on the first `images` held-out ones (None: all).

        Raises `DivergedError` if the loss is not finite.
        """
        error, loss = self.training.score(self.held_out, self.pause, images)
        return Rung(samples=samples, error=error, loss=loss)


@dataclass(frozen=True)
class ProxyTask:
    """What all proxy trainings of a study have in common."""

    train: Images
    held_out: Images
    recipe: Recipe
    info: DatasetInfo
    device: Device
    pause: Pause = lambda: None


def train_proxy(
    network: nn.Module,
    task: ProxyTask,
    seed: int,
    lowered: TrainingForm | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    go_on: Callable[[Rung], bool] = lambda _: True,
) -> Score | Unfinished:
    """Train a network by the task's recipe and score it on the held-out images.

    `lowered` runs the network; None: factored. `go_on` is called with the score of each rung: False ends the training.
    Raises `DivergedError`.
    """
    started = time.perf_counter()
    recipe = task.recipe
    training = Training(network, task.train, recipe, task.device, seed, lowered)
    proxy = ProxyTraining(training, task.held_out, recipe, task.pause)
    end = proxy.run(on_epoch, go_on)
    train_s = round(time.perf_counter() - started, 3)
    if end is None:
        return Unfinished(rungs=tuple(proxy.rungs), curve=tuple(proxy.curve), train_s=train_s)
    return Score(
        error=end.error,
        loss=end.loss,
        held_out=len(task.held_out),
        samples=end.samples,
        curve=tuple(proxy.curve),
        rungs=tuple(proxy.rungs),
        train_s=train_s,
        dtype=recipe.dtype,
        form="factored" if lowered is None else lowered.form,
        dataset=task.info.label,
        dataset_sha256=task.info.sha256,
        conditions=conditions_of(task.device),
    )
