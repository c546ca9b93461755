"""`igc-nas front`: the Pareto front of a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from igc_nas.cli.loading import load
from igc_nas.cli.options import as_json, storage_option, studies_dir
from igc_nas.cli.output import put_json, say
from igc_nas.errors import UsageError

if TYPE_CHECKING:
    from igc_nas.study.study import Study


@click.command()
@click.argument("study")
@click.option("--objectives", help="Error alone, or two or three objectives. [default: the study's own]")
@as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@storage_option
@studies_dir
def front(study: str, objectives: str | None, as_json: bool, as_csv: bool, storage: str | None, root: Path) -> None:
    """Print the Pareto front of STUDY."""
    from igc_nas.study.objectives import parse_objectives

    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other")
    loaded = load(study, root, storage)
    names = parse_objectives(objectives) if objectives else loaded.spec.front_objectives
    print_front(loaded, names, "json" if as_json else "csv" if as_csv else "table")


def print_front(study: Study, objectives: tuple[str, ...], output: Literal["table", "json", "csv"]) -> None:
    """Print a study's front by these objectives."""
    from igc_nas.analysis.baselines import baselines_sentence, standings
    from igc_nas.analysis.tables import baseline_row, candidate_row
    from igc_nas.analysis.words import front_end_words

    members, beside = study.front(objectives), standings(study, objectives)
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
                "front_end": front_end_words(study),
                "completed": len(study.candidates),
                "candidates": [candidate_row(c) for c in members],
                "baselines": [baseline_row(standing) for standing in beside],
            }
        )
    elif output == "csv":
        from igc_nas.analysis.tables import csv_text

        click.echo(csv_text(members, beside), nl=False)
    elif not members and not beside:
        say(f"{study.spec.name} has no completed trial yet", f"igc-nas search --study {study.spec.name}")
    else:
        from igc_nas.cli.display import baselines_table, front_table
        from igc_nas.io.console import console

        console().print(front_table(study, members, objectives))
        if beside:
            console().print(baselines_table(beside))
        if study.baselines:
            say(baselines_sentence(study, objectives) or "")
        if end := front_end_words(study):
            say(end)
