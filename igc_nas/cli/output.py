"""What commands print: data on stdout, everything else on stderr, nothing that could move a cursor."""

from __future__ import annotations

import json
from typing import Any

import click

from igc_nas.io.text import printable


def put(*lines: str) -> None:
    """Print lines of data."""
    for line in lines:
        click.echo(printable(line))


def say(*lines: str) -> None:
    """Say lines to the person who watches."""
    for line in lines:
        click.echo(printable(line), err=True)


def put_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
