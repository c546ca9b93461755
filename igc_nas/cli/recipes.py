"""The recipe of a training to the end, from the options of `train` and `finals`."""

from __future__ import annotations

from typing import Any, Protocol

from igc_nas.cli.study_flags import parse_recipe
from igc_nas.nn.device import Device
from igc_nas.study.defaults import default_preset, full_recipe
from igc_nas.study.spec import Schedule


class RecipeRequest(Protocol):
    """The options of `igc_nas.cli.options.recipe_options`. None: not given."""

    @property
    def preset(self) -> str | None:
        """`quick` or `full`."""

    @property
    def epochs(self) -> int | None:
        """Epochs in total."""

    @property
    def batch(self) -> int | None:
        """Images per step."""

    @property
    def lr(self) -> float | None:
        """Peak learning rate."""

    @property
    def label_smoothing(self) -> float | None:
        """Label smoothing."""

    @property
    def recipe(self) -> tuple[str, ...]:
        """`KEY=VALUE` texts."""

    @property
    def dtype(self) -> str:
        """A dtype, or `auto`."""

    @property
    def forms(self) -> str:
        """`fastest` or `factored`."""


def full_recipe_of(request: RecipeRequest, side: int, device: Device) -> Schedule:
    """The recipe that is requested, for images of `side` pixels. Raises `UsageError`, `ConfigError`."""
    given = {
        "epochs": request.epochs,
        "batch": request.batch,
        "lr": request.lr,
        "label_smoothing": request.label_smoothing,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    dtype = device.dtype_for(request.forms) if request.dtype == "auto" else request.dtype
    changes |= {"dtype": dtype, "forms": request.forms} | parse_recipe(request.recipe)
    return full_recipe(request.preset or default_preset(device.kind), side, **changes)
