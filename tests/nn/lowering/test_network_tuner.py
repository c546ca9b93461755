"""The form that trains a network fastest: chosen by its times, once; it computes the factored network's function."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Conv
from igc_nas.arch.plan import arch_id
from igc_nas.errors import StudyError
from igc_nas.nn.lowering import native, training
from igc_nas.nn.lowering.chain import Chain, layout
from igc_nas.nn.lowering.chain_tuner import ChainTuner
from igc_nas.nn.lowering.convolution import Algorithms
from igc_nas.nn.lowering.network_tuner import OBVIOUSLY, RACE, NetworkTuner, entrants_for
from igc_nas.nn.lowering.parts import chains_in, training_blocks
from igc_nas.nn.lowering.pinned_forms import FORMS_FILE, PinnedForms
from igc_nas.nn.lowering.timing_cache import Times, TimingCache
from igc_nas.nn.lowering.training import ChainForm, LoweredNetwork, NetworkForm
from igc_nas.nn.network import Network, build
from igc_nas.nn.training_step.network import NativeStep
from igc_nas.study.spec import Recipe, Schedule
from tests.support.builders import one_line
from tests.support.tuning import ARCHS, BATCH, CPU, EACH, IGCV1, SCHEDULE, Timed, arch

COMPILES = pytest.mark.skipif(not native.available(), reason="no C compiler")
SHORT = replace(RACE, cap_s=0.0)
NEVER = math.inf
"""As the speed-up from which no step is timed: always race."""


class Given(TimingCache):
    """A cache that knows every time."""

    def __init__(self, time_of: Timed) -> None:
        super().__init__()
        self.time_of = time_of
        self.keys: list[str] = []

    def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
        self.keys.append(key)
        return {name: self.time_of(key, name) for name in names}


class Unmeasured(TimingCache):
    """A cache without times, where nothing is to be timed."""

    def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
        raise AssertionError(f"{key} is to be timed")


def varied(key: str, name: str) -> float:
    text = key + name
    return 1 + sum(number * ord(letter) for number, letter in enumerate(text, start=1)) % 997 / 100


class Steps:
    """A step timer with made-up times; `order` notes which form ran. The steps are run for real."""

    def __init__(self, **ms: float) -> None:
        self.ms = {"factored": 1.0} | ms
        self.order: list[str] = []

    def __call__(self, form: NetworkForm, step: Callable[[], None]) -> Callable[[], float]:
        def once() -> float:
            self.order.append(form)
            step()
            return self.ms[form]

        return once

    @property
    def entrants(self) -> list[str]:
        return [form for form in ("native-step-8", "native-step-16", "native", "lowered") if form in self.ms]


def refuse(form: NetworkForm, step: Callable[[], None]) -> Callable[[], float]:
    raise AssertionError("no step is to be timed here")


def tuner(
    config: ArchConfig,
    steps: Steps | None = None,
    *,
    cache: TimingCache | None = None,
    pins: PinnedForms | None = None,
    schedule: Schedule = SCHEDULE,
    resolution: int | None = None,
    **more: Any,
) -> NetworkTuner:
    """A tuner that races the given steps, three rounds of each; without them it must not time any."""
    usual: dict[str, Any] = {
        "race": SHORT,
        "obviously": NEVER,
        "timer": steps or refuse,
        "entrants": steps.entrants if steps else None,
    }
    cache = Given(varied) if cache is None else cache
    return NetworkTuner(schedule, resolution or config.input[1], CPU, cache, pins, **(usual | more))


def network_of(config: ArchConfig) -> Network:
    """With gradients and statistics of a first step, to see whether they stay."""
    network = build(config, 0).to(memory_format=torch.channels_last).train()
    step(network, network, 7)
    return network


def step(network: Network, run: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, *network.plan.input, generator=generator).contiguous(memory_format=torch.channels_last)
    logits = run(x)
    F.cross_entropy(logits.float(), torch.arange(BATCH)).backward()
    return logits.detach()


def state(network: Network) -> list[Tensor]:
    grads = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return [tensor.detach().clone() for tensor in (*network.state_dict().values(), *grads)]


def chains_of(network: Network) -> dict[str, Chain]:
    return {chain.key: chain for _, parts in training_blocks(network.plan) for chain in chains_in(parts)}


def pinned_networks(folder: Path) -> dict[str, str]:
    return json.loads((folder / FORMS_FILE).read_text())["networks"]


# The choice.


@EACH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_choosing_leaves_the_network_unchanged(config: ArchConfig, dtype: str) -> None:
    network = network_of(config)
    before, held = state(network), [id(p) for p in network.parameters()]
    modes = [module.training for module in network.modules()]
    ours = NetworkTuner(
        SCHEDULE.model_copy(update={"dtype": dtype}), 7, CPU, Given(varied), obviously=NEVER, race=SHORT
    )
    ours(network, arch_id(config))
    after = state(network)
    assert len(after) == len(before)
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))
    assert [id(p) for p in network.parameters()] == held
    assert [module.training for module in network.modules()] == modes
    assert all(norm.num_batches_tracked == 1 for norm in network.modules() if isinstance(norm, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("lowered_ms", "lowers"), [(0.5, True), (0.97, True), (0.981, False), (0.99, False), (1.0, False), (2.0, False)]
)
def test_a_network_is_lowered_if_that_is_faster_by_two_percent(lowered_ms: float, lowers: bool) -> None:
    network = network_of(ARCHS["igcv1"])
    found = tuner(ARCHS["igcv1"], Steps(lowered=lowered_ms))(network, "id")
    assert isinstance(found, LoweredNetwork) == lowers
    assert (found is None) != lowers


@COMPILES
@pytest.mark.parametrize(
    ("lowered_ms", "native_ms", "form"),
    [
        (0.5, 0.4, "native"),
        (0.4, 0.5, "lowered"),
        (2.0, 0.9, "native"),
        (2.0, 0.99, "factored"),
        (2.0, 3.0, "factored"),
    ],
)
def test_our_own_kernels_take_part(lowered_ms: float, native_ms: float, form: str, tmp_path: Path) -> None:
    steps = Steps(lowered=lowered_ms, native=native_ms)
    network = network_of(ARCHS["igcv1"])
    found = tuner(ARCHS["igcv1"], steps, pins=PinnedForms(tmp_path))(network, "id")
    assert set(steps.order) == {"native", "lowered", "factored"}
    assert pinned_networks(tmp_path) == {f"id @7 b{BATCH} float32": form}
    assert ("factored" if found is None else found.form) == form


@COMPILES
def test_where_the_step_in_c_is_much_faster_nothing_else_is_timed(tmp_path: Path) -> None:
    config = ARCHS["igcv3"]
    steps = Steps(**{"native-step-8": 0.5, "native-step-16": 0.4, "native": 0.1})
    found = tuner(config, steps, cache=Unmeasured(), pins=PinnedForms(tmp_path), obviously=2.0)(
        network_of(config), "id"
    )
    assert isinstance(found, NativeStep)
    assert (found.form, found.lanes) == ("native-step-16", 16)
    assert pinned_networks(tmp_path) == {f"id @7 b{BATCH} float32": "native-step-16"}
    assert "native" not in steps.order


@COMPILES
@pytest.mark.parametrize(("step_ms", "form"), [(0.6, "native-step-8"), (0.8, "native"), (1.5, "native")])
def test_where_it_is_not_it_races_with_the_lowered_forms(step_ms: float, form: str) -> None:
    steps = Steps(**{"native-step-8": step_ms, "native": 0.7})
    found = tuner(ARCHS["igcv1"], steps, obviously=2.0)(network_of(ARCHS["igcv1"]), "id")
    assert found is not None
    assert found.form == form


@pytest.mark.parametrize(
    ("kind", "threads", "compiler", "triton", "forms"),
    [
        ("cpu", 1, True, True, ["native-step-8", "native-step-16", "native"]),
        ("cpu", 2, True, True, ["native", "lowered"]),
        ("cpu", 1, False, True, ["lowered"]),
        ("cpu", 2, False, False, ["lowered"]),
        ("cuda", 1, True, True, ["triton", "lowered", "nchw"]),
        ("cuda", 1, True, False, ["lowered", "nchw"]),
    ],
)
def test_the_entrants_depend_on_device_threads_and_compilers(
    kind: str, threads: int, compiler: bool, triton: bool, forms: list[str]
) -> None:
    """Torch's norms use several threads, our kernels one: only then can torch's be faster."""
    assert entrants_for(kind, threads, compiler, triton) == forms


def test_a_clear_difference_in_two_steps_ends_the_race() -> None:
    for lowered_ms, rounds in ((0.99 / RACE.drop_above, 2), (1.01 / RACE.drop_above, 3), (5.0, 2)):
        steps = Steps(lowered=lowered_ms)
        tuner(ARCHS["conv"], steps)(network_of(ARCHS["conv"]), "id")
        assert steps.order == ["factored", "lowered"] * (1 + rounds), "one step to warm up"


def test_one_slow_step_does_not_lose_the_race() -> None:
    """Of the first two steps the faster counts: another process may have disturbed one."""
    slow_once = iter([1.0, 9.0])

    class Disturbed(Steps):
        def __call__(self, form: NetworkForm, step: Callable[[], None]) -> Callable[[], float]:
            run = super().__call__(form, step)
            return (lambda: next(slow_once, run())) if form == "lowered" else run

    config = ARCHS["igcv1"]
    assert tuner(config, Disturbed(lowered=0.8))(network_of(config), "id") is not None


def predicted_gain(config: ArchConfig) -> float:
    """The speed-up that the times of the parts predict."""
    chains = ChainTuner(Given(varied), BATCH, torch.float32, CPU.torch_device)
    gains = []
    for _, parts in training_blocks(network_of(config).plan):
        for chain in chains_in(parts):
            first = not gains
            form = chains.best(chain, first=chain.key == next(iter(chains_of(network_of(config)))))
            gains.append(chains.gain(chain, form, first))
    before, after = (sum(column) for column in zip(*gains, strict=True))
    return before / after


@pytest.mark.parametrize(("factor", "steps_run"), [(0.99, False), (1.01, True)])
def test_a_large_predicted_gain_needs_no_step(factor: float, steps_run: bool) -> None:
    config = ARCHS["igcv3"]
    gain = predicted_gain(config)
    assert gain > 1
    steps = Steps(lowered=0.5)
    found = tuner(config, steps, obviously=gain * factor)(network_of(config), "id")
    assert isinstance(found, LoweredNetwork)
    assert bool(steps.order) == steps_run
    assert OBVIOUSLY == RACE.drop_above == 1.5


@COMPILES
def test_two_lowered_forms_always_race() -> None:
    """The predicted gain is the same for both."""
    steps = Steps(lowered=0.4, native=0.5)
    found = tuner(ARCHS["igcv1"], steps, obviously=0.0)(network_of(ARCHS["igcv1"]), "id")
    assert set(steps.order) == {"native", "lowered", "factored"}
    assert isinstance(found, LoweredNetwork)
    assert found.form == "lowered"


class Wrong(LoweredNetwork):
    """Computes something else than the network."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + 1.0


@pytest.mark.parametrize("obviously", [0.0, NEVER])
def test_a_lowering_that_computes_something_else_is_not_used(obviously: float, tmp_path: Path) -> None:
    steps = Steps(lowered=0.1)
    ours = tuner(ARCHS["igcv1"], steps, pins=PinnedForms(tmp_path), lower=Wrong, obviously=obviously)
    assert ours(network_of(ARCHS["igcv1"]), "id") is None
    assert [*pinned_networks(tmp_path).values()] == ["factored"]
    assert not steps.order


def test_a_pause_comes_before_each_timed_step() -> None:
    events: list[str] = []

    def timer(form: NetworkForm, step: Callable[[], None]) -> Callable[[], float]:
        return lambda: events.append("step") or 1.0

    tuner(ARCHS["igcv1"], timer=timer, pause=lambda: events.append("pause"))(network_of(ARCHS["igcv1"]), "id")
    assert "step" in events
    assert all(before == "pause" for before, event in itertools.pairwise(events) if event == "step")
    assert events.count("pause") > events.count("step"), "the comparisons of outputs pause, too"


def test_networks_race_with_whole_steps_on_copies() -> None:
    ran: list[Network] = []

    class Noted(LoweredNetwork):
        def __call__(self, x: Tensor) -> Tensor:
            assert x.shape == (BATCH, 3, 7, 7)
            ran.append(self.network)
            return super().__call__(x)

    network = network_of(ARCHS["igcv3"])
    tuner(ARCHS["igcv3"], Steps(lowered=0.9), lower=Noted)(network, "id")
    assert len({id(net) for net in ran}) == 2, "one is checked, another is raced"
    copied = ran[-1]
    assert network not in ran
    assert copied.training
    assert all(
        norm.num_batches_tracked == 1 + ran.count(copied)
        for norm in copied.modules()
        if isinstance(norm, nn.BatchNorm2d)
    )


# The chosen form.


@EACH
@pytest.mark.parametrize("form", ["lowered", pytest.param("native", marks=COMPILES)])
def test_training_in_the_chosen_form_equals_the_factored_networks(config: ArchConfig, form: str) -> None:
    for time_of in (varied, lambda key, name: 1.0, lambda key, name: 100.0 if key.startswith("compose") else 1.0):
        network = network_of(config)
        other = copy.deepcopy(network)
        lowered = tuner(config, Steps(**{form: 0.5}), cache=Given(time_of))(other, "id")
        assert lowered is not None
        results = []
        for net, run in ((network, network), (other, lowered)):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
            logits = []
            for seed in range(2):
                optimizer.zero_grad()
                logits.append(step(net, run, seed))
                optimizer.step()
            results.append([*logits, *state(net)])
        found, true = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (results[1], results[0]))
        assert (found - true).norm() < 1e-4 * true.norm()
        for one, another in zip(results[1], results[0], strict=True):
            assert (one.double() - another.double()).norm() <= 1e-4 * another.double().norm() + 1e-5


def test_every_chain_runs_in_its_fastest_form(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Conv, Algorithms]] = []
    usual = training.convolve

    def noted(x: Tensor, weight: Tensor, conv: Conv, use: Algorithms) -> Tensor:
        ran.append((conv, use))
        return usual(x, weight, conv, use)

    config = ARCHS["igcv2"]
    network = network_of(config)
    found = tuner(config, Steps(lowered=0.5))(network, "id")
    assert found is not None
    monkeypatch.setattr(training, "convolve", noted)
    step(network, found, 0)
    chains = ChainTuner(Given(varied), BATCH, torch.float32, CPU.torch_device)
    wanted = []
    for position, chain in enumerate(chains_of(network).values()):
        form = chains.best(chain, first=position == 0)
        segments = layout(chain, form.pieces)
        wanted += [(segment.as_conv, use) for segment, use in zip(segments, form.algorithms, strict=True)]
    assert ran == wanted


def test_chains_are_chosen_at_the_recipes_resolution() -> None:
    recipe = Recipe(epochs=1, batch=BATCH, lr=0.1, train_size=8, held_out=8, resolution=4)
    cache = Given(lambda key, name: 1.0)
    network = network_of(ARCHS["igcv1"])
    found = tuner(ARCHS["igcv1"], Steps(lowered=0.5), cache=cache, schedule=recipe, resolution=recipe.resolution)(
        network, "id"
    )
    assert NetworkTuner.of(recipe, CPU, cache).resolution == 4
    assert found is not None
    assert {key.rpartition("@")[2].partition(" ")[0] for key in cache.keys if "@" in key} == {"4x4"}
    x = torch.randn(BATCH, 3, 4, 4)
    copied = copy.deepcopy(network)
    assert (found(x) - copied(x)).norm() < 1e-4 * copied(x).norm()


# Pins.


@COMPILES
def test_a_training_with_our_own_kernels_continues_only_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(ARCHS["igcv1"])
    tuner(ARCHS["igcv1"], Steps(lowered=0.5, native=0.4), pins=PinnedForms(tmp_path))(network, "id")
    again = tuner(ARCHS["igcv1"], cache=Unmeasured(), pins=PinnedForms(tmp_path))(network, "id")
    assert isinstance(again, LoweredNetwork)
    assert again.form == "native"
    monkeypatch.setattr(native, "available", lambda: False)
    with pytest.raises(StudyError) as raised:
        tuner(ARCHS["igcv1"], cache=Unmeasured(), pins=PinnedForms(tmp_path))(network, "id")
    assert "C compiler" in one_line(raised)


@EACH
@pytest.mark.parametrize("lowered_ms", [0.5, 1.5])
def test_a_pinned_form_is_not_timed_again(config: ArchConfig, lowered_ms: float, tmp_path: Path) -> None:
    """Another process, with an empty cache, runs the same form."""
    network = network_of(config)
    first = tuner(config, Steps(lowered=lowered_ms), pins=PinnedForms(tmp_path))(network, arch_id(config))
    text = (tmp_path / FORMS_FILE).read_bytes()
    again = tuner(config, cache=Unmeasured(), pins=PinnedForms(tmp_path))
    second = again(network, arch_id(config))
    with pytest.raises(AssertionError, match="is to be timed"):
        again(network, "another network")
    for change in ({"batch": BATCH + 1}, {"dtype": "bfloat16"}):
        other = SCHEDULE.model_copy(update=change)
        with pytest.raises(AssertionError, match="is to be timed"):
            tuner(config, cache=Unmeasured(), pins=PinnedForms(tmp_path), schedule=other)(network, arch_id(config))
    assert (tmp_path / FORMS_FILE).read_bytes() == text
    assert (first is None) == (second is None) == (lowered_ms > 1)
    if first is not None and second is not None:
        buffers = copy.deepcopy(network.state_dict())
        logits = []
        for run in (first, second):
            network.load_state_dict(buffers)
            logits.append(step(network, run, 0))
        assert torch.equal(*logits)


def test_a_second_network_of_known_shapes_is_only_raced(tmp_path: Path) -> None:
    """Its chains are in the cache; which form the network trains in is decided for each network."""
    config, place = ARCHS["igcv1"], tmp_path / "times.json"
    times = TimingCache(place, "owner")
    assert tuner(config, Steps(lowered=0.5), cache=times)(network_of(config), "one") is not None

    class Complete(TimingCache):
        def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
            return super().get(key, names, lambda: pytest.fail(f"{key} is known"))

    steps = Steps(lowered=0.5)
    assert tuner(config, steps, cache=Complete(place, "owner"))(network_of(config), "another") is not None
    assert steps.order


def test_equal_chains_are_chosen_once() -> None:
    keys: list[str] = []

    class Noting(PinnedForms):
        def chain_form(self, key: str, *given: Any) -> ChainForm:
            keys.append(key)
            return super().chain_form(key, *given)

    config = arch(IGCV1 | {"blocks": 4, "residual": True})
    network = network_of(config)
    tuner(config, Steps(lowered=0.5), pins=Noting())(network, "id")
    assert keys == [f"{key} b{BATCH} float32" for key in chains_of(network)]


def test_pins_are_kept_per_identity_and_resolution(tmp_path: Path) -> None:
    config = ARCHS["igcv1"]
    network, pins = network_of(config), PinnedForms(tmp_path)
    every = [*itertools.product((7, 8), ("one", "other"))]
    for resolution, identity in every:
        tuner(config, Steps(lowered=0.5), pins=pins, resolution=resolution)(network, identity)
    for resolution, identity in every:
        again = tuner(config, cache=Unmeasured(), pins=PinnedForms(tmp_path), resolution=resolution)
        assert again(network, identity) is not None
    with pytest.raises(AssertionError, match="is to be timed"):
        tuner(config, cache=Unmeasured(), pins=PinnedForms(tmp_path), resolution=6)(network, "one")
