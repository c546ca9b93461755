"""Spellings of version 0.1: they still work, hidden from `--help`, and a line on stderr names the new ones."""

from __future__ import annotations

from typing import Any

import click

from igc_nas.cli.output import say

OPTIONS = {"--stop": "--prune-below", "--first": "--enqueue", "--studies": "--studies-dir", "--truth": "--reference"}


class Program(click.Group):
    """A group whose commands take options by their old names, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with the options' new names in place of old ones."""
        return super().parse_args(ctx, [_current(argument) for argument in args])


class RenamedChoice(click.Choice[str]):
    """A choice some of whose values had other names: `renamed` maps old to new."""

    def __init__(self, choices: tuple[str, ...], renamed: dict[str, str]) -> None:
        super().__init__(choices)
        self.renamed = renamed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value by its new name."""
        if value in self.renamed:
            say(f"{value} is now {self.renamed[value]}")
        return super().convert(self.renamed.get(value, value), param, ctx)


def _current(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if name not in OPTIONS:
        return argument
    say(f"{name} is now {OPTIONS[name]}")
    return OPTIONS[name] + equals + value
