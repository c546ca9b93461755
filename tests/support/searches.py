"""A search without training: a spec of the space `tiny`, and an evaluator that invents its numbers from the cost."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.data.datasets import locate
from igc_nas.study.defaults import new_spec
from igc_nas.study.records import Conditions, Epoch, Latency, Rung, Score
from igc_nas.study.spec import Calibration, StudySpec
from igc_nas.study.study import Study

CONDITIONS = Conditions(device="stub", threads=1, torch="0", igc_nas="0", load=0.0)


def spec(**changes: Any) -> StudySpec:
    """A calibrated study of `tiny` on `shapes`; `changes` are those of `new_spec`.

    Without a goal in `changes` it has none, as studies of version 0.1.
    """
    question = new_spec(locate("shapes", None), "stub", **({"space": "tiny", "name": "stub"} | changes))
    if "goal" not in changes:
        question = question.model_copy(update={"goal": None})
    ends = Calibration(reference_ms=1.0, smallest=latency(0.1), largest=latency(1.0))
    return question.with_scale(ends)


def latency(ms: float, **changes: Any) -> Latency:
    """A latency of `ms` milliseconds."""
    return Latency(
        **{
            "median_ms": ms,
            "low_ms": ms * 0.99,
            "high_ms": ms * 1.01,
            "normalised_ms": ms,
            "reference_ms": 1.0,
            "noisy": False,
            "samples_ms": (ms,) * 3,
            "reference_samples_ms": (1.0,) * 3,
            "runtime": "eager",
            "batch": 1,
            "dtype": "float32",
            "memory_format": "channels_last",
            "input": (3, 32, 32),
            "conditions": CONDITIONS,
        }
        | changes
    )


def score(error: float) -> Score:
    """A score of `error`."""
    return Score(
        error=error,
        loss=error,
        held_out=1000,
        samples=100,
        curve=(Epoch(samples=100, loss=1.0, train_error=error),),
        train_s=0.0,
        dtype="float32",
        dataset="shapes",
        dataset_sha256="0",
        conditions=CONDITIONS,
    )


def evaluate(arch: ArchConfig, seed: int) -> tuple[Latency, Score]:
    """Larger is better, and slower; a little of both is chance, fixed by the architecture."""
    cost = cost_of(arch)
    chance = int(hashlib.sha256(arch_id(arch).encode()).hexdigest()[:6], 16) / 16**6
    return latency(cost.macs / 5e5 * (0.8 + 0.4 * chance)), score(
        0.9 * (700 / cost.params) ** 0.3 * (0.9 + 0.1 * chance)
    )


_SEARCHED: dict[tuple[str, int], Path] = {}


def searched(folder: Path, trials: int, question: StudySpec | None = None) -> Path:
    """Put a study (of `spec()`) that a search has made of `trials` trials at `folder`: a copy of the first one.

    Each search is made once in a process, for all tests that want a study and not a search.
    """
    from igc_nas.engine.search import Run, search  # with Optuna and torch, which a stub's process does not need

    question = question or spec()
    key = (question.model_dump_json(), trials)
    if key not in _SEARCHED:
        made = Path(tempfile.mkdtemp()) / "s"
        list(search(question, Run(made, trials=trials), evaluate=evaluate))
        _SEARCHED[key] = made
    return Path(shutil.copytree(_SEARCHED[key], folder))


RUNGS = (2000, 4000)


def evaluate_on_the_way(arch: ArchConfig, seed: int) -> tuple[Latency, Score]:
    """The same with `RUNGS`; what an architecture is worth is half chance, so that there is something to give up."""
    measured, made = evaluate(arch, seed)
    chance = int(hashlib.sha256(arch_id(arch).encode()).hexdigest()[6:12], 16) / 16**6
    end = made.error * (0.7 + 0.3 * chance)
    rungs = tuple(Rung(samples=at, error=end + 200 / at * (1 + 0.2 * chance), loss=1.0) for at in RUNGS)
    curve = tuple(Epoch(samples=at, loss=1.0, train_error=end) for at in (3000, 6000))
    return measured, made.model_copy(update={"error": end, "rungs": rungs, "curve": curve, "samples": 6000})


def recorded(study: Study) -> list[list[Any]]:
    """Of each trial: number, state, id, the trial that it repeats, parameters, MACs, the exact error and loss."""
    rows = []
    for trial in study.trials:
        ended = trial.candidate or trial.pruned
        cost = (ended.cost.params, ended.cost.macs) if ended else (None, None)
        score = trial.candidate.score if trial.candidate else None
        exact = (score.error.hex(), score.loss.hex()) if score else (None, None)
        rows.append([trial.number, trial.state, trial.id, trial.same_as, *cost, *exact])
    return rows
