"""Latency: what is measured is what is reported, with its conditions; drift cancels; sharing is noticed."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from igc_nas.analysis.tables import candidate_row
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.errors import IgcNasError, InfeasibleError, UsageError
from igc_nas.evaluation import latency as module
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.host import LEAST_WATCH_S
from igc_nas.evaluation.latency import Measurer, measure_latency
from igc_nas.evaluation.runtimes import prepare
from igc_nas.nn.device import Device, cpu_name, find_devices
from igc_nas.nn.lowering import variants
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.variants import Variant
from igc_nas.nn.network import Network, build
from igc_nas.nn.timing import median_interval
from igc_nas.study.records import Latency, Trial
from igc_nas.study.spec import LatencySpec
from igc_nas.study.study import load_study
from tests.support.builders import one_line

CPU = Device("cpu", "cpu", "test")
SPEC = LatencySpec(device="test")
SMALL = ArchConfig.parse({"stem": {"width": 8, "stride": 4}, "stage": [{"unit": "conv", "width": 8, "blocks": 1}]})
ANY = LatencySpec(device="test", forms="any")
ALL_FORMS = ("factored", "folded", "semidense", "dense", "mixed")
LARGE = ArchConfig.parse({"stem": {"width": 32}, "stage": [{"unit": "conv", "width": 64, "blocks": 4}]})
FORMED = ArchConfig.parse(
    {
        "stem": {"width": 8, "stride": 4},
        "stage": [
            {"unit": "igcv1", "L": 4, "M": 2, "blocks": 1},
            {"unit": "igcv3", "width": 12, "expand": 2, "G1": 2, "G2": 2, "blocks": 1, "residual": True},
        ],
    }
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    module._reference_run.cache_clear()


def test_a_measurement_says_what_it_is_of() -> None:
    found = measure_latency(SMALL, SPEC, CPU, cap_s=0.3)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert found.n == len(found.samples_ms) == len(found.reference_samples_ms) >= module.LEAST_ROUNDS
    assert found.median_ms == pytest.approx(np.median(found.samples_ms), rel=1e-3)
    assert (found.runtime, found.batch, found.dtype, found.input) == ("eager", 1, "float32", (3, 32, 32))
    assert (found.conditions.device, found.conditions.threads, found.conditions.torch) == ("test", 1, torch.__version__)


def test_a_network_with_fifty_times_the_macs_is_slower() -> None:
    assert (
        measure_latency(LARGE, SPEC, CPU, cap_s=0.3).median_ms
        > 2 * measure_latency(SMALL, SPEC, CPU, cap_s=0.3).median_ms
    )


def scripted(monkeypatch: pytest.MonkeyPatch, network_ms: list[float], reference_ms: list[float]) -> None:
    """Timers that read their times from lists, for ever."""
    clocks = iter([itertools.cycle(network_ms).__next__, itertools.cycle(reference_ms).__next__])
    module._reference_run.cache_clear()
    monkeypatch.setattr(module, "timed", lambda _: next(clocks))
    monkeypatch.setattr(module, "LEAST_S", 0.0)  # no time passes
    monkeypatch.setattr(module._Run, "warm_up", lambda _: None)
    monkeypatch.setattr(module.Watch, "disturbances", lambda *_: ())  # this machine may be busy; the script is not


def test_a_drift_that_both_networks_see_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    drift = [1 + 0.01 * i for i in range(100)]
    scripted(monkeypatch, [2.0 * d for d in drift], [4.0 * d for d in drift])
    found = measure_latency(SMALL, SPEC, CPU, reference_ms=4.0, cap_s=0.0)
    assert found.normalised_ms == pytest.approx(2.0)
    assert found.normalised_interval_ms == pytest.approx((2.0, 2.0))
    assert found.median_ms > 2.1
    assert found.low_ms < found.high_ms
    assert not found.noisy


def test_what_the_networks_do_not_share_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [1 + (7 * i % 97) / 97 for i in range(97)], [1.0])
    found = measure_latency(SMALL, SPEC, CPU, cap_s=0.0)
    low, high = found.normalised_interval_ms
    assert low < found.normalised_ms < high
    assert found.noisy


def test_without_a_study_the_reference_is_this_measurements_own(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [3.0], [1.5])
    found = measure_latency(SMALL, SPEC, CPU)
    assert (found.normalised_ms, found.reference_ms, found.median_ms) == (3.0, 1.5, 3.0)


def test_rounds_stop_when_the_interval_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [2.0], [1.0])
    assert measure_latency(SMALL, SPEC, CPU).n == module.LEAST_ROUNDS
    scripted(monkeypatch, [1 + (7 * i % 97) / 97 for i in range(97)], [1.0])
    assert measure_latency(SMALL, SPEC, CPU).n == module.MOST_ROUNDS


def test_rounds_go_on_until_neighbours_would_have_been_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of no less than a fifth of a second; the time that the race took counts."""
    assert module.LEAST_S > LEAST_WATCH_S
    monkeypatch.setattr(module, "LEAST_S", 0.0395)
    same = module._Run(None, 1, None, lambda: 1.0)  # type: ignore[arg-type]
    for race_s, rounds in ((0.0, 41), (0.005, 36), (0.04, 31), (9.0, 31)):
        seconds = (race_s + 0.001 * i for i in range(500))
        with monkeypatch.context() as patched:
            patched.setattr(module.time, "perf_counter", lambda seconds=seconds: next(seconds))
            times, paces = module._rounds(same, same, 0.0, cap_s=9.0)
        assert (len(times), len(paces)) == (rounds, rounds), race_s


def test_what_is_told_is_timed_alone_and_all_else_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building, checking and choosing kernels are done beside others, who may measure between two forms."""
    events: list[str] = []

    @contextlib.contextmanager
    def alone() -> Iterator[None]:
        events.append("alone")
        yield
        events.append("together")

    paced(monkeypatch)
    modules = Variant.module
    monkeypatch.setattr(Variant, "module", lambda self, *rest: (events.append("build"), modules(self, *rest))[1])
    monkeypatch.setattr(variants, "raced", lambda runs, *_: (events.append("kernels"), dict.fromkeys(runs, 1.0))[1])
    monkeypatch.setattr(module, "_raced", lambda runs: (events.append("race"), ({}, "dense"))[1])
    monkeypatch.setattr(module, "_rounds", lambda *_: (events.append("rounds"), ([1.0] * 31, [1.0] * 31))[1])
    table = TimingCache(pause=lambda: events.append("pause"))
    Measurer(ANY, CPU, None, table, alone=alone, pause=lambda: events.append("pause"))(FORMED)
    assert events[-4:] == ["alone", "race", "rounds", "together"]
    before = events[:-4]
    assert before.count("build") == len(ALL_FORMS) + 1, "the reference is built once, too"
    assert before.count("kernels") > 0
    assert before.count("pause") == len(ALL_FORMS) + before.count("kernels")


def test_a_thread_that_had_to_share_its_core_is_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [2.0], [1.0])
    monkeypatch.setattr(module.Watch, "disturbances", lambda *_: ("its processor was shared",))
    found = measure_latency(SMALL, SPEC, CPU)
    assert found.noisy
    assert found.noise == ("its processor was shared",)


# Forms.


class Script:
    """Timers by the form's name, read from lists for ever; `reference` is the reference network."""

    def __init__(self, times: dict[str, list[float]]) -> None:
        self.left = {name: itertools.cycle(values) for name, values in times.items()}
        self.order: list[str] = []

    def timer(self, name: str) -> Callable[[], float]:
        def once() -> float:
            self.order.append(name)
            return next(self.left.get(name) or self.left["others"])

        return once


def paced(monkeypatch: pytest.MonkeyPatch, **times: list[float]) -> Script:
    """Measure by a script. The reference network is what runs by a spec of the factored form."""
    script = Script({"reference": [1.0], "others": [2.0], **times})
    original = module._Run.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[module._Run], variant: Variant, network: Network, x: Tensor, spec: LatencySpec, *rest: Any) -> Any:
        run = original(cls, variant, network, x, spec, *rest)
        return replace(run, time=script.timer("reference" if spec.forms == "factored" else variant.name))

    module._reference_run.cache_clear()
    monkeypatch.setattr(module._Run, "of", classmethod(of))
    monkeypatch.setattr(module._Run, "warm_up", lambda _: None)
    monkeypatch.setattr(module, "RACE_CAP_S", 60.0)
    monkeypatch.setattr(module, "LEAST_S", 0.0)
    monkeypatch.setattr(module.Watch, "disturbances", lambda *_: ())
    monkeypatch.setattr(variants, "CAP_S", 0.001)
    return script


def test_all_forms_are_told_and_the_fastest_is_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch, semidense=[1.5])
    found = measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    assert tuple(found.forms) == ALL_FORMS
    assert (found.form, found.median_ms) == ("semidense", 1.5)
    network = build(FORMED, 0)
    for variant in variants.uniform_variants(network.plan):
        told = found.forms[variant.name]
        assert (told.params, told.macs) == (variant.params, variant.macs)
        assert told.weight_bytes >= 4 * told.params
    assert {form.median_ms for name, form in found.forms.items() if name != "semidense"} == {2.0}
    cost = cost_of(FORMED)
    assert (found.forms["factored"].params, found.forms["factored"].macs) == (cost.params, cost.macs)
    assert found.forms["dense"].params > found.forms["semidense"].params > found.forms["folded"].params


@pytest.mark.parametrize("winner", ALL_FORMS)
def test_what_is_deployed_is_the_winning_form(winner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch, **{winner: [1.0]})
    found = measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    form = found.forms[winner]
    assert found.form == winner
    assert (found.deployed_params, found.deployed_macs) == (form.params, form.macs)
    assert found.weight_bytes == form.weight_bytes
    assert (found.median_ms, found.low_ms, found.high_ms) == (form.median_ms, form.low_ms, form.high_ms)


def test_the_counts_of_a_form_are_those_of_its_tensors() -> None:
    network = build(FORMED, 0)
    for variant in variants.uniform_variants(network.plan)[1:]:
        held = variants.DeployedNetwork(network, variant.forms)
        assert variant.params == sum(tensor.numel() for tensor in held.state_dict().values()), variant.name


def test_the_winner_is_measured_on_fresh_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that is fast while it races and slow afterwards is told with the time of afterwards."""
    turns = 1 + module.FIRST_ROUNDS
    script = paced(monkeypatch, dense=[1.0] * turns + [5.0] * 1000)
    found = measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    assert found.form == "dense"
    assert (found.median_ms, found.forms["dense"].median_ms) == (5.0, 1.0), "the race is told as it was"
    assert set(found.samples_ms) == {5.0}
    race = turns * len(ALL_FORMS)
    assert script.order[:race] == [*ALL_FORMS] * turns, "forms take turns, after one that is not told"
    assert script.order[race:] == ["reference", "dense"] * found.n, "the others are slow"


def test_a_race_goes_on_among_those_that_may_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hopeless leave it after three rounds, by the median: one slow round is an accident. Who was slower in nearly
    every round leaves it after five."""
    assert (module.FIRST_ROUNDS, module.HOPELESS, module.SURE_ROUNDS) == (3, 1.5, 5)
    even, rounds = [1.0 + module.TIE / 2], module.RACE_ROUNDS
    slower = [1.0 + 2 * module.TIE]
    script = paced(monkeypatch, dense=[1.0], semidense=even, folded=[1.2, 50.0, 1.2, *slower * 100], mixed=[1.6])
    found = measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    assert found.form == "semidense", "it holds less"
    race = script.order[: script.order.index("reference")]
    assert race[: 4 * len(ALL_FORMS)] == [*ALL_FORMS] * 4
    assert {name: race.count(name) - 1 for name in ALL_FORMS} == {
        "factored": 3,
        "mixed": 3,
        "dense": rounds,
        "semidense": rounds,
        "folded": 5,
    }
    assert tuple(found.forms) == ALL_FORMS, "all are told"
    assert (found.forms["mixed"].median_ms, found.forms["factored"].median_ms) == (1.6, 2.0)


def test_who_is_as_fast_now_and_then_stays_in_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slower in most rounds is not yet slower."""
    now_and_then = [1.1, 1.1, 1.1, 1.0] * 100
    script = paced(monkeypatch, dense=[1.0], semidense=now_and_then)
    found = measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    assert (found.form, script.order[: script.order.index("reference")].count("semidense")) == ("dense", 16)


def test_a_race_ends_where_one_is_left_or_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    script = paced(monkeypatch, dense=[1.0], semidense=[1.0])
    monkeypatch.setattr(module, "RACE_CAP_S", 0.0)
    measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    assert script.order.index("reference") == (1 + module.FIRST_ROUNDS) * len(ALL_FORMS)
    script = paced(monkeypatch, dense=[1.0], semidense=[1.2])
    measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    later = script.order[4 * len(ALL_FORMS) : script.order.index("reference")]
    assert later == ["semidense", "dense"] * 2


def test_a_form_that_was_left_out_does_not_win_where_the_machine_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is of the first rounds only; those of the rivals are mostly of later ones."""
    slowing = [1.0] * 4 + [3.0] * (module.RACE_ROUNDS - 3)
    paced(monkeypatch, dense=slowing + [1.0] * 1000, semidense=slowing + [1.0] * 1000, mixed=[1.8] * 1000)
    found = measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    assert (found.form, found.forms["dense"].median_ms) == ("semidense", 3.0)


def test_only_the_factored_form_where_the_spec_says_so() -> None:
    found = measure_latency(FORMED, SPEC, CPU, cap_s=0.0)
    cost = cost_of(FORMED)
    assert (found.form, found.forms) == ("factored", {})
    assert (found.deployed_params, found.deployed_macs) == (cost.params, cost.macs)
    assert found.weight_bytes == 4 * cost.params


class DenserIsFaster(TimingCache):
    """Says of every chain that a form is faster the more it is multiplied out."""

    def get(self, key: str, names: Iterable[str], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        return {name: 1.0 + name.count("/") for name in names}


@pytest.mark.parametrize("slack", [0, 100, 400, 1500, 100_000])
def test_within_the_budget_no_form_is_over_it(slack: int, monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch, mixed=[1.0])
    most = cost_of(FORMED).params + slack
    spec = ANY.model_copy(update={"forms": "within-budget"})
    measurer = Measurer(spec, CPU, most, DenserIsFaster(), cap_s=0.0)
    found = measurer(FORMED)
    assert {"factored", "mixed"} <= set(found.forms), "mixed gives up what is over"
    assert all(form.params <= most for form in found.forms.values())
    every = {variant.name for variant in variants.uniform_variants(build(FORMED, 0).plan) if variant.params <= most}
    assert set(found.forms) - {"mixed"} == every
    assert found.deployed_params is not None
    assert found.deployed_params <= most


def test_without_a_budget_within_it_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch)
    spec = ANY.model_copy(update={"forms": "within-budget"})
    assert tuple(measure_latency(FORMED, spec, CPU, cap_s=0.0).forms) == ALL_FORMS
    assert tuple(measure_latency(FORMED, ANY, CPU, most_params=1, cap_s=0.0).forms) == ALL_FORMS


def test_a_budget_that_no_form_keeps_is_an_error() -> None:
    spec = ANY.model_copy(update={"forms": "within-budget"})
    fewest = min(variant.params for variant in variants.uniform_variants(build(FORMED, 0).plan))
    with pytest.raises(InfeasibleError) as raised:
        measure_latency(FORMED, spec, CPU, most_params=10, cap_s=0.0)
    assert f"at most 10 parameters; the smallest has {fewest:,}" in one_line(raised)


@pytest.mark.parametrize(
    ("times", "winner"),
    [
        ({"dense": 1.0, "semidense": 1.0 + module.TIE / 2, "folded": 1.1}, "semidense"),
        ({"dense": 1.0, "semidense": 1.0 + module.TIE * 1.01, "folded": 1.1}, "dense"),
        ({"dense": 1.0, "semidense": 1.0 + module.TIE / 2, "folded": 1.0 + module.TIE / 2}, "folded"),
        ({"dense": 1.0 + module.TIE / 2, "semidense": 1.0, "folded": 1.1}, "semidense"),
        ({"folded": 1.0, "dense": 1.0}, "folded"),
        ({"factored": 1.0, "folded": 1.0 + module.TIE / 2}, "folded"),
    ],
)
def test_of_forms_that_are_equally_fast_the_smallest_is_taken(
    times: dict[str, float], winner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paced(monkeypatch, **{name: [ms] for name, ms in times.items()})
    found = measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    assert found.form == winner
    assert {name: found.forms[name].median_ms for name in times} == times
    close = [form for form in found.forms.values() if form.median_ms <= min(times.values()) * (1 + module.TIE)]
    assert found.deployed_params == min(form.params for form in close)


class Other(nn.Module):
    """Almost the network."""

    def __init__(self, whole: nn.Module, factor: float) -> None:
        super().__init__()
        self.whole = whole
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x) * self.factor


@pytest.mark.parametrize(("factor", "used"), [(1 + 1e-3, False), (0.0, False), (float("nan"), False), (1 + 1e-5, True)])
def test_a_form_that_computes_something_else_is_never_told(
    factor: float, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Variant.module

    def broken(self: Variant, *given: Any) -> nn.Module:
        found = original(self, *given)
        return Other(found, factor) if self.name == "dense" else found

    monkeypatch.setattr(Variant, "module", broken)
    paced(monkeypatch, dense=[0.1])
    found = measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    assert ("dense" in found.forms) is used
    assert (found.form == "dense") is used
    assert set(found.forms) - {"dense"} == set(ALL_FORMS) - {"dense"}


def test_a_form_that_forgets_the_normalisation_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network as it is initialised would not tell: its normalisations are the identity."""
    original = variants.DeployedNetwork.__init__

    def forgetful(self: nn.Module, network: Network, forms: Any) -> None:
        original(self, network, forms)
        for buffer in [b for name, b in self.named_buffers() if name.endswith(".bias")][:-1]:
            buffer.zero_()

    monkeypatch.setattr(variants.DeployedNetwork, "__init__", forgetful)
    paced(monkeypatch, folded=[0.1], dense=[0.1])
    found = measure_latency(FORMED, ANY, CPU, cap_s=0.0)
    assert found.form == "factored"


def test_a_runtime_that_computes_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(runtime: str, network: nn.Module, x: Tensor, threads: int) -> Callable[[], Tensor]:
        run = prepare("eager", network, x, threads)
        return run if runtime == "eager" else lambda: run() + 1

    monkeypatch.setattr(module, "prepare", prepared)
    spec = SPEC.model_copy(update={"runtime": "onnxruntime"})
    with pytest.raises(IgcNasError, match=r"onnxruntime computes another function \(relative error "):
        measure_latency(FORMED, spec, CPU, cap_s=0.0)


def test_the_reference_runs_eager_and_factored_whatever_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def prepared(runtime: str, network: nn.Module, x: Tensor, threads: int) -> Callable[[], Tensor]:
        asked.append((runtime, tuple(x.shape)))
        return prepare("eager", network, x, threads)

    monkeypatch.setattr(module, "prepare", prepared)
    paced(monkeypatch)
    arch = ArchConfig.parse({**FORMED.to_dict(), "input": (3, 16, 16)})
    spec = ANY.model_copy(update={"runtime": "compile", "batch": 2})
    assert measure_latency(arch, spec, CPU, cap_s=0.0).runtime == "compile"
    assert asked.count(("compile", (2, 3, 16, 16))) == len(ALL_FORMS)
    assert asked[-1] == ("eager", (2, 3, 32, 32))


# Noise.


def test_a_wide_interval_is_noisy_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [1 + (7 * i % 97) / 97 for i in range(97)], [1.0])
    found = measure_latency(SMALL, SPEC, CPU, cap_s=0.0)
    low, high = found.normalised_interval_ms
    assert found.noise == (f"the interval is {100 * (high - low) / found.normalised_ms:.0f} % wide",)


@pytest.mark.parametrize(
    ("throttle", "noise"),
    [
        (("power cap", "thermal"), ("the clocks were held down: power cap, thermal",)),
        ((), ()),
        (None, ()),
    ],
)
def test_clocks_that_are_held_down_are_noisy_in_words(
    throttle: tuple[str, ...] | None, noise: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [2.0], [1.0])
    conditions = conditions_of(CPU).model_copy(update={"throttle": throttle})
    monkeypatch.setattr(Device, "conditions", lambda _: conditions)
    found = measure_latency(SMALL, SPEC, CPU)
    assert (found.noise, found.noisy) == (noise, bool(noise))
    assert found.conditions.throttle == throttle


def test_all_reasons_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [1.0, 2.0, 3.0], [1.0])
    words = ("its processor was shared", "other processes kept 1.3 cores busy")
    monkeypatch.setattr(module.Watch, "disturbances", lambda *_: words)
    conditions = conditions_of(CPU).model_copy(update={"throttle": ("heat",)})
    monkeypatch.setattr(Device, "conditions", lambda _: conditions)
    found = measure_latency(SMALL, SPEC, CPU, cap_s=0.0)
    assert found.noise[:2] == words
    assert "% wide" in found.noise[2]
    assert found.noise[3] == "the clocks were held down: heat"


@pytest.mark.parametrize("threads", [1, 4])
def test_the_watch_knows_the_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    scripted(monkeypatch, [2.0], [1.0])
    monkeypatch.setattr(module.Watch, "disturbances", lambda _, threads: asked.append(threads) or ())
    measure_latency(SMALL, SPEC.model_copy(update={"threads": threads}), CPU)
    assert asked == [threads]


# Records.


def test_a_record_goes_through_json_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    drift = [1 + (7 * i % 97) / 97 for i in range(97)]
    paced(monkeypatch, mixed=[0.7 * d for d in drift])
    monkeypatch.setattr(module.Watch, "disturbances", lambda *_: ("other processes kept 1.3 cores busy",))
    found = measure_latency(FORMED, ANY, CPU, reference_ms=1 / 3, cap_s=0.0)
    assert found.forms
    assert len(found.noise) == 2
    assert Latency.model_validate_json(found.model_dump_json()) == found
    assert Latency.model_validate_json(found.model_dump_json(exclude_none=True)) == found
    assert Latency.parse(json.loads(json.dumps(found.model_dump(mode="json")))) == found


def test_records_of_older_studies_load() -> None:
    study = load_study("igc_cifar10")
    assert study.folder is not None
    lines = (study.folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    candidates = [c for line in lines if (c := Trial.from_json(line).candidate)]
    assert candidates == list(study.candidates)
    assert "forms" not in lines[0]
    for candidate in candidates:
        found, row = candidate.latency, candidate_row(candidate)
        assert (found.form, found.forms, found.deployed_params, found.noise) == ("factored", {}, None, ())
        low, high = found.normalised_interval_ms
        assert 0 < low <= found.normalised_ms <= high
        assert (row["form"], row["deployed_params"], row["deployed_macs"]) == ("factored", row["params"], row["macs"])
        assert row["weight_bytes"] == 4 * row["params"]
    assert study.spec.latency.forms == "factored"
    assert not study.spec.latency.remote


def test_what_is_measured_for_one_architecture_serves_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch)
    measurer = Measurer(ANY, CPU, cap_s=0.0)
    measurer(FORMED)
    known = dict(measurer.table.times)
    assert known
    monkeypatch.setattr(variants, "_time", lambda *_: pytest.fail("this chain is known"))
    measurer(FORMED)
    assert measurer.table.times == known


# Summaries and devices.


@given(st.lists(st.floats(0.01, 100), min_size=5, max_size=60))
def test_the_interval_holds_the_median_and_repeats(samples: list[float]) -> None:
    low, high = median_interval(samples)
    assert min(samples) <= low <= np.median(samples) <= high <= max(samples)
    assert (low, high) == median_interval(samples)


def test_the_interval_covers_the_true_median() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = median_interval(list(rng.exponential(1.0, 40)), resamples=300)
        hits += low <= np.log(2) <= high
    assert 175 <= hits <= 200


def test_devices_by_name() -> None:
    assert find_devices("cpu")[0] == Device("cpu", "cpu", cpu_name())
    for text in ("gpu", "cuda:x", "cuda:-1", "CPU", "", "cuda:1234", "cpu;rm"):
        with pytest.raises(UsageError):
            find_devices(text)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_asking_for_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        find_devices("cuda")
    assert find_devices("auto")[0].kind == "cpu"


@pytest.mark.gpu
def test_latency_on_a_gpu() -> None:
    device = find_devices("cuda")[0]
    found = measure_latency(LARGE, LatencySpec(device=device.name), device, cap_s=1.0)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
