"""bench latency: how well a latency is reproduced when the same architecture is measured twice."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from igc_nas.analysis.ranking import agreement
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import arch_id
from igc_nas.bench.report import Report, Row
from igc_nas.evaluation.conditions import conditions_of
from igc_nas.evaluation.latency import Measurer
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.timing_cache import timing_cache_for
from igc_nas.space.search_space import SearchSpace
from igc_nas.study.records import Latency
from igc_nas.study.spec import LatencySpec


def bench_latency(
    device: Device,
    count: int = 20,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    *,
    archs: list[ArchConfig] | None = None,
    measurer: Measurer | None = None,
) -> Report:
    """`count` architectures of igc_cifar, each twice in random order: on an idle machine, then beside a busy process.

    A row's ratio is the larger of its two times over the smaller. `archs` and `measurer` replace the usual ones.
    """
    archs = archs or drawn_architectures(count, seed)
    measure = measurer or _measurer(device, archs[0].input)
    unit = measure(archs[0]).reference_ms
    rows: list[Row] = []
    extra: dict[str, Any] = {}
    for group, beside in (("quiet", contextlib.nullcontext()), ("busy neighbour", busy_process())):
        with beside:
            say(f"{group}:")
            found = measured_twice(archs, lambda arch: measure(arch, unit), seed, say)
        rows += [_row(group, *pair) for pair in found]
        difference, rank = agreement([a.normalised_ms for _, a, _ in found], [b.normalised_ms for _, _, b in found])
        noisy = sum(latency.noisy for _, a, b in found for latency in (a, b))
        extra[group] = {
            "median_difference": round(difference, 5),
            "rank_correlation": rank,
            "noisy_share": noisy / (2 * len(found)),
        }
    measure.cache.save()
    return Report(
        f"latency of {len(archs)} architectures in {measure.spec.runtime}, twice each in random order",
        tuple(rows),
        conditions_of(device).model_dump(exclude_none=True),
        ("quiet",),
        extra,
    )


def _measurer(device: Device, image: tuple[int, int, int]) -> Measurer:
    graph = device.kind == "cuda"  # as a search measures
    spec = LatencySpec(
        device=device.name, runtime=device.deployment_runtime, forms="any", input=image, cuda_graph=graph
    )
    return Measurer(spec, device, cache=timing_cache_for(device.name, spec.threads, "deployment"))


def drawn_architectures(count: int, seed: int) -> list[ArchConfig]:
    """Architectures of igc_cifar with at most 2 M parameters, drawn by the seed; more of them begin with the fewer."""
    from igc_nas.space.budget import Budget
    from igc_nas.space.feasible import feasible

    rng = np.random.default_rng(seed)
    within = feasible(SearchSpace.load("igc_cifar"), Budget(params=2_000_000))
    return [within.draw(rng) for _ in range(count)]


def measured_twice(
    archs: list[ArchConfig], measure: Callable[[ArchConfig], Latency], seed: int, say: Callable[[str], None]
) -> list[tuple[ArchConfig, Latency, Latency]]:
    """(architecture, first, second latency) of each; the measurements are in an order shuffled by the seed."""
    order = [*range(len(archs)), *range(len(archs))]
    np.random.default_rng(seed).shuffle(order)
    found: dict[int, list[Latency]] = {i: [] for i in range(len(archs))}
    for done, i in enumerate(order, start=1):
        found[i].append(measure(archs[i]))
        say(f"{done}/{len(order)} {found[i][-1].normalised_ms:.3f} ms {'; '.join(found[i][-1].noise)}")
    return [(archs[i], *pair) for i, pair in found.items()]  # type: ignore[misc]


def _row(group: str, arch: ArchConfig, first: Latency, second: Latency) -> Row:
    a, b = first.normalised_ms, second.normalised_ms
    return {
        "name": arch_id(arch),
        "group": group,
        "first_ms": a,
        "second_ms": b,
        "noisy": first.noisy + second.noisy,
        "ratio": max(a, b) / min(a, b),
    }


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Within the context another process keeps one core busy."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"]
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()
