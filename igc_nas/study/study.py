"""A study read from its files: its spec, its trials, its front. Needs no torch and no Optuna.

`study.toml` and `trials.jsonl` are the only sources; everything here is derived from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex, Unpack, overload

from igc_nas.errors import ConfigError, StudyError, UsageError
from igc_nas.io.files import read_text
from igc_nas.io.text import nearest_and_all, one_line, plain
from igc_nas.io.units import parse_count, parse_ms
from igc_nas.study.expected import Expected
from igc_nas.study.finals import Final, read_finals
from igc_nas.study.front_table import html_table
from igc_nas.study.names import find_study, search_command
from igc_nas.study.objectives import OBJECTIVES, parse_objectives
from igc_nas.study.pareto import hypervolume, knee, nondominated, running_hypervolume
from igc_nas.study.records import Candidate, Trial, read_records
from igc_nas.study.spec import StudySpec

PICKS = "knee, best-error, smallest, trial:N or under:params=500k"
"""The rules of `Study.pick`."""
if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from igc_nas.api.export import ExportOptions

STUDY_FILE, TRIALS_FILE, PAGE_FILE = "study.toml", "trials.jsonl", "dashboard.html"


class Members(tuple[Candidate, ...]):
    """Candidates, which a notebook shows as a table."""

    __slots__ = ()

    @overload
    def __getitem__(self, key: SupportsIndex) -> Candidate: ...

    @overload
    def __getitem__(self, key: slice) -> Members: ...

    def __getitem__(self, key: SupportsIndex | slice) -> Candidate | Members:
        return Members(super().__getitem__(key)) if isinstance(key, slice) else super().__getitem__(key)

    def __repr__(self) -> str:
        return f"Members({len(self)} candidates, trials {', '.join(str(candidate.trial) for candidate in self)})"

    def _repr_html_(self) -> str:
        return html_table(self)


@dataclass(frozen=True, repr=False)
class Study:
    """The content of a study's folder. `trials` are in the order of their numbers.

    `expected` are the errors predicted at the study's target length, by the trial's number
    (`igc_nas.analysis.expectations`). Where there are any, fronts, hypervolumes and picks go by them. `storage` is the
    address of the database that it was read from, without its password; None: it was read from its folder.
    """

    spec: StudySpec
    trials: tuple[Trial, ...]
    folder: Path | None = None
    expected: Mapping[int, Expected] = field(default_factory=dict)
    storage: str | None = None

    def __repr__(self) -> str:
        front = f"front of {len(self.front())} of {len(self.candidates)} candidates"
        return f"Study({one_line(self.spec.name, 100)!r}, {len(self.trials)} trials, {front})"

    def _repr_html_(self) -> str:
        """The front as a table, for a notebook."""
        volume = self.hypervolume()
        title = f"{self!r}; data: {self.spec.dataset}" + ("" if volume is None else f"; hypervolume {volume:.4f}")
        return f"<p>{plain(title)}</p>{html_table(self.front())}"

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates of the completed trials, without the baselines."""
        return tuple(t.candidate for t in self.trials if t.state == "complete" and t.candidate and not t.is_aside)

    @cached_property
    def baselines(self) -> tuple[Trial, ...]:
        """The trials of the baselines, in any state; of an architecture the last one."""
        return tuple({trial.id: trial for trial in self.trials if trial.baseline}.values())

    @cached_property
    def longer(self) -> dict[int, Candidate]:
        """The longer trainings that are complete, by the number of the trial whose network they train."""
        return {t.longer_of: t.candidate for t in self.trials if t.longer_of is not None and t.candidate}

    @cached_property
    def finals(self) -> tuple[Final, ...]:
        """The trainings to the end that finals.jsonl records. Raises `StudyError` if the file is damaged."""
        return read_finals(self.folder)

    @cached_property
    def feasible_candidates(self) -> tuple[Candidate, ...]:
        """The candidates within the budgets, from which the front is taken.

        An enqueued one may exceed them, and so may the latency of one that was measured again. Where errors are
        predicted, those of networks outside the space are left out: nothing is expected of them.
        """
        within = filter(self.spec.is_within_budget, self.candidates)
        return tuple(c for c in within if not self.expected or c.trial in self.expected)

    @property
    def ended(self) -> int:
        """Number of complete and pruned trials, without the baselines."""
        return sum(trial.state in ("complete", "pruned") and not trial.is_aside for trial in self.trials)

    @property
    def is_in_database_only(self) -> bool:
        """Whether it was read from a database and has no folder here: `show` and `measure` cannot read it."""
        return self.folder is None and self.storage is not None

    @property
    def is_begun(self) -> bool:
        """Whether it has trials or calibrated bounds; before that its spec may still be replaced."""
        return bool(self.trials or self.spec.bounds)

    def trial(self, number: int) -> Trial:
        """Trial `number`. Raises `StudyError` naming the range."""
        for trial in self.trials:
            if trial.number == number:
                return trial
        has = f"trials 0 to {self.trials[-1].number}" if self.trials else "no trials yet"
        raise StudyError(f"{self.spec.name} has no trial {number}; it has {has}")

    def _names(self, objectives: Sequence[str] | str | None) -> tuple[str, ...]:
        if not objectives:
            return self.spec.front_objectives
        return parse_objectives(objectives if isinstance(objectives, str) else ",".join(objectives))

    def front(self, objectives: Sequence[str] | str | None = None) -> Members:
        """The candidates that no other one dominates, by the first objective ascending: `study.front("error,params")`.

        `objectives` are the study's own, the error alone, or two or three of error, params, macs, flops, latency,
        activations. Raises `UsageError` for others.
        """
        names = self._names(objectives)
        points = [self.values(c, names) for c in self.feasible_candidates]
        return Members(self.feasible_candidates[i] for i in sorted(nondominated(points), key=lambda i: points[i]))

    @cached_property
    def measured(self) -> Study:
        """The study without predicted errors: fronts and hypervolumes are those of the errors that were measured."""
        return replace(self, expected={}) if self.expected else self

    def error(self, candidate: Candidate) -> float:
        """The error by which a candidate is ranked: the predicted one where there is one, else the measured one."""
        expected = self.expected.get(candidate.trial)
        return candidate.score.error if expected is None else expected.error

    def values(self, candidate: Candidate, names: Sequence[str]) -> tuple[float, ...]:
        """The objectives by which a candidate is ranked, in the order of `names`."""
        return tuple(self.error(candidate) if name == "error" else OBJECTIVES[name].of(candidate) for name in names)

    def scaled(self, candidate: Candidate, objectives: Sequence[str] | str | None = None) -> tuple[float, ...]:
        """A candidate's objectives, scaled to [0, 1] by the study's fixed bounds."""
        names = self._names(objectives)
        return self.spec.scaled(dict(zip(names, self.values(candidate, names), strict=True)))

    def hypervolume(self, objectives: Sequence[str] | str | None = None) -> float | None:
        """Hypervolume of the scaled front for the reference point (1, ..., 1); None before the study is calibrated."""
        names = self._names(objectives)
        if any(name not in self.spec.bounds for name in names):
            return None
        return hypervolume([self.scaled(c, names) for c in self.front(names)], (1.0,) * len(names))

    def hypervolume_curve(self, objectives: Sequence[str] | str | None = None) -> list[tuple[int, float]]:
        """(number of feasible candidates, their hypervolume) after each of them; empty before calibration."""
        names = self._names(objectives)
        if any(name not in self.spec.bounds for name in names):
            return []
        points = (self.scaled(candidate, names) for candidate in self.feasible_candidates)
        return list(enumerate(running_hypervolume(points), start=1))

    def best(self, **limits: float | str | None) -> Candidate:
        """The candidate with the least error, within limits: `study.best(params="500k", latency="2ms")`.

        Numbers are counts, and milliseconds. See `pick` for other rules. Raises as `pick`.
        """
        given = {name: value for name, value in limits.items() if value is not None}
        texts = {name: value if isinstance(value, str) else f"{value:f}" for name, value in given.items()}
        texts |= {name: f"{texts[name]}ms" for name in texts if name == "latency" and not isinstance(limits[name], str)}
        return self.pick(
            f"under:{','.join(f'{name}={text}' for name, text in texts.items())}" if texts else "best-error"
        )

    # For notebooks and scripts: by the package's own functions, which load what they need when they are called.

    def frame(self) -> pd.DataFrame:
        """All candidates as a pandas table, with whether each is on the front, and predicted errors if there are."""
        import igc_nas

        front = {candidate.trial for candidate in self.front()}
        table = igc_nas.frame(self.candidates, self.expected)
        table.insert(1, "front", [candidate.trial in front for candidate in self.candidates])
        return table

    def plot(self, x: str = "params", y: str = "error", colour: str = "latency") -> go.Figure:
        """A plotly figure of the trials and the front over two objectives. Raises `UsageError` for other names."""
        import igc_nas

        return igc_nas.plot(self, x, y, colour)

    def export(self, out: str | Path | None = None, **options: Unpack[ExportOptions]) -> str | Path:
        """Write one of the candidates as files: `study.export("arch.toml", pick="knee")`, see `igc_nas.export`."""
        import igc_nas

        return igc_nas.export(self, out, **options)

    def pick(self, rule: str) -> Candidate:
        """A candidate by `knee`, `best-error`, `smallest`, `trial:N` or `under:params=500k[,latency=2ms]`.

        `smallest` has the fewest deployed parameters on the front, `under:` the least error within the limits.

        Raises `UsageError` for another rule, `StudyError` if no candidate matches; it names the nearest one.
        """
        if not self.candidates and _trial_number(rule) is None:
            raise StudyError(
                f"{self.spec.name} has no completed trial yet",
                search_command(self.folder, self.spec.name, self.storage),
            )
        if rule == "knee":
            front = self.front() or self.candidates
            return front[knee([self._comparable(c) for c in front])]
        if rule == "best-error":
            return min(self.feasible_candidates or self.candidates, key=lambda c: (self.error(c), c.cost.params))
        if rule == "smallest":
            return min(self.front() or self.candidates, key=lambda c: (c.deployed_params, self.error(c)))
        if (number := _trial_number(rule)) is not None:
            candidate = self.trial(number).candidate
            if candidate is None:
                raise StudyError(
                    f"trial {number} of {self.spec.name} is {self.trial(number).state}, and has no measured candidate"
                )
            return candidate
        kind, _, rest = rule.partition(":")
        if kind == "under" and rest:
            return min(self.within(parse_limits(rest)), key=lambda c: (self.error(c), c.cost.params))
        raise unknown_pick(rule)

    def pick_trial(self, rule: str) -> Trial:
        """The trial of the candidate that `pick` finds; `trial:N` may be any trial that has an architecture.

        Raises as `pick`.
        """
        number = _trial_number(rule)
        if number is None:
            return self.trial(self.pick(rule).trial)
        trial = self.trial(number)
        if trial.arch is None:
            why = f" ({trial.reason})" if trial.reason else ""
            near = min(self.candidates, key=lambda c: abs(c.trial - number), default=None)
            raise StudyError(
                f"trial {number} of {self.spec.name} is {trial.state} and has no architecture{why}",
                None if near is None else f"the nearest that is complete is trial:{near.trial}",
            )
        return trial

    def _comparable(self, candidate: Candidate) -> tuple[float, ...]:
        """The objectives among which the knee is found: scaled if the study has bounds, else as they are."""
        if all(name in self.spec.bounds for name in self.spec.front_objectives):
            return self.scaled(candidate)
        return self.values(candidate, self.spec.front_objectives)

    def within(self, limits: Mapping[str, float]) -> list[Candidate]:
        """The candidates within limits (see `parse_limits`), which hold what is deployed: the form that was measured.

        Raises `StudyError`, which names the nearest, if there is none.
        """

        def deployed(candidate: Candidate, name: str) -> float:
            own = {"params": candidate.deployed_params, "macs": candidate.deployed_macs}
            own["flops"] = 2 * candidate.deployed_macs
            return max(OBJECTIVES[name].of(candidate), own.get(name, 0))

        def relative_size(candidate: Candidate) -> float:
            return max(deployed(candidate, name) / limit for name, limit in limits.items())

        within = [c for c in self.candidates if relative_size(c) <= 1]
        if within:
            return within
        near = min(self.candidates, key=relative_size)
        has = ", ".join(f"{name} {deployed(near, name):,.6g}" for name in limits)
        raise StudyError(
            f"no completed trial of {self.spec.name} is within that", f"the nearest is trial:{near.trial} ({has})"
        )


def unknown_pick(rule: str, *more: str) -> UsageError:
    """The error for a rule that is not known, with the nearest word and all of them, those of `more` first."""
    word = "trial" if rule.isdecimal() else rule.partition(":")[0]
    words = (*more, "knee", "best-error", "smallest", "trial", "under")
    return UsageError(f"unknown pick {rule!r:.80}", nearest_and_all(word, words, f"use {', '.join([*more, PICKS])}"))


def _trial_number(rule: str) -> int | None:
    """N for `trial:N`; None for another rule."""
    kind, _, number = rule.partition(":")
    return int(number) if kind == "trial" and number.isascii() and number.isdigit() and len(number) < 10 else None


LIMITS = tuple(name for name in OBJECTIVES if name != "error")
"""What `under:` limits."""


def parse_limits(text: str) -> dict[str, float]:
    """`"params=500k,latency=2ms"` -> {"params": 500000, "latency": 2.0}. Raises `UsageError`."""
    limits: dict[str, float] = {}
    for part in re.split(r",(?![0-9]{3}(?![0-9]))", text):  # not at the commas of 2,000,000
        name, _, value = part.partition("=")
        name = name.strip()
        if name not in LIMITS or not value:
            all_ = "write params=500k, macs=30M, flops=60M, activations=1M or latency=5ms"
            raise UsageError(f"{part!r:.60} is not a limit", nearest_and_all(name, LIMITS, all_))
        limits[name] = parse_ms(value, name) if name == "latency" else parse_count(value, name)
    return limits


def load_study(name: str | Path, root: Path | str = "studies") -> Study:
    """Read a study: a `Path` is its folder, text its path or name (`root`/name, else a shipped one).

    Raises `StudyError`. An incomplete last line of trials.jsonl (a search is writing it) is ignored.
    """
    folder = find_study(name, Path(root))
    try:
        spec = StudySpec.from_toml(read_text(folder / STUDY_FILE), f"{folder.name}/{STUDY_FILE}")
    except ConfigError as error:
        raise StudyError(error.message, error.hint) from None
    return Study(spec, read_trials(folder / TRIALS_FILE), folder)


def read_trials(path: Path) -> tuple[Trial, ...]:
    """The trials of a trials.jsonl in the order of their numbers; of several lines for one number the last counts."""
    found = {trial.number: trial for trial in read_records(path, Trial.from_json)}
    return tuple(found[number] for number in sorted(found))
