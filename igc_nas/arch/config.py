"""An architecture as a small frozen record: it is written by hand, drawn by a sampler, stored in a file.

The letters are the papers': `L` partitions of `M` channels (IGCV1, arXiv 1707.02725), a chain of `depth` convolutions
with `K` channels per group (IGCV2, arXiv 1804.06202), `expand`, `G1` and `G2` (IGCV3, arXiv 1806.00178). `conv` is the
regular convolution that the papers compare with.

    stem -> stage 1 -> stage 2 -> ... -> [head] -> global average pool -> classifier
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticKnownError

from igc_nas.arch.factors import balanced_factors, prime_factors
from igc_nas.io.files import read_text, user_path
from igc_nas.io.records import Frozen, parse_toml

UNITS = ("igcv1", "igcv2", "igcv3", "conv")

Width = Annotated[int, Field(ge=1, le=65_536)]
Groups = Annotated[int, Field(ge=1, le=65_536)]


def _int(value: object) -> object:
    """Refuse what is no int: a `Literal` of numbers takes whatever is equal, True for 1 and 3.0 for 3."""
    if type(value) is not int:
        raise PydanticKnownError("int_type")
    return value


Kernel = Annotated[Literal[1, 3, 5, 7, 9, 11], BeforeValidator(_int)]
Stride = Annotated[Literal[1, 2, 4], BeforeValidator(_int)]
Image = Annotated[
    tuple[
        Annotated[int, Field(ge=1, le=1024)],
        Annotated[int, Field(ge=1, le=4096)],
        Annotated[int, Field(ge=1, le=4096)],
    ],
    Field(strict=False),
]
Activation = Literal["relu", "relu6", "hswish"]
Gate = Literal["sigmoid", "hsigmoid"]


class Stem(Frozen):
    """The first convolution: `kernel` x `kernel`, BN, activation; 3 -> `width` channels."""

    width: Width
    kernel: Kernel = 3
    stride: Stride = 1
    activation: Activation = "relu"


class Head(Frozen):
    """An optional dense 1x1 convolution before the pooling, with BN and activation (IGCV3-D: 1280)."""

    width: Width
    activation: Activation = "relu6"


class _Stage(Frozen):
    """The fields of all stages: `blocks` blocks, of which the first has the stage's stride and changes the width."""

    blocks: Annotated[int, Field(ge=1, le=256)]
    kernel: Kernel = 3
    stride: Stride = 1
    residual: bool = False

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        return None


class Igcv1Stage(_Stage):
    """IGCV1 (section 3): primary kxk convolution, L groups of M channels; secondary 1x1, M groups of L channels.

    A residual block is two units around an identity (or 1x1, L groups) shortcut, as in the released code.
    """

    unit: Literal["igcv1"] = "igcv1"
    L: Groups
    M: Groups

    @model_validator(mode="after")
    def _width_in_range(self) -> Self:
        _check_width(self.L * self.M, f"L (={self.L}) * M (={self.M})")
        return self

    @property
    def width(self) -> int:
        """Channels of the stage: G = L * M."""
        return self.L * self.M

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        return divides("L", self.L, "the input width", in_width)


class Igcv2Stage(_Stage):
    """IGCV2 (section 3): a depthwise kxk convolution, then `depth - 1` 1x1 group convolutions, interleaved.

    Without `K` the channels per group are the balanced factors of `width` (strict complementary condition); with `K`
    they are `K` in every layer (the paper's IGCV2*: K = 8), and the condition need not hold.
    """

    unit: Literal["igcv2"] = "igcv2"
    width: Width
    depth: Annotated[int, Field(ge=2, le=17)]
    K: Groups | None = None

    @model_validator(mode="after")
    def _chain_exists(self) -> Self:
        if self.K is not None:
            reason = divides("K", self.K, "width", self.width)
            if reason:
                raise ValueError(reason)
        elif (most := len(prime_factors(self.width))) < self.depth - 1:
            raise ValueError(
                f"depth (={self.depth}) needs width (={self.width}) to be a product of {self.depth - 1} factors; "
                + (f"use depth {most + 1} or less" if most else "use a width of 2 or more")
            )
        return self

    @property
    def channels_per_group(self) -> tuple[int, ...]:
        """K_1 >= K_2 >= ... of the 1x1 layers, `depth - 1` of them."""
        if self.K is not None:
            return (self.K,) * (self.depth - 1)
        return balanced_factors(self.width, self.depth - 1)


class Igcv3Stage(_Stage):
    """IGCV3 (section 3): 1x1 group convolution (G1) to `expand` times the channels, depthwise kxk, 1x1 (G2) to `width`.

    `residual` adds the identity in every block but a stage's first, as the released network does.
    """

    unit: Literal["igcv3"] = "igcv3"
    residual: bool = True
    width: Width
    expand: Annotated[int, Field(ge=1, le=32)]
    G1: Groups = 2
    G2: Groups = 2

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        reason = divides("G2", self.G2, "width", self.width)
        if reason is None and self.blocks > 1:
            reason = divides("G1", self.G1, "width", self.width)
        if reason:
            raise ValueError(reason)
        return self

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        return divides("G1", self.G1, "the input width", in_width) or divides(
            "G2", self.G2, "expand * the input width", self.expand * in_width
        )


class ConvStage(_Stage):
    """Regular kxk convolutions, BN, ReLU: what the papers compare with (RegConv-W16: `width = 16`)."""

    unit: Literal["conv"] = "conv"
    width: Width


def _has_unit(stage: object) -> object:
    """Refuse a stage without a unit, listing the units: pydantic's own message does not."""
    if isinstance(stage, Mapping) and "unit" not in stage:
        raise ValueError(f"no unit; use one of {', '.join(UNITS)}")
    return stage


StageConfig = Annotated[
    Igcv1Stage | Igcv2Stage | Igcv3Stage | ConvStage, Field(discriminator="unit"), BeforeValidator(_has_unit)
]
STAGE_OF_UNIT: dict[str, type[Igcv1Stage | Igcv2Stage | Igcv3Stage | ConvStage]] = {
    "igcv1": Igcv1Stage,
    "igcv2": Igcv2Stage,
    "igcv3": Igcv3Stage,
    "conv": ConvStage,
}


class ArchConfig(Frozen):
    """One architecture. `input` is (channels, height, width) of an image; equality is equality of all fields.

    Raises `ConfigError` from `parse`, `from_toml` and `load` where stages do not fit together.
    """

    input: Image = (3, 32, 32)
    classes: Annotated[int, Field(ge=1, le=1_000_000)] = 10
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
            in_width = stage.width

    def with_classes(self, classes: int) -> ArchConfig:
        """The same architecture with another number of classes."""
        return self if classes == self.classes else ArchConfig.parse(self.to_dict() | {"classes": classes})

    def with_side(self, side: int) -> ArchConfig:
        """The same architecture for square images of `side` pixels a side."""
        same = self.input[1:] == (side, side)
        return self if same else ArchConfig.parse(self.to_dict() | {"input": [self.input[0], side, side]})

    def to_dict(self) -> dict[str, Any]:
        """Plain data as a file holds it: no `None`, lists for tuples, `stage` for the stages."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_toml(self) -> str:
        """The architecture file; `ArchConfig.from_toml` reads back an equal record."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str, where: str = "architecture") -> ArchConfig:
        """Parse an architecture file. Raises `ConfigError` naming `where` and the key."""
        return cls.parse(parse_toml(text, where), where)

    @classmethod
    def load(cls, path: Path) -> ArchConfig:
        """Read an architecture file. Raises `ConfigError`."""
        return cls.from_toml(read_text(user_path(path)), path.name)

    def __str__(self) -> str:
        head = f" | {self.head.width}" if self.head else ""
        return f"{self.stem.width} | " + " | ".join(describe_stage(stage) for stage in self.stages) + head


def describe_stage(stage: StageConfig) -> str:
    """One stage on one line, in the papers' letters: `igcv1 L24 M2 k3 x2 res`."""
    match stage:
        case Igcv1Stage():
            own = f"L{stage.L} M{stage.M}"
        case Igcv2Stage():
            own = f"C{stage.width} d{stage.depth}" + (f" K{stage.K}" if stage.K else "")
        case Igcv3Stage():
            own = f"C{stage.width} t{stage.expand} G{stage.G1},{stage.G2}"
        case ConvStage():
            own = f"C{stage.width}"
    stride = f" s{stage.stride}" if stage.stride > 1 else ""
    return f"{stage.unit} {own} k{stage.kernel} x{stage.blocks}{stride}{' res' if stage.residual else ''}"


def divides(name: str, groups: int, of_what: str, width: int) -> str | None:
    """None where `groups` divides `width`, else a message with the nearest widths that it divides."""
    if width % groups == 0:
        return None
    below = width - width % groups
    near = f"{below} or {below + groups}" if below else str(groups)
    return f"groups {name} (={groups}) must divide {of_what} (={width}); use {near}"


def _check_width(width: int, what: str) -> None:
    if width > 65_536:
        raise ValueError(f"{what} is a width of {width}; at most 65536")
