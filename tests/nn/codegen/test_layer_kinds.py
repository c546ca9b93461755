"""Generated C of plans with every kind of layer in any order, against float64; and under the sanitizers."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from igc_nas.arch.layers import Act, AvgPool, Conv, Layer, Linear, MaxPool, Norm, Pool, PRelu, SqueezeExcite
from igc_nas.arch.plan import BlockPlan, Plan
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.nn.c_compiler import FLAGS, compiler
from igc_nas.nn.codegen.build import ENTRY, compiled
from igc_nas.nn.codegen.emit import Source, source
from igc_nas.nn.codegen.program import program
from igc_nas.nn.network import Network, initialise
from tests.nn.codegen.test_generated import TARGETS, errors
from tests.support.plans import plans
from tests.support.shares import examples

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")

MAIN = """
#include <stdio.h>
#include <stdlib.h>
static float *take(FILE *file, size_t count)
{{
    float *floats = aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);
    if (fread(floats, sizeof(float), count, file) != count)
        exit(2);
    return floats;
}}
int main(void)
{{
    FILE *file = fopen("data", "rb");
    float *image = take(file, {image}), *weights = take(file, {weights}), *arena = take(file, {arena});
    float logits[{classes}];
    igc_nas_run(image, 1, logits, weights, arena);
    for (int n = 0; n < {classes}; ++n)
        printf("%.9g\\n", logits[n]);
    free(image), free(weights), free(arena), fclose(file);
    return 0;
}}
"""


def generated(whole: Plan, target: tuple[int, int]) -> tuple[Network, Source]:
    network = Network(whole)
    initialise(network, torch.Generator().manual_seed(0))
    randomize_batchnorm_(network).eval()
    tensors = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    return network, source(program(whole, target[0]), tensors, target[1])


@needs_compiler
@given(plans(), st.sampled_from(TARGETS))
@examples(8)
def test_c_of_any_layers_is_the_network(whole: Plan, target: tuple[int, int]) -> None:
    network, made = generated(whole, target)
    ours, torchs = errors(network, made, batch=2)
    assert ours <= max(1e-5, 4 * torchs)


@needs_compiler
@given(plans(), st.sampled_from(TARGETS))
@settings(max_examples=3)
def test_c_of_any_layers_touches_only_its_own_memory(whole: Plan, target: tuple[int, int]) -> None:
    """With NaN where nothing was written yet, so that a pixel outside an image would show as well."""
    network, made = generated(whole, target)
    x = torch.randn(1, *made.image, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = network.double()(x.double())[0].numpy()
    found = sanitized(made, x.numpy())
    assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted)


def sanitized(made: Source, image: NDArray[np.float32]) -> NDArray[np.float64]:
    channels, height, width = made.image
    floats = channels * height * width
    main = MAIN.format(image=floats, weights=len(made.weights), arena=made.arena, classes=made.classes)
    arena = np.full(made.arena, np.nan, np.float32)
    command = compiler()
    assert command is not None
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "net.c").write_text(f"{made.text}\n{ENTRY.format(image=floats, classes=made.classes)}\n{main}")
        (folder / "data").write_bytes(b"".join(part.tobytes() for part in (image, made.weights, arena)))
        strict = ["-Werror", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        subprocess.run([*command, *FLAGS, *strict, "net.c", "-o", "net"], cwd=folder, check=True)
        done = subprocess.run(["./net"], cwd=folder, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return np.array([float(line) for line in done.stdout.split()])


@needs_compiler
def test_the_sigmoid_is_exact_to_single_precision() -> None:
    """From saturation to saturation, through the gate of a squeeze-excite whose weights are 1 and 0."""
    channels = 64
    layers = (SqueezeExcite("se", channels, 1), Pool(), Linear("linear", channels, channels))
    whole = Plan((channels, 1, 1), channels, (BlockPlan("classifier", layers),))
    network = Network(whole).eval()
    state = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    gates = torch.cat([torch.linspace(-100, 100, channels // 2), torch.linspace(-2, 2, channels // 2)])
    state["classifier.se.expand.bias"] = gates
    state["classifier.linear.weight"] = torch.eye(channels)
    network.load_state_dict(state)
    made = source(program(whole, 8), {name: tensor.double().numpy() for name, tensor in state.items()})
    found = compiled(made)(np.ones((1, channels, 1, 1), np.float32))[0]
    wanted = torch.sigmoid(gates.double()).numpy()
    assert np.all(np.abs(found - wanted) <= 2e-7 * wanted + 1e-37)


FOLLOWING: dict[str, tuple[Layer, ...]] = {
    "relu": (Act("relu"),),
    "relu6": (Act("relu6"),),
    "hswish": (Act("hswish"),),
    "prelu": (PRelu("prelu", 8),),
    "max pool": (MaxPool(3, 1, 1),),
    "average pool": (AvgPool(3, 1, 1),),
    "sigmoid": (SqueezeExcite("se", 8, 2),),
    "hsigmoid": (SqueezeExcite("se", 8, 2, "hsigmoid"),),
}


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", FOLLOWING)
def test_nan_stays_nan(kind: str, target: tuple[int, int]) -> None:
    """As in PyTorch: logits of a damaged image are no numbers that look like those of a sound one."""
    stem = BlockPlan("stem", (Conv("conv", 3, 8), Norm("norm", 8), *FOLLOWING[kind]))
    whole = Plan((3, 5, 4), 5, (stem, BlockPlan("classifier", (Pool(), Linear("linear", 8, 5)))))
    network, made = generated(whole, target)
    images = torch.randn(9, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    for n, (y, x) in enumerate([(0, 0), (0, 3), (2, 1), (4, 0), (4, 3), (1, 2), (3, 3), (2, 0)]):
        images[n, n % 3, y, x] = torch.nan
    with torch.inference_mode():
        wanted = network(images).isnan().numpy()
    assert list(wanted.all(axis=1)) == [True] * 8 + [False]
    assert np.array_equal(np.isnan(compiled(made)(images.numpy())), wanted)
