"""The forms in which a network can be deployed, each with its parameters and MACs.

factored    the modules of the papers with separate normalisation, as in training
folded      the same convolutions with normalisation and activation folded in
semidense   pointwise convolutions multiplied out, spatial ones in their groups
dense       every chain multiplied out as far as possible
mixed       each chain in the form that was measured to be fastest
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from igc_nas.arch.cost import Cost, plan_cost
from igc_nas.arch.plan import Plan
from igc_nas.nn.cuda_timing import event_timer
from igc_nas.nn.device import exact_float32, without_cudnn_benchmark
from igc_nas.nn.lowering.chain import (
    Chain,
    ConvKey,
    Form,
    dense,
    factored,
    form_key,
    form_macs,
    form_params,
    forms_of,
    semidense,
)
from igc_nas.nn.lowering.deployment import (
    DeployedNetwork,
    FoldedConv,
    Kernel,
    chain_module,
    kernels_for,
    set_kernels_,
    with_kernel,
)
from igc_nas.nn.lowering.parts import chains_in, cost_beside_chains, inference_blocks
from igc_nas.nn.lowering.timing_cache import Times, TimingCache
from igc_nas.nn.network import Network
from igc_nas.nn.timing import Timer, raced, timed
from igc_nas.study.spec import RuntimeName

ROUNDS, KERNEL_ROUNDS, CAP_S = 9, 9, 0.03
UNIFORM: dict[str, Callable[[Chain], Form]] = {"folded": factored, "semidense": semidense, "dense": dense}


@dataclass(frozen=True)
class Variant:
    """One form of a network: its name, its parameters and MACs, and the form of each chain by the chain's key."""

    name: str
    params: int
    macs: int
    forms: Mapping[str, Form] = field(default_factory=dict)

    def module(
        self,
        network: Network,
        batch: int,
        cache: TimingCache,
        runtime: RuntimeName = "eager",
        dtype: torch.dtype = torch.float32,
    ) -> nn.Module:
        """The network in this form and dtype; for eager PyTorch in channels-last with the fastest kernels."""
        if self.name == "factored":
            return network if dtype == torch.float32 else copy.deepcopy(network).to(dtype)
        with exact_float32():
            deployed: nn.Module = DeployedNetwork(network, self.forms).to(dtype)
        if runtime != "eager":
            return deployed
        deployed = deployed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return fastest_kernels(deployed, batch, cache)


def factored_variant(whole: Plan) -> Variant:
    """The network as in training."""
    cost = plan_cost(whole)
    return Variant("factored", cost.params, cost.macs)


def uniform_variants(whole: Plan) -> list[Variant]:
    """The variants that need no timing: factored, folded, semidense, dense."""
    return [factored_variant(whole), *(_variant(whole, name, pick) for name, pick in UNIFORM.items())]


def mixed_variant(
    network: Network,
    batch: int,
    cache: TimingCache,
    most_params: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Variant:
    """Each chain in its fastest form in `dtype`, with at most `most_params` parameters if a combination of forms fits.

    Greedy: while over the limit, swap one chain to a smaller form, the one that costs least time per parameter saved.
    """
    whole = network.plan
    counted = Counter(chain.key for _, chain in _chains(whole))
    distinct = {chain.key: (block, chain) for block, chain in reversed(_chains(whole))}
    costs = {chain: _form_times(network, block, chain, batch, cache, dtype) for block, chain in distinct.values()}
    chosen = {chain.key: min(found, key=lambda form, found=found: found[form]) for chain, found in costs.items()}  # type: ignore[misc]
    while most_params is not None and _params(whole, chosen) > most_params:
        swap = _cheapest_swap(counted, costs, chosen)
        if swap is None:
            break
        chosen[swap[0].key] = swap[1]
    return _variant(whole, "mixed", lambda chain: chosen[chain.key])


def _cheapest_swap(
    counted: Mapping[str, int], costs: Mapping[Chain, Mapping[Form, float]], chosen: Mapping[str, Form]
) -> tuple[Chain, Form] | None:
    """(a chain, a smaller form of it) with the least added time per parameter saved; None if all are smallest."""
    swaps = []
    for chain, times in costs.items():
        now = chosen[chain.key]
        for form in times:
            saved = form_params(chain, now) - form_params(chain, form)
            if saved > 0:
                swaps.append(((times[form] - times[now]) / saved, counted[chain.key] * saved, chain, form))
    return min(swaps, key=lambda swap: swap[:2])[2:] if swaps else None


def _form_times(
    network: Network, block: str, chain: Chain, batch: int, cache: TimingCache, dtype: torch.dtype
) -> dict[Form, float]:
    """Milliseconds of each form of a chain; saved at once, because another worker may need the same chain."""
    forms = {form_key(form): form for form in forms_of(chain)}
    key = f"deployed {chain.key} b{batch}" + ("" if dtype == torch.float32 else f" {dtype}")
    with cache:
        times = cache.get(key, forms, lambda: _time_forms(network, block, chain, batch, forms, cache, dtype))
    return {form: times[key] for key, form in forms.items()}


@torch.inference_mode()
def _time_forms(
    network: Network,
    block: str,
    chain: Chain,
    batch: int,
    forms: Mapping[str, Form],
    cache: TimingCache,
    dtype: torch.dtype,
) -> Times:
    like = next(network.parameters())
    x = torch.randn(batch, chain.convs[0].in_channels, chain.height, chain.width, device=like.device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    runs = {}
    for name, form in forms.items():
        with exact_float32():
            module = chain_module(network, block, chain, form)
        module = module.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        module = fastest_kernels(module, batch, cache)
        runs[name] = _timer(_running(module, x), like.device)
    return {name: max(round(ms, 5), 1e-5) for name, ms in raced(runs, ROUNDS, CAP_S * len(runs)).items()}


def fastest_kernels(module: nn.Module, batch: int, cache: TimingCache) -> nn.Module:
    """`module` with the fastest kernel for each of its folded convolutions; modified in place."""

    def fastest(folded: FoldedConv) -> Kernel:
        offered = kernels_for(folded)
        if len(offered) == 1 and folded.weight.is_cuda:
            return offered[0]
        times = cache.get(_kernel_key(folded, batch), offered, lambda: _time_kernels(folded, batch, offered))
        return min(offered, key=lambda kernel: times[kernel])

    return set_kernels_(module, fastest, batch)


def _kernel_key(folded: FoldedConv, batch: int) -> str:
    """On disk in the timing caches: it must not change."""
    bias = "map" if folded.has_map else "bias" if folded.bias is not None else "bare"
    dtype = "" if folded.weight.dtype == torch.float32 else f" {folded.weight.dtype}"
    return f"kernel {ConvKey(folded.conv, folded.height, folded.width)} {bias} {folded.act} b{batch}{dtype}"


@torch.inference_mode()
@without_cudnn_benchmark()
def _time_kernels(folded: FoldedConv, batch: int, offered: tuple[Kernel, ...]) -> Times:
    like = folded.weight
    x = torch.randn(
        batch, folded.conv.in_channels, folded.height, folded.width, dtype=like.dtype, device=like.device
    ).contiguous(memory_format=torch.channels_last)
    runs = {kernel: _timer(_running(with_kernel(folded, kernel, batch), x), like.device) for kernel in offered}
    return {kernel: max(round(ms, 5), 1e-5) for kernel, ms in raced(runs, KERNEL_ROUNDS, CAP_S * len(runs)).items()}


def _timer(run: Callable[[], object], device: torch.device) -> Timer:
    """On a GPU in a graph, as the whole network is timed."""
    return event_timer(run, device, graph=True) if device.type == "cuda" else timed(run)


def _running(module: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: module(x)


def _chains(whole: Plan) -> list[tuple[str, Chain]]:
    """(block's name, chain) of every chain of a plan."""
    return [(name, chain) for name, parts in inference_blocks(whole) for chain in chains_in(parts)]


def _variant(whole: Plan, name: str, pick: Callable[[Chain], Form]) -> Variant:
    forms = {chain.key: pick(chain) for _, chain in _chains(whole)}
    macs = sum(form_macs(chain, forms[chain.key]) for _, chain in _chains(whole)) + _beside(whole).macs
    return Variant(name, _params(whole, forms), macs, forms)


def _params(whole: Plan, forms: Mapping[str, Form]) -> int:
    return sum(form_params(chain, forms[chain.key]) for _, chain in _chains(whole)) + _beside(whole).params


def _beside(whole: Plan) -> Cost:
    """What is in no chain."""
    return sum((cost_beside_chains(parts) for _, parts in inference_blocks(whole)), Cost())
