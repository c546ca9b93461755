"""An architecture as a small frozen record: it is written by hand, drawn by a sampler, stored in a file.

    stem -> stage 1 -> stage 2 -> ... -> [head] -> global average pool -> classifier

The stages' records are in `igc_nas.arch.stages`. Fields that are None have their usual value, and are in no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from igc_nas.arch.layers import Activation
from igc_nas.arch.stages import (
    AnyActivation,
    Kernel,
    Pooling,
    Se,
    SqueezeExcitation,
    StageConfig,
    Stride,
    Width,
    describe_stage,
    out_side,
    out_width,
    with_all_fields,
)
from igc_nas.errors import ConfigError
from igc_nas.io.files import read_text, user_path
from igc_nas.io.records import Frozen, first_problem, parse_toml
from igc_nas.io.text import plain


def _int(value: object) -> object:
    """NumPy's integers as Python's; anything else as it is, and a bool is no number."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


Channels = Annotated[int, Field(ge=1, le=1024), BeforeValidator(_int)]
Side = Annotated[int, Field(ge=1, le=4096), BeforeValidator(_int)]
Image = Annotated[tuple[Channels, Side, Side], Field(strict=False)]
Classes = Annotated[int, Field(ge=1, le=1_000_000, strict=True), BeforeValidator(_int)]
_CLASSES: TypeAdapter[int] = TypeAdapter(Classes)


def number_of_classes(value: int) -> int:
    """A number of classes as an architecture has it. Raises `ConfigError`."""
    try:
        return _CLASSES.validate_python(value)
    except ValidationError as error:
        raise ConfigError(first_problem(error, "classes")) from None


class Stem(Frozen):
    """The first convolution: `kernel` x `kernel`, BN, activation; 3 -> `width` channels.

    A pre-activation network's stem has `norm = false` and `activation = "none"`. `input_norm` is BN on the image.
    `unit` `bsconv` (with its `reduce`) is a BSConv for the convolution; `padding` (usually kernel // 2), `bias` and
    `pool` are those of networks for larger images.
    """

    width: Width
    kernel: Kernel = 3
    stride: Stride = 1
    activation: AnyActivation | Literal["none"] = "relu"
    norm: bool | None = None
    input_norm: bool | None = None
    unit: Literal["conv", "bsconv"] | None = None
    reduce: Annotated[int, Field(ge=2, le=4096)] | None = None
    padding: Annotated[int, Field(ge=0, le=5)] | None = None
    bias: bool | None = None
    pool: Pooling | None = None

    @model_validator(mode="after")
    def _unit_fields(self) -> Self:
        if self.unit == "bsconv" and (self.padding is not None or self.bias):
            raise ValueError("a bsconv stem has neither padding nor bias")
        if self.unit != "bsconv" and self.reduce:
            raise ValueError("reduce is of a bsconv stem")
        return self

    def out_side(self, side: int) -> int:
        """Pixels of a side behind the stem; 0 where `side` has too few."""
        padding = self.kernel // 2 if self.padding is None else self.padding
        side = max(0, (side + 2 * padding - self.kernel) // self.stride + 1)
        return self.pool.out_side(side) if self.pool else side


class Head(Frozen):
    """What stands between the last stage and the classes, in this order, each part where its field is given.

    `norm`: BN and activation, which a pre-activation network still lacks; `width`: a dense 1x1 convolution with BN and
    activation (IGCV3-D: 1280) and `se`; `pool`: global average pooling, or `gdc`, a depthwise convolution as large as
    the map with BN (arXiv 1804.07573), or `flatten`; `select`: so many features by a stored index (CondenseNet);
    `hidden`: linear layers with an activation (MobileNetV3). `embedding`: for the linear classifier a 1x1
    convolution with BN behind the GDC (MobileFaceNet).
    """

    width: Width | None = None
    activation: AnyActivation = "relu6"
    norm: bool | None = None
    se: Se | None = None
    pool: Literal["average", "gdc", "flatten"] | None = None
    select: Width | None = None
    hidden: Annotated[tuple[Width, ...], Field(strict=False, min_length=1, max_length=8)] | None = None
    hidden_bias: bool | None = None
    embedding: bool | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if not (self.width or self.norm or self.pool or self.select or self.hidden):
            raise ValueError("a head has a width, norm, pool, select or hidden")
        if self.se and not self.width:
            raise ValueError("se is of a head with a width")
        if self.embedding and (self.pool != "gdc" or self.select or self.hidden):
            raise ValueError('an embedding has pool = "gdc", and neither select nor hidden')
        if self.hidden and self.activation == "prelu":
            raise ValueError("hidden layers have no prelu")
        return self

    @property
    def squeeze_excitation(self) -> SqueezeExcitation | None:
        """`se` with all its fields; None without SE."""
        return with_all_fields(self.se)

    @property
    def reads_map(self) -> bool:
        """Whether the head depends on the sides of the map that it reads."""
        return self.pool in ("gdc", "flatten")

    @property
    def hidden_act(self) -> Activation:
        """The activation behind a hidden layer."""
        assert self.activation != "prelu"
        return self.activation

    def __str__(self) -> str:
        parts = [
            "norm" if self.norm else "",
            str(self.width or ""),
            f"se{self.squeeze_excitation.ratio}" if self.squeeze_excitation else "",
            (self.pool or "").replace("average", ""),
            f"select {self.select}" if self.select else "",
            "hidden " + ",".join(map(str, self.hidden)) if self.hidden else "",
            "embedding" if self.embedding else "",
        ]
        return " ".join(part for part in parts if part)


class ArchConfig(Frozen):
    """One architecture. `input` is (channels, height, width) of an image; equality is equality of all fields.

    Raises `ConfigError` from `parse`, `from_toml` and `load` where stages do not fit together.
    """

    input: Image = (3, 32, 32)
    classes: Classes = 10
    stem: Stem
    stages: Annotated[tuple[StageConfig, ...], Field(alias="stage", strict=False, max_length=32)]
    head: Head | None = None

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if not self.stages:
            raise ValueError("an architecture has at least one [[stage]]")
        for number, stage, in_width in self.with_input_widths():
            reason = stage.problem(in_width)
            if reason:
                raise ValueError(f"stage {number}: {reason}")
        return self

    def with_input_widths(self) -> Iterator[tuple[int, StageConfig, int]]:
        """(number from 1, stage, channels that enter it) for each stage."""
        in_width = self.stem.width
        for number, stage in enumerate(self.stages, start=1):
            yield number, stage, in_width
            in_width = out_width(stage, in_width)

    @model_validator(mode="after")
    def _maps_are_large_enough(self) -> Self:
        height, width = self.map_sides
        if min(height, width) < 1:
            pixels = f"{self.input[1]} x {self.input[2]}"
            raise ValueError(f"images of {pixels} pixels are too small: nothing is left of them")
        if self.head and self.head.pool == "gdc" and height != width:
            raise ValueError(f"a gdc head reads a square map; this one is {height} x {width}")
        return self

    @property
    def map_sides(self) -> tuple[int, int]:
        """(height, width) of the map that leaves the last stage."""
        height, width = map(self.stem.out_side, self.input[1:])
        for stage in self.stages:
            height, width = out_side(stage, height), out_side(stage, width)
        return height, width

    @property
    def features(self) -> int:
        """Channels that leave the last stage."""
        return [out_width(stage, in_width) for _, stage, in_width in self.with_input_widths()][-1]

    def with_classes(self, classes: int) -> ArchConfig:
        """The same architecture with another number of classes."""
        return self if classes == self.classes else ArchConfig.parse(self.to_dict() | {"classes": classes})

    def with_channels(self, channels: int) -> ArchConfig:
        """The same architecture for images of another number of channels."""
        changed = self.to_dict() | {"input": [channels, *self.input[1:]]}
        return self if channels == self.input[0] else ArchConfig.parse(changed)

    def with_side(self, side: int) -> ArchConfig:
        """The same architecture for square images of `side` pixels a side."""
        same = self.input[1:] == (side, side)
        return self if same else ArchConfig.parse(self.to_dict() | {"input": [self.input[0], side, side]})

    def trained_at(self, side: int) -> ArchConfig:
        """What a proxy trains on images of `side` pixels: this, with a head that is made for their size."""
        return self.with_side(side) if self.head and self.head.reads_map else self

    def to_dict(self) -> dict[str, Any]:
        """Plain data as a file holds it: no `None`, lists for tuples, `stage` for the stages."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_toml(self, budget_params: int | None = None) -> str:
        """The architecture file, with a limit (see `deployed_limit`); `from_toml` reads back an equal record."""
        import tomli_w

        limit = {} if budget_params is None else {LIMIT: budget_params}
        return tomli_w.dumps(limit | self.to_dict())

    @classmethod
    def from_toml(cls, text: str, where: str = "architecture") -> ArchConfig:
        """Parse an architecture file. Raises `ConfigError` naming `where` and the key."""
        return _parsed(text, where)[0]

    @classmethod
    def load(cls, path: Path) -> ArchConfig:
        """Read an architecture file. Raises `ConfigError`."""
        return cls.from_toml(read_text(user_path(path)), path.name)

    def __repr__(self) -> str:
        return f"ArchConfig({str(self)!r}, input={self.input}, classes={self.classes})"

    def _repr_html_(self) -> str:
        """The stages in order as boxes, for a notebook."""
        parts = [f"{self.input[0]} x {self.input[1]} x {self.input[2]}", f"stem {self.stem.width}"]
        parts += [*map(describe_stage, self.stages), *([f"head {self.head}"] if self.head else [])]
        style = "display:inline-block;border:1px solid;border-radius:4px;padding:2px 6px;margin:2px"
        boxes = (f'<span style="{style}">{plain(part)}</span>' for part in [*parts, f"{self.classes} classes"])
        return "<div>" + " &rarr; ".join(boxes) + "</div>"

    def __str__(self) -> str:
        head = f" | {self.head}" if self.head else ""
        return f"{self.stem.width} | " + " | ".join(describe_stage(stage) for stage in self.stages) + head


LIMIT = "budget_params"


def deployed_limit(path: Path) -> int | None:
    """The most parameters of the form in which the network of an architecture's file may be deployed; None: any.

    It is the limit by which the network was picked, `budget_params` in the file, and no part of the architecture.
    Raises `ConfigError`.
    """
    return _parsed(read_text(path), path.name)[1]


def _parsed(text: str, where: str) -> tuple[ArchConfig, int | None]:
    """(the architecture, the limit) of a file's text."""
    data = parse_toml(text, where)
    limit = data.pop(LIMIT, None)
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigError(f"{where}: {LIMIT}: {limit!r:.40} is not a positive whole number")
    return ArchConfig.parse(data, where), limit
