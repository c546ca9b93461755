"""Baselines: networks that a study evaluates under its own conditions, to compare its front with them.

They are trials of the study, marked by a name, but no candidates: not on the front, not in the hypervolume, not known
to the sampler, never pruned, and not counted in `--trials`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import check_side, cost_of
from igc_nas.errors import ConfigError, UsageError
from igc_nas.io.text import nearest, printable
from igc_nas.study.lookup import load_architecture, named_trial
from igc_nas.study.spec import StudySpec

SETS: dict[str, tuple[str, ...]] = {
    "literature": (
        "wrn-16-2-bsconv-s", "resnet56-bsconv-s", "wrn-40-2-bsconv-s", "densenet-bc-40-12", "condensenet-50",
        "mobilenetv1-bs-x0.25", "mobilenetv2-x0.25", "resnet20-a", "se-resnet20", "shufflenetv2-x0.5",
        "mobilenetv3-small-bs-x0.5", "resnet32-b", "condensenet-86", "mobilenetv2-x0.5", "densenet-bc-100-12",
        "resnet56-a", "shufflenetv1-g2", "densenet-40-12", "mobilenetv3-small-bs-x1.0", "shufflenetv2-x1.0",
        "wrn-28-8-bsconv-s", "preresnet110", "mobilenetv2-x1.0", "mobilenetv1-x1.0", "mobilenetv3-large",
        "resnext29-32x4d", "xception", "dpn92",
    ),
    "igc": (
        "regconv-w16-d20", "igcv1-l24m2-d20", "igcv1-l24m2-d38", "igcv1-l24m2-d62", "igcv1-l24m2-d20-res",
        "igcv2-c416-k8-d20", "igcv3-d-cifar", "igcv1-l16m32-d20", "igcv1-l450m2-d20", "igcv1-l32m26-d20",
    ),
}  # fmt: skip
"""Networks by the name of a set: families of the literature in their usual sizes, and the IGC papers' own."""
MOST_NAME = 100


@dataclass(frozen=True)
class Baseline:
    """A network to compare with. `name` stands in tables and plots."""

    name: str
    arch: ArchConfig


@dataclass(frozen=True)
class Skipped:
    """A network that a study cannot be compared with, and why: it is outside of the budget, or reads larger images."""

    name: str
    reason: str


def _short(name: str, root: Path | str) -> str:
    """A baseline's name in tables: a file's without folder and ending, and a trial's if that is one of a baseline."""
    trial = named_trial(name, root)
    short = trial[1].baseline if trial and trial[1].baseline else Path(name).stem if name.endswith(".toml") else name
    return printable(short, lines=False)[:MOST_NAME] or "baseline"


def comma_separated(texts: Iterable[str]) -> list[str]:
    """The names in texts."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def named_baselines(texts: Iterable[str]) -> list[str]:
    """The networks that comma-separated texts name, each once; a set (`SETS`) stands for those in it."""
    return list(dict.fromkeys(each for name in comma_separated(texts) for each in SETS.get(name, (name,))))


def baseline_network(name: str, classes: int | None, root: Path | str) -> ArchConfig:
    """An architecture as `load_architecture` finds it; where that fails, the error names the nearest set."""
    try:
        return load_architecture(name, classes, root)
    except ConfigError as error:
        raise ConfigError(error.message, nearest(name, SETS, error.hint or "")) from None


def baselines_of(
    texts: Sequence[str], spec: StudySpec, root: Path | str = "studies"
) -> tuple[tuple[Baseline, ...], tuple[Skipped, ...]]:
    """The baselines that comma-separated texts name, for a study's images and classes; and those outside its budget.

    A text names a set (`SETS`), or what `load_architecture` takes. The budget's lower limits do not apply: a smaller
    network may be compared with. Raises `ConfigError` and `StudyError` for an unknown name, `UsageError` for none.
    """
    listed = named_baselines(texts)
    if not listed:
        raise UsageError("no baseline is named", f"use {', '.join(SETS)}, or names as igc-nas cost takes them")
    found, skipped = [], []
    for name in listed:
        short = _short(name, root)
        arch = baseline_network(name, spec.classes, root)
        try:
            arch = arch.with_side(spec.latency.input[1])
            check_side(arch)
        except ConfigError as error:
            skipped.append(Skipped(short, error.message))
            continue
        upper = spec.budget.model_copy(update={"min_params": None, "min_macs": None})
        reason = upper.excess_text(cost_of(arch))
        if reason is None:
            found.append(Baseline(short, arch))
        else:
            skipped.append(Skipped(short, reason))
    return tuple(found), tuple(skipped)
