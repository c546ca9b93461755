"""A search in another process, which a test can kill, stop or starve.

`python searcher.py STUB '{"folder": ..., "trials": 9, "workers": 4, "spec": {...}}'`, or as a person types it:
`python searcher.py STUB search --space tiny ...`, where only the evaluators are not those of igc-nas.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import igc_nas

MARK = "IGC_NAS_TEST"
"""Environment variable of all processes that a search has started."""


def command(evaluator: str, folder: Path, trials: int, workers: int = 4, **question: Any) -> list[str]:
    """The command of a search for `trials` trials in all; `question` are `searches.spec`'s changes."""
    options = {"folder": str(folder), "trials": trials, "workers": workers, "spec": question}
    return [sys.executable, __file__, evaluator, json.dumps(options)]


def typed(evaluator: str, *words: str) -> list[str]:
    """`igc-nas WORDS`, with evaluators that invent their numbers."""
    return [sys.executable, __file__, evaluator, *words]


@contextlib.contextmanager
def started(words: list[str], cwd: Path, mark: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs beside the test in another process group; its output is in `cwd`/stdout and /stderr."""
    cwd.mkdir(exist_ok=True)
    package = str(Path(igc_nas.__file__).parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        "IGC_NAS_DATA": str(cwd / "data"),
        "OMP_NUM_THREADS": "1",
        MARK: mark,
    }
    with (cwd / "stdout").open("a") as out, (cwd / "stderr").open("a") as err:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores Ctrl-C
        child = subprocess.Popen(words, cwd=cwd, env=environment, stdout=out, stderr=err, start_new_session=True)
        signal.signal(signal.SIGINT, before)
        try:
            yield child
        finally:
            for process in left(mark):
                process.kill()
            child.kill()
            child.wait()


def finished(words: list[str], cwd: Path, mark: str, within_s: float = 120) -> int:
    """Run a command to its end. Returns its exit status."""
    with started(words, cwd, mark) as child:
        return child.wait(within_s)


def left(mark: str) -> list[psutil.Process]:
    """The processes of a search, itself included, that still live."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def named(mark: str, name: str) -> int:
    """How many processes of a search have a name; one that ends meanwhile has none."""
    count = 0
    for process in left(mark):
        with contextlib.suppress(psutil.Error):
            count += process.name() == name
    return count


def all_gone(mark: str, within_s: float = 10) -> bool:
    """Whether all processes of a search end within `within_s`."""
    until = time.monotonic() + within_s
    while left(mark) and time.monotonic() < until:
        time.sleep(0.02)
    return not left(mark)


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a search."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children():
            with contextlib.suppress(psutil.Error):
                if "spawn_main" in " ".join(process.cmdline()):
                    found.append(process)
    return found


def commands_of(worker: psutil.Process) -> list[psutil.Process]:
    """The child processes of a worker."""
    with contextlib.suppress(psutil.Error):
        return worker.children(recursive=True)
    return []


def await_(what: Any, within_s: float = 60) -> None:
    """Wait until `what()` is true."""
    until = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def main(evaluator: str, *words: str) -> None:
    from igc_nas.engine import search as study
    from tests.support import stubs

    make = getattr(stubs, evaluator, None)
    if make is None:
        from igc_nas.engine import evaluator as real  # with torch

        make = getattr(real, evaluator)
    if words[0].startswith("{"):
        from tests.support.searches import spec

        options = json.loads(words[0])
        run = study.Run(Path(options["folder"]), trials=options["trials"], workers=options["workers"])
        for _ in study.search(spec(**options["spec"]), run, evaluator=make):
            pass
        return
    from igc_nas.cli.program import run as run_program

    study.search = partial(study.search, evaluator=make)
    sys.argv[1:] = words
    run_program()


if __name__ == "__main__":
    main(*sys.argv[1:])
