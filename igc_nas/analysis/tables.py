"""Candidates as a pandas table with one flat row each, for notebooks and CSV."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from igc_nas.io.text import printable
from igc_nas.study.expected import Expected
from igc_nas.study.records import Candidate

if TYPE_CHECKING:
    import pandas as pd

    from igc_nas.analysis.baselines import Standing


def frame(candidates: Iterable[Candidate], expected: Mapping[int, Expected] | None = None) -> pd.DataFrame:
    """One row per candidate: `igc_nas.frame(igc_nas.load_study("igc_cifar10_2m").candidates)`.

    Errors are shares (0 to 1), latencies milliseconds, `weight_bytes` and counts those of one network; MACs, FLOPs and
    activations are for one image. `expected` are a study's predicted errors (`Study.expected`), which get columns with
    their 95 % intervals. For no candidates the columns alone.
    """
    return _table([candidate_row(candidate) for candidate in candidates], COLUMNS, expected or {})


def csv_text(
    candidates: Iterable[Candidate],
    baselines: Iterable[Standing] = (),
    expected: Mapping[int, Expected] | None = None,
) -> str:
    """The table as CSV, then the baselines, by name, with the trials that dominate them.

    Text from a study's files is made printable and cannot start a spreadsheet formula.
    """
    rows = [baseline_row(standing) for standing in baselines]
    for row in rows:
        row["dominated_by"] = " ".join(map(str, row["dominated_by"]))
    listed = [candidate_row(candidate) | {"baseline": "", "dominated_by": ""} for candidate in candidates]
    table = _table([*listed, *rows], [*COLUMNS, "baseline", "dominated_by"], expected or {})
    for name in ("id", "form", "dataset", "summary", "baseline"):
        table[name] = [_cell(text) for text in table[name]]
    return table.to_csv(index=False, lineterminator="\n")


def _table(rows: list[dict[str, Any]], columns: list[str], expected: Mapping[int, Expected]) -> pd.DataFrame:
    """The columns of rows; where errors are predicted, these and their intervals behind the measured ones."""
    import pandas as pd

    table = pd.DataFrame([{key: row[key] for key in columns} for row in rows], columns=columns)
    if expected:
        found = [None if row.get("baseline") else expected.get(row["trial"]) for row in rows]
        for place, name in enumerate(("error", "low", "high"), start=1 + columns.index("error")):
            table.insert(place, f"predicted_{name}", [getattr(each, name) if each else None for each in found])
    return table


def _cell(text: str) -> str:
    """Text for a CSV cell: an apostrophe before what a spreadsheet would read as a formula (CSV injection, OWASP).

    And before what it would read as a number: some ids, which are 12 hex digits, look like `649351836661` or `0130e9`.
    """
    shown = printable(text, lines=False)
    return f"'{shown}" if shown.lstrip().startswith(("=", "+", "-", "@")) or _NUMBER.fullmatch(shown.strip()) else shown


_NUMBER = re.compile(r"[0-9.,]+(e[0-9]+)?|inf(inity)?|nan", re.IGNORECASE)


COLUMNS = [
    "trial",
    "id",
    "error",
    "params",
    "macs",
    "flops",
    "activations",
    "latency_ms",
    "latency_low_ms",
    "latency_high_ms",
    "latency_raw_ms",
    "latency_noisy",
    "form",
    "deployed_params",
    "deployed_macs",
    "weight_bytes",
    "dataset",
    "train_s",
    "summary",
]


def baseline_row(standing: Standing) -> dict[str, Any]:
    """A baseline as one flat row: its name, a candidate's keys, and the trials of the front that dominate it."""
    return {
        "baseline": standing.name,
        **candidate_row(standing.candidate),
        "dominated_by": list(standing.dominated_by),
    }


def candidate_row(candidate: Candidate) -> dict[str, Any]:
    """A candidate as one flat row, for `front --json` and `--csv`."""
    return {
        "trial": candidate.trial,
        "id": candidate.id,
        "error": candidate.score.error,
        **candidate.cost.as_dict(),
        "latency_ms": candidate.latency.normalised_ms,
        "latency_low_ms": candidate.latency.normalised_interval_ms[0],
        "latency_high_ms": candidate.latency.normalised_interval_ms[1],
        "latency_raw_ms": candidate.latency.median_ms,
        "latency_noisy": candidate.latency.noisy,
        "form": candidate.latency.form,
        "deployed_params": candidate.deployed_params,
        "deployed_macs": candidate.deployed_macs,
        "weight_bytes": candidate.latency.weight_bytes or 4 * candidate.cost.params,
        "dataset": candidate.score.dataset,
        "train_s": candidate.score.train_s,
        "summary": str(candidate.arch),
        "arch": candidate.arch.to_dict(),
    }
