"""Variants hold and execute what they say; a mixed one takes each chain's fastest form, within its budget."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import Plan, plan
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.nn.lowering import variants
from igc_nas.nn.lowering.chain import Chain, Form, describe, factored, form_params, forms_of
from igc_nas.nn.lowering.deployment import (
    DeployedNetwork,
    FoldedConv,
    Kernel,
    PackedConv,
    ProductConv,
    inference_blocks,
    kernels_for,
)
from igc_nas.nn.lowering.parts import chains_in
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.variants import Variant, mixed_variant, uniform_variants
from igc_nas.nn.network import Network, build

TimeOf = Callable[[str, str], float]
"""Made-up milliseconds, by chain key and the form's description."""


def arch(*stages: dict[str, Any], **stem: Any) -> ArchConfig:
    stage = [{"blocks": 1} | stage for stage in stages]
    return ArchConfig.parse({"input": (3, 6, 5), "classes": 5, "stem": {"width": 8} | stem, "stage": stage})


IGCV1: dict[str, Any] = {"unit": "igcv1", "L": 4, "M": 3}
IGCV2: dict[str, Any] = {"unit": "igcv2", "width": 12, "depth": 3}
IGCV3: dict[str, Any] = {"unit": "igcv3", "width": 8, "expand": 2, "blocks": 2}
ARCHS = {
    "igcv1": arch(IGCV1 | {"blocks": 3}),
    "igcv1 residual": arch(IGCV1 | {"residual": True, "stride": 2, "blocks": 2}),
    "igcv2": arch(IGCV2, IGCV2 | {"width": 24, "depth": 4, "stride": 2}),
    "igcv3": arch(IGCV3),
    "all": arch({"unit": "conv", "width": 12, "residual": True}, IGCV1, IGCV2 | {"residual": True}, IGCV3),
}
EACH = pytest.mark.parametrize("config", ARCHS.values(), ids=ARCHS.keys())
TWINS = arch({"unit": "igcv1", "L": 4, "M": 3, "residual": True}, width=12)
"""The two chains of its block run alike: one key, two names."""


def all_chains(whole: Plan) -> list[Chain]:
    return [chain for _, parts in inference_blocks(whole) for chain in chains_in(parts)]


def chains_of(whole: Plan) -> dict[str, Chain]:
    return {chain.key: chain for chain in all_chains(whole)}


def made_up(monkeypatch: pytest.MonkeyPatch, time_of: TimeOf) -> list[str]:
    """Times instead of timing; returns the keys of the chains that were timed."""
    timed: list[str] = []

    def times(
        network: Network, block: str, chain: Chain, batch: int, forms: Mapping[str, Form], table: TimingCache
    ) -> dict[str, float]:
        timed.append(chain.key)
        return {name: time_of(chain.key, describe(chain, form)) for name, form in forms.items()}

    def kernel_times(folded: FoldedConv, batch: int, offered: tuple[Kernel, ...]) -> dict[str, float]:
        return {name: time_of(shape_of(folded), name) for name in offered}

    monkeypatch.setattr(variants, "_time_kernels", kernel_times)
    monkeypatch.setattr(variants, "_time", times)
    return timed


def shape_of(folded: FoldedConv) -> str:
    return str(dataclasses.replace(folded.conv, name=""))


def refuse(*_: object) -> dict[str, float]:
    raise AssertionError("nothing is to be timed here")


def holds(network: Network, variant: Variant) -> int:
    """The numbers that the deployed network holds."""
    return sum(tensor.numel() for tensor in DeployedNetwork(network, variant.forms).state_dict().values())


def executed(module: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // 2


def combinations(whole: Plan) -> Iterator[dict[str, Form]]:
    """Every choice of forms by key."""
    chains = chains_of(whole)
    for forms in itertools.product(*map(forms_of, chains.values())):
        yield dict(zip(chains, forms, strict=True))


def params_of(whole: Plan, forms: Mapping[str, Form]) -> int:
    linear = whole.blocks[-1].layers[-1]
    held = sum(form_params(chain, forms[chain.key]) for chain in all_chains(whole))
    return held + (linear.in_features + 1) * linear.out_features  # type: ignore[union-attr]


# What variants hold and execute.


@EACH
def test_a_variant_holds_and_executes_what_it_says(config: ArchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda key, form: float(len(form)))
    network = build(config, 0).eval()
    original, *others = uniform_variants(network.plan)
    assert (original.name, original.params, original.macs) == ("factored", cost_of(config).params, cost_of(config).macs)
    assert original.params == sum(parameter.numel() for parameter in network.parameters())
    x = torch.randn(1, *config.input)
    assert original.macs == executed(original.module(network, 1, TimingCache()), x)
    for variant in (*others, mixed_variant(network, 1, TimingCache())):
        deployed = DeployedNetwork(network, variant.forms)
        assert variant.params == holds(network, variant), variant.name
        assert variant.macs == executed(deployed, x), variant.name
        assert set(variant.forms) == set(chains_of(network.plan))


@EACH
def test_every_variant_is_the_network(config: ArchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda key, form: 1 + hash_of(key + form) / 1000)
    network = randomize_batchnorm_(build(config, 0)).eval()
    for variant in (*uniform_variants(network.plan), mixed_variant(network, 2, TimingCache())):
        with torch.inference_mode():
            x = torch.randn(3, *config.input)
            true, found = network(x), variant.module(network, 2, TimingCache())(x)
        assert (found - true).norm() < 1e-4 * true.norm(), variant.name


def hash_of(text: str) -> int:
    return sum(number * ord(letter) for number, letter in enumerate(text, start=1)) % 997


def test_the_factored_variant_is_the_network_itself() -> None:
    network = build(ARCHS["igcv1"], 0)
    factored_one, *_ = uniform_variants(network.plan)
    assert factored_one.module(network, 1, TimingCache()) is network
    assert [variant.name for variant in uniform_variants(network.plan)] == ["factored", "folded", "semidense", "dense"]


def test_folding_takes_no_weight_and_adds_no_mac() -> None:
    for config in ARCHS.values():
        original, folded, *_ = uniform_variants(plan(config))
        norms = original.params - folded.params
        assert norms > 0
        assert original.macs == folded.macs


# Kernels.


def kernels_of(module: nn.Module) -> list[tuple[FoldedConv, Kernel]]:
    """The convolutions of a module in order and the kernel of each."""
    found: list[tuple[FoldedConv, Kernel]] = []
    for child in module.children():
        if isinstance(child, PackedConv | ProductConv):
            found.append((child.folded, "packed" if isinstance(child, PackedConv) else "matmul"))
        elif isinstance(child, FoldedConv):
            found.append((child, "conv"))
        else:
            found += kernels_of(child)
    return found


@EACH
def test_each_convolution_runs_by_its_fastest_kernel(
    config: ArchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_of(key: str, name: str) -> float:
        return 1 + hash_of(name + key) / 1000

    made_up(monkeypatch, time_of)
    network, table = build(config, 0).eval(), TimingCache(tmp_path / "times.json", "owner")
    modules = [variant.module(network, 1, table) for variant in uniform_variants(network.plan)[1:]]
    table.save()
    for module in modules:
        for folded, kernel in kernels_of(module):
            assert kernel == min(kernels_for(folded), key=lambda name, folded=folded: time_of(shape_of(folded), name))
    monkeypatch.setattr(variants, "_time_kernels", refuse)
    known = TimingCache(tmp_path / "times.json", "owner")
    again = [variant.module(network, 1, known) for variant in uniform_variants(network.plan)[1:]]
    assert [[k for _, k in kernels_of(m)] for m in again] == [[k for _, k in kernels_of(m)] for m in modules]
    with pytest.raises(AssertionError):
        uniform_variants(network.plan)[1].module(network, 2, known)


def test_convolutions_of_another_size_bias_or_activation_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    usual = TimingCache.get

    def get(self: TimingCache, key: str, *rest: Any) -> dict[str, float]:
        asked.append(key)
        return usual(self, key, *rest)

    monkeypatch.setattr(TimingCache, "get", get)
    made_up(monkeypatch, lambda key, name: 1.0)
    twice = (IGCV1 | {"blocks": 2}, IGCV1 | {"blocks": 2, "stride": 2})
    same: dict[str, object] = {}
    for config in (*ARCHS.values(), arch(*twice), arch(IGCV1, activation="relu6")):
        network = build(config, 0).eval()
        for variant in uniform_variants(network.plan)[1:]:
            asked.clear()
            module = variant.module(network, 1, TimingCache())
            for key, (folded, _) in zip(asked, kernels_of(module), strict=True):
                bias = None if folded.bias is None else folded.bias.shape
                found = shape_of(folded), folded.height, folded.width, bias, folded.act
                assert same.setdefault(key, found) == found


# Mixed.


@EACH
def test_a_mixed_variant_takes_the_fastest_form_of_each_chain(
    config: ArchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(config, 0).eval()

    def time_of(key: str, form: str) -> float:
        return 1 + hash_of(key + form) / 1000

    timed = made_up(monkeypatch, time_of)
    found = mixed_variant(network, 1, TimingCache())
    for key, chain in chains_of(network.plan).items():
        assert time_of(key, describe(chain, found.forms[key])) == min(
            time_of(key, describe(chain, form)) for form in forms_of(chain)
        )
    assert sorted(timed) == sorted(chains_of(network.plan))


def test_times_come_from_the_table_and_go_into_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(ARCHS["igcv1"], 0).eval()
    table = TimingCache(tmp_path / "times.json", "owner")
    made_up(monkeypatch, lambda key, form: 1 + hash_of(key + form) / 1000)
    chosen = mixed_variant(network, 1, table)
    table.save()
    monkeypatch.setattr(variants, "_time", refuse)
    assert mixed_variant(network, 1, table) == chosen
    assert mixed_variant(network, 1, TimingCache(tmp_path / "times.json", "owner")) == chosen
    for other in (TimingCache(tmp_path / "times.json", "another"), TimingCache(tmp_path / "none.json", "owner")):
        with pytest.raises(AssertionError):
            mixed_variant(network, 1, other)
    with pytest.raises(AssertionError):
        mixed_variant(network, 4, table)


def test_what_is_timed_is_positive_and_of_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "CAP_S", 0.0)
    table = TimingCache()
    network = build(ARCHS["igcv3"], 0).eval()
    mixed_variant(network, 2, table)
    assert sum(key.startswith("deployed") for key in table.times) == len(chains_of(network.plan))
    for chain in chains_of(network.plan).values():
        assert len(table.times[f"deployed {chain.key} b2"]) == len(forms_of(chain))
    assert all(ms > 0 for times in table.times.values() for ms in times.values())


@given(st.data())
@settings(max_examples=60)
def test_a_mixed_variant_keeps_within_its_budget_where_any_form_does(data: st.DataObject) -> None:
    network = NETWORKS[data.draw(st.sampled_from(sorted(NETWORKS)))]
    whole = network.plan
    assert_within_budget(network, data.draw(st.integers(min_value := least(whole), 4 * min_value)), times_for(data))


def times_for(data: st.DataObject) -> TimeOf:
    known: dict[tuple[str, str], float] = {}

    def time_of(key: str, form: str) -> float:
        if (key, form) not in known:
            known[key, form] = data.draw(st.floats(0.001, 10))
        return known[key, form]

    return time_of


def least(whole: Plan) -> int:
    return min(params_of(whole, forms) for forms in combinations(whole))


def assert_within_budget(network: Network, most: int, time_of: TimeOf) -> None:
    """Feasible; the fastest where that is; slower than the fastest feasible choice by no form that it could still take.

    The total is over the chains as often as they run.
    """
    whole = network.plan
    chains = all_chains(whole)

    def total(forms: Mapping[str, Form]) -> float:
        return sum(time_of(chain.key, describe(chain, forms[chain.key])) for chain in chains)

    feasible = [forms for forms in combinations(whole) if params_of(whole, forms) <= most]
    with pytest.MonkeyPatch.context() as patched:
        made_up(patched, time_of)
        found = mixed_variant(network, 1, TimingCache(), most)
        fastest = mixed_variant(network, 1, TimingCache())
    assert found.params == params_of(whole, found.forms) == holds(network, found)
    assert found.params <= most
    assert total(fastest.forms) == pytest.approx(min(map(total, combinations(whole))))
    assert total(found.forms) >= min(map(total, feasible)) * (1 - 1e-9)
    if params_of(whole, fastest.forms) <= most:
        assert found == fastest


NETWORKS = {
    name: build(config, 0).eval()
    for name, config in {
        "igcv1": arch(IGCV1 | {"blocks": 3}),
        "igcv1 of one partition": arch(IGCV1 | {"L": 1, "M": 8}),
        "igcv2": arch(IGCV2, IGCV2 | {"width": 24, "depth": 4, "stride": 2}),
        "igcv3": arch(IGCV3),
        "residual": arch(IGCV1 | {"residual": True, "stride": 2}),
    }.items()
}


@EACH
def test_where_nothing_fits_every_chain_is_as_small_as_can_be(
    config: ArchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, lambda key, form: 1 / (1 + hash_of(form)))
    network = build(config, 0).eval()
    found = mixed_variant(network, 1, TimingCache(), 1)
    for key, chain in chains_of(network.plan).items():
        assert form_params(chain, found.forms[key]) == min(form_params(chain, form) for form in forms_of(chain))


@EACH
def test_the_budget_of_the_factored_network_is_kept(config: ArchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda key, form: 1 / (1 + hash_of(form)))
    assert (
        mixed_variant(build(config, 0).eval(), 1, TimingCache(), cost_of(config).params).params
        <= cost_of(config).params
    )


def test_the_cheapest_time_per_parameter_is_given_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chains that both like to be dense: the one that loses less for each parameter that it saves goes first."""
    network = build(arch(IGCV1 | {"blocks": 1}, IGCV2 | {"width": 24}), 0).eval()
    whole = network.plan
    _, first, second = chains_of(whole).values()

    def saves(chain: Chain) -> int:
        return form_params(chain, (forms_of(chain)[-1])) - form_params(chain, factored(chain))

    for cheap, dear in ((first, second), (second, first)):
        loses = {cheap.key: 0.01 * saves(cheap), dear.key: 0.02 * saves(dear)}

        def time_of(key: str, form: str, loses: Mapping[str, float] = loses) -> float:
            chain = chains_of(whole)[key]
            if form == describe(chain, forms_of(chain)[-1]):
                return 1.0
            return 1.0 + loses.get(key, 1.0) if form == describe(chain, factored(chain)) else 1e6

        made_up(monkeypatch, time_of)
        fastest = mixed_variant(network, 1, TimingCache())
        assert fastest.forms[cheap.key] == forms_of(cheap)[-1]
        found = mixed_variant(network, 1, TimingCache(), fastest.params - 1)
        assert found.forms[cheap.key] == factored(cheap)
        assert found.forms[dear.key] == forms_of(dear)[-1]
        assert found.params == fastest.params - saves(cheap)
        both = mixed_variant(network, 1, TimingCache(), fastest.params - saves(cheap) - 1)
        assert (both.forms[cheap.key], both.forms[dear.key]) == (factored(cheap), factored(dear))


def test_a_chain_that_runs_several_times_is_counted_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(arch(IGCV1 | {"blocks": 3}), 0).eval()
    made_up(monkeypatch, lambda key, form: 1 / len(form))
    found = mixed_variant(network, 1, TimingCache(), uniform_variants(network.plan)[1].params)
    assert found.params == holds(network, found) <= uniform_variants(network.plan)[1].params


def test_chains_that_run_alike_are_given_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget between the two: the variant holds what it says, and keeps within it."""
    network = build(TWINS, 0).eval()
    first, second = all_chains(network.plan)[1:3]
    assert first.key == second.key
    assert first != second
    made_up(monkeypatch, lambda key, form: 1.0 if "+" not in form else 2.0)
    most = mixed_variant(network, 1, TimingCache()).params - 1
    found = mixed_variant(network, 1, TimingCache(), most)
    assert (holds(network, found), found.params <= most) == (found.params, True)


def test_a_budget_holds_for_chains_that_run_alike() -> None:
    network = build(TWINS, 0).eval()
    whole = network.plan
    smallest = least(whole)
    for most in range(smallest, 4 * smallest, smallest // 7):
        assert_within_budget(network, most, lambda key, form: 1.0 if "+" not in form else 2.0)
