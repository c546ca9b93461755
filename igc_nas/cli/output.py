"""Printing: data to stdout, everything else to stderr, with control characters replaced."""

from __future__ import annotations

import json
from typing import Any

import click

from igc_nas.io.text import printable


def put(*lines: str) -> None:
    """Print lines of data to stdout."""
    for line in lines:
        click.echo(printable(line))


def say(*lines: str) -> None:
    """Print lines for the user to stderr."""
    for line in lines:
        click.echo(printable(line), err=True)


def put_json(value: Any) -> None:
    """Print a value as JSON to stdout. Raises `ValueError` for NaN and infinity."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
