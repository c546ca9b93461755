"""Commands that only read: front, show, cost, space. They never load torch (but for `cost --check`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igc_nas.cli.loading import architecture, load
from igc_nas.cli.options import COUNT, as_json, classes_option, storage_option, studies_dir
from igc_nas.cli.output import put, put_json, say
from igc_nas.errors import IgcNasError, UsageError

if TYPE_CHECKING:
    from igc_nas.study.study import Study


@click.command()
@click.argument("study")
@click.option("--objectives", help="Another front than the study's own: two or three objectives.")
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
    names = parse_objectives(objectives) if objectives else loaded.spec.objectives
    print_front(loaded, names, "json" if as_json else "csv" if as_csv else "table")


def print_front(study: Study, objectives: tuple[str, ...], form: str) -> None:
    """Print a study's front as a table, JSON or CSV."""
    from igc_nas.analysis.tables import candidate_row

    members = study.front(objectives)
    if form == "json":
        spec = study.spec
        put_json(
            {
                "study": spec.name,
                "dataset": spec.dataset,
                "objectives": objectives,
                "hypervolume": study.hypervolume(objectives),
                "reference_point": [1.0] * len(objectives),
                "bounds": {name: spec.bounds.get(name) for name in objectives},
                "completed": len(study.candidates),
                "candidates": [candidate_row(c) for c in members],
            }
        )
    elif form == "csv":
        from igc_nas.analysis.tables import csv_text

        click.echo(csv_text(members), nl=False)
    elif not members:
        say(f"{study.spec.name} has no completed trial yet", f"igc-nas search --study {study.spec.name}")
    else:
        from igc_nas.cli.display import front_table
        from igc_nas.io.console import console

        console().print(front_table(study, members, objectives))


@click.command()
@click.argument("study")
@as_json
@storage_option
@studies_dir
def status(study: str, as_json: bool, storage: str | None, root: Path) -> None:
    """Print how STUDY stands: what ran, what runs (host, pid, since when), what failed and why, what to type next."""
    from igc_nas.study.status import status_of

    found = status_of(load(study, root, storage))
    if as_json:
        put_json(found.to_dict())
        return
    from igc_nas.cli.display import status_lines

    put(*status_lines(found))


@click.command()
@click.argument("arch")
@classes_option
@as_json
@studies_dir
def show(arch: str, classes: int | None, as_json: bool, root: Path) -> None:
    """Print the plan of ARCH as a table: every layer with its shape, parameters and MACs.

    Of a trial it says, too, what became of it; of one that failed, why and where.

    ARCH is a .toml file, a paper's network (igcv1-l24m2-d20, igcv3-d-cifar, ...) or STUDY:N, trial N of a study.
    """
    from igc_nas.arch.cost import cost_of, rows
    from igc_nas.arch.plan import arch_id, plan
    from igc_nas.study.lookup import named_trial

    config = architecture(arch, classes, root)
    found = named_trial(arch, root)
    cost = cost_of(config)
    listed = list(rows(plan(config)))
    if as_json:
        layers = [
            {"block": r.block, "layer": type(r.layer).__name__, "name": getattr(r.layer, "name", None)}
            | {"shape": r.shape, "params": r.cost.params, "macs": r.cost.macs, "in_shortcut": r.in_shortcut}
            for r in listed
        ]
        trial = {} if found is None else {"trial": found[1].model_dump(mode="json", by_alias=True, exclude_none=True)}
        put_json({"id": arch_id(config), **cost.as_dict(), "arch": config.to_dict(), "layers": layers, **trial})
        return
    from igc_nas.cli.display import plan_table, trial_lines
    from igc_nas.io.console import console

    title = f"{arch}  id {arch_id(config)}\n{config}\n{cost.params:,} parameters, {cost.macs:,} MACs"
    console().print(plan_table(title, listed))
    if found is not None:
        put(*trial_lines(*found))


@click.command()
@click.argument("arch")
@classes_option
@click.option("--check", is_flag=True, help="Build it and compare with torch's and ptflops' counters.")
@as_json
@studies_dir
def cost(arch: str, classes: int | None, check: bool, as_json: bool, root: Path) -> None:
    """Print what ARCH costs: parameters, MACs, FLOPs (2 per MAC) and activations of one image, exactly."""
    from igc_nas.arch.cost import cost_of
    from igc_nas.arch.plan import arch_id

    config = architecture(arch, classes, root)
    found: dict[str, Any] = cost_of(config).as_dict()
    reference = _printed(arch, classes)
    checked: dict[str, Any] = {}
    if check:
        from igc_nas.nn.flop_counters import count_by_others

        checked = count_by_others(config)
    if as_json:
        put_json(found | {"id": arch_id(config), "arch": config.to_dict()} | reference | checked)
    else:
        width = max(map(len, found))
        put(*(f"{name:<{width}}  {value:>16,}" for name, value in found.items()))
        put(*(f"{name}: {value}" for name, value in (reference | checked).items()))
    if checked and not checked["agree"]:
        raise IgcNasError("the counters do not agree", "please report this with the architecture's file")


def _printed(arch: str, classes: int | None) -> dict[str, Any]:
    from igc_nas.arch.papers import is_reference, reference

    found = reference(arch, classes) if is_reference(arch) else None
    if found is None or not found.printed_error:
        return {}
    return {"paper": found.paper, "printed_in": found.source, "printed_error": dict(found.printed_error)}


@click.command()
@click.argument("name", required=False)
@click.option("--classes", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="Classes.")
@click.option("--budget-params", type=COUNT, help="A budget to hold the space against.")
@click.option("--budget-macs", type=COUNT, help="A budget to hold the space against.")
@as_json
def space(name: str | None, classes: int, budget_params: int | None, budget_macs: int | None, as_json: bool) -> None:
    """Print a search space, its choices, its exact size, its smallest and largest costs; without NAME list them.

    With a budget: of the architectures within it, also by cost and by the unit of each stage.
    """
    from igc_nas.space.search_space import space_names

    if name is None:
        put_json(space_names()) if as_json else put(*space_names())
        return
    from igc_nas.arch.cost import cost_of
    from igc_nas.space.feasible import Feasible
    from igc_nas.space.search_space import METRICS, SearchSpace

    found = SearchSpace.load(name, classes)
    feasible = Feasible(found, budget_params, budget_macs)
    facts: dict[str, Any] = {"architectures": found.size}
    if feasible.limits:
        try:
            facts = feasible.facts()
        except OverflowError:
            raise IgcNasError(
                f"{found.name} holds {found.size:,} architectures: too many to count those within a budget",
                "ask without a budget, or of a smaller space",
            ) from None
    else:
        for metric in METRICS:
            facts[f"smallest_{metric}"] = getattr(cost_of(found.smallest(metric)), metric)
            facts[f"largest_{metric}"] = getattr(cost_of(found.largest(metric)), metric)
    if as_json:
        put_json({"space": found.name, "classes": classes, **facts, "file": found.file.to_dict()})
        return
    put(f"{found.name}: {found.file.intent}", found.file.paper, "")
    width = 37 if feasible.limits else max(map(len, facts))  # as wide as the parts below
    put(*(f"{key:<{width}}  {value:>20,}" for key, value in facts.items() if isinstance(value, int)))
    put(*(f"{key:<{width}}  {facts[key]:>20.4%}" for key in ("share", "acceptance") if key in facts), "")
    if feasible.limits:
        _put_parts(facts)
    if found.file.complementary != "any":
        put(f"every unit meets the {found.file.complementary} complementary condition")
    put(f"stem      {_choices(found.file.stem)}")
    for stage in found.stages:
        for unit, choices in stage.choices.items():
            put(f"stage {stage.number}   {unit}  {_choices(choices)}")


def _put_parts(facts: Mapping[str, Any]) -> None:
    """How many of the architectures within a budget cost how much, and have which unit in which stage."""
    put(
        *(
            f"{b['from']:>13,} to {b['to']:>13,} {facts['binned_by']:<6}  {b['architectures']:>20,}"
            for b in facts["bins"]
        )
    )
    for stage, units in facts["units"].items():
        put(*(f"{stage} {unit:<30}  {count:>20,}" for unit, count in units.items()))
    put("")


def _choices(choices: Mapping[str, Any]) -> str:
    def values(value: Any) -> str:
        return "|".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return "  ".join(f"{key} {values(value)}" for key, value in choices.items())


COMMANDS = (front, status, show, cost, space)
