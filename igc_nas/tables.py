"""Candidates as a pandas table: one flat row each, for notebooks, CSV and whatever pandas writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from igc_nas.record import Candidate, candidate_row

if TYPE_CHECKING:
    import pandas as pd


def frame(candidates: Iterable[Candidate]) -> pd.DataFrame:
    """A row for each candidate, as `front --json` has it, less the nested architecture.

    `igc_nas.frame(igc_nas.load_study("igc_cifar10").candidates)`; columns are there for no candidates, too.
    """
    import pandas as pd

    rows = [candidate_row(candidate) for candidate in candidates]
    return pd.DataFrame([{key: value for key, value in row.items() if key != "arch"} for row in rows], columns=COLUMNS)


COLUMNS = [
    "trial",
    "id",
    "error",
    "params",
    "macs",
    "flops",
    "activations",
    "latency_ms",
    "latency_low_ms",
    "latency_high_ms",
    "latency_raw_ms",
    "latency_noisy",
    "form",
    "deployed_params",
    "deployed_macs",
    "weight_bytes",
    "dataset",
    "train_s",
    "summary",
]
