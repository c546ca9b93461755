"""bench sampler: hypervolume over evaluations of each sampler on each problem, and what must be reached, yes or no."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igc_nas.bench.samplers.problems import Problem
from igc_nas.bench.samplers.replay import Replay
from igc_nas.bench.samplers.runs import Task, run_tasks
from igc_nas.errors import UsageError
from igc_nas.samplers.features import Floats
from igc_nas.study.spec import SamplerName

SAMPLERS: tuple[SamplerName, ...] = ("known-cost", "stratified", "random", "tpe", "nsga2", "evolution")
JUDGED: SamplerName = "known-cost"
BASE: SamplerName = "random"
"""What it holds at `GOAL_AT` evaluations, or at half of a table, is what the judged sampler has to reach sooner."""
STOPPING: tuple[SamplerName, ...] = ("known-cost", "stratified")
"""Replayed with and without stopping at rungs."""
CHECKPOINTS = (30, 60, 100)
APART_AT = 60
GOAL_AT = 200
QUARTER = 4
ENOUGH_COMPUTE = 0.7
LEAST_SEEDS = 3
GRID = 200
DIGITS = 5
FREE = (
    "for every sampler infeasible and duplicate suggestions are free of charge: an evaluation is a new architecture "
    "within the budget"
)


@dataclass(frozen=True)
class Band:
    """A mean over seeds with its 95 % interval by Student's t, point by point."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Band:
        """Of (seeds, points); a row that ends early stays where it is."""
        from scipy.stats import t

        length = max(map(len, rows))
        values = np.array([[*row, *itertools.repeat(row[-1] if row else 0.0, length - len(row))] for row in rows])
        mean, seeds = values.mean(axis=0), len(rows)
        half = float(t.ppf(0.975, seeds - 1)) * values.std(axis=0, ddof=1) / math.sqrt(seeds)
        return cls(*(tuple(np.round(part, DIGITS).tolist()) for part in (mean, mean - half, mean + half)))

    def text(self, at: int) -> str:
        """`0.4312 [0.4280, 0.4344]` at a point, counted from 1; `-` beyond the last."""
        if at > len(self.mean):
            return "-"
        return f"{self.mean[at - 1]:.4f} [{self.low[at - 1]:.4f}, {self.high[at - 1]:.4f}]"


@dataclass(frozen=True)
class Verdict:
    """Something that must be reached: whether it is (None: it cannot be judged), and by which numbers."""

    what: str
    reached: bool | None
    why: str


@dataclass(frozen=True)
class Sparing:
    """A sampler with stopping at rungs against itself without: hypervolume over shares of the full compute.

    `area` are the areas under `full` and `stopped`, each with its interval. `share` is the compute at which the
    stopping one's mean has what the full one's mean has at the end; None: never. Counts are means over seeds: trainings
    stopped, and members of the true front among them, of `front` in all.
    """

    sampler: str
    stop: float
    full: Band
    pruned: Band
    area: tuple[Band, Band]
    share: float | None
    trainings_stopped: float
    lost: float
    front: int

    def verdicts(self) -> Iterator[Verdict]:
        """The area within the band of full training's, the same hypervolume for less."""
        full, stopped = self.area
        yield Verdict(
            f"{self.sampler}: area under the hypervolume over compute with stopping at least full training's, "
            "within its band",
            stopped.mean[0] >= full.low[0],
            f"{stopped.text(1)}, full {full.text(1)}",
        )
        reached = "never" if self.share is None else f"{self.share:.2f} of the compute"
        count = f"{self.trainings_stopped:.1f} trainings stopped, {self.lost:.2f} of the front's {self.front} lost"
        yield Verdict(
            f"{self.sampler}: full training's final hypervolume at {ENOUGH_COMPUTE:g} of the compute or less",
            self.share is not None and self.share <= ENOUGH_COMPUTE,
            f"{reached}; {count}",
        )


@dataclass(frozen=True)
class Compared:
    """The samplers on one problem. `size`: of a table; `goal_at`: the evaluations of uniform draws to be saved."""

    problem: str
    about: str
    size: int | None
    missing: int
    goal_at: int
    curves: Mapping[str, Band]
    sparing: tuple[Sparing, ...] = ()

    @property
    def goal(self) -> float | None:
        """What uniform draws hold at `goal_at`."""
        base = self.curves.get(BASE)
        return base.mean[self.goal_at - 1] if base and self.goal_at <= len(base.mean) else None

    def needed(self, sampler: str) -> int | None:
        """Evaluations until a sampler's mean holds the goal; None: it does not."""
        goal = self.goal
        if goal is None:
            return None
        return next((n for n, value in enumerate(self.curves[sampler].mean, start=1) if value >= goal), None)

    def verdicts(self) -> tuple[Verdict, ...]:
        """What must be reached here; of a table only where it is complete."""
        found = [*self._above(), *self._apart(), *self._sooner()]
        found += [verdict for sparing in self.sparing for verdict in sparing.verdicts()]
        if self.missing:
            return tuple(Verdict(v.what, None, f"the table lacks {self.missing:,}; {v.why}") for v in found)
        return tuple(found)

    def _above(self) -> Iterator[Verdict]:
        for at in CHECKPOINTS:
            rival = self._best_rival(at, "mean")
            what = f"{JUDGED} above every other sampler at {at}"
            if rival is None:
                yield Verdict(what, None, "not replayed so far, or nothing to compare")
                continue
            mean = self.curves[JUDGED].mean[at - 1]
            yield Verdict(what, mean > rival[1], f"{mean:.4f}, {rival[0]} {rival[1]:.4f}")

    def _apart(self) -> Iterator[Verdict]:
        what, rival = f"bands apart at {APART_AT}", self._best_rival(APART_AT, "high")
        if rival is None:
            yield Verdict(what, None, "not replayed so far, or nothing to compare")
            return
        low = self.curves[JUDGED].low[APART_AT - 1]
        yield Verdict(what, low > rival[1], f"from {low:.4f}, {rival[0]} up to {rival[1]:.4f}")

    def _best_rival(self, at: int, part: str) -> tuple[str, float] | None:
        """The other sampler with the most at an evaluation; None where the judged one or all others have none."""
        ends = {name: getattr(band, part)[at - 1] for name, band in self.curves.items() if at <= len(band.mean)}
        if ends.pop(JUDGED, None) is None or not ends:
            return None
        return max(ends.items(), key=lambda item: item[1])

    def _sooner(self) -> Iterator[Verdict]:
        what = f"{JUDGED} needs a quarter of the {self.goal_at} evaluations of uniform draws, or less"
        if self.goal is None or JUDGED not in self.curves:
            yield Verdict(what, None, f"{JUDGED} or {BASE} was not replayed so far")
            return
        needs = self.needed(JUDGED)
        reached = needs is not None and QUARTER * needs <= self.goal_at
        yield Verdict(what, reached, f"{needs or 'never'} to reach {self.goal:.4f}; a quarter is {self.goal_at / 4:g}")

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        needed = {sampler: self.needed(sampler) for sampler in self.curves}
        plain = asdict(self) | {"goal": self.goal, "needed": needed}
        return plain | {"verdicts": [asdict(verdict) for verdict in self.verdicts()]}


@dataclass(frozen=True)
class SamplerReport:
    """What `bench sampler` says."""

    seeds: int
    evaluations: int
    results: tuple[Compared, ...]
    conditions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For --json: mean, low and high of each curve at every evaluation."""
        return {
            "bench": "samplers: hypervolume over evaluations, replayed in virtual time",
            "seeds": self.seeds,
            "evaluations": self.evaluations,
            "band": "mean over seeds with its 95 % interval by Student's t",
            "rules": FREE,
            "problems": [compared.to_dict() for compared in self.results],
            "conditions": dict(self.conditions),
        }

    def lines(self) -> list[str]:
        """For people: for each problem a table, then what must be reached."""
        found = [
            f"hypervolume after so many evaluations: mean of {self.seeds} seeds [95 % interval by Student's t]",
            FREE,
        ]
        for compared in self.results:
            found += ["", *_lines(compared)]
        return [*found, "", ", ".join(f"{key} {value}" for key, value in self.conditions.items())]


def _lines(compared: Compared) -> Iterator[str]:
    yield f"{compared.problem}: {compared.about}"
    goal = "" if compared.goal is None else f"to {compared.goal:.4f}"
    points = [n for n in dict.fromkeys((*CHECKPOINTS, compared.goal_at)) if n <= _longest(compared)]
    rows = [["sampler", *(f"at {n}" for n in points), goal]]
    for sampler, band in compared.curves.items():
        needed = compared.needed(sampler)
        rows.append([sampler, *(band.text(n) for n in points), "" if not goal else str(needed or "never")])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for verdict in compared.verdicts():
        word = {True: "yes", False: "NO", None: "not judged"}[verdict.reached]
        yield f"  {word:<4} {verdict.what}: {verdict.why}"


def _longest(compared: Compared) -> int:
    return max(len(band.mean) for band in compared.curves.values())


# The runs.


def bench_sampler(
    problems: Sequence[Problem],
    samplers: Sequence[SamplerName] = SAMPLERS,
    seeds: int = 20,
    evaluations: int = 200,
    workers: int = 1,
    file: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> SamplerReport:
    """Replay every sampler on every problem, `evaluations` of them, from seeds 0, 1, ...

    On a table at most half of it, or 100: where little is left, all find the same. Runs are kept in `file` as they are
    done and not done again. Raises `UsageError` for fewer than three seeds.
    """
    if seeds < LEAST_SEEDS:
        raise UsageError(f"{seeds} seeds make no band; {LEAST_SEEDS} are the fewest", "--seeds 20")
    plain = {(p, s): _tasks(p, s, seeds, min(evaluations, _most(p))) for p in problems for s in samplers}
    found = run_tasks(problems, [*itertools.chain(*plain.values())], workers, file, say)
    pairs = [(p, s) for p, s in plain if p.stop and s in STOPPING]
    stopping = {pair: [_stopping(pair[0], task, found[task]) for task in plain[pair]] for pair in pairs}
    if stopping:
        found |= run_tasks(problems, [*itertools.chain(*stopping.values())], workers, file, say)
    results = tuple(
        _compared(
            problem,
            {s: [found[task] for task in plain[problem, s]] for s in samplers},
            {s: [found[task] for task in stopping[problem, s]] for p, s in pairs if p is problem},
        )
        for problem in problems
    )
    return SamplerReport(seeds, evaluations, results, _conditions())


def _goal_at(problem: Problem) -> int:
    return GOAL_AT if problem.size is None else min(GOAL_AT, max(1, problem.size // 2))


def _most(problem: Problem) -> int:
    if problem.size is None:
        return sys.maxsize
    return min(problem.size, max(_goal_at(problem), *CHECKPOINTS))


def _tasks(problem: Problem, sampler: SamplerName, seeds: int, evaluations: int) -> list[Task]:
    return [Task(problem.fingerprint, sampler, seed, evaluations) for seed in range(seeds)]


def _stopping(problem: Problem, task: Task, full: Replay) -> Task:
    """The same run with stopping, until it has spent what the full one did."""
    return Task(task.problem, task.sampler, task.seed, task.evaluations, problem.stop, full.compute[-1])


def _conditions() -> dict[str, str]:
    import optuna
    import scipy

    from igc_nas._version import __version__

    return {"igc-nas": __version__, "optuna": optuna.__version__, "numpy": np.__version__, "scipy": scipy.__version__}


def _compared(problem: Problem, full: Mapping[str, list[Replay]], stopped: Mapping[str, list[Replay]]) -> Compared:
    return Compared(
        problem=problem.name,
        about=problem.about,
        size=problem.size,
        missing=problem.missing,
        goal_at=_goal_at(problem),
        curves={sampler: Band.of([run.volumes for run in runs]) for sampler, runs in full.items()},
        sparing=tuple(_sparing(problem, sampler, full[sampler], runs) for sampler, runs in stopped.items()),
    )


def _sparing(problem: Problem, sampler: str, full: Sequence[Replay], stopped: Sequence[Replay]) -> Sparing:
    shares = np.arange(1, GRID + 1) / GRID
    curves = [
        np.array([_over_compute(run, shares * whole.compute[-1]) for run, whole in zip(runs, full, strict=True)])
        for runs in (full, stopped)
    ]
    bands = [Band.of(rows.tolist()) for rows in curves]
    final = bands[0].mean[-1]
    return Sparing(
        sampler=sampler,
        stop=problem.stop,
        full=bands[0],
        pruned=bands[1],
        area=(_area(curves[0]), _area(curves[1])),
        share=next((float(s) for s, value in zip(shares, bands[1].mean, strict=True) if value >= final), None),
        trainings_stopped=float(np.mean([run.pruned for run in stopped])),
        lost=float(np.mean([len(run.lost) for run in stopped])),
        front=len(problem.front()),
    )


def _over_compute(run: Replay, compute: Floats) -> Floats:
    """The hypervolume when so much compute has been spent, rounding aside."""
    done = np.searchsorted(run.compute, compute * (1 + 1e-9), side="right")
    found: Floats = np.array([0.0, *run.volumes])[done]
    return found


def _area(curves: Floats) -> Band:
    return Band.of(curves.mean(axis=1, keepdims=True).tolist())


def parse_samplers(text: str) -> tuple[SamplerName, ...]:
    """`"known-cost,tpe"` -> the names, each once. Raises `UsageError`."""
    known: dict[str, SamplerName] = {name: name for name in SAMPLERS}
    names = dict.fromkeys(part.strip() for part in text.split(","))
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"unknown sampler {unknown[0]!r:.40}", f"choose from {', '.join(SAMPLERS)}")
    return tuple(known[name] for name in names)
