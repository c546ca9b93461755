"""Requests: what a command was asked for, typed, with a field for each of its options."""

from dataclasses import asdict, fields
from typing import Any

import click
import pytest

from igc_nas.cli.export import ExportRequest, export
from igc_nas.cli.measure import MeasureRequest, measure
from igc_nas.cli.search import search
from igc_nas.cli.study_flags import SearchRequest
from igc_nas.cli.train import TrainRequest, train

REQUESTS = [(search, SearchRequest), (train, TrainRequest), (export, ExportRequest), (measure, MeasureRequest)]


@pytest.mark.parametrize(("command", "request_type"), REQUESTS, ids=[command.name for command, _ in REQUESTS])
def test_a_request_has_a_field_for_each_option_and_argument(command: click.Command, request_type: Any) -> None:
    assert sorted(field.name for field in fields(request_type)) == sorted(p.name for p in command.params if p.name)


def test_a_request_without_options_is_what_the_command_line_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "IGC_NAS_DATA", "IGC_NAS_STORAGE", "IGC_NAS_LATENCY_COMMAND"):
        monkeypatch.delenv(name, raising=False)
    assert asdict(SearchRequest()) == search.make_context("search", []).params
