"""Finds the form in which one network trains fastest, and checks it against the factored network.

On one CPU thread the whole step in C (`igc_nas.nn.training_step`) races first: where it is much faster than the
factored network, nothing else is timed. Otherwise `ChainTuner` picks the form of each chain from the times of its
parts, and where their sum does not show a clear gain, whole training steps race.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from igc_nas.arch.plan import Plan
from igc_nas.errors import StudyError
from igc_nas.io.fallbacks import FallbackWarning
from igc_nas.nn.cuda_timing import event_timer, trains_in_graphs
from igc_nas.nn.device import Device, exact_float32, without_cudnn_benchmark
from igc_nas.nn.lowering import native, triton_norm
from igc_nas.nn.lowering.chain import Chain
from igc_nas.nn.lowering.chain_tuner import ChainTuner
from igc_nas.nn.lowering.parts import chains_in, training_blocks
from igc_nas.nn.lowering.pinned_forms import PinnedForms
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.training import ChainForm, Forward, LoweredNetwork, NetworkForm, factored_forward
from igc_nas.nn.lowering.triton_norm import TritonError
from igc_nas.nn.network import Network
from igc_nas.nn.timing import Race, Timer, timed, typical
from igc_nas.nn.training_step import library
from igc_nas.nn.training_step.network import NativeStep
from igc_nas.nn.training_step.ways import Unsupported
from igc_nas.study.spec import Recipe, Schedule

TrainingForm = LoweredNetwork | NativeStep
Lowering = Callable[[Network], TrainingForm]
ChainForms = Callable[[], dict[str, ChainForm]]
"""The forms of a network's chains by their keys; they are found at the first call."""
STEP_LANES: dict[NetworkForm, int] = {"native-step-8": 8, "native-step-16": 16}
StepTimer = Callable[[NetworkForm, Callable[[], None]], Timer]
RACE = Race(rounds=4, cap_s=0.5, drop_after=2)
"""Steps are long and vary little: the faster of two shows a difference of 1.5 times. The factored form wins ties."""
CHECKED_IMAGES = 8
FLOAT32_ERRORS, TIMES_ERROR = (1e-4, 2e-2, 1e-4), 3.0
"""Allowed relative error (norm-wise) of outputs, gradients and running statistics: the float32 bound plus three times
the factored network's own error in the recipe's dtype. The bound of the gradients is wide: where rounding changes the
sign of a ReLU's input, a gradient changes by much more than rounding; 1e-3 was seen on equal functions."""
OBVIOUSLY = 1.5
"""On a CPU no step is timed where the chains' parts predict at least this speed-up. A network gains less than its
chains, because the rest of it takes the same time in all forms, but it does gain: of 30 architectures in both dtypes,
those with a predicted speed-up of 1.5 or more were 1.14 to 5.9 times as fast."""


class NetworkTuner:
    """Finds the forward function that trains a network fastest, on one device by one schedule.

    `cache` keeps the times of parts, `pins` the forms that a study or training has chosen. `pause` is called
    between timings, so that other processes can measure. The other arguments are for tests: `entrants` are the lowered
    forms that may be used (None: those of `entrants_for`), `timer` times one training step of a form.
    """

    def __init__(
        self,
        schedule: Schedule,
        resolution: int,
        device: Device,
        cache: TimingCache,
        pins: PinnedForms | None = None,
        pause: Callable[[], None] = lambda: None,
        *,
        race: Race = RACE,
        obviously: float = OBVIOUSLY,
        entrants: Sequence[NetworkForm] | None = None,
        timer: StepTimer | None = None,
        lower: Callable[..., LoweredNetwork] = LoweredNetwork,
    ) -> None:
        device.check_trains_in(schedule.dtype)
        self.schedule = schedule
        self.resolution = resolution
        self.device = device
        self.cache = cache
        self.pins = pins or PinnedForms()
        self.dtype: torch.dtype = getattr(torch, schedule.dtype)
        self.pause = pause
        self.race = race
        self.obviously = obviously
        self.entrants = entrants
        self.timer = timer or (lambda form, step: step_timer(step, device))
        self.lower = lower
        self._chain_tuner = ChainTuner(
            cache, schedule.batch, self.dtype, device.torch_device, device.synchronize, pause
        )
        self._scope = f"b{schedule.batch} {schedule.dtype}"
        self._without_triton = False

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        device: Device,
        cache: TimingCache,
        pins: PinnedForms | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> NetworkTuner:
        """The tuner of a study's recipe."""
        return cls(recipe, recipe.resolution, device, cache, pins, pause)

    def __call__(self, network: Network, identity: str) -> TrainingForm | None:
        """The fastest form of a channels-last network; None where the factored network is the fastest.

        `identity` is the network's id. Raises `StudyError` where the pinned form needs a C compiler, or Triton and a
        GPU, that this machine has not.
        """
        whole = replace(network.plan, input=(network.plan.input[0], self.resolution, self.resolution))
        key = f"{identity} @{self.resolution} {self._scope}"
        chains = cache(lambda: self._chains(whole))
        form = self.pins.network_form(key, lambda: self._fastest(network, whole, chains))
        self.cache.save()
        if not self._can_run(form):
            lacking, way_out = (
                ("Triton kernels, and here is no Triton or no GPU", "pip install triton")
                if form == "triton"
                else ("compiled kernels, and there is no C compiler", "install one (cc)")
            )
            raise StudyError(f"this training was started with {lacking}", f"{way_out}, or start another training")
        return None if form == "factored" else self._lowering(form, whole, chains)(network)

    def _can_run(self, form: NetworkForm) -> bool:
        if form in STEP_LANES:
            return library.available(self.dtype, STEP_LANES[form])
        if form == "triton":
            return self.device.kind == "cuda" and triton_norm.available()
        return form != "native" or native.available()

    @without_cudnn_benchmark()  # it would time engines for parts of forms that are never trained
    def _chains(self, whole: Plan) -> dict[str, ChainForm]:
        """The form of every chain of a plan, by the chain's key."""
        found: dict[str, ChainForm] = {}
        for _, parts in training_blocks(whole):
            for chain in chains_in(parts):
                if chain.key not in found:
                    found[chain.key] = self._pinned(chain, first=not found)
        return found

    def _pinned(self, chain: Chain, first: bool) -> ChainForm:
        tuner = self._chain_tuner
        return self.pins.chain_form(
            f"{chain.key} {self._scope}", lambda: tuner.best(chain, first), lambda form: tuner.allows(chain, form)
        )

    def _fastest(self, network: Network, whole: Plan, chains: ChainForms) -> NetworkForm:
        """The fastest form that computes the factored network's function."""
        entrants = entrants_for(self.device.kind) if self.entrants is None else self.entrants
        entrants = [form for form in entrants if form != "triton" or not self._without_triton]
        steps = self._equal(network, whole, [form for form in entrants if form in STEP_LANES], chains)
        if steps:
            samples = self._raced(network, steps)
            best = min(steps, key=lambda form: typical(samples[form]))
            if typical(samples["factored"]) > self.obviously * typical(samples[best]):
                return best
        equal = self._equal(network, whole, [form for form in entrants if form not in STEP_LANES], chains)
        if not (equal or steps):
            return "factored"
        if len(equal) == 1 and not steps and self.device.kind == "cpu" and self._is_obvious(whole, chains()):
            return next(iter(equal))
        samples = self._raced(network, steps | equal)
        on_tie = "lowered" if self.device.kind == "cuda" else "factored"  # on a GPU the one with fewer cuDNN searches
        return self.race.winner(samples, size=lambda form: int(form != on_tie))

    def _is_obvious(self, whole: Plan, chains: dict[str, ChainForm]) -> bool:
        """Whether the summed times of the parts predict so large a gain that no step of the network need be timed."""
        factored_ms = lowered_ms = 0.0
        first = True
        for _, parts in training_blocks(whole):
            for chain in chains_in(parts):
                before, after = self._chain_tuner.gain(chain, chains[chain.key], first)
                factored_ms, lowered_ms, first = factored_ms + before, lowered_ms + after, False
        return factored_ms > self.obviously * lowered_ms

    @without_cudnn_benchmark()
    def _raced(self, network: Network, equal: Mapping[NetworkForm, Lowering]) -> dict[NetworkForm, list[float]]:
        """Milliseconds of whole training steps, forward and backward, of the factored network and of other forms.

        They run on copies, which leaves the weights and the running statistics of the network as they are. On a GPU
        cuDNN chooses its engines by heuristics: only the winner's are worth the search of benchmark mode.
        """
        x = self._images(network)
        makers: dict[NetworkForm, Callable[[Network], Forward]] = {"factored": self._factored, **equal}
        runs: dict[NetworkForm, Timer] = {}
        for form, make in makers.items():
            copied = copy.deepcopy(network).train()
            try:
                runs[form] = self._after_pause(self.timer(form, _step(copied, make(copied), x)))
            except TritonError as error:
                self._give_up_triton(error)
        return self.race.run(runs)

    def _after_pause(self, run: Timer) -> Timer:
        def once() -> float:
            self.pause()
            return run()

        return once

    def _equal(
        self, network: Network, whole: Plan, entrants: Sequence[NetworkForm], chains: ChainForms
    ) -> dict[NetworkForm, Lowering]:
        """The forms whose outputs, gradients and running statistics equal the factored network's."""
        if not entrants:
            return {}
        images = self._images(network)[:CHECKED_IMAGES]

        def outcome(make: Callable[[Network], Forward]) -> tuple[Tensor, ...]:
            self.pause()
            with exact_float32():
                return _outcome(copy.deepcopy(network), make, images)

        wanted = outcome(lambda copied: copied)
        own = _errors(outcome(self._factored), wanted)
        allowed = [bound + TIMES_ERROR * error for bound, error in zip(FLOAT32_ERRORS, own, strict=True)]
        found: dict[NetworkForm, Lowering] = {}
        for form in entrants:
            lowered = self._lowering(form, whole, chains)
            try:
                errors = _errors(outcome(lowered), wanted)
            except Unsupported:
                continue
            except TritonError as error:
                self._give_up_triton(error)
                continue
            if all(error <= most for error, most in zip(errors, allowed, strict=True)):
                found[form] = lowered
        return found

    def _give_up_triton(self, error: TritonError) -> None:
        """Say once that Triton does not work here; this tuner tries it no more."""
        text = f"Triton does not work on {self.device.name}, so BN trains by PyTorch's kernels ({error})"
        warnings.warn(text, FallbackWarning, stacklevel=2)
        self._without_triton = True

    def _lowering(self, form: NetworkForm, whole: Plan, chains: ChainForms) -> Lowering:
        if form in STEP_LANES:
            return partial(NativeStep, whole=whole, dtype=self.dtype, lanes=STEP_LANES[form])
        return partial(self.lower, whole=whole, forms=chains(), dtype=self.dtype, form=form)

    def _images(self, network: Network) -> Tensor:
        """A batch of noise, channels-last."""
        size = self.schedule.batch, network.plan.input[0], self.resolution, self.resolution
        return torch.randn(size, device=self.device.torch_device).contiguous(memory_format=torch.channels_last)

    def _factored(self, network: Network) -> Forward:
        return factored_forward(network, self.device.kind, self.dtype)


def entrants_for(
    device_kind: str, threads: int | None = None, compiler: bool | None = None, triton: bool | None = None
) -> list[NetworkForm]:
    """The forms that may be fastest on a device: our compiled kernels use one thread, torch's use all.

    `threads` (None: torch's number) and `compiler` (None: looked for) matter on a CPU only, `triton` on a GPU only.
    """
    if device_kind == "cuda":
        has_triton = triton_norm.available() if triton is None else triton
        return ["triton", "lowered", "nchw"] if has_triton else ["lowered", "nchw"]
    if device_kind != "cpu" or not (native.available() if compiler is None else compiler):
        return ["lowered"]
    one_thread = (threads or torch.get_num_threads()) == 1
    return [*STEP_LANES, "native"] if one_thread else ["native", "lowered"]


def step_timer(step: Callable[[], None], device: Device) -> Timer:
    """Times a training step as it is trained: on a GPU as a captured graph, without the launches of its kernels."""
    return event_timer(step, device.torch_device, graph=trains_in_graphs()) if device.kind == "cuda" else timed(step)


def _step(network: Network, forward: Forward, x: Tensor) -> Callable[[], None]:
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def step() -> None:
        F.cross_entropy(forward(x).float(), labels).backward()  # type: ignore[no-untyped-call]
        network.zero_grad(set_to_none=True)

    return step


def _outcome(network: Network, make: Callable[[Network], Forward], x: Tensor) -> tuple[Tensor, ...]:
    """(outputs, all gradients, all running statistics) of one training step, which changes the network."""
    logits = make(network.train())(x).float()
    labels = torch.arange(len(logits), device=x.device) % logits.shape[1]
    F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    statistics = [buffer.flatten().float() for buffer in network.buffers()]
    return logits.detach(), torch.cat(gradients), torch.cat(statistics)


def _errors(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> list[float]:
    """Relative errors, norm-wise; NaN where a tensor holds NaN."""
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
