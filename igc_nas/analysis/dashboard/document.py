"""The HTML document: the studies in words, the elements that the script fills, the scripts, and their data.

Its content security policy allows only the two scripts in it (plotly.js and the page's own), by their hashes. Without
JavaScript the page still shows the front as a table.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from igc_nas.analysis.dashboard.payload import CachedStudy, payload
from igc_nas.analysis.dashboard.sections import (
    banners,
    cards,
    expected_html,
    finals_html,
    front_html,
    heading,
    nothing_yet,
    question,
    warnings,
)
from igc_nas.io.files import write_whole
from igc_nas.io.text import plain
from igc_nas.study.study import Study

SCRIPTS = (
    "data",
    "theme",
    "points",
    "front",
    "finals",
    "figures",
    "importance",
    "diagram",
    "detail",
    "table",
    "live",
    "main",
)
"""The files of the page's own script, in the order in which they are joined."""


def write_dashboard(studies: Sequence[Study], path: Path) -> None:
    """Write the page of one or more studies atomically. Raises `IgcNasError` if the file cannot be written."""
    write_whole(path, dashboard(studies))


def dashboard(studies: Sequence[Study]) -> str:
    """One or more studies as one HTML page that opens from a file, without a network."""
    studies = [CachedStudy.of(study) for study in studies]
    if any(study.candidates for study in studies):
        return document(studies, data_element(as_json(payload(studies))), scripts())
    return document(studies, "", ())


def document(studies: Sequence[Study], data: str, scripts: Sequence[str], *, live: bool = False) -> str:
    """The HTML page. `data` is the element that its script reads; a `live` page polls its server for changes."""
    title = ", ".join(plain(study.spec.name) for study in studies)
    summaries = "".join(
        f'<section class="study" data-study="{place}">\n{heading(study) if len(studies) > 1 else ""}'
        f"{cards(study)}{question(study)}{'' if study.candidates else nothing_yet(study)}"
        f"{expected_html(study)}{finals_html(study)}</section>\n"
        for place, study in enumerate(studies)
    )
    tables = "".join(front_html(study) for study in studies if study.candidates)
    body = (
        f"{asset('body.htm')}<noscript>\n<p>The plots need JavaScript; these tables do not.</p>\n{tables}</noscript>\n"
        if scripts
        else ""
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(scripts, live=live)}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{ICON if live else ''}<title>{title} · igc-nas</title>\n<style>{asset('page.css')}</style>\n</head>\n"
        f"<body{' data-live' if live else ''}>\n<main>\n"
        f'{banners(studies)}<header>\n<p class="kind">igc-nas · {"studies" if len(studies) > 1 else "study"}</p>\n'
        f"<h1>{' <span>and</span> '.join(f'<bdi>{plain(study.spec.name)}</bdi>' for study in studies)}</h1>\n"
        f'</header>\n<div id="igc-live"></div>\n{warnings(studies)}{summaries}{body}{data}</main>\n'
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


ICON = '<link rel="icon" href="data:,">\n'  # without it browsers request /favicon.ico


def policy(scripts: Iterable[str], *, live: bool = False) -> str:
    """The content security policy: only these scripts run, and only a `live` page may fetch, from its own server."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
    rules = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    connect = "; connect-src 'self'" if live else ""
    return f"{rules}{connect}; base-uri 'none'; form-action 'none'"


def data_element(data: str) -> str:
    """The element with the script's data: JSON, escaped so that it cannot close the element."""
    text = data.replace("<", "\\u003c")
    return f'<script type="application/json" id="igc-data">{text}</script>\n'


def as_json(data: Any) -> str:
    """JSON on one line. Raises `ValueError` for NaN or infinity, which are not valid JSON."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def scripts() -> tuple[str, ...]:
    """plotly.js and the page's own script."""
    from plotly.offline import get_plotlyjs

    own = "".join(asset(f"{name}.js") for name in SCRIPTS)
    return get_plotlyjs(), f'"use strict";\n{own}'


def asset(name: str) -> str:
    """The text of a file in this folder."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
