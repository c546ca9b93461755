"""`igc-nas space`: the choices, exact size and costs of a search space."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igc_nas.cli.options import COUNT, FILE, as_json, side_option
from igc_nas.cli.output import put_json, put_text, say
from igc_nas.errors import IgcNasError, UsageError

if TYPE_CHECKING:
    from igc_nas.space.search_space import SearchSpace

"""Columns of what the counts within a budget are of: a range of costs, or a stage's unit."""


@click.command()
@click.argument("name", required=False)
@click.option("--classes", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="Number of classes.")
@side_option
@click.option("--budget-params", type=COUNT, help="Count architectures with at most this many parameters.")
@click.option("--budget-macs", type=COUNT, help="Count architectures with at most this many MACs.")
@click.option("--new", "new", type=FILE, metavar="FILE", help="Write a small space to edit, every key with a comment.")
@as_json
def space(
    name: str | None,
    classes: int,
    image_size: int | None,
    budget_params: int | None,
    budget_macs: int | None,
    new: Path | None,
    as_json: bool,
) -> None:
    """Print a search space: its choices, exact size and costs.

    Without NAME the spaces are listed. With a budget only the architectures within it count, and it is printed how
    many are in each range of costs, and how many have each unit in each stage.

    \b
    Examples:
      igc-nas space igc_cifar --budget-params 2M
      igc-nas space --new my.toml
    """
    if new is not None:
        _write_template(name, new)
        return
    from igc_nas.space.search_space import SpaceFile, find_space, space_names

    if name is None:
        if budget_params or budget_macs or image_size:
            raise UsageError("limits and sizes are of one space, and none is named", "igc-nas space igc_cifar, ...")
        names = space_names()
        width = max(map(len, names))
        intents = (f"{name:<{width}}  {SpaceFile.load(find_space(name)).intent}" for name in names)
        put_json(names) if as_json else put_text(*intents)
        return
    found = _found(name, classes, image_size)
    counts = _counts(found, budget_params, budget_macs)
    put_json(_facts(found, counts)) if as_json else put_text(*_lines(found, counts))


def _write_template(name: str | None, path: Path) -> None:
    """Write the commented space file; raises `UsageError` where there is a file already."""
    from igc_nas.io.files import read_text, write_whole
    from igc_nas.space.search_space import TEMPLATE

    shown = shlex.quote(str(path))
    if name is not None:
        raise UsageError("--new writes a space of its own, and takes no NAME", f"igc-nas space --new {shown}")
    if path.suffix != ".toml":
        raise UsageError(
            f"{path!s:.120}: a space file ends in .toml", f"igc-nas space --new {shlex.quote(f'{path}.toml')}"
        )
    if path.exists():
        raise UsageError(f"{path} exists", "choose another name, or remove it")
    write_whole(path, read_text(TEMPLATE))
    say(f"wrote {path}; edit it, then:", f"  igc-nas space {shown}", f"  igc-nas search --space {shown}")


def space_facts(
    name: str | Path, classes: int, image_size: int | None, budget_params: int | None, budget_macs: int | None
) -> dict[str, Any]:
    """What `igc-nas space NAME --json` prints. Raises `ConfigError` for an unknown space, and what `_counts` raises."""
    found = _found(name, classes, image_size)
    return _facts(found, _counts(found, budget_params, budget_macs))


def _found(name: str | Path, classes: int, image_size: int | None) -> SearchSpace:
    from igc_nas.space.search_space import SearchSpace, SpaceFile, find_space

    path = find_space(str(name))
    found = SearchSpace(SpaceFile.load(path, image_size), classes, path.stem)
    if image_size is not None:
        found.check_side()
    return found


def _facts(space: SearchSpace, counts: Mapping[str, Any]) -> dict[str, Any]:
    named = {"space": space.name, "classes": space.classes}
    return {**named, **counts, "left_out": space.left_out, "file": space.file.to_dict()}


def _counts(space: SearchSpace, budget_params: int | None, budget_macs: int | None) -> dict[str, Any]:
    """The size of a space and its smallest and largest costs; within a budget also what `Feasible.facts` counts.

    Raises `InfeasibleError` if nothing is within the budget, `IgcNasError` if the space is too large to count.
    """
    from igc_nas.arch.cost import cost_of
    from igc_nas.space.budget import Budget
    from igc_nas.space.feasible import Feasible
    from igc_nas.space.search_space import METRICS

    feasible = Feasible(space, Budget(params=budget_params, macs=budget_macs))
    if feasible.limits:
        try:
            return feasible.facts()
        except OverflowError:
            raise IgcNasError(
                f"{space.name} holds {space.size:,} architectures: too many to count those within a budget",
                "leave out the budget, or choose a smaller space",
            ) from None
    facts: dict[str, Any] = {"architectures": space.size}
    for metric in METRICS:
        facts[f"smallest_{metric}"] = getattr(cost_of(space.smallest(metric)), metric)
        facts[f"largest_{metric}"] = getattr(cost_of(space.largest(metric)), metric)
    return facts


def _lines(space: SearchSpace, facts: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{space.name}: {space.file.intent}".removesuffix(": "), *filter(None, [space.file.paper]), "")
    rows = [(_words(key), f"{value:,}") for key, value in facts.items() if isinstance(value, int)]
    rows += [(key, f"{100 * facts[key]:.4g} %") for key in ("share", "acceptance") if key in facts]
    parts = _part_rows(facts) if "bins" in facts else []
    width, digits = (max(len(row[column]) for row in [*rows, *parts]) for column in range(2))
    for group in filter(None, (rows, parts)):
        yield from (f"{label:<{width}}  {value:>{digits}}" for label, value in group)
        yield ""
    if space.file.complementary != "any":
        yield f"every unit meets the {space.file.complementary} complementary condition"
    yield f"stem      {_choices(space.stem_choices)}"
    for stage in space.stages:
        for unit, choices in stage.choices.items():
            yield f"stage {stage.number}   {unit}  {_choices(choices)}"
    if space.head_choices:
        yield f"head      {_choices(space.head_choices)}"
    if space.left_out:
        yield f"left out  {left_out_words(space)}"


def left_out_words(space: SearchSpace) -> str:
    """The choices that no architecture of a space has: `stage 1.igcv2.depth 9: no valid architecture has it`."""
    return f"{', '.join(space.left_out)}: no valid architecture has {'it' if len(space.left_out) == 1 else 'them'}"


def _words(key: str) -> str:
    """`smallest_macs` as `smallest MACs`."""
    return key.replace("_", " ").replace("macs", "MACs").replace("params", "parameters")


def _part_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many of the architectures within a budget are in each range of costs, and have each unit in each stage.

    A range ends at the number that is shown, and begins behind the one above it.
    """
    ends = [f"{part['to']:,}" for part in facts["bins"]]
    digits = max(map(len, ends))
    by = "MACs" if facts["binned_by"] == "macs" else facts["binned_by"]
    rows = [
        (f"{by} to {end:>{digits}}", f"{part['architectures']:,}")
        for end, part in zip(ends, facts["bins"], strict=True)
    ]
    return rows + [
        (f"{stage} {unit}", f"{count:,}") for stage, units in facts["units"].items() for unit, count in units.items()
    ]


def _choices(choices: Mapping[str, tuple[Any, ...]]) -> str:
    return "  ".join(f"{key} {'|'.join(map(str, values))}" for key, values in choices.items())
