"""`igc_nas.load_space`: a search space within a budget, for an Optuna study of one's own; `space_facts`: its counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict, Unpack

from igc_nas.api.options import request_of
from igc_nas.api.search import Count, Range
from igc_nas.cli.search import search as command
from igc_nas.cli.space import space_facts as facts_of
from igc_nas.cli.study_flags import SearchRequest, given_limits
from igc_nas.samplers.optuna_space import OptunaSpace
from igc_nas.space.budget import Budget
from igc_nas.space.search_space import SpaceFile, find_space


class LimitOptions(TypedDict, total=False):
    """The limits of `search` that are known before anything is measured."""

    budget_params: Count | None
    budget_macs: Count | None
    budget_flops: Count | None
    params: Range | None
    macs: Range | None
    min_params: Count | None


def load_space(
    name: str | Path = "igc_cifar", *, classes: int = 10, image_size: int | None = None, **limits: Unpack[LimitOptions]
) -> OptunaSpace:
    """A search space for an Optuna study: `space = igc_nas.load_space("igc_cifar", budget_params="2M")`.

    `name` is a shipped space (`igc-nas space` lists them) or a .toml file; `image_size` replaces the side of its
    images. The limits are those of `igc_nas.search`: budget_params, budget_macs, budget_flops, params, macs,
    min_params. `space.suggest(trial)` is an architecture within them.

    Raises `ConfigError` for an unknown space, `UsageError` for a limit that is invalid, `InfeasibleError` where nothing
    fits.
    """
    if unknown := limits.keys() - LimitOptions.__annotations__.keys():
        raise TypeError(f"load_space() got an unexpected keyword argument {min(unknown)!r}")
    path = find_space(str(name))
    file = SpaceFile.load(path, image_size)
    budget = Budget.parse(given_limits(request_of(command, SearchRequest, limits)))
    space = OptunaSpace(file, classes, path.stem, budget)
    space.parameters.space.check_side()
    return space


def space_facts(
    name: str | Path = "igc_cifar",
    *,
    classes: int = 10,
    image_size: int | None = None,
    budget_params: Count | None = None,
    budget_macs: Count | None = None,
) -> dict[str, Any]:
    """Exact counts of a space: `igc_nas.space_facts("igc_cifar", budget_params="2M")["feasible"]`.

    What `igc-nas space --json` prints: the number of `architectures`, the least and most parameters, MACs and
    activations; with a budget how many are within it (`feasible`), by range of costs and by the unit of a stage.
    `left_out` are choices that no valid architecture has, `file` is the space's file.

    Raises `ConfigError` for an unknown space, `InfeasibleError` where nothing fits.
    """
    limits: LimitOptions = {"budget_params": budget_params, "budget_macs": budget_macs}
    budget = Budget.parse(given_limits(request_of(command, SearchRequest, limits)))
    return facts_of(name, classes, image_size, budget.params, budget.macs)
