"""A short check that a device does what a search needs: gradients, one trial with its latency, the energy of a run."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.data.datasets import DatasetInfo, locate
from igc_nas.engine.device_lock import DeviceLock
from igc_nas.engine.evaluator import Evaluator
from igc_nas.errors import IgcNasError
from igc_nas.evaluation.images import load_proxy
from igc_nas.evaluation.latency import Measurer
from igc_nas.evaluation.training import Training
from igc_nas.nn.device import Device, configure_torch
from igc_nas.nn.lowering.training import Forward, factored_forward
from igc_nas.nn.network import build
from igc_nas.study.defaults import default_recipe, new_spec
from igc_nas.study.records import Score

CHECKED = ArchConfig.parse(
    {
        "stem": {"width": 24},
        "stage": [
            {"unit": "igcv1", "L": 12, "M": 2, "blocks": 2},
            {"unit": "igcv2", "width": 48, "depth": 3, "blocks": 2, "stride": 2},
            {"unit": "igcv3", "width": 64, "expand": 4, "blocks": 2, "stride": 2},
        ],
    }
)
"""One stage of each unit."""
BATCH = 32
SPACE = "tiny"
"""Of the study whose recipe and latencies are taken: its space is not drawn from, and this one is counted at once."""
MOST_ERROR = {"float32": 1e-2, "bfloat16": 0.2, "float16": 0.2}
"""Allowed relative error (norm-wise) of all gradients against float64. Where rounding changes the sign of a ReLU's
input, a gradient changes by much more than rounding."""

MOST_LOSS_DIFFERENCE = 0.02
"""Allowed relative difference of the mean loss of 16 steps: sums on a GPU are not deterministic."""


@dataclass(frozen=True)
class SelfCheck:
    """One check: whether it passed, and what was seen, or the error."""

    name: str
    passed: bool
    result: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def self_check(device: Device, arch: ArchConfig = CHECKED, **recipe: Any) -> tuple[SelfCheck, ...]:
    """Check one device by a network, on the dataset that igc-nas draws itself.

    `recipe` changes the default recipe of the trial.
    """
    configure_torch(device, 1)
    info = locate("shapes")
    return (
        _checked("gradients", lambda: _gradients(device, arch)),
        *([_checked("captured step", lambda: _captured_step(device, info, arch))] if device.kind == "cuda" else []),
        _checked("trial", lambda: _trial(device, info, arch, recipe)),
        *([_checked("energy", lambda: _energy(device, arch))] if device.kind == "cuda" else []),
    )


def _checked(name: str, check: Callable[[], str]) -> SelfCheck:
    started = time.perf_counter()
    try:
        passed, result = True, check()
    except Exception as error:
        passed, result = False, " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return SelfCheck(name, passed, result, round(time.perf_counter() - started, 2))


def _gradients(device: Device, arch: ArchConfig) -> str:
    """One step's gradients on the device, in the dtype that it trains in, against float64 on the CPU."""
    network, images = build(arch, 0), torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = _gradient(copy.deepcopy(network).double(), images.double())
    on_device = network.to(device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = device.fast_dtype
    forward = factored_forward(on_device, device.kind, getattr(torch, dtype))
    found = _gradient(on_device, images.to(device.torch_device), forward).double().cpu()
    error = float((found - wanted).norm() / wanted.norm())
    if not error < MOST_ERROR[dtype]:
        raise IgcNasError(f"the gradients in {dtype} differ from float64 by {error:.1e} (relative)")
    return f"{dtype} differs from float64 by {error:.1e} (relative)"


def _gradient(network: nn.Module, images: Tensor, forward: Forward | None = None) -> Tensor:
    """All gradients of one training step as one vector; labels are 0, 1, 2, ... in turn."""
    logits = (forward or network.train())(images)
    labels = torch.arange(len(images), device=logits.device) % logits.shape[1]
    F.cross_entropy(logits.to(logits.dtype), labels).backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def _captured_step(device: Device, info: DatasetInfo, arch: ArchConfig) -> str:
    """An epoch of steps replayed from a CUDA graph against one launched one by one; a second one of each is timed."""
    recipe = default_recipe(device.kind, epochs=2, train_size=2048, held_out=64, rungs=[], batch=128)
    train, _ = load_proxy(info, recipe, 0, device.torch_device)
    losses, step_ms = [], []
    for capture in (False, True):
        network = build(arch.with_classes(info.classes), 0)
        training = Training(network, train, recipe, device, 0, capture=capture)
        losses.append(training.epoch().loss)
        started = time.perf_counter()
        training.epoch()
        step_ms.append(1000 * (time.perf_counter() - started) / training.steps_per_epoch)
    if not abs(losses[1] - losses[0]) < MOST_LOSS_DIFFERENCE * losses[0]:
        raise IgcNasError(f"the losses of an epoch are {losses[0]:.4f} launched and {losses[1]:.4f} replayed")
    return (
        f"losses {losses[0]:.4f} and {losses[1]:.4f}; a step: {step_ms[0]:.2f} ms launched, {step_ms[1]:.2f} replayed"
    )


def _trial(device: Device, info: DatasetInfo, arch: ArchConfig, recipe: dict[str, Any]) -> str:
    """One trial by the default recipe, with changes, and how many fit into an hour."""
    with tempfile.TemporaryDirectory() as folder:
        spec = new_spec(info, device.name, device.kind, space=SPACE, name="self-check", recipe=recipe)
        evaluator = Evaluator(spec, info, device, 1, DeviceLock(Path(folder), 0, 1, device.synchronize))
        started = time.perf_counter()
        outcome = evaluator(arch.with_classes(info.classes), 0)
        seconds = time.perf_counter() - started
    assert isinstance(outcome.score, Score)
    spent = outcome.spent
    assert spent is not None
    return (
        f"{seconds:.1f} s ({spent.prepare_s + spent.measure_s:.1f} measuring, {spent.choose_s:.1f} choosing forms, "
        f"{spent.train_s:.1f} training {outcome.score.samples:,} images); "
        f"latency {outcome.latency.median_ms:.3g} ms; about {3600 / seconds:,.0f} trials an hour by one worker"
    )


def _energy(device: Device, arch: ArchConfig) -> str:
    """The energy of one forward pass, where the driver counts it."""
    spec = new_spec(locate("shapes"), device.name, device.kind, space=SPACE, name="self-check").latency
    latency = Measurer(spec, device, energy=True)(arch)
    if latency.energy_mj is None:
        return "not counted by this GPU or driver"
    return f"{latency.energy_mj:.3g} mJ a forward pass"
