"""`igc_nas.report`: how well the errors of a study's short trainings rank architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict, Unpack

from igc_nas.api.options import documented, name_of, request_of, settings_kept
from igc_nas.cli.report import ReportRequest, reported
from igc_nas.cli.report import report as command
from igc_nas.study.study import Study


class ReportOptions(TypedDict, total=False):
    """The keyword arguments of `report`."""

    reference: Study | str | Path | None
    figures: bool
    confirm: int | None
    data_dir: str | Path | None
    device: str | None
    studies_dir: str | Path | None


@documented(command, ReportOptions)
def report(study: Study | str | Path, **options: Unpack[ReportOptions]) -> dict[str, Any]:
    """How well a study's short trainings rank architectures: `igc_nas.report("igc_table")["predictors"]`.

    Returns what `igc-nas report --json` prints: `predictors`, each with its Kendall's tau-b and 95 % interval, the
    papers' figures, the quality of the surrogate, and what was done with the plan.

    Raises `StudyError` for an unknown study, `UsageError` where the studies have too few architectures in common.
    """
    request = request_of(command, ReportRequest, {**options, "study": name_of(study)})
    with settings_kept():
        return reported(request).to_dict()
