"""Parameters and MACs by independent counters, to check `cost_of`: PyTorch's parameters and FLOP counter, ptflops."""

from __future__ import annotations

import contextlib
import copy
import io
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, LayerCost, cost_of, rows
from igc_nas.arch.layers import Conv, Linear, SqueezeExcite
from igc_nas.errors import IgcNasError
from igc_nas.nn.network import Network, build


def count_by_others(arch: ArchConfig, ours: Cost | None = None) -> dict[str, Any]:
    """Parameters and MACs for one image as PyTorch and ptflops count them, and whether all agree with `ours`.

    `ours` defaults to `cost_of(arch)`. PyTorch counts two FLOPs per multiply-add. The network is on the `meta` device,
    so nothing is allocated or computed.
    """
    network, ours = build(arch, device="meta").eval(), ours or cost_of(arch)
    params = sum(p.numel() for p in network.parameters())
    flops = torch_flops(network, arch)
    ptflops_macs = count_with_ptflops(network, arch)
    return {
        "torch_params": params,
        "torch_macs": flops // 2,
        "ptflops_macs": ptflops_macs,
        "agree": params == ours.params and flops == ours.flops and ptflops_macs == ours.macs,
    }


def torch_flops(network: Network, arch: ArchConfig) -> int:
    """FLOPs for one image by `torch.utils.flop_counter`."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *arch.input, device=device))
    return int(counter.get_total_flops())


def count_with_ptflops(network: Network, arch: ArchConfig) -> int:
    """MACs for one image by ptflops' aten backend, on a copy of the network.

    ptflops counts a bias as one MAC per element that it is added to, which is subtracted.
    """
    from ptflops import get_model_complexity_info

    device = next(network.parameters()).device
    with contextlib.redirect_stdout(io.StringIO()):
        macs, _ = get_model_complexity_info(
            copy.deepcopy(network),
            arch.input,
            input_constructor=lambda size: torch.empty(1, *size, device=device),
            as_strings=False,
            print_per_layer_stat=False,
            backend="aten",
        )
    if macs is None:
        raise IgcNasError("ptflops could not count this network")
    return int(macs) - sum(map(_bias_elements, rows(network.plan)))


def _bias_elements(row: LayerCost) -> int:
    """The elements of a layer's output, for one image, that a bias is added to."""
    match row.layer:
        case Conv(bias=True) | Linear(bias=True):
            return prod(row.shape)
        case SqueezeExcite(_, channels, squeeze, _, True):
            return channels + squeeze
        case _:
            return 0
