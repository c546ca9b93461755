"""bench search: trials per hour with networks in their fastest forms, compared with the factored form."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from igc_nas.bench.report import Report, Row
from igc_nas.data.datasets import data_dir, is_synthetic, locate
from igc_nas.engine.apart import call_apart
from igc_nas.engine.events import Event, Opened
from igc_nas.engine.search import Run, search
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.nn.device import Device, configure_torch, extent_on
from igc_nas.nn.lowering.fastest_dtype import fastest_dtype
from igc_nas.space.budget import Budget
from igc_nas.study.defaults import new_spec
from igc_nas.study.records import Candidate, Conditions
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import load_study

KINDS = ("factored", "fastest")
Search = Callable[..., Iterator[Candidate]]
"""`igc_nas.engine.search.search`, or a function with its signature."""


def bench_search(
    device: Device,
    trials: int = 24,
    chunk: int = 6,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    space: str = "igc_cifar",
    run_search: Search = search,
) -> Report:
    """Two searches of `space` within 2 M parameters, alternating every `chunk` trials until each has `trials`.

    Both draw at random from the same seed, so they evaluate the same architectures. Time counts from when the workers
    are ready; choosing forms and measuring latency are included.
    """
    workers = extent_on((device,)).workers
    rows: list[Row] = []
    with cold_folder() as folder:
        specs = {kind: _spec(kind, device, seed, space) for kind in KINDS}
        spent = dict.fromkeys(KINDS, 0.0)
        for done in [*range(chunk, trials, chunk), trials]:
            took = {}
            for kind in KINDS:
                took[kind] = _searched(specs[kind], folder / kind, done, workers, device, run_search)
                spent[kind] += took[kind]
            rows.append(_row(done, took))
            say(f"{done} trials each: {rows[-1]['ratio']:.2f}x")
        mixes = {kind: _shares(folder / kind) for kind in KINDS}
    per_hour = {f"{kind}_trials_per_hour": 3600 * rows[-1]["trials"] / spent[kind] for kind in KINDS}
    overall = {"overall_ratio": spent["factored"] / spent["fastest"], **per_hour, "shares": mixes}
    conditions = {
        **worker_conditions(device),
        "workers": workers,
        "data": specs["fastest"].dataset + (" (SYNTHETIC)" if is_synthetic(specs["fastest"].dataset) else ""),
        "recipe": f"{specs['factored'].recipe.dtype} factored against {specs['fastest'].recipe.dtype} fastest",
    }
    return Report("search: time for the same trials, factored / fastest forms", tuple(rows), conditions, extra=overall)


def worker_conditions(device: Device) -> dict[str, Any]:
    """The conditions in a worker of one thread, for a report. A process that ends looks at a GPU: it stays free."""
    found = call_apart(_configured_conditions, device) if device.kind == "cuda" else conditions_of(device)
    return found.model_dump(exclude_none=True)


def _configured_conditions(device: Device) -> Conditions:
    configure_torch(device, 1)
    return conditions_of(device)


@contextlib.contextmanager
def cold_folder() -> Iterator[Path]:
    """A temporary folder, in which the timing cache is, too: an empty one, as in a first search."""
    before = os.environ.get("IGC_NAS_CACHE")
    with tempfile.TemporaryDirectory(prefix="igc-nas-bench-") as name:
        os.environ["IGC_NAS_CACHE"] = str(Path(name) / "cache")
        try:
            yield Path(name)
        finally:
            if before is None:
                del os.environ["IGC_NAS_CACHE"]
            else:
                os.environ["IGC_NAS_CACHE"] = before


def _spec(kind: str, device: Device, seed: int, space: str) -> StudySpec:
    info = locate("auto", data_dir(None))
    return new_spec(
        info,
        device.name,
        device.kind,
        name=kind,
        space=space,
        budget=Budget(params=2_000_000),
        sampler="random",
        seed=seed,
        recipe={"dtype": fastest_dtype(device, kind).dtype, "forms": kind},
        latency={"runtime": device.deployment_runtime} | ({"forms": "factored"} if kind == "factored" else {}),
    )


def _searched(spec: StudySpec, folder: Path, trials: int, workers: int, device: Device, run_search: Search) -> float:
    """Seconds from when the workers are ready until the study has `trials` complete trials."""
    opened: list[float] = []

    def note_start(event: Event) -> None:
        if isinstance(event, Opened):
            opened.append(time.perf_counter())

    run = Run(folder, trials=trials, workers=workers, devices=(device.torch_name,))
    last = 0.0
    for _ in run_search(spec, run, on_event=note_start):
        last = time.perf_counter()
    return last - opened[0]


def _shares(folder: Path) -> dict[str, Any]:
    """Seconds of training, and of whole trials (with choosing forms, measuring and waiting)."""
    study = load_study(folder)
    trained = sum(candidate.score.train_s for candidate in study.candidates)
    wall = sum(trial.wall_s or 0.0 for trial in study.trials if trial.candidate)
    return {"trials": len(study.candidates), "train_s": round(trained, 1), "wall_s": round(wall, 1)}


def _row(done: int, took: dict[str, float]) -> Row:
    return {
        "name": f"to trial {done}",
        "group": "search",
        "trials": done,
        "factored_s": took["factored"],
        "fastest_s": took["fastest"],
        "ratio": took["factored"] / took["fastest"],
    }
