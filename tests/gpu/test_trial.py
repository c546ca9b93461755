"""A whole trial on a GPU, and how often it has cuDNN search."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.data.datasets import locate
from igc_nas.engine.device_lock import DeviceLock
from igc_nas.engine.evaluator import Evaluator
from igc_nas.engine.self_check import self_check
from igc_nas.nn.device import find_devices
from igc_nas.study.defaults import new_spec
from igc_nas.study.records import Score
from igc_nas.study.spec import StudySpec
from tests.support.fake_cuda import Record

RECIPE = {"epochs": 1, "train_size": 512, "held_out": 256, "batch": 128, "rungs": [256]}


def evaluator_of(spec: StudySpec, folder: Path) -> Evaluator:
    device = find_devices("cuda")[0]
    return Evaluator(spec, locate("shapes"), device, 1, DeviceLock(folder, 0, 1, device.synchronize))


def test_an_evaluator_runs_a_trial(gpu: Record, tmp_path: Path) -> None:
    spec = new_spec(locate("shapes"), "Fake GPU", "cuda", space="tiny", name="s", recipe=RECIPE)
    evaluator = evaluator_of(spec, tmp_path)
    with evaluator.lock.shared():
        latency = evaluator.latency(spec.feasible.lightest(), None)
    evaluator.spec = spec.model_copy(update={"reference_ms": latency.reference_ms})
    with mock.patch("torch.cuda.empty_cache") as emptied:
        outcome = evaluator(spec.feasible.lightest(), 0)
    assert emptied.called, "others on the GPU need the memory"
    assert isinstance(outcome.score, Score)
    assert outcome.latency.conditions.device == "Fake GPU"
    assert gpu.cpu_only == []


@pytest.mark.slow
def test_the_self_check_covers_the_gpu(gpu: Record) -> None:
    """A fake GPU's values are as near as asked for; all else runs, here by a small network."""
    one = ArchConfig.parse(
        {"stem": {"width": 8, "stride": 2}, "stage": [{"unit": "igcv1", "L": 4, "M": 2, "blocks": 1}]}
    )
    found = {check.name: check for check in self_check(find_devices("cuda")[0], arch=one, **RECIPE, forms="factored")}
    assert list(found) == ["gradients", "captured step", "trial", "energy"]
    assert found["captured step"].passed, found["captured step"].result
    assert found["trial"].passed, found["trial"].result
    assert found["energy"].result == "not counted by this GPU or driver"


@pytest.mark.slow
def test_cudnn_searches_of_a_median_trial(gpu: Record, tmp_path: Path) -> None:
    """The first trial of an architecture in a process, where 1x1 convolutions are as fast by products: 45 searches.

    A fake GPU takes equal times for all, and ties are won by what needs no search. Where cuDNN is faster in all of
    them, it is 81.
    """
    spec = new_spec(
        locate("shapes"), "Fake GPU", "cuda", name="s", recipe={"train_size": 2048, "epochs": 1, "rungs": []}
    )
    generator = np.random.default_rng(0)
    drawn = sorted((spec.feasible.draw(generator) for _ in range(100)), key=lambda arch: cost_of(arch).activations)
    evaluator = evaluator_of(spec, tmp_path)
    with evaluator.lock.shared():
        latency = evaluator.latency(spec.feasible.lightest(), None)
    evaluator.spec = spec.model_copy(update={"reference_ms": latency.reference_ms})
    gpu.clear()
    evaluator(drawn[len(drawn) // 2], 0)
    assert {search.image[0] for search in gpu.searches} == {1, 500}
    assert all(search.channels_last for search in gpu.searches)
    assert {s.thread for s in gpu.searches if s.product != "forward"} == {"autograd"}, "training's backward runs there"
    assert len(gpu.searches) <= 60, "261 before needless ones were avoided, 90 before products"
