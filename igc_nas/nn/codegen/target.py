"""Which vectors generated C should use on this machine: by timing, because a processor's flags do not say what is fast.

The candidates are timed once on three small networks; the best one, and the best of another vector length, are then
compiled for each network, and the faster one is used. All times are kept in the timing cache, so a network runs with
the same vectors when a study goes on.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import geometric_mean

import numpy as np

from igc_nas.arch.config import ArchConfig
from igc_nas.nn.c_compiler import networks_here
from igc_nas.nn.codegen.build import Compiled, compiled
from igc_nas.nn.codegen.emit import Source, source
from igc_nas.nn.codegen.pack import Floats
from igc_nas.nn.codegen.program import program
from igc_nas.nn.device import cpu_name
from igc_nas.nn.lowering.timing_cache import TimingCache, timing_cache_for
from igc_nas.nn.network import Network, build

RUNS, RUN_S = 9, 0.1
"""A network is timed for this many passes, or for this many seconds if that is over first; the fastest one counts."""


@dataclass(frozen=True)
class Target:
    """`lanes` floats in a vector, and how many `registers` hold vectors."""

    lanes: int
    registers: int

    def __str__(self) -> str:
        return f"{self.lanes} lanes, {self.registers} registers"


PORTABLE = Target(8, 16)
"""AVX2's; correct everywhere, and a fair choice for NEON and AVX-512."""
CANDIDATES = (Target(4, 32), PORTABLE, Target(8, 32), Target(16, 32))
TARGETS = "native targets, tiles 2"
"""The key of the candidates' times. Another rule of tiles is another number: its times are taken anew."""

_SAMPLES: tuple[dict[str, object], ...] = (
    {"unit": "igcv1", "L": 24, "M": 2, "blocks": 2},
    {"unit": "igcv2", "width": 64, "depth": 3, "blocks": 2},
    {"unit": "igcv3", "width": 32, "expand": 4, "G1": 2, "G2": 2, "blocks": 2},
)


def generated(network: Network, target: Target = PORTABLE) -> Source:
    """The C of a network in evaluation mode, batch norm folded in."""
    return source(program(network.plan, target.lanes), network_tensors(network), target.registers)


def network_tensors(network: Network) -> dict[str, Floats]:
    """The network's state_dict in float64."""
    return {name: tensor.detach().double().cpu().numpy() for name, tensor in network.state_dict().items()}


def tuned_here(network: Network) -> Compiled:
    """The network compiled as `tuned` does; times and code are kept in the user's cache.

    Raises `CompilerError`.
    """
    with times_here() as times:
        return tuned(network, times, networks_here())


def target_here() -> Target:
    """The fastest target on this machine, whose time is kept in the user's cache. Raises `CompilerError`."""
    with times_here() as times:
        return machine_targets(times, networks_here())[0]


def times_here() -> TimingCache:
    """The times of generated C on this machine."""
    return timing_cache_for(cpu_name(), 1, "native")


def tuned(network: Network, times: TimingCache, libraries: Path | None = None) -> Compiled:
    """The network compiled for the faster of two targets of this machine. Raises `CompilerError`.

    `libraries`: the folder where compiled networks are kept.
    """
    sources = {str(target): generated(network, target) for target in machine_targets(times, libraries)}

    @cache
    def network_of(target: str) -> Compiled:
        return compiled(sources[target], libraries)

    shape = hashlib.sha256("\0".join(text.text for text in sources.values()).encode()).hexdigest()[:16]
    measured = times.get(f"native {shape}", sources, lambda: {name: least_ms(network_of(name)) for name in sources})
    return network_of(min(sources, key=measured.__getitem__))


def machine_targets(times: TimingCache, libraries: Path | None = None) -> tuple[Target, Target]:
    """The fastest candidate on this machine, and the fastest of those with other lanes. Raises `CompilerError`."""

    def mean_ms(target: Target) -> float:
        archs = (ArchConfig.parse({"stem": {"width": 48}, "stage": [sample]}) for sample in _SAMPLES)
        sources = (generated(build(arch, 0).eval(), target) for arch in archs)
        return geometric_mean(least_ms(compiled(text, libraries)) for text in sources)

    names = {str(target): target for target in CANDIDATES}
    measured = times.get(TARGETS, names, lambda: {name: mean_ms(target) for name, target in names.items()})
    best, *rest = sorted(CANDIDATES, key=lambda target: measured[str(target)])
    return best, next(target for target in rest if target.lanes != best.lanes)


def least_ms(network: Compiled) -> float:
    """Milliseconds of the fastest of some passes over one image, after a warm-up."""
    image = np.zeros((1, *network.image), np.float32)
    network(image)
    found, until = [], time.perf_counter() + RUN_S
    for _ in range(RUNS):
        started = time.thread_time()  # others may use the processor meanwhile
        network(image)
        found.append((time.thread_time() - started) * 1000)
        if time.perf_counter() > until:
            break
    return min(found)
