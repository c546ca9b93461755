"""Studies in folders of each other, for tests of what a proxy is worth: the same architectures with chosen errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from igc_nas.arch.cost import cost_of
from igc_nas.arch.papers import figures
from igc_nas.study.records import Candidate, Pruned, Rung, Trial, Unfinished
from igc_nas.study.study import Study
from tests.support.studies import make_latency, make_score, make_spec, make_study

RECIPE = {"epochs": 2, "train_size": 4000, "held_out": 2000, "batch": 64, "resolution": 32, "lr": 0.1}
LONG = RECIPE | {"epochs": 20}
RUNGS = (2000, 4000)

Error = Callable[[Candidate], float]
"""The error of a candidate, 0 to 1."""


def by_size(candidate: Candidate) -> float:
    """An error that falls with the parameters and says nothing else."""
    return 0.9 - 0.1 * math.log10(candidate.cost.params)


def by_quality(candidate: Candidate) -> float:
    """An error that has nothing to do with the size: drawn from the id."""
    return int(candidate.id, 16) / 16**12


def blurred(error: Error, by: float, seed: int) -> Error:
    """`error` with normal noise of its own for each architecture."""

    def noisy(candidate: Candidate) -> float:
        noise = np.random.default_rng([seed, int(candidate.id, 16)]).normal()
        return float(np.clip(error(candidate) + by * noise, 0, 1))

    return noisy


def make(n: int, error: Error, rungs: Mapping[int, Error] | None = None, **changes: Any) -> Study:
    """A study of the same first `n` architectures each time, with these errors; `changes` as for `make_study`."""
    study = make_study(n, **({"recipe": RECIPE, "name": "short"} | changes))
    trials = (
        t.model_copy(update={"candidate": scored(t.candidate, error, rungs)}) for t in study.trials if t.candidate
    )
    return Study(study.spec, tuple(trials))


def scored(candidate: Candidate, error: Error, rungs: Mapping[int, Error] | None = None) -> Candidate:
    """The candidate with these errors."""
    on_the_way = tuple(Rung(samples=at, error=of(candidate), loss=1.5) for at, of in (rungs or {}).items())
    score = candidate.score.model_copy(update={"error": error(candidate), "rungs": on_the_way})
    return candidate.model_copy(update={"score": score})


def stop(study: Study, at: int) -> Study:
    """The study with trials from number `at` on pruned at their last rung."""
    trials = []
    for trial in study.trials:
        c = trial.candidate
        if trial.number < at or c is None:
            trials.append(trial)
            continue
        pruned = Pruned(
            id=c.id,
            cost=c.cost,
            latency=c.latency,
            training=Unfinished(rungs=c.score.rungs, curve=(), train_s=1.0),
            p_front=0.01,
            expected_error=c.score.error,
            std=0.01,
            seed=0,
        )
        trials.append(Trial(number=trial.number, state="pruned", params={}, arch=c.arch, pruned=pruned))
    return Study(study.spec, tuple(trials))


def make_papers(error: Callable[[float], float], classes: int = 10, **changes: Any) -> Study:
    """The networks of the papers' figures, `error` of what is printed as accuracy (0 to 1)."""
    spec = make_spec(**({"recipe": RECIPE, "name": "papers"} | changes))
    rng = np.random.default_rng(0)
    trials = []
    for number, point in enumerate(p for figure in figures(classes) for p in figure.points):
        cost = cost_of(point.arch)
        score = make_score(spec, cost, rng).model_copy(update={"error": error(point.accuracy)})
        candidate = Candidate(
            trial=number, id=point.id, arch=point.arch, cost=cost, latency=make_latency(cost, rng), score=score, seed=0
        )
        trials.append(Trial(number=number, state="complete", params={}, arch=point.arch, candidate=candidate))
    return Study(spec, tuple(trials))


def write(folder: Path, study: Study) -> Path:
    """Write a study's evidence."""
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(study.spec.to_toml(), encoding="utf-8")
    (folder / "trials.jsonl").write_text("".join(f"{trial.to_json()}\n" for trial in study.trials), encoding="utf-8")
    return folder


def on_the_way(n: int = 30, pruned: int = 6) -> Study:
    """A study with rungs, the last `pruned` of its trainings pruned at one."""
    rungs = {at: blurred(by_size, 0.02, at) for at in RUNGS}
    study = make(n, blurred(by_size, 0.01, 0), rungs, recipe=RECIPE | {"rungs": RUNGS}, prune_below=0.05)
    return stop(study, n - pruned)
