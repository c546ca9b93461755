"""The parameters of a space by their values, as people read them: `stem.width` = 48, `stage1.unit` = "igcv2".

The samplers of a study work on indices, the same names in every trial (`SearchSpace.parameters`). Here a key that every
unit of a stage chooses from the same values is the stage's, `stage1.blocks`; any other is its unit's own, such as
`stage1.igcv2.depth`, and is chosen only where the stage is built of that unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from igc_nas.arch.config import ArchConfig
from igc_nas.errors import ConfigError
from igc_nas.io.text import nearest
from igc_nas.space.search_space import Params, SearchSpace, StageSpace

Value = bool | int | float | str
Values = Mapping[str, Value]


@dataclass(frozen=True)
class _Choice:
    """A parameter: its name, its values, and its name and number of indices among `SearchSpace.parameters`."""

    name: str
    values: tuple[Value, ...]
    index: str
    count: int

    def value_at(self, index: int) -> Value:
        """The value for an index in range(count), as `SearchSpace.decode` reads it."""
        return self.values[index * len(self.values) // self.count]

    def index_of(self, value: Value) -> int:
        """The first index for a value. Raises `ConfigError`."""
        for place, known in enumerate(self.values):
            if known == value and isinstance(known, bool) == isinstance(value, bool):
                return -(-place * self.count // len(self.values))
        names = [known for known in self.values if isinstance(known, str)]
        hint = nearest(value, names, "") if isinstance(value, str) else ""
        raise ConfigError(f"{self.name}: {value!r:.40} is not one of {', '.join(map(str, self.values))}", hint or None)


class Parameters:
    """The parameters of `space` by their values."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    @cached_property
    def choices(self) -> dict[str, tuple[Value, ...]]:
        """All parameters with their values, those of every unit included."""
        found: dict[str, tuple[Value, ...]] = {}
        most = max(len(stage.choices) for stage in self.space.stages)
        for number in range(most):
            units = {f"stage{s.number}.unit": [*s.choices][number % len(s.choices)] for s in self.space.stages}
            found |= {choice.name: choice.values for choice in self._walk(units)}
        return found

    def choose(self, of: Callable[[str, tuple[Value, ...]], Value]) -> dict[str, Value]:
        """Values for one architecture, each chosen by `of` from a name and its values."""
        chosen: dict[str, Value] = {}
        for choice in self._walk(chosen):
            chosen[choice.name] = of(choice.name, choice.values)
        return chosen

    def architecture(self, values: Values) -> ArchConfig:
        """The architecture of values. Raises `ConfigError` where one is missing or they make no valid architecture."""
        params: dict[str, int | str] = dict.fromkeys(self.space.parameters, 0)
        for choice in self._walk(values):
            if choice.name not in values:
                raise ConfigError(f"{choice.name} is missing")
            index = choice.index_of(values[choice.name])
            params[choice.index] = str(values[choice.name]) if choice.name.endswith(".unit") else index
        return self.space.decode(params)

    def of(self, arch: ArchConfig) -> dict[str, Value]:
        """The values of an architecture. Raises `ConfigError` if it is not of the space."""
        return self.of_indices(self.space.encode(arch))

    def of_indices(self, params: Params) -> dict[str, Value]:
        """The values for all of the space's indices, whether they make a valid architecture or not."""
        units = {name: value for name, value in params.items() if isinstance(value, str)}
        found: dict[str, Value] = {}
        for choice in self._walk(units):
            value = params[choice.index]
            found[choice.name] = value if isinstance(value, str) else choice.value_at(value)
        return found

    def _walk(self, values: Values) -> Iterator[_Choice]:
        """The parameters in order; those of a stage follow from its unit in `values`, which is read when it is due."""
        for at, choices in (("stem", self.space.stem_choices), ("head", self.space.head_choices)):
            for key, options in choices.items():
                if len(options) > 1:
                    yield _Choice(f"{at}.{key}", _plain(options), f"{at}.{key}", len(options))
        for stage in self.space.stages:
            at = f"stage{stage.number}"
            unit = next(iter(stage.choices))
            if len(stage.choices) > 1:
                yield _Choice(f"{at}.unit", tuple(stage.choices), f"{at}.unit", len(stage.choices))
                unit = str(values[f"{at}.unit"])
            for key, options in stage.choices[unit].items():
                if len(options) > 1:
                    own = "" if _is_shared(stage, key) else f"{unit}."
                    yield _Choice(f"{at}.{own}{key}", _plain(options), f"{at}.{key}", stage.keys[key])


def _is_shared(stage: StageSpace, key: str) -> bool:
    """Whether every unit of a stage chooses a key from the same values."""
    return len({repr(choices.get(key)) for choices in stage.choices.values()}) == 1


def _plain(options: tuple[Any, ...]) -> tuple[Value, ...]:
    """Values that Optuna stores; a list of a space file (a head's hidden layers) as its text."""
    return tuple(option if isinstance(option, bool | int | float | str) else str(option) for option in options)
