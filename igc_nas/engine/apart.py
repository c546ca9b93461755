"""A function that is called in a process of its own: what CUDA holds there ends with it.

A coordinator that times trainings on a GPU itself would keep a CUDA context, some hundred MB; in the compute mode
EXCLUSIVE_PROCESS, CUDA would then refuse the GPU to its workers.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from igc_nas.engine.process_executor import child_environment, environment, exit_words, without_main
from igc_nas.engine.worker import depend_on_parent, to_igc_error
from igc_nas.errors import IgcNasError
from igc_nas.io.fallbacks import FallbackWarning

T = TypeVar("T")


def call_apart(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """The result of a module's function in a new process, which has the environment of a worker of one thread.

    What falls back there is not said: workers say it again. Raises the `IgcNasError` that it raises, one with its text
    for another error, and one where the process dies. An interruption of the call ends the process.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(theirs, function, arguments, options), daemon=True)
    with child_environment(environment(threads=1)), without_main():
        process.start()
    theirs.close()
    try:
        result: Any = ours.recv()
        process.join()  # the GPU is free when it has ended
    except EOFError:
        process.join()
        raise IgcNasError(f"the process that ran {function.__name__} died ({exit_words(process.exitcode)})") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(result, IgcNasError):
        raise result
    return result  # type: ignore[no-any-return]


def _call(pipe: Connection, function: Callable[..., Any], arguments: Any, options: Any) -> None:
    depend_on_parent()
    warnings.simplefilter("ignore", FallbackWarning)
    try:
        result = function(*arguments, **options)
    except Exception as error:
        result = to_igc_error(error)
    pipe.send(result)
