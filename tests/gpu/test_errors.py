"""Errors of CUDA: what is memory, what costs the process, what a form without memory does."""

from pathlib import Path

import pytest
import torch

from igc_nas.engine.search import Run, search
from igc_nas.engine.worker import failed
from igc_nas.nn.timing import NEVER_MS, Race, timed
from igc_nas.study.study import load_study
from tests.support.searches import spec
from tests.support.stubs import loses_context


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "memory"),
        ("CUDA error: out of memory", "memory"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "memory"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "memory"),
        ("CUDA error: device-side assert triggered", "died"),
        ("CUDA error: unspecified launch failure", "died"),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "died"),
        ("expected scalar type Half but found Float", "error"),
    ],
)
def test_errors_by_kind(words: str, kind: str) -> None:
    assert failed(0, RuntimeError(words), "training").failure.kind == kind


def test_a_lost_context_costs_one_trial(tmp_path: Path) -> None:
    found = list(search(spec(), Run(tmp_path / "s", trials=6), evaluator=loses_context))
    assert len(found) == 6
    trials = load_study(tmp_path / "s").trials
    assert [trial.state for trial in trials] == ["complete", "failed", *["complete"] * 5]
    assert trials[1].failure is not None
    assert trials[1].failure.kind == "died"
    assert "illegal memory access" in str(trials[1].reason)


def test_a_form_that_the_gpu_has_no_memory_for_never_wins() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    race = Race(rounds=5, cap_s=1.0)
    samples = race.run({"large": timed(too_large), "small": timed(lambda: None)})
    assert race.winner(samples, {"large": 0, "small": 1}.__getitem__) == "small"
    assert race.times(samples)["large"] >= NEVER_MS / 2
