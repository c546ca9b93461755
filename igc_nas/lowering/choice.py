"""Which form each chain trains fastest in on this device: known by timing its parts, each shape once.

The time of a form is a sum over its stretches: the three products of each convolution by their fastest algorithms,
the multiplying out of its weights with the gradient, and the interleaves that stay. A `Table` holds the times of these
parts by shape, so that a second network with the same shapes is chosen for at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from igc_nas.lowering.chain import Chain, Form, Stretch, forms_of, layout
from igc_nas.lowering.compose import composed
from igc_nas.lowering.convolution import (
    Algorithm,
    Algorithms,
    Direction,
    forward,
    input_gradient,
    options,
    weight_gradient,
)
from igc_nas.lowering.table import Table, Times
from igc_nas.lowering.training import ChainForm
from igc_nas.network import interleave
from igc_nas.plan import Conv, Interleave
from igc_nas.timing import interleaved, median, timed

ROUNDS, CAP_S = 7, 0.06
MOST_ERROR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far an algorithm may be from torch's own, norm-wise; in bfloat16 both are rounded."""


class Chooser:
    """Chooses training forms for one device, batch and dtype; what it times goes into `table`."""

    def __init__(
        self,
        table: Table,
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.table = table
        self.batch = batch
        self.dtype = dtype
        self.device = device
        self.settle = settle
        self._scope = f"b{batch} {str(dtype).removeprefix('torch.')}"

    def best(self, chain: Chain, first: bool = False) -> ChainForm:
        """The fastest form of a chain; the `first` of a network needs no gradient of its input."""
        ranked = [(*self.cost(chain, form, first), form) for form in forms_of(chain)]
        _, algorithms, form = min(ranked, key=lambda found: found[0])
        return ChainForm(form, algorithms)

    def cost(self, chain: Chain, form: Form, first: bool = False) -> tuple[float, tuple[Algorithms, ...]]:
        """(milliseconds of one step, the algorithms) of a form."""
        total, chosen = 0.0, []
        for position, stretch in enumerate(layout(chain, form)):
            best: dict[Direction, Algorithm] = {}
            for direction, offered in self._offered(stretch).items():
                if direction == "input" and first and position == 0:
                    continue
                times = self._product(stretch, direction, offered)
                best[direction] = min(offered, key=lambda algorithm, times=times: times[algorithm])  # type: ignore[misc]
                total += times[best[direction]]
            chosen.append(Algorithms(**best))
            total += self._composing(stretch) + sum(self._interleaving(step, stretch) for step in stretch.after)
        return total, tuple(chosen)

    def _offered(self, stretch: Stretch) -> dict[Direction, tuple[Algorithm, ...]]:
        height, width = _written(stretch)
        return options(stretch.as_conv, self.dtype, self.batch * height * width, self.device.type)

    def _product(self, stretch: Stretch, direction: Direction, offered: tuple[Algorithm, ...]) -> Times:
        c = stretch.as_conv
        shape = f"c{c.kernel}s{c.stride}g{c.groups}i{c.in_channels}o{c.out_channels}@{stretch.height}x{stretch.width}"
        return self.table.get(
            f"{direction} {shape} {self._scope}", offered, lambda: self._time_product(stretch, direction, offered)
        )

    def _time_product(self, stretch: Stretch, direction: Direction, offered: tuple[Algorithm, ...]) -> Times:
        """The times of the algorithms of a product; one that computes something else is out of the question."""
        conv = stretch.as_conv
        x, weight = self._image(conv.in_channels, stretch.height, stretch.width), self._weight(conv)
        grad = self._image(conv.out_channels, *_written(stretch))
        product: Callable[[Algorithm], Tensor] = {
            "forward": partial(forward, x, weight, conv),
            "input": partial(input_gradient, grad, x, weight, conv),
            "weight": partial(weight_gradient, grad, x, weight, conv),
        }[direction]
        times = self._race({algorithm: partial(product, algorithm) for algorithm in offered})
        wanted = product("conv").float()
        for algorithm in offered:
            error = float((product(algorithm).float() - wanted).norm() / wanted.norm())
            if not error < MOST_ERROR[self.dtype]:
                times[algorithm] = 1e9
        return times

    def _composing(self, stretch: Stretch) -> float:
        """Milliseconds of multiplying out and back; a convolution alone in its own groups has nothing to multiply."""
        if len(stretch.steps) == 1 and stretch.groups == stretch.convs[0].groups:
            return 0.0
        steps = Chain(stretch.steps, 0, 0).key.partition("@")[0]
        key = f"compose {steps} /{stretch.groups} {self._scope.partition(' ')[2]}"
        return self.table.get(key, ["both"], lambda: self._time_composing(stretch))["both"]

    def _time_composing(self, stretch: Stretch) -> Times:
        weights = [self._weight(conv).float().requires_grad_() for conv in stretch.convs]
        grad = torch.randn_like(composed(stretch, weights).detach()).to(self.dtype)

        def both() -> None:
            torch.autograd.grad(composed(stretch, weights).to(self.dtype), weights, grad)

        return self._race({"both": both})

    def _interleaving(self, step: Interleave, stretch: Stretch) -> float:
        """Milliseconds of a permutation of activations, forward and backward."""
        height, width = _written(stretch)
        key = f"p{step.groups}of{step.channels}@{height}x{width} {self._scope}"
        return 2 * self.table.get(key, ["once"], lambda: self._time_interleaving(step, height, width))["once"]

    def _time_interleaving(self, step: Interleave, height: int, width: int) -> Times:
        x = self._image(step.channels, height, width)
        return self._race({"once": lambda: interleave(x, step.groups)})

    def _race(self, runs: Mapping[str, Callable[[], object]]) -> Times:
        once = {name: timed(run, self.settle) for name, run in runs.items()}
        times = interleaved(once, ROUNDS, CAP_S * len(runs))
        return {name: max(round(median(samples), 5), 1e-5) for name, samples in times.items()}

    def _image(self, channels: int, height: int, width: int) -> Tensor:
        x = torch.randn(self.batch, channels, height, width, device=self.device)
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _weight(self, conv: Conv) -> Tensor:
        shape = conv.out_channels, conv.in_channels // conv.groups, conv.kernel, conv.kernel
        fan_in = shape[1] * conv.kernel * conv.kernel
        weight = torch.randn(shape, device=self.device).div(fan_in**0.5)
        return weight.to(self.dtype).contiguous(memory_format=torch.channels_last)


def _written(stretch: Stretch) -> tuple[int, int]:
    stride = stretch.as_conv.stride
    return -(-stretch.height // stride), -(-stretch.width // stride)
