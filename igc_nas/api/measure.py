"""`igc_nas.measure`: the latency of an architecture here, or of a study's candidates again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from igc_nas.api.options import arch_of, documented, name_of, parameters_of, request_of, settings_kept
from igc_nas.arch.config import ArchConfig
from igc_nas.cli.loading import load
from igc_nas.cli.measure import MeasureRequest, check, measured, measured_again
from igc_nas.cli.measure import measure as command
from igc_nas.engine.remeasuring import Remeasured
from igc_nas.study.records import Candidate, Latency
from igc_nas.study.study import Study

if TYPE_CHECKING:
    from igc_nas.study.spec import DtypeName, RuntimeName


class MeasureOptions(TypedDict, total=False):
    """The keyword arguments of `measure`."""

    keep: bool
    classes: int | None
    image_size: int | None
    device: str | None
    batch: int | None
    latency_dtype: DtypeName | None
    threads: int | None
    runtime: RuntimeName | None
    forms: Literal["any", "factored"] | None
    budget_params: int | float | str | None
    cuda_graph: bool | None
    cold_cache: bool
    energy: bool
    latency_command: str | None
    studies_dir: str | Path | None


@overload
def measure(arch: ArchConfig | Candidate | str | Path, **options: Unpack[MeasureOptions]) -> Latency: ...


@overload
def measure(*, study: Study | str | Path, **options: Unpack[MeasureOptions]) -> tuple[Remeasured, ...]: ...


@documented(command, MeasureOptions)
def measure(
    arch: ArchConfig | Candidate | str | Path | None = None, *, study: Study | str | Path | None = None, **options: Any
) -> Latency | tuple[Remeasured, ...]:
    """Measure a latency on this machine: `igc_nas.measure("igcv3-d-cifar", runtime="onnxruntime").median_ms`.

    `arch` is an architecture, a candidate, a .toml file, a network's name or `STUDY:N`. With `study` its candidates are
    measured again under the study's conditions (with `keep` the noisy ones, and latencies that are not noisy any more
    are recorded); then the result is a `Remeasured` for each.

    Raises `UsageError` for arguments that are invalid or exclude each other, and for a runtime that is missing here,
    `StudyError` if this machine has not the device of the study.
    """
    given = {name: value for name, value in options.items() if value is not None}
    named = None if arch is None else arch_of(arch)
    request = request_of(command, MeasureRequest, {**given, "arch": named, "study": name_of(study)})
    parameters = parameters_of(command)
    check(request, {str(parameters[name].name) for name in given})
    with settings_kept():
        if request.study_name is not None:
            return tuple(measured_again(load(request.study_name, request.root), request))
        return measured(request)[1]
