"""Latency: samples, conditions and forms are recorded as measured; drift cancels; noise is reported."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from igc_nas.analysis.tables import candidate_row
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.errors import IgcNasError, InfeasibleError, UsageError
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.host import LEAST_WATCH_S, NoiseMonitor
from igc_nas.evaluation.latency import (
    LEAST_ROUNDS,
    LEAST_S,
    MOST_ROUNDS,
    RACE,
    FormRun,
    Instruments,
    Measurer,
    RoundSamples,
    noise_reasons,
)
from igc_nas.evaluation.runtimes import Runner, runner_for
from igc_nas.nn.device import Device, cpu_name, find_devices
from igc_nas.nn.lowering import variants
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.network import build
from igc_nas.study.records import Latency, Trial
from igc_nas.study.spec import LatencySpec, RuntimeName
from igc_nas.study.study import load_study
from tests.support.builders import one_line

CPU = Device("cpu", "cpu", "test")
SPEC = LatencySpec(device="test")
SMALL = ArchConfig.parse({"stem": {"width": 8, "stride": 4}, "stage": [{"unit": "conv", "width": 8, "blocks": 1}]})
ANY = LatencySpec(device="test", forms="any")
SCATTERED = [1 + (7 * i % 97) / 97 for i in range(97)]
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


def test_a_measurement_records_its_samples_and_conditions() -> None:
    found = Measurer(SPEC, CPU, cap_s=0.3)(SMALL)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert found.n == len(found.samples_ms) == len(found.reference_samples_ms) >= LEAST_ROUNDS
    assert found.median_ms == pytest.approx(np.median(found.samples_ms), rel=1e-3)
    assert (found.runtime, found.batch, found.dtype, found.input) == ("eager", 1, "float32", (3, 32, 32))
    assert (found.conditions.device, found.conditions.threads, found.conditions.torch) == ("test", 1, torch.__version__)


def test_a_network_with_fifty_times_the_macs_is_slower() -> None:
    assert Measurer(SPEC, CPU, cap_s=0.3)(LARGE).median_ms > 2 * Measurer(SPEC, CPU, cap_s=0.3)(SMALL).median_ms


class Quiet(NoiseMonitor):
    """This machine may be busy; a script is not."""

    def disturbances(self, threads: int = 1) -> tuple[str, ...]:
        return ()


class Script:
    """Timers that read their times from lists, repeated for ever, by the form's name; `reference` is the reference
    network, `others` are all other forms. `order` notes who ran; no time passes."""

    def __init__(self, **times: list[float]) -> None:
        self.left = {name: itertools.cycle(values) for name, values in times.items()}
        self.order: list[str] = []

    def timer(self, run: FormRun, spec: LatencySpec, device: Device) -> Callable[[], float]:
        def once() -> float:
            self.order.append(run.name)
            return next(self.left.get(run.name) or self.left["others"])

        return once

    @property
    def race(self) -> list[str]:
        """Who ran before the rounds with the reference."""
        return self.order[: self.order.index("reference")]

    def instruments(self, **changes: Any) -> Instruments:
        usual = {
            "timer": self.timer,
            "warm_up": lambda *_: None,
            "race": replace(RACE, cap_s=60.0),
            "least_s": 0.0,
            "monitor": lambda _: Quiet(),
        }
        return Instruments(**(usual | changes))


def scripted(network_ms: list[float], reference_ms: list[float], **changes: Any) -> Instruments:
    """Instruments that read the times of the network and the reference from lists."""
    return Script(others=network_ms, reference=reference_ms).instruments(**changes)


class Known(TimingCache):
    """Every part of every chain is known to take a millisecond: nothing is timed to choose kernels."""

    def get(self, key: str, names: Iterable[str], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        return dict.fromkeys(names, 1.0)


def measured(
    instruments: Instruments,
    arch: ArchConfig = SMALL,
    spec: LatencySpec = SPEC,
    reference_ms: float | None = None,
    **more: Any,
) -> Latency:
    return Measurer(spec, CPU, instruments=instruments, **({"cache": Known()} | more))(arch, reference_ms)


def test_a_drift_that_both_networks_see_cancels() -> None:
    drift = [1 + 0.01 * i for i in range(100)]
    found = measured(scripted([2.0 * d for d in drift], [4.0 * d for d in drift]), reference_ms=4.0, cap_s=0.0)
    assert found.normalised_ms == pytest.approx(2.0)
    assert found.normalised_interval_ms == pytest.approx((2.0, 2.0))
    assert found.median_ms > 2.1
    assert found.low_ms < found.high_ms
    assert not found.noisy


def test_what_the_networks_do_not_share_is_noise() -> None:
    found = measured(scripted(SCATTERED, [1.0]), cap_s=0.0)
    low, high = found.normalised_interval_ms
    assert low < found.normalised_ms < high
    assert found.noisy


def test_without_a_study_the_reference_is_this_measurements_own() -> None:
    found = measured(scripted([3.0], [1.5]))
    assert (found.normalised_ms, found.reference_ms, found.median_ms) == (3.0, 1.5, 3.0)


def test_rounds_stop_when_the_interval_is_narrow() -> None:
    assert measured(scripted([2.0], [1.0])).n == LEAST_ROUNDS
    assert measured(scripted(SCATTERED, [1.0])).n == MOST_ROUNDS


@pytest.mark.parametrize(("race_s", "rounds"), [(0.0, 41), (0.005, 36), (0.04, 31), (9.0, 31)])
def test_rounds_go_on_until_neighbours_would_have_been_noticed(race_s: float, rounds: int) -> None:
    """The race counts towards the least time. By this clock a round takes a millisecond."""
    assert LEAST_S > LEAST_WATCH_S
    ticks = itertools.chain([0.0], (race_s + 0.001 * i for i in range(500)))
    instruments = scripted([1.0], [1.0], clock=lambda: next(ticks), least_s=0.0395)
    assert measured(instruments, cap_s=9.0).n == rounds


def test_recorded_times_are_taken_alone_and_all_else_beforehand() -> None:
    """Building, checking and choosing kernels are done before; other processes may measure between two forms."""
    events: list[str] = []

    @contextlib.contextmanager
    def alone() -> Iterator[None]:
        events.append("alone")
        yield
        events.append("together")

    def runner(*given: Any) -> Runner:
        events.append("build")
        return runner_for(*given)

    def timer(run: FormRun, *_: object) -> Callable[[], float]:
        return lambda: events.append("timed") or 1.0

    class Noting(TimingCache):
        def get(self, key: str, names: Iterable[str], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
            names = list(names)
            return super().get(key, names, lambda: events.append("kernels") or dict.fromkeys(names, 1.0))

    cache = Noting(pause=lambda: events.append("pause"))
    instruments = Script().instruments(timer=timer, runner=runner)
    measured(instruments, FORMED, ANY, cache=cache, alone=alone, pause=lambda: events.append("pause"))
    before, within = events[: events.index("alone")], events[events.index("alone") :]
    assert within == ["alone", *["timed"] * (len(within) - 2), "together"]
    assert before.count("build") == len(ALL_FORMS) + 2, "the network to compare with and the reference are built once"
    assert before.count("kernels") > 0
    assert before.count("pause") == len(ALL_FORMS) + before.count("kernels")


# Forms.


def paced(**times: list[float]) -> Script:
    """The reference takes 1 ms, forms that are not named 2 ms."""
    return Script(**({"reference": [1.0], "others": [2.0]} | times))


def test_all_forms_are_recorded_and_the_fastest_is_deployed() -> None:
    found = measured(paced(semidense=[1.5]).instruments(), FORMED, ANY, cap_s=0.0)
    assert tuple(found.forms) == ALL_FORMS
    assert (found.form, found.median_ms) == ("semidense", 1.5)
    network = build(FORMED, 0)
    for variant in variants.uniform_variants(network.plan):
        recorded = found.forms[variant.name]
        assert (recorded.params, recorded.macs) == (variant.params, variant.macs)
        assert recorded.weight_bytes >= 4 * recorded.params
    assert {form.median_ms for name, form in found.forms.items() if name != "semidense"} == {2.0}
    cost = cost_of(FORMED)
    assert (found.forms["factored"].params, found.forms["factored"].macs) == (cost.params, cost.macs)
    assert found.forms["dense"].params > found.forms["semidense"].params > found.forms["folded"].params


@pytest.mark.parametrize("winner", ALL_FORMS)
def test_what_is_deployed_is_the_winning_form(winner: str) -> None:
    found = measured(paced(**{winner: [1.0]}).instruments(), FORMED, ANY, cap_s=0.0)
    form = found.forms[winner]
    assert found.form == winner
    assert (found.deployed_params, found.deployed_macs) == (form.params, form.macs)
    assert found.weight_bytes == form.weight_bytes
    assert found.low_ms == found.median_ms == found.high_ms == form.median_ms


def test_the_counts_of_a_form_are_those_of_its_tensors() -> None:
    network = build(FORMED, 0)
    for variant in variants.uniform_variants(network.plan)[1:]:
        held = variants.DeployedNetwork(network, variant.forms)
        assert variant.params == sum(tensor.numel() for tensor in held.state_dict().values()), variant.name


def test_the_winner_is_measured_on_fresh_samples() -> None:
    """The latency of a form that is fast in the race and slow afterwards is the later one."""
    turns = 1 + RACE.drop_after
    script = paced(dense=[1.0] * turns + [5.0] * 1000)
    found = measured(script.instruments(), FORMED, ANY, cap_s=0.0)
    assert found.form == "dense"
    assert (found.median_ms, found.forms["dense"].median_ms) == (5.0, 1.0), (
        "the times of the race are recorded unchanged"
    )
    assert set(found.samples_ms) == {5.0}
    race = turns * len(ALL_FORMS)
    assert script.order[:race] == [*ALL_FORMS] * turns, "forms take turns, after a warm-up"
    assert script.order[race:] == ["reference", "dense"] * found.n, "the others are slow"


def test_a_race_goes_on_among_those_that_may_win() -> None:
    """Slow forms leave it after three rounds, by the median: one slow round is an outlier. A form that was slower in
    nearly every round leaves it after five."""
    assert (RACE.drop_after, RACE.drop_above) == (3, 1.5)
    even, rounds = [1.0 + RACE.tie / 2], RACE.rounds
    slower = [1.0 + 2 * RACE.tie]
    script = paced(dense=[1.0], semidense=even, folded=[1.2, 50.0, 1.2, *slower * 100], mixed=[1.6])
    found = measured(script.instruments(), FORMED, ANY, cap_s=0.0)
    assert found.form == "semidense", "it holds less"
    race = script.race
    assert race[: 4 * len(ALL_FORMS)] == [*ALL_FORMS] * 4
    assert {name: race.count(name) - 1 for name in ALL_FORMS} == {
        "factored": 3,
        "mixed": 3,
        "dense": rounds,
        "semidense": rounds,
        "folded": 5,
    }
    assert tuple(found.forms) == ALL_FORMS, "all are recorded"
    assert (found.forms["mixed"].median_ms, found.forms["factored"].median_ms) == (1.6, 2.0)


def test_a_form_that_is_as_fast_in_some_rounds_stays_in_the_race() -> None:
    """A form that is slower in most rounds is not dropped."""
    now_and_then = [1.1, 1.1, 1.1, 1.0] * 100
    script = paced(dense=[1.0], semidense=now_and_then)
    found = measured(script.instruments(), FORMED, ANY, cap_s=0.0)
    assert (found.form, script.race.count("semidense")) == ("dense", 16)


def test_a_race_ends_where_one_is_left_or_by_the_clock() -> None:
    script = paced(dense=[1.0], semidense=[1.0])
    measured(script.instruments(race=replace(RACE, cap_s=0.0)), FORMED, ANY, cap_s=0.0)
    assert len(script.race) == (1 + RACE.drop_after) * len(ALL_FORMS)
    script = paced(dense=[1.0], semidense=[1.2])
    measured(script.instruments(), FORMED, ANY, cap_s=0.0)
    later = script.race[4 * len(ALL_FORMS) :]
    assert later == ["semidense", "dense"] * 2


def test_a_dropped_form_does_not_win_when_the_machine_slows_down() -> None:
    """Its times are of the first rounds only; the finalists' are mostly of later ones."""
    slowing = [1.0] * 4 + [3.0] * (RACE.rounds - 3)
    found = measured(
        paced(dense=slowing + [1.0] * 1000, semidense=slowing + [1.0] * 1000, mixed=[1.8] * 1000).instruments(),
        FORMED,
        ANY,
        cap_s=0.0,
    )
    assert (found.form, found.forms["dense"].median_ms) == ("semidense", 3.0)


def test_only_the_factored_form_is_measured_if_the_spec_says_so() -> None:
    found = Measurer(SPEC, CPU, cap_s=0.0)(FORMED)
    cost = cost_of(FORMED)
    assert (found.form, found.forms) == ("factored", {})
    assert (found.deployed_params, found.deployed_macs) == (cost.params, cost.macs)
    assert found.weight_bytes == 4 * cost.params


class DenserIsFaster(TimingCache):
    """In every chain a form is the faster the more it is multiplied out."""

    def get(self, key: str, names: Iterable[str], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        return {name: 1.0 + name.count("/") for name in names}


@pytest.mark.parametrize("slack", [0, 100, 400, 1500, 100_000])
def test_within_the_budget_no_form_is_over_it(slack: int) -> None:
    most = cost_of(FORMED).params + slack
    spec = ANY.model_copy(update={"forms": "within-budget"})
    instruments = paced(mixed=[1.0]).instruments()
    found = measured(instruments, FORMED, spec, most_params=most, cache=DenserIsFaster(), cap_s=0.0)
    assert {"factored", "mixed"} <= set(found.forms), "mixed is cut down to the budget"
    assert all(form.params <= most for form in found.forms.values())
    every = {variant.name for variant in variants.uniform_variants(build(FORMED, 0).plan) if variant.params <= most}
    assert set(found.forms) - {"mixed"} == every
    assert found.deployed_params is not None
    assert found.deployed_params <= most


def test_without_a_budget_within_it_is_any() -> None:
    instruments = paced().instruments()
    spec = ANY.model_copy(update={"forms": "within-budget"})
    assert tuple(measured(instruments, FORMED, spec, cap_s=0.0).forms) == ALL_FORMS
    assert tuple(measured(instruments, FORMED, ANY, most_params=1, cap_s=0.0).forms) == ALL_FORMS


def test_a_budget_that_no_form_keeps_is_an_error() -> None:
    spec = ANY.model_copy(update={"forms": "within-budget"})
    fewest = min(variant.params for variant in variants.uniform_variants(build(FORMED, 0).plan))
    with pytest.raises(InfeasibleError) as raised:
        Measurer(spec, CPU, most_params=10, cap_s=0.0)(FORMED)
    assert f"at most 10 parameters; the smallest has {fewest:,}" in one_line(raised)


@pytest.mark.parametrize(
    ("times", "winner"),
    [
        ({"dense": 1.0, "semidense": 1.0 + RACE.tie / 2, "folded": 1.1}, "semidense"),
        ({"dense": 1.0, "semidense": 1.0 + RACE.tie * 1.01, "folded": 1.1}, "dense"),
        ({"dense": 1.0, "semidense": 1.0 + RACE.tie / 2, "folded": 1.0 + RACE.tie / 2}, "folded"),
        ({"dense": 1.0 + RACE.tie / 2, "semidense": 1.0, "folded": 1.1}, "semidense"),
        ({"folded": 1.0, "dense": 1.0}, "folded"),
        ({"factored": 1.0, "folded": 1.0 + RACE.tie / 2}, "folded"),
    ],
)
def test_of_forms_that_are_equally_fast_the_smallest_is_taken(times: dict[str, float], winner: str) -> None:
    found = measured(paced(**{name: [ms] for name, ms in times.items()}).instruments(), FORMED, ANY, cap_s=0.0)
    assert found.form == winner
    assert {name: found.forms[name].median_ms for name in times} == times
    close = [form for form in found.forms.values() if form.median_ms <= min(times.values()) * (1 + RACE.tie)]
    assert found.deployed_params == min(form.params for form in close)


@pytest.mark.parametrize(("factor", "used"), [(1 + 1e-3, False), (0.0, False), (float("nan"), False), (1 + 1e-5, True)])
def test_a_form_that_computes_something_else_is_not_recorded(factor: float, used: bool) -> None:
    made = iter(["the network itself", *ALL_FORMS, "reference"])

    def runner(runtime: RuntimeName, network: nn.Module, x: Tensor, threads: int) -> Runner:
        run = runner_for(runtime, network, x, threads)
        return (lambda: run() * factor) if next(made) == "dense" else run

    found = measured(paced(dense=[0.1]).instruments(runner=runner), FORMED, ANY, cap_s=0.0)
    assert ("dense" in found.forms) is used
    assert (found.form == "dense") is used
    assert set(found.forms) - {"dense"} == set(ALL_FORMS) - {"dense"}


def test_a_form_that_forgets_the_normalisation_is_not_used() -> None:
    """In a freshly initialised network it would go unnoticed: there a normalisation is the identity."""

    def forgetful(runtime: RuntimeName, network: nn.Module, x: Tensor, threads: int) -> Runner:
        for buffer in [b for name, b in network.named_buffers() if name.endswith(".bias")][:-1]:
            buffer.zero_()
        return runner_for(runtime, network, x, threads)

    script = paced(folded=[0.1], dense=[0.1])
    assert measured(script.instruments(runner=forgetful), FORMED, ANY, cap_s=0.0).form == "factored"


def test_a_runtime_that_computes_something_else_is_an_error() -> None:
    def runner(runtime: RuntimeName, network: nn.Module, x: Tensor, threads: int) -> Runner:
        run = runner_for("eager", network, x, threads)
        return run if runtime == "eager" else lambda: run() + 1

    spec = SPEC.model_copy(update={"runtime": "onnxruntime"})
    with pytest.raises(IgcNasError, match=r"onnxruntime computes another function \(relative error "):
        measured(Instruments(runner=runner), FORMED, spec, cap_s=0.0)


def test_the_reference_runs_eager_and_factored_whatever_is_measured() -> None:
    made = []

    def runner(runtime: RuntimeName, network: nn.Module, x: Tensor, threads: int) -> Runner:
        made.append((runtime, tuple(x.shape)))
        return runner_for("eager", network, x, threads)

    arch = ArchConfig.parse({**FORMED.to_dict(), "input": (3, 16, 16)})
    spec = ANY.model_copy(update={"runtime": "compile", "batch": 2})
    assert measured(paced().instruments(runner=runner), arch, spec, cap_s=0.0).runtime == "compile"
    assert made.count(("compile", (2, 3, 16, 16))) == len(ALL_FORMS)
    assert made[-1] == ("eager", (2, 3, 32, 32))


# Noise.


def rounds_of(network_ms: list[float]) -> RoundSamples:
    return RoundSamples(network_ms, [1.0] * len(network_ms))


STEADY = [2.0] * 31


def test_a_wide_interval_is_noisy_in_words() -> None:
    found = measured(scripted(SCATTERED, [1.0]), cap_s=0.0)
    low, high = found.normalised_interval_ms
    assert found.noise == (f"the interval is {100 * (high - low) / found.normalised_ms:.0f} % wide",)
    assert found.noisy


@pytest.mark.parametrize(
    ("throttle", "noise"),
    [
        (("power cap", "thermal"), ("the clocks were held down: power cap, thermal",)),
        ((), ()),
        (None, ()),
    ],
)
def test_clocks_that_are_held_down_are_noisy_in_words(throttle: tuple[str, ...] | None, noise: tuple[str, ...]) -> None:
    conditions = conditions_of(CPU).model_copy(update={"throttle": throttle})
    assert noise_reasons(rounds_of(STEADY), conditions) == noise
    found = measured(scripted([2.0], [1.0], conditions=lambda _: conditions))
    assert (found.noise, found.noisy, found.conditions) == (noise, bool(noise), conditions)


def test_all_reasons_are_reported() -> None:
    disturbances = ("its processor was shared", "other processes kept 1.3 cores busy")
    conditions = conditions_of(CPU).model_copy(update={"throttle": ("heat",)})
    found = noise_reasons(rounds_of(SCATTERED), conditions, disturbances)
    assert found[:2] == disturbances
    assert "% wide" in found[2]
    assert found[3] == "the clocks were held down: heat"


@pytest.mark.parametrize("threads", [1, 4])
def test_the_monitor_knows_the_threads_and_its_words_are_recorded(threads: int) -> None:
    class Disturbed(NoiseMonitor):
        def disturbances(self, threads: int = 1) -> tuple[str, ...]:
            return (f"{threads} disturbed",)

    spec = SPEC.model_copy(update={"threads": threads})
    found = measured(scripted([2.0], [1.0], monitor=lambda _: Disturbed()), spec=spec)
    assert (found.noise, found.noisy) == ((f"{threads} disturbed",), True)


# Records.


def test_a_record_goes_through_json_without_loss() -> None:
    script = paced(mixed=[0.7 * d for d in SCATTERED])
    found = measured(script.instruments(), FORMED, ANY, reference_ms=1 / 3, cap_s=0.0)
    assert found.forms
    assert found.noise
    assert Latency.model_validate_json(found.model_dump_json()) == found
    assert Latency.model_validate_json(found.model_dump_json(exclude_none=True)) == found
    assert Latency.parse(json.loads(json.dumps(found.model_dump(mode="json")))) == found


def test_a_form_has_an_interval_if_it_ran_in_six_rounds() -> None:
    """Nothing is invented for the others: three rounds cannot say where a median lies."""
    script = paced(dense=[1.0 + d / 100 for d in SCATTERED], semidense=[1.01], mixed=[1.8])
    forms = measured(script.instruments(), FORMED, ANY, cap_s=0.0).forms
    assert (forms["mixed"].low_ms, forms["mixed"].high_ms) == (None, None)
    dense = forms["dense"]
    assert dense.low_ms is not None
    assert dense.high_ms is not None
    assert dense.low_ms < dense.median_ms < dense.high_ms


def test_the_samples_of_a_record_give_its_numbers() -> None:
    samples = RoundSamples([2.0 + i for i in range(31)], [1.0 + i % 3 for i in range(31)])
    facts = samples.statistics(reference_ms=4.0)
    assert facts["median_ms"] == 17.0
    assert facts["low_ms"] < 17.0 < facts["high_ms"]
    assert facts["normalised_ms"] == 4.0 * np.median(samples.ratios()) == 4.0 * samples.ratio()
    assert (facts["normalised_low_ms"], facts["normalised_high_ms"]) == tuple(4.0 * end for end in samples.interval())
    assert facts["reference_ms"] == 2.0
    assert samples.statistics(None)["normalised_ms"] == 2.0 * samples.ratio()


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


def test_what_is_measured_for_one_architecture_serves_the_next() -> None:
    class Counting(TimingCache):
        measured = 0

        def get(self, key: str, names: Iterable[str], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
            def counted() -> dict[str, float]:
                self.measured += 1
                return measure()

            return super().get(key, names, counted)

    cache = Counting()
    measurer = Measurer(ANY, CPU, cache=cache, cap_s=0.0, instruments=paced().instruments())
    measurer(FORMED)
    known = cache.measured
    assert known > 0
    measurer(FORMED)
    assert cache.measured == known


# Devices.


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
    found = Measurer(LatencySpec(device=device.name), device, cap_s=1.0)(LARGE)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
