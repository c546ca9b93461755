"""Option spellings of version 0.1: they still work, are hidden from `--help`, and stderr names the current ones."""

from __future__ import annotations

import click

from igc_nas.cli.output import say
from igc_nas.io.text import nearest

OPTIONS = {
    "--stop": "--prune-below",
    "--first": "--enqueue",
    "--studies": "--studies-dir",
    "--truth": "--reference",
    "--timeout": "--time",
}
"""Old spelling of an option to the current one."""


class Program(click.Group):
    """A group whose commands also take the old spellings of their options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `args` with every old spelling replaced; what follows `--` are no options."""
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*map(_current_spelling, args[:end]), *args[end:]])


ELSEWHERE = {
    "--limit": "--top", "--out": "--output", "--output": "--out", "--dir": "--studies-dir",
    "--max-params": "--budget-params",
    "--name": "--study", "--budget": "--budget-params", "--params": "--budget-params",
    "--sort-by": "--sort", "--md": "--markdown", "--tex": "--latex", "--n-trials": "--trials", "--jobs": "--workers",
}  # fmt: skip
"""What other tools call some options."""


def option_hint(error: click.NoSuchOption) -> str | None:
    """What to type in place of an option that a command does not have; None where click has said it or none is near."""
    if error.ctx is None or error.possibilities:
        return None
    has = {name for parameter in error.ctx.command.params for name in parameter.opts}
    if ELSEWHERE.get(error.option_name) in has:
        return f"did you mean {ELSEWHERE[error.option_name]}?"
    from igc_nas.study.spec import Recipe

    key = error.option_name.lstrip("-").replace("-", "_")
    if "--recipe" in has and key in Recipe.model_fields:
        return f"it is a key of the proxy training: --recipe {key}=VALUE"
    return nearest(error.option_name, has, "") or None


def _current_spelling(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if name not in OPTIONS:
        return argument
    say(f"{name} is now {OPTIONS[name]}")
    return OPTIONS[name] + equals + value
