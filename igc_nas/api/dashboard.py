"""`igc_nas.dashboard`: studies as one self-contained page."""

from __future__ import annotations

from pathlib import Path

from igc_nas.cli.dashboard import written
from igc_nas.cli.loading import load
from igc_nas.study.study import Study


def dashboard(
    *studies: Study | str | Path,
    out: str | Path | None = None,
    picture: str | Path | None = None,
    finals_picture: str | Path | None = None,
    storage: str | None = None,
    studies_dir: str | Path = "studies",
) -> Path:
    """Write studies as one page that opens offline: `igc_nas.dashboard("first", out="page.html")`.

    Without `out` the page is dashboard.html in the study's folder. `picture` and `finals_picture` (.png, .svg or .pdf;
    they need igc-nas[png]) are of one study. Returns the page's path. `igc-nas dashboard --serve` follows a search.

    Raises `StudyError` for an unknown study, `UsageError` for several studies without `out`, or an unknown ending.
    """
    loaded = [study if isinstance(study, Study) else load(study, Path(studies_dir), storage) for study in studies]
    files = (None if path is None else Path(path).expanduser() for path in (out, picture, finals_picture))
    return written(loaded, *files)[0]
