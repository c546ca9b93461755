"""A study with the errors that its candidates are expected to have at the target length, and what is known of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from igc_nas.samplers.target_predictor import TargetPredictor
from igc_nas.study import study as study_files
from igc_nas.study.expected import Expected
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study


def load_study(name: str | Path, root: Path | str = "studies") -> Study:
    """Read a study: a `Path` is its folder, text its path or name (`root`/name, else a shipped one).

    Its errors are predicted where it has a target. Raises `StudyError`. An incomplete last line of trials.jsonl (a
    search is writing it) is ignored.
    """
    return with_expectations(study_files.load_study(name, root))


def with_expectations(study: Study) -> Study:
    """The study with its predicted errors; unchanged where it has no target, or too few longer trainings yet."""
    predictor = TargetPredictor.of(study)
    if predictor is None or not predictor.is_at_target:
        return study
    predicted, (low, high) = predictor.predicted, predictor.predicted.interval
    columns = zip(predictor.candidates, predicted.errors, low, high, strict=True)
    return replace(study, expected={c.trial: Expected(float(e), float(le), float(he)) for c, e, le, he in columns})


def expectation_words(study: Study) -> str | None:
    """What the front's errors are, with its members that were trained for longer; None for a study without a target.

    `Errors are predicted for trainings of 480,000 images, from 61 of 6,000 and 8 of 40,000. Of the 14 on the front 5
    were trained for 40,000: ...`
    """
    target, spec = study.spec.target, study.spec
    if target is None:
        return None
    longer = f"{target.recipe.samples:,} images"
    if not study.expected:
        return (
            f"Errors are those after {spec.recipe.samples:,} images: a prediction for {target.images:,} needs longer "
            f"trainings, of {longer}, and {len(study.longer)} have ended."
        )
    front = study.front()
    trained = sum(member.trial in study.longer for member in front)
    return (
        f"Errors on the front are predicted, for trainings of {target.images:,} images; measured are "
        f"{len(study.candidates)} after {spec.recipe.samples:,} and {len(study.longer)} after {longer}. Of the "
        f"{len(front)} members {trained or 'none'} {'was' if trained == 1 else 'were'} trained for {longer}"
        + ("; for none the predicted length." if target.images > target.recipe.samples else ".")
    )


def member_words(study: Study, candidate: Candidate) -> list[str]:
    """What is predicted of a candidate, and what was observed of it after a longer training."""
    lines = []
    if (expected := study.expected.get(candidate.trial)) and study.spec.target:
        lines.append(
            f"predicted after {study.spec.target.images:,} images: error {100 * expected.error:.2f} % "
            f"(95 % interval {100 * expected.low:.1f} to {100 * expected.high:.1f} %)"
        )
    if longer := study.longer.get(candidate.trial):
        error = f"{100 * longer.score.error:.2f} %"
        lines.append(f"observed after {longer.score.samples:,} images: error {error} (trial {longer.trial})")
    return lines
