"""`igc_nas.train`: an architecture, trained from scratch to the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from igc_nas.api.finals import RecipeOptions
from igc_nas.api.options import arch_of, documented, request_of, settings_kept
from igc_nas.arch.config import ArchConfig
from igc_nas.cli.output import say
from igc_nas.cli.train import TrainRequest, trained
from igc_nas.cli.train import train as command
from igc_nas.study.records import Candidate


class TrainOptions(RecipeOptions, total=False):
    """The keyword arguments of `train`."""

    dataset: str | Path | None
    image_size: int | None
    validate: int | None
    seed: int | None
    threads: int | None
    out: str | Path | None


@documented(command, TrainOptions)
def train(arch: ArchConfig | Candidate | str | Path, **options: Unpack[TrainOptions]) -> dict[str, Any]:
    """Train an architecture to the end, and test it once: `igc_nas.train(study.best(), epochs=30)["test_error"]`.

    `arch` is an architecture, a candidate, a .toml file, a network's name or `STUDY:N`. The same call continues an
    interrupted training. Returns what result.json holds: test_error, weights, and the conditions.

    Raises `UsageError` for arguments that are invalid, `DataError` for missing data, `StudyError` while another process
    trains it, `IgcNasError` where the training fails.
    """
    request = request_of(command, TrainRequest, {**options, "arch": arch_of(arch)})
    try:
        with settings_kept():
            result, _ = trained(request)
    except KeyboardInterrupt:
        say("stopped; the same call continues")
        raise
    return result
