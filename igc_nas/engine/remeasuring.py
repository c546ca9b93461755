"""Measure the candidates of a study again, under the study's own conditions, and record the new latencies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from igc_nas.arch.config import ArchConfig
from igc_nas.engine.search import matching_devices
from igc_nas.engine.store import replace_latencies
from igc_nas.errors import StudyError
from igc_nas.evaluation.latency import Measurer
from igc_nas.evaluation.remote import CommandMeasurer
from igc_nas.evaluation.runtimes import check_runtime
from igc_nas.nn.device import Device, configure_torch, find_devices
from igc_nas.nn.lowering.timing_cache import timing_cache_for
from igc_nas.study.records import Candidate, Latency
from igc_nas.study.spec import LatencySpec, StudySpec
from igc_nas.study.study import Study

SAVE_EVERY = 20
"""Measured candidates between two writes of trials.jsonl."""

Measure = Callable[[ArchConfig], Latency]


@dataclass(frozen=True)
class Remeasured:
    """A candidate with its recorded latency, and its new one."""

    candidate: Candidate
    latency: Latency

    @property
    def recorded_ms(self) -> float:
        """The recorded normalised latency."""
        return self.candidate.latency.normalised_ms

    @property
    def change(self) -> float:
        """Relative change of the normalised latency: 0.1 is 10 % slower than recorded."""
        return self.latency.normalised_ms / self.recorded_ms - 1


def remeasure(
    study: Study, candidates: Sequence[Candidate], measure: Measure, *, keep: bool = False
) -> Iterator[Remeasured]:
    """Measure candidates of a study again, one after the other.

    With `keep`, new latencies that are not noisy replace the recorded ones, see `replace_latencies`; they are written
    every `SAVE_EVERY` candidates and at the end. Raises what `measure` and `replace_latencies` raise.
    """
    quiet: dict[int, Latency] = {}
    for count, candidate in enumerate(candidates, start=1):
        latency = measure(candidate.arch)
        if not latency.noisy:
            quiet[candidate.trial] = latency
        if keep and (count % SAVE_EVERY == 0 or count == len(candidates)):
            assert study.folder is not None
            replace_latencies(study.folder, quiet)
        yield Remeasured(candidate, latency)


def study_measurer(spec: StudySpec, latency_command: str | None = None) -> Measure:
    """What measures a study's candidates: this machine, or the latency command, under the study's conditions.

    Raises `StudyError` if this machine has no device that the study's latencies are of, or the command is missing;
    `UsageError` if their runtime is missing here.
    """
    if not spec.latency.remote:
        device = find_devices(matching_devices(spec.latency)[0])[0]
        check_runtime(spec)
        return local_measurer(spec.latency, device, spec.budget.params, spec.reference_ms)
    if latency_command is None:
        raise StudyError("the study's latencies were measured by a command", "give it with --latency-command")
    measurer = CommandMeasurer(latency_command, spec.latency, spec.budget.params)
    return lambda arch: measurer(arch, spec.reference_ms)


def local_measurer(
    spec: LatencySpec,
    device: Device,
    most_params: int | None,
    reference_ms: float | None = None,
    *,
    energy: bool = False,
) -> Measure:
    """A `Measurer` on a device of this machine, which saves its timing cache after each architecture.

    Sets the number of torch's threads to the spec's.
    """
    configure_torch(device, spec.threads)
    cache = timing_cache_for(device.name, spec.threads, "deployment")
    measurer = Measurer(spec, device, most_params, cache, energy=energy)

    def measure(arch: ArchConfig) -> Latency:
        latency = measurer(arch, reference_ms)
        cache.save()
        return latency

    return measure
