"""What a proxy recipe is worth: how well one of its trainings ranks architectures as a long training does.

Kendall's tau-b over the 28 architectures of `studies/igc_table/long` (6 epochs of 40,000 images), from the trainings in
`studies/igc_table/recipes.json`; that study's README has the table, and how the recipes differ in other settings.
"""

from __future__ import annotations

from dataclasses import dataclass

from igc_nas.study.spec import StudySpec

MACS_TAU = 0.65
"""tau of the number of MACs, for comparison."""
LIKE = 1.5
"""A recipe with more, or fewer, than this number of times the images is another one."""


@dataclass(frozen=True)
class Validated:
    """A recipe that was compared with long trainings: its length, and the tau of one of its trainings."""

    name: str
    """In recipes.json."""
    epochs: int
    train_size: int
    resolution: int
    tau: float


VALIDATED = (
    Validated("c10-2x3000-b32-res16", 2, 3_000, 16, 0.42),
    Validated("c10-2x3000-b32", 2, 3_000, 32, 0.54),
    Validated("c10-4x3000-b32", 4, 3_000, 32, 0.66),
    Validated("c10-3x8000-b64", 3, 8_000, 32, 0.61),
)


def nearest_validated(spec: StudySpec) -> Validated | None:
    """The recipe of the same resolution and the nearest number of images; None: there is none like it."""
    recipe = spec.recipe

    def ratio(other: Validated) -> float:
        own, theirs = recipe.samples, other.epochs * other.train_size
        return max(own, theirs) / min(own, theirs)

    like = [one for one in VALIDATED if one.resolution == recipe.resolution and ratio(one) <= LIKE]
    return min(like, key=ratio, default=None)


def worth_words(spec: StudySpec) -> str:
    """What one training of a study's recipe is worth: `one training ranks with tau 0.42 in igc_table (...)`."""
    nearest = nearest_validated(spec)
    if nearest is None:
        return "of one training: not validated for this recipe (igc-nas report compares with longer trainings)"
    where = "" if spec.space_name == "igc_table" else f"; in {spec.space_name} not validated"
    return f"one such training ranks with tau {nearest.tau:.2f} in igc_table (MACs alone: {MACS_TAU}){where}"
