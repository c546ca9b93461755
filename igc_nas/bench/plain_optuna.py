"""What a user would write instead of `igc-nas search`: a plain Optuna study, the peer of `bench against-optuna`.

TPE in several processes on one SQLite file, over the same space, with the same recipe and images; eager PyTorch in
channels-last. Run as `python -m igc_nas.bench.plain_optuna SPEC.toml DATA_DIR STUDY.db SECONDS DEVICE WORKERS SEED`.
"""

from __future__ import annotations

import sys
import time
from multiprocessing import get_context
from pathlib import Path

import optuna
import torch

from igc_nas.arch.cost import cost_of
from igc_nas.data.datasets import relocate
from igc_nas.errors import ConfigError
from igc_nas.evaluation.images import load_proxy
from igc_nas.evaluation.training import ProxyTask, train_proxy
from igc_nas.nn.device import find_devices
from igc_nas.nn.network import build
from igc_nas.study.records import Score
from igc_nas.study.spec import StudySpec

NAME = "plain"
FEASIBLE = "feasible"
"""User attribute of a trial whose network was trained."""


def work(spec: StudySpec, data: str, storage: str, ends: float, device_name: str, seed: int) -> None:
    """Run trials on a device, by torch's name, until `ends` (`time.time`)."""
    torch.set_num_threads(1)
    device = find_devices(device_name)[0]
    info = relocate(spec.dataset, spec.dataset_sha256, Path(data))
    train, held_out = load_proxy(info, spec.recipe, spec.seed, device.torch_device)
    task = ProxyTask(train, held_out, spec.recipe, info, device)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        try:
            arch = spec.search_space.suggest(trial)
            violation = spec.budget.violation(cost_of(arch))
        except ConfigError:  # stages that do not fit together
            violation = 1.0
        trial.set_constraint("budget", violation)
        if violation > 0:
            return 1.0, spec.bounds["params"][1]
        network = build(arch.trained_at(spec.recipe.resolution), trial.number)
        score = train_proxy(network.to(memory_format=torch.channels_last), task, trial.number)  # type: ignore[call-overload]
        assert isinstance(score, Score)
        trial.set_user_attr(FEASIBLE, True)
        return score.error, float(cost_of(arch).params)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.load_study(study_name=NAME, storage=storage, sampler=sampler)
    study.optimize(objective, timeout=ends - time.time())


def main(spec_file: str, data: str, file: str, seconds: str, device: str, workers: str, seed: str) -> None:
    """Make the study and run its workers."""
    ends, storage = time.time() + float(seconds), f"sqlite:///{file}"
    spec = StudySpec.from_toml(Path(spec_file).read_text(encoding="utf-8"))
    optuna.create_study(study_name=NAME, storage=storage, directions=["minimize", "minimize"])
    seeds = [int(seed) * 100 + worker for worker in range(int(workers))]
    pool = [get_context("spawn").Process(target=work, args=(spec, data, storage, ends, device, s)) for s in seeds]
    for process in pool:
        process.start()
    for process in pool:
        process.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
