"""The error tree: what a user can do wrong, or a machine can do to a user.

    IgcNasError            1   a run that could not go on
    ├── DivergedError      1   a training whose loss is no longer a number
    ├── UsageError         2   a word on the command line, or a value in a file, that cannot be taken
    │   └── ConfigError    2   an architecture, space or study file that is not valid
    ├── InfeasibleError    3   nothing in the space fits the budget
    ├── StudyError         4   a study or its store cannot be opened, or is another one than asked for
    ├── DataError          5   a dataset is missing or damaged
    └── CaptureError       1   CUDA records no graph of a training step

The number is the exit status of the command line. Every error is one line and, where there is one, a hint: the next
thing to type.
"""

from __future__ import annotations

from typing import ClassVar


class IgcNasError(Exception):
    """Base of all errors that are meant for people; `message` says what, `hint` what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class DivergedError(IgcNasError):
    """The loss of a training is no longer a number."""


class UsageError(IgcNasError):
    """A value that cannot be taken, on the command line or in Python."""

    exit_code = 2


class ConfigError(UsageError):
    """A file or a record that describes no valid architecture, space or study."""


class InfeasibleError(IgcNasError):
    """The budget leaves nothing of the space."""

    exit_code = 3


class StudyError(IgcNasError):
    """A study that cannot be found, read, or continued as asked."""

    exit_code = 4


class DataError(IgcNasError):
    """A dataset that is missing, damaged, or not the one that was asked for."""

    exit_code = 5


class CaptureError(IgcNasError):
    """CUDA cannot record the kernels of a run as a graph. torch's state in the process is undefined afterwards."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{NO_GRAPH} ({reason})", f"{GRAPHS}=0 trains without graphs, more slowly")


NO_GRAPH = "CUDA records no graph of this"
GRAPHS = "IGC_NAS_CUDA_GRAPHS"
"""Environment variable: `0` trains, and times what is trained, without graphs. Latencies have their own setting."""
LOOK_AT_GPU = "`igc-nas doctor` examines the GPU, `nvidia-smi` shows what else computes on it"
"""The hint behind torch's errors of CUDA."""
