"""igc-nas: neural architecture search over interleaved group convolution networks (IGCV1, IGCV2, IGCV3).

    import igc_nas

    study = igc_nas.search(budget_params="2M", dataset="cifar10", trials=24)
    study.front()                                      # candidates: arch, cost, latency, score
    study.export("best.toml", pick="best-error")
    arch = igc_nas.load_architecture("igcv1-l24m2-d20")
    igc_nas.cost_of(arch).params                       # exact, before anything is built
    model = igc_nas.create_model(arch)                 # a torch.nn.Module

What the command line does, one call each, with its options as keyword arguments:

    search      a search for the Pareto front, or its continuation; returns a Study
    finals      the best candidates and baselines trained to the end
    train       one architecture trained to the end, tested once
    export      an architecture as TOML, PyTorch, ONNX, pt2, C or a folder of them
    measure     a Latency on this machine
    cost        exact counts of an architecture
    space_facts exact counts of a search space
    status      what ran, what runs and what failed in a study
    report      how well a study's short trainings rank
    dashboard   studies as one page

Studies and architectures:

    load_study, Study                    a study and its front, picks, table, plot
    Trial, Candidate, Score, Latency     its records; errors are shares, latencies milliseconds
    frame, plot                          candidates as a pandas table, a study as a plotly figure
    load_architecture, ArchConfig        an architecture by file, name or STUDY:N
    cost_of, Cost, arch_id               its counts for one image, and its canonical id
    create_model                         its network, with timm's methods

Spaces, for Optuna studies of one's own:

    load_space, OptunaSpace              `space.suggest(trial)` is an architecture within the budget
    KnownCostSampler                     an Optuna sampler that knows the costs
    SearchSpace, Budget                  options and exact counts of a space; its limits

The parts that `search` puts together:

    new_spec, StudySpec, Run             the settings of a study; how a search runs
    default_recipe, Recipe               the proxy training
    locate, find_devices                 a verified dataset; the devices

Errors meant for people are IgcNasError. Importing the package is cheap: a name loads its module, and torch or Optuna
with it, when it is first used. README.md is the tutorial, search_spaces/README.md has the keys of spaces and recipes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from igc_nas._version import __version__

if TYPE_CHECKING:
    from igc_nas.analysis.expectations import load_study
    from igc_nas.analysis.plots import plot
    from igc_nas.analysis.tables import frame
    from igc_nas.api.cost import cost
    from igc_nas.api.dashboard import dashboard
    from igc_nas.api.export import export
    from igc_nas.api.finals import finals
    from igc_nas.api.measure import measure
    from igc_nas.api.report import report
    from igc_nas.api.search import search
    from igc_nas.api.space import load_space, space_facts
    from igc_nas.api.status import status
    from igc_nas.api.train import train
    from igc_nas.arch.config import ArchConfig
    from igc_nas.arch.cost import Cost, cost_of
    from igc_nas.arch.plan import arch_id
    from igc_nas.data.datasets import locate
    from igc_nas.engine.search import Run
    from igc_nas.errors import IgcNasError
    from igc_nas.nn.device import find_devices
    from igc_nas.nn.factory import create_model
    from igc_nas.samplers.known_cost_sampler import KnownCostSampler
    from igc_nas.samplers.optuna_space import OptunaSpace
    from igc_nas.space.budget import Budget
    from igc_nas.space.search_space import SearchSpace
    from igc_nas.study.defaults import default_recipe, new_spec
    from igc_nas.study.lookup import load_architecture
    from igc_nas.study.records import Candidate, Latency, Score, Trial
    from igc_nas.study.spec import Recipe, StudySpec
    from igc_nas.study.study import Study

_HOME = {
    "ArchConfig": "arch.config",
    "Budget": "space.budget",
    "Candidate": "study.records",
    "Cost": "arch.cost",
    "IgcNasError": "errors",
    "KnownCostSampler": "samplers.known_cost_sampler",
    "Latency": "study.records",
    "OptunaSpace": "samplers.optuna_space",
    "Recipe": "study.spec",
    "Run": "engine.search",
    "Score": "study.records",
    "SearchSpace": "space.search_space",
    "Study": "study.study",
    "StudySpec": "study.spec",
    "Trial": "study.records",
    "arch_id": "arch.plan",
    "cost": "api.cost",
    "cost_of": "arch.cost",
    "create_model": "nn.factory",
    "dashboard": "api.dashboard",
    "default_recipe": "study.defaults",
    "export": "api.export",
    "finals": "api.finals",
    "find_devices": "nn.device",
    "frame": "analysis.tables",
    "load_architecture": "study.lookup",
    "load_space": "api.space",
    "load_study": "analysis.expectations",
    "locate": "data.datasets",
    "measure": "api.measure",
    "new_spec": "study.defaults",
    "plot": "analysis.plots",
    "report": "api.report",
    "search": "api.search",
    "space_facts": "api.space",
    "status": "api.status",
    "train": "api.train",
}

__all__ = [
    "ArchConfig",
    "Budget",
    "Candidate",
    "Cost",
    "IgcNasError",
    "KnownCostSampler",
    "Latency",
    "OptunaSpace",
    "Recipe",
    "Run",
    "Score",
    "SearchSpace",
    "Study",
    "StudySpec",
    "Trial",
    "__version__",
    "arch_id",
    "cost",
    "cost_of",
    "create_model",
    "dashboard",
    "default_recipe",
    "export",
    "finals",
    "find_devices",
    "frame",
    "load_architecture",
    "load_space",
    "load_study",
    "locate",
    "measure",
    "new_spec",
    "plot",
    "report",
    "search",
    "space_facts",
    "status",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"igc_nas.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
