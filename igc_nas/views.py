"""What a study shows, as plain numbers and text: the views that figures and the page draw."""

from __future__ import annotations

import html
import re
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from igc_nas.config import UNITS
from igc_nas.cost import cost_of
from igc_nas.dataset import is_synthetic
from igc_nas.knowledge import knowledge_of
from igc_nas.objectives import OBJECTIVES
from igc_nas.record import Candidate, deployed_text
from igc_nas.reference import PRINTED, reference
from igc_nas.results import Study
from igc_nas.units import format_count, format_ms


@dataclass(frozen=True)
class Points:
    """The completed trials as columns, in the order of the study.

    `columns` holds every objective by name. `low_ms` to `high_ms` is the 95 % interval of the latency, brought to the
    normalised time; `units` is the mix of units ("igcv1+igcv3"); `hover` is what a point says of itself.
    """

    trial: tuple[int, ...]
    columns: dict[str, tuple[float, ...]]
    low_ms: tuple[float, ...]
    high_ms: tuple[float, ...]
    noisy: tuple[int, ...]
    """Rows with a noisy latency."""
    units: tuple[str, ...]
    hover: tuple[str, ...]


@dataclass(frozen=True)
class Papers:
    """The papers' networks with the test errors that they print, as columns; they have no latency."""

    name: tuple[str, ...]
    columns: dict[str, tuple[float, ...]]
    hover: tuple[str, ...]


@dataclass(frozen=True)
class FrontView:
    """A front over two or three objectives, among all completed trials.

    `front` and `members` are rows of `points`: the front over `objectives` (by the first one, ascending), and the
    study's own front. `limits` are the budgets by objective.
    """

    objectives: tuple[str, ...]
    points: Points
    front: tuple[int, ...]
    members: tuple[int, ...]
    member_objectives: tuple[str, ...]
    limits: dict[str, float]
    papers: Papers


@dataclass(frozen=True)
class HypervolumeView:
    """Hypervolume after each completed trial; `reference` is the reference point in the objectives' own units.

    Both are empty where the study has no bounds yet.
    """

    objectives: tuple[str, ...]
    trials: tuple[int, ...]
    volumes: tuple[float, ...]
    reference: tuple[float, ...]


@dataclass(frozen=True)
class CurvesView:
    """Held-out errors on the way: a row for each training that has rungs, complete or stopped at one.

    A row of `samples` and `errors` is of the rungs, and of the end where there is one. `members` are the rows of the
    study's front, `stopped` those that were stopped.
    """

    trial: tuple[int, ...]
    samples: tuple[tuple[int, ...], ...]
    errors: tuple[tuple[float, ...], ...]
    members: tuple[int, ...]
    stopped: tuple[int, ...]
    member_objectives: tuple[str, ...]


@dataclass(frozen=True)
class KnowledgeView:
    """What the sampler's surrogate says of each trial's error without having seen it: mean, standard deviation."""

    trial: tuple[int, ...]
    observed: tuple[float, ...]
    expected: tuple[float, ...]
    deviation: tuple[float, ...]
    sentence: str


def unit_mix(candidate: Candidate) -> str:
    """The units of an architecture, each once: `igcv1+igcv3`."""
    used = {stage.unit for stage in candidate.arch.stages}
    return "+".join(unit for unit in UNITS if unit in used)


def points_view(study: Study) -> Points:
    """The completed trials of a study as columns."""
    candidates = study.candidates
    intervals = [c.latency.normalised_interval_ms for c in candidates]
    return Points(
        trial=tuple(c.trial for c in candidates),
        columns={name: tuple(shortened(o.of(c)) for c in candidates) for name, o in OBJECTIVES.items()},
        low_ms=tuple(shortened(low) for low, _ in intervals),
        high_ms=tuple(shortened(high) for _, high in intervals),
        noisy=tuple(row for row, c in enumerate(candidates) if c.latency.noisy),
        units=tuple(unit_mix(c) for c in candidates),
        hover=tuple(_hover(c) for c in candidates),
    )


def papers_view(study: Study) -> Papers:
    """The papers' networks with a printed error for the study's dataset; none where it is neither of CIFAR."""
    found = re.match(r"cifar100?(?![0-9])", study.spec.dataset)
    printed = {name: p for name, p in PRINTED.items() if found and found[0] in p.error}
    costs = {name: cost_of(reference(name, study.spec.classes).arch).as_dict() for name in printed}
    errors = {name: p.error[found[0]] for name, p in printed.items() if found}
    columns = {metric: tuple(cost[metric] for cost in costs.values()) for metric in ("params", "macs", "flops")}
    columns["activations"] = tuple(cost["activations"] for cost in costs.values())
    return Papers(
        name=tuple(printed),
        columns={"error": tuple(errors.values()), **columns},
        hover=tuple(
            f"<b>{name}</b><br>{p.source}<br>"
            f"printed test error {format_value('error', errors[name])}, not comparable with proxy errors<br>"
            f"{costs[name]['params']:,} parameters · {format_count(costs[name]['macs'])} MACs"
            for name, p in printed.items()
        ),
    )


def front_view(study: Study, objectives: Sequence[str] | None = None) -> FrontView:
    """The front over two or three objectives (the study's own by default) with all there is to draw around it."""
    names = tuple(objectives or study.spec.objectives)
    return FrontView(
        objectives=names,
        points=points_view(study),
        front=front_rows(study, names),
        members=front_rows(study, study.spec.objectives),
        member_objectives=study.spec.objectives,
        limits=limits(study),
        papers=papers_view(study),
    )


def front_rows(study: Study, objectives: Sequence[str]) -> tuple[int, ...]:
    """The front over `objectives` as rows of the completed trials, by the first objective ascending."""
    row_of = {candidate.trial: row for row, candidate in enumerate(study.candidates)}
    return tuple(row_of[candidate.trial] for candidate in study.front(objectives))


def hypervolume_view(study: Study) -> HypervolumeView:
    """Hypervolume of the study's front after each completed trial."""
    names, bounds = study.spec.objectives, study.spec.bounds
    curve = study.hypervolume_curve()
    return HypervolumeView(
        objectives=names,
        trials=tuple(count for count, _ in curve),
        volumes=tuple(volume for _, volume in curve),
        reference=tuple(bounds[name][1] for name in names) if all(name in bounds for name in names) else (),
    )


def curves_view(study: Study) -> CurvesView:
    """The errors of a study's trainings at their rungs and ends, in the order of the trials."""
    front = {candidate.trial for candidate in study.front()}
    rows: list[tuple[int, list[tuple[int, float]]]] = []
    stopped = []
    for trial in study.trials:
        if trial.candidate and trial.state == "complete" and trial.candidate.score.rungs:
            score = trial.candidate.score
            end = (score.samples, score.error)
            rows.append((trial.number, [*((rung.samples, rung.error) for rung in score.rungs), end]))
        elif trial.stopped and trial.state == "stopped":
            stopped.append(len(rows))
            rows.append((trial.number, [(rung.samples, rung.error) for rung in trial.stopped.training.rungs]))
    return CurvesView(
        trial=tuple(number for number, _ in rows),
        samples=tuple(tuple(samples for samples, _ in points) for _, points in rows),
        errors=tuple(tuple(shortened(error) for _, error in points) for _, points in rows),
        members=tuple(row for row, (number, _) in enumerate(rows) if number in front),
        stopped=tuple(stopped),
        member_objectives=study.spec.objectives,
    )


def knowledge_view(study: Study) -> KnowledgeView | None:
    """What the surrogate knows of a study's errors; None where too few trials are complete to tell."""
    known = knowledge_of(study)
    if known is None:
        return None
    return KnowledgeView(
        trial=known.trials,
        observed=tuple(shortened(error) for error in known.errors),
        expected=tuple(shortened(error) for error in known.expected),
        deviation=tuple(shortened(deviation) for deviation in known.deviation),
        sentence=known.sentence(),
    )


def limits(study: Study) -> dict[str, float]:
    """The budgets by the objective that they limit."""
    budget = study.spec.budget
    known = {
        "params": budget.params,
        "macs": budget.macs,
        "flops": 2 * budget.macs if budget.macs else None,
        "latency": budget.latency_ms,
    }
    return {name: limit for name, limit in known.items() if limit is not None}


def format_value(name: str, value: float) -> str:
    """A value of an objective, to read: `12.50 %`, `502.0k`, `1.46 ms`."""
    if name == "error":
        return f"{100 * value:.2f} %"
    return format_ms(value) if name == "latency" else format_count(round(value))


def plain(text: object) -> str:
    """Text from a file for HTML and for plotly: escaped, without control characters and marks that turn direction."""
    visible = ("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in str(text))
    return html.escape("".join(visible), quote=False).replace('"', "&#34;").replace("'", "&#39;")


def shortened(value: float) -> float:
    """Five significant digits are enough for a pixel; counts stay whole."""
    return value if isinstance(value, int) else float(f"{value:.5g}")


def _hover(candidate: Candidate) -> str:
    cost, noisy = candidate.cost, " · noisy" if candidate.latency.noisy else ""
    return (
        f"<b>trial {candidate.trial}</b> · {plain(candidate.id)}<br>{str(candidate.arch).replace(' | ', ' |<br>')}<br>"
        f"error {format_value('error', candidate.score.error)} · {cost.params:,} parameters · "
        f"{format_count(cost.macs)} MACs<br>latency {latency_text(candidate)}{noisy}<br>"
        f"as {plain(deployed_text(candidate))}"
    )


def latency_text(candidate: Candidate) -> str:
    """The normalised latency with its interval: `1.46 ms [1.44–1.49]`."""
    low, high = candidate.latency.normalised_interval_ms
    return f"{format_ms(candidate.latency.normalised_ms)} [{format_ms(low)[:-3]}–{format_ms(high)[:-3]}]"


def caption(study: Study) -> tuple[str, str]:
    """(what a picture shows, under which conditions), escaped."""
    spec, n = study.spec, len(study.candidates)
    title = (
        f"{plain(spec.dataset)}{', SYNTHETIC' if is_synthetic(study.spec.dataset) else ''}: {plain(spec.space_name)}"
    )
    return title, f"{budget_text(study)} · {n:,} trial{'s' * (n != 1)} · {plain(spec.latency.device)}"


def budget_text(study: Study) -> str:
    """The budgets in words."""
    words = {"params": "parameters", "macs": "MACs", "latency": "latency"}
    known = limits(study)
    within = [f"{format_value(name, known[name])} {word}" for name, word in words.items() if name in known]
    return f"at most {', '.join(within)}" if within else "no budget"


def search_command(study: Study) -> str:
    """The command that starts or continues the study."""
    return f"igc-nas search --study {shlex.quote(study.spec.name)}"
