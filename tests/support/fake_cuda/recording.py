"""What a program does with a fake GPU: waits, launches, transfers, operators without a CUDA kernel, cuDNN searches."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense.default: "item",
    aten.item.default: "item",
    aten.is_nonzero.default: "bool",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.bincount.default: "bincount",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
}
"""Operators whose result's size or value the host must know: it waits for the device."""
WITHOUT_LAUNCH = frozenset(
    """view _unsafe_view reshape view_as permute transpose t numpy_T movedim expand slice select detach alias lift_fresh
    unsqueeze squeeze flatten unfold as_strided diagonal split split_with_sizes chunk unbind empty empty_like
    empty_strided new_empty new_empty_strided set_ resize_ contiguous to type_as _local_scalar_dense item
    is_same_size is_pinned sym_size device dim numel layout dtype""".split()  # noqa: SIM905 - shorter
)
SMALL = 1e-6
"""The value of a float that the program reads: a finite loss, an error small enough."""


class NotCapturableError(RuntimeError):
    """The program did, while a CUDA graph was captured, what a graph cannot hold."""


class Search(NamedTuple):
    """What cuDNN's benchmark mode distinguishes: it tries its engines once for each, in each thread.

    PyTorch's cache is thread-local (aten/src/ATen/native/cudnn/Conv_v8.cpp); backward runs in autograd's thread.
    """

    product: str
    image: tuple[int, ...]
    weight: tuple[int, ...]
    stride: object
    dtype: torch.dtype
    channels_last: bool
    tf32: bool | None
    thread: str


class GraphMemory:
    """The memory that a graph's kernels use at fixed addresses: its own, and that of tensors from before its capture.

    A graph owns what is allocated while it is captured. It keeps no other tensor alive.
    """

    def __init__(self) -> None:
        self._own: set[int] = set()
        self._outer: dict[int, tuple[StorageWeakRef, str]] = {}

    def use(self, tensors: Sequence[Tensor]) -> None:
        """Note the operands of a kernel that is captured."""
        for tensor in tensors:
            if tensor.device.type == "cuda" and (at := tensor.untyped_storage()._cdata) not in self._own:
                what = f"{tuple(tensor.shape)} at {place()}"
                self._outer.setdefault(at, (StorageWeakRef(tensor.untyped_storage()), what))

    def allocate(self, tensors: Sequence[Tensor]) -> None:
        """Note the results of a kernel that is captured."""
        self._own |= {at for t in tensors if (at := t.untyped_storage()._cdata) not in self._outer}

    def check(self) -> None:
        """Raise `RuntimeError` where a replay would read memory that was given back."""
        if freed := [what for storage, what in self._outer.values() if storage.expired()]:
            raise RuntimeError(f"a CUDA graph is replayed whose inputs are freed: {freed[0]} and {len(freed) - 1} more")


@dataclass
class Record:
    """What happened since the context began, or since `clear`. Places are `file.py:line in function`."""

    waits: list[tuple[str, str]] = field(default_factory=list)
    launches: list[str] = field(default_factory=list)
    transfers: list[tuple[str, str]] = field(default_factory=list)
    cpu_only: list[tuple[str, str]] = field(default_factory=list)
    captured: list[int] = field(default_factory=list)
    """Launches of each captured graph."""
    searches: dict[Search, str] = field(default_factory=dict)
    capturing: bool = False
    generators: list[torch.Generator] = field(default_factory=list)
    """Those that are registered with the graph that is captured now."""
    graph_destroyed: bool = False
    """Whether a graph was destroyed while another one is captured."""
    memory: GraphMemory | None = None
    """What the graph that is captured now reads and writes."""
    current_device: int = 0

    def clear(self) -> None:
        """Forget everything so far, but not what is captured now."""
        for part in (self.waits, self.launches, self.transfers, self.cpu_only, self.captured):
            part.clear()
        self.searches.clear()

    def wait(self, reason: str) -> None:
        """The host waits for the device. Raises `NotCapturableError` while a graph is captured."""
        if self.capturing:
            raise NotCapturableError(f"{reason} while a CUDA graph is captured, at {place()}")
        self.waits.append((reason, place()))


def place() -> str:
    """The innermost line of igc_nas on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if "/igc_nas/" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside igc_nas"


class Recorder(TorchDispatchMode):
    """Writes to a `Record` what each operator would do on a GPU."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = _tensors((args, kwargs))
        on_gpu = any(t.device.type == "cuda" for t in operands)
        namespace, _, name = func._schema.name.partition("::")
        if on_gpu:
            self._check(func, namespace, name, operands)
            if "conv" in name and len(operands) > 1 and torch.backends.cudnn.benchmark:
                self._search(name, operands, args)
        if func in (aten._local_scalar_dense.default, aten.item.default) and isinstance(args[0], FakeTensor):
            dtype = args[0].dtype
            return SMALL if dtype.is_floating_point else dtype == torch.bool or 1
        if name.startswith("_fused_"):  # a fused optimiser step: torch has no fake kernel for it
            if len(devices := {t.device for t in operands}) > 1:
                raise RuntimeError(f"{name} on {devices}")
            if kwargs.get("is_first_step") and kwargs.get("found_inf") is not None:
                raise RuntimeError(f"{name}: with an overflow in the first step the momentum stays uninitialised")
            self.record.launches.append(f"{name} {place()}")
            return None
        if memory := self.record.memory:
            memory.use(operands)
        result = func(*args, **kwargs)
        if on_gpu and "conv" in name and len(operands) > 1:
            result = _in_cudnn_layout(result, operands)
        results = _tensors(result)
        if memory:
            memory.allocate(results)
        if on_gpu or any(t.device.type == "cuda" for t in results):
            self._count(name, operands, results, kwargs)
        return result

    def _check(self, func: Any, namespace: str, name: str, operands: Sequence[Tensor]) -> None:
        if namespace in ("mkldnn", "mkl", "onednn", "quantized") or "mkldnn" in name or "onednn" in name:
            self.record.cpu_only.append((str(func), place()))
        if "conv" in name and len(dtypes := {str(t.dtype) for t in operands}) > 1:
            raise RuntimeError(f"{name} of {' and '.join(sorted(dtypes))}: one dtype expected")
        if func in WAITING and operands[0].device.type == "cuda":
            self.record.wait(WAITING[func])
        if name == "index" and any(t.dtype in (torch.bool, torch.uint8) for t in operands[1:]):
            self.record.wait("index by a mask")

    def _search(self, name: str, operands: Sequence[Tensor], args: Any) -> None:
        backward = name == "convolution_backward"
        image, weight = operands[1:3] if backward else operands[:2]
        products = ["forward"]
        if backward:
            products = [k for k, wanted in zip(("input", "weight"), args[-1], strict=False) if wanted]
        for product in products:
            key = Search(
                product,
                tuple(image.shape),
                tuple(weight.shape),
                tuple(operands[0].shape[2:]) if backward else _pair(args[3] if len(args) > 3 else 1),
                image.dtype,
                image.is_contiguous(memory_format=torch.channels_last),
                torch.backends.cudnn.allow_tf32 if image.dtype == torch.float32 else None,
                "main" if threading.current_thread() is threading.main_thread() else "autograd",
            )
            self.record.searches.setdefault(key, place())

    def _count(self, name: str, operands: Sequence[Tensor], results: Sequence[Tensor], kwargs: Any) -> None:
        devices = {t.device.type for t in (*operands, *results) if t.dim() or t.device.type == "cuda"}
        if name in ("_to_copy", "copy_", "copy", "_pin_memory") and len(devices) > 1:
            target = operands[0] if name == "copy_" else results[0]
            direction = "to the host" if target.device.type == "cpu" else "to the device"
            self.record.transfers.append((direction, place()))
            if not kwargs.get("non_blocking"):
                self.record.wait(f"copy {direction}")
        elif name not in WITHOUT_LAUNCH:
            self.record.launches.append(f"{name} {place()}")


def _pair(stride: Any) -> tuple[int, ...]:
    return (stride, stride) if isinstance(stride, int) else tuple(stride)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _in_cudnn_layout(result: Any, operands: Sequence[Tensor]) -> Any:
    """A convolution's results in channels-last where an operand is, as cuDNN's; a CPU build of torch differs."""
    if any(
        t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in operands
    ):
        return tree_map_only(
            Tensor, lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, result
        )
    return result
