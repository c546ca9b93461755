"""Exhaustive search of a small space: every architecture once, in an order shuffled by the seed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from igc_nas.errors import UsageError
from igc_nas.samplers.history import History
from igc_nas.samplers.mutation import Mutator
from igc_nas.space.encoding import Code, PricedCodes
from igc_nas.study.spec import StudySpec

MOST_LISTED = 100_000


class BruteForce:
    """Proposes all codes of a study's space within its budget.

    Raises `UsageError` for a space of more than `MOST_LISTED` architectures.
    """

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        size = spec.search_space.size
        if size > MOST_LISTED:
            raise UsageError(
                f"{spec.space_name} holds {size:,} architectures; brute-force takes at most {MOST_LISTED:,}",
                "choose another --sampler, or a smaller space",
            )

    @cached_property
    def _order(self) -> PricedCodes:
        """All codes within the budget, shuffled. Built stage by stage from the options that fit the shape before."""
        encoding = self.spec.feasible.encoding
        codes, shapes = np.arange(len(encoding.stem_shape))[:, None], encoding.stem_shape
        for table in encoding.stages:
            rows, options = np.nonzero(table.fits[shapes])
            codes = np.column_stack([codes[rows], options])
            shapes = table.leaves[shapes[rows], options]
        kept = Mutator(self.spec.feasible).kept(codes)
        return kept.rows(np.random.default_rng(self.spec.seed).permutation(len(kept)))

    def __len__(self) -> int:
        return len(self._order)

    def propose(self, history: History, rng: np.random.Generator) -> Iterator[Code]:
        """The codes that the study has not tried, in order."""
        seen = history.seen
        yield from (code for code in self._order if code not in seen)
