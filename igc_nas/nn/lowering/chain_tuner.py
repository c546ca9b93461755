"""The form and the algorithms with which each chain trains fastest on this device, found by timing its parts.

The time of a form is the sum over its segments of: the three products of the convolution, each by its fastest
algorithm; multiplying out the weights and its gradient; and the interleaves that remain. A `TimingCache` holds these
times by shape, so a network of known shapes is tuned without timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from igc_nas.arch.layers import Conv, Interleave
from igc_nas.nn.cuda_timing import event_timer, trains_in_graphs
from igc_nas.nn.lowering.chain import Chain, Form, Segment, form_macs, forms_of, is_form, layout, steps_key
from igc_nas.nn.lowering.compose import compose
from igc_nas.nn.lowering.convolution import Algorithm, Algorithms, Direction, options, product
from igc_nas.nn.lowering.timing_cache import Times, TimingCache
from igc_nas.nn.lowering.training import ChainForm, plain_form
from igc_nas.nn.network import interleave
from igc_nas.nn.timing import NEVER_MS, raced, timed

ROUNDS, CAP_S, HOPELESS = 3, 0.02, 1.3
"""Few rounds are enough: to confuse two algorithms of nearly the same speed costs hardly any time."""
APART = 64
"""Elements between two images cut from the same noise: their values differ, and both are aligned to cache lines."""
MOST_ERROR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-2}
"""The largest relative error (of the norm) of an algorithm against `conv`; in bfloat16 both are rounded."""

Compute = Callable[[Direction, Algorithm, Tensor, Tensor, Tensor, Conv], Tensor]
"""(product, algorithm, x, weight, gradient of the output, convolution) -> the product; see `convolution.product`."""
Pick = Callable[[int, Direction, Mapping[Algorithm, float]], Algorithm]
"""(segment's index, product, milliseconds of each algorithm) -> the algorithm."""


class ChainTuner:
    """Finds the fastest training form of chains for one device, batch size and dtype. Times are kept in `cache`.

    `pause` is called before each timing, so that other processes can measure in between. `compute` computes a product
    by an algorithm.
    """

    def __init__(
        self,
        cache: TimingCache,
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
        synchronize: Callable[[], None] = lambda: None,
        pause: Callable[[], None] = lambda: None,
        compute: Compute = product,
    ) -> None:
        self.cache = cache
        self.pause = pause
        self.batch = batch
        self.dtype = dtype
        self.device = device
        self.synchronize = synchronize
        self._compute = compute
        self._noise = torch.empty(0, dtype=dtype, device=device)
        self._dtype_name = str(dtype).removeprefix("torch.")
        self._scope = f"b{batch} {self._dtype_name}"

    def best(self, chain: Chain, first: bool = False) -> ChainForm:
        """The fastest form of a chain. The `first` chain of a network needs no gradient of its input.

        The times are saved at once, because another worker may need those of the same chain.
        """
        least, best = math.inf, None
        with self.cache:
            for form in sorted(forms_of(chain), key=lambda form: form_macs(chain, form)):
                total, algorithms = self.cost(chain, form, first, limit=least)
                if total < least:
                    least, best = total, ChainForm(form, algorithms)
        assert best is not None
        return best

    def cost(
        self, chain: Chain, form: Form, first: bool = False, limit: float = math.inf
    ) -> tuple[float, tuple[Algorithms, ...]]:
        """(milliseconds of a training step, the fastest algorithms) of a form; (inf, ()) if they reach `limit`."""

        def fastest(position: int, direction: Direction, times: Mapping[Algorithm, float]) -> Algorithm:
            return min(times, key=lambda algorithm: times[algorithm])

        return self._step(chain, form, fastest, first, limit)

    def gain(self, chain: Chain, form: ChainForm, first: bool = False) -> tuple[float, float]:
        """Milliseconds of a training step of a chain: (factored by PyTorch's algorithms, by `form`)."""
        return self._step_ms(chain, plain_form(chain), first), self._step_ms(chain, form, first)

    def _step_ms(self, chain: Chain, form: ChainForm, first: bool) -> float:
        def pick(position: int, direction: Direction, times: Mapping[Algorithm, float]) -> Algorithm:
            return form.algorithms[position].of(direction)

        ms, _ = self._step(chain, form.pieces, pick, first)
        return ms

    def _step(
        self, chain: Chain, form: Form, pick: Pick, first: bool, limit: float = math.inf
    ) -> tuple[float, tuple[Algorithms, ...]]:
        """(milliseconds of a training step, the algorithms) of a form by the algorithms that `pick` names.

        (inf, ()) as soon as the sum reaches `limit`: the rest of the form is not timed.
        """
        total, algorithms = 0.0, []
        for position, segment in enumerate(layout(chain, form)):
            picked: dict[Direction, Algorithm] = {}
            for direction, offered in self._offered(segment).items():
                if direction == "input" and first and position == 0:
                    continue
                times = self._product(segment, direction, offered)
                picked[direction] = pick(position, direction, times)
                total += times[picked[direction]]
                if total >= limit:
                    return math.inf, ()
            algorithms.append(Algorithms(**picked))
            total += self._composing(segment) + sum(self._interleaving(step, segment) for step in segment.after)
        return total, tuple(algorithms)

    def allows(self, chain: Chain, form: ChainForm) -> bool:
        """Whether a form, for example from a file, computes the chain by algorithms that are available here."""
        if not is_form(chain, form.pieces) or len(form.algorithms) != len(form.pieces):
            return False
        return all(
            use.of(direction) in offered
            for segment, use in zip(layout(chain, form.pieces), form.algorithms, strict=True)
            for direction, offered in self._offered(segment).items()
        )

    def _offered(self, segment: Segment) -> dict[Direction, tuple[Algorithm, ...]]:
        height, width = segment.output_size
        return options(segment.as_conv, self.dtype, self.batch * height * width, self.device.type)

    def _product(
        self, segment: Segment, direction: Direction, offered: tuple[Algorithm, ...]
    ) -> dict[Algorithm, float]:
        """Milliseconds of a product by each algorithm, in the order of `offered`: of equal ones the first is taken."""
        times = self.cache.get(
            f"{direction} {segment.key} {self._scope}", offered, lambda: self._time_product(segment, direction, offered)
        )
        return {algorithm: times[algorithm] for algorithm in offered}

    def _time_product(self, segment: Segment, direction: Direction, offered: tuple[Algorithm, ...]) -> Times:
        """The times of the algorithms of a product; `NEVER_MS` for one whose result is not that of `conv`."""
        conv = segment.as_conv
        x, weight = self._image(conv.in_channels, segment.height, segment.width), self._weight(conv)
        grad = self._image(conv.out_channels, *segment.output_size, start=APART)
        results: dict[Algorithm, Tensor] = {}

        def run(algorithm: Algorithm) -> None:
            results[algorithm] = self._compute(direction, algorithm, x, weight, grad, conv)

        times = self._race({algorithm: partial(run, algorithm) for algorithm in offered})
        if self.device.type == "cuda":
            for algorithm in (a for a in offered if times[a] < NEVER_MS / 2):  # results so far lie in graphs' memory
                run(algorithm)
        wanted = results["conv"].float()
        for algorithm, result in results.items():
            error = float((result.float() - wanted).norm() / wanted.norm())
            if not error < MOST_ERROR[self.dtype]:
                times[algorithm] = NEVER_MS
        return times

    def _composing(self, segment: Segment) -> float:
        """Milliseconds of multiplying out the weights and of its gradient; 0 for one convolution in its own groups."""
        if len(segment.steps) == 1 and segment.groups == segment.convs[0].groups:
            return 0.0
        key = f"compose {steps_key(segment.steps)} /{segment.groups} {self._dtype_name}"
        return self.cache.get(key, ["both"], lambda: self._time_composing(segment))["both"]

    def _time_composing(self, segment: Segment) -> Times:
        weights = [self._weight(conv).float().requires_grad_() for conv in segment.convs]
        grad = torch.randn_like(compose(segment, weights).detach()).to(self.dtype)

        def both() -> None:
            torch.autograd.grad(compose(segment, weights).to(self.dtype), weights, grad)

        return self._race({"both": both})

    def _interleaving(self, step: Interleave, segment: Segment) -> float:
        """Milliseconds of a permutation of activations, forward and backward: twice that of one."""
        height, width = segment.output_size
        key = f"{Chain((step,), height, width).key} {self._scope}"
        return 2 * self.cache.get(key, ["once"], lambda: self._time_interleaving(step, height, width))["once"]

    def _time_interleaving(self, step: Interleave, height: int, width: int) -> Times:
        x = self._image(step.channels, height, width)
        return self._race({"once": lambda: interleave(x, step.groups)})

    def _race(self, runs: Mapping[str, Callable[[], object]]) -> Times:
        self.pause()
        on_gpu = self.device.type == "cuda"  # as captured kernels, as they are trained
        once = {
            name: event_timer(run, self.device, graph=trains_in_graphs()) if on_gpu else timed(run, self.synchronize)
            for name, run in runs.items()
        }
        return {name: max(round(ms, 5), 1e-5) for name, ms in raced(once, ROUNDS, CAP_S * len(runs), HOPELESS).items()}

    def _image(self, channels: int, height: int, width: int, start: int = 0) -> Tensor:
        """A channels-last batch of noise: a view of the shared noise from element `start` on."""
        count = self.batch * height * width * channels
        if self._noise.numel() < count + start:
            self._noise = torch.randn(count + start, device=self.device).to(self.dtype)
        return self._noise[start : start + count].view(self.batch, height, width, channels).permute(0, 3, 1, 2)

    def _weight(self, conv: Conv) -> Tensor:
        shape = conv.out_channels, conv.in_channels // conv.groups, conv.kernel, conv.kernel
        fan_in = shape[1] * conv.kernel * conv.kernel
        weight = torch.randn(shape, device=self.device).div(fan_in**0.5)
        return weight.to(self.dtype).contiguous(memory_format=torch.channels_last)
