"""The sampler beside an objective that takes no training: how well a network's channels mix is guessed from its cost.

python example.py [TRIALS]
"""

import importlib
import math
import sys
from pathlib import Path

import optuna

# From the registry: module = optunahub.load_module("samplers/igc_known_cost")
sys.path.insert(0, str(Path(__file__).parents[1]))
module = importlib.import_module("igc_known_cost")

space = module.load_space("tiny", budget_params="4k")


def objective(trial: optuna.Trial) -> tuple[float, float]:
    """A stand-in for a training: larger and deeper is better."""
    arch = space.suggest(trial)
    error = 2.5 / math.log(trial.user_attrs["macs"]) - 0.02 * len(arch.stages)
    return error, trial.user_attrs["params"]


sampler = module.KnownCostSampler(space, objectives=("error", "params"), seed=0)
study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
study.optimize(objective, n_trials=int(sys.argv[1]) if len(sys.argv) > 1 else 30)
for trial in study.best_trials:
    print(f"{trial.values[0]:.3f}", trial.user_attrs["params"], trial.params)
