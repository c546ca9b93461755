"""How one network is trained fastest: its chains chosen part by part, the whole checked against the factored one.

Where the parts do not say clearly that it gains, whole steps of both race.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from igc_nas.arch.plan import Plan
from igc_nas.errors import StudyError
from igc_nas.nn.device import Device, without_tf32
from igc_nas.nn.lowering import native
from igc_nas.nn.lowering.chain import Chain
from igc_nas.nn.lowering.chain_tuner import ChainTuner
from igc_nas.nn.lowering.parts import chains_in, training_blocks
from igc_nas.nn.lowering.pinned_forms import PinnedForms
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.training import ChainForm, Forward, LoweredNetwork, NetworkForm, factored_forward
from igc_nas.nn.network import Network
from igc_nas.nn.timing import median, round_robin, timed
from igc_nas.study.spec import Recipe, Schedule

Timer = Callable[[], float]
Lowering = Callable[[Network], LoweredNetwork]
RACE_ROUNDS, RACE_CAP_S = 3, 0.5
CHECKED_IMAGES = 8
FLOAT32_ERRORS, TIMES_ERROR = (1e-4, 2e-2, 1e-4), 3.0
"""How far outputs, gradients and running statistics may be from the factored network's in float32, norm-wise: so
much, and so many times what that network itself is off in the recipe's dtype. A value that rounding carries over
the edge of a ReLU moves a gradient by far more than rounding: some 1e-3 were seen, on equal functions."""
OBVIOUSLY = 1.5
"""One that is so many times as fast needs no more rounds; on a CPU none at all, where the times of its parts say so.
A whole network gains less than its parts, which leave out what all forms have in common, but it does gain: of 30
architectures in both dtypes, those whose parts said 1.5 or more were 1.14 to 5.9 times as fast."""
CLEARLY = 0.98
"""A lowered network must take less than this share of the factored one's time to be used."""


class NetworkTuner:
    """Finds the forward function that trains a network fastest, on one device by one schedule.

    `pause` is called between timings: other processes may be measuring.
    """

    def __init__(
        self,
        schedule: Schedule,
        resolution: int,
        device: Device,
        table: TimingCache,
        pins: PinnedForms | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.schedule = schedule
        self.resolution = resolution
        self.device = device
        self.table = table
        self.pins = pins or PinnedForms()
        self.dtype = torch.bfloat16 if schedule.dtype == "bfloat16" else torch.float32
        self.pause = pause
        self._chooser = ChainTuner(table, schedule.batch, self.dtype, device.torch_device, device.synchronize, pause)
        self._scope = f"b{schedule.batch} {schedule.dtype}"

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        device: Device,
        table: TimingCache,
        pins: PinnedForms | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> NetworkTuner:
        """For a study's recipe."""
        return cls(recipe, recipe.resolution, device, table, pins, pause)

    def __call__(self, network: Network, identity: str) -> LoweredNetwork | None:
        """What runs a channels-last network (`identity` is its id) fastest; None: as it is written."""
        whole = replace(network.plan, input=(network.plan.input[0], self.resolution, self.resolution))
        chains = self._chains(whole)
        key = f"{identity} @{self.resolution} {self._scope}"
        form = self.pins.network_form(key, lambda: self._chosen(network, whole, chains))
        self.table.save()
        if form == "native" and not native.available():
            raise StudyError(
                "this training was begun with compiled kernels, and here is no C compiler",
                "install one (cc), or begin another",
            )
        return None if form == "factored" else LoweredNetwork(network, whole, chains, self.dtype, form == "native")

    def _chains(self, whole: Plan) -> dict[str, ChainForm]:
        """The form of every chain of a plan, by the chain's key."""
        found: dict[str, ChainForm] = {}
        for _, parts in training_blocks(whole):
            for chain in chains_in(parts):
                if chain.key not in found:
                    found[chain.key] = self._pinned(chain, first=not found)
        return found

    def _pinned(self, chain: Chain, first: bool) -> ChainForm:
        chooser = self._chooser
        return self.pins.chain_form(
            f"{chain.key} {self._scope}", lambda: chooser.best(chain, first), lambda form: chooser.allows(chain, form)
        )

    def _chosen(self, network: Network, whole: Plan, chains: dict[str, ChainForm]) -> NetworkForm:
        """The fastest form that computes what the factored network does."""
        equal = self._equal(network, whole, chains)
        if not equal:
            return "factored"
        if len(equal) == 1 and self.device.kind == "cpu" and self._is_obvious(whole, chains):
            return next(iter(equal))
        return self._raced(network, equal)

    def _is_obvious(self, whole: Plan, chains: dict[str, ChainForm]) -> bool:
        """Whether the parts of the network say that its chains gain so much that no step of the whole need be timed."""
        written = chosen = 0.0
        first = True
        for _, parts in training_blocks(whole):
            for chain in chains_in(parts):
                before, after = self._chooser.gain(chain, chains[chain.key], first)
                written, chosen, first = written + before, chosen + after, False
        return written > OBVIOUSLY * chosen

    def _raced(self, network: Network, equal: Mapping[NetworkForm, Lowering]) -> NetworkForm:
        """Whole training steps, forward and backward, in turns; on copies, so that nothing is learned or counted."""
        x = self._images(network)
        makers: dict[NetworkForm, Callable[[Network], Forward]] = {"factored": self._as_written, **equal}
        runs: dict[NetworkForm, Timer] = {}
        for form, make in makers.items():
            ours = copy.deepcopy(network).train()
            runs[form] = self._step(ours, make(ours), x)
        for run in runs.values():
            run()
        first = {form: run() for form, run in runs.items()}
        ahead = min(first, key=lambda form: first[form])
        if len(runs) == 2 and OBVIOUSLY * first[ahead] < first["factored"]:
            return ahead
        times = {form: median(samples) for form, samples in round_robin(runs, RACE_ROUNDS, RACE_CAP_S, 0).items()}
        best = min(times, key=lambda form: times[form])
        return best if times[best] < CLEARLY * times["factored"] else "factored"

    def _equal(self, network: Network, whole: Plan, chains: dict[str, ChainForm]) -> dict[NetworkForm, Lowering]:
        """The lowered forms that compute what the factored network does, outputs, gradients and statistics."""
        some = self._images(network)[:CHECKED_IMAGES]

        def outcome(make: Callable[[Network], Forward]) -> tuple[Tensor, ...]:
            self.pause()
            with without_tf32():
                return _outcome(copy.deepcopy(network), make, some)

        wanted = outcome(lambda ours: ours)
        usual = _errors(outcome(self._as_written), wanted)
        allowed = [least + TIMES_ERROR * error for least, error in zip(FLOAT32_ERRORS, usual, strict=True)]
        found: dict[NetworkForm, Lowering] = {}
        for form in self._entrants():
            lowered = partial(LoweredNetwork, whole=whole, forms=chains, dtype=self.dtype, native=form == "native")
            errors = _errors(outcome(lowered), wanted)
            if all(error <= most for error, most in zip(errors, allowed, strict=True)):
                found[form] = lowered
        return found

    def _images(self, network: Network) -> Tensor:
        """A batch of noise."""
        size = self.schedule.batch, network.plan.input[0], self.resolution, self.resolution
        return torch.randn(size, device=self.device.torch_device).contiguous(memory_format=torch.channels_last)

    def _as_written(self, network: Network) -> Forward:
        return factored_forward(network, self.device.kind, self.dtype)

    def _entrants(self) -> list[NetworkForm]:
        """Torch's norms use all threads, ours one: with one thread ours need no race."""
        if self.device.kind != "cpu" or not native.available():
            return ["lowered"]
        return ["native"] if torch.get_num_threads() == 1 else ["native", "lowered"]

    def _step(self, network: Network, forward: Forward, x: Tensor) -> Timer:
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)

        def step() -> None:
            F.cross_entropy(forward(x).float(), labels).backward()  # type: ignore[no-untyped-call]
            network.zero_grad(set_to_none=True)

        run = timed(step, self.device.synchronize)

        def once() -> float:
            self.pause()
            return run()

        return once


def _outcome(network: Network, run: Callable[[Network], Forward], x: Tensor) -> tuple[Tensor, ...]:
    """(outputs, all gradients, all running statistics) of one step of a network, which is changed by it."""
    logits = run(network.train())(x).float()
    labels = torch.arange(len(logits), device=x.device) % logits.shape[1]
    F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    statistics = [buffer.flatten().float() for buffer in network.buffers()]
    return logits.detach(), torch.cat(gradients), torch.cat(statistics)


def _errors(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> list[float]:
    """Norm-wise relative errors; not a number where something is."""
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
