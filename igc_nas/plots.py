"""What a study shows: views are plain numbers, figures draw a view, the dashboard is one HTML page of both.

    Study -> front_view -> FrontView -> front_figure -> plotly figure

The page keeps every column of the trials once; its script puts them into the traces that are made here, for whichever
axes are chosen. It runs from a file, asks nothing of the network, and its content security policy lets only the two
scripts run that are in it, named by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import math
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igc_nas.config import UNITS
from igc_nas.cost import cost_of
from igc_nas.errors import StudyError, UsageError
from igc_nas.files import write_whole
from igc_nas.objectives import OBJECTIVES
from igc_nas.record import Candidate
from igc_nas.reference import PRINTED, reference
from igc_nas.results import Study
from igc_nas.units import format_count, format_ms

if TYPE_CHECKING:
    import plotly.graph_objects as go

Trace = dict[str, Any]

OFFICIAL = ("cifar10", "cifar100")
MOST_BARS = 300
"""Up to so many trials each has its error bar; beyond, only the members of the study's front."""

# ---------------------------------------------------------------- views: numbers


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


def interval(candidate: Candidate) -> tuple[float, float]:
    """The 95 % interval of a latency, brought from the raw to the normalised time by their ratio."""
    latency = candidate.latency
    ratio = latency.normalised_ms / latency.median_ms
    return latency.low_ms * ratio, latency.high_ms * ratio


def unit_mix(candidate: Candidate) -> str:
    """The units of an architecture, each once: `igcv1+igcv3`."""
    used = {stage.unit for stage in candidate.arch.stages}
    return "+".join(unit for unit in UNITS if unit in used)


def points_view(study: Study) -> Points:
    """The completed trials of a study as columns."""
    candidates = study.candidates
    intervals = [interval(c) for c in candidates]
    return Points(
        trial=tuple(c.trial for c in candidates),
        columns={name: tuple(_short(o.of(c)) for c in candidates) for name, o in OBJECTIVES.items()},
        low_ms=tuple(_short(low) for low, _ in intervals),
        high_ms=tuple(_short(high) for _, high in intervals),
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


def _short(value: float) -> float:
    """Five significant digits are enough for a pixel; counts stay whole."""
    return value if isinstance(value, int) else float(f"{value:.5g}")


def _hover(candidate: Candidate) -> str:
    cost, noisy = candidate.cost, " · noisy" if candidate.latency.noisy else ""
    return (
        f"<b>trial {candidate.trial}</b> · {plain(candidate.id)}<br>{str(candidate.arch).replace(' | ', ' |<br>')}<br>"
        f"error {format_value('error', candidate.score.error)} · {cost.params:,} parameters · "
        f"{format_count(cost.macs)} MACs<br>latency {_latency(candidate)}{noisy}"
    )


def _latency(candidate: Candidate) -> str:
    low, high = interval(candidate)
    return f"{format_ms(candidate.latency.normalised_ms)} [{format_ms(low)[:-3]}–{format_ms(high)[:-3]}]"


def _caption(study: Study) -> tuple[str, str]:
    spec, n = study.spec, len(study.candidates)
    title = f"{plain(spec.dataset)}{', SYNTHETIC' if is_synthetic(study) else ''}: {plain(spec.space_name)}"
    return title, f"{_budget(study)} · {n:,} trial{'s' * (n != 1)} · {plain(spec.latency.device)}"


def _budget(study: Study) -> str:
    words = {"params": "parameters", "macs": "MACs", "latency": "latency"}
    known = limits(study)
    within = [f"{format_value(name, known[name])} {word}" for name, word in words.items() if name in known]
    return f"at most {', '.join(within)}" if within else "no budget"


def is_synthetic(study: Study) -> bool:
    """Whether the study's images are the ones that igc-nas draws itself."""
    return study.spec.dataset.startswith("shapes")


# ---------------------------------------------------------------- figures: traces and layouts

ACCENT, QUIET = "#e11d48", "#8b93a1"
PALETTE = ("#3b82f6", "#f59e0b", "#10b981", "#8b5cf6", "#06b6d4", "#a16207", "#84cc16", "#94a3b8")
SCALE = [[0, "#2563eb"], [0.5, "#c026d3"], [1, "#f59e0b"]]
PAPERS = "papers: printed test error after ~400 epochs;<br>not comparable with the proxy error"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
MIXES = sorted(
    ("+".join(mix) for size in range(1, len(UNITS) + 1) for mix in itertools.combinations(UNITS, size)),
    key=lambda mix: ("conv" in mix, mix.count("+")),
)


def front_figure(view: FrontView, colour: str = "units") -> go.Figure:
    """A front in two or three dimensions; `colour` is `units` (the mix of units) or the name of an objective."""
    import plotly.graph_objects as go

    traces = [_filled(trace, view, colour) for trace in _traces(view)]
    layout = _layout(view.objectives, view.limits)
    if colour != "units":
        layout["coloraxis"] = _colour_axis(colour, view.points.columns[colour])
    return go.Figure(data=traces, layout=layout)


def hypervolume_figure(view: HypervolumeView) -> go.Figure:
    """Hypervolume over completed trials, as steps."""
    import plotly.graph_objects as go

    last = len(view.trials) - 1
    kept = [i for i in range(last + 1) if i in (0, last) or view.volumes[i] != view.volumes[i - 1]]
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [view.trials[i] for i in kept],
        "y": [_short(view.volumes[i]) for i in kept],
        "line": {"shape": "hv", "color": ACCENT, "width": 2},
        "hovertemplate": "after %{x} trials: %{y:.4f}<extra></extra>",
    }
    layout = _base_layout() | {
        "xaxis": {"title": {"text": "completed trials"}, "automargin": True, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "hypervolume"}, "automargin": True, "rangemode": "tozero"},
        "hovermode": "x",
    }
    return go.Figure(data=[line], layout=layout)


def front_picture(study: Study, path: Path) -> None:
    """The front of error against parameters, coloured by latency, as a .png or .svg for a README.

    Raises `UsageError` for another ending and where kaleido or its browser is missing, `StudyError` for a study
    without a completed trial.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise UsageError(f"{path.name!r:.120} is neither a .png nor a .svg", "name it front.png or front.svg")
    if not study.candidates:
        raise StudyError(f"{study.spec.name} has no completed trial to draw", _search_command(study))
    view = replace(front_view(study, ("params", "error")), papers=Papers((), {}, ()))
    figure = front_figure(view, "latency")
    title, conditions = _caption(study)
    figure.update_layout(
        title={"text": f"<b>{title}</b><br><sub>{conditions}</sub>", "x": 0.02, "xanchor": "left"},
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"color": "#1f2937", "size": 14},
        margin={"t": 90, "r": 30, "b": 70, "l": 70},
        legend={"y": -0.16, "yanchor": "top"},
        coloraxis={
            "colorbar": {"orientation": "v", "y": 0.5, "yanchor": "middle", "len": 1, "title": {"side": "right"}}
        },
    )
    figure.update_xaxes(gridcolor="#e5e7eb").update_yaxes(gridcolor="#e5e7eb")
    write_whole(path, _image(figure, kind))


def _image(figure: go.Figure, kind: str) -> bytes:
    from importlib.util import find_spec

    if find_spec("kaleido") is None:
        raise UsageError("a picture needs kaleido, which is not installed", "pip install 'igc-nas[png]'")
    try:
        image: bytes = figure.to_image(format=kind, width=1000, height=640, scale=2)
    except (RuntimeError, ValueError) as error:  # plotly's words for a missing browser
        reason = str(error.args[0] if error.args else error).strip().partition("\n")[0]
        raise UsageError(f"the picture could not be drawn: {reason:.200}", "kaleido needs Chrome or Chromium") from None
    return image


def _traces(view: FrontView) -> list[Trace]:
    """The traces without their data; `meta` says which rows of which table each one shows."""
    flat = len(view.objectives) == 2
    traces = [_mix_trace(view, mix, flat) for mix in MIXES if mix in view.points.units]
    study_front = f"front over {', '.join(view.member_objectives)}"
    if not flat:
        return [*traces, _solid_front(view, f"front over {', '.join(view.objectives)}")]
    ring = {"symbol": "circle-open", "size": 11, "color": ACCENT, "line": {"width": 1.5}}
    cross = {"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": ACCENT}}
    diamond = {"symbol": "diamond-open", "size": 10, "color": QUIET, "line": {"width": 2}}
    line = {"shape": "hv", "color": ACCENT, "width": 1.5}
    bars = len(view.points.trial) > MOST_BARS
    overlays = [
        _trace("front of these two axes", view.front, "front", mode="lines", line=line),
        _trace(study_front, view.members, "members", bars=bars, mode="markers", marker=ring),
        _trace("noisy latency", view.points.noisy, "noisy", mode="markers", marker=cross),
    ]
    papers = _trace(PAPERS, range(len(view.papers.name)), "papers")
    papers |= {"mode": "markers", "marker": diamond, "hoverinfo": "text", "visible": "legendonly"}
    return [*traces, *overlays, *([papers] if view.papers.name else [])]


def _trace(name: str, rows: Iterable[int], role: str, *, bars: bool = False, **style: Any) -> Trace:
    meta = {"rows": list(rows), "role": role, "bars": bars}
    return {"type": "scatter", "name": name, "meta": meta, "hoverinfo": "skip", **style}


def _mix_trace(view: FrontView, mix: str, flat: bool) -> Trace:
    number, many = MIXES.index(mix), len(view.points.trial) > MOST_BARS
    rows = [row for row, units in enumerate(view.points.units) if units == mix]
    marker = {
        "symbol": "square" if "conv" in mix else "circle",
        "color": PALETTE[number % len(PALETTE)],
        "size": (5 if many else 8) if flat else (2 if many else 3.5),
        "opacity": 0.5 if many else 0.7,
        "line": {"width": 0},
    }
    trace = _trace(mix, rows, "points", bars=flat and not many, mode="markers")
    return trace | {"type": "scatter" if flat else "scatter3d", "marker": marker, "hoverinfo": "text"}


def _solid_front(view: FrontView, name: str) -> Trace:
    marker = {"symbol": "diamond", "size": 5, "color": ACCENT, "line": {"width": 0}}
    return _trace(name, view.front, "members", mode="markers", marker=marker) | {"type": "scatter3d"}


def _filled(trace: Trace, view: FrontView, colour: str) -> Trace:
    """A trace with its data: what the page's script does too, for the axes chosen there."""
    meta, rows = trace["meta"], trace["meta"]["rows"]
    table = view.papers if meta["role"] == "papers" else view.points
    if meta["role"] == "noisy" and "latency" not in view.objectives:
        rows = []
    filled = dict(trace)
    for axis, name in zip("xyz", view.objectives, strict=False):
        column = table.columns.get(name)
        filled[axis] = [column[row] for row in rows] if column else []
        if meta["bars"] and name == "latency":
            filled[f"error_{axis}"] = _bars(view.points, rows)
    if trace["hoverinfo"] == "text":
        filled["text"] = [table.hover[row] for row in rows]
    if meta["role"] == "points" and colour != "units":
        shades = [_shade(colour, view.points.columns[colour][row]) for row in rows]
        filled |= {"marker": trace["marker"] | {"color": shades, "coloraxis": "coloraxis"}, "showlegend": False}
    return filled


def _bars(points: Points, rows: Sequence[int]) -> dict[str, Any]:
    values = points.columns["latency"]
    return BAR_STYLE | {
        "array": [points.high_ms[row] - values[row] for row in rows],
        "arrayminus": [values[row] - points.low_ms[row] for row in rows],
    }


BAR_STYLE = {"type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": QUIET}


def _base_layout() -> dict[str, Any]:
    return {
        "template": {},
        "font": {"family": FONT, "size": 13},
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
        "hoverlabel": {"align": "left", "font": {"family": FONT}},
    }


def _layout(objectives: Sequence[str], limits: dict[str, float]) -> dict[str, Any]:
    axes = [_axis(name) for name in objectives]
    if len(axes) == 3:
        scene = dict(zip(("xaxis", "yaxis", "zaxis"), axes, strict=True))
        view = {
            "aspectmode": "cube",
            "camera": {"eye": {"x": 1.5, "y": 1.4, "z": 0.8}, "center": {"x": 0, "y": 0, "z": -0.15}},
        }
        for axis in axes:
            axis["nticks"] = 3
        return _base_layout() | {"scene": scene | view}
    (across, up), (x, y) = axes, objectives
    shapes = [_budget_line(axis, limits[name], name) for axis, name in (("x", x), ("y", y)) if name in limits]
    return _base_layout() | {
        "xaxis": across | {"automargin": True},
        "yaxis": up | {"automargin": True},
        "shapes": shapes,
        "hovermode": "closest",
    }


def _axis(name: str) -> dict[str, Any]:
    objective = OBJECTIVES[name]
    title = {"text": objective.label}
    if not objective.log:
        return {"title": title, "type": "linear", "tickformat": ".0%"}
    return {"title": title, "type": "log", "nticks": 5, "tickformat": "~g" if name == "latency" else "~s"}


def _budget_line(axis: str, value: float, name: str) -> dict[str, Any]:
    across = "y" if axis == "x" else "x"
    label = {"text": f"budget {format_value(name, value)}", "textangle": 0, "font": {"color": QUIET, "size": 11}}
    label |= {"textposition": "end", "xanchor": "right", "yanchor": "bottom"}
    return {
        "type": "line",
        "line": {"color": QUIET, "width": 1.5, "dash": "dash"},
        "label": label,
        f"{axis}ref": axis,
        f"{axis}0": value,
        f"{axis}1": value,
        f"{across}ref": "paper",
        f"{across}0": 0,
        f"{across}1": 1,
    }


def _shade(name: str, value: float) -> float:
    return math.log10(value) if OBJECTIVES[name].log else value


def _colour_axis(name: str, column: Sequence[float]) -> dict[str, Any]:
    """A colour scale over `column`, by the logarithm for all but the error, with its ticks in words."""
    low, high = min(column), max(column)
    shades = [_shade(name, low) + (_shade(name, high) - _shade(name, low)) * part / 4 for part in range(5)]
    values = [10**shade if OBJECTIVES[name].log else shade for shade in shades]
    bar = {
        "title": {"text": OBJECTIVES[name].label, "side": "top"},
        "tickvals": shades,
        "ticktext": [format_value(name, value) for value in values],
        "orientation": "h",
        "thickness": 10,
        "len": 0.9,
        "y": -0.2,
        "yanchor": "top",
        "outlinewidth": 0,
    }
    return {"colorscale": SCALE, "cmin": shades[0], "cmax": shades[-1], "colorbar": bar}


# ---------------------------------------------------------------- the page


def write_dashboard(study: Study, path: Path) -> None:
    """Write the page of a study, whole. Raises `IgcNasError` where it cannot be written."""
    write_whole(path, dashboard(study))


def dashboard(study: Study) -> str:
    """A study as one HTML page that opens from a file, without a network."""
    scripts: tuple[str, ...] = ()
    if study.candidates:
        from plotly.offline import get_plotlyjs

        scripts = (get_plotlyjs(), SCRIPT)
        body = _plots(study) + _table(study) + _data(study)
    else:
        body = _nothing_yet(study)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_policy(scripts)}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{plain(study.spec.name)} · igc-nas</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_banner(study)}{_header(study)}{body}</main>\n"
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def _policy(scripts: Iterable[str]) -> str:
    """Only these scripts run, by their hashes; nothing is loaded from anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
    rules = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    return (
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"{rules}; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="referrer" content="no-referrer">'
    )


def _banner(study: Study) -> str:
    if is_synthetic(study):
        return (
            '<p class="banner" role="alert"><strong>SYNTHETIC shapes: these errors say nothing about CIFAR-10.'
            "</strong> The images are drawn by igc-nas itself, for trying things out.</p>\n"
        )
    if study.spec.dataset not in OFFICIAL:
        return (
            '<p class="banner" role="alert"><strong>UNOFFICIAL data: these errors are not those of a published dataset.'
            f"</strong> The images are <bdi>{plain(study.spec.dataset)}</bdi>.</p>\n"
        )
    return ""


def _header(study: Study) -> str:
    spec = study.spec
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in _question(study))
    cards = "".join(f"<li><strong>{value}</strong><span>{name}</span></li>\n" for name, value in _numbers(study))
    return (
        f'<header>\n<p class="kind">igc-nas study</p>\n<h1><bdi>{plain(spec.name)}</bdi></h1>\n'
        f"<p>Errors are those of a short proxy training on <bdi>{plain(spec.dataset)}</bdi>"
        f"{' (synthetic)' if is_synthetic(study) else ''}, on held-out training images.</p>\n</header>\n"
        f'<ul class="cards">\n{cards}</ul>\n'
        f'<section aria-labelledby="question">\n<h2 id="question">The question</h2>\n<dl>\n{facts}</dl>\n</section>\n'
    )


def _numbers(study: Study) -> list[tuple[str, str]]:
    """The numbers on top: (what, value)."""
    states = Counter(trial.state for trial in study.trials)
    others = {state: count for state, count in states.items() if state != "complete"}
    found = [("completed trials", f"{len(study.candidates):,}")]
    if study.candidates:
        found.append(("on the front", f"{len(study.front()):,}"))
        found.append(("least error", format_value("error", min(c.score.error for c in study.candidates))))
        volume = study.hypervolume()
        found.append(("hypervolume", "no scale yet" if volume is None else f"{volume:.4f}"))
    return found + [(state, f"{count:,}") for state, count in sorted(others.items())]


def _question(study: Study) -> list[tuple[str, str]]:
    """The question in brief: (what, value as HTML)."""
    spec, recipe, latency = study.spec, study.spec.recipe, study.spec.latency
    size = "×".join(str(side) for side in latency.input)
    threads = f"{latency.threads} thread{'s' * (latency.threads != 1)}"
    facts = [
        ("Space", f"<bdi>{plain(spec.space_name)}</bdi>"),
        ("Budget", _budget(study)),
        ("Objectives", ", ".join(spec.objectives)),
        ("Data", f"<bdi>{plain(spec.dataset)}</bdi>, {spec.classes} classes"),
        (
            "Proxy training",
            f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)} of {recipe.train_size:,} images at {recipe.resolution}×"
            f"{recipe.resolution}, batch {recipe.batch}, lr {recipe.lr:g} (one cycle), {recipe.dtype}; scored on "
            f"{recipe.held_out:,} held-out images",
        ),
        (
            "Latency",
            f"batch {latency.batch}, {threads}, {size}, {latency.runtime}, {latency.dtype}, "
            f"{latency.memory_format.replace('_', ' ')}",
        ),
        ("Latency device", f"<bdi>{plain(latency.device)}</bdi>"),
    ]
    trained = sorted({c.score.conditions.device for c in study.candidates})
    if trained:
        more = f" and {len(trained) - 3} more" if len(trained) > 3 else ""
        facts.append(("Trained on", ", ".join(f"<bdi>{plain(device)}</bdi>" for device in trained[:3]) + more))
    return [*facts, ("Sampler", f"{spec.sampler}, seed {spec.seed}")]


def _plots(study: Study) -> str:
    x, y = _first_axes(study)
    solid = ", ".join(_solid_objectives(study))
    options = [(name, o.label) for name, o in OBJECTIVES.items()]
    return (
        '<section aria-labelledby="front">\n<h2 id="front">Front</h2>\n<div class="controls">\n'
        + _select("igc-x", "Across", options, x)
        + _select("igc-y", "Up", options, y)
        + _select("igc-colour", "Colour", [("units", "mix of units"), *options], "units")
        + f'</div>\n<div id="igc-flat" class="plot"></div>\n{_reading(study)}</section>\n'
        '<section aria-labelledby="solid">\n<h2 id="solid">In three dimensions</h2>\n'
        f'<p>{solid}. Drag to turn.</p>\n<div id="igc-solid" class="plot"></div>\n</section>\n'
        '<section aria-labelledby="volume">\n<h2 id="volume">Hypervolume</h2>\n'
        f"{_volume_text(study)}</section>\n"
        "<noscript><p>The plots need JavaScript; the table does not.</p></noscript>\n"
    )


def _select(name: str, label: str, options: Iterable[tuple[str, str]], chosen: str) -> str:
    inside = "".join(
        f'<option value="{value}"{" selected" if value == chosen else ""}>{text}</option>' for value, text in options
    )
    return f'<label for="{name}">{label} <select id="{name}" autocomplete="off">{inside}</select></label>\n'


def _reading(study: Study) -> str:
    """How to read the plot."""
    many = len(study.candidates) > MOST_BARS
    bars = "with more trials than fit, only those of the front have bars" if many else "bars are 95 % intervals"
    lines = [
        "Everything is better to the left and below. Choose MACs against latency to see what the MACs promise and what "
        "the device gives.",
        f"Latency is the normalised time; {bars}. A cross marks a noisy measurement.",
        "Drag to look closer, double-click to see all again.",
    ]
    if papers_view(study).name:
        lines.append(
            "The diamonds are the papers' networks with the <strong>test error that the papers print, after about 400 "
            "epochs: not comparable with the proxy errors here</strong>. Click the legend to show them; they have no "
            "latency."
        )
    return '<ul class="reading">' + "".join(f"<li>{line}</li>" for line in lines) + "</ul>\n"


def _volume_text(study: Study) -> str:
    view = hypervolume_view(study)
    if not view.reference:
        return "<p>The study has no scale yet: it is fixed when the study's machine has been calibrated.</p>\n"
    point = ", ".join(format_value(n, v) for n, v in zip(view.objectives, view.reference, strict=True))
    spans = "; ".join(
        f"{name} {format_value(name, low)} to {format_value(name, high)}{' (log)' if OBJECTIVES[name].log else ''}"
        for name, (low, high) in ((name, study.spec.bounds[name]) for name in view.objectives)
    )
    return (
        f"<p>The share of the scaled box that the front dominates. Each objective is scaled to [0, 1] by bounds that "
        f"were fixed when the study was made ({spans}). The reference point is (1, …, 1), that is ({point}).</p>\n"
        '<div id="igc-volume" class="plot low"></div>\n'
    )


def _table(study: Study) -> str:
    pick = study.pick("knee")
    rows = "".join(_table_row(candidate, candidate.trial == pick.trial) for candidate in study.front())
    name = plain(shlex.quote(study.spec.name))
    heads = ("trial", "id", "error", "parameters", "MACs", "latency [95 %]", "architecture")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return (
        '<section aria-labelledby="members">\n<h2 id="members">On the front</h2>\n'
        f"<p>Over {', '.join(study.spec.objectives)}. Take one out, here the knee:</p>\n"
        f"<pre><code>igc-nas export {name} --pick trial:{pick.trial} -o arch.toml</code></pre>\n"
        '<div class="table" tabindex="0" role="region" aria-labelledby="members">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n</section>\n"
    )


def _table_row(candidate: Candidate, is_knee: bool) -> str:
    knee = ' <span class="tag">knee</span>' if is_knee else ""
    noisy = ' <span class="tag">noisy</span>' if candidate.latency.noisy else ""
    cells = (
        f"{candidate.trial}{knee}",
        f"<code>{plain(candidate.id)}</code>",
        format_value("error", candidate.score.error),
        f"{candidate.cost.params:,}",
        format_count(candidate.cost.macs),
        _latency(candidate) + noisy,
        f"<code>{plain(candidate.arch)}</code>",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _nothing_yet(study: Study) -> str:
    return (
        "<section>\n<h2>No completed trial yet</h2>\n"
        "<p>There is nothing to draw. Start or continue the search with</p>\n"
        f"<pre><code>{plain(_search_command(study))}</code></pre>\n</section>\n"
    )


def _search_command(study: Study) -> str:
    return f"igc-nas search --study {shlex.quote(study.spec.name)}"


def _first_axes(study: Study) -> tuple[str, str]:
    """Across and up, to begin with: the study's second objective and its first."""
    return study.spec.objectives[1], study.spec.objectives[0]


def _solid_objectives(study: Study) -> tuple[str, ...]:
    names = study.spec.objectives
    return names if len(names) == 3 else ("error", "params", "latency")


def _data(study: Study) -> str:
    """What the script draws, as JSON that cannot end the element it stands in."""
    text = json.dumps(_payload(study), separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="igc-data">{text}</script>\n'


def _payload(study: Study) -> dict[str, Any]:
    flat = front_view(study, _first_axes(study))
    solid_names = _solid_objectives(study)
    solid = replace(flat, objectives=solid_names, front=front_rows(study, solid_names))
    points = flat.points
    volume = hypervolume_figure(hypervolume_view(study)).to_plotly_json()
    return {
        "points": points.columns | {"low": points.low_ms, "high": points.high_ms, "hover": points.hover},
        "papers": flat.papers.columns | {"hover": flat.papers.hover},
        "pairs": _pairs(study, flat),
        "scales": {name: _colour_axis(name, column) for name, column in points.columns.items()},
        "bars": BAR_STYLE,
        "flat": _traces(flat),
        "solid": {"axes": solid_names, "traces": _traces(solid), "layout": _layout(solid_names, {})},
        "volume": volume,
    }


def _pairs(study: Study, view: FrontView) -> dict[str, dict[str, Any]]:
    """For every two axes, in both orders: the layout, and the rows of their front from left to right."""
    found = {}
    for x, y in itertools.combinations(OBJECTIVES, 2):
        front = front_rows(study, (x, y))
        found[f"{x},{y}"] = {"front": front, "layout": _layout((x, y), view.limits)}
        found[f"{y},{x}"] = {"front": front[::-1], "layout": _layout((y, x), view.limits)}
    return found


SCRIPT = """
"use strict";
const page = JSON.parse(document.getElementById("igc-data").textContent);
const config = {responsive: true, displayModeBar: false};
const touched = matchMedia("(pointer: coarse)").matches;  // there a drag is to scroll the page, not to zoom
const isLog = name => name !== "error";

function filled(trace, axes, colour) {
  const {role, bars} = trace.meta;
  const table = role === "papers" ? page.papers : page.points;
  let rows = trace.meta.rows;
  if (role === "front") rows = page.pairs[axes.join()].front;
  if (role === "noisy" && !axes.includes("latency")) rows = [];
  const take = column => column ? rows.map(row => column[row]) : [];
  const out = {...trace};
  axes.forEach((name, i) => {
    const axis = "xyz"[i];
    out[axis] = take(table[name]);
    if (bars && name === "latency") out["error_" + axis] = {
      ...page.bars,
      array: rows.map(row => table.high[row] - table.latency[row]),
      arrayminus: rows.map(row => table.latency[row] - table.low[row]),
    };
  });
  if (trace.hoverinfo === "text") out.text = take(table.hover);
  if (role === "points" && colour !== "units") {
    const color = take(table[colour]).map(value => isLog(colour) ? Math.log10(value) : value);
    Object.assign(out, {marker: {...trace.marker, color, coloraxis: "coloraxis"}, showlegend: false});
  }
  return out;
}

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line, card] = ["--ink", "--line", "--card"].map(name => style.getPropertyValue(name).trim());
  const out = structuredClone(layout);
  out.font.color = ink;
  if (touched && !out.scene) out.dragmode = false;
  out.hoverlabel = {...out.hoverlabel, bgcolor: card, bordercolor: line, font: {...out.hoverlabel.font, color: ink}};
  for (const axes of [out, out.scene ?? {}]) for (const name of ["xaxis", "yaxis", "zaxis"]) {
    if (axes[name]) Object.assign(axes[name], {gridcolor: line, zerolinecolor: line, linecolor: line});
  }
  return out;
}

const part = name => document.getElementById("igc-" + name);
let chosen = {x: part("x").value, y: part("y").value, colour: part("colour").value};

function drawFlat() {
  const axes = [chosen.x, chosen.y];
  const layout = themed(page.pairs[axes.join()].layout);
  layout.uirevision = axes.join();
  layout.legend.uirevision = "kept";
  if (chosen.colour !== "units") layout.coloraxis = page.scales[chosen.colour];
  Plotly.react("igc-flat", page.flat.map(trace => filled(trace, axes, chosen.colour)), layout, config);
}

function drawOthers() {
  if (part("volume")) Plotly.react("igc-volume", page.volume.data, themed(page.volume.layout), config);
  const {axes, traces, layout} = page.solid;
  const solid = {...themed(layout), uirevision: "kept"};
  const eye = solid.scene.camera.eye;
  if (innerWidth < 600) for (const axis of "xyz") eye[axis] *= 1.7;
  Plotly.react("igc-solid", traces.map(trace => filled(trace, axes, "units")), solid, config);
}

for (const name of ["x", "y", "colour"]) part(name).addEventListener("change", event => {
  const before = chosen[name], other = {x: "y", y: "x"}[name];
  chosen[name] = event.target.value;
  if (other && chosen[other] === chosen[name]) part(other).value = chosen[other] = before;
  drawFlat();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawFlat(); drawOthers(); });
drawFlat();
drawOthers();
"""

STYLE = """
:root { --ink: #1f2937; --soft: #5b6472; --line: #e2e5ea; --card: #ffffff; --ground: #f5f6f8; --link: #1d4ed8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --soft: #a3abb8; --line: #333a46; --card: #1a1e26; --ground: #11141a; --link: #93b4ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { margin: 0; font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 1.15rem; }
p { margin: 8px 0 12px; overflow-wrap: anywhere; }
header p, .reading, dt, section > p { color: var(--soft); }
.kind { margin: 0; font-size: .85rem; letter-spacing: .04em; }
.banner { margin: 0 0 24px; padding: 14px 18px; border: 3px solid #7f1d1d; border-radius: 10px; background: #fde047;
  color: #3b0a0a; font-size: 1.05rem; }
section { margin-top: 20px; padding: 20px; border: 1px solid var(--line); border-radius: 12px;
  background: var(--card); }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 0; padding: 0; list-style: none; }
.cards li { flex: 1 1 110px; padding: 12px 16px; border: 1px solid var(--line); border-radius: 12px;
  background: var(--card); }
.cards strong { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.cards span, .reading, dt, dd { font-size: .9rem; }
.cards span { color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 10px 28px; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.controls { display: flex; flex-wrap: wrap; gap: 10px 20px; margin-bottom: 12px; }
label { display: flex; align-items: center; gap: 8px; font-size: .9rem; }
select { padding: 6px 8px; border: 1px solid var(--line); border-radius: 8px; background: var(--ground);
  color: inherit; font: inherit; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.plot { width: 100%; height: 600px; }
.plot.low { height: 300px; }
.reading { margin: 12px 0 0; padding-left: 20px; }
pre { margin: 0 0 14px; padding: 10px 14px; overflow-x: auto; border-radius: 8px; background: var(--ground); }
code { font: .86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.table { max-height: 640px; overflow: auto; border: 1px solid var(--line); border-radius: 8px; }
table { width: 100%; border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--ground); text-align: left; }
th, td { padding: 7px 12px; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th:nth-child(n+3):nth-child(-n+6), td:nth-child(n+3):nth-child(-n+6) { text-align: right; }
.tag { padding: 1px 7px; border-radius: 99px; background: #e11d48; color: #fff; font-size: .75rem; }
@media (max-width: 600px) {
  main { padding: 14px 10px 40px; }
  section { padding: 14px 10px; }
  .controls label { width: 100%; justify-content: space-between; }
  .controls select { width: 70%; }
}
"""
