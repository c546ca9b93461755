"""`igc_nas.status`: what ran, what runs and what failed in a study."""

from __future__ import annotations

from pathlib import Path

from igc_nas.api.options import name_of
from igc_nas.cli.loading import load
from igc_nas.study.status import Status, status_of
from igc_nas.study.study import Study


def status(study: Study | str | Path, *, storage: str | None = None, studies_dir: str | Path = "studies") -> Status:
    """What ran in a study, what runs and what failed: `igc_nas.status("first").counts`.

    The study is read again. `running` are trials with their progress, `failed` those with a reason, `owner` is the
    process that searches; `next_commands()` says what to type.

    Raises `StudyError` for an unknown study.
    """
    return status_of(load(name_of(study), Path(studies_dir), storage))
