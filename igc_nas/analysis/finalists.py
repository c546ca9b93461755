"""Which candidates of a study are worth a training to the end: picked by the front, or by surrogate and proxy together.

The error of one short training is noise for a large part; the surrogate, fitted to all of them, expects for each
candidate an error that also draws on its own one and on those of similar networks. So candidates are ranked by that
where the surrogate is known to rank better than the parameter count (leave-one-out); else by their own error. Where
errors are predicted at a study's target length, they are ranked by these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from igc_nas.analysis.surrogate_quality import predicted_errors, surrogate_quality
from igc_nas.errors import UsageError
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study, parse_limits, unknown_pick


@dataclass(frozen=True)
class Pick:
    """A candidate to train to the end, the expected error by which it was ranked, and why it was picked."""

    candidate: Candidate
    why: str
    expected: float | None = None
    """Of `expected_errors`; None where it was not ranked by them."""


def finalists(study: Study, rules: Sequence[str], top: int) -> list[Pick]:
    """The candidates that `rules` pick, each once; a rule picks `top` of them at most.

    `front`: members evenly along the front, its ends included. `under:LIMITS`: those within the limits whose
    `expected_errors` are the least. Others as `Study.pick`. Raises `UsageError`, `StudyError`.
    """
    found: dict[str, Pick] = {}
    for rule in rules:
        for pick in _picked(study, rule, top):
            kept = found.get(pick.candidate.id)
            if kept is None:
                found[pick.candidate.id] = pick
            elif pick.why not in kept.why:
                found[pick.candidate.id] = replace(
                    kept, why=f"{kept.why}; {pick.why}", expected=kept.expected or pick.expected
                )
    return list(found.values())


def _picked(study: Study, rule: str, top: int) -> list[Pick]:
    if not study.candidates:
        study.pick("knee")  # raises
    kind, _, rest = rule.partition(":")
    if rule == "front":
        return [Pick(candidate, "front") for candidate in spread(study, study.front() or study.candidates, top)]
    if kind == "under" and rest:
        return _best_under(study, parse_limits(rest), top)
    try:
        return [Pick(study.pick(rule), rule)]
    except UsageError:
        raise unknown_pick(rule, "front") from None


def spread(study: Study, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most `most` of some candidates, evenly spread by rank of parameters, both ends included; of one the best."""
    ordered = sorted(candidates, key=lambda c: c.cost.params)
    if len(ordered) <= most:
        return ordered
    if most == 1:
        return [min(ordered, key=study.error)]
    return [ordered[round(place * (len(ordered) - 1) / (most - 1))] for place in range(most)]


def _best_under(study: Study, limits: dict[str, float], top: int) -> list[Pick]:
    within = study.within(limits)
    expected = expected_errors(study)
    by_proxy = _ranks(within, {c.id: c.score.error for c in within})
    if expected is None:
        best = sorted(within, key=lambda c: by_proxy[c.id])[:top]
        return [Pick(c, f"proxy rank {by_proxy[c.id]}") for c in best]
    values = {c.id: expected.get(c.id, math.inf) for c in within}
    by_both = _ranks(within, values)
    best = sorted(within, key=lambda c: by_both[c.id])[:top]
    return [Pick(c, f"rank {by_both[c.id]} (proxy alone {by_proxy[c.id]})", expected.get(c.id)) for c in best]


def expected_errors(study: Study) -> dict[str, float] | None:
    """By id the error at the study's target length, if it is predicted; else what surrogate and proxy together expect.

    None where the surrogate is not to be trusted.
    """
    if study.expected:
        return {c.id: study.error(c) for c in study.candidates if c.trial in study.expected}
    quality = surrogate_quality(study)
    return predicted_errors(study) if quality is not None and quality.validation.is_better else None


def _ranks(candidates: Iterable[Candidate], errors: dict[str, float]) -> dict[str, int]:
    """By id the place, from 1, in the order of the errors; of equal ones the smaller network is first."""
    ordered = sorted(candidates, key=lambda c: (errors[c.id], c.cost.params, c.trial))
    return {candidate.id: place for place, candidate in enumerate(ordered, start=1)}
