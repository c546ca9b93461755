"""Views drawn: plotly figures of a front, of the hypervolume and of trainings, and a picture of the front.

    Study -> front_view -> FrontView -> front_figure -> plotly figure

A trace is made without its data first; `igc_nas.page` hands such traces to its script, which fills them for whichever
axes are chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igc_nas.config import UNITS
from igc_nas.errors import StudyError, UsageError
from igc_nas.files import write_whole
from igc_nas.objectives import OBJECTIVES
from igc_nas.results import Study
from igc_nas.views import (
    CurvesView,
    FrontView,
    HypervolumeView,
    KnowledgeView,
    Papers,
    Points,
    caption,
    format_value,
    front_view,
    search_command,
    shortened,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

Trace = dict[str, Any]

MOST_BARS = 300
"""Up to so many trials each has its error bar; beyond, only the members of the study's front."""
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

    drawn = [_filled(trace, view, colour) for trace in traces(view)]
    around = layout(view.objectives, view.limits)
    if colour != "units":
        around["coloraxis"] = colour_axis(colour, view.points.columns[colour])
    return go.Figure(data=drawn, layout=around)


def hypervolume_figure(view: HypervolumeView) -> go.Figure:
    """Hypervolume over completed trials, as steps."""
    import plotly.graph_objects as go

    last = len(view.trials) - 1
    kept = [i for i in range(last + 1) if i in (0, last) or view.volumes[i] != view.volumes[i - 1]]
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [view.trials[i] for i in kept],
        "y": [shortened(view.volumes[i]) for i in kept],
        "line": {"shape": "hv", "color": ACCENT, "width": 2},
        "hovertemplate": "after %{x} trials: %{y:.4f}<extra></extra>",
    }
    layout = _base_layout() | {
        "xaxis": {"title": {"text": "completed trials"}, "automargin": True, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "hypervolume"}, "automargin": True, "rangemode": "tozero"},
        "hovermode": "x",
    }
    return go.Figure(data=[line], layout=layout)


def curves_figure(view: CurvesView) -> go.Figure:
    """Held-out error over the images seen: complete trainings, those that were stopped, the front on top."""
    import plotly.graph_objects as go

    stopped, members = set(view.stopped), set(view.members)
    usual = [row for row in range(len(view.trial)) if row not in stopped and row not in members]
    plain = {"color": PALETTE[0], "width": 1}
    dotted = {"color": QUIET, "width": 1, "dash": "dot"}
    cross = {"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": QUIET}}
    accent = {"color": ACCENT, "width": 1.5}
    front = f"front over {', '.join(view.member_objectives)}"
    drawn = [
        _lines(view, usual, "complete", mode="lines", line=plain, opacity=0.45),
        _lines(view, view.stopped, "stopped", mode="lines", line=dotted, showlegend=False),
        _lines(view, view.stopped, "stopped", mode="markers", marker=cross, last_only=True),
        _lines(view, view.members, front, mode="lines+markers", line=accent, marker={"size": 5}),
    ]
    around = _base_layout() | {
        "xaxis": {"title": {"text": "images seen"}, "automargin": True, "rangemode": "tozero", "tickformat": "~s"},
        "yaxis": {"title": {"text": OBJECTIVES["error"].label}, "automargin": True, "tickformat": ".0%"},
        "hovermode": "closest",
    }
    return go.Figure(data=[trace for trace in drawn if trace["x"]], layout=around)


def _lines(view: CurvesView, rows: Sequence[int], name: str, *, last_only: bool = False, **style: Any) -> Trace:
    """Many trainings as one trace: each row's points, with a gap after it; or the last point of each."""
    across: list[int | None] = []
    up: list[float | None] = []
    trial: list[int | None] = []
    for row in rows:
        taken = slice(-1, None) if last_only else slice(None)
        points = view.samples[row][taken]
        across += [*points, None]
        up += [*view.errors[row][taken], None]
        trial += [*(view.trial[row] for _ in points), None]
    hover = f"<b>trial %{{customdata}}</b>, {name}<br>%{{y:.2%}} after %{{x:,}} images<extra></extra>"
    data = {"x": across[:-1], "y": up[:-1], "customdata": trial[:-1]}
    return {"type": "scatter", "name": name, "legendgroup": name, "hovertemplate": hover} | data | style


def knowledge_figure(view: KnowledgeView) -> go.Figure:
    """What the surrogate says of each trial from all others, with its 95 % interval, over the error observed."""
    import plotly.graph_objects as go

    ends = [min(view.observed + view.expected), max(view.observed + view.expected)]
    points = {
        "type": "scatter",
        "name": "left out, with its 95 % interval",
        "mode": "markers",
        "x": view.observed,
        "y": view.expected,
        "customdata": view.trial,
        "error_y": BAR_STYLE | {"symmetric": True, "array": [shortened(1.96 * d) for d in view.deviation]},
        "marker": {"color": PALETTE[0], "size": 6, "opacity": 0.8},
        "hovertemplate": "<b>trial %{customdata}</b><br>observed %{x:.2%}, expected %{y:.2%}<extra></extra>",
    }
    diagonal = {
        "type": "scatter",
        "name": "expected = observed",
        "mode": "lines",
        "x": ends,
        "y": ends,
        "line": {"color": ACCENT, "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
    }
    around = _base_layout() | {
        "xaxis": {"title": {"text": "observed held-out error"}, "automargin": True, "tickformat": ".0%"},
        "yaxis": {"title": {"text": "expected error"}, "automargin": True, "tickformat": ".0%"},
        "hovermode": "closest",
    }
    return go.Figure(data=[points, diagonal], layout=around)


def front_picture(study: Study, path: Path) -> None:
    """The front of error against parameters, coloured by latency, as a .png or .svg for a README.

    Raises `UsageError` for another ending and where kaleido or its browser is missing, `StudyError` for a study
    without a completed trial.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise UsageError(f"{path.name!r:.120} is neither a .png nor a .svg", "name it front.png or front.svg")
    if not study.candidates:
        raise StudyError(f"{study.spec.name} has no completed trial to draw", search_command(study))
    view = replace(front_view(study, ("params", "error")), papers=Papers((), {}, ()))
    figure = front_figure(view, "latency")
    title, conditions = caption(study)
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


def traces(view: FrontView) -> list[Trace]:
    """The traces without their data; `meta` says which rows of which table each one shows."""
    flat = len(view.objectives) == 2
    mixes = [_mix_trace(view, mix, flat) for mix in MIXES if mix in view.points.units]
    study_front = f"front over {', '.join(view.member_objectives)}"
    if not flat:
        return [*mixes, _solid_front(view, f"front over {', '.join(view.objectives)}")]
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
    return [*mixes, *overlays, *([papers] if view.papers.name else [])]


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


def layout(objectives: Sequence[str], limits: dict[str, float]) -> dict[str, Any]:
    """Axes of two or three objectives, with the budgets as lines in two."""
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


def colour_axis(name: str, column: Sequence[float]) -> dict[str, Any]:
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
