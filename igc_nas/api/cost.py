"""`igc_nas.cost`: exact counts of an architecture by its name."""

from __future__ import annotations

from pathlib import Path

from igc_nas.api.options import arch_of
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost, cost_of
from igc_nas.cli.loading import architecture
from igc_nas.errors import IgcNasError
from igc_nas.study.records import Candidate


def cost(
    arch: ArchConfig | Candidate | str | Path,
    *,
    classes: int | None = None,
    image_size: int | None = None,
    check: bool = False,
    studies_dir: str | Path = "studies",
) -> Cost:
    """Exact counts of an architecture: `igc_nas.cost("igcv3-d-cifar").params`.

    `arch` is an architecture, a candidate, a .toml file, a network's name or `STUDY:N`; `classes` and `image_size`
    replace its own. MACs and activations are those of one image. With `check` torch and ptflops count, too.

    Raises `ConfigError` for an unknown name, `StudyError` for an unknown trial, `IgcNasError` where counters differ.
    """
    config = architecture(arch_of(arch), classes, Path(studies_dir), image_size)
    if check:
        from igc_nas.nn.flop_counters import count_by_others

        if not count_by_others(config)["agree"]:
            raise IgcNasError("the counters do not agree", "please report this with the architecture's file")
    return cost_of(config)
