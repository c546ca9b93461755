"""Which form each chain trains fastest in on this device: known by timing its parts, each shape once.

The time of a form is a sum over its segments: the three products of each convolution by their fastest algorithms, the
multiplying out of its weights with the gradient, and the interleaves that stay. A `TimingCache` holds the times of
these parts by shape, so that a second network with the same shapes is chosen for at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from igc_nas.arch.plan import Conv, Interleave
from igc_nas.nn.lowering.chain import Chain, Form, Segment, form_macs, forms_of, is_form, layout
from igc_nas.nn.lowering.compose import compose
from igc_nas.nn.lowering.convolution import (
    Algorithm,
    Algorithms,
    Direction,
    forward,
    input_gradient,
    options,
    weight_gradient,
)
from igc_nas.nn.lowering.timing_cache import Times, TimingCache
from igc_nas.nn.lowering.training import ChainForm, plain_form
from igc_nas.nn.network import interleave
from igc_nas.nn.timing import raced, timed

ROUNDS, CAP_S, HOPELESS = 3, 0.02, 1.3
"""Few: an algorithm that is hardly slower than the best costs hardly anything."""
NEVER_MS = 1e9
APART = 64
"""Elements between two images in one noise: other values, at addresses that are aligned alike."""
MOST_ERROR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far an algorithm may be from torch's own, norm-wise; in bfloat16 both are rounded."""


class ChainTuner:
    """Chooses training forms for one device, batch and dtype; what it times goes into `cache`.

    `pause` is called between timings: other processes may be measuring.
    """

    def __init__(
        self,
        cache: TimingCache,
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
        synchronize: Callable[[], None] = lambda: None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.cache = cache
        self.pause = pause
        self.batch = batch
        self.dtype = dtype
        self.device = device
        self.synchronize = synchronize
        self._noise = torch.empty(0, dtype=dtype, device=device)
        self._scope = f"b{batch} {str(dtype).removeprefix('torch.')}"

    def best(self, chain: Chain, first: bool = False) -> ChainForm:
        """The fastest form of a chain; the `first` of a network needs no gradient of its input."""
        least, best = math.inf, None
        for form in sorted(forms_of(chain), key=lambda form: form_macs(chain, form)):
            total, algorithms = self.cost(chain, form, first, limit=least)
            if total < least:
                least, best = total, ChainForm(form, algorithms)
        assert best is not None
        self.cache.save()  # at once: others may meet the same chain
        return best

    def gain(self, chain: Chain, form: ChainForm, first: bool = False) -> tuple[float, float]:
        """Milliseconds of one step of a chain by the sum of its parts: (as it is written, in a form)."""
        return self._step_ms(chain, plain_form(chain), first), self._step_ms(chain, form, first)

    def _step_ms(self, chain: Chain, form: ChainForm, first: bool) -> float:
        total = 0.0
        for position, (segment, use) in enumerate(zip(layout(chain, form.pieces), form.algorithms, strict=True)):
            for direction, offered in self._offered(segment).items():
                if not (direction == "input" and first and position == 0):
                    total += self._product(segment, direction, offered)[getattr(use, direction)]
            total += self._beside(segment)
        return total

    def _beside(self, segment: Segment) -> float:
        """Milliseconds of what a segment does beside its products."""
        return self._composing(segment) + sum(self._interleaving(step, segment) for step in segment.after)

    def allows(self, chain: Chain, form: ChainForm) -> bool:
        """Whether a form (from a file, say) computes the chain, by algorithms that exist for its convolutions."""
        if not is_form(chain, form.pieces) or len(form.algorithms) != len(form.pieces):
            return False
        for segment, use in zip(layout(chain, form.pieces), form.algorithms, strict=True):
            offered = self._offered(segment)
            if any(getattr(use, direction) not in algorithms for direction, algorithms in offered.items()):
                return False
        return True

    def cost(
        self, chain: Chain, form: Form, first: bool = False, limit: float = math.inf
    ) -> tuple[float, tuple[Algorithms, ...]]:
        """(milliseconds of one step, the algorithms) of a form; infinite as soon as it is seen to reach `limit`."""
        total, chosen = 0.0, []
        for position, segment in enumerate(layout(chain, form)):
            best: dict[Direction, Algorithm] = {}
            for direction, offered in self._offered(segment).items():
                if direction == "input" and first and position == 0:
                    continue
                times = self._product(segment, direction, offered)
                best[direction] = min(offered, key=lambda algorithm, times=times: times[algorithm])  # type: ignore[misc]
                total += times[best[direction]]
                if total >= limit:
                    return math.inf, ()
            chosen.append(Algorithms(**best))
            total += self._beside(segment)
        return total, tuple(chosen)

    def _offered(self, segment: Segment) -> dict[Direction, tuple[Algorithm, ...]]:
        height, width = segment.output_size
        return options(segment.as_conv, self.dtype, self.batch * height * width, self.device.type)

    def _product(self, segment: Segment, direction: Direction, offered: tuple[Algorithm, ...]) -> Times:
        c = segment.as_conv
        shape = f"c{c.kernel}s{c.stride}g{c.groups}i{c.in_channels}o{c.out_channels}@{segment.height}x{segment.width}"
        return self.cache.get(
            f"{direction} {shape} {self._scope}", offered, lambda: self._time_product(segment, direction, offered)
        )

    def _time_product(self, segment: Segment, direction: Direction, offered: tuple[Algorithm, ...]) -> Times:
        """The times of the algorithms of a product; one that computes something else is out of the question."""
        conv = segment.as_conv
        x, weight = self._image(conv.in_channels, segment.height, segment.width), self._weight(conv)
        grad = self._image(conv.out_channels, *segment.output_size, start=APART)
        product: Callable[[Algorithm], Tensor] = {
            "forward": partial(forward, x, weight, conv),
            "input": partial(input_gradient, grad, x, weight, conv),
            "weight": partial(weight_gradient, grad, x, weight, conv),
        }[direction]
        results: dict[Algorithm, Tensor] = {}

        def run(algorithm: Algorithm) -> None:
            results[algorithm] = product(algorithm)

        times = self._race({algorithm: partial(run, algorithm) for algorithm in offered})
        wanted = results["conv"].float()
        for algorithm, result in results.items():
            error = float((result.float() - wanted).norm() / wanted.norm())
            if not error < MOST_ERROR[self.dtype]:
                times[algorithm] = NEVER_MS
        return times

    def _composing(self, segment: Segment) -> float:
        """Milliseconds of multiplying out and back; a convolution alone in its own groups has nothing to multiply."""
        if len(segment.steps) == 1 and segment.groups == segment.convs[0].groups:
            return 0.0
        steps = Chain(segment.steps, 0, 0).key.partition("@")[0]
        key = f"compose {steps} /{segment.groups} {self._scope.partition(' ')[2]}"
        return self.cache.get(key, ["both"], lambda: self._time_composing(segment))["both"]

    def _time_composing(self, segment: Segment) -> Times:
        weights = [self._weight(conv).float().requires_grad_() for conv in segment.convs]
        grad = torch.randn_like(compose(segment, weights).detach()).to(self.dtype)

        def both() -> None:
            torch.autograd.grad(compose(segment, weights).to(self.dtype), weights, grad)

        return self._race({"both": both})

    def _interleaving(self, step: Interleave, segment: Segment) -> float:
        """Milliseconds of a permutation of activations, forward and backward."""
        height, width = segment.output_size
        key = f"p{step.groups}of{step.channels}@{height}x{width} {self._scope}"
        return 2 * self.cache.get(key, ["once"], lambda: self._time_interleaving(step, height, width))["once"]

    def _time_interleaving(self, step: Interleave, height: int, width: int) -> Times:
        x = self._image(step.channels, height, width)
        return self._race({"once": lambda: interleave(x, step.groups)})

    def _race(self, runs: Mapping[str, Callable[[], object]]) -> Times:
        self.pause()
        once = {name: timed(run, self.synchronize) for name, run in runs.items()}
        return {name: max(round(ms, 5), 1e-5) for name, ms in raced(once, ROUNDS, CAP_S * len(runs), HOPELESS).items()}

    def _image(self, channels: int, height: int, width: int, start: int = 0) -> Tensor:
        """Noise, from element `start` of all noise on."""
        count = self.batch * height * width * channels
        if self._noise.numel() < count + start:
            self._noise = torch.randn(count + start, device=self.device).to(self.dtype)
        return self._noise[start : start + count].view(self.batch, height, width, channels).permute(0, 3, 1, 2)

    def _weight(self, conv: Conv) -> Tensor:
        shape = conv.out_channels, conv.in_channels // conv.groups, conv.kernel, conv.kernel
        fan_in = shape[1] * conv.kernel * conv.kernel
        weight = torch.randn(shape, device=self.device).div(fan_in**0.5)
        return weight.to(self.dtype).contiguous(memory_format=torch.channels_last)
