"""The vectors of generated C are chosen by times, which the timing cache keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from igc_nas.nn.c_compiler import compiler
from igc_nas.nn.codegen.target import CANDIDATES, TARGETS, machine_targets, tuned
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.network import build
from igc_nas.study.lookup import load_architecture
from tests.support.tensors import relative_error

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")


def with_times(path: Path | None = None, **ms: float) -> TimingCache:
    """A cache in which the targets whose lanes are given have these times, all others 9 ms."""
    cache = TimingCache(path)
    names = {str(target): ms.get(f"lanes{target.lanes}", 9.0) + target.registers / 1000 for target in CANDIDATES}
    cache.get(TARGETS, names, lambda: names)
    return cache


def test_the_best_two_vector_lengths_are_taken() -> None:
    found = machine_targets(with_times(lanes8=1.0, lanes16=2.0))
    assert [(target.lanes, target.registers) for target in found] == [(8, 16), (16, 32)]
    assert [target.lanes for target in machine_targets(with_times(lanes4=1.0, lanes8=2.0))] == [4, 8]


def test_the_candidates_are_timed_once(tmp_path: Path) -> None:
    with TimingCache(tmp_path / "times.json", "here") as times:
        first = machine_targets(times, tmp_path / "libraries")
    assert machine_targets(TimingCache(tmp_path / "times.json", "here"), tmp_path / "nowhere") == first
    assert not (tmp_path / "nowhere").exists()


def test_a_network_is_the_same_function_with_either() -> None:
    network = build(load_architecture("igcv1-l8m2-d8"), 0).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        wanted = network(x).numpy()
    for ms in ({"lanes8": 1.0, "lanes16": 2.0}, {"lanes4": 1.0, "lanes16": 2.0}):
        assert relative_error(tuned(network, with_times(**ms))(x.numpy()), wanted) < 1e-4
