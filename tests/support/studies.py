"""Studies for tests: real architectures with their exact costs; errors and latencies are invented, but follow size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.arch.papers import reference
from igc_nas.arch.plan import arch_id
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import feasible
from igc_nas.study.records import Candidate, Conditions, Epoch, Latency, Score, Trial, TrialState
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import Study
from tests.support.builders import shipped_space

CONDITIONS = Conditions(device="Test CPU", threads=1, torch="2.13.0", igc_nas="0.1.0", load=0.1)
MOST_DRAWN = 500
"""Architectures are drawn up to here; a larger study has them again, with other errors and latencies."""

REASONS: dict[TrialState, str] = {
    "infeasible": "2,345,678 parameters; the budget is 2,000,000",
    "duplicate": "duplicate of trial 0",
    "failed": "the loss is not finite after 3 steps",
}

_KNOWN_BOUNDS: dict[tuple[str, int, Budget], dict[str, tuple[float, float]]] = {}  # they take seconds to find


def make_study(n: int, seed: int = 0, others: Sequence[TrialState] = (), **changes: Any) -> Study:
    """A study of `n` completed trials, then one trial in each state of `others`.

    `changes` replace keys of study.toml, as plain data: `make_study(20, objectives=["error", "params"], name="pair")`.
    The same arguments give equal studies.
    """
    spec = make_spec(**changes)
    candidates = make_candidates(spec, n, np.random.default_rng(seed))
    done = [
        Trial(number=c.trial, state="complete", params={}, arch=c.arch, candidate=c, wall_s=60.0) for c in candidates
    ]
    rest = [Trial(number=i, state=s, params={}, reason=REASONS.get(s)) for i, s in enumerate(others, start=len(done))]
    return Study(spec, (*done, *rest))


def with_baselines(study: Study, *names: str, failed: Sequence[str] = ()) -> Study:
    """The study with baselines, whose numbers follow size as its candidates' do: those of other drawn architectures."""
    made = list(make_candidates(study.spec, len(names), np.random.default_rng(7)))
    start = len(study.trials)
    trials = [
        Trial(number=c.trial, state="complete", params={}, arch=c.arch, candidate=c, wall_s=60.0, baseline=name)
        for name, c in zip(names, (c.model_copy(update={"trial": start + c.trial}) for c in made), strict=True)
    ]
    broken = [
        Trial(number=start + len(trials) + i, state="failed", params={}, arch=reference("igcv3-d-cifar").arch,
              reason=REASONS["failed"], baseline=name)
        for i, name in enumerate(failed)
    ]  # fmt: skip
    return Study(study.spec, (*study.trials, *trials, *broken), study.folder)


def make_spec(**changes: Any) -> StudySpec:
    """A calibrated question over the default space: at most 2 M parameters, error against params and latency."""
    space = shipped_space("igc_cifar")
    plain: dict[str, Any] = {
        "name": "test-study",
        "space_name": space.name,
        "classes": 10,
        "dataset": "cifar10",
        "dataset_sha256": "0" * 64,
        "budget": {"params": 2_000_000},
        "recipe": {"epochs": 2, "train_size": 4000, "held_out": 2000, "batch": 64, "resolution": 32, "lr": 0.1},
        "latency": {"device": CONDITIONS.device},
        "reference_ms": 4.0,
        "space": space.file.to_dict(),
    }
    spec = StudySpec.parse(plain | changes)
    if "bounds" in changes:
        return spec
    key = (spec.space.model_dump_json(), spec.classes, spec.budget)
    if key not in _KNOWN_BOUNDS:
        _KNOWN_BOUNDS[key] = spec.known_bounds()
    return spec.model_copy(update={"bounds": _KNOWN_BOUNDS[key] | {"latency": (0.5, 60.0)}})


def make_candidates(spec: StudySpec, n: int, rng: np.random.Generator) -> Iterator[Candidate]:
    """Trials 0 to n - 1, within the spec's budgets on params and MACs."""
    within = feasible(
        shipped_space("igc_cifar", spec.classes), Budget(params=spec.budget.params, macs=spec.budget.macs)
    )
    drawn = [_identified(within.draw(rng)) for _ in range(min(n, MOST_DRAWN))]
    for trial in range(n):
        name, arch, cost = drawn[trial % len(drawn)]
        yield Candidate(
            trial=trial,
            id=name,
            arch=arch,
            cost=cost,
            latency=make_latency(cost, rng),
            score=make_score(spec, cost, rng),
            seed=trial,
        )


def make_latency(cost: Cost, rng: np.random.Generator) -> Latency:
    """About the time of a thread that does 2 GMAC/s and writes 0.5 G activations/s; one in ten is noisy."""
    typical = (cost.macs / 2e6 + cost.activations / 5e5) * float(rng.lognormal(0, 0.15))
    noisy = bool(rng.random() < 0.1)
    samples = np.sort(typical * rng.lognormal(0, 0.12 if noisy else 0.02, 9))
    median = float(samples[4])
    return Latency(
        median_ms=median,
        low_ms=float(samples[1]),
        high_ms=float(samples[7]),
        normalised_ms=median * 0.95,
        reference_ms=4.0,
        noisy=noisy,
        samples_ms=tuple(float(x) for x in samples),
        reference_samples_ms=(4.2,) * 9,
        runtime="eager",
        batch=1,
        dtype="float32",
        memory_format="channels_last",
        input=(3, 32, 32),
        conditions=CONDITIONS,
    )


def make_score(spec: StudySpec, cost: Cost, rng: np.random.Generator) -> Score:
    """An error that falls with the logarithm of the parameters, as a share of the held-out images."""
    error = 0.85 - 0.09 * np.log10(cost.params) + 0.03 * rng.standard_normal()
    wrong = round(float(np.clip(error, 0.05, 0.9)) * spec.recipe.held_out)
    return Score(
        error=wrong / spec.recipe.held_out,
        loss=1.2,
        held_out=spec.recipe.held_out,
        samples=spec.recipe.samples,
        curve=(Epoch(samples=spec.recipe.samples, loss=1.1, train_error=0.4),),
        train_s=42.0,
        dtype=spec.recipe.dtype,
        dataset=spec.dataset,
        dataset_sha256=spec.dataset_sha256,
        conditions=CONDITIONS,
    )


def _identified(arch: ArchConfig) -> tuple[str, ArchConfig, Cost]:
    return arch_id(arch), arch, cost_of(arch)
