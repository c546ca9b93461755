"""A study as one HTML page: its question, its fronts, its table; opens from a file, without a network.

The page keeps every column of the trials once; its script (page.js) puts them into the traces of `igc_nas.plots`, for
whichever axes are chosen. Its content security policy lets only the two scripts run that are in it, named by their
hashes.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from igc_nas.dataset import is_synthetic
from igc_nas.files import write_whole
from igc_nas.objectives import OBJECTIVES
from igc_nas.plots import (
    BAR_STYLE,
    MOST_BARS,
    colour_axis,
    curves_figure,
    hypervolume_figure,
    knowledge_figure,
    layout,
    traces,
)
from igc_nas.record import Candidate, deployed_text
from igc_nas.results import Study
from igc_nas.units import format_count
from igc_nas.views import (
    FrontView,
    KnowledgeView,
    budget_text,
    curves_view,
    format_value,
    front_rows,
    front_view,
    hypervolume_view,
    knowledge_view,
    latency_text,
    papers_view,
    plain,
    search_command,
)

OFFICIAL = ("cifar10", "cifar100")


def write_dashboard(study: Study, path: Path) -> None:
    """Write the page of a study, whole. Raises `IgcNasError` where it cannot be written."""
    write_whole(path, dashboard(study))


def dashboard(study: Study) -> str:
    """A study as one HTML page that opens from a file, without a network."""
    scripts: tuple[str, ...] = ()
    if study.candidates:
        from plotly.offline import get_plotlyjs

        scripts = (get_plotlyjs(), asset("page.js"))
        known = knowledge_view(study)
        body = _plots(study, known) + _table(study) + _data(study, known)
    else:
        body = _nothing_yet(study)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_policy(scripts)}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{plain(study.spec.name)} · igc-nas</title>\n<style>{asset('page.css')}</style>\n</head>\n"
        "<body>\n<main>\n"
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
    if is_synthetic(study.spec.dataset):
        return (
            '<p class="banner" role="alert"><strong>SYNTHETIC shapes: these errors say nothing about CIFAR-10.'
            "</strong> The images are drawn by igc-nas itself, for trying things out.</p>\n"
        )
    if study.spec.dataset not in OFFICIAL:
        return (
            '<p class="banner" role="alert"><strong>UNOFFICIAL data: these files are not the published ones.</strong> '
            f"The dataset is recorded as <bdi>{plain(study.spec.dataset)}</bdi>.</p>\n"
        )
    return ""


def _header(study: Study) -> str:
    spec = study.spec
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in _question(study))
    cards = "".join(f"<li><strong>{value}</strong><span>{name}</span></li>\n" for name, value in _numbers(study))
    return (
        f'<header>\n<p class="kind">igc-nas study</p>\n<h1><bdi>{plain(spec.name)}</bdi></h1>\n'
        f"<p>Errors are those of a short proxy training on <bdi>{plain(spec.dataset)}</bdi>"
        f"{' (synthetic)' if is_synthetic(study.spec.dataset) else ''}, on held-out training images.</p>\n</header>\n"
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
        ("Budget", budget_text(study)),
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
    if recipe.rungs:
        facts.insert(5, ("Rungs", _rungs_text(study)))
    trained = sorted({c.score.conditions.device for c in study.candidates})
    if trained:
        more = f" and {len(trained) - 3} more" if len(trained) > 3 else ""
        facts.append(("Trained on", ", ".join(f"<bdi>{plain(device)}</bdi>" for device in trained[:3]) + more))
    return [*facts, ("Sampler", f"{spec.sampler}, seed {spec.seed}")]


def _rungs_text(study: Study) -> str:
    """Where trainings are looked at on their way, and how many were stopped there."""
    recipe, stop = study.spec.recipe, study.spec.stop
    *firsts, last = (f"{samples:,}" for samples in recipe.rungs)
    at = f"after {' and '.join(filter(None, (', '.join(firsts), last)))} images of {recipe.samples:,}"
    if not stop:
        return f"{at}; nothing is stopped there"
    return (
        f"{at}; a training is stopped there where its chance to end on the front is below {stop:g}: "
        f"{_stopped(study):,} of {study.ended:,} were"
    )


def _plots(study: Study, known: KnowledgeView | None) -> str:
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
        f"{_curves_text(study)}{_knowledge_text(study, known)}"
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
        "A network is measured in the form that it runs fastest in, with some of its chains multiplied out: what that "
        "form holds and executes stands beside its latency; parameters and MACs elsewhere are the architecture's own."
        if study.spec.latency.forms != "factored"
        else "Networks were measured factored, as they are written.",
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


def _curves_text(study: Study) -> str:
    """The trainings on their way, where the recipe looks at them there."""
    if not study.spec.recipe.rungs:
        return ""
    ends = "A dotted one that ends in a cross was stopped there. " if _stopped(study) else ""
    return (
        '<section aria-labelledby="curves">\n<h2 id="curves">Trainings on their way</h2>\n'
        f"<p>The held-out error of each training at its rungs and at its end. {ends}A rung may be scored on fewer "
        'images than the end.</p>\n<div id="igc-curves" class="plot middle"></div>\n</section>\n'
    )


def _knowledge_text(study: Study, known: KnowledgeView | None) -> str:
    """How well the sampler's surrogate predicts what was observed."""
    head = '<section aria-labelledby="knowledge">\n<h2 id="knowledge">What the surrogate knows</h2>\n'
    if known is None:
        n = len(study.candidates)
        few = f"{n} completed trial{'s' * (n != 1)}: too few to tell how well the errors can be predicted."
        return f"{head}<p>{few}</p>\n</section>\n"
    return (
        f"{head}<p>The model of the errors that <code>--sampler known-cost</code> asks, judged by the completed "
        f"trials: {plain(known.sentence)}.</p>\n"
        '<div id="igc-knowledge" class="plot middle"></div>\n</section>\n'
    )


def _stopped(study: Study) -> int:
    return study.ended - len(study.candidates)


def _table(study: Study) -> str:
    pick = study.pick("knee")
    rows = "".join(_table_row(candidate, candidate.trial == pick.trial) for candidate in study.front())
    name = plain(shlex.quote(study.spec.name))
    heads = ("trial", "id", "error", "parameters", "MACs", "latency [95 %]", "runs as", "architecture")
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
        latency_text(candidate) + noisy,
        plain(deployed_text(candidate)),
        f"<code>{plain(candidate.arch)}</code>",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _nothing_yet(study: Study) -> str:
    return (
        "<section>\n<h2>No completed trial yet</h2>\n"
        "<p>There is nothing to draw. Start or continue the search with</p>\n"
        f"<pre><code>{plain(search_command(study))}</code></pre>\n</section>\n"
    )


def _first_axes(study: Study) -> tuple[str, str]:
    """Across and up, to begin with: the study's second objective and its first."""
    return study.spec.objectives[1], study.spec.objectives[0]


def _solid_objectives(study: Study) -> tuple[str, ...]:
    names = study.spec.objectives
    return names if len(names) == 3 else ("error", "params", "latency")


def _data(study: Study, known: KnowledgeView | None) -> str:
    """What the script draws, as JSON that cannot end the element it stands in."""
    text = json.dumps(_payload(study, known), separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="igc-data">{text}</script>\n'


def _payload(study: Study, known: KnowledgeView | None) -> dict[str, Any]:
    flat = front_view(study, _first_axes(study))
    solid_names = _solid_objectives(study)
    solid = replace(flat, objectives=solid_names, front=front_rows(study, solid_names))
    points = flat.points
    figures = {"volume": hypervolume_figure(hypervolume_view(study))}
    if study.spec.recipe.rungs:
        figures["curves"] = curves_figure(curves_view(study))
    if known:
        figures["knowledge"] = knowledge_figure(known)
    return {
        "points": points.columns | {"low": points.low_ms, "high": points.high_ms, "hover": points.hover},
        "papers": flat.papers.columns | {"hover": flat.papers.hover},
        "pairs": _pairs(study, flat),
        "scales": {name: colour_axis(name, column) for name, column in points.columns.items()},
        "bars": BAR_STYLE,
        "flat": traces(flat),
        "solid": {"axes": solid_names, "traces": traces(solid), "layout": layout(solid_names, {})},
        "figures": {name: figure.to_plotly_json() for name, figure in figures.items()},
    }


def _pairs(study: Study, view: FrontView) -> dict[str, dict[str, Any]]:
    """For every two axes, in both orders: the layout, and the rows of their front from left to right."""
    found = {}
    for x, y in itertools.combinations(OBJECTIVES, 2):
        front = front_rows(study, (x, y))
        found[f"{x},{y}"] = {"front": front, "layout": layout((x, y), view.limits)}
        found[f"{y},{x}"] = {"front": front[::-1], "layout": layout((y, x), view.limits)}
    return found


def asset(name: str) -> str:
    """The text of page.js or page.css, which lie beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
