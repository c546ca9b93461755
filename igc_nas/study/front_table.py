"""Candidates as a table of text: for a terminal of any width, for Markdown, LaTeX and notebooks.

Numbers keep their units and their decimals align: a count has two decimals and its suffix, a time three. A terminal
gets as many columns as fit, the most important first; no cell is ever folded or cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from types import MappingProxyType
from typing import TYPE_CHECKING

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.stages import STAGE_OF_UNIT
from igc_nas.io.text import plain, printable, wrapped
from igc_nas.io.units import fixed_count
from igc_nas.study.records import Candidate, Latency

if TYPE_CHECKING:
    from igc_nas.study.study import Study

NOISY = "*"
"""Marks a noisy latency in a table."""


@dataclass(frozen=True)
class Column:
    """A column: its title, and a candidate's cell in it."""

    title: str
    of: Callable[[Candidate], str]
    left: bool = False


def _interval(latency: Latency) -> str:
    low, high = latency.normalised_interval_ms
    return f"{low:.3f}-{high:.3f}"


def low_quantile_ms(latency: Latency) -> float:
    """The 5th percentile of a latency's samples, normalised: other processes raise it far less than the median."""
    samples = latency.samples_ms
    low = quantiles(samples, n=20, method="inclusive")[0] if len(samples) > 1 else latency.median_ms
    return low * latency.normalised_ms / latency.median_ms


COLUMNS = {
    "trial": Column("trial", lambda c: str(c.trial)),
    "error": Column("error", lambda c: f"{100 * c.score.error:.2f} %"),
    "params": Column("params", lambda c: fixed_count(c.cost.params)),
    "macs": Column("MACs", lambda c: fixed_count(c.cost.macs)),
    "latency": Column("latency", lambda c: f"{c.latency.normalised_ms:.3f} ms{NOISY if c.latency.noisy else ' '}"),
    "form": Column("form", lambda c: c.latency.form, left=True),
    "deployed": Column("deployed", lambda c: fixed_count(c.deployed_params)),
    "id": Column("id", lambda c: c.id, left=True),
    "interval": Column("95 % interval", lambda c: _interval(c.latency)),
    "low": Column("5 % quantile", lambda c: f"{low_quantile_ms(c.latency):.3f} ms"),
    "weights": Column("weights", lambda c: f"{(c.latency.weight_bytes or 4 * c.cost.params) / 1e6:.2f} MB"),
    "architecture": Column("architecture", lambda c: str(c.arch), left=True),
}
ALWAYS = ("trial", "error", "params", "macs", "latency")
"""Columns that every terminal gets; 40 characters hold them."""
WANTED = ("form", "architecture", "deployed", "id", "interval", "low", "weights")
"""The others, the first one that fits first."""


def expected_columns(study: Study) -> dict[str, Column]:
    """The columns of a study with predicted errors: at its target length, and as observed after a longer training."""

    def predicted(candidate: Candidate) -> str:
        expected = study.expected.get(candidate.trial)
        return f"{100 * expected.error:.2f} %" if expected else "-"

    def observed(candidate: Candidate) -> str:
        longer = study.longer.get(candidate.trial)
        return f"{100 * longer.score.error:.2f} %" if longer else "-"

    target = study.spec.target
    if target is None or not study.expected:
        return {}
    return {
        "predicted": Column(f"at {fixed_count(target.images)}", predicted),
        "observed": Column(f"at {fixed_count(target.recipe.samples)}", observed),
    }


def table_lines(
    members: Sequence[Candidate], width: int | None, more: Mapping[str, Column] = MappingProxyType({})
) -> list[str]:
    """A title line, and a line for each candidate; with a `width` only the columns that fit.

    `more` columns stand before that of the error, and are always shown. Form and deployed parameters are left out where
    every member was measured as it is.
    """
    columns = {"trial": COLUMNS["trial"], **more, **COLUMNS}
    if all(member.latency.form == "factored" for member in members):
        columns = {name: column for name, column in columns.items() if name not in ("form", "deployed")}
    cells = {
        name: [column.title, *(printable(column.of(member), lines=False) for member in members)]
        for name, column in columns.items()
    }
    widths = {name: max(map(len, texts)) for name, texts in cells.items()}
    shown, gap = _fitting(widths, width, (*ALWAYS, *more))
    padded = [
        [text.ljust(widths[name]) if columns[name].left else text.rjust(widths[name]) for text in cells[name]]
        for name in shown
    ]
    return [(" " * gap).join(row).rstrip() for row in zip(*padded, strict=True)]


def _fitting(widths: Mapping[str, int], width: int | None, always: Sequence[str]) -> tuple[list[str], int]:
    """(the columns that fit, the blanks between them)."""
    if width is None:
        return list(widths), 2
    least = sum(widths[name] for name in always)
    gap = 2 if least + 2 * (len(always) - 1) <= width else 1
    used, shown = least + gap * (len(always) - 1), set(always)
    for name in WANTED:
        if name in widths and used + gap + widths[name] <= width:
            shown.add(name)
            used += gap + widths[name]
    return [name for name in widths if name in shown], gap


PUBLISHED = ("trial", "id", "error", "params", "macs", "latency", "form", "deployed")


def markdown_lines(
    members: Iterable[Candidate],
    baselines: Mapping[str, Candidate] | None = None,
    more: Mapping[str, Column] = MappingProxyType({}),
) -> list[str]:
    """The table in Markdown; `baselines` by name below it, `more` columns behind the ids."""
    columns = _published_columns(more)
    rows = [
        [":--" if column.left else "--:" for column in columns],
        *_published_rows(columns, members, baselines or {}),
    ]
    return markdown_table([column.title for column in columns], rows)


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first of `rows` is that of the alignments."""
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (titles, *rows)]


def latex_lines(
    members: Iterable[Candidate],
    baselines: Mapping[str, Candidate] | None = None,
    more: Mapping[str, Column] = MappingProxyType({}),
) -> list[str]:
    """The table as a LaTeX `tabular` (with the rules of the package booktabs), as `markdown_lines`."""
    columns = _published_columns(more)
    rows = _published_rows(columns, members, baselines or {})
    body = [" & ".join(map(_latex, row)) + r" \\" for row in [[column.title for column in columns], *rows]]
    layout = "".join("l" if column.left else "r" for column in columns)
    return [
        f"\\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        body[0],
        r"\midrule",
        *body[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _published_columns(more: Mapping[str, Column]) -> list[Column]:
    names = {name: COLUMNS[name] for name in PUBLISHED}
    return [names.pop("trial"), names.pop("id"), *more.values(), *names.values()]


def _published_rows(
    columns: Sequence[Column], members: Iterable[Candidate], baselines: Mapping[str, Candidate]
) -> list[list[str]]:
    rows = [[_published(column, member) for column in columns] for member in members]
    named = [[name, *(_published(column, c) for column in columns[1:])] for name, c in baselines.items()]
    return rows + named


def html_table(members: Iterable[Candidate]) -> str:
    """The table as HTML, for a notebook."""
    columns = [COLUMNS[name] for name in (*PUBLISHED, "architecture")]
    style = [f' style="text-align:{"left" if column.left else "right"}"' for column in columns]
    head = "".join(f"<th{s}>{plain(c.title)}</th>" for c, s in zip(columns, style, strict=True))
    rows = (
        "<tr>"
        + "".join(f"<td{s}>{plain(_published(c, m))}</td>" for c, s in zip(columns, style, strict=True))
        + "</tr>"
        for m in members
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _published(column: Column, member: Candidate) -> str:
    return printable(column.of(member), lines=False).rstrip()


def _latex(text: str) -> str:
    return "".join("\\" + letter if letter in "%&#_$" else "" if letter in "\\{}~^" else letter for letter in text)


SE = "se: squeeze-excite to 1/n of the channels"
COMMON = "stem's channels | a stage each: unit and its letters, k kernel, x blocks, s stride, res: shortcuts"


def legend_lines(archs: Iterable[ArchConfig], width: int) -> list[str]:
    """What the letters of these architectures mean, on lines of at most `width`."""
    return wrapped([legend(archs)], width)


def legend(archs: Iterable[ArchConfig]) -> str:
    """What the letters of these architectures mean: `architecture: stem's channels | ...`."""
    stages = [stage for arch in archs for stage in arch.stages]
    se = [SE] if any(stage.se for stage in stages) else []
    return f"architecture: {'; '.join([units_legend(stage.unit for stage in stages), *se])}"


def units_legend(units: Iterable[str]) -> str:
    """What the letters of architectures of these units mean."""
    return "; ".join([COMMON, *(f"{unit}: {STAGE_OF_UNIT[unit].letters}" for unit in dict.fromkeys(units))])
