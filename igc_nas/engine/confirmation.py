"""Longer trainings and trainings of another seed that confirm, or refute, a study's recipe on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from igc_nas.analysis.finalists import spread
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


def confirmation_searches(
    study: Study, devices: Sequence[Device], count: int, data_dir: Path | None
) -> list[tuple[StudySpec, Run]]:
    """The searches that evaluate `count` candidates of a study, of all sizes, in two studies in its folder.

    `long` trains five times as long, `seed1` by the study's own recipe; both from another seed, with other held-out
    images. `igc_nas.analysis.proxy.proxy_report` compares the study with them. Raises `UsageError` without a GPU,
    `StudyError` for a study without a folder, with other machines' latencies, or with too few candidates.
    """
    if devices[0].kind != "cuda":
        raise UsageError(
            f"--confirm trains {2 * count} networks, for which it needs a GPU; this is {devices[0].name}",
            "leave it out: the report compares STUDY with the studies in its folder, whatever trained them",
        )
    if study.folder is None or study.spec.latency.remote:
        raise StudyError(f"the latencies of {study.spec.name} are another machine's", "confirm its recipe there")
    if len(study.candidates) < LEAST_CONFIRMED:
        raise StudyError(f"{study.spec.name} has {len(study.candidates)} candidates; an order needs {LEAST_CONFIRMED}")
    networks = tuple(candidate.arch for candidate in spread(study, study.candidates, count))
    recipe = study.spec.recipe
    longer = recipe.model_copy(update={"epochs": LONGER * recipe.epochs, "rungs": ()})
    changes = {
        "sampler": "random",
        "seed": study.spec.seed + 1,
        "prune_below": 0.0,
        "budget": Budget(),
        "bounds": {},
        "reference_ms": None,
        "plan": None,
        "target": None,
    }
    run = Run(
        study.folder,
        trials=len(networks),
        workers=extent_on(devices).workers,
        devices=tuple(device.torch_name for device in devices),
        data_dir=data_dir,
        enqueue=networks,
    )
    return [
        (
            study.spec.model_copy(update={**changes, "name": name, "recipe": trained}),
            replace(run, folder=study.folder / name),
        )
        for name, trained in (("long", longer), ("seed1", recipe))
    ]
