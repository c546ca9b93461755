"""A training step that takes nothing from the host, so that a CUDA graph can hold it.

The schedule of the learning rate, the permutation of the epoch and the number of the step lie on the device; the step
itself moves the number on. One step is then one call of the host, `replay`, however many kernels it launches.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from igc_nas.nn.cuda_timing import WARM_UPS, captured

if TYPE_CHECKING:
    from igc_nas.evaluation.training import Training


class CapturedStep:
    """The step of one `Training`. On a GPU it is captured once and replayed, on a CPU it runs without a graph.

    `loss_sum` and `wrong` are the sums over the steps of the epoch so far.
    """

    def __init__(self, training: Training) -> None:
        self.training: Training = weakref.proxy(training)  # it has this step: in a cycle its graph's memory would stay
        device, recipe = training.device.torch_device, training.recipe
        steps = range(max(training.steps_per_epoch * recipe.epochs, WARM_UPS))  # a short training is warmed up, too
        self._rates = torch.tensor([training.learning_rate(step) for step in steps], device=device)
        self._shares = torch.tensor([training.average_share(step) for step in steps], device=device)
        # One element, no scalar: the host would read a scalar index.
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._order = torch.zeros(len(training.images), dtype=torch.int64, device=device)
        self._places = torch.arange(min(recipe.batch, len(training.images)), device=device)
        self.loss_sum = torch.zeros((), device=device)
        self.wrong = torch.zeros((), device=device, dtype=torch.int64)
        self._replay = self._captured() if training.device.kind == "cuda" else self._step

    def begin(self, order: Tensor, done: int, loss_sum: Tensor, wrong: Tensor) -> None:
        """Continue with the permutation of an epoch after `done` steps of the training, with the sums so far."""
        self._order.copy_(order)
        self._at.fill_(done)
        self.loss_sum.copy_(loss_sum)
        self.wrong.copy_(wrong)

    def replay(self) -> None:
        """Train one step. Does not wait for the device."""
        self._replay()

    def _step(self) -> None:
        training = self.training
        for group in training.optimizer.param_groups:
            group["lr"] = self._rates.index_select(0, self._at)[0]
        place = self._at % training.steps_per_epoch * training.recipe.batch
        index = self._order.index_select(0, place + self._places)
        loss, logits, labels = training.loss(index, self._at // training.steps_per_epoch)
        training.descend(loss)
        if training.average:
            training.average.move(self._shares.index_select(0, self._at)[0])
        self.loss_sum += loss.detach()
        self.wrong += (logits.detach().argmax(1) != labels).sum()
        self._at += 1

    def _captured(self) -> Callable[[], None]:
        """The step as a graph. Its warm-up leaves no trace: every tensor that it changes is restored."""
        training = self.training
        training.begin_momentum()
        momentum = [state["momentum_buffer"] for state in training.optimizer.state.values()]
        averaged = training.average.weights if training.average else []
        network = [*training.network.parameters(), *training.network.buffers()]
        changed = [*network, *momentum, *averaged, *training.loss_scale(), self._at, self.loss_sum, self.wrong]
        kept = [(tensor, tensor.detach().clone()) for tensor in changed]
        state = training.generator.get_state()
        step = weakref.proxy(self)  # what is captured belongs to the graph, which belongs to this
        replay = captured(lambda: step._step(), training.device.torch_device, generators=(training.generator,))
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
        training.generator.set_state(state)
        return replay
