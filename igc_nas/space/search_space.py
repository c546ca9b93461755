"""A search space: the choices per stage, the valid architectures among them, and their parameters for a sampler.

A space file is TOML: a list is a choice, a scalar a constant, each `[[stage]]` a stage, each `[stage.UNIT]` a unit that
the stage may be built of; keys of the stage hold for all its units. `complementary = "strict"` or `"loose"` leaves out
the options whose unit does not meet that condition of the papers (see `igc_nas.arch.complementary`); `"any"` is the
default. Whether a stage fits behind another depends on the width between them only, so what is valid, how many there
are and which is smallest follow from one walk over the stages backwards (dynamic programming over the shape that enters
a stage), without listing the architectures.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer
from pydantic_core import PydanticKnownError

from igc_nas.arch.complementary import Condition, unmet
from igc_nas.arch.config import ArchConfig, Head, Image, Stem, number_of_classes
from igc_nas.arch.cost import Cost, layers_cost
from igc_nas.arch.plan import normalised
from igc_nas.arch.shapes import Shape, layers_shape
from igc_nas.arch.stages import STAGE_OF_UNIT, UNITS, StageConfig, out_width
from igc_nas.arch.units import end_layers, stage_blocks, stage_layers, stem_layers
from igc_nas.errors import ConfigError
from igc_nas.io.files import is_file, read_text, user_path
from igc_nas.io.records import Frozen, first_problem, key_text, parse_toml
from igc_nas.io.resources import shipped
from igc_nas.io.text import nearest, nearest_and_all

MOST_OPTIONS = 200_000
SAMPLE: Shape = (64, 4, 4)
"""A map at whose shape heads are compared: those that build the same layers there do so at any shape."""
_LISTS = re.compile(r"^ *\[\[ *(\w+) *\]\]", re.MULTILINE)
TEMPLATE = Path(__file__).with_name("template.toml")
"""A space file to edit: every key, with its unit and default."""
Metric = Literal["params", "macs", "activations"]
METRICS: tuple[Metric, ...] = ("params", "macs", "activations")
Params = Mapping[str, int | str]
Comparison = Callable[[int, int], bool]


class Suggests(Protocol):
    """The methods of an Optuna `Trial` or `FixedTrial` that a space calls."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """An integer in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """One of `choices`."""


def _head_of_a_space(table: object) -> object:
    """A head without choices is a `Head`, so that it is checked and stored as one. Refuse what is no table."""
    if not isinstance(table, Mapping | Head | None):
        raise PydanticKnownError("dict_type")
    if isinstance(table, Mapping) and not any(_is_choice(key, value) for key, value in table.items()):
        return Head.model_validate(dict(table))
    return table


@dataclass(frozen=True)
class Frame:
    """What stands around the stages: the stem in front of them, the head behind."""

    stem: Stem
    head: Head | None


class SpaceFile(Frozen):
    """The contents of a space file; a study keeps a copy. Raises `ConfigError` from `parse` and `load`."""

    paper: str = ""
    intent: str = ""
    input: Image = (3, 32, 32)
    complementary: Condition = "any"
    """The condition that the unit of every stage must meet; other options are left out."""
    stem: dict[str, Any]
    stages: Annotated[tuple[dict[str, Any], ...], Field(alias="stage", strict=False, min_length=1, max_length=32)]
    head: Annotated[Head | dict[str, Any] | None, BeforeValidator(_head_of_a_space)] = None
    """Fixed, or a table with choices such as `pool = ["average", "gdc"]`."""

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `complementary = "any"` out: studies are compared key by key, and older ones have no such key."""
        data: dict[str, Any] = dump(self)
        if self.complementary == "any":
            data.pop("complementary", None)
        return data

    @classmethod
    def load(cls, path: Path, side: int | None = None) -> SpaceFile:
        """Read a space file; `side` replaces that of its images."""
        text = read_text(path)
        try:
            found = cls.parse(parse_toml(text, path.name), path.name)
        except ConfigError:
            other = next((key for key in _LISTS.findall(text) if key != "stage"), None)
            if other is None or "stage" in _LISTS.findall(text):
                raise
            raise ConfigError(f"{path.name}: {key_text(other)}: unknown key; did you mean [[stage]]?") from None
        return found if side is None else found.with_side(side)

    def with_side(self, side: int) -> SpaceFile:
        """The same space for square images of `side` pixels a side. Raises `ConfigError` for a side that is none."""
        same = self.input[1:] == (side, side)
        return self if same else self.parse(self.to_dict() | {"input": [self.input[0], side, side]})

    def to_dict(self) -> dict[str, Any]:
        """Plain data as the file holds it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def choices(self) -> dict[str, Any]:
        """`to_dict` without `paper` and `intent`, texts that may be corrected: equal for equal spaces."""
        return {key: value for key, value in self.to_dict().items() if key not in ("paper", "intent")}


@dataclass(frozen=True)
class StageSpace:
    """The choices of one stage: for each unit its keys with their values, and the valid options among them."""

    number: int
    choices: dict[str, dict[str, tuple[Any, ...]]]
    options: tuple[StageConfig, ...]

    @cached_property
    def keys(self) -> dict[str, int]:
        """Each key that is a choice for some unit, with the number of values of the unit that has the most."""
        most: dict[str, int] = {}
        for values_of in self.choices.values():
            for key, values in values_of.items():
                most[key] = max(most.get(key, 1), len(values))
        return {key: count for key, count in most.items() if count > 1}

    @cached_property
    def _following(self) -> dict[int, tuple[StageConfig, ...]]:
        return {}

    def following(self, in_width: int) -> tuple[StageConfig, ...]:
        """The options that fit behind `in_width` channels, one for each different network."""
        if in_width not in self._following:
            fitting = [option for option in self.options if option.problem(in_width) is None]
            found: dict[object, StageConfig] = {}
            for option, signature in zip(fitting, _signatures(fitting, in_width), strict=True):
                found.setdefault(signature, option)
            self._following[in_width] = tuple(found.values())
        return self._following[in_width]

    @cached_property
    def _leading(self) -> dict[Shape, Counter[Shape]]:
        return {}

    def leading(self, shape: Shape) -> Counter[Shape]:
        """How many of the options that fit behind `shape` lead to each shape."""
        if shape not in self._leading:
            ways: dict[object, list[StageConfig]] = {}
            for option in self.following(shape[0]):
                way = option if vars(option).get("pool") else (out_width(option, shape[0]), option.stride)
                ways.setdefault(way, []).append(option)
            self._leading[shape] = Counter()
            for alike in ways.values():
                self._leading[shape][shape_after(alike[0], shape)] += len(alike)
        return self._leading[shape]

    def counted(self, option: StageConfig, in_width: int) -> StageConfig | None:
        """The option of `following` that builds the same network as `option` behind `in_width` channels."""
        if option.problem(in_width) is not None:
            return None
        for other in self.following(in_width):
            if len(set(_signatures([option, other], in_width))) == 1:
                return other
        return None

    @cached_property
    def _priced(self) -> dict[Shape, tuple[tuple[StageConfig, Cost, Shape], ...]]:
        return {}

    def priced(self, shape: Shape) -> tuple[tuple[StageConfig, Cost, Shape], ...]:
        """The options that fit behind `shape`, each with its cost there and the shape that leaves it."""
        if shape not in self._priced:
            found = _price(self.following(shape[0]), shape)
            self._priced[shape] = tuple((option, cost, shape_after(option, shape)) for option, cost in found)
        return self._priced[shape]


class SearchSpace:
    """The architectures of a space file for images of its `input` and a number of `classes`.

    Raises `ConfigError` where the file is not a space, holds no valid architecture, or one whose maps lose all pixels.
    """

    def __init__(self, file: SpaceFile, classes: int, name: str = "space") -> None:
        self.file = file
        self.name = name
        self.classes = number_of_classes(classes)
        self._extremes: dict[tuple[Metric, Comparison], ArchConfig] = {}
        self.stems = _some(Stem, file.stem, f"{name}: stem")
        self.stem_choices = _choices(file.stem)
        self.heads: tuple[Head | None, ...] = ()
        self.head_choices: dict[str, tuple[Any, ...]] = {}
        if isinstance(file.head, dict):
            self.heads = _some(Head, file.head, f"{name}: head")
            self.head_choices = _choices(file.head)
        else:
            self.heads = (file.head,)
        self._frames: dict[object, Frame] = {}
        for frame in (Frame(stem, head) for stem in self.stems for head in self.heads):
            self._frames.setdefault(self._signature(frame), frame)
        self.frames = tuple(self._frames.values())
        """Of those that build the same network the first."""
        if file.input[1] != file.input[2] and any(head and head.pool == "gdc" for head in self.heads):
            raise ConfigError(f"{name}: a gdc head needs square images", "write input = [3, 32, 32]")
        self.stages = tuple(
            _stage_space(i, table, name, file.complementary) for i, table in enumerate(file.stages, start=1)
        )
        if not self.size:
            raise ConfigError(
                f"{name}: no choice of stage {self._first_unfit()} fits behind what is before it",
                "a group count must divide the widths around it; IGCV2's width needs a factor for each 1x1 convolution",
            )
        self._check_maps()

    def _check_maps(self) -> None:
        """Raise `ConfigError` if pools (or a stem without padding) leave no pixel in some architecture."""
        for number, entering in enumerate(self.shapes):
            if any(min(shape[1:3]) < 1 for shape in entering):
                pixels, where = "{1} x {2}".format(*self.file.input), f"stage {number}" if number else "the stem"
                raise ConfigError(
                    f"{self.name}: of images of {pixels} pixels {where} leaves nothing in some architecture",
                    "use larger images, or smaller strides and pools",
                )

    def _signature(self, frame: Frame) -> object:
        """Equal for frames that build the same network around the same stages."""
        stem = normalised(stem_layers(frame.stem, self.file.input[0]))
        return stem, tuple((name, normalised(layers)) for name, layers in end_layers(SAMPLE, frame.head, self.classes))

    def counted_frame(self, frame: Frame) -> Frame | None:
        """The one of `frames` that builds the same network as `frame`; None for a frame of another space."""
        if frame.stem not in self.stems or frame.head not in self.heads:
            return None
        return self._frames[self._signature(frame)]

    def _first_unfit(self) -> int:
        """The number of the first stage of which no option follows any shape that leaves the one before."""
        return next((number for number, shapes in enumerate(self.shapes[1:], start=1) if not shapes), len(self.stages))

    @classmethod
    def load(cls, name: str | Path, classes: int = 10) -> SearchSpace:
        """A space by its name or path, as `search_space` keeps it. Raises `ConfigError`."""
        path = find_space(str(name))
        return search_space(SpaceFile.load(path), classes, path.stem)

    # The parameters of a sampler: flat names, the same in every trial, values by index.

    @cached_property
    def parameters(self) -> dict[str, int | tuple[str, ...]]:
        """Name -> number of indices, or the names of the units; the same in every trial."""
        found: dict[str, int | tuple[str, ...]] = {
            f"stem.{key}": len(values) for key, values in self.stem_choices.items() if len(values) > 1
        }
        found |= {f"head.{key}": len(values) for key, values in self.head_choices.items() if len(values) > 1}
        for stage in self.stages:
            if len(stage.choices) > 1:
                found[f"stage{stage.number}.unit"] = tuple(stage.choices)
            found |= {f"stage{stage.number}.{key}": count for key, count in stage.keys.items()}
        return found

    def suggest(self, trial: Suggests) -> ArchConfig:
        """Ask a trial for every parameter and decode them.

        Raises `ConfigError` where the parameters make no valid architecture; they are not repaired.
        """
        params: dict[str, int | str] = {}
        for name, choice in self.parameters.items():
            if isinstance(choice, int):
                params[name] = trial.suggest_int(name, 0, choice - 1)
            else:
                params[name] = str(trial.suggest_categorical(name, choice))
        return self.decode(params)

    def decode(self, params: Params) -> ArchConfig:
        """The architecture of `params`. Raises `ConfigError` where it is not valid or misses the condition."""
        stem = {key: _at(values, params, f"stem.{key}", len(values)) for key, values in self.stem_choices.items()}
        head = {key: _at(values, params, f"head.{key}", len(values)) for key, values in self.head_choices.items()}
        stages = []
        for stage in self.stages:
            at = f"stage{stage.number}"
            unit = str(params.get(f"{at}.unit", next(iter(stage.choices))))
            if unit not in stage.choices:
                raise ConfigError(f"{at}.unit: {unit!r:.40} is not a choice of {self.name}")
            chosen = {
                key: _at(values, params, f"{at}.{key}", stage.keys.get(key, 1))
                for key, values in stage.choices[unit].items()
            }
            stages.append({"unit": unit, **chosen})
        fixed = {"input": self.file.input, "classes": self.classes, "head": head or self.heads[0]}
        arch = ArchConfig.parse(fixed | {"stem": stem, "stage": stages})
        for number, config in enumerate(arch.stages, start=1):
            if reason := unmet(config, self.file.complementary):
                raise ConfigError(f"stage {number}: {reason}")
        return arch

    def encode(self, arch: ArchConfig) -> dict[str, int | str]:
        """The parameters that decode to `arch`; those of keys that its units lack are 0. Raises `ConfigError`."""
        params: dict[str, int | str] = dict.fromkeys(self.parameters, 0)
        parts: list[tuple[str, BaseModel, Mapping[str, tuple[Any, ...]], Mapping[str, int]]] = [
            ("stem", arch.stem, self.stem_choices, {k: len(v) for k, v in self.stem_choices.items()})
        ]
        if arch.head and self.head_choices:
            parts.append(("head", arch.head, self.head_choices, {k: len(v) for k, v in self.head_choices.items()}))
        for stage, config in zip(self.stages, arch.stages, strict=False):
            if config.unit not in stage.choices:
                raise ConfigError(f"stage {stage.number}: {config.unit} is not a unit of {self.name}")
            if len(stage.choices) > 1:
                params[f"stage{stage.number}.unit"] = config.unit
            parts.append((f"stage{stage.number}", config, stage.choices[config.unit], stage.keys))
        for at, record, choices, counts in parts:
            for key, values in choices.items():
                value = getattr(record, key)
                place = next((place for place, written in enumerate(values) if _is_value(written, value)), None)
                if place is None:
                    raise ConfigError(f"{at}.{key}: {value!r:.40} is not a choice of {self.name}")
                if f"{at}.{key}" in params:
                    params[f"{at}.{key}"] = -(-place * counts[key] // len(values))
        if self.decode(params) != arch:
            raise ConfigError(f"the architecture is not one of {self.name}")
        return params

    # Size, smallest and largest: dynamic programming over (stage, shape that enters it), from the last stage.

    def architecture(self, frame: Frame, stages: Sequence[StageConfig]) -> ArchConfig:
        """The architecture with this stem and head and these stages."""
        fixed = {"input": self.file.input, "classes": self.classes, "head": frame.head}
        return ArchConfig.parse(fixed | {"stem": frame.stem, "stage": tuple(stages)})

    def shape_after_stem(self, frame: Frame) -> Shape:
        """(channels, height, width) that the first stage reads.

        Where heads are a choice, the number of the head follows: shapes that end in different heads are kept apart.
        """
        shape = layers_shape(stem_layers(frame.stem, self.file.input[0]), self.file.input)
        return (*shape, self.heads.index(frame.head)) if len(self.heads) > 1 else shape

    @cached_property
    def shapes(self) -> tuple[tuple[Shape, ...], ...]:
        """For each stage the shapes that can enter it, and last the shapes that can leave the last stage."""
        levels = [tuple(sorted({self.shape_after_stem(frame) for frame in self.frames}))]
        for stage in self.stages:
            levels.append(tuple(sorted({after for shape in levels[-1] for after in stage.leading(shape)})))
        return tuple(levels)

    @property
    def total_stride(self) -> int:
        """Pixels of the image for each pixel of the last stage, in the architecture where that is most."""
        strides: list[int] = [max(option.stride for option in stage.options) for stage in self.stages]
        return math.prod([max(int(stem.stride) for stem in self.stems), *strides])

    def check_side(self) -> None:
        """Raise `ConfigError` if images are so small that the last stage of some architecture has less than a pixel."""
        side, total = min(self.file.input[1:]), self.total_stride
        if side < total:
            raise ConfigError(
                f"{self.name}: its strides multiply to {total}: of {side} x {side} pixels the last stage has less than "
                "one",
                f"use images of {total} pixels or more (--image-size {total}), or a space with smaller strides",
            )

    @cached_property
    def size(self) -> int:
        """Exact number of different valid networks: options of a stage that build the same network count once, and so
        do stems and heads."""
        counts: dict[Shape, int] = dict.fromkeys(self.shapes[-1], 1)
        for stage, entering in zip(reversed(self.stages), reversed(self.shapes[:-1]), strict=True):
            counts = {shape: sum(n * counts[after] for after, n in stage.leading(shape).items()) for shape in entering}
        return sum(counts[self.shape_after_stem(frame)] for frame in self.frames)

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """The choices of stages that no architecture has, as nothing valid has them: `stage 1.igcv2.depth 9`."""
        ends: set[Shape] = set(self.shapes[-1])
        found: list[str] = []
        for stage, entering in zip(reversed(self.stages), reversed(self.shapes[:-1]), strict=True):
            missing = {
                (unit, key, value)
                for unit, choices in stage.choices.items()
                for key, values in choices.items()
                for value in values
                if isinstance(value, int | str)
            }
            used: set[str] = set()
            starts: set[Shape] = set()
            for option in stage.options:
                has = {(option.unit, key, getattr(option, key)) for unit, key, _ in missing if unit == option.unit}
                fits = [s for s in entering if (has & missing or s not in starts) and option.problem(s[0]) is None]
                if reaching := {shape for shape in fits if shape_after(option, shape) in ends}:
                    starts |= reaching
                    missing -= has
                    used.add(option.unit)
            ends = starts
            at = f"stage {stage.number}."
            found[:0] = [
                *(at + unit for unit in stage.choices if unit not in used),
                *sorted(f"{at}{unit}.{key} {value}" for unit, key, value in missing if unit in used),
            ]
        return tuple(found)

    def smallest(self, metric: Metric) -> ArchConfig:
        """A valid architecture with the least `metric`."""
        return self._extreme(metric, operator.lt)

    def largest(self, metric: Metric) -> ArchConfig:
        """A valid architecture with the greatest `metric`."""
        return self._extreme(metric, operator.gt)

    def stem_cost(self, frame: Frame) -> Cost:
        """Cost of the stem."""
        return layers_cost(stem_layers(frame.stem, self.file.input[0]), self.file.input)[0]

    def end_cost(self, shape: Shape) -> Cost:
        """Cost of the head and the classifier behind `shape`."""
        head = self.heads[shape[3] if len(shape) > 3 else 0]
        blocks = end_layers(shape[:3], head, self.classes)
        return layers_cost(itertools.chain.from_iterable(layers for _, layers in blocks), shape[:3])[0]

    def _extreme(self, metric: Metric, better: Comparison) -> ArchConfig:
        if (metric, better) not in self._extremes:
            self._extremes[metric, better] = self._find_extreme(metric, better)
        return self._extremes[metric, better]

    def _find_extreme(self, metric: Metric, better: Comparison) -> ArchConfig:
        best: dict[Shape, tuple[int, tuple[StageConfig, ...]]] = {
            shape: (getattr(self.end_cost(shape), metric), ()) for shape in self.shapes[-1]
        }
        for stage, entering in zip(reversed(self.stages), reversed(self.shapes[:-1]), strict=True):
            behind, best = best, {}
            for shape in entering:
                for option, cost, after in stage.priced(shape):
                    if after not in behind:  # no architecture goes on from there
                        continue
                    rest, chosen = behind[after]
                    total = getattr(cost, metric) + rest
                    if shape not in best or better(total, best[shape][0]):
                        best[shape] = (total, (option, *chosen))
        whole = [
            (getattr(self.stem_cost(frame), metric) + best[self.shape_after_stem(frame)][0], frame)
            for frame in self.frames
            if self.shape_after_stem(frame) in best
        ]
        _, frame = (min if better is operator.lt else max)(whole, key=operator.itemgetter(0))
        return self.architecture(frame, best[self.shape_after_stem(frame)][1])


def search_space(file: SpaceFile, classes: int, name: str) -> SearchSpace:
    """`SearchSpace(file, classes, name)`, cached, so that all users of a study's space share what it has computed."""
    return _search_space(_text_key(_Identity(file)), classes, name)


@lru_cache(maxsize=8, typed=True)  # else True would find the space of one class
def _search_space(key: _TextKey, classes: int, name: str) -> SearchSpace:
    return SearchSpace(key.file, classes, name)


@lru_cache(maxsize=64)
def _text_key(file: _Identity) -> _TextKey:
    """Writing the text takes 40 us, and copies of a study share one file: it is written once."""
    return _TextKey(file.of)


class _TextKey:
    """A space file as a cache key, by its text: the records' `==` ignores the order of keys, and takes 1 for true."""

    __slots__ = ("file", "text")

    def __init__(self, file: SpaceFile) -> None:
        self.file = file
        self.text = file.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _TextKey) and self.text == other.text


class _Identity:
    """A space file as a cache key, by identity (its dicts have no hash)."""

    __slots__ = ("of",)

    def __init__(self, of: SpaceFile) -> None:
        self.of = of

    def __hash__(self) -> int:
        return id(self.of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.of is other.of


def shape_after(stage: StageConfig, shape: Shape) -> Shape:
    """The output shape of a stage."""
    if vars(stage).get("pool"):  # most units have none; a record's getattr takes long to say so
        for layers in stage_blocks(stage, shape[0]):
            shape = (*layers_shape(layers, shape[:3]), *shape[3:])
        return shape
    sides = (-(-shape[1] // stage.stride), -(-shape[2] // stage.stride))
    return (out_width(stage, shape[0]), *sides, *shape[3:])


def _but_blocks(option: StageConfig) -> tuple[object, ...]:
    """All fields of an option but `blocks`; by dictionaries, as a space of some thousand options asks for millions."""
    return tuple((vars(option) | {"blocks": None}).values())


def _price(options: Sequence[StageConfig], shape: Shape) -> Iterator[tuple[StageConfig, Cost]]:
    """Cost is first block + (blocks - 1) * further block; options that differ in `blocks` alone share both."""
    known: dict[object, tuple[Cost, Cost]] = {}
    for option in options:
        key = _but_blocks(option)
        if key not in known:
            first, rest = stage_layers(option, shape[0])
            once, after = layers_cost(first, shape[:3])
            known[key] = (once, layers_cost(rest, after)[0])
        once, again = known[key]
        yield option, once + again * (option.blocks - 1)


def _signatures(options: Sequence[StageConfig], in_width: int) -> Iterator[object]:
    """The signature of each option behind `in_width` channels; equal signatures build the same network."""
    known: dict[object, tuple[int, int]] = {}
    numbers: dict[object, int] = {}
    for option in options:
        key = _but_blocks(option)
        if key not in known:
            first, rest = (normalised(layers) for layers in stage_layers(option, in_width))
            known[key] = (numbers.setdefault(first, len(numbers)), numbers.setdefault(rest, len(numbers)))
        first_number, rest_number = known[key]
        yield (first_number, option.blocks, rest_number if option.blocks > 1 else None)


def _choices(table: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The values of each key: a list is a choice; a list of hidden layers is one value, and a list of such a choice."""
    return {key: tuple(value) if _is_choice(key, value) else (value,) for key, value in table.items()}


def _is_choice(key: str, value: object) -> bool:
    return isinstance(value, list | tuple) and (key != "hidden" or any(isinstance(v, list | tuple) for v in value))


def _is_value(written: object, read: object) -> bool:
    """Whether a value of a space file is what a record reads from it: a table becomes a record, a list a tuple."""
    if isinstance(read, BaseModel) and isinstance(written, Mapping):
        try:
            return type(read).model_validate(written) == read
        except ValidationError:
            return False
    return (tuple(written) if isinstance(written, list) else written) == read


def _at(values: tuple[Any, ...], params: Params, name: str, count: int) -> Any:
    """The value for an index in range(count); a list of fewer values is spread evenly over the indices."""
    if len(values) == 1:
        return values[0]
    index = params.get(name)
    if not isinstance(index, int) or not 0 <= index < count:
        raise ConfigError(f"{name}: {index!r:.40} is not an index below {count}")
    return values[index * len(values) // count]


def _each(model: type[BaseModel], table: Mapping[str, Any], where: str) -> Iterator[Any]:
    """Every valid record of the product of choices. Wrong keys and types raise; excluded combinations are skipped."""
    choices = _choices(table)
    for key, values in choices.items():
        if not values or len(set(map(repr, values))) != len(values):
            raise ConfigError(f"{where}.{key_text(key)}: a choice is a list of one or more different values")
    total = 1
    for values in choices.values():
        total *= len(values)
    if total > MOST_OPTIONS:
        raise ConfigError(f"{where}: {total} combinations in one stage; at most {MOST_OPTIONS} are allowed")
    for combination in itertools.product(*choices.values()):
        try:
            yield model.model_validate(dict(zip(choices, combination, strict=True)))
        except ValidationError as error:
            if any(entry["type"] != "value_error" for entry in error.errors()):
                raise ConfigError(first_problem(error, where, model)) from None


def _some(model: type[BaseModel], table: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    """`_each`, one or more. Raises `ConfigError` with the reason where every combination is excluded."""
    if found := tuple(_each(model, table, where)):
        return found
    try:
        model.model_validate({key: values[0] for key, values in _choices(table).items()})
    except ValidationError as error:
        raise ConfigError(f"{where}: no combination of its choices is possible; {first_problem(error)}") from None
    raise AssertionError("the first combination is excluded")


def _stage_space(number: int, table: Mapping[str, Any], name: str, condition: Condition) -> StageSpace:
    where = f"{name}: stage {number}"
    shared = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    units = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    for unit in units:
        if any(unit in STAGE_OF_UNIT[known].model_fields for known in UNITS):
            raise ConfigError(
                f"{where}: {unit} as a table is a key of a unit", f"write {unit} = ... below [stage.UNIT]"
            )
        if unit not in UNITS:
            hint = nearest_and_all(unit, UNITS, f"use {', '.join(UNITS)}")
            raise ConfigError(f"{where}: unknown unit {unit!r:.40}", hint)
    if not units:
        raise ConfigError(f"{where} names no unit", f"add a table such as [stage.igcv2]; units: {', '.join(UNITS)}")
    choices: dict[str, dict[str, tuple[Any, ...]]] = {}
    options: list[StageConfig] = []
    for unit, own in units.items():
        merged = shared | dict(own)
        options.extend(_each(STAGE_OF_UNIT[unit], merged, f"{where}.{unit}"))
        choices[unit] = _choices(merged)
    kept = tuple(option for option in options if unmet(option, condition) is None)
    if options and not kept:
        raise ConfigError(
            f"{where}: no option meets the {condition} complementary condition; {unmet(options[0], condition)}",
            'write complementary = "any", or choose other groups',
        )
    return StageSpace(number, choices, kept)


def space_names() -> list[str]:
    """The shipped search spaces."""
    return sorted(path.stem for path in shipped("search_spaces").glob("*.toml"))


def find_space(name: str) -> Path:
    """The file of a space: an existing path, or a shipped name. Raises `ConfigError` listing the names."""
    path = user_path(name)
    if path.suffix == ".toml":
        if is_file(path):
            return path
        raise ConfigError(f"no space file {name!r:.200}")
    if name in space_names():
        return shipped("search_spaces") / f"{name}.toml"
    names = space_names()
    otherwise = f"there are {', '.join(names[:20])}; or a path to a .toml file"
    raise ConfigError(f"unknown space {name!r:.80}", nearest(name, names, otherwise))
