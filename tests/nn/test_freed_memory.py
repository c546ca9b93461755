"""Freed memory stays with the process: a training step does not have its tensors' pages zeroed anew each time."""

import json
import platform
import subprocess
import sys

import pytest

PAGE = 4096
SCRIPT = """
import json, resource, threading
import torch
from igc_nas.nn.device import Device, configure_torch

def round_of_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for mb in (80, 40, 60, 80):
        torch.empty(mb << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

configure_torch(Device("cpu", "cpu", "test"), 1)
rounds = [round_of_faults() for _ in range(5)]
thread = threading.Thread(target=round_of_faults)
thread.start()
thread.join()
try:
    torch.empty(1 << 46, dtype=torch.uint8)  # no machine has 64 TiB: a trial that runs out of memory
except RuntimeError:
    rounds_after = [round_of_faults() for _ in range(5)]
print(json.dumps([rounds, rounds_after]))
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_large_tensors_reuse_the_pages_of_freed_ones_also_after_a_failed_allocation() -> None:
    printed = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout
    for rounds in json.loads(printed):
        assert min(rounds[1:]) < (20 << 20) // PAGE, rounds  # of 260 MB
