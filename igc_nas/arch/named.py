"""Networks by name: those of the IGC papers (`papers`) and those of the literature (`literature`)."""

from __future__ import annotations

from igc_nas.arch import literature, papers
from igc_nas.arch.papers import Reference

PATTERNS = (*papers.PATTERNS, *literature.FAMILIES)
"""The names that there are, with numbers in braces."""
EXAMPLES = (*papers.PRINTED, *literature.NAMES)


def is_network(name: str) -> bool:
    """Whether a name looks like that of a network."""
    return papers.is_reference(name) or literature.is_literature(name)


def network(name: str, classes: int | None = None) -> Reference:
    """A network by its name; `classes` defaults to 10, or to those of its images. Raises `ConfigError`."""
    build = papers.reference if papers.is_reference(name) else literature.literature
    return build(name, classes)
