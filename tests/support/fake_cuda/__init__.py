"""A GPU that is not there, to run code for CUDA on a machine without one.

Tensors are torch's fake ones: shapes, dtypes, strides and devices, but no values. So a test finds what mixes devices,
calls a kernel for CPUs with a tensor of the GPU, waits for the device, has an unexpected dtype, or cannot be captured
in a CUDA graph. It says nothing about values, times, memory or what cuDNN supports.

    with fake_cuda() as record:
        network = build(arch).to("cuda:0")
        network(torch.randn(8, 3, 32, 32, device="cuda:0")).sum().backward()
        assert record.waits == []

Reading a value (`.item()`, `float(x)`) is recorded as a wait and answered: integers are 1, floats 1e-6.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tests.support.fake_cuda.hooks import VERIFIED, cuda_is_the_accelerator, install_device_guard
from tests.support.fake_cuda.recording import GraphMemory, NotCapturableError, Record, Recorder, Search, place

__all__ = ["VERIFIED", "NotCapturableError", "Record", "Search", "fake_cuda"]

if VERIFIED:
    install_device_guard()  # before the process's first backward: autograd counts the devices once


@contextlib.contextmanager
def fake_cuda(
    count: int = 1, names: tuple[str, ...] = ("Fake GPU",), capability: tuple[int, int] = (9, 0)
) -> Iterator[Record]:
    """`count` GPUs with these names in turn; every tensor that is made within the context is fake."""
    record = Record()
    with contextlib.ExitStack() as stack:
        stack.enter_context(cuda_is_the_accelerator())
        stack.enter_context(_FakeTensors(allow_non_fake_inputs=True))
        for name, stub in _runtime(record, count, names, capability).items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", stub))
        stack.enter_context(mock.patch("torch.Generator", _Generator))
        stack.enter_context(mock.patch("igc_nas.nn.lowering.triton_norm.available", return_value=False))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        stack.enter_context(mock.patch.object(FakeTensor, "data_ptr", _data_ptr, create=True))
        stack.enter_context(_GeneratorDevices(record))
        stack.enter_context(Recorder(record))
        yield record


class _FakeTensors(FakeTensorMode):
    avoid_device_init = True  # type: ignore[assignment]


def _runtime(record: Record, count: int, names: tuple[str, ...], capability: tuple[int, int]) -> dict[str, Any]:
    """The functions of `torch.cuda` that igc_nas and torch call, by name."""

    def index(device: Any) -> int:
        return device if isinstance(device, int) else torch.device(device).index or 0

    def set_device(device: Any) -> None:
        record.current_device = index(device)

    @contextlib.contextmanager
    def device_context(device: Any) -> Iterator[None]:
        before = record.current_device
        set_device(device)
        try:
            yield
        finally:
            record.current_device = before

    @contextlib.contextmanager
    def capture(graph: _Graph, **_: Any) -> Iterator[None]:
        assert not record.capturing
        before, record.capturing, record.generators = len(record.launches), True, graph.generators
        record.graph_destroyed = False
        graph.memory = record.memory = GraphMemory()
        try:
            yield
        finally:
            record.capturing, record.generators, record.memory = False, [], None
        if record.graph_destroyed:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        graph.launches = len(record.launches) - before
        record.captured.append(graph.launches)

    def properties(device: Any = 0) -> Any:
        return SimpleNamespace(
            name=names[index(device) % len(names)],
            major=capability[0],
            minor=capability[1],
            total_memory=80 << 30,
            multi_processor_count=132,
            L2_cache_size=50 << 20,
            uuid=f"00000000-0000-0000-0000-00000000000{index(device)}",
        )

    return {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: count,
        "current_device": lambda: record.current_device,
        "get_device_name": lambda device=0: properties(device).name,
        "get_device_properties": properties,
        "get_device_capability": lambda device=0: capability,
        "get_arch_list": lambda: ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
        "mem_get_info": lambda device=0: (70 << 30, 80 << 30),
        "set_device": set_device,
        "device": device_context,
        "synchronize": lambda *_: record.wait("synchronize"),
        "empty_cache": lambda: None,
        "current_stream": lambda *_: _Stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "graph": capture,
        "Stream": _Stream,
        "Event": _Event,
        "CUDAGraph": type("CUDAGraph", (_Graph,), {"record": record}),
        "_sleep": lambda cycles: record.launches.append(f"_sleep {place()}"),
        "amp.common.amp_definitely_not_available": lambda: False,
    }


class _Stream:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def synchronize(self) -> None: ...


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.recorded = False

    def record(self, *_: Any) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded

    def elapsed_time(self, end: _Event) -> float:
        assert self.recorded
        assert end.recorded
        return 1.0


class _Graph:
    """Replays nothing; asserts that it was captured, and that what it reads is still there.

    To destroy it while another one is captured ends that capture.
    """

    record: Record

    def __init__(self, *_: Any, **__: Any) -> None:
        self.launches: int | None = None
        self.memory = GraphMemory()
        self.generators: list[torch.Generator] = []

    def __del__(self) -> None:
        if self.launches is not None and self.record.capturing:
            self.record.graph_destroyed = True

    def replay(self) -> None:
        assert self.launches is not None
        self.memory.check()

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)


class _Generator(torch.Generator):
    """A generator of the CPU that belongs to the device that was asked for."""

    def __new__(cls, device: Any = "cpu") -> Any:
        self = super().__new__(cls, "cpu")
        self.belongs_to = torch.device(device)
        return self


class _GeneratorDevices(TorchFunctionMode):
    """Refuses what torch refuses: a generator of another device; one that the graph which is captured does not know."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        if isinstance(generator, torch.Generator):
            device = getattr(generator, "belongs_to", generator.device)
            if self.record.capturing and not any(generator is known for known in self.record.generators):
                raise NotCapturableError("a generator that is not registered with the graph")
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and tensor.device.type not in (device.type, "meta"):
                    raise RuntimeError(f"a generator of {device} for a tensor of {tensor.device}")
        return result


def _apply(self: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` that replaces parameters: fake tensors cannot be swapped where weak references exist."""
    if recurse:
        for module in self.children():
            _apply(module, function)
    with torch.no_grad():
        for name, parameter in self._parameters.items():
            if parameter is not None and (changed := function(parameter)) is not parameter:
                self._parameters[name] = nn.Parameter(changed, parameter.requires_grad)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = function(buffer)
    return self


def _data_ptr(self: Tensor) -> int:
    """Torch reads addresses where it copies. A kernel in C that gets the address of a GPU's tensor would crash."""
    caller = sys._getframe(1).f_code.co_filename
    if "/torch/" not in caller:
        raise RuntimeError(f"the address of a tensor on {self.device} was read by {caller}")
    return 0
