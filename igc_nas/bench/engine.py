"""bench engine: the time that coordinator and store take for each trial, and how it grows with the study.

The real coordinator and the real store handle trials that take no time (see `igc_nas.bench.virtual_executor`).
The bookkeeping of a trial is all that the coordinator's process does for it, from the suggestion to the recorded
result, without the sampler, the pruner with its surrogate, and the invention of results, which are timed separately.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial, TrialState

from igc_nas.bench.virtual_executor import VirtualExecutor
from igc_nas.data.datasets import locate
from igc_nas.engine.coordinator import Coordinator, Limits
from igc_nas.engine.events import Ended, Event, Job, Opened
from igc_nas.engine.executor import Message, RungReport
from igc_nas.engine.progress import SearchDisplay
from igc_nas.engine.store import Store
from igc_nas.io.console import table_lines
from igc_nas.samplers.pruner import FinalErrorPrediction
from igc_nas.space.budget import Budget
from igc_nas.study.defaults import new_spec
from igc_nas.study.spec import SamplerName, StudySpec
from igc_nas.study.study import load_study

MARKS = (100, 1_000, 10_000)
"""The numbers of trials at which the figures are taken."""
MOST_AT_MARK = 200
"""The figures of a mark are of at most this number of trials before it, and of at most half of them."""
SAY_EVERY = 1_000
Apart = Literal["sampler", "rule", "stub"]
MB = 2**20


class Stopwatch:
    """Seconds (wall, CPU) of the coordinator's own work. What is done within `apart` is counted separately, by name."""

    def __init__(self) -> None:
        self.apart_s: dict[Apart, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
        self._away = np.zeros(2)

    def now(self) -> NDArray[np.float64]:
        """The seconds so far, from an arbitrary start."""
        return _clocks() - self._away

    @contextlib.contextmanager
    def apart(self, what: Apart) -> Iterator[None]:
        """Count the time of a block separately."""
        began = _clocks()
        try:
            yield
        finally:
            took = _clocks() - began
            self.apart_s[what] += took
            self._away += took


def _clocks() -> NDArray[np.float64]:
    return np.array([time.perf_counter(), time.process_time()])


@dataclass
class Ledger:
    """Seconds (wall, CPU) of bookkeeping by trial number: for its suggestion (`asked`) and its messages (`told`)."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    marks: Sequence[int] = MARKS
    asked: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    told: dict[int, NDArray[np.float64]] = field(default_factory=lambda: defaultdict(lambda: np.zeros(2)))
    ended: list[int] = field(default_factory=list)
    """The numbers of the evaluated trials, in the order in which they ended."""
    states: Counter[str] = field(default_factory=Counter)
    rss: dict[int, int] = field(default_factory=dict)
    """Resident bytes of the process by the number of ended trials; 0: before the first suggestion."""

    def end(self, number: int, state: str) -> bool:
        """Count a trial that has ended. Returns whether it was evaluated."""
        self.states[state] += 1
        if number not in self.asked:
            return False
        self.ended.append(number)
        if len(self.ended) in (1, *self.marks):
            self.weigh()
        return True

    def weigh(self) -> None:
        """Note the process's memory."""
        self.rss[len(self.ended)] = psutil.Process().memory_info().rss

    def bookkeeping(self) -> NDArray[np.float64]:
        """(ended, 2) seconds of each trial, in the order in which they ended."""
        return np.array([self.asked[n] + self.told[n] for n in self.ended]).reshape(-1, 2)


class _WatchedExecutor(VirtualExecutor):
    """Charges to a trial the time from an idle evaluator to its job, and the time between its messages and the next."""

    ledger: Ledger

    def idle(self) -> int:
        found = super().idle()
        self._since = self.ledger.watch.now()
        return found

    def submit(self, job: Job) -> None:
        self.ledger.asked[job.number] = self.ledger.watch.now() - self._since
        with self.ledger.watch.apart("stub"):
            super().submit(job)
        self._since = self.ledger.watch.now()

    def answer(self, number: int, should_continue: bool) -> None:
        with self.ledger.watch.apart("stub"):
            super().answer(number, should_continue)

    def messages(self, timeout: float | None) -> Iterator[Message]:
        with self.ledger.watch.apart("stub"):
            found = list(super().messages(timeout))
        for message in found:
            since = self.ledger.watch.now()
            yield message
            self.ledger.told[message.number] += self.ledger.watch.now() - since


class _WatchedCoordinator(Coordinator):
    """Times the pruner and its surrogate separately."""

    ledger: Ledger

    def pruning_prediction(self, report: RungReport) -> FinalErrorPrediction | None:
        with self.ledger.watch.apart("rule"):
            return super().pruning_prediction(report)


class _WatchedSampler(BaseSampler):
    """Times a sampler separately."""

    def __init__(self, inner: BaseSampler, watch: Stopwatch) -> None:
        self._inner = inner
        self._watch = watch

    def infer_relative_search_space(self, study: OptunaStudy, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        with self._watch.apart("sampler"):
            return self._inner.infer_relative_search_space(study, trial)

    def before_trial(self, study: OptunaStudy, trial: FrozenTrial) -> None:
        with self._watch.apart("sampler"):
            self._inner.before_trial(study, trial)

    def sample_relative(
        self, study: OptunaStudy, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._watch.apart("sampler"):
            return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: OptunaStudy, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        with self._watch.apart("sampler"):
            return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: OptunaStudy, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        with self._watch.apart("sampler"):
            self._inner.after_trial(study, trial, state, values)


@dataclass(frozen=True)
class Costs:
    """The figures of one mark: milliseconds of bookkeeping per trial, and the memory of the process."""

    trials: int
    n: int
    """The number of trials measured: the last ones before the mark."""
    median_ms: float
    p95_ms: float
    cpu_median_ms: float
    rss_mb: float
    growth_mb: float
    """Growth of the resident memory since the first trial ended."""

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {name: value if isinstance(value, int) else round(value, 4) for name, value in vars(self).items()}


@dataclass(frozen=True)
class EngineReport:
    """The result of `bench engine`."""

    trials: int
    workers: int
    states: Mapping[str, int]
    marks: tuple[Costs, ...]
    rates: Mapping[str, float]
    """Asks and tells per second of bookkeeping; trials per second of the whole run."""
    apart_ms: Mapping[str, float]
    """Mean milliseconds per trial of what is timed separately."""
    peak_mb: float
    opening_s: Mapping[str, float]
    conditions: Mapping[str, Any]

    @property
    def growth(self) -> dict[str, dict[str, float]]:
        """The median bookkeeping of each mark over that of the mark before, and of the last over that of the first."""
        pairs = [*zip(self.marks, self.marks[1:], strict=False)]
        pairs += [(self.marks[0], self.marks[-1])] if len(self.marks) > 2 else []
        return {
            f"{a.trials} to {b.trials}": {
                "wall": round(b.median_ms / a.median_ms, 3),
                "cpu": round(b.cpu_median_ms / max(a.cpu_median_ms, 1e-6), 3),
            }
            for a, b in pairs
        }

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "bench": "engine: bookkeeping of a trial, without sampler, pruner and evaluation",
            "trials": self.trials,
            "workers": self.workers,
            "states": dict(self.states),
            "bookkeeping": [costs.to_dict() for costs in self.marks],
            "growth": self.growth,
            "per_second": _rounded(self.rates),
            "apart_ms": _rounded(self.apart_ms),
            "peak_mb": round(self.peak_mb, 1),
            "opening_s": _rounded(self.opening_s),
            "conditions": dict(self.conditions),
        }

    def lines(self, width: int | None = None) -> list[str]:
        """For people, with a table that fits `width`."""
        titles = ["after", "of", "median ms", "p95 ms", "CPU ms", "RSS MB", "grown by"]
        rows = [
            [
                f"{c.trials:,}",
                str(c.n),
                f"{c.median_ms:.2f}",
                f"{c.p95_ms:.2f}",
                f"{c.cpu_median_ms:.2f}",
                f"{c.rss_mb:.0f}",
                f"{c.growth_mb:.1f}",
            ]
            for c in self.marks
        ]
        states = ", ".join(f"{count:,} {state}" for state, count in sorted(self.states.items()))
        return [
            f"bookkeeping of a trial among {self.trials:,} by {self.workers} virtual workers ({states})",
            *table_lines(titles, rows, (), width),
            *(f"growth from {step}: {g['wall']:.2f}x (CPU {g['cpu']:.2f}x)" for step, g in self.growth.items()),
            "per second: " + _listed(self.rates),
            "ms a trial apart: " + _listed(self.apart_ms),
            f"peak memory: {self.peak_mb:.0f} MB",
            "seconds to open: " + _listed(self.opening_s),
            "",
            ", ".join(f"{key} {value}" for key, value in self.conditions.items()),
        ]


def _rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: round(number, 4) for name, number in numbers.items()}


def _listed(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number:,.4g}" for name, number in numbers.items())


def bench_engine(
    trials: int = 10_000,
    workers: int = 256,
    sampler: SamplerName = "stratified",
    storage: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    marks: Sequence[int] = MARKS,
    **changes: Any,
) -> EngineReport:
    """Search `igc_cifar` within 2 M parameters with `workers` virtual evaluators until `trials` have ended.

    `storage` is the URL of a database; None: SQLite in a temporary folder. `changes` are those of `new_spec`.
    """
    with tempfile.TemporaryDirectory(prefix="igc-nas-bench-") as folder:
        place = Path(folder) / "engine"
        spec = _spec(sampler, **changes)
        began = time.perf_counter()
        ledger = Ledger(marks=marks)
        _search(place, spec, trials, workers, storage, say, ledger)
        wall_s = time.perf_counter() - began
        opening = _opening(place, storage)
    count = len(ledger.ended)
    asked, told = (np.sum(list(part.values()), axis=0)[0] for part in (ledger.asked, ledger.told))
    return EngineReport(
        trials=count,
        workers=workers,
        states=dict(ledger.states),
        marks=tuple(_costs(ledger)),
        rates={"asks": len(ledger.asked) / asked, "tells": count / told, "trials": count / wall_s},
        apart_ms={name: 1000 * took[0] / count for name, took in ledger.watch.apart_s.items()},
        peak_mb=max(ledger.rss.values()) / MB,
        opening_s=opening,
        conditions={
            "space": spec.space_name,
            "sampler": sampler,
            "storage": _kind(storage),
            "prune_below": spec.prune_below,
        },
    )


def _spec(sampler: SamplerName, **changes: Any) -> StudySpec:
    defaults: dict[str, Any] = {"budget": Budget(params=2_000_000), "sampler": sampler}
    defaults["name"] = f"engine-{secrets.token_hex(4)}"  # a new study in any database
    return new_spec(locate("shapes", None), "virtual", **(defaults | changes))


def _search(
    folder: Path,
    spec: StudySpec,
    trials: int,
    workers: int,
    storage: str | None,
    say: Callable[[str], None],
    ledger: Ledger,
) -> None:
    """Search as `igc-nas search --quiet` does, and enter the times of its trials in the ledger."""
    display = SearchDisplay(trials, None, quiet=True)

    def watch(event: Event) -> None:
        display.show(event)
        with ledger.watch.apart("stub"):
            if isinstance(event, Opened):
                ledger.weigh()
                store.optuna_study.sampler = _WatchedSampler(store.optuna_study.sampler, ledger.watch)
            elif isinstance(event, Ended):
                is_new = ledger.end(event.trial.number, event.trial.state)
                if is_new and len(ledger.ended) % SAY_EVERY == 0:
                    say(f"{len(ledger.ended):,} trials")

    with Store(folder, spec, storage) as store, _WatchedExecutor(spec, workers) as executor:
        coordinator = _WatchedCoordinator(store, Limits(trials), watch)
        coordinator.ledger = executor.ledger = ledger
        for _ in coordinator.run(executor):
            pass
        ledger.weigh()


def _costs(ledger: Ledger) -> Iterator[Costs]:
    """The figures at each mark that was reached, and at the end."""
    bookkeeping = 1000 * ledger.bookkeeping()
    for mark in sorted({*(mark for mark in ledger.marks if mark <= len(bookkeeping)), len(bookkeeping)}):
        n = min(MOST_AT_MARK, max(1, mark // 2))
        wall, cpu = bookkeeping[mark - n : mark].T
        yield Costs(
            trials=mark,
            n=n,
            median_ms=float(np.median(wall)),
            p95_ms=float(np.quantile(wall, 0.95)),
            cpu_median_ms=float(np.median(cpu)),
            rss_mb=ledger.rss[mark] / MB,
            growth_mb=(ledger.rss[mark] - ledger.rss[1]) / MB,
        )


def _opening(folder: Path, storage: str | None) -> dict[str, float]:
    """Seconds to read a study, to print its front in another process, and to open it for writing."""
    took: dict[str, float] = {}
    with _timed(took, "load"):
        study = load_study(folder)
    with _timed(took, "front"):
        study.front()
        study.hypervolume()
    with _timed(took, "hypervolume curve"):
        study.hypervolume_curve()
    with _timed(took, "igc-nas front"):
        command = [sys.executable, "-m", "igc_nas", "front", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.ExitStack() as stack:
        with _timed(took, "store"):
            store = stack.enter_context(Store(folder, study.spec, storage))
        assert len(store.trials) == len(study.trials)
    return took


@contextlib.contextmanager
def _timed(took: dict[str, float], what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    took[what] = time.perf_counter() - began


def _kind(storage: str | None) -> str:
    return (storage or "sqlite").partition(":")[0].partition("+")[0]
