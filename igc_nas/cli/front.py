"""`igc-nas front`: the Pareto front of a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from igc_nas.cli.loading import load
from igc_nas.cli.options import Choice, as_json, storage_option, studies_dir
from igc_nas.cli.output import put, put_json, say
from igc_nas.errors import UsageError
from igc_nas.study.names import search_command
from igc_nas.study.objectives import OBJECTIVES

if TYPE_CHECKING:
    from igc_nas.study.records import Candidate
    from igc_nas.study.study import Study


@click.command()
@click.argument("study")
@click.option("--objectives", help="Error alone, or two or three objectives. [default: the study's own]")
@as_json
@click.option("--finals", is_flag=True, help="Print the networks that `igc-nas finals` has trained to the end.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@click.option("--latex", is_flag=True, help="Print a LaTeX tabular.")
@click.option("--sort", type=Choice(tuple(OBJECTIVES)), help="Sort by this, ascending. [default: first objective]")
@click.option("--top", type=click.IntRange(1), help="Print the first N members only.")
@click.option("--wide", is_flag=True, help="Print every column, the architectures too.")
@storage_option
@studies_dir
def front(
    study: str,
    objectives: str | None,
    as_json: bool,
    finals: bool,
    as_csv: bool,
    markdown: bool,
    latex: bool,
    sort: str | None,
    top: int | None,
    wide: bool,
    storage: str | None,
    root: Path,
) -> None:
    """Print the Pareto front of STUDY, or its finals.

    A line a member, with as many columns as the terminal holds.

    \b
    Examples:
      igc-nas front igc_cifar10_2m --sort params --top 5
      igc-nas front studies/mine --objectives error,macs --csv > front.csv
    """
    from igc_nas.study.objectives import parse_objectives

    outputs = {"json": as_json, "csv": as_csv, "markdown": markdown, "latex": latex}
    asked: list[Any] = [name for name, is_asked in outputs.items() if is_asked]
    if len(asked) > 1:
        raise UsageError(f"--{asked[0]} and --{asked[1]} exclude each other")
    loaded = load(study, root, storage)
    if finals:
        from igc_nas.cli.finals import print_finals

        if objectives or sort or top or wide or asked not in ([], ["json"], ["markdown"]):
            raise UsageError("--finals goes with --json or --markdown alone")
        print_finals(loaded, asked[0] if asked else "table")
        return
    names = parse_objectives(objectives) if objectives else loaded.spec.front_objectives
    print_front(loaded, names, asked[0] if asked else "table", sort=sort, top=top, wide=wide)


def print_front(
    study: Study,
    objectives: tuple[str, ...],
    output: Literal["table", "json", "csv", "markdown", "latex"],
    *,
    sort: str | None = None,
    top: int | None = None,
    wide: bool = False,
) -> None:
    """Print a study's front by these objectives: the first `top` members in the order of `sort`."""
    from igc_nas.analysis.baselines import baselines_sentence, standings
    from igc_nas.analysis.tables import baseline_row, candidate_row
    from igc_nas.analysis.words import front_end_words

    found, beside = study.front(objectives), standings(study, objectives)
    members = tuple(sorted(found, key=lambda c: study.values(c, (sort,))) if sort else found)[:top]
    if output == "json":
        spec = study.spec
        put_json(
            {
                "study": spec.name,
                "dataset": spec.dataset,
                "objectives": objectives,
                "hypervolume": study.hypervolume(objectives),
                "reference_point": [1.0] * len(objectives),
                "bounds": {name: spec.scale_bounds(name) if name in spec.bounds else None for name in objectives},
                "front_end": front_end_words(study, objectives),
                "completed": len(study.candidates),
                **_target_json(study),
                "candidates": [candidate_row(c) | _expected_json(study, c) for c in members],
                "baselines": [baseline_row(standing) for standing in beside],
            }
        )
    elif output == "csv":
        from igc_nas.analysis.tables import csv_text

        click.echo(csv_text(members, beside, study.expected), nl=False)
    elif output in ("markdown", "latex"):
        from igc_nas.study.front_table import expected_columns, latex_lines, markdown_lines

        lines = markdown_lines if output == "markdown" else latex_lines
        put(*lines(members, {standing.name: standing.candidate for standing in beside}, expected_columns(study)))
    elif not members and not beside:
        say(
            f"{study.spec.name} has no completed trial yet",
            search_command(study.folder, study.spec.name, study.storage),
        )
    else:
        from igc_nas.cli.display import baseline_lines, front_lines
        from igc_nas.io.console import terminal_width

        put(*front_lines(study, members, objectives, terminal_width(), wide=wide))
        if beside:
            put("", *baseline_lines(beside, terminal_width()))
        if study.baselines:
            say(baselines_sentence(study, objectives) or "")
        if end := front_end_words(study, objectives):
            say(end)


def _target_json(study: Study) -> dict[str, Any]:
    """What the errors of a front are predicted for; empty for a study without predicted errors."""
    target = study.spec.target
    return {"target_images": target.images} if target and study.expected else {}


def _expected_json(study: Study, candidate: Candidate) -> dict[str, Any]:
    """The predicted error of a member with its 95 % interval, and its error after a longer training, if it had one."""
    expected, longer = study.expected.get(candidate.trial), study.longer.get(candidate.trial)
    found: dict[str, Any] = {}
    if expected:
        found["predicted_error"] = {"error": expected.error, "low": expected.low, "high": expected.high}
    if longer:
        found["longer"] = {"trial": longer.trial, "images": longer.score.samples, "error": longer.score.error}
    return found
