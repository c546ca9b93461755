"""Times on a GPU: milliseconds between two CUDA events, around launches or around the replay of a captured graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from igc_nas.nn.timing import NEVER_MS, Timer

L2_BYTES = 256 << 20
"""More than any GPU's L2 cache."""
BUSY_CYCLES = 200_000
"""Clock cycles (about 0.1 ms) for which the GPU is kept busy before `begin`: without queued work it would pass `begin`
while the host still submits what is timed, and the submission, some microseconds, would count."""
WARM_UPS = 3


def event_timer(run: Callable[[], object], device: torch.device, *, graph: bool, cold_cache: bool = False) -> Timer:
    """A function that runs `run` once on `device` and returns its milliseconds by the GPU's clock.

    With `graph` its kernels are captured once and replayed, so that launches are not timed. With `cold_cache` the L2
    cache is flooded before each run. A run that the device has no memory for takes `NEVER_MS`.
    """
    try:
        again = captured(run, device) if graph else run
    except torch.OutOfMemoryError:
        return lambda: NEVER_MS
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    flood = _flood(device) if cold_cache else None

    def once() -> float:
        with torch.cuda.device(device):
            if flood is not None:
                flood.zero_()
            torch.cuda._sleep(BUSY_CYCLES)  # type: ignore[no-untyped-call]
            begin.record()
            try:
                again()
            except torch.OutOfMemoryError:
                return NEVER_MS
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end))

    return once


@lru_cache(maxsize=8)
def _flood(device: torch.device) -> Tensor:
    return torch.empty(L2_BYTES, dtype=torch.int8, device=device)


def captured(
    run: Callable[[], object], device: torch.device, generators: Sequence[torch.Generator] = ()
) -> Callable[[], None]:
    """The kernels of `run` as a CUDA graph; called, it replays them.

    `run` runs before on a side stream, as capturing demands (PyTorch, CUDA semantics, CUDA Graphs). `generators` are
    those that it draws from, beside the default one: each replay moves them on.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            run()
    return graph.replay
