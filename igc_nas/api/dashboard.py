"""`igc_nas.dashboard`: studies as one self-contained page, written or served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from igc_nas.cli.dashboard import PORT, served, written
from igc_nas.cli.loading import load
from igc_nas.errors import UsageError
from igc_nas.io.files import user_path
from igc_nas.study.study import Study

if TYPE_CHECKING:
    from igc_nas.analysis.dashboard.server import Server


@overload
def dashboard(
    *studies: Study | str | Path,
    out: str | Path | None = None,
    picture: str | Path | None = None,
    finals_picture: str | Path | None = None,
    serve: Literal[False] = False,
    storage: str | None = None,
    studies_dir: str | Path = "studies",
) -> Path: ...


@overload
def dashboard(
    *studies: Study | str | Path,
    serve: Literal[True],
    port: int = PORT,
    storage: str | None = None,
    studies_dir: str | Path = "studies",
) -> Server: ...


def dashboard(
    *studies: Study | str | Path,
    out: str | Path | None = None,
    picture: str | Path | None = None,
    finals_picture: str | Path | None = None,
    serve: bool = False,
    port: int = PORT,
    storage: str | None = None,
    studies_dir: str | Path = "studies",
) -> Path | Server:
    """Write studies as one page that opens offline: `igc_nas.dashboard("first", out="page.html")`.

    Without `out` the page is dashboard.html in the study's folder. `picture` and `finals_picture` (.png, .svg or .pdf;
    they need igc-nas[png]) are of one study. Returns the page's path.

    `serve=True` writes nothing: it serves the page to this machine while the call returns, and the page follows a
    running search. The server that it returns has `url`; `close()` stops it, `wait()` serves until Ctrl-C. `port=0` is
    a free port.

    Raises `StudyError` for an unknown study, `UsageError` for several studies without `out`, an unknown ending, or a
    port that is not available.
    """
    loaded = [study if isinstance(study, Study) else load(study, Path(studies_dir), storage) for study in studies]
    if not loaded:
        raise UsageError("no study is named", "name one")
    if serve:
        if out or picture or finals_picture:
            raise UsageError("serve=True writes no file", "leave out the files, or serve")
        names = [study.spec.name if isinstance(study, Study) else study for study in studies]
        return served(names, loaded, port, storage, Path(studies_dir))
    files = (None if path is None else user_path(path) for path in (out, picture, finals_picture))
    return written(loaded, *files)[0]
