"""What all tests share: the environment, how many examples a property test tries, and commands in this process."""

import atexit
import functools
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import is_hypothesis_test

from igc_nas.cli import main
from igc_nas.data import datasets
from igc_nas.data.shapes import load_shapes
from tests.support import shares
from tests.support.caches import own_cache
from tests.support.commands import Answer, Command

# Before torch is imported: some tests use two threads, which must not spin while idle beside the other process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

START = Path.cwd()
MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30  # noqa: S108 (a folder of our own is made in it)


def in_memory() -> str | None:
    """A folder in memory that can hold the files of a run, code that is loaded among them; None where there is none.

    Databases of studies are written to the disk in each trial: on a disk they are most of the time of a test.
    """
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return None
    disk = os.statvfs(MEMORY)
    fits = disk.f_bavail * disk.f_frsize >= ROOM and not disk.f_flag & os.ST_NOEXEC
    return str(MEMORY) if fits else None


# One folder for the files of the run, removed at its end. Timings of tests must not enter the user's cache: one cache
# for the run, the processes that tests start, and xdist's, which inherit it: kernels are compiled, and timed, once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    folder = tempfile.mkdtemp(prefix="igc-", dir=None if "TMPDIR" in os.environ else in_memory())
    Path(folder).chmod(0o711)  # a database server of another user has its files in it
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {"TMPDIR": folder, "IGC_NAS_CACHE": f"{folder}/cache"}
    tempfile.tempdir = None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder is removed then, too

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
    if config.option.markexpr in ("slow", "faults"):
        os.environ[shares.FULL] = "1"
    shares.load_profile()
    if not _is_of_gpus(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    datasets.load_shapes = _drawn  # type: ignore[attr-defined]


@functools.cache
def _drawn(split: Literal["train", "test"]) -> tuple[Any, Any]:
    """`load_shapes`, once in a process: the next call reads the same pixels."""
    images, labels = load_shapes(split)
    for array in (images, labels):
        array.flags.writeable = False
    return images, labels


@pytest.fixture(scope="session", autouse=True)
def _migrations_read_once() -> Iterator[None]:
    """Optuna has Alembic run all its scripts of old formats again for each database: half of the time of an opening."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    with pytest.MonkeyPatch.context() as patch:
        read = ScriptDirectory.from_config
        found: dict[str | None, ScriptDirectory] = {}

        def read_once(config: Config) -> ScriptDirectory:
            place = config.get_main_option("script_location")
            return found.get(place) or found.setdefault(place, read(config))

        patch.setattr(ScriptDirectory, "from_config", read_once)
        yield


def pytest_collection_finish() -> None:
    """What is imported stays: the garbage collector need not look at torch's million objects again."""
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    """A property test is part of the slow suite, too, where it tries all its examples."""
    others = [name for name in ("faults", "gpu") if item.get_closest_marker(name)]
    if shares.FULL in os.environ and is_hypothesis_test(getattr(item, "obj", None)) and not others:
        item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _back_to_the_run() -> Iterator[None]:
    """Leave the folder that a test has gone to: pytest removes it, and the next test would be nowhere."""
    yield
    os.chdir(START)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws from torch's own generator does not depend on the tests that ran before it in the process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no dataset, no settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IGC_NAS_DATA", str(tmp_path / "data"))
    for name in ("IGC_NAS_STORAGE", "IGC_NAS_LATENCY_COMMAND"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def times_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of times by few rounds, which other tests do not see."""
    with pytest.MonkeyPatch.context() as patch:
        own_cache(tmp_path_factory.mktemp("times") / "cache", patch)
        yield


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process."""

    def answer(*arguments: str | Path) -> Answer:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Answer(status, *capsys.readouterr())

    return answer
