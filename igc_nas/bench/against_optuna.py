"""bench against-optuna: `igc-nas search` against the plain Optuna study that a user would write instead.

Both have the same wall time on this machine, one after the other, from the start of the command: starting, planning and
an empty timing cache count. The plain study (`igc_nas.bench.plain_optuna`) is told the space, the recipe, the images
and the held-out images of the search before it. Hypervolume is over error and parameters, on the search's own scale;
the errors of a search's longer trainings count, too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from igc_nas.analysis.plots import ACCENT, FONT, PALETTE
from igc_nas.analysis.words import recipe_words
from igc_nas.bench import plain_optuna
from igc_nas.bench.report import Report, Row
from igc_nas.bench.search import cold_folder, worker_conditions
from igc_nas.data.datasets import data_dir, is_synthetic, locate
from igc_nas.errors import IgcNasError, UsageError
from igc_nas.io.files import MOST_RECORDS, append_line, read_text
from igc_nas.io.records import differences, restricted
from igc_nas.nn.device import Device, extent_on
from igc_nas.study.pareto import running_hypervolume
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import Study, load_study

if TYPE_CHECKING:
    import plotly.graph_objects as go

GRACE_S = 60.0
"""A process that has not ended by itself is ended this long after its time; what it did after its time counts not."""
SHARES = (0.25, 0.5, 0.75, 1.0)
NAMES = ("plain", "igc_nas")
Trial = tuple[float, float, float]
"""(seconds after the start at which it ended, error, parameters)."""


@dataclass(frozen=True)
class Course:
    """The trials of one run, by the time at which they ended, and the hypervolume after each."""

    seconds: tuple[float, ...]
    volumes: tuple[float, ...]

    @classmethod
    def of(cls, trials: Iterable[Trial], spec: StudySpec, time_s: float) -> Course:
        """Those of `trials` that ended within the time."""
        done = sorted(trial for trial in trials if trial[0] <= time_s)
        points = [spec.scaled({"error": error, "params": params}) for _, error, params in done]
        return cls(tuple(round(at, 2) for at, _, _ in done), tuple(round(v, 6) for v in running_hypervolume(points)))

    def at(self, seconds: float) -> float:
        """The hypervolume at a time."""
        return self.volumes[n - 1] if (n := int(np.searchsorted(self.seconds, seconds, side="right"))) else 0.0

    @property
    def final(self) -> float:
        """The last hypervolume."""
        return self.volumes[-1] if self.volumes else 0.0

    def reaches(self, volume: float) -> float | None:
        """The seconds after which the hypervolume is at least `volume`; None: never."""
        return next((at for at, v in zip(self.seconds, self.volumes, strict=True) if v >= volume), None)


@dataclass(frozen=True)
class Pair:
    """One run of each with a seed."""

    seed: int
    time_s: float
    plain: Course
    igc_nas: Course
    conditions: Mapping[str, Any]

    @property
    def reached_s(self) -> float | None:
        """When the search has the hypervolume with which the plain study ends."""
        return self.igc_nas.reaches(self.plain.final)

    @property
    def ratio(self) -> float:
        """The plain study's time over the one that the search needs for the same; where it does not get there, the time
        that the plain study needs for the search's end over the search's."""
        reached = self.reached_s
        if reached is not None:
            return self.time_s / reached
        return (self.plain.reaches(self.igc_nas.final) or self.time_s) / self.time_s

    def row(self) -> Row:
        """For the table."""
        quarters = {
            f"{name}_{share:.0%}": getattr(self, name).at(share * self.time_s) for share in SHARES for name in NAMES
        }
        counts = {f"{name}_trials": len(getattr(self, name).volumes) for name in NAMES}
        return {
            "name": f"seed {self.seed}",
            "group": "search",
            **{key: round(value, 4) for key, value in quarters.items()},
            **counts,
            "reached_s": self.reached_s,
            "ratio": self.ratio,
        }


_PAIR = TypeAdapter(Pair)
PASSING = ("load", "clock_mhz", "recipe")
"""Conditions that may differ from pair to pair; the search chooses its recipe."""


@dataclass(frozen=True)
class AgainstOptuna:
    """The result of `bench against-optuna`."""

    pairs: tuple[Pair, ...]
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """For --json, with the hypervolume over time of each run."""
        return self.report.to_dict() | {"runs": [asdict(pair) for pair in self.pairs]}

    def lines(self, width: int | None = None) -> list[str]:
        """For people, with a table that fits `width`."""
        return self.report.lines(width)


def bench_against_optuna(
    device: Device,
    time_s: float = 540.0,
    seeds: int = 3,
    dataset: str = "auto",
    budget_params: int = 2_000_000,
    file: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> AgainstOptuna:
    """Run `seeds` pairs, one search and one plain study in turn, `time_s` seconds each.

    Each pair is appended to `file`, and one that is there is not run again.

    Raises `DataError` or `UsageError` for the dataset, `UsageError` for a file of something else or of other
    conditions, `IgcNasError` if a run fails or finds nothing in its time.
    """
    data = locate(dataset, data_dir()).label  # raises for an unknown one
    workers = extent_on((device,)).workers
    conditions = {
        **worker_conditions(device),
        "workers": workers,
        "data": data + (" (SYNTHETIC)" if is_synthetic(data) else ""),
        "budget": f"params {budget_params:,}",
    }
    found = _read(file, conditions, time_s) if file else {}
    for seed in range(seeds):
        if seed in found:
            say(f"seed {seed} is in {file}: {_sentence(found[seed])}")
            continue
        with cold_folder() as folder:
            spec, ours = _search(folder, time_s, seed, dataset, budget_params, device, workers)
            _require_trials("the search", ours, seed, time_s)
            say(f"seed {seed}: the search ended with {ours.final:.4f} after {len(ours.volumes)} trials")
            plain = _plain(folder, spec, time_s, seed, device, workers)
            _require_trials("the plain study", plain, seed, time_s)
        pair = found[seed] = Pair(seed, time_s, plain, ours, conditions | {"recipe": recipe_words(spec.recipe)})
        if file:
            append_line(file, json.dumps(asdict(pair)))
        say(f"seed {seed}: plain with {plain.final:.4f} after {len(plain.volumes)}: {_sentence(pair)}")
    pairs = tuple(found[seed] for seed in range(seeds))
    title = f"against-optuna: hypervolume (error, params) of {time_s:g} s, plain Optuna TPE and igc-nas search"
    extra = {
        "mean share of the plain study's time": round(mean(1 / pair.ratio for pair in pairs), 3),
        "reached in": f"{sum(pair.reached_s is not None for pair in pairs)} of {seeds} runs",
    }
    rows = tuple(pair.row() for pair in pairs)
    return AgainstOptuna(pairs, Report(title, rows, dict(pairs[-1].conditions), extra=extra))


def _require_trials(name: str, course: Course, seed: int, time_s: float) -> None:
    """Raise `IgcNasError` for a run in which nothing was found: the other one would be ahead of it from the start."""
    if not course.final:
        reason = "no trial that counts" if course.volumes else "no trial"
        raise IgcNasError(f"seed {seed}: {name} ended with {reason} after {time_s:g} s", "give both more with --time")


def _read(file: Path, conditions: Mapping[str, Any], time_s: float) -> dict[int, Pair]:
    """The recorded pairs by their seeds."""
    other = "name another file with -o"
    if not file.exists():
        return {}
    pairs = []
    for number, line in enumerate(read_text(file, MOST_RECORDS).splitlines(), start=1):
        try:
            pairs += [_PAIR.validate_json(line)] if line.strip() else []
        except ValidationError:
            raise UsageError(
                f"line {number} of {file.name} is no run of bench against-optuna",
                f"{other}, or remove that line if a run was killed while it wrote it" if pairs else other,
            ) from None
    asked = {key: value for key, value in conditions.items() if key not in PASSING} | {"time_s": time_s}
    for pair in pairs:
        for line in differences(asked, restricted({**pair.conditions, "time_s": pair.time_s}, asked), where="there"):
            raise UsageError(f"{file.name} has runs of other conditions: {line}", other)
    return {pair.seed: pair for pair in pairs}


def _sentence(pair: Pair) -> str:
    if pair.reached_s is None:
        return "not reached by igc-nas"
    return f"igc-nas had that after {pair.reached_s:.0f} s, {pair.ratio:.1f} times as fast"


def _search(
    folder: Path, time_s: float, seed: int, dataset: str, budget_params: int, device: Device, workers: int
) -> tuple[StudySpec, Course]:
    options = {
        "--budget-params": budget_params,
        "--objectives": "error,params",
        "--time": f"{time_s:g}s",
        "--seed": seed,
        "--dataset": dataset,
        "--data-dir": data_dir(),
        "--device": device.torch_name,
        "--workers": workers,
        "--studies-dir": folder,
        "--study": "ours",
    }
    words = [str(word) for pair in options.items() for word in pair]
    began = _run(["igc_nas", "search", *words, "--quiet"], time_s, folder / "search.log")
    study = load_study(folder / "ours")
    return study.spec, Course.of(ended_trials(study, began), study.spec, time_s)


def ended_trials(study: Study, began: float) -> Iterator[Trial]:
    """The complete trials, longer trainings too, of a search that began at `began` (`time.time`)."""
    for trial in study.trials:
        found = trial.candidate
        if found and trial.started and trial.wall_s:
            ended = datetime.fromisoformat(trial.started).timestamp() + trial.wall_s
            yield ended - began, found.score.error, float(found.cost.params)


def _plain(folder: Path, spec: StudySpec, time_s: float, seed: int, device: Device, workers: int) -> Course:
    import optuna

    spec_file, file = folder / "spec.toml", folder / "plain.db"
    spec_file.write_text(spec.to_toml(), encoding="utf-8")
    words = [str(word) for word in (spec_file, data_dir(), file, time_s, device.torch_name, workers, seed)]
    began = _run(["igc_nas.bench.plain_optuna", *words], time_s, folder / "plain.log")
    storage = f"sqlite:///{file}"
    study = optuna.load_study(study_name=plain_optuna.NAME, storage=storage)
    trials = [
        (trial.datetime_complete.timestamp() - began, *trial.values)
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if trial.datetime_complete and plain_optuna.FEASIBLE in trial.user_attrs
    ]
    return Course.of(trials, spec, time_s)


def _run(module: Sequence[str], time_s: float, log: Path) -> float:
    """Run a module of Python with its arguments until it ends, or its time and `GRACE_S` are over; when it began."""
    with log.open("w") as out:
        began = time.time()
        process = subprocess.Popen([sys.executable, "-m", *module], stdout=out, stderr=out, start_new_session=True)
        try:
            status = process.wait(timeout=time_s + GRACE_S)
        except BaseException as error:  # Ctrl-C too: it does not reach another session
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            status = 0
    if status:
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"])[-1]
        raise IgcNasError(f"{module[0]} ended with status {status}: {last:.200}")
    return began


def against_optuna_figure(result: AgainstOptuna) -> go.Figure:
    """Hypervolume over seconds: each run a thin line, the means thick."""
    import plotly.graph_objects as go

    figure = go.Figure()
    colours = {"plain": PALETTE[0], "igc_nas": ACCENT}
    labels = {"plain": "plain Optuna (TPE)", "igc_nas": "igc-nas search"}
    time_s = result.pairs[0].time_s
    grid = np.linspace(0, time_s, 201)
    for name in NAMES:
        courses = [getattr(pair, name) for pair in result.pairs]
        style = {"mode": "lines", "legendgroup": name}
        for course in courses:
            line = {"color": colours[name], "width": 1, "shape": "hv"}
            xs, ys = [0.0, *course.seconds, time_s], [0.0, *course.volumes, course.final]
            figure.add_scatter(x=xs, y=ys, line=line, opacity=0.4, showlegend=False, **style)
        middle = [mean(course.at(at) for course in courses) for at in grid]
        figure.add_scatter(x=grid, y=middle, line={"color": colours[name], "width": 3}, name=labels[name], **style)
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 13},
        height=460,
        xaxis={"title": {"text": "seconds since the command"}, "range": [0, time_s]},
        yaxis={"title": {"text": "hypervolume of error and parameters"}, "rangemode": "tozero"},
        legend={"orientation": "h", "y": 1.08, "x": 0},
    )
    return figure
