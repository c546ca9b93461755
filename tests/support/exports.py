"""Sources to export: a small study, and one whose names come from a hostile file."""

from __future__ import annotations

from dataclasses import replace

from igc_nas.exports.source import Source
from tests.support.studies import make_study

STUDY = make_study(5)


def hostile(name: str) -> Source:
    """A source whose study, dataset and device have this name."""
    trial = STUDY.trial(0)
    conditions = trial.candidate.latency.conditions.model_copy(update={"device": name})
    candidate = trial.candidate.model_copy(
        update={
            "latency": trial.candidate.latency.model_copy(update={"conditions": conditions}),
            "score": trial.candidate.score.model_copy(update={"dataset": name}),
        }
    )
    study = replace(STUDY, spec=STUDY.spec.model_copy(update={"name": name, "dataset": name}))
    return Source.of_trial(study, trial.model_copy(update={"candidate": candidate}))
