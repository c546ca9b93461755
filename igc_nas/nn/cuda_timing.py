"""Times on a GPU: milliseconds between two CUDA events, around launches or around the replay of a captured graph."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import TypeVar

import torch
from torch import Tensor

from igc_nas.errors import GRAPHS, CaptureError
from igc_nas.io.text import one_line
from igc_nas.nn.timing import NEVER_MS, Timer

T = TypeVar("T")

L2_BYTES = 256 << 20
"""More than any GPU's L2 cache."""
BUSY_CYCLES = 200_000
"""Clock cycles (about 0.1 ms) for which the GPU is kept busy before `begin`: without queued work it would pass `begin`
while the host still submits what is timed, and the submission, some microseconds, would count."""
WARM_UPS = 3
MOST_TEXT = 200
"""Characters of a CUDA error, which goes on about environment variables."""


def trains_in_graphs() -> bool:
    """Whether training steps are captured on a GPU."""
    return os.environ.get(GRAPHS) != "0"


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
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which runs of a device are warmed up and captured.

    torch's own is of the device of the first capture. One for all: each stream has a workspace of cuBLAS that stays.
    """
    with torch.cuda.device(device):
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@lru_cache(maxsize=8)
def _flood(device: torch.device) -> Tensor:
    return torch.empty(L2_BYTES, dtype=torch.int8, device=device)


def captured(run: Callable[[], T], device: torch.device, generators: Sequence[torch.Generator] = ()) -> Callable[[], T]:
    """The kernels of `run` as a CUDA graph; called, it replays them and returns what `run` returned, written anew.

    `run` runs before on the same side stream, as capturing demands (PyTorch, CUDA semantics, CUDA Graphs). `generators`
    are those that it draws from, beside the default one: each replay moves them on. What is returned keeps `run`, and
    with it the tensors that the graph reads: a graph has their addresses only. Raises `CaptureError` where CUDA does
    not capture it, and what `run` raises.
    """
    with torch.cuda.device(device):
        current, stream = torch.cuda.current_stream(), _side_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        failure: Exception | None = None
        try:
            # A failed capture leaves its stream the current one: the outer context restores it.
            with torch.cuda.stream(current), _without_gc(), torch.cuda.graph(graph, stream=stream):
                try:
                    output = run()
                except Exception as error:  # ending the capture then raises another one, which says less
                    failure = error
                    raise
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if isinstance(failure, torch.OutOfMemoryError):
                raise failure from None
            raise CaptureError(one_line(failure or error, MOST_TEXT)) from (failure or error)

    return partial(_replay, graph, output, run)


def _replay(graph: torch.cuda.CUDAGraph, output: T, run: Callable[[], T]) -> T:
    """Replay a graph of `run`, which lives as long as this can be called."""
    graph.replay()
    return output


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Python collects no cycles meanwhile.

    To destroy a graph that is in one of them breaks off the capture of another (pytorch/pytorch pull request 161037).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
