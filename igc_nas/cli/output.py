"""Printing: data to stdout, everything else to stderr, with control characters replaced.

The streams are named: click would write UTF-8 to those of a terminal that has ASCII only.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from igc_nas.io.console import is_notebook, terminal_width
from igc_nas.io.text import printable, wrapped


def put(*lines: str) -> None:
    """Print lines of data to stdout."""
    for line in lines:
        click.echo(printable(line), sys.stdout)


def put_text(*lines: str) -> None:
    """Print lines of prose to stdout, broken between words on a terminal."""
    put(*wrapped(map(printable, lines), terminal_width()))


def say(*lines: str) -> None:
    """Print lines for the user to stderr, broken between words on a terminal; in a notebook as plain output."""
    for line in wrapped(map(printable, lines), terminal_width(sys.stderr)):
        click.echo(line, sys.stdout if is_notebook() else sys.stderr, err=True)


def put_json(value: Any) -> None:
    """Print a value as JSON to stdout. Raises `ValueError` for NaN and infinity."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
