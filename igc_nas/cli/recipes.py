"""The recipe of a training to the end, from the options of `train` and `finals`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from igc_nas.cli.options import RecipeRequest
from igc_nas.cli.study_flags import parse_recipe
from igc_nas.errors import ConfigError
from igc_nas.io.files import read_text
from igc_nas.io.records import parse_toml
from igc_nas.nn.device import Device
from igc_nas.nn.lowering.fastest_dtype import fastest_dtype
from igc_nas.study.defaults import default_preset, full_recipe
from igc_nas.study.spec import DtypeName, Schedule


def full_recipe_of(
    request: RecipeRequest, side: int, device: Device, threads: int, begun: Iterable[Path] = ()
) -> Schedule:
    """The recipe that is requested, for images of `side` pixels. Raises `UsageError`, `ConfigError`.

    The dtype `auto` is that of the newest of the `begun` trainings (their run.toml), so that the same command continues
    them; without one the dtype that trains faster here.
    """
    given = {
        "epochs": request.epochs,
        "batch": request.batch,
        "lr": request.lr,
        "label_smoothing": request.label_smoothing,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    dtype = request.dtype
    if dtype == "auto":
        dtype = _dtype_of(begun) or fastest_dtype(device, request.forms, threads).dtype
    changes |= {"dtype": dtype, "forms": request.forms} | parse_recipe(request.recipe)
    return full_recipe(request.preset or default_preset(device.kind), side, **changes)


def _dtype_of(begun: Iterable[Path]) -> str | None:
    """The dtype in the newest of these run.toml files; None if there is none that can be read."""
    there = sorted((path for path in begun if path.is_file()), key=lambda path: path.stat().st_mtime)
    try:
        schedule = parse_toml(read_text(there[-1]), there[-1].name)["schedule"] if there else {}
        return schedule.get("dtype") if schedule.get("dtype") in get_args(DtypeName) else None
    except (ConfigError, KeyError, AttributeError, TypeError):
        return None
