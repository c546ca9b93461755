"""Freed memory stays with the process: a training step does not have its tensors' pages zeroed anew each time."""

import platform
import resource
import sys

import pytest
import torch

from igc_nas.nn.device import Device, configure_torch

PAGE = 4096


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_large_tensors_reuse_the_pages_of_freed_ones() -> None:
    threads = torch.get_num_threads()
    configure_torch(Device("cpu", "cpu", "test"), threads)

    def faults(mb: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(mb << 20, dtype=torch.uint8).fill_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    rounds = [sum(faults(mb) for mb in (80, 40, 60, 80)) for _ in range(6)]
    assert min(rounds[1:]) < (20 << 20) // PAGE, rounds  # of 260 MB
