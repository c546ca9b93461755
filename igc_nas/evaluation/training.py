"""Training: the short proxy that scores a candidate, and the epochs that both it and a long training are made of.

SGD with Nesterov momentum and a one-cycle learning rate; weights, BN statistics and the optimiser stay in float32, the
products run in the recipe's dtype. There is no wait for the device within an epoch.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.data.datasets import DatasetInfo
from igc_nas.errors import DivergedError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.images import Images
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.training import Forward, LoweredNetwork, factored_forward
from igc_nas.study.records import Epoch, Rung, Score, Unfinished
from igc_nas.study.spec import Recipe, Schedule

RECALIBRATION_IMAGES = 1024
RUNG_IMAGES = 2000
"""Held-out images that a rung is scored on: what it decides needs less than what the end reports."""

Pause = Callable[[], None]


class Training:
    """One network in training: `epoch` after `epoch`, from a seed alone.

    `forward` runs the network, where it runs in another form than as it is written (`igc_nas.nn.lowering`). `pause` is
    called between steps (other processes may be measuring). Everything random comes from one generator, so `state` and
    `restore` continue a training exactly.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Images,
        recipe: Schedule,
        device: Device,
        seed: int,
        forward: Forward | None = None,
    ) -> None:
        self.device = device
        self.network = network.to(device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward = forward or factored_forward(self.network, device.kind, getattr(torch, recipe.dtype))
        self.images = images
        self.recipe = recipe
        self.done = 0
        self.generator = torch.Generator(device.torch_device).manual_seed(seed)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=True,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; one where the images are fewer than a batch."""
        return max(1, len(self.images) // self.recipe.batch)

    def epoch(self, pause: Pause = lambda: None, after_step: Callable[[int], None] = lambda _: None) -> Epoch:
        """Train one epoch; `after_step` hears how many steps are done in all.

        Raises `DivergedError` where the loss is not finite at the end.
        """
        self.network.train()
        loss_sum = torch.zeros((), device=self.device.torch_device)
        wrong = torch.zeros((), device=self.device.torch_device, dtype=torch.int64)
        seen, before = 0, self.done * self.steps_per_epoch
        for step, index in enumerate(self._batches(), start=before):
            pause()
            loss, logits = self._step(step, index)
            loss_sum += loss
            wrong += (logits.argmax(1) != self.images.labels[index]).sum()
            seen += len(index)
            after_step(step + 1)
        self.done += 1
        loss_mean = loss_sum.item() / self.steps_per_epoch
        if not math.isfinite(loss_mean):
            raise DivergedError(f"the training loss is {loss_mean} after epoch {self.done}", "lower lr in the recipe")
        return Epoch(samples=self.done * seen, loss=loss_mean, train_error=wrong.item() / seen)

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images), generator=self.generator, device=self.images.labels.device)
        for step in range(self.steps_per_epoch):
            yield order[step * self.recipe.batch : (step + 1) * self.recipe.batch]

    def _step(self, step: int, index: Tensor) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = one_cycle(step, self.steps_per_epoch * self.recipe.epochs, self.recipe)
        batch = self.images.augmented(index, self.recipe.crop, self.recipe.flip, self.generator)
        logits = self.forward(batch)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), self.images.labels[index], label_smoothing=smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), logits.detach()

    @torch.no_grad()
    def recalibrate(self, pause: Pause = lambda: None, images: int | None = RECALIBRATION_IMAGES) -> None:
        """Set BN's statistics to the mean over `images` training images (None: all), under the weights as they stand.

        Running averages lag behind weights that move fast, and a short training ends while they do.
        """
        norms = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d)]
        usual = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        self.network.train()
        for index in self.images.in_order(self.recipe.batch, images):
            pause()
            self.forward(self.images.batch(index))
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum

    @torch.inference_mode()
    def evaluate(self, images: Images, pause: Pause = lambda: None, count: int | None = None) -> tuple[float, float]:
        """(error, mean loss) on the first `count` of `images` (None: all), in evaluation mode."""
        count = len(images) if count is None else min(count, len(images))
        self.network.eval()
        wrong = torch.zeros((), device=self.device.torch_device, dtype=torch.int64)
        loss = torch.zeros((), device=self.device.torch_device)
        for index in images.in_order(max(256, self.recipe.batch), count):
            pause()
            logits = self.forward(images.batch(index)).float()
            labels = images.labels[index]
            wrong += (logits.argmax(1) != labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
        return wrong.item() / count, loss.item() / count

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, as tensors."""
        tensors = {f"model.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        return tensors | {"generator": self.generator.get_state(), "done": torch.tensor(self.done)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to a `state`. Raises `KeyError`, `TypeError`, `ValueError`, `RuntimeError` for another training's."""
        if tensors["done"].dtype != torch.int64:
            raise TypeError("the number of its epoch is no integer")
        done = int(tensors["done"])
        if not 0 <= done <= self.recipe.epochs:
            raise ValueError(f"it is after epoch {done} of {self.recipe.epochs}")
        model = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
        self.network.load_state_dict(model)
        for name, parameter in self.network.named_parameters():
            if done and self.recipe.momentum:
                buffer = tensors[f"momentum.{name}"]
                if (buffer.shape, buffer.dtype) != (parameter.shape, parameter.dtype):
                    raise ValueError(f"momentum.{name} is of another shape or type than its weight")
                # In the weight's own strides: fused SGD goes through both as they lie in memory.
                self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).detach().copy_(buffer)
        self.generator.set_state(tensors["generator"].cpu())
        self.done = done


def one_cycle(step: int, steps: int, recipe: Schedule) -> float:
    """Learning rate of step `step` of `steps`: a line up to `lr`, then a cosine down to 0 (Smith and Topin 2017)."""
    rise = max(1.0, recipe.warmup * steps)
    if step < rise:
        return recipe.lr * (step + 1) / (rise + 1)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


class Average:
    """An exponential average of a network's weights, updated after every step.

    The decay grows from nothing to `decay`, so that the first weights, which know nothing, are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = list(network.parameters())
        self._average = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after `steps` steps."""
        decay = min(self.decay, steps / (steps + 9))
        torch._foreach_lerp_(self._average, [w.detach() for w in self._weights], 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the average for its weights; then its own again."""
        own = [weight.detach().clone() for weight in self._weights]
        self._set(self._average)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)


class _Stop(Exception):  # noqa: N818 - no error: it unwinds the epoch
    """Whoever watches has seen enough."""


class ProxyTraining:
    """One proxy training with its rungs.

    A score is that of the weight average (where the recipe has one) with BN's statistics taken anew: an average's own
    statistics are no one's. Scoring changes nothing of the training, which goes on as if it had not been.
    """

    def __init__(self, training: Training, held_out: Images, recipe: Recipe, pause: Pause) -> None:
        self.training = training
        self.held_out = held_out
        self.recipe = recipe
        self.pause = pause
        self.average = Average(training.network, recipe.average) if recipe.average else None
        self.rungs: list[Rung] = []
        self.curve: list[Epoch] = []
        batch = min(recipe.batch, len(training.images))
        self._rung_after = {math.ceil(samples / batch): samples for samples in recipe.rungs}

    def run(self, on_epoch: Callable[[Epoch], None], go_on: Callable[[Rung], bool]) -> Rung | None:
        """Train to the end and score it; None where `go_on` said no at a rung. Raises `DivergedError`."""

        def after_step(steps: int) -> None:
            if self.average:
                self.average.update(steps)
            samples = self._rung_after.get(steps)
            if samples is not None and steps < self.recipe.epochs * self.training.steps_per_epoch:
                self.rungs.append(self.score(samples, RUNG_IMAGES))
                if not go_on(self.rungs[-1]):
                    raise _Stop

        try:
            for _ in range(self.recipe.epochs):
                self.curve.append(self.training.epoch(self.pause, after_step))
                on_epoch(self.curve[-1])
        except _Stop:
            return None
        return self.score(self.curve[-1].samples)

    def score(self, samples: int, images: int | None = None) -> Rung:
        """Score the network as it stands after `samples` on the first `images` of the held-out ones (None: all).

        Raises `DivergedError`.
        """
        training = self.training
        buffers = [(buffer, buffer.detach().clone()) for buffer in training.network.buffers()]
        with self.average.in_place() if self.average else contextlib.nullcontext():
            training.recalibrate(self.pause)
            error, loss = training.evaluate(self.held_out, self.pause, images)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        training.network.train()
        if not math.isfinite(loss):
            raise DivergedError(f"the held-out loss is {loss}", "lower lr in the recipe")
        return Rung(samples=samples, error=error, loss=loss)


def train_proxy(
    network: nn.Module,
    train: Images,
    held_out: Images,
    recipe: Recipe,
    info: DatasetInfo,
    device: Device,
    seed: int,
    pause: Pause = lambda: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    lowered: LoweredNetwork | None = None,
    go_on: Callable[[Rung], bool] = lambda _: True,
) -> Score | Unfinished:
    """Train a network by the recipe and score it on held-out images; `lowered` runs it where it does not run factored.

    `go_on` is asked at each rung. Raises `DivergedError`.
    """
    started = time.perf_counter()
    proxy = ProxyTraining(Training(network, train, recipe, device, seed, lowered), held_out, recipe, pause)
    end = proxy.run(on_epoch, go_on)
    train_s = round(time.perf_counter() - started, 3)
    if end is None:
        return Unfinished(rungs=tuple(proxy.rungs), curve=tuple(proxy.curve), train_s=train_s)
    return Score(
        error=end.error,
        loss=end.loss,
        held_out=len(held_out),
        samples=end.samples,
        curve=tuple(proxy.curve),
        rungs=tuple(proxy.rungs),
        train_s=train_s,
        dtype=recipe.dtype,
        form="factored" if lowered is None else lowered.form,
        dataset=info.label,
        dataset_sha256=info.sha256,
        conditions=conditions_of(device),
    )
