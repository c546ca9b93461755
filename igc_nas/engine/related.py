"""The studies in a study's folder with which a report compares it: longer trainings, another seed, papers' networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from igc_nas.analysis.finalists import spread
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.papers import figures
from igc_nas.engine.search import Run
from igc_nas.errors import StudyError, UsageError
from igc_nas.nn.device import Device, extent_on
from igc_nas.space.budget import Budget
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import Study

LONGER = 5
"""Epochs of the longer trainings for each of the recipe's."""
LEAST_CONFIRMED = 8
"""Fewer architectures than this have no order to speak of."""


def paper_networks_search(study: Study, devices: Sequence[Device], data_dir: Path | None) -> tuple[StudySpec, Run]:
    """The search that evaluates the networks of the papers' figures by the study's recipe, as the study `papers`.

    Raises `StudyError` for a study without a folder, or whose latencies are another machine's.
    """
    networks = tuple(point.arch for figure in figures(study.spec.classes) for point in figure.points)
    return _search(study, "papers", networks, devices, data_dir)


def confirmation_searches(
    study: Study, devices: Sequence[Device], count: int, data_dir: Path | None
) -> list[tuple[StudySpec, Run]]:
    """The searches that evaluate `count` candidates of a study, of all sizes, as the studies `long` and `seed1`.

    `long` trains five times as long, `seed1` by the study's own recipe; both from another seed, with other held-out
    images. `igc_nas.analysis.proxy.proxy_report` compares the study with them. Raises `UsageError` without a GPU,
    `StudyError` as `paper_networks_search`, or for too few candidates.
    """
    if devices[0].kind != "cuda":
        raise UsageError(
            f"--confirm trains {2 * count} networks, for which it needs a GPU; this is {devices[0].name}",
            "leave it out: the report compares STUDY with the studies in its folder, whatever trained them",
        )
    if len(study.candidates) < LEAST_CONFIRMED:
        raise StudyError(f"{study.spec.name} has {len(study.candidates)} candidates; an order needs {LEAST_CONFIRMED}")
    networks = tuple(candidate.arch for candidate in spread(study, study.candidates, count))
    recipe, seed = study.spec.recipe, study.spec.seed + 1
    longer = recipe.model_copy(update={"epochs": LONGER * recipe.epochs, "rungs": ()})
    return [
        _search(study, name, networks, devices, data_dir, recipe=trained, seed=seed)
        for name, trained in (("long", longer), ("seed1", recipe))
    ]


def _search(
    study: Study,
    name: str,
    networks: tuple[ArchConfig, ...],
    devices: Sequence[Device],
    data_dir: Path | None,
    **changes: Any,
) -> tuple[StudySpec, Run]:
    """The search that evaluates `networks` as a study in the study's folder, without budget, pruning and plan."""
    if study.folder is None or study.spec.latency.remote:
        raise StudyError(f"the latencies of {study.spec.name} are another machine's", "train the networks there")
    changes |= {"name": name, "sampler": "random", "prune_below": 0.0, "budget": Budget()}
    changes |= {"bounds": {}, "reference_ms": None, "plan": None, "target": None}
    run = Run(
        study.folder / name,
        trials=len(networks),
        workers=extent_on(devices).workers,
        devices=tuple(device.torch_name for device in devices),
        data_dir=data_dir,
        enqueue=networks,
    )
    return study.spec.model_copy(update=changes), run
