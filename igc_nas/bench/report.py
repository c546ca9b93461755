"""The report of a benchmark: rows with one ratio each, their geometric mean and minimum, and the conditions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from igc_nas.arch.config import ArchConfig
from igc_nas.io.console import table_lines
from igc_nas.io.files import read_text
from igc_nas.io.records import parse_toml

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """`rows` have `name`, `group`, `ratio` (speed-up) and columns of the benchmark's own."""

    title: str
    rows: tuple[Row, ...]
    conditions: Mapping[str, Any]
    main: tuple[str, ...] = ()
    """Groups over which `geomean` and `min` are taken; none: all."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def main_ratios(self) -> list[float]:
        """The ratios of the main groups."""
        return [row["ratio"] for row in self.rows if not self.main or row["group"] in self.main]

    def groups(self) -> dict[str, tuple[float, float, int]]:
        """(geometric mean, minimum, count) of the ratios of each group."""
        by_group: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            by_group[row["group"]].append(row["ratio"])
        return {group: (geometric_mean(ratios), min(ratios), len(ratios)) for group, ratios in by_group.items()}

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        ratios = self.main_ratios()
        return {
            "bench": self.title,
            "geomean": geometric_mean(ratios),
            "min": min(ratios),
            "groups": {
                group: {"geomean": mean, "min": least, "n": count}
                for group, (mean, least, count) in self.groups().items()
            },
            **self.extra,
            "rows": [dict(row) for row in self.rows],
            "conditions": dict(self.conditions),
        }

    @staticmethod
    def _cells(row: Row, columns: list[str]) -> list[str]:
        return [row["name"], row["group"], *(_cell(row.get(column)) for column in columns), _cell(row["ratio"])]

    def lines(self, width: int | None = None) -> list[str]:
        """The report as text: a table that fits `width`, the means of its groups, the conditions."""
        columns = [key for key in self.rows[0] if key not in ("name", "group", "ratio")]
        titles = ["name", "group", *columns, "times"]
        rows = [self._cells(row, columns) for row in self.rows]
        lines = [self.title, "", *table_lines(titles, rows, ("name", "group"), width)]
        lines.append("")
        ratios = self.main_ratios()
        means = {**self.groups(), "main groups": (geometric_mean(ratios), min(ratios), len(ratios))}
        for group, (mean, least, count) in means.items():
            lines.append(f"{group:<28} geometric mean {mean:5.2f}  least {least:5.2f}  n {count}")
        lines += [f"{key}: {_cell(value)}" for key, value in self.extra.items()]
        lines += ["", ", ".join(f"{key} {value}" for key, value in self.conditions.items() if value is not None)]
        return lines


def architectures() -> dict[str, ArchConfig]:
    """The benchmark architectures by name, from architectures.toml."""
    path = Path(__file__).with_name("architectures.toml")
    return {name: ArchConfig.parse(arch, name) for name, arch in parse_toml(read_text(path), path.name).items()}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return "" if value is None else str(value)
