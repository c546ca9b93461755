"""igc-nas: neural architecture search over interleaved group convolution networks (IGCV1, IGCV2, IGCV3).

    import igc_nas

    arch = igc_nas.load_architecture("igcv1-l24m2-d20")
    igc_nas.cost_of(arch).params                       # exact, before anything is built
    model = igc_nas.create_model(arch)                 # a torch.nn.Module
    study = igc_nas.load_study("igc_cifar10")          # a finished study, its front, its numbers

Importing the package is cheap: a name loads its module, and torch or Optuna with it, when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from igc_nas.architecture import load_architecture
    from igc_nas.config import ArchConfig
    from igc_nas.cost import Cost, cost_of
    from igc_nas.dataset import locate
    from igc_nas.defaults import default_recipe, new_spec
    from igc_nas.device import find_devices
    from igc_nas.errors import IgcNasError
    from igc_nas.network import create_model
    from igc_nas.plan import arch_id
    from igc_nas.record import Candidate, Latency, Score, Trial
    from igc_nas.results import Study, load_study
    from igc_nas.space import SearchSpace
    from igc_nas.spec import Budget, Recipe, StudySpec
    from igc_nas.study import Run, search
    from igc_nas.tables import frame

_HOME = {
    "ArchConfig": "config",
    "Budget": "spec",
    "Candidate": "record",
    "Cost": "cost",
    "IgcNasError": "errors",
    "Latency": "record",
    "Recipe": "spec",
    "Run": "study",
    "Score": "record",
    "SearchSpace": "space",
    "Study": "results",
    "StudySpec": "spec",
    "Trial": "record",
    "arch_id": "plan",
    "cost_of": "cost",
    "create_model": "network",
    "default_recipe": "defaults",
    "find_devices": "device",
    "frame": "tables",
    "load_architecture": "architecture",
    "load_study": "results",
    "locate": "dataset",
    "new_spec": "defaults",
    "search": "study",
}

__all__ = [
    "ArchConfig",
    "Budget",
    "Candidate",
    "Cost",
    "IgcNasError",
    "Latency",
    "Recipe",
    "Run",
    "Score",
    "SearchSpace",
    "Study",
    "StudySpec",
    "Trial",
    "__version__",
    "arch_id",
    "cost_of",
    "create_model",
    "default_recipe",
    "find_devices",
    "frame",
    "load_architecture",
    "load_study",
    "locate",
    "new_spec",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"igc_nas.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
