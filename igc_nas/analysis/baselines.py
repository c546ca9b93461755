"""How a study's front stands to its baselines: which of them it dominates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from igc_nas.analysis.words import counted
from igc_nas.study.objectives import values
from igc_nas.study.pareto import dominates
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study

MOST_NAMED = 5
"""The number of baselines that a sentence names."""


@dataclass(frozen=True)
class Standing:
    """An evaluated baseline, and the members of the front that dominate it, by their trials."""

    name: str
    candidate: Candidate
    dominated_by: tuple[int, ...]


def standings(study: Study, objectives: Sequence[str] | None = None) -> tuple[Standing, ...]:
    """The evaluated baselines, by error, against the front over the objectives (by default the study's).

    The front is that of the errors measured after the study's recipe, as those of the baselines are.
    """
    names = tuple(objectives or study.spec.front_objectives)
    front = [(member.trial, values(member, names)) for member in study.measured.front(names)]
    found = []
    for trial in study.baselines:
        if trial.candidate and trial.baseline:
            point = values(trial.candidate, names)
            by = tuple(number for number, member in front if dominates(member, point))
            found.append(Standing(trial.baseline, trial.candidate, by))
    return tuple(sorted(found, key=lambda standing: (standing.candidate.score.error, standing.candidate.cost.params)))


def baselines_sentence(study: Study, objectives: Sequence[str] | None = None) -> str | None:
    """The front against the baselines in one sentence; None for a study without any.

    `the front dominates 9 of 11 baselines; mobilenetv2-x0.25 and resnet20-a are not dominated`
    """
    if not study.baselines:
        return None
    found = standings(study, objectives)
    free = [standing.name for standing in found if not standing.dominated_by]
    parts = []
    if found:
        front = "the front by measured errors" if study.expected else "the front"
        parts.append(f"{front} dominates {len(found) - len(free) or 'none'} of {counted(len(found), 'baseline')}")
    if free:
        parts.append(f"{_listed(free)} {_are(free)} not dominated")
    if failed := [trial.baseline or "" for trial in study.baselines if trial.state == "failed"]:
        parts.append(f"{_listed(failed)} failed")
    if over := [trial.baseline or "" for trial in study.baselines if trial.state == "infeasible"]:
        parts.append(f"{_listed(over)} {_are(over)} over the latency budget")
    left = sum(trial.state in ("running", "waiting") for trial in study.baselines)
    if left:
        parts.append(f"{left} {'is' if left == 1 else 'are'} not evaluated yet")
    return "; ".join(parts)


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and 7 more`."""
    more = len(names) - MOST_NAMED + 1
    *firsts, last = names if more <= 1 else [*names[: MOST_NAMED - 1], f"{more} more"]
    return f"{', '.join(firsts)} and {last}" if firsts else last
