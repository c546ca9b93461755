"""The kinds of values and the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from igc_nas.errors import UsageError
from igc_nas.io.units import parse_count, parse_ms, parse_seconds


class Quantity(click.ParamType[Any]):
    """A count, a latency or a duration with its unit."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse, or fail as click does."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except UsageError as error:
            self.fail(f"{error.message}: {error.hint}", param, ctx)


COUNT, MS, SECONDS = Quantity("count", parse_count), Quantity("time", parse_ms), Quantity("duration", parse_seconds)
FILE = click.Path(path_type=Path)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
studies_dir = click.option(
    "--studies-dir", "root", type=FILE, default=Path("studies"), show_default=True, help="Folder of your studies."
)
data_dir_option = click.option(
    "--data-dir", type=FILE, envvar="IGC_NAS_DATA", help="Folder of the datasets. [default: your cache folder]"
)
classes_option = click.option("--classes", type=click.IntRange(1, 1_000_000), help="Number of classes.")
runtime_option = click.option(
    "--latency-runtime",
    "--runtime",
    "latency_runtime",
    type=click.Choice(["eager", "compile", "onnxruntime", "openvino"]),
    help="What runs the network that is measured. [default: eager]",
)
latency_forms_option = click.option(
    "--latency-forms",
    type=click.Choice(["within-budget", "any", "factored"]),
    help="The forms in which a network may be deployed: those whose parameters obey the budget, any, or as written.",
)
storage_option = click.option(
    "--storage",
    envvar="IGC_NAS_STORAGE",
    help="The study's database: sqlite:///path or postgresql://user@host/name. [default: study.db in its folder]",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
