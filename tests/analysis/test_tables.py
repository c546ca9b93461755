"""Candidates as a table."""

import io

import pandas as pd

from igc_nas.analysis.tables import COLUMNS, candidate_row, frame
from tests.support.studies import make_study


def test_a_frame_has_a_row_for_each_candidate() -> None:
    candidates = make_study(7).candidates
    table = frame(candidates)
    assert list(table.columns) == COLUMNS
    assert table.to_dict("records") == [
        {key: value for key, value in candidate_row(c).items() if key != "arch"} for c in candidates
    ]


def test_csv_brings_every_number_back() -> None:
    table = frame(make_study(7).candidates)
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    assert again.to_dict("records") == table.to_dict("records")


def test_nothing_is_a_table_with_columns() -> None:
    assert list(frame([]).columns) == COLUMNS
