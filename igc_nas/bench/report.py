"""What a benchmark says: rows with a ratio each, their geometric mean and the least of them, under which conditions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from igc_nas.arch.config import ArchConfig
from igc_nas.io.files import read_text
from igc_nas.io.records import parse_toml

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """`rows` hold `name`, `group`, `ratio` (how many times faster) and what a bench adds. `main` groups are judged."""

    title: str
    rows: tuple[Row, ...]
    conditions: Mapping[str, Any]
    main: tuple[str, ...] = ()
    """Groups that count for `geomean` and `min`; none: all."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def judged(self) -> list[float]:
        """The ratios that count."""
        return [row["ratio"] for row in self.rows if not self.main or row["group"] in self.main]

    def groups(self) -> dict[str, tuple[float, float, int]]:
        """(geometric mean, minimum, count) of the ratios of each group."""
        found: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            found[row["group"]].append(row["ratio"])
        return {group: (geomean(ratios), min(ratios), len(ratios)) for group, ratios in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        ratios = self.judged()
        return {
            "bench": self.title,
            "geomean": geomean(ratios),
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

    def lines(self) -> list[str]:
        """For people: a table, the means of its groups, the conditions."""
        columns = [key for key in self.rows[0] if key not in ("name", "group", "ratio")]
        table = [["name", "group", *columns, "times"]]
        table += [self._cells(row, columns) for row in self.rows]
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = [self.title, ""]
        for line in table:
            texts = (cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True))
            numbers = (cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True))
            lines.append("  ".join((*texts, *numbers)))
        lines.append("")
        for group, (mean, least, count) in self.groups().items():
            lines.append(f"{group:<28} geometric mean {mean:5.2f}  least {least:5.2f}  n {count}")
        ratios = self.judged()
        lines.append(f"{'judged':<28} geometric mean {geomean(ratios):5.2f}  least {min(ratios):5.2f}  n {len(ratios)}")
        lines += [f"{key}: {_cell(value)}" for key, value in self.extra.items()]
        lines += ["", ", ".join(f"{key} {value}" for key, value in self.conditions.items() if value is not None)]
        return lines


def architectures() -> dict[str, ArchConfig]:
    """The benchmark architectures by name, as the package's file has them."""
    path = Path(__file__).with_name("architectures.toml")
    return {name: ArchConfig.parse(arch, name) for name, arch in parse_toml(read_text(path), path.name).items()}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return "" if value is None else str(value)


def geomean(ratios: list[float]) -> float:
    """The geometric mean, which is the mean for ratios."""
    return float(np.exp(np.mean(np.log(ratios))))
