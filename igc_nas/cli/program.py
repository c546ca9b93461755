"""The program: the group of all commands, and the exit status of every outcome."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

import click

from igc_nas._version import __version__
from igc_nas.cli.bench import bench
from igc_nas.cli.cost import cost
from igc_nas.cli.dashboard import dashboard
from igc_nas.cli.data import data
from igc_nas.cli.doctor import doctor
from igc_nas.cli.export import export
from igc_nas.cli.finals import finals
from igc_nas.cli.front import front
from igc_nas.cli.measure import measure
from igc_nas.cli.output import say
from igc_nas.cli.renamed import Program, option_hint
from igc_nas.cli.report import report
from igc_nas.cli.search import search
from igc_nas.cli.show import show
from igc_nas.cli.space import space
from igc_nas.cli.status import status
from igc_nas.cli.train import train
from igc_nas.errors import LOOK_AT_GPU, IgcNasError
from igc_nas.io.fallbacks import fallbacks_to
from igc_nas.io.text import printable, spelled
from igc_nas.study.process import ENDING

CLOSED_PIPE = 141
"""Exit status when the reader of our output has gone, as a shell has it for SIGPIPE."""
GPU_ERRORS = ("AcceleratorError", "OutOfMemoryError")
"""torch's errors of a GPU that is in use, full or broken, by name: the program imports torch where it needs it only."""
CLOSING_S = 10.0
"""Seconds after a signal in which further ones are ignored, so that closing the study is not interrupted."""
IMPORTING_S = 5.0
"""Seconds that a signal waits for the end of an import."""


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="igc-nas")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def program(debug: bool) -> None:  # `main` reads --debug itself: errors of parsing need it, too
    """Search for fast, small networks of interleaved group convolutions (IGCV1, IGCV2, IGCV3).

    Start with: igc-nas search --budget-params 2M
    """


for command in (
    search,
    finals,
    front,
    status,
    show,
    cost,
    space,
    report,
    measure,
    export,
    train,
    dashboard,
    data,
    bench,
    doctor,
):
    program.add_command(command)


class Terminated(BaseException):
    """SIGTERM or SIGHUP, raised in the main thread, so that `with` and `finally` close the study."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Raises `KeyboardInterrupt` or `Terminated` on the signals in `ENDING`, unless one is ignored already (`nohup`).

    Never within an import: there a module's `except:` may swallow it, and C++ code that imports from Python, as torch's
    does, aborts the process. So it waits for the end of the import; if that takes long, the process ends without it,
    which costs a study no more than SIGKILL does.
    """

    def __init__(self) -> None:
        self.raised: int | None = None
        """The number of the last signal for which an exception was raised."""
        self._raised_at = -CLOSING_S
        self._waits_since: float | None = None
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if _is_importing(frame):
            self._waits_since = self._waits_since or now
            if now - self._waits_since > IMPORTING_S:
                os._exit(128 + number)
            signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            return
        self._waits_since = None
        if now - self._raised_at >= CLOSING_S:
            self.raised, self._raised_at = number, now
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def run() -> None:
    """The entry point: run the command line and exit with its status."""
    signals = Signals()
    _open_streams()
    status = main(sys.argv[1:], signals)
    try:
        sys.stdout.flush()
    except OSError:  # what is left in the buffer has no reader, or no disk
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - else Python complains at its end
        status = status or CLOSED_PIPE
    sys.exit(status)


def _open_streams() -> None:
    """Give each closed standard stream the null device, and let text that a stream cannot encode be `spelled`."""
    codecs.register_error("spelled", spelled)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        stream = getattr(sys, name)
        if stream is None:
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest free number: the stream's own, unless that is taken
            if handle != number:
                os.set_inheritable(handle, False)
            setattr(sys, name, os.fdopen(handle, mode))
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spelled")


def main(arguments: Sequence[str], signals: Signals | None = None) -> int:
    """Run a command in this process and return its exit status. An error is a line and a hint on stderr.

    With `--debug`, errors are raised instead. An error after one of `signals` is the signal's: code in Rust or C++ that
    calls Python, as pydantic's does, makes another exception of a `KeyboardInterrupt`.
    """
    debug = "--debug" in arguments
    try:
        with fallbacks_to(lambda text: say(f"notice: {text}")):
            result = program.main([a for a in arguments if a != "--debug"], prog_name="igc-nas", standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and error.possibilities:
            del error.possibilities[1:]  # the nearest one
        shown = io.StringIO()
        error.show(shown)
        say(*shown.getvalue().splitlines())
        if isinstance(error, click.NoSuchOption) and (hint := option_hint(error)):
            say(f"  {hint}")
        return 2
    except (KeyboardInterrupt, click.Abort):
        return _stopped(signal.SIGINT)
    except Terminated as signal_:
        return _stopped(signal_.number)
    except (BrokenPipeError, SystemExit):  # click exits with its status 1 where a pipe is closed, and nowhere else
        return CLOSED_PIPE
    except Exception as error:
        if signals and signals.raised is not None:
            return _stopped(signals.raised)
        if debug:
            raise
        return _report(error)
    return result if isinstance(result, int) else 0  # --help and --version return a status


def _stopped(number: int) -> int:
    if number == signal.SIGINT:
        say("stopped; the same command continues")
    return 128 + number


def _report(error: Exception) -> int:
    """Print an error in one line, with a hint, and return its exit status."""
    match error:
        case IgcNasError(message=message, hint=hint, exit_code=status):
            say(f"igc-nas: {printable(message, lines=False)}")
            say(*([f"  {printable(hint, lines=False)}"] if hint else []))
            return status
        case OSError():  # a file name, a permission, a full disk
            place = f"{error.filename!s:.200}: " if error.filename else ""
            text = f"{place}{error.strerror or error}"
        case _ if type(error).__name__ in GPU_ERRORS:
            first, _, _ = str(error).partition("\n")  # behind it torch says how to debug kernels
            say(f"igc-nas: {printable(first, lines=False)[:300]}", f"  {LOOK_AT_GPU}")
            return 1
        case _:
            text = f"internal error: {type(error).__name__}: {printable(str(error), lines=False)[:300]}"
    say(f"igc-nas: {text}", "  --debug shows where")
    return 1
