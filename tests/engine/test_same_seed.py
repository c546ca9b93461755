"""A search of one seed gives the trials that it gave at commit 2e67fd0: the same networks, costs, errors and order.

`same_seed.json` holds what that commit found: each sampler with invented errors, and two real searches of 12 trials.
The values were not taken anew since; a change that moves one of them is a change of what a study's seed means. All of
them are of the scale that studies without a goal have; the searches with a goal are of the commit that brought it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from igc_nas.engine.search import Run, search
from igc_nas.nn.device import cpu_name
from igc_nas.space.budget import Budget
from igc_nas.study.defaults import PRUNE_BELOW
from igc_nas.study.study import load_study
from tests.support.searches import evaluate, evaluate_on_the_way, recorded, spec
from tests.support.shares import some

RECORDED = json.loads(Path(__file__).with_name("same_seed.json").read_text(encoding="utf-8"))
SAMPLERS = ("known-cost", "stratified", "random", "tpe", "nsga2", "evolution", "brute-force")

PINNED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "Haswell",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
}
"""One instruction set for all processors, so that as many as possible round as the recording one did."""

PROBE = """
import hashlib, torch
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 24, 3, padding=1), torch.nn.BatchNorm2d(24), torch.nn.ReLU(),
    torch.nn.Conv2d(24, 24, 3, padding=1, groups=12), torch.nn.Conv2d(24, 96, 1, groups=2), torch.nn.ReLU6(),
    torch.nn.Conv2d(96, 96, 5, padding=2, groups=96), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    torch.nn.Linear(96, 10),
).to(memory_format=torch.channels_last)
optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
for _ in range(5):
    loss = torch.nn.functional.cross_entropy(net(torch.randn(32, 3, 8, 8)), torch.randint(0, 10, (32,)))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(hashlib.sha256(torch.cat([p.detach().flatten() for p in net.parameters()]).numpy().tobytes()).hexdigest()[:16])
"""
"""A training in plain torch: where its weights come out in other bits, a search's errors do, too."""


@pytest.mark.parametrize("sampler", some(SAMPLERS, "known-cost", "brute-force", "nsga2"))
def test_a_sampler_proposes_what_it_proposed(sampler: Any, tmp_path: Path) -> None:
    list(search(spec(sampler=sampler, seed=3), Run(tmp_path / "stub", trials=30), evaluate=evaluate))
    assert recorded(load_study(tmp_path / "stub")) == RECORDED[f"tiny {sampler}"]


@pytest.mark.parametrize("sampler", some(SAMPLERS[:-1], "known-cost", "stratified"))
def test_a_sampler_proposes_what_it_proposed_in_a_large_space(sampler: Any, tmp_path: Path) -> None:
    asked = spec(space="igc_cifar", sampler=sampler, seed=5, budget=Budget(params=500_000))
    list(search(asked, Run(tmp_path / "stub", trials=24), evaluate=evaluate))
    assert recorded(load_study(tmp_path / "stub")) == RECORDED[f"igc_cifar {sampler}"]


@pytest.mark.parametrize("goal", ["best-error", "front"])
def test_a_search_with_a_goal_proposes_what_it_proposed(goal: Any, tmp_path: Path) -> None:
    asked = spec(space="igc_cifar", goal=goal, seed=5, budget=Budget(params=500_000))
    list(search(asked, Run(tmp_path / "stub", trials=24), evaluate=evaluate))
    assert recorded(load_study(tmp_path / "stub")) == RECORDED[f"igc_cifar {goal}"]


def test_trainings_are_pruned_where_they_were_pruned(tmp_path: Path) -> None:
    recipe = {"epochs": 2, "train_size": 3000, "rungs": [2000, 4000]}
    asked = spec(sampler="known-cost", seed=1, prune_below=0.2, recipe=recipe)
    list(search(asked, Run(tmp_path / "stub", trials=60), evaluate=evaluate_on_the_way))
    assert recorded(load_study(tmp_path / "stub")) == RECORDED["tiny rungs"]


@pytest.fixture(scope="module")
def _rounds_alike() -> None:
    environment = os.environ | PINNED
    probe = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
    if probe.stdout.strip() != RECORDED["probe"]:
        pytest.skip("this processor, or this version of torch, rounds a training otherwise than the recording one")


@pytest.mark.slow
@pytest.mark.usefixtures("_rounds_alike")
@pytest.mark.parametrize("space", ["tiny", "igc_cifar"])
def test_a_real_search_finds_what_it_found(space: str, tmp_path: Path) -> None:
    words = [
        *("--dataset", "shapes", "--trials", "12", "--workers", "1"),
        *("--studies-dir", str(tmp_path), "--study", "same"),
    ]
    recipe = {"dtype": "float32", "epochs": 1, "train_size": 800, "held_out": 500, "resolution": 8, "rungs": (400,)}
    made = spec(
        space=space,
        name="same",
        objectives=("error", "params"),
        budget=Budget(params=300_000),
        prune_below=PRUNE_BELOW,
        recipe=recipe | {"forms": "factored"},
        latency={"device": cpu_name(), "forms": "factored"},
    )
    assert made.goal is None  # the scale of version 0.1 must be given: a new search has another
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "study.toml").write_text(made.to_toml(), encoding="utf-8")
    command = [sys.executable, "-m", "igc_nas", "search", *words]
    subprocess.run(command, env=os.environ | PINNED, capture_output=True, check=True, timeout=600)
    assert recorded(load_study(tmp_path / "same")) == RECORDED[f"real {space}"]
