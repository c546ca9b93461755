"""One Hypothesis profile for people and CI: the same examples each time, and no deadline on a busy machine."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from igc_nas.cli import main
from tests.support.commands import Answer, Command

# Before torch is imported: some tests use two threads, which must not spin while idle beside the other process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Timings of tests must not enter the user's cache: one cache for the whole run, the processes that tests start, and
# xdist's, which inherit it: kernels in C are compiled, and timed, once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["IGC_NAS_CACHE"] = tempfile.mkdtemp(prefix="igc-nas-cache-")

# Tests send signals to the processes that they start. A child inherits ignored signals (of nohup, of a shell's
# background job), so they are set to their defaults here.
if "PYTEST_XDIST_WORKER" in os.environ:
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_of_gpus(config: pytest.Config) -> bool:
    return "gpu" in config.option.markexpr.replace("not gpu", "")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run `-m gpu` in one process: two would time each other's work on one GPU."""
    if _is_of_gpus(config) and hasattr(config.option, "numprocesses"):
        config.option.numprocesses = 0


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs of this machine from all tests but those of `-m gpu`: `--device auto` then means the CPU."""
    if not _is_of_gpus(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


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
