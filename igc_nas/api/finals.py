"""`igc_nas.finals`: the best candidates of a study and baselines, trained to the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from igc_nas.api.options import documented, name_of, request_of, settings_kept
from igc_nas.cli.finals import FinalsRequest, trained
from igc_nas.cli.finals import finals as command
from igc_nas.cli.loading import load
from igc_nas.cli.output import say
from igc_nas.study.finals import FinalsGroup, finals_groups
from igc_nas.study.study import Study


class RecipeOptions(TypedDict, total=False):
    """The keyword arguments that change a training to the end."""

    preset: Literal["quick", "full"] | None
    epochs: int | None
    batch: int | None
    lr: float | None
    label_smoothing: float | None
    recipe: Mapping[str, Any] | str | Sequence[str] | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None
    forms: Literal["fastest", "factored"] | None
    deterministic: bool
    device: str | None
    data_dir: str | Path | None
    studies_dir: str | Path | None


class FinalsOptions(RecipeOptions, total=False):
    """The keyword arguments of `finals`."""

    pick: str | Sequence[str] | None
    top: int | None
    baselines: str | Sequence[str] | None
    seeds: int | None
    workers: int | None
    no_latency: bool
    retry_failed: bool
    dry_run: bool


@documented(command, FinalsOptions)
def finals(study: Study | str | Path, **options: Unpack[FinalsOptions]) -> FinalsGroup | None:
    """Train a study's best candidates, and baselines, to the end: `igc_nas.finals(study, top=4, epochs=30)`.

    Every network is trained from scratch on all training images by one recipe, and tested once; the same call
    continues after any interruption. Returns the networks by test error ascending (a notebook shows them as a table);
    None for a `dry_run`, which prints what would be trained.

    Raises `UsageError` for arguments that are invalid, `StudyError` for an unknown study or while another process
    trains its finals, `DataError` for missing data.
    """
    request = request_of(command, FinalsRequest, {**options, "study": str(name_of(study))})
    try:
        with settings_kept():
            recipe = trained(request)
    except KeyboardInterrupt:
        say("stopped; the same call continues")
        raise
    groups = finals_groups(load(request.study, request.root).finals)
    return next((group for group in groups if group.recipe.model_dump_json() == recipe), None)
