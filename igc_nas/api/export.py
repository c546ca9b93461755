"""`igc_nas.export`: an architecture as files that need no igc-nas."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict, Unpack

from igc_nas.api.options import arch_of, documented, name_of, request_of, settings_kept
from igc_nas.arch.config import ArchConfig
from igc_nas.cli.export import ExportRequest, exported
from igc_nas.cli.export import export as command
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study


class ExportOptions(TypedDict, total=False):
    """The keyword arguments of `export`."""

    pick: str | None
    budget_params: int | float | str | None
    format: Literal["toml", "py", "onnx", "pt2", "c", "dir"] | None
    weights: str | Path | None
    untrained: bool
    form: str | None
    weights_file: bool
    opset: int | None
    device: str | None
    runtime: Literal["onnxruntime", "tensorrt"] | None
    seed: int | None
    classes: int | None
    image_size: int | None
    force: bool
    storage: str | None
    studies_dir: str | Path | None


@documented(command, ExportOptions)
def export(
    what: Study | Candidate | ArchConfig | str | Path, out: str | Path | None = None, **options: Unpack[ExportOptions]
) -> str | Path:
    """Write an architecture as files: `igc_nas.export(study, "net.onnx", pick="knee", weights="models/ID-cifar10")`.

    `what` is a study (see `pick`) or its name, a candidate, an architecture, its file, a network's name, `STUDY:N`, or
    the folder of a training. The ending of `out` names the format. Before anything is written it is read back and
    compared with the network.

    Returns the path of what was written; without `out` the text, of `toml` and `py`.

    Raises `UsageError` for arguments that are invalid or exclude each other, `StudyError` if the study has no such
    trial, `IgcNasError` if a file differs from the network.
    """
    named = str(name_of(what)) if isinstance(what, Study) else arch_of(what)
    request = request_of(command, ExportRequest, {**options, "what": named, "out": out})
    with settings_kept():
        text, *_ = exported(request)
    return text if request.out is None else request.out
