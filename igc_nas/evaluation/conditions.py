"""The conditions of a measurement: device, threads, versions, load, clocks, and a GPU's temperature and power."""

from __future__ import annotations

import torch

from igc_nas._version import __version__
from igc_nas.evaluation.host import cpu_clock_mhz, load
from igc_nas.nn.device import Device, uses_tf32
from igc_nas.nn.nvml import find_gpu
from igc_nas.study.records import Conditions


def conditions_of(device: Device) -> Conditions:
    """The conditions of a measurement that is taken on `device` now."""
    common = Conditions(
        device=device.name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        igc_nas=__version__,
        load=load(),
        clock_mhz=cpu_clock_mhz() if device.kind == "cpu" else None,
        tf32=uses_tf32() if device.kind == "cuda" else None,
    )
    gpu = find_gpu(device.uuid) if device.uuid else None
    if gpu is None:
        return common
    state = gpu.state()
    return common.model_copy(
        update={
            "clock_mhz": state.sm_clock_mhz,
            "memory_clock_mhz": state.memory_clock_mhz,
            "temperature_c": state.temperature_c,
            "power_w": state.power_w,
            "throttle": state.throttle,
            "mig": gpu.is_mig or None,
        }
    )
