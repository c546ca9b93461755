"""Candidates as a table."""

import io
from dataclasses import replace

import pandas as pd

from igc_nas.analysis.baselines import standings
from igc_nas.analysis.tables import COLUMNS, candidate_row, csv_text, frame
from igc_nas.study.expected import Expected
from tests.support.studies import make_study, with_baselines


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


def test_predicted_errors_stand_beside_the_measured_ones() -> None:
    study = with_baselines(make_study(7), "resnet20-a")
    first, *others = study.candidates
    predicted = replace(study, expected={first.trial: Expected(0.3, 0.25, 0.35)})
    table = predicted.frame()
    columns = ["predicted_error", "predicted_low", "predicted_high"]
    assert list(table.columns)[3:7] == ["error", *columns]
    assert table[columns].iloc[0].tolist() == [0.3, 0.25, 0.35]
    assert table[columns].iloc[1:].isna().all(axis=None)
    again = pd.read_csv(io.StringIO(csv_text(study.candidates, standings(study), predicted.expected)))
    assert again.predicted_error.tolist()[:1] == [0.3]
    assert again.predicted_error.isna().sum() == len(others) + 1
