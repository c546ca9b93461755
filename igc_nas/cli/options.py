"""Types of option values, and the options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from igc_nas.cli.output import say
from igc_nas.errors import UsageError
from igc_nas.io.files import user_path
from igc_nas.io.text import nearest
from igc_nas.io.units import parse_count, parse_count_range, parse_ms, parse_seconds
from igc_nas.study.names import STORAGE


class Quantity(click.ParamType[Any]):
    """A number with its unit: a count, a latency or a duration; `parse` raises `UsageError` for other text.

    `unit` is that of a number in Python.
    """

    def __init__(self, name: str, parse: Callable[[str], Any], unit: str = "") -> None:
        self.name = name
        self.unit = unit
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse `value`, or fail as a click type does."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except UsageError as error:
            self.fail(f"{error.message}: {error.hint}", param, ctx)


COUNT, MS = Quantity("count", parse_count), Quantity("time", parse_ms, "ms")
SECONDS = Quantity("duration", parse_seconds)
RANGE = Quantity("range", parse_count_range)


class Choice(click.Choice[str]):
    """A choice among words; the error for another word names the nearest of them.

    `renamed` maps old spellings to the current words.
    """

    def __init__(self, choices: Iterable[str], renamed: Mapping[str, str] | None = None) -> None:
        super().__init__(tuple(choices))
        self.renamed = renamed or {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word in its current spelling."""
        if value in self.renamed:
            say(f"{value} is now {self.renamed[value]}")
        return super().convert(self.renamed.get(value, value), param, ctx)

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """All words, and the nearest one."""
        near = nearest(str(value), self.choices, "")
        text = super().get_invalid_choice_message(value, ctx)
        return f"{text.removesuffix('.')}; {near}" if near else text


class UserPath(click.ParamType[Path]):
    """A path with a leading `~` expanded: shells do not expand that of `--option=~/x`, nor of a variable's value."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, with the user's home in place of `~`."""
        return user_path(os.fsdecode(value))


FILE = UserPath()


class Grouped(click.Command):
    """A command whose `--help` lists its options under titles: `groups` maps a title to parameters' names."""

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]], **more: Any) -> None:
        super().__init__(*args, **more)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group, then the other options."""
        records = {p.name: record for p in self.get_params(ctx) if (record := p.get_help_record(ctx)) is not None}
        for title, names in self.groups.items():
            if rows := [records.pop(name) for name in names if name in records]:
                with formatter.section(title):
                    formatter.write_dl(rows)
        with formatter.section("Other options"):
            formatter.write_dl(list(records.values()))


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
studies_dir = click.option(
    "--studies-dir", "root", type=FILE, default=Path("studies"), show_default=True, help="Folder that holds studies."
)
data_dir_option = click.option(
    "--data-dir", type=FILE, envvar="IGC_NAS_DATA", help="Folder of the datasets. [default: your cache folder]"
)
classes_option = click.option("--classes", type=click.IntRange(1, 1_000_000), help="Number of classes.")
RUNTIMES = ["eager", "compile", "onnxruntime", "tensorrt", "openvino", "native"]
runtime_option = click.option(
    "--latency-runtime",
    "--runtime",
    "latency_runtime",
    type=Choice(RUNTIMES),
    metavar="RUNTIME",
    help=f"Runtime of latency measurements: {', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}. [default: native on a CPU "
    "with a C compiler, else eager]",
)
latency_dtype_option = click.option(
    "--latency-dtype",
    type=Choice(["float32", "bfloat16", "float16"]),
    help="Dtype of latency measurements, on a GPU. [default: float32, whose products are in TF32 there]",
)
latency_forms_option = click.option(
    "--latency-forms",
    type=Choice(["within-budget", "any", "factored"]),
    help="Forms allowed in deployment: within the parameter budget, any, or factored only. [default: factored with the "
    "runtime native, else within-budget]",
)
storage_option = click.option(
    "--storage",
    envvar=STORAGE,
    help="Database of the study: sqlite:///path or postgresql://user@host/name. [default: study.db in its folder]",
)
side_option = click.option(
    "--image-size", type=click.IntRange(1, 4096), metavar="PIXELS", help="Side of the images, instead of the network's."
)
image_size_option = click.option(
    "--image-size",
    type=click.IntRange(1, 4096),
    metavar="PIXELS",
    help="Side to which images of a folder are resized and cropped. [default: what the space or network reads: 32]",
)
deterministic_option = click.option(
    "--deterministic",
    is_flag=True,
    help="On a GPU: results that are equal bit for bit, by slower kernels; without it they differ in rounding. "
    "(A CPU's are equal anyway.)",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True)
class RecipeRequest:
    """The options of `recipe_options`, one field each. None: not given."""

    preset: str | None
    """`quick` or `full`."""
    epochs: int | None
    """In total."""
    batch: int | None
    """Images per step."""
    lr: float | None
    """Peak learning rate."""
    label_smoothing: float | None
    recipe: tuple[str, ...]
    """`KEY=VALUE` texts."""
    dtype: str
    """A dtype, or `auto`."""
    forms: str
    """`fastest` or `factored`."""


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a recipe for a training to the end (see `igc_nas.cli.recipes`)."""
    options = (
        click.option(
            "--preset",
            type=Choice(["quick", "full"]),
            help="The recipe: 10 epochs, or 200 with cutout. [default: quick on a CPU, full on a GPU]",
        ),
        click.option("--epochs", type=click.IntRange(1, 10_000), help="Epochs in total. [default: the preset's]"),
        click.option("--batch", type=click.IntRange(1, 65_536), help="Images per step. [default: 128]"),
        click.option(
            "--lr", type=click.FloatRange(0, 100, min_open=True), help="Peak learning rate. [default: the preset's]"
        ),
        click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), help="[default: 0.1]"),
        click.option(
            "--recipe",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change the recipe: cutout=16, mixup=0.2, weight_decay=1e-4, warmup=0.1, average=0.999, crop=4.",
        ),
        click.option(
            "--dtype", type=Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
        ),
        click.option(
            "--forms",
            type=Choice(["fastest", "factored"]),
            default="fastest",
            show_default=True,
            help="Train networks in the form that is fastest on the device, or in factored form.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
