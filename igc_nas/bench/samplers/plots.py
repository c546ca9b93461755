"""The curves of a `SamplerReport` as a plotly figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igc_nas.analysis.plots import ACCENT, FONT, PALETTE, kaleido_image, picture_kind
from igc_nas.bench.samplers.peers import PEERS
from igc_nas.bench.samplers.report import GRID, SAMPLERS, TESTED, Band, SamplerReport
from igc_nas.io.files import write_whole

if TYPE_CHECKING:
    import plotly.graph_objects as go

FEW = 4
"""Up to this number of panels are drawn in two columns, more in three."""


def sampler_figure(report: SamplerReport) -> go.Figure:
    """For each problem a panel with the mean hypervolume over evaluations and its band.

    Then for each tabular benchmark with rungs a panel with the hypervolume over compute, with and without pruning.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    panels = [*_panels(report)]
    columns = min(2 if len(panels) <= FEW else 3, len(panels))
    rows = -(-len(panels) // columns)
    titles = [title for title, _, _ in panels]
    figure = make_subplots(rows, columns, subplot_titles=titles, horizontal_spacing=0.1, vertical_spacing=0.16)
    named: set[str] = set()
    for place, (_, across, bands) in enumerate(panels):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        for name, (xs, band) in bands.items():
            for trace in _band_traces(name, xs, band, name not in named):
                figure.add_trace(go.Scatter(**trace), **at)
            named.add(name)
        figure.update_xaxes(title_text=across, rangemode="tozero", **at)
        figure.update_yaxes(title_text="hypervolume", rangemode="nonnegative", **at)
    figure.update_layout(_layout(report, rows))
    return figure


Panel = tuple[str, str, dict[str, tuple[list[float], Band]]]


def _panels(report: SamplerReport) -> Iterator[Panel]:
    """(title, title of the x axis, the bands by name)."""
    for comparison in report.results:
        bands = {s: ([float(n) for n in range(1, len(b.mean) + 1)], b) for s, b in comparison.curves.items()}
        yield comparison.problem, "evaluations", bands
    for comparison in report.results:
        shares = [n / GRID for n in range(1, GRID + 1)]
        bands = {}
        for effect in comparison.pruning:
            bands |= {effect.sampler: (shares, effect.full), f"{effect.sampler}, pruning": (shares, effect.pruned)}
        if bands:
            yield f"{comparison.problem}: pruning at rungs", "share of the compute of full training", bands


def _band_traces(name: str, xs: list[float], band: Band, is_new: bool) -> Iterator[dict[str, Any]]:
    colour = _colour(name)
    common = {"legendgroup": name, "mode": "lines"}
    edge = {"x": [*xs, *reversed(xs)], "y": [*band.high, *reversed(band.low)], "line": {"width": 0}}
    fill = {"fill": "toself", "fillcolor": colour, "opacity": 0.2, "hoverinfo": "skip", "showlegend": False}
    yield common | edge | fill
    dash = "dash" if name.endswith("pruning") else "solid"
    line = {"x": xs, "y": list(band.mean), "line": {"color": colour, "width": 2, "dash": dash}}
    hover = {"hovertemplate": f"{name}: %{{y:.4f}} at %{{x}}<extra></extra>"}
    yield common | line | hover | {"name": name, "showlegend": is_new}


def _colour(name: str) -> str:
    sampler = name.partition(",")[0]
    others = [s for s in (*SAMPLERS, *PEERS) if s != TESTED]
    return ACCENT if sampler == TESTED else PALETTE[others.index(sampler) % len(PALETTE)]


def _layout(report: SamplerReport, rows: int) -> dict[str, Any]:
    return {
        "template": "plotly_white",
        "font": {"family": FONT, "size": 13},
        "height": 80 + 340 * rows,
        "margin": {"l": 60, "r": 20, "t": 130, "b": 50},
        "legend": {"orientation": "h", "y": 1.05, "yanchor": "bottom", "x": 0},
        "title": {"text": f"mean of {report.seeds} seeds with its 95 % band", "x": 0.02, "y": 0.99, "yanchor": "top"},
    }


PAGE, PICTURE = ("html",), ("png", "svg")
"""The endings of a page, and of a picture."""


def figure_kind(path: Path) -> str:
    """`html`, `png` or `svg`, by the file's ending. Raises `UsageError` for another ending."""
    return picture_kind(path, (*PAGE, *PICTURE))


def figure_files(page: Path | None, picture: Path | None) -> list[Path]:
    """Those of a page's file (.html) and a picture's (.png, .svg) that are given.

    Raises `UsageError` for another ending.
    """
    for path, kinds in ((page, PAGE), (picture, PICTURE)):
        if path is not None:
            picture_kind(path, kinds)
    return [path for path in (page, picture) if path is not None]


def write_figure(report: SamplerReport, path: Path) -> None:
    """Write the figure as a self-contained page (.html) or an image (.png, .svg). Raises `UsageError`."""
    write_plotly(sampler_figure(report), path)


def write_plotly(figure: go.Figure, path: Path) -> None:
    """Write a figure as `write_figure` does."""
    kind = figure_kind(path)
    write_whole(path, figure.to_html(include_plotlyjs=True) if kind == "html" else kaleido_image(figure, kind))
