"""The search as a function of a study's spec and of how to run it. It yields candidates.

for candidate in search(spec):
    print(candidate.cost.params, candidate.score.error)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from igc_nas.arch.config import ArchConfig
from igc_nas.data.datasets import relocate
from igc_nas.engine.coordinator import Coordinator, Evaluate, Limits
from igc_nas.engine.database import DATABASE_FILE, begun
from igc_nas.engine.events import Event, Notice
from igc_nas.engine.executor import Executor, ExecutorName, MakeEvaluator
from igc_nas.engine.process_executor import ProcessExecutor, refuse_while_imported
from igc_nas.engine.store import Store
from igc_nas.errors import InfeasibleError, StudyError, UsageError
from igc_nas.io.files import user_path
from igc_nas.io.records import differences
from igc_nas.study.baselines import Baseline
from igc_nas.study.records import Candidate
from igc_nas.study.spec import LatencySpec, StudySpec
from igc_nas.study.study import STUDY_FILE, TRIALS_FILE


@dataclass(frozen=True)
class Run:
    """How a search is run. Nothing here changes its results. A limit of None does not apply."""

    folder: Path
    trials: int | None = None
    """The number of trials to complete or prune, including those of earlier runs."""
    timeout_s: float | None = None
    """Seconds of this run; the next run resumes the trials that are running then."""
    time_s: float | None = None
    """Seconds of this run, kept to: no trial is started that is not expected to end in them, and those that run when
    they are over have 5 % of them more. Enqueued architectures, and what Optuna's samplers suggest, are started."""
    trial_timeout_s: float | None = None
    """Seconds that one trial may take, without the pauses in which other workers measure."""
    workers: int = 1
    threads: int = 1
    devices: tuple[str, ...] = ()
    """torch's names, `("cuda:0", "cuda:1")`; empty: the devices of this machine that the study's latencies are of."""
    data_dir: Path | None = None
    storage: str | None = field(default=None, repr=False)
    """The database, `sqlite:///path` or `postgresql://user:password@host/name`; None: study.db in the folder."""
    latency_command: str | None = None
    """The command that measures if the study's latencies are of another machine."""
    enqueue: tuple[ArchConfig, ...] = ()
    """Architectures to evaluate first, whether they are in the search space and within the budgets or not."""
    baselines: tuple[Baseline, ...] = ()
    """Networks to compare with, evaluated before the sampler's trials and not counted in `trials`; not yielded. The
    time of `time_s` begins when they have ended; `timeout_s` counts them too."""
    executor: ExecutorName = "processes"
    deterministic: bool = False
    """Whether workers on a GPU compute bit for bit the same, see `igc_nas.nn.device.make_deterministic`."""
    ray_address: str | None = None
    """HOST:PORT of a Ray cluster, for the executor `ray`; None: `$RAY_ADDRESS`, else this machine's."""
    workers_per_gpu: int = 1
    """How many of the executor `ray`'s workers share a GPU. (Processes are spread over `devices` by their number.)"""


def search(
    spec: StudySpec,
    run: Run | None = None,
    *,
    evaluate: Evaluate | None = None,
    evaluator: MakeEvaluator | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Iterator[Candidate]:
    """Search, and yield each candidate when it is complete. A study that is in `run.folder` is continued.

    With `evaluate`, trials run one after another in this process; otherwise in worker processes, each of which makes an
    `evaluator`, by default ours. (Workers import the script only if it defines the `evaluator`; then the call has to be
    under `if __name__ == "__main__":`.) Closing the iterator stops the search: running trials wait for the next run.

    Raises `StudyError` if the study cannot be opened or has other settings, `DataError`, `InfeasibleError`,
    `UsageError` where the runtime of its latencies is missing here, and `IgcNasError` where that has no code for a
    layer, or after five failures in a row for the same reason.
    """
    refuse_while_imported()
    run = run or Run(Path("studies") / spec.name)
    run = replace(run, folder=user_path(run.folder))
    if evaluate is None and evaluator is None:
        from igc_nas.evaluation.runtimes import check_runtime

        check_runtime(spec, run.enqueue)
    deadline = None if run.timeout_s is None else time.monotonic() + run.timeout_s
    limits = Limits(run.trials, deadline, run.time_s, run.enqueue, run.baselines)
    try:
        with Store(run.folder, continued(spec, run), run.storage) as store:
            coordinator = Coordinator(store, limits, on_event)
            steps = coordinator.run_inline(evaluate) if evaluate else _with_evaluators(coordinator, run, evaluator)
            with closing(steps):
                yield from steps
    except InfeasibleError:
        if run.storage is None and begun(run.folder) is None:  # nothing was measured: it stays in no list of studies
            for name in (STUDY_FILE, TRIALS_FILE, DATABASE_FILE):
                (run.folder / name).unlink(missing_ok=True)
        raise


def _with_evaluators(
    coordinator: Coordinator, run: Run, evaluator: MakeEvaluator | None
) -> Generator[Candidate, None, None]:
    if not coordinator.has_enough(0):
        with _executor(coordinator.store.spec, run, evaluator, coordinator.on_event) as executor:
            yield from coordinator.run(executor)


def _executor(
    spec: StudySpec, run: Run, evaluator: MakeEvaluator | None, on_event: Callable[[Event], None]
) -> Executor:
    """The executor of a run. Raises `StudyError`, `DataError`, `UsageError`."""
    make = evaluator or _our_evaluator()
    devices = run.devices or (("cpu",) if evaluator else matching_devices(spec.latency))
    if run.executor == "ray":
        return _ray_executor(spec, run, make, devices[0], on_event)
    info = relocate(spec.dataset, spec.dataset_sha256, run.data_dir)
    if (info.label, info.sha256) != (spec.dataset, spec.dataset_sha256):
        raise StudyError(f"the dataset is {info.label}; the study is about {spec.dataset}", "use another --study")
    return ProcessExecutor(
        spec,
        info,
        devices,
        run.workers,
        make,
        run.threads,
        run.folder,
        run.latency_command,
        run.trial_timeout_s,
        run.deterministic,
    )


def _ray_executor(
    spec: StudySpec, run: Run, make: MakeEvaluator, device: str, on_event: Callable[[Event], None]
) -> Executor:
    """The executor of a run on a Ray cluster. Raises `UsageError` with a latency command."""
    from igc_nas.engine.ray.executor import RayExecutor

    if spec.latency.remote:
        raise UsageError(
            "a latency command measures one network at a time; the nodes of a cluster do not wait for each other",
            "search without --executor ray",
        )
    return RayExecutor(
        spec,
        device,
        run.workers,
        make,
        run.threads,
        run.folder,
        run.ray_address,
        run.trial_timeout_s,
        lambda text: on_event(Notice(text)),
        run.workers_per_gpu,
        run.deterministic,
    )


def _our_evaluator() -> MakeEvaluator:
    from igc_nas.engine.evaluator import evaluator_at

    return evaluator_at


def continued(spec: StudySpec, run: Run) -> StudySpec:
    """The spec of the study that the run continues, with its latency scale; `spec` if there is no study yet.

    Raises `StudyError` if that study has other settings than `spec`.
    """
    study = begun(run.folder, run.storage)
    if study is None:
        return spec
    found = study.spec
    different = list(differences(spec.identity(), found.identity()))
    if different:
        raise StudyError(
            f"study {found.name} has other settings: {'; '.join(different[:4])}",
            "search into another folder",
        )
    return found


def matching_devices(latency: LatencySpec) -> tuple[str, ...]:
    """torch's names of the devices of this machine that a study's latencies are of; all if another machine measures.

    Raises `StudyError` if there is none.
    """
    if latency.remote:
        from igc_nas.nn.device import find_devices

        return tuple(device.torch_name for device in find_devices("auto"))
    here = devices_here()
    found = tuple(torch_name for torch_name, name in here.items() if name == latency.device)
    if not found:
        has = ", ".join(dict.fromkeys(here.values()))
        raise StudyError(
            f"the study's latencies are of {latency.device}; this machine has {has}, and latencies of two devices are "
            "not comparable",
            "start another study here, with the networks of this one enqueued",
        )
    return found


def devices_here() -> dict[str, str]:
    """The models of this machine's devices, by torch's names for them."""
    from igc_nas.nn.device import find_devices, survey_gpus

    return {device.torch_name: device.name for device in (*survey_gpus().supported, *find_devices("cpu"))}
