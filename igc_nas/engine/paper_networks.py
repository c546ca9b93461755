"""Training the networks of the papers' figures by a study's recipe, to compare its errors with the printed ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from igc_nas.arch.papers import figures
from igc_nas.engine.search import Run
from igc_nas.errors import StudyError
from igc_nas.nn.device import Device, extent_on
from igc_nas.space.budget import Budget
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import Study


def paper_networks_search(study: Study, devices: Sequence[Device], data_dir: Path | None) -> tuple[StudySpec, Run]:
    """The search that evaluates the figures' networks, and nothing else, as the study `papers` in the study's folder.

    Its recipe, dataset and seed are the study's; it has no budget and prunes nothing. Raises `StudyError` for a study
    without a folder, or whose latencies are another machine's.
    """
    if study.folder is None or study.spec.latency.remote:
        raise StudyError(f"the latencies of {study.spec.name} are another machine's", "train the figures there")
    networks = tuple(point.arch for figure in figures(study.spec.classes) for point in figure.points)
    changes = {
        "name": "papers",
        "sampler": "random",
        "prune_below": 0.0,
        "budget": Budget(),
        "bounds": {},
        "reference_ms": None,
    }
    run = Run(
        study.folder / "papers",
        trials=len(networks),
        workers=extent_on(devices).workers,
        devices=tuple(device.torch_name for device in devices),
        data_dir=data_dir,
        enqueue=networks,
    )
    return study.spec.model_copy(update=changes), run
