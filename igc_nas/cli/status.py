"""`igc-nas status`: what ran, what runs and what failed in a study."""

from __future__ import annotations

from pathlib import Path

import click

from igc_nas.cli.loading import load
from igc_nas.cli.options import as_json, storage_option, studies_dir
from igc_nas.cli.output import put_json, put_text


@click.command()
@click.argument("study")
@as_json
@storage_option
@studies_dir
def status(study: str, as_json: bool, storage: str | None, root: Path) -> None:
    """Print what ran in STUDY, what runs and what failed.

    For what runs: host, pid and start; for what failed: the reason and place. Then the commands to type next.

    \b
    Examples:
      igc-nas status igc_cifar10_2m
      igc-nas status studies/mine --json
    """
    from igc_nas.study.status import status_of

    found = status_of(load(study, root, storage))
    if as_json:
        put_json(found.to_dict())
        return
    from igc_nas.cli.display import status_lines

    put_text(*status_lines(found))
