"""A search under a container's conditions: a read-only system, no HOME, 64 MB of shared memory, one CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import igc_nas

ROOT = Path(igc_nas.__file__).parents[1]
VOLUME = "/mnt"
"""The only folder that can be written: a volume of the container."""
CONTAINER = f"""
set -e
mount --make-rprivate /
mount -t tmpfs -o size=64m tmpfs /dev/shm
mount -t tmpfs -o size=300m tmpfs {VOLUME}
mount --bind / /
mount -o remount,ro,bind /
cd {VOLUME}
"""
UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]


def in_container(line: str) -> subprocess.CompletedProcess[str]:
    """What a command line of a shell does in the container; `igc` is igc-nas on one CPU."""
    core = min(os.sched_getaffinity(0))
    igc = f'igc() {{ taskset --cpu-list {core} "{sys.executable}" -m igc_nas "$@"; }}\n'
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [*UNSHARE, "bash", "-c", CONTAINER + igc + line]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def container() -> None:
    if sys.platform != "linux" or any(shutil.which(name) is None for name in ("unshare", "taskset")):
        pytest.skip("needs unshare and taskset of Linux")
    if (done := in_container("true")).returncode:
        pytest.skip(f"this user may not make a container: {done.stderr.strip()[:200]}")


@pytest.mark.slow
@pytest.mark.usefixtures("container")
def test_a_search_in_a_container_of_one_cpu_writes_to_its_volume_alone() -> None:
    assert "Read-only file system" in in_container("touch /tmp/x").stderr
    done = in_container(
        "igc search --space tiny --dataset shapes --study s --trials 2 --json "
        '--recipe "epochs=1,train_size=256,held_out=128,rungs=[]"; igc front s; igc export s -o arch.toml; '
        "igc cost arch.toml; ls"
    )
    assert done.returncode == 0, done.stderr
    found, end = json.JSONDecoder().raw_decode(done.stdout)
    assert found["completed"] == 2
    assert "Pareto front of" in done.stdout[end:]
    assert "limits    until 2 complete trials; 1 worker of 1 thread" in done.stderr
    assert {"arch.toml", "studies"} <= set(done.stdout.split())
    assert "internal error" not in done.stderr
    assert "Traceback" not in done.stderr
