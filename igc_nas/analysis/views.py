"""A study as plain numbers and text: the views from which figures and the page are drawn."""

from __future__ import annotations

import datetime
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from igc_nas.analysis.surrogate_quality import surrogate_quality
from igc_nas.analysis.words import budget_words, counted
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.arch.papers import PRINTED, reference
from igc_nas.arch.plan import arch_id
from igc_nas.arch.stages import STAGE_OF_UNIT
from igc_nas.data.datasets import cifar_of, is_synthetic
from igc_nas.io.text import plain, visible
from igc_nas.io.units import format_count, format_ms
from igc_nas.study.records import FINISHED, Candidate, FormTime, Latency, Trial, TrialState
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import Study

Column = tuple[float | None, ...]
"""One number per trial; None where it is unknown."""


@dataclass(frozen=True)
class TrialsView:
    """Every trial of a study as columns, in any state, in the order of their numbers.

    `columns` holds every objective by name. `low_ms` to `high_ms` is the 95 % interval of the normalised latency;
    `expected` is the final error predicted for a pruned training; `units` is the mix of units ("igcv1+igcv3"). A trial
    whose architecture is unknown has an empty id, no units and no numbers.
    """

    trial: tuple[int, ...]
    state: tuple[TrialState, ...]
    baseline: tuple[str, ...]
    """The name of a baseline; empty for other trials."""
    id: tuple[str, ...]
    units: tuple[str, ...]
    columns: dict[str, Column]
    low_ms: Column
    high_ms: Column
    expected: Column
    noisy: tuple[int, ...]
    """Rows with a noisy latency."""

    @cached_property
    def complete(self) -> tuple[int, ...]:
        """The rows of the completed trials, without the baselines."""
        return tuple(row for row, state in enumerate(self.state) if state == "complete" and not self.baseline[row])

    @cached_property
    def baselines(self) -> tuple[int, ...]:
        """The rows of the evaluated baselines."""
        return tuple(row for row, state in enumerate(self.state) if state == "complete" and self.baseline[row])


@dataclass(frozen=True)
class PapersView:
    """The papers' networks with their printed test errors, as columns; they have no latency."""

    name: tuple[str, ...]
    source: tuple[str, ...]
    columns: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class FrontView:
    """A front over two or three objectives, among all completed trials.

    `front` and `members` are rows of `trials`: the front over `objectives` (by the first one, ascending), and the
    study's own front. `limits` are the budgets by objective.
    """

    objectives: tuple[str, ...]
    trials: TrialsView
    front: tuple[int, ...]
    members: tuple[int, ...]
    member_objectives: tuple[str, ...]
    limits: dict[str, float]


@dataclass(frozen=True)
class FormsView:
    """The timed forms of candidates: one row per candidate and form.

    `macs` (for one image) and `params` are the form's own. Times are from the rounds in which the form was chosen; a
    candidate without such rounds has one row, for the form whose latency was measured.
    """

    trial: tuple[int, ...]
    form: tuple[str, ...]
    params: tuple[int, ...]
    macs: tuple[int, ...]
    median_ms: tuple[float, ...]
    low_ms: Column
    high_ms: Column
    chosen: tuple[int, ...]
    """Rows with the form that was chosen for the candidate."""


@dataclass(frozen=True)
class HypervolumeView:
    """Hypervolume after each completed trial.

    `busy_s` is the time during which trials ran until that trial and all earlier ones had ended, without the gaps
    between runs; None where no time is recorded. All columns are empty before the study has bounds.
    """

    trials: tuple[int, ...]
    volumes: tuple[float, ...]
    busy_s: Column


@dataclass(frozen=True)
class CurvesView:
    """Learning curves of held-out error: one row for each complete or pruned training with rungs.

    A row of `samples` and `errors` has the rungs and, for a complete training, the end.
    """

    trial: tuple[int, ...]
    samples: tuple[tuple[int, ...], ...]
    errors: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SurrogateView:
    """Leave-one-out predictions of each trial's error by the sampler's surrogate: mean and standard deviation."""

    trial: tuple[int, ...]
    observed: tuple[float, ...]
    expected: tuple[float, ...]
    std: tuple[float, ...]
    sentence: str


def unit_mix(arch: ArchConfig) -> str:
    """The units of an architecture, each once: `igcv1+igcv3`."""
    used = {stage.unit for stage in arch.stages}
    return "+".join(unit for unit in STAGE_OF_UNIT if unit in used)


def own_trials(study: Study) -> list[Trial]:
    """The trials of a study without the longer trainings: the rows of its views."""
    return [trial for trial in study.trials if trial.longer_of is None]


def trials_view(study: Study) -> TrialsView:
    """Every trial of a study as columns."""
    trials = own_trials(study)
    facts = [_TrialFacts.of(trial) for trial in trials]
    columns: dict[str, Column] = {"error": tuple(k.error for k in facts)}
    for metric in ("params", "macs", "flops", "activations"):
        columns[metric] = tuple(None if k.cost is None else getattr(k.cost, metric) for k in facts)
    columns["latency"] = tuple(shortened(k.latency.normalised_ms) if k.latency else None for k in facts)
    intervals = [k.latency.normalised_interval_ms if k.latency else (None, None) for k in facts]
    return TrialsView(
        trial=tuple(trial.number for trial in trials),
        state=tuple(trial.state for trial in trials),
        baseline=tuple(trial.baseline or "" for trial in trials),
        id=tuple(k.id for k in facts),
        units=tuple(unit_mix(trial.arch) if trial.arch else "" for trial in trials),
        columns=columns,
        low_ms=tuple(low and shortened(low) for low, _ in intervals),
        high_ms=tuple(high and shortened(high) for _, high in intervals),
        expected=tuple(k.expected for k in facts),
        noisy=tuple(row for row, k in enumerate(facts) if k.latency and k.latency.noisy),
    )


@dataclass(frozen=True)
class _TrialFacts:
    """The known facts of a trial, in any state."""

    id: str = ""
    cost: Cost | None = None
    latency: Latency | None = None
    error: float | None = None
    expected: float | None = None

    @classmethod
    def of(cls, trial: Trial) -> _TrialFacts:
        if trial.candidate and trial.state == "complete":
            c = trial.candidate
            return cls(c.id, c.cost, c.latency, shortened(c.score.error))
        if trial.pruned and trial.state == "pruned":
            p = trial.pruned
            return cls(p.id, p.cost, p.latency, expected=shortened(p.expected_error))
        return cls(arch_id(trial.arch), cost_of(trial.arch)) if trial.arch else cls()


def forms_view(candidates: Iterable[Candidate]) -> FormsView:
    """The forms of candidates, with their times."""
    rows: list[tuple[int, str, FormTime]] = []
    chosen = []
    for c in candidates:
        forms = c.latency.forms or {c.latency.form: _only_form(c)}
        chosen += [len(rows) + place for place, form in enumerate(forms) if form == c.latency.form]
        rows += [(c.trial, form, time) for form, time in forms.items()]
    return FormsView(
        trial=tuple(number for number, _, _ in rows),
        form=tuple(form for _, form, _ in rows),
        params=tuple(time.params for _, _, time in rows),
        macs=tuple(time.macs for _, _, time in rows),
        median_ms=tuple(shortened(time.median_ms) for _, _, time in rows),
        low_ms=tuple(time.low_ms and shortened(time.low_ms) for _, _, time in rows),
        high_ms=tuple(time.high_ms and shortened(time.high_ms) for _, _, time in rows),
        chosen=tuple(chosen),
    )


def _only_form(candidate: Candidate) -> FormTime:
    latency, cost = candidate.latency, candidate.cost
    params = latency.deployed_params or cost.params
    return FormTime(
        params=params,
        macs=latency.deployed_macs or cost.macs,
        weight_bytes=latency.weight_bytes or 4 * params,
        median_ms=latency.median_ms,
        low_ms=latency.low_ms,
        high_ms=latency.high_ms,
    )


def papers_view(study: Study) -> PapersView:
    """The papers' networks with a printed error for the study's dataset; none for a dataset other than CIFAR."""
    cifar = cifar_of(study.spec.dataset)
    printed = {name: p for name, p in PRINTED.items() if cifar in p.error}
    costs = [cost_of(reference(name, study.spec.classes).arch).as_dict() for name in printed]
    errors = tuple(p.error[cifar] for p in printed.values() if cifar)
    metrics = ("params", "macs", "flops", "activations")
    return PapersView(
        name=tuple(printed),
        source=tuple(p.source for p in printed.values()),
        columns={"error": errors} | {metric: tuple(cost[metric] for cost in costs) for metric in metrics},
    )


def front_view(study: Study, objectives: Sequence[str] | None = None) -> FrontView:
    """The front over two or three objectives (the study's own by default), with all trials and the budgets."""
    names = tuple(objectives or study.spec.front_objectives)
    return FrontView(
        objectives=names,
        trials=trials_view(study),
        front=front_rows(study, names),
        members=front_rows(study, study.spec.front_objectives),
        member_objectives=study.spec.front_objectives,
        limits=limits(study),
    )


def front_rows(study: Study, objectives: Sequence[str]) -> tuple[int, ...]:
    """The front over `objectives` as rows of the trials, by the first objective ascending."""
    row_of = {trial.number: row for row, trial in enumerate(own_trials(study))}
    return tuple(row_of[candidate.trial] for candidate in study.measured.front(objectives))


def hypervolume_view(study: Study) -> HypervolumeView:
    """Hypervolume of the study's front after each completed trial."""
    curve = study.measured.hypervolume_curve()
    busy = _busy_until(study) if curve else {}
    return HypervolumeView(
        trials=tuple(count for count, _ in curve),
        volumes=tuple(volume for _, volume in curve),
        busy_s=tuple(busy.get(c.trial) for c in study.measured.feasible_candidates) if curve else (),
    )


def _busy_until(study: Study) -> dict[int, float | None]:
    """For each trial, the seconds during which trials had run when it and all earlier ones had ended.

    None where no time is recorded. The time of longer trainings counts, but no trial waits for their ends.
    """
    spans = {trial.number: _span(trial) for trial in own_trials(study) if trial.state in FINISHED}
    moments = sorted(span for trial in study.trials if trial.state in FINISHED and (span := _span(trial)))
    ends, before = [], []  # of each uninterrupted run: its end, and the total of the gaps before it
    end, gaps = (moments[0][0], moments[0][0]) if moments else (0.0, 0.0)
    for begun, ended in moments:
        if begun > end:
            ends.append(end)
            before.append(gaps)
            gaps += begun - end
        end = max(end, ended)
    ends.append(end)
    before.append(gaps)
    found: dict[int, float | None] = {}
    latest = 0.0
    for number, span in sorted(spans.items()):
        if span is None:
            found[number] = None
            continue
        latest = max(latest, span[1] - before[bisect_left(ends, span[1])])
        found[number] = shortened(latest)
    return found


def _span(trial: Trial) -> tuple[float, float] | None:
    """(start, end) of a trial in seconds since 1970; None if it is not recorded."""
    if trial.started is None or trial.wall_s is None:
        return None
    try:
        begun = datetime.datetime.fromisoformat(trial.started)
        return begun.timestamp(), begun.timestamp() + trial.wall_s
    except (ValueError, OverflowError, OSError):
        return None


def curves_view(study: Study) -> CurvesView:
    """The errors of a study's trainings at their rungs and ends, in the order of the trials."""
    rows: list[tuple[int, list[tuple[int, float]]]] = []
    for trial in own_trials(study):
        if trial.candidate and trial.state == "complete" and trial.candidate.score.rungs:
            score = trial.candidate.score
            end = (score.samples, score.error)
            rows.append((trial.number, [*((rung.samples, rung.error) for rung in score.rungs), end]))
        elif trial.pruned and trial.state == "pruned":
            rows.append((trial.number, [(rung.samples, rung.error) for rung in trial.pruned.training.rungs]))
    return CurvesView(
        trial=tuple(number for number, _ in rows),
        samples=tuple(tuple(samples for samples, _ in points) for _, points in rows),
        errors=tuple(tuple(shortened(error) for _, error in points) for _, points in rows),
    )


def surrogate_view(study: Study) -> SurrogateView | None:
    """The surrogate's leave-one-out predictions; None if too few trials are complete."""
    quality = surrogate_quality(study)
    if quality is None:
        return None
    return SurrogateView(
        trial=quality.trials,
        observed=tuple(shortened(error) for error in quality.errors),
        expected=tuple(shortened(error) for error in quality.expected),
        std=tuple(shortened(std) for std in quality.deviation),
        sentence=quality.sentence(),
    )


def limits(study: Study) -> dict[str, float]:
    """The budgets, by objective."""
    budget = study.spec.budget
    known = {
        "params": budget.params,
        "macs": budget.macs,
        "flops": 2 * budget.macs if budget.macs else None,
        "latency": budget.latency_ms,
    }
    return {name: limit for name, limit in known.items() if limit is not None}


def format_value(name: str, value: float) -> str:
    """An objective's value with its unit: `12.50 %`, `502.0k`, `1.46 ms`."""
    if name == "error":
        return f"{100 * value:.2f} %"
    return format_ms(value) if name == "latency" else format_count(round(value))


def shortened(value: float) -> float:
    """Rounded to five significant digits, enough for a pixel; ints are unchanged."""
    return value if isinstance(value, int) else float(f"{value:.5g}")


def caption(study: Study) -> tuple[str, str]:
    """(title, conditions) of a picture, escaped for plotly."""
    spec, trials = study.spec, counted(len(study.candidates), "trial")
    errors = f" · errors after {spec.recipe.samples:,} images" if study.expected else ""
    title = f"{plain(spec.dataset)}{', SYNTHETIC' if is_synthetic(spec.dataset) else ''}: {plain(spec.space_name)}"
    return title, f"{budget_words(spec.budget)} · {trials} · {plain(spec.latency.device)}{errors}"


def disagreements(specs: Sequence[StudySpec]) -> tuple[str, ...]:
    """Sentences on what differs between studies shown side by side, and which numbers cannot be compared."""
    found = []
    if len({(spec.dataset, spec.dataset_sha256, spec.classes) for spec in specs}) > 1:
        names = "; ".join(dict.fromkeys(visible(spec.dataset) for spec in specs))
        found.append(f"The datasets differ ({names}): errors cannot be compared.")
    recipes = sorted(_differing([spec.recipe.model_dump() for spec in specs]))
    if recipes:
        found.append(f"The recipes differ in {', '.join(recipes)}: errors are of different trainings.")
    latencies = sorted(_differing([spec.latency.model_dump() for spec in specs]))
    if "device" in latencies:
        names = "; ".join(dict.fromkeys(visible(spec.latency.device) for spec in specs))
        found.append(f"The latency devices differ ({names}): times cannot be compared.")
    if rest := [key for key in latencies if key != "device"]:
        found.append(f"Latency was measured under different conditions ({', '.join(rest)}).")
    if len({(spec.objectives, spec.goal, tuple(sorted(spec.bounds.items()))) for spec in specs}) > 1:
        found.append("The scales of the hypervolume differ: its values cannot be compared.")
    return tuple(found)


def _differing(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Keys whose values differ between the records."""
    return (key for key in records[0] if any(record[key] != records[0][key] for record in records))
