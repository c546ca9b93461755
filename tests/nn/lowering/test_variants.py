"""Variants have the parameters and MACs that they report; `mixed` takes each chain's fastest form within a budget."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import Plan, plan
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.nn.lowering.chain import Chain, ConvKey, Form, factored, form_key, form_params, forms_of
from igc_nas.nn.lowering.deployment import (
    DeployedNetwork,
    FoldedConv,
    Kernel,
    PackedConv,
    ProductConv,
    kernels_for,
)
from igc_nas.nn.lowering.parts import chains_in, inference_blocks
from igc_nas.nn.lowering.timing_cache import Times, TimingCache
from igc_nas.nn.lowering.variants import Variant, mixed_variant, uniform_variants
from igc_nas.nn.network import Network, build
from tests.support.shares import examples

TimeOf = Callable[[str, str], float]
"""Made-up milliseconds of an alternative, by its key in the cache and its name."""


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
"""The two chains of its block have the same key."""


def all_chains(whole: Plan) -> list[Chain]:
    return [chain for _, parts in inference_blocks(whole) for chain in chains_in(parts)]


def chains_of(whole: Plan) -> dict[str, Chain]:
    return {chain.key: chain for chain in all_chains(whole)}


class MadeUp(TimingCache):
    """A cache whose measurements are made up; `measured` are the keys that it did not know, `asked` all keys."""

    def __init__(self, time_of: TimeOf, path: Path | None = None, owner: str = "") -> None:
        super().__init__(path, owner)
        self.time_of = time_of
        self.asked: list[str] = []
        self.measured: list[str] = []

    def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
        names = list(names)
        self.asked.append(key)

        def made_up() -> Times:
            self.measured.append(key)
            return {name: self.time_of(key, name) for name in names}

        return super().get(key, names, made_up)


class Known(TimingCache):
    """A cache that must not measure anything."""

    def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
        return super().get(key, names, refuse)


def refuse() -> Times:
    raise AssertionError("nothing is to be timed here")


def hashed(key: str, name: str) -> float:
    """A different time for each key and name."""
    return 1 + hash_of(key + name) / 1000


def time_in(time_of: TimeOf, chain: Chain, form: Form, batch: int = 1) -> float:
    return time_of(f"deployed {chain.key} b{batch}", form_key(form))


def holds(network: Network, variant: Variant) -> int:
    """Elements of all tensors of the deployed network."""
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
def test_a_variant_has_the_parameters_and_macs_that_it_reports(config: ArchConfig) -> None:
    cache = MadeUp(lambda key, name: float(len(name)))
    network = build(config, 0).eval()
    original, *others = uniform_variants(network.plan)
    assert (original.name, original.params, original.macs) == ("factored", cost_of(config).params, cost_of(config).macs)
    assert original.params == sum(parameter.numel() for parameter in network.parameters())
    x = torch.randn(1, *config.input)
    assert original.macs == executed(original.module(network, 1, TimingCache()), x)
    for variant in (*others, mixed_variant(network, 1, cache)):
        deployed = DeployedNetwork(network, variant.forms)
        assert variant.params == holds(network, variant), variant.name
        assert variant.macs == executed(deployed, x), variant.name
        assert set(variant.forms) == set(chains_of(network.plan))


@EACH
def test_every_variant_computes_what_the_network_does(config: ArchConfig) -> None:
    cache = MadeUp(hashed)
    network = randomize_batchnorm_(build(config, 0)).eval()
    for variant in (*uniform_variants(network.plan), mixed_variant(network, 2, cache)):
        with torch.inference_mode():
            x = torch.randn(3, *config.input)
            true, found = network(x), variant.module(network, 2, cache)(x)
        assert (found - true).norm() < 1e-4 * true.norm(), variant.name


def hash_of(text: str) -> int:
    return sum(number * ord(letter) for number, letter in enumerate(text, start=1)) % 997


def test_the_factored_variant_is_the_network_itself() -> None:
    network = build(ARCHS["igcv1"], 0)
    factored_one, *_ = uniform_variants(network.plan)
    assert factored_one.module(network, 1, TimingCache()) is network
    assert [variant.name for variant in uniform_variants(network.plan)] == ["factored", "folded", "semidense", "dense"]


def test_folding_removes_the_norms_and_adds_no_mac() -> None:
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
def test_each_convolution_runs_by_its_fastest_kernel(config: ArchConfig, tmp_path: Path) -> None:
    def time_of(shape: str, name: str) -> float:
        return hashed(name, shape)

    network = build(config, 0).eval()
    with MadeUp(lambda key, name: time_of(key.split()[1], name), tmp_path / "times.json", "owner") as cache:
        modules = [variant.module(network, 1, cache) for variant in uniform_variants(network.plan)[1:]]
    for module in modules:
        for folded, kernel in kernels_of(module):
            shape = str(ConvKey(folded.conv, folded.height, folded.width))
            assert kernel == min(kernels_for(folded), key=lambda name, shape=shape: time_of(shape, name))
    known = Known(tmp_path / "times.json", "owner")
    again = [variant.module(network, 1, known) for variant in uniform_variants(network.plan)[1:]]
    assert [[k for _, k in kernels_of(m)] for m in again] == [[k for _, k in kernels_of(m)] for m in modules]
    with pytest.raises(AssertionError):
        uniform_variants(network.plan)[1].module(network, 2, known)


def test_convolutions_of_another_size_bias_or_activation_have_keys_of_their_own() -> None:
    twice = (IGCV1 | {"blocks": 2}, IGCV1 | {"blocks": 2, "stride": 2})
    same: dict[str, object] = {}
    for config in (*ARCHS.values(), arch(*twice), arch(IGCV1, activation="relu6")):
        network = build(config, 0).eval()
        for variant in uniform_variants(network.plan)[1:]:
            cache = MadeUp(lambda key, name: 1.0)
            module = variant.module(network, 1, cache)
            for key, (folded, _) in zip(cache.asked, kernels_of(module), strict=True):
                bias = None if folded.bias is None else folded.bias.shape
                found = str(dataclasses.replace(folded.conv, name="")), folded.height, folded.width, bias, folded.act
                assert same.setdefault(key, found) == found


def test_keys_are_those_of_the_files_on_disk() -> None:
    """Users keep these files: another key would have every shape timed anew."""
    network, cache = build(arch(IGCV3 | {"blocks": 1}), 0).eval(), MadeUp(lambda key, name: 1.0)
    mixed_variant(network, 1, cache).module(network, 1, cache)
    assert sorted(cache.times) == [
        "deployed c1g2i16o8-b@6x5 b1",
        "deployed c1g2i8o16-b-p2of16-c3g16i16o16-b@6x5 b1",
        "deployed c3g1i3o8-b@6x5 b1",
        "kernel c1s1g2i16o8@6x5 bias None b1",
        "kernel c1s1g2i8o16@6x5 bias None b1",
        "kernel c3s1g16i16o16@6x5 bias relu6 b1",
        "kernel c3s1g1i3o8@6x5 bias relu b1",
    ]
    assert set(cache.times["deployed c1g2i8o16-b-p2of16-c3g16i16o16-b@6x5 b1"]) == {"1g1/1g16", "1g2/1g16", "2g1"}


# Mixed.


@EACH
def test_a_mixed_variant_takes_the_fastest_form_of_each_chain(config: ArchConfig) -> None:
    network, cache = build(config, 0).eval(), MadeUp(hashed)
    found = mixed_variant(network, 1, cache)
    for key, chain in chains_of(network.plan).items():
        times = {form: time_in(hashed, chain, form) for form in forms_of(chain)}
        assert times[found.forms[key]] == min(times.values())
    assert sorted(cache.measured) == sorted(f"deployed {key} b1" for key in chains_of(network.plan))


def test_times_come_from_the_cache_and_go_into_its_file(tmp_path: Path) -> None:
    network = build(ARCHS["igcv1"], 0).eval()
    cache = MadeUp(hashed, tmp_path / "times.json", "owner")
    chosen = mixed_variant(network, 1, cache)
    measured = len(cache.measured)
    assert mixed_variant(network, 1, cache) == chosen
    assert len(cache.measured) == measured
    known = Known(tmp_path / "times.json", "owner")
    assert mixed_variant(network, 1, known) == chosen
    for other in (Known(tmp_path / "times.json", "another"), Known(tmp_path / "none.json", "owner")):
        with pytest.raises(AssertionError):
            mixed_variant(network, 1, other)
    with pytest.raises(AssertionError):
        mixed_variant(network, 4, known)


def test_measured_times_are_positive_and_of_every_form() -> None:
    cache = TimingCache()
    network = build(ARCHS["igcv3"], 0).eval()
    mixed_variant(network, 2, cache)
    assert sum(key.startswith("deployed") for key in cache.times) == len(chains_of(network.plan))
    for chain in chains_of(network.plan).values():
        assert set(cache.times[f"deployed {chain.key} b2"]) == set(map(form_key, forms_of(chain)))
    assert all(ms > 0 for times in cache.times.values() for ms in times.values())


@given(st.data())
@examples(60)
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
    """The variant is within the budget, is the fastest one if that is feasible, and never beats the true optimum.

    The total is over the chains as often as they run.
    """
    whole = network.plan
    chains = all_chains(whole)

    def total(forms: Mapping[str, Form]) -> float:
        return sum(time_in(time_of, chain, forms[chain.key]) for chain in chains)

    feasible = [forms for forms in combinations(whole) if params_of(whole, forms) <= most]
    found = mixed_variant(network, 1, MadeUp(time_of), most)
    fastest = mixed_variant(network, 1, MadeUp(time_of))
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
def test_if_no_combination_fits_every_chain_takes_its_smallest_form(config: ArchConfig) -> None:
    network = build(config, 0).eval()
    found = mixed_variant(network, 1, MadeUp(lambda key, name: 1 / (1 + hash_of(name))), 1)
    for key, chain in chains_of(network.plan).items():
        assert form_params(chain, found.forms[key]) == min(form_params(chain, form) for form in forms_of(chain))


@EACH
def test_a_budget_of_the_factored_networks_parameters_is_kept(config: ArchConfig) -> None:
    most = cost_of(config).params
    cache = MadeUp(lambda key, name: 1 / (1 + hash_of(name)))
    assert mixed_variant(build(config, 0).eval(), 1, cache, most).params <= most


def test_the_chain_that_loses_least_time_per_parameter_is_made_smaller_first() -> None:
    """Of two chains that are fastest when dense."""
    network = build(arch(IGCV1 | {"blocks": 1}, IGCV2 | {"width": 24}), 0).eval()
    whole = network.plan
    _, first, second = chains_of(whole).values()

    def saves(chain: Chain) -> int:
        return form_params(chain, (forms_of(chain)[-1])) - form_params(chain, factored(chain))

    for cheap, dear in ((first, second), (second, first)):
        loses = {cheap.key: 0.01 * saves(cheap), dear.key: 0.02 * saves(dear)}

        def time_of(key: str, name: str, loses: Mapping[str, float] = loses) -> float:
            chain = chains_of(whole)[key.split()[1]]
            if name == form_key(forms_of(chain)[-1]):
                return 1.0
            return 1.0 + loses.get(chain.key, 1.0) if name == form_key(factored(chain)) else 1e6

        cache = MadeUp(time_of)
        fastest = mixed_variant(network, 1, cache)
        assert fastest.forms[cheap.key] == forms_of(cheap)[-1]
        found = mixed_variant(network, 1, cache, fastest.params - 1)
        assert found.forms[cheap.key] == factored(cheap)
        assert found.forms[dear.key] == forms_of(dear)[-1]
        assert found.params == fastest.params - saves(cheap)
        both = mixed_variant(network, 1, cache, fastest.params - saves(cheap) - 1)
        assert (both.forms[cheap.key], both.forms[dear.key]) == (factored(cheap), factored(dear))


def test_a_chain_that_runs_several_times_is_counted_as_often() -> None:
    network = build(arch(IGCV1 | {"blocks": 3}), 0).eval()
    found = mixed_variant(network, 1, MadeUp(lambda key, name: 1 / len(name)), uniform_variants(network.plan)[1].params)
    assert found.params == holds(network, found) <= uniform_variants(network.plan)[1].params


def test_chains_of_one_key_change_their_form_together() -> None:
    """With a budget that one of them would reach: the variant reports what it has, and that is within the budget."""
    network = build(TWINS, 0).eval()
    first, second = all_chains(network.plan)[1:3]
    assert first.key == second.key
    assert first != second
    cache = MadeUp(lambda key, name: 1.0 if "/" not in name else 2.0)
    most = mixed_variant(network, 1, cache).params - 1
    found = mixed_variant(network, 1, cache, most)
    assert (holds(network, found), found.params <= most) == (found.params, True)


def test_a_budget_holds_for_chains_of_one_key() -> None:
    network = build(TWINS, 0).eval()
    whole = network.plan
    smallest = least(whole)
    for most in range(smallest, 4 * smallest, smallest // 7):
        assert_within_budget(network, most, lambda key, name: 1.0 if "/" not in name else 2.0)
