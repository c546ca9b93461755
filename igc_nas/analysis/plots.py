"""The front, or the finals, as a picture file: a plotly figure, rendered by kaleido.

Study -> front_view -> FrontView -> front_figure -> plotly figure -> .png or .svg
Study -> finals_groups -> FinalsGroup -> finals_figure -> plotly figure -> .png or .svg
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igc_nas.analysis.finals import group_title
from igc_nas.analysis.views import FrontView, caption, format_value, front_view
from igc_nas.errors import StudyError, UsageError
from igc_nas.io.files import write_whole
from igc_nas.io.text import nearest_and_all, plain
from igc_nas.study.finals import FinalsGroup, finals_groups
from igc_nas.study.names import search_command, study_argument
from igc_nas.study.objectives import OBJECTIVES, parse_objectives
from igc_nas.study.study import Study

if TYPE_CHECKING:
    import plotly.graph_objects as go

ACCENT, QUIET, INK, GRID = "#e11d48", "#8b93a1", "#1f2937", "#e5e7eb"
PALETTE = ("#3b82f6", "#f59e0b", "#10b981", "#8b5cf6", "#06b6d4", "#a16207", "#84cc16", "#94a3b8")
SCALE = [[0, "#2563eb"], [0.5, "#c026d3"], [1, "#f59e0b"]]
LONGEST_LINE = 120
"""Letters of a line below a title."""
PLACES = ("top right", "bottom right", "top left", "bottom left")
"""Where a name may stand beside its point, the first that is free."""
PLOT, LETTER, LINE = (880.0, 480.0), 6.3, 14.0
"""The plot's width and height in a picture, a letter's width and a name's height, in pixels."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
LAYOUT: dict[str, Any] = {
    "template": {},
    "font": {"family": FONT, "size": 14, "color": INK},
    "margin": {"t": 90, "r": 30, "b": 70, "l": 70},
    "paper_bgcolor": "white",
    "plot_bgcolor": "white",
    "legend": {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top", "itemsizing": "constant"},
}


def front_picture(study: Study, path: Path, render: Callable[[go.Figure, str], bytes] | None = None) -> None:
    """Write the front of error against parameters, coloured by latency, as a .png, .svg or .pdf file.

    `render` turns a figure into an image of that kind; None: by kaleido. Raises `UsageError` for another file ending
    and if kaleido or its browser is missing, `StudyError` for a study without a completed trial.
    """
    kind = picture_kind(path)
    write_whole(path, (render or kaleido_image)(plot(study), kind))


def plot(study: Study, x: str = "params", y: str = "error", colour: str = "latency") -> go.Figure:
    """A plotly figure of a study's trials over two objectives, with the front over them; points are coloured.

    `x`, `y` and `colour` are objectives: error, params, macs, flops, latency or activations. Raises `UsageError` for
    others, `StudyError` for a study without a completed trial.
    """
    for name in (x, y, colour):
        parse_objectives(f"error,{name}" if name != "error" else name)
    if not study.candidates:
        raise StudyError(
            f"{study.spec.name} has no completed trial to draw",
            search_command(study.folder, study.spec.name, study.storage),
        )
    figure = front_figure(front_view(study, (x, y)), colour)
    title, conditions = caption(study)
    return figure.update_layout(
        title={"text": f"<b>{title}</b><br><sub>{conditions}</sub>", "x": 0.02, "xanchor": "left"}
    )


def picture_kind(path: Path, kinds: Sequence[str] = ("png", "svg", "pdf")) -> str:
    """One of `kinds`, by the ending of a file. Raises `UsageError` for another one."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in kinds:
        endings = " or ".join(f".{kind}" for kind in kinds)
        hint = nearest_and_all(kind, kinds, f"name it {path.stem or 'front':.80}.{kinds[0]}")
        raise UsageError(f"{path.name!r:.120} does not end in {endings}", hint)
    return kind


def front_figure(view: FrontView, colour: str) -> go.Figure:
    """A front over two objectives; completed trials are coloured by the objective `colour`."""
    import plotly.graph_objects as go

    x, y = view.objectives
    shades = [_shade(colour, value) for value in _column(view, colour, view.trials.complete)]
    dot = {"size": 8, "opacity": 0.7, "line": {"width": 0}, "color": shades, "coloraxis": "coloraxis"}
    ring = {"symbol": "circle-open", "size": 11, "color": ACCENT, "line": {"width": 1.5}}
    cross = {"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": ACCENT}}
    diamond = {"symbol": "diamond", "size": 9, "color": INK, "line": {"width": 0}}
    names = [plain(view.trials.baseline[row]) for row in view.trials.baselines]
    shares = [
        _shares(_column(view, at, view.trials.baselines), _column(view, at, view.trials.complete), OBJECTIVES[at].log)
        for at in view.objectives
    ]
    labels = {
        "text": names,
        "textposition": _label_places(names, *shares),
        "textfont": {"size": 11, "color": INK},
        "cliponaxis": False,
    }
    line = {"shape": "hv", "color": ACCENT, "width": 1.5}
    noisy = view.trials.noisy if "latency" in view.objectives else ()
    study_front = f"front over {', '.join(view.member_objectives)}"
    drawn = [
        _trace(view, "completed trials", view.trials.complete, mode="markers", marker=dot, showlegend=False),
        _trace(view, "front of these two axes", view.front, mode="lines", line=line),
        _trace(view, study_front, view.members, mode="markers", marker=ring),
        _trace(view, "noisy latency", noisy, mode="markers", marker=cross),
        _trace(view, "baselines", view.trials.baselines, mode="markers+text", marker=diamond, **labels),
    ]
    lines = [_budget_line(at, view.limits[name], name) for at, name in (("x", x), ("y", y)) if name in view.limits]
    layout = {"xaxis": _axis(x), "yaxis": _axis(y), "shapes": lines, "coloraxis": _colour_axis(colour, shades)}
    return go.Figure(data=[trace for trace in drawn if trace["x"]], layout=LAYOUT | layout)


def finals_picture(study: Study, path: Path, render: Callable[[go.Figure, str], bytes] | None = None) -> None:
    """Write test error against parameters of the finals of the newest recipe as a .png, .svg or .pdf file.

    As `front_picture`; raises `StudyError` for a study without a final that has ended well.
    """
    kind = picture_kind(path)
    groups = [group for group in finals_groups(study.finals) if any(f.errors for f in group.finalists)]
    if not groups:
        name = study_argument(study.folder, study.spec.name)
        raise StudyError(f"{study.spec.name} has no finals to draw", f"igc-nas finals {name}")
    figure = finals_figure(groups[0])
    first, _, recipe = plain(group_title(groups[0])).partition(": ")
    lines = "<br>".join(textwrap.wrap(recipe, LONGEST_LINE))
    title = {"text": f"<b>{first}</b><br><sub>{lines}</sub>", "x": 0.02, "xanchor": "left", "y": 0.97, "yanchor": "top"}
    figure.update_layout(title=title)
    write_whole(path, (render or kaleido_image)(figure, kind))


def finals_figure(group: FinalsGroup) -> go.Figure:
    """Test error against parameters of the networks of one recipe, each by name; bars are 95 % intervals over seeds."""
    import plotly.graph_objects as go

    ended = sorted((f for f in group.finalists if f.errors), key=lambda f: f.one.cost.params)
    known = [(f.one.name, f.one.cost.params, f.error or 0.0, f.half_width or 0.0, f.one.trial is None) for f in ended]
    members = group.front(("error", "params"))
    front = [row for finalist, row in zip(ended, known, strict=True) if finalist.one.id in members]
    line = {"shape": "hv", "color": ACCENT, "width": 1.5}
    names, params, errors = [plain(row[0]) for row in known], [row[1] for row in known], [row[2] for row in known]
    found = _label_places(names, _shares(params, params, True), _shares(errors, errors, False))
    places = dict(zip(known, found, strict=True))
    drawn: list[dict[str, Any]] = [_finals_trace("front of these two axes", front, mode="lines", line=line)]
    for baseline, name, look in (
        (False, "the study's candidates", {"symbol": "circle", "color": PALETTE[0]}),
        (True, "baselines", {"symbol": "diamond", "color": INK}),
    ):
        rows = [row for row in known if row[4] is baseline]
        bars = {"type": "data", "array": [row[3] for row in rows], "thickness": 1, "width": 3, "color": QUIET}
        labels = {
            "text": [plain(row[0]) for row in rows],
            "textposition": [places[row] for row in rows],
            "textfont": {"size": 11, "color": INK},
            "cliponaxis": False,
        }
        marker = look | {"size": 10}
        drawn.append(_finals_trace(name, rows, mode="markers+text", marker=marker, error_y=bars, **labels))
    y = {"title": {"text": "test error"}, "tickformat": ".0%", "automargin": True, "gridcolor": GRID}
    layout = {"xaxis": _axis("params"), "yaxis": y}
    return go.Figure(data=[trace for trace in drawn if trace["x"]], layout=LAYOUT | layout)


def _shares(values: Sequence[float], span: Sequence[float], is_log: bool) -> list[float]:
    """Where values lie on an axis that holds `span`: 0 at its start, 1 at its end."""
    scale = math.log if is_log else float
    low, high = (scale(end(span)) for end in (min, max)) if span else (0.0, 1.0)
    return [(scale(value) - low) / (high - low or 1.0) for value in values]


def _label_places(names: Sequence[str], xs: Sequence[float], ys: Sequence[float]) -> list[str]:
    """The place of each name beside its point, (x, y) as shares of the plot, where it covers no name before it."""
    taken: list[tuple[float, float, float, float]] = []
    found = []
    for name, x, y in zip(names, xs, ys, strict=True):
        boxes = {place: _label_box(place, x * PLOT[0], y * PLOT[1], LETTER * len(name)) for place in PLACES}
        within = [place for place, box in boxes.items() if box[0] >= 0 and box[1] <= PLOT[0]]
        place = next((place for place in within if not any(_meet(boxes[place], box) for box in taken)), PLACES[0])
        taken.append(boxes[place])
        found.append(place)
    return found


def _label_box(place: str, x: float, y: float, width: float) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of a name beside a point, in pixels."""
    left = x + 5 if place.endswith("right") else x - 5 - width
    bottom = y + 3 if place.startswith("top") else y - 3 - LINE
    return left, left + width, bottom, bottom + LINE


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _finals_trace(name: str, rows: Sequence[tuple[str, int, float, float, bool]], **style: Any) -> dict[str, Any]:
    return {"type": "scatter", "name": name, "x": [row[1] for row in rows], "y": [row[2] for row in rows], **style}


def kaleido_image(figure: go.Figure, kind: str) -> bytes:
    """A figure as a `png` or `svg` image. Raises `UsageError` if kaleido or its browser is missing."""
    from importlib.util import find_spec

    if find_spec("kaleido") is None:
        raise UsageError("a picture needs kaleido, which is not installed", "pip install 'igc-nas[png]'")
    try:
        image: bytes = figure.to_image(format=kind, width=1000, height=640, scale=2)
    except (RuntimeError, ValueError) as error:  # plotly raises these if there is no browser
        reason = str(error.args[0] if error.args else error).strip().partition("\n")[0]
        raise UsageError(f"the picture could not be drawn: {reason:.200}", "kaleido needs Chrome or Chromium") from None
    return image


def _trace(view: FrontView, name: str, rows: Iterable[int], **style: Any) -> dict[str, Any]:
    x, y = (_column(view, objective, rows) for objective in view.objectives)
    return {"type": "scatter", "name": name, "x": x, "y": y, **style}


def _column(view: FrontView, name: str, rows: Iterable[int]) -> list[float]:
    column = view.trials.columns[name]
    return [value for row in rows if (value := column[row]) is not None]


def _axis(name: str) -> dict[str, Any]:
    objective = OBJECTIVES[name]
    axis = {"title": {"text": objective.label}, "automargin": True, "gridcolor": GRID}
    if not objective.log:
        return axis | {"type": "linear", "tickformat": ".0%"}
    return axis | {"type": "log", "nticks": 5, "tickformat": "~g" if name == "latency" else "~s"}


def _budget_line(axis: str, value: float, name: str) -> dict[str, Any]:
    across = "y" if axis == "x" else "x"
    label = {"text": f"budget {format_value(name, value)}", "textangle": 0, "font": {"color": QUIET, "size": 11}}
    label |= {"textposition": "end", "xanchor": "right", "yanchor": "bottom"}
    line = {"color": QUIET, "width": 1.5, "dash": "dash"}
    along = {f"{across}ref": "paper", f"{across}0": 0, f"{across}1": 1}
    return {
        "type": "line",
        "line": line,
        "label": label,
        f"{axis}ref": axis,
        f"{axis}0": value,
        f"{axis}1": value,
        **along,
    }


def _shade(name: str, value: float) -> float:
    """An objective's value on the colour scale: its logarithm if the objective has a log axis."""
    return math.log10(value) if OBJECTIVES[name].log else value


def _colour_axis(name: str, shades: Sequence[float]) -> dict[str, Any]:
    """A colour scale over `shades` (see `_shade`), with five ticks labelled by the objective's value."""
    low, high = min(shades), max(shades)
    ticks = [low + (high - low) * part / 4 for part in range(5)]
    values = [10**tick if OBJECTIVES[name].log else tick for tick in ticks]
    bar = {
        "title": {"text": OBJECTIVES[name].label, "side": "right"},
        "tickvals": ticks,
        "ticktext": [format_value(name, value) for value in values],
        "thickness": 10,
        "outlinewidth": 0,
    }
    return {"colorscale": SCALE, "cmin": low, "cmax": high, "colorbar": bar}
