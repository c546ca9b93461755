"""bench sampler: hypervolume over evaluations of each sampler on each problem, and whether known-cost meets goals."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igc_nas.bench.samplers.peers import PEERS, require_peer
from igc_nas.bench.samplers.problems import Problem
from igc_nas.bench.samplers.replay import Replay
from igc_nas.bench.samplers.runs import Task, run_tasks
from igc_nas.errors import UsageError
from igc_nas.io.console import table_lines
from igc_nas.io.text import nearest_and_all
from igc_nas.samplers.features import Floats
from igc_nas.study.spec import SamplerName

SAMPLERS: tuple[SamplerName, ...] = ("known-cost", "stratified", "random", "tpe", "nsga2", "evolution")
TESTED: SamplerName = "known-cost"
"""The sampler whose goals are checked; the others are its rivals."""
BASELINE: SamplerName = "random"
PRUNED_SAMPLERS: tuple[SamplerName, ...] = ("known-cost", "stratified")
"""Replayed both with and without pruning at rungs."""
CHECKPOINTS = (30, 60, 100)
"""Evaluations at which the tested sampler's mean has to be the highest."""
APART_AT = 60
"""Evaluations at which its band has to be above every other band."""
GOAL_AT = 200
"""The tested sampler has to reach the baseline's hypervolume at this number of evaluations `SPEED_UP` times sooner.

On a tabular benchmark it is half of the table at most.
"""
SPEED_UP = 4
MOST_COMPUTE = 0.7
"""The share of the compute of full trainings in which pruned ones have to reach the same hypervolume."""
MOST_TIME = 0.6
"""The share of the time in which a search that weighs prices has to reach the same hypervolume."""
MIN_SEEDS = 3
GRID = 200
DIGITS = 5
FREE = (
    "an evaluation is a new architecture within the budget: infeasible and duplicate suggestions are not counted, for "
    "any sampler"
)


@dataclass(frozen=True)
class Band:
    """A mean over seeds with its 95 % interval by Student's t, point by point."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Band:
        """The band of rows (seeds, points); a shorter row keeps its last value."""
        from scipy.stats import t

        length = max(map(len, rows))
        values = np.array([[*row, *itertools.repeat(row[-1] if row else 0.0, length - len(row))] for row in rows])
        mean, seeds = values.mean(axis=0), len(rows)
        half = float(t.ppf(0.975, seeds - 1)) * values.std(axis=0, ddof=1) / math.sqrt(seeds)
        return cls(*(tuple(np.round(part, DIGITS).tolist()) for part in (mean, mean - half, mean + half)))

    def text(self, at: int) -> str:
        """`0.4312 [0.4280, 0.4344]` at a point, counted from 1; `-` after the last one."""
        if at > len(self.mean):
            return "-"
        return f"{self.mean[at - 1]:.4f} [{self.low[at - 1]:.4f}, {self.high[at - 1]:.4f}]"


@dataclass(frozen=True)
class Verdict:
    """A goal: whether it is reached (None: that cannot be said), and the numbers behind the verdict."""

    what: str
    reached: bool | None
    why: str


@dataclass(frozen=True)
class PruningEffect:
    """A sampler with pruning at rungs against the same one without: hypervolume over shares of the full compute.

    `area` are the areas under `full` and `pruned`, each with its interval. `share` is the share of the compute at which
    the mean with pruning reaches the final mean without; None: it does not. `trainings_pruned` and `lost` (those on the
    true front, which has `front` members) are means over seeds.
    """

    sampler: str
    prune_below: float
    full: Band
    pruned: Band
    area: tuple[Band, Band]
    share: float | None
    trainings_pruned: float
    lost: float
    front: int

    def verdicts(self) -> Iterator[Verdict]:
        """Pruning must not lower the area below the full one's interval, and must save compute."""
        full, pruned = self.area
        yield Verdict(
            f"{self.sampler}: area under the hypervolume over compute with pruning not below the interval of full "
            "training",
            pruned.mean[0] >= full.low[0],
            f"{pruned.text(1)}, full {full.text(1)}",
        )
        reached = "never" if self.share is None else f"{self.share:.2f} of the compute"
        count = f"{self.trainings_pruned:.1f} trainings pruned, {self.lost:.2f} of the front's {self.front} lost"
        yield Verdict(
            f"{self.sampler}: full training's final hypervolume at {MOST_COMPUTE:g} of the compute or less",
            self.share is not None and self.share <= MOST_COMPUTE,
            f"{reached}; {count}",
        )


@dataclass(frozen=True)
class PricingEffect:
    """The tested sampler with a plan, by which it weighs the price of a trial, against itself without one.

    Hypervolume over shares of the time that the search without a plan took; `share` is that at which the mean with
    prices reaches the final mean without; None: it does not. `evaluations` are the mean numbers in that time.
    """

    sampler: str
    plain: Band
    priced: Band
    share: float | None
    evaluations: tuple[float, float]

    def verdicts(self) -> Iterator[Verdict]:
        """Prices must save time."""
        reached = "never" if self.share is None else f"at {self.share:.2f} of the time"
        half = GRID // 2
        yield Verdict(
            f"{self.sampler}: without prices' final hypervolume in {MOST_TIME:g} of the time or less",
            self.share is not None and self.share <= MOST_TIME,
            f"{reached}; at half of the time {self.priced.text(half)}, without {self.plain.text(half)}; at the end "
            f"{self.priced.text(GRID)}, without {self.plain.text(GRID)}; {self.evaluations[1]:.0f} evaluations, "
            f"without {self.evaluations[0]:.0f}",
        )


@dataclass(frozen=True)
class Comparison:
    """The samplers on one problem.

    `size` is that of a small space (None: a large one), `missing` the number of its architectures without an
    outcome. `goal_at` is the number of evaluations after which the baseline's hypervolume is the goal.
    """

    problem: str
    about: str
    size: int | None
    missing: int
    goal_at: int
    curves: Mapping[str, Band]
    pruning: tuple[PruningEffect, ...] = ()
    pricing: PricingEffect | None = None

    @property
    def goal(self) -> float | None:
        """The baseline's mean hypervolume at `goal_at`; None: it was not replayed to there."""
        base = self.curves.get(BASELINE)
        return base.mean[self.goal_at - 1] if base and self.goal_at <= len(base.mean) else None

    def needed(self, sampler: str) -> int | None:
        """Evaluations until a sampler's mean reaches the goal; None: it does not."""
        goal = self.goal
        if goal is None:
            return None
        return next((n for n, value in enumerate(self.curves[sampler].mean, start=1) if value >= goal), None)

    def verdicts(self) -> tuple[Verdict, ...]:
        """The goals on this problem; not judged on a table with missing outcomes."""
        found = [*self._above(), *self._apart(), *self._sooner()]
        found += [verdict for effect in self.pruning for verdict in effect.verdicts()]
        found += self.pricing.verdicts() if self.pricing else ()
        if self.missing:
            return tuple(Verdict(v.what, None, f"the table lacks {self.missing:,}; {v.why}") for v in found)
        return tuple(found)

    def _above(self) -> Iterator[Verdict]:
        for at in CHECKPOINTS:
            rival = self._best_rival(at, "mean")
            what = f"{TESTED} above every other sampler at {at}"
            if rival is None:
                yield Verdict(what, None, "it or all others were not replayed to there")
                continue
            mean = self.curves[TESTED].mean[at - 1]
            yield Verdict(what, mean > rival[1], f"{mean:.4f}, {rival[0]} {rival[1]:.4f}")

    def _apart(self) -> Iterator[Verdict]:
        what, rival = f"bands apart at {APART_AT}", self._best_rival(APART_AT, "high")
        if rival is None:
            yield Verdict(what, None, "it or all others were not replayed to there")
            return
        low = self.curves[TESTED].low[APART_AT - 1]
        yield Verdict(what, low > rival[1], f"from {low:.4f}, {rival[0]} up to {rival[1]:.4f}")

    def _best_rival(self, at: int, part: str) -> tuple[str, float] | None:
        """The other sampler with the highest value at an evaluation.

        None where the tested one or all others were not replayed to there.
        """
        values = {name: getattr(band, part)[at - 1] for name, band in self.curves.items() if at <= len(band.mean)}
        if values.pop(TESTED, None) is None or not values:
            return None
        return max(values.items(), key=lambda item: item[1])

    def _sooner(self) -> Iterator[Verdict]:
        what = f"{TESTED} needs at most a quarter of the {self.goal_at} evaluations of {BASELINE}"
        if self.goal is None or TESTED not in self.curves:
            yield Verdict(what, None, f"{TESTED} or {BASELINE} was not replayed to there")
            return
        needs = self.needed(TESTED)
        reached = needs is not None and SPEED_UP * needs <= self.goal_at
        yield Verdict(what, reached, f"{needs or 'never'} to reach {self.goal:.4f}; a quarter is {self.goal_at / 4:g}")

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        needed = {sampler: self.needed(sampler) for sampler in self.curves}
        plain = asdict(self) | {"goal": self.goal, "needed": needed}
        return plain | {"verdicts": [asdict(verdict) for verdict in self.verdicts()]}


@dataclass(frozen=True)
class SamplerReport:
    """The result of `bench sampler`."""

    seeds: int
    evaluations: int
    results: tuple[Comparison, ...]
    conditions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For --json: mean, low and high of each curve at every evaluation."""
        return {
            "bench": "samplers: hypervolume over evaluations, replayed in virtual time",
            "seeds": self.seeds,
            "evaluations": self.evaluations,
            "band": "mean over seeds with its 95 % interval by Student's t",
            "rules": FREE,
            "problems": [comparison.to_dict() for comparison in self.results],
            "conditions": dict(self.conditions),
        }

    def lines(self, width: int | None = None) -> list[str]:
        """For people: for each problem a table that fits `width`, then the verdicts."""
        found = [f"hypervolume after N evaluations: mean of {self.seeds} seeds [95 % interval by Student's t]", FREE]
        for comparison in self.results:
            found += ["", *_lines(comparison, width)]
        return [*found, "", ", ".join(f"{key} {value}" for key, value in self.conditions.items())]


def _lines(comparison: Comparison, width: int | None) -> Iterator[str]:
    yield f"{comparison.problem}: {comparison.about}"
    goal = "" if comparison.goal is None else f"to {comparison.goal:.4f}"
    longest = max(len(band.mean) for band in comparison.curves.values())
    points = [n for n in dict.fromkeys((*CHECKPOINTS, comparison.goal_at)) if n <= longest]
    titles = ["sampler", *(f"at {n}" for n in points), *([goal] if goal else [])]
    rows = []
    for sampler, band in comparison.curves.items():
        needed = comparison.needed(sampler)
        rows.append([sampler, *(band.text(n) for n in points), *([str(needed or "never")] if goal else [])])
    yield from table_lines(titles, rows, titles, width)
    for verdict in comparison.verdicts():
        answer = {True: "yes", False: "NO", None: "not judged"}[verdict.reached]
        yield f"  {answer:<4} {verdict.what}: {verdict.why}"


# The runs.


def bench_sampler(
    problems: Sequence[Problem],
    samplers: Sequence[str] = SAMPLERS,
    seeds: int = 20,
    evaluations: int = 200,
    workers: int = 1,
    file: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> SamplerReport:
    """Replay every sampler on every problem from seeds 0, 1, ..., `evaluations` each.

    On a tabular benchmark at most half of it, or 100: near its end all samplers have found the same. Runs are recorded
    in `file` as they finish, and a recorded run is not repeated. Raises `UsageError` for fewer than `MIN_SEEDS` seeds.
    """
    if seeds < MIN_SEEDS:
        raise UsageError(f"{seeds} seeds are too few for an interval; {MIN_SEEDS} are the fewest", "--seeds 20")
    full = {(p, s): _tasks(p, s, seeds, min(evaluations, _most(p))) for p in problems for s in samplers}
    found = run_tasks(problems, _by_seed(full.values()), workers, file, say)
    pairs = [(p, s) for p, s in full if p.prune_below and s in PRUNED_SAMPLERS]
    pruned = {pair: [_with_pruning(pair[0], task, found[task]) for task in full[pair]] for pair in pairs}
    if pruned:
        found |= run_tasks(problems, _by_seed(pruned.values()), workers, file, say)
    priced = {p: [_with_prices(task, found[task]) for task in full[p, s]] for p, s in full if s == TESTED}
    priced = {problem: tasks for problem, tasks in priced.items() if all(tasks)}
    if priced:
        tasks = [task for some in priced.values() for task in some if task]
        found |= run_tasks(problems, tasks, workers, file, say)
    results = tuple(
        _compare(
            problem,
            {s: [found[task] for task in full[problem, s]] for s in samplers},
            {s: [found[task] for task in pruned[problem, s]] for p, s in pairs if p is problem},
            [found[task] for task in priced.get(problem, ()) if task],
        )
        for problem in problems
    )
    return SamplerReport(seeds, evaluations, results, _conditions())


def _by_seed(tasks: Iterable[Iterable[Task]]) -> list[Task]:
    """In the order in which to run them: a run that is stopped has whole seeds, which `--seeds` prints."""
    return sorted(itertools.chain(*tasks), key=lambda task: task.seed)


def _goal_at(problem: Problem) -> int:
    """`GOAL_AT`, on a tabular benchmark at most half of its size."""
    return GOAL_AT if problem.size is None else min(GOAL_AT, max(1, problem.size // 2))


def _most(problem: Problem) -> int:
    """The most evaluations that are replayed."""
    if problem.size is None:
        return sys.maxsize
    return min(problem.size, max(_goal_at(problem), *CHECKPOINTS))


def _tasks(problem: Problem, sampler: str, seeds: int, evaluations: int) -> list[Task]:
    return [Task(problem.fingerprint, sampler, seed, evaluations) for seed in range(seeds)]


def _with_pruning(problem: Problem, task: Task, full: Replay) -> Task:
    """The same task with pruning, until it has spent the compute of the full one."""
    return Task(task.problem, task.sampler, task.seed, task.evaluations, problem.prune_below, full.compute[-1])


def _with_prices(task: Task, plain: Replay) -> Task | None:
    """The same task with a plan for the time that the plain one took; None where that was not recorded."""
    if not plain.seconds:
        return None
    return Task(task.problem, task.sampler, task.seed, task.evaluations, time_s=plain.seconds[-1])


def _conditions() -> dict[str, str]:
    import optuna
    import scipy

    from igc_nas._version import __version__

    return {"igc-nas": __version__, "optuna": optuna.__version__, "numpy": np.__version__, "scipy": scipy.__version__}


def _compare(
    problem: Problem,
    full: Mapping[str, list[Replay]],
    pruned: Mapping[str, list[Replay]],
    priced: list[Replay],
) -> Comparison:
    return Comparison(
        problem=problem.name,
        about=problem.about,
        size=problem.size,
        missing=problem.missing,
        goal_at=_goal_at(problem),
        curves={sampler: Band.of([run.volumes for run in runs]) for sampler, runs in full.items()},
        pruning=tuple(pruning_effect(problem, sampler, full[sampler], runs) for sampler, runs in pruned.items()),
        pricing=pricing_effect(full[TESTED], priced) if priced else None,
    )


def pricing_effect(plain: Sequence[Replay], priced: Sequence[Replay]) -> PricingEffect:
    """The replays of the tested sampler with prices against the ones without, seed by seed."""
    bands = [Band.of(_curves(runs, plain, lambda run: run.seconds).tolist()) for runs in (plain, priced)]
    ends = [run.seconds[-1] for run in plain]
    counts = [
        float(np.mean([sum(s <= end for s in run.seconds) for run, end in zip(runs, ends, strict=True)]))
        for runs in (plain, priced)
    ]
    return PricingEffect(TESTED, bands[0], bands[1], _share_to_end(*bands), (counts[0], counts[1]))


def pruning_effect(problem: Problem, sampler: str, full: Sequence[Replay], pruned: Sequence[Replay]) -> PruningEffect:
    """The replays of a sampler with pruning against the ones without, seed by seed."""
    curves = [_curves(runs, full, lambda run: run.compute) for runs in (full, pruned)]
    bands = [Band.of(rows.tolist()) for rows in curves]
    return PruningEffect(
        sampler=sampler,
        prune_below=problem.prune_below,
        full=bands[0],
        pruned=bands[1],
        area=(_area(curves[0]), _area(curves[1])),
        share=_share_to_end(*bands),
        trainings_pruned=float(np.mean([run.pruned for run in pruned])),
        lost=float(np.mean([len(run.lost) for run in pruned])),
        front=len(problem.front()),
    )


def _curves(runs: Sequence[Replay], full: Sequence[Replay], spent: Callable[[Replay], Sequence[float]]) -> Floats:
    """(seeds, `GRID`) the hypervolume of runs over shares of what the full ones spent, seed by seed."""
    shares = np.arange(1, GRID + 1) / GRID
    pairs = zip(runs, full, strict=True)
    return np.array([_at(run.volumes, spent(run), shares * spent(whole)[-1]) for run, whole in pairs])


def _share_to_end(full: Band, other: Band) -> float | None:
    """The share at which the other mean reaches the last one of `full`; None: it does not."""
    return next((n / GRID for n, value in enumerate(other.mean, start=1) if value >= full.mean[-1]), None)


def _at(volumes: Sequence[float], spent: Sequence[float], limits: Floats) -> Floats:
    """(n,) the last of `volumes` whose `spent`, ascending, is within each of `limits` (n,); 0 before the first."""
    done = np.searchsorted(spent, limits * (1 + 1e-9), side="right")  # the factor is for rounding
    found: Floats = np.array([0.0, *volumes])[done]
    return found


def _area(curves: Floats) -> Band:
    return Band.of(curves.mean(axis=1, keepdims=True).tolist())


def parse_samplers(text: str) -> tuple[str, ...]:
    """`"known-cost,tpe"` -> the names, each once. Raises `UsageError`."""
    known = (*SAMPLERS, *PEERS)
    names = dict.fromkeys(part.strip() for part in text.split(","))
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"unknown sampler {unknown[0]!r:.40}", nearest_and_all(unknown[0], known, f"choose from {', '.join(known)}")
        )
    for name in names:
        require_peer(name)
    return tuple(names)
