"""A network with its chains multiplied out is the same function in C."""

from __future__ import annotations

import pytest
import torch

from igc_nas.bench.native import times_multiplied_out
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.nn.c_compiler import compiler
from igc_nas.nn.codegen.build import compiled
from igc_nas.nn.codegen.emit import source
from igc_nas.nn.codegen.products import multiplied_out_plan
from igc_nas.nn.codegen.program import program
from igc_nas.nn.codegen.target import network_tensors
from igc_nas.nn.lowering.chain import dense, semidense
from igc_nas.nn.network import build
from igc_nas.study.lookup import load_architecture
from tests.support.tensors import relative_error

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")


@pytest.mark.parametrize("name", ["igcv1-l8m2-d8", "igcv1-l4m4-d8-res", "igcv2-c16-k4-d8"])
def test_a_multiplied_out_network_is_the_same_function(name: str) -> None:
    network = randomize_batchnorm_(build(load_architecture(name), 0)).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        wanted = network(image).numpy()
    for pick in (dense, semidense):
        plan, tensors = multiplied_out_plan(network.plan, network_tensors(network), pick)
        assert plan != network.plan
        found = compiled(source(program(plan, 8), tensors))(image.numpy())
        assert relative_error(found, wanted) < 1e-4


def test_multiplying_out_is_compared_in_turns() -> None:
    found = times_multiplied_out(load_architecture("igcv1-l8m2-d8"))
    assert found is not None
    assert found > 0
