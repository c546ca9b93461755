"""Fixtures of the tests that run code for CUDA on a GPU that is not there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from igc_nas.nn.device import configure_torch, exact_float32, find_devices
from tests.support.fake_cuda import VERIFIED, Record, fake_cuda


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where the fake GPU has not been tried; a test of a real GPU needs none."""
    skip = pytest.mark.skip(reason="the fake GPU relies on private symbols of torch 2.13.0 for x86-64 Linux")
    for item in items:
        if not VERIFIED and Path(__file__).parent in item.path.parents and not item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timing cache of the test's own: times of the fake GPU are no times."""
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def gpu(cache: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """One fake GPU, configured as a worker configures its device."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    with exact_float32(), fake_cuda() as record:  # the outer context restores the precision
        configure_torch(find_devices("cuda")[0], 1)
        yield record
        monkeypatch.undo()  # a test's patches of `torch.cuda` lie over the fake's
        torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark
