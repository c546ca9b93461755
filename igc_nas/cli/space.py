"""`igc-nas space`: a search space, its choices, its exact size and costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from igc_nas.cli.options import COUNT, as_json
from igc_nas.cli.output import put, put_json
from igc_nas.errors import IgcNasError

if TYPE_CHECKING:
    pass


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
    from igc_nas.space.budget import Budget
    from igc_nas.space.feasible import Feasible
    from igc_nas.space.search_space import METRICS, SearchSpace

    found = SearchSpace.load(name, classes)
    feasible = Feasible(found, Budget(params=budget_params, macs=budget_macs))
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
