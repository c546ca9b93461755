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


def _print(found: Examination) -> None:
    """One line a finding, wrapped at the terminal's width behind the topic; problems below, with what to do."""
    from rich.table import Table
    from rich.text import Text

    from igc_nas.io.console import console
    from igc_nas.io.text import printable

    table = Table.grid(padding=(0, 2))
    for finding in found.findings:
        lines = [finding.value]
        lines += [f"! {finding.problem}"] if finding.problem else []
        lines += [f"  {finding.hint}"] if finding.hint else []
        table.add_row(finding.topic, Text(printable("\n".join(lines))))
    console().print(table)
