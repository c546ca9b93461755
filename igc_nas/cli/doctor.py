"""`igc-nas doctor`: what this machine offers, what a search would use, and whether it works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from igc_nas.cli.loading import load_torch
from igc_nas.cli.options import as_json, data_dir_option
from igc_nas.cli.output import put, put_json, say

if TYPE_CHECKING:
    from igc_nas.engine.doctor import Examination
    from igc_nas.engine.self_check import SelfCheck


@click.command()
@click.option(
    "--check/--no-check",
    default=None,
    help="Train and measure one network on the device of a search, as a trial does. [default: with a GPU]",
)
@data_dir_option
@as_json
def doctor(check: bool | None, data_dir: Path | None, as_json: bool) -> None:
    """Say what this machine offers, and what a search would use.

    What is missing is named. A report of a fault begins with the output of this command. The status is 1 if a
    check fails.

    \b
    Examples:
      igc-nas doctor
      igc-nas doctor --json
    """
    load_torch()
    from igc_nas.engine.doctor import devices_to_check, examine
    from igc_nas.engine.self_check import self_check

    found = examine(data_dir)
    device = devices_to_check()[0]
    if not as_json:
        _print(found)
    checks: tuple[SelfCheck, ...] = ()
    if device.kind == "cuda" if check is None else check:
        say("", f"checking {device.name} ...")
        checks = self_check(device)
    if as_json:
        put_json(found.to_dict() | {"checks": [c.to_dict() for c in checks]})
    else:
        for one in checks:
            put(f"{'ok  ' if one.passed else 'FAIL'}  {one.name}: {one.result}")
    if any(not one.passed for one in checks):
        raise click.exceptions.Exit(1)


LEAST_ROOM = 50
"""Columns beside a topic, at the least; on a narrower terminal its finding stands below it."""


def _print(found: Examination) -> None:
    """Each finding beside its topic, with its problem and what to do; no line is wider than the terminal."""
    from igc_nas.io.console import terminal_width
    from igc_nas.io.text import printable, wrapped

    width, label = terminal_width(), 2 + max(len(finding.topic) for finding in found.findings)
    is_narrow = width is not None and width - label < LEAST_ROOM
    for finding in found.findings:
        lines = [finding.value]
        lines += [f"! {finding.problem}"] if finding.problem else []
        lines += [f"  {finding.hint}"] if finding.hint else []
        indent = 2 if is_narrow else label
        first, *more = wrapped(map(printable, lines), None if width is None else width - indent)
        head = [finding.topic, f"  {first}"] if is_narrow else [f"{finding.topic:<{label}}{first}"]
        put(*head, *(f"{'':<{indent}}{line}" for line in more))
