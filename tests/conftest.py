"""One Hypothesis profile for people and CI: the same examples each time, and no deadline on a busy machine."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from igc_nas.cli import main
from tests.support.commands import Answer, Command

# Before torch is imported: some tests ask for two threads, and such as spin while they wait starve the other process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What is timed here is nobody's cache; a file for the whole run, and for the processes that tests start.
os.environ["IGC_NAS_CACHE"] = tempfile.mkdtemp(prefix="igc-nas-cache-")

# Signals are sent to processes that tests start: what the run itself was told to ignore (nohup, a shell's background)
# those must not be.
if "PYTEST_XDIST_WORKER" in os.environ:
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process."""

    def answer(*arguments: str | Path) -> Answer:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Answer(status, *capsys.readouterr())

    return answer
