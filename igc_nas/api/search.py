"""`igc_nas.search`: a whole search by keyword arguments, or the trials of a spec one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from igc_nas.api.options import documented, request_of, settings_kept
from igc_nas.cli.output import say
from igc_nas.cli.search import search as command
from igc_nas.cli.search import searched
from igc_nas.cli.study_flags import SearchRequest
from igc_nas.engine.search import Run
from igc_nas.engine.search import search as trials_of
from igc_nas.errors import UsageError
from igc_nas.study.records import Candidate
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import Study

if TYPE_CHECKING:
    from igc_nas.engine.coordinator import Evaluate
    from igc_nas.engine.events import Event
    from igc_nas.engine.executor import ExecutorName, MakeEvaluator
    from igc_nas.study.spec import DtypeName, Goal, LatencyForms, RuntimeName, SamplerName

Count = int | float | str
"""2_000_000, 2e6 or "2M"."""
Range = str | tuple[Count | None, Count | None]
Texts = str | Sequence[str]


class SearchOptions(TypedDict, total=False):
    """The keyword arguments of a whole search; times are seconds or text ("2h"), latencies ms or text ("5ms")."""

    space: str | Path | None
    study: str | None
    dataset: str | Path | None
    image_size: int | None
    objectives: Texts | None
    goal: Goal | None
    budget_params: Count | None
    budget_macs: Count | None
    budget_flops: Count | None
    budget_latency: float | str | None
    params: Range | None
    macs: Range | None
    min_params: Count | None
    trials: int | None
    time: float | str | None
    promote: float | None
    trial_timeout: float | str | None
    workers: int | None
    workers_per_gpu: int | None
    device: str | None
    sampler: SamplerName | None
    seed: int | None
    recipe: Mapping[str, Any] | Texts | None
    forms: Literal["fastest", "factored"] | None
    deterministic: bool
    prune_below: float | None
    enqueue: Texts | None
    baselines: Texts | None
    latency_runtime: RuntimeName | None
    latency_batch: int | None
    latency_dtype: DtypeName | None
    latency_forms: LatencyForms | None
    latency_command: str | None
    executor: ExecutorName | None
    ray_address: str | None
    data_dir: str | Path | None
    studies_dir: str | Path | None
    storage: str | None
    quiet: bool


@overload
def search(**options: Unpack[SearchOptions]) -> Study: ...


@overload
def search(
    spec: StudySpec,
    run: Run | None = None,
    *,
    evaluate: Evaluate | None = None,
    evaluator: MakeEvaluator | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Iterator[Candidate]: ...


@documented(command, SearchOptions)
def search(spec: StudySpec | None = None, run: Run | None = None, **options: Any) -> Any:
    """Search a space for its Pareto front: `igc_nas.search(budget_params="2M", dataset="cifar10", trials=24)`.

    The same call continues a search that was interrupted (Ctrl-C, a notebook's stop button): what was complete stays.
    A bar shows the progress, on a terminal and in a notebook; `quiet=True` shows none. Returns the `Study`: `front()`,
    `frame()`, `plot()`, `best()`, `export()`. Needs no `if __name__ == "__main__"`.

    With a `StudySpec` (and a `Run`) it is `igc_nas.engine.search.search`, which yields each `Candidate` as it is
    complete, and takes an evaluator of one's own.

    Raises `UsageError` or `ConfigError` for an argument that is invalid, `InfeasibleError` where nothing fits the
    budget, `StudyError` where the study exists with other settings, `DataError` for missing data.
    """
    if isinstance(spec, StudySpec):
        return trials_of(spec, run, **options)
    if spec is not None:
        raise UsageError(f"{spec!r:.80} is no StudySpec", "options have names: igc_nas.search(space=...)")
    request = request_of(command, SearchRequest, options)
    try:
        with settings_kept():
            study, end = searched(request)
    except KeyboardInterrupt:
        say("stopped; the same call continues")
        raise
    if end and not request.quiet:
        say(f"{end}; the same call continues")
    return study
