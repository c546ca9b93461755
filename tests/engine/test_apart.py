"""A call in a process of its own: its result and its errors come back, and nothing of it stays."""

import os
import signal
import time

import psutil
import pytest

from igc_nas.engine.apart import call_apart
from igc_nas.errors import IgcNasError, UsageError


def told(text: str, *, more: str) -> tuple[str, int, str | None]:
    """What it was given, its process, its number of threads."""
    return f"{text} {more}", os.getpid(), os.environ.get("OMP_NUM_THREADS")


def refuses() -> None:
    raise UsageError("no memory for a step", "give a smaller batch")


def fails() -> None:
    raise ZeroDivisionError("nothing to divide by")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_result_is_that_of_another_process() -> None:
    words, pid, threads = call_apart(told, "one", more="two")
    assert (words, threads) == ("one two", "1")
    assert pid != os.getpid()
    assert not psutil.pid_exists(pid)


def test_an_error_is_raised_here() -> None:
    with pytest.raises(UsageError, match="no memory for a step") as raised:
        call_apart(refuses)
    assert raised.value.hint == "give a smaller batch"


@pytest.mark.slow
def test_what_ends_it_is_said() -> None:
    with pytest.raises(IgcNasError, match="ZeroDivisionError: nothing to divide by"):
        call_apart(fails)
    with pytest.raises(IgcNasError, match=r"the process that ran dies died \(SIGKILL\)"):
        call_apart(dies)


@pytest.mark.slow
def test_an_interruption_ends_it() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            call_apart(time.sleep, 60.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
