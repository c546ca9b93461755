"""Small networks, images and trainings on the fake GPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.bench.report import architectures
from igc_nas.evaluation.images import Images
from igc_nas.evaluation.training import Training
from igc_nas.nn.device import find_devices
from igc_nas.nn.lowering.chain import forms_of
from igc_nas.nn.lowering.convolution import Algorithms
from igc_nas.nn.lowering.parts import chains_in, training_blocks
from igc_nas.nn.lowering.training import ChainForm, LoweredNetwork
from igc_nas.nn.network import Network, build
from igc_nas.study.defaults import default_recipe
from igc_nas.study.spec import Recipe

GPU = torch.device("cuda:0")
FORMS = ("factored", "plain", "merged", "dense")


def _short(unit: str) -> ArchConfig:
    """Two stages of one block each of the unit's first benchmark architecture."""
    arch = next(arch for arch in architectures().values() if arch.stages[0].unit == unit)
    return arch.model_copy(update={"stages": tuple(s.model_copy(update={"blocks": 1}) for s in arch.stages[:2])})


SMALL = {unit: _short(unit) for unit in ("igcv1", "igcv2", "igcv3")}
EACH = pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL)


def images(count: int, pixels: int = 32) -> Images:
    """Images on the GPU."""
    pixel = torch.zeros(count, pixels, pixels, 3, dtype=torch.uint8, device=GPU)
    labels = torch.zeros(count, dtype=torch.int64, device=GPU)
    return Images(pixel, labels, torch.ones(3, device=GPU), torch.ones(3, device=GPU))


def recipe_of(**changes: Any) -> Recipe:
    """The default recipe on a GPU, made short."""
    short = {"train_size": 192, "held_out": 128, "epochs": 1, "batch": 64, "rungs": []}
    return default_recipe("cuda", **short | changes)


def on_gpu(arch: ArchConfig) -> Network:
    """The network of an architecture on the GPU, in channels-last."""
    return build(arch, 0).to(GPU, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def lowered(network: Network, form: str) -> LoweredNetwork | None:
    """The network with all of its chains in one of `FORMS`; None: factored."""
    if form == "factored":
        return None
    whole = replace(network.plan, input=(3, 32, 32))
    forms = {}
    for _, parts in training_blocks(whole):
        for chain in chains_in(parts):
            offered = forms_of(chain)
            pieces = {"plain": offered[0], "merged": offered[len(offered) // 2], "dense": offered[-1]}[form]
            forms[chain.key] = ChainForm(pieces, (Algorithms(),) * len(pieces))
    return LoweredNetwork(network, whole, forms, torch.bfloat16)


def training_of(arch: ArchConfig, form: str = "factored", **changes: Any) -> Training:
    """A training on the GPU."""
    recipe, network = recipe_of(**changes), on_gpu(arch)
    return Training(network, images(recipe.train_size), recipe, find_devices("cuda")[0], 0, lowered(network, form))
