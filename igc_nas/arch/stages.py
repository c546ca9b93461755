"""A stage of an architecture as a frozen record: `blocks` blocks of one unit, of which the first may change the shape.

The letters are the papers': `L` partitions of `M` channels (IGCV1, arXiv 1707.02725), a chain of `depth` convolutions
with `K` channels per group (IGCV2, arXiv 1804.06202), `expand`, `G1` and `G2` (IGCV3, arXiv 1806.00178). `conv` is the
regular convolution that the papers compare with; the other units are those of the literature. Fields that are None are
as the unit's paper has them, and are in no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticKnownError

from igc_nas.arch.factors import balanced_factors, prime_factors
from igc_nas.arch.layers import Activation, Gate
from igc_nas.io.records import Frozen

UNITS = ("igcv1", "igcv2", "igcv3", "conv")
"""The units that search spaces choose from."""

Width = Annotated[int, Field(ge=1, le=65_536)]
Groups = Annotated[int, Field(ge=1, le=65_536)]


def _int(value: object) -> object:
    """Refuse what is no int: a `Literal` of numbers takes whatever is equal, True for 1 and 3.0 for 3."""
    if type(value) is not int:
        raise PydanticKnownError("int_type")
    return value


Kernel = Annotated[Literal[1, 3, 5, 7, 9, 11], BeforeValidator(_int)]
Stride = Annotated[Literal[1, 2, 4], BeforeValidator(_int)]
AnyActivation = Literal[Activation, "prelu"]


class SqueezeExcitation(Frozen):
    """SE with C / `ratio` inner channels, at least 1 (SENet: 16; MobileNetV3: 4).

    `divisor` rounds them to its multiples as MobileNetV3's code does (8 there). `before_activation` is for units that
    have SE behind an activation (MobileNetV3's paper): SE then stands in front of it.
    """

    ratio: Annotated[int, Field(ge=1, le=4096)]
    gate: Gate = "sigmoid"
    bias: bool = True
    divisor: Annotated[int, Field(ge=1, le=1024)] = 1
    before_activation: bool = False

    def squeeze(self, channels: int) -> int:
        """The number of inner channels."""
        return divisible(channels / self.ratio, self.divisor)


Se = Annotated[int, Field(ge=0, le=4096)] | SqueezeExcitation
"""A ratio (0: no SE), or all of SE's fields."""


def divisible(width: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `width` (halves up), at least `divisor` and 90 % of `width`.

    For `divisor` 1: `width` rounded down, at least 1.
    """
    if divisor == 1:
        return max(1, int(width))
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * width else rounded + divisor


def with_all_fields(se: Se | None) -> SqueezeExcitation | None:
    """SE from a ratio or its record; None for none."""
    return SqueezeExcitation(ratio=se) if isinstance(se, int) and se else se or None


class Pooling(Frozen):
    """Local pooling: `kind` of `kernel` x `kernel` pixels."""

    kind: Literal["max", "average"] = "max"
    kernel: Annotated[int, Field(ge=1, le=64)]
    stride: Annotated[int, Field(ge=1, le=64)]
    padding: Annotated[int, Field(ge=0, le=32)] = 0

    @model_validator(mode="after")
    def _padding_is_less(self) -> Self:
        if self.padding > self.kernel // 2:
            raise ValueError(f"padding (={self.padding}) of a pool is at most kernel // 2 (={self.kernel // 2})")
        return self

    def out_side(self, side: int) -> int:
        """Pixels of a side behind the pool; 0 where `side` has too few."""
        return max(0, (side + 2 * self.padding - self.kernel) // self.stride + 1)


class _Stage(Frozen):
    """The fields of all stages: `blocks` blocks, of which the first has the stage's stride and changes the width.

    `se` scales the channels of every block: at the end of a residual body, behind the depthwise convolution of igcv3
    and inverted blocks, else behind the block's last activation. `activation` is that of the whole stage.
    """

    letters: ClassVar[str] = "C channels"
    """What the letters of `describe_stage` mean."""

    blocks: Annotated[int, Field(ge=1, le=256)]
    kernel: Kernel = 3
    stride: Stride = 1
    residual: bool = False
    se: Se | None = None
    activation: AnyActivation | None = None

    @property
    def squeeze_excitation(self) -> SqueezeExcitation | None:
        """`se` with all its fields; None without SE."""
        return with_all_fields(self.se)

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        return None


class Igcv1Stage(_Stage):
    """IGCV1 (section 3): primary kxk convolution, L groups of M channels; secondary 1x1, M groups of L channels.

    A residual block is two units around an identity (or 1x1, L groups) shortcut, as in the released code.
    """

    letters = "L primary partitions of M channels"
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

    letters = "C channels, d layers, K channels a partition"
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

    letters = "C channels, t expansion, G1,G2 groups of the two pointwise convolutions"
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


class _ResidualUnit(_Stage):
    """Units that a residual block has two or three of: `preact` puts BN and activation in front of each convolution.

    `shortcut` where the shape changes: `conv` is a 1x1 convolution (ResNet's option B), `pad` every stride-th pixel
    and zero channels (option A). A pre-activation stage needs a later norm: another such stage, or a head's.
    """

    preact: bool | None = None
    shortcut: Literal["conv", "pad"] | None = None

    @model_validator(mode="after")
    def _is_residual(self) -> Self:
        for name in ("preact", "shortcut"):
            if getattr(self, name) and not self.residual:
                raise ValueError(f"{name} is of residual stages; add residual = true")
        return self


class ConvStage(_ResidualUnit):
    """Regular kxk convolutions, BN, ReLU: what the papers compare with (RegConv-W16: `width = 16`).

    A residual block is two of them: ResNet's basic block (arXiv 1512.03385), with `preact` that of arXiv 1603.05027 and
    of wide ResNets (arXiv 1605.07146). `groups`, `bias`, `norm = false` and `pool` are of plain stages (AlexNet).
    """

    unit: Literal["conv"] = "conv"
    width: Width
    groups: Groups | None = None
    norm: bool | None = None
    bias: bool | None = None
    pool: Pooling | None = None

    @model_validator(mode="after")
    def _plain_fields(self) -> Self:
        for name in ("groups", "bias", "pool", "norm"):
            if getattr(self, name) is not None and self.residual:
                raise ValueError(f"{name} is of plain stages, without residual = true")
        return self

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        return _pad_problem(self, in_width) or _divide(self.groups or 1, in_width=in_width, width=self.width)


class BsconvStage(_ResidualUnit):
    """BSConv (arXiv 2003.13549): a 1x1 convolution, then a depthwise kxk one (BSConv-U).

    With `reduce` the 1x1 convolution is a product of two, with ceil(C / reduce) channels between them, and BN stands
    in front of the depthwise one (BSConv-S; p = 1 / reduce).
    """

    letters = "C channels, p rank of the 1x1 convolution"
    unit: Literal["bsconv"] = "bsconv"
    width: Width
    reduce: Annotated[int, Field(ge=2, le=4096)] | None = None

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        return _pad_problem(self, in_width)


class BottleneckStage(_ResidualUnit):
    """1x1 to `inner` channels, kxk in `groups` groups, 1x1 to `width`: ResNet's and ResNeXt's (arXiv 1611.05431)."""

    letters = "C channels, in inner channels, G groups"
    unit: Literal["bottleneck"] = "bottleneck"
    residual: bool = True
    width: Width
    inner: Width
    groups: Groups = 1

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        return _pad_problem(self, in_width) or _divide(self.groups, inner=self.inner)


class SeparableStage(_Stage):
    """MobileNetV1 (arXiv 1704.04861): depthwise kxk, BN, ReLU, 1x1, BN, ReLU.

    `linear`: nothing between the two convolutions (Xception's separable convolution).
    """

    unit: Literal["separable"] = "separable"
    residual: Literal[False] = False
    width: Width
    linear: bool | None = None


class InvertedStage(_Stage):
    """MobileNetV2's inverted residual (arXiv 1801.04381): 1x1 to the inner width, depthwise kxk, linear 1x1 to `width`.

    The inner width is `expand` times the input's, or `inner` (MobileNetV3's "exp size"). The expansion is left out
    where it would keep the width, but for `always_expand`. ReLU6, unless `activation` says otherwise. With `residual` a
    block adds its input where the shape stays; `project` gives blocks of stride 1 that change the width a 1x1 shortcut.
    """

    letters = "C channels, t expansion or in inner channels"
    unit: Literal["inverted"] = "inverted"
    residual: bool = True
    width: Width
    expand: Annotated[int, Field(ge=1, le=32)] | None = None
    inner: Width | None = None
    always_expand: bool | None = None
    project: bool | None = None

    @model_validator(mode="after")
    def _one_inner_width(self) -> Self:
        if (self.expand is None) == (self.inner is None):
            raise ValueError("an inverted stage has either expand or inner")
        return self

    def inner_width(self, in_width: int) -> int:
        """Channels of the depthwise convolution of a block behind `in_width` channels."""
        return self.inner or in_width * (self.expand or 1)


class DenseStage(_Stage):
    """DenseNet (arXiv 1608.06993): each block appends `growth` channels, by BN, ReLU and a convolution of all before.

    With `bottleneck` a 1x1 convolution to bottleneck * growth channels, BN and ReLU come first (DenseNet-B: 4).
    Stride 2 puts a transition in front: average pooling of 2x2, behind BN, ReLU and a 1x1 convolution to `transition`
    channels where that is given. `groups` and `select` are of converted CondenseNets (arXiv 1711.09224): both
    convolutions in groups with an interleave between them, behind a selection of channels by a stored index.
    """

    letters = "k growth, b bottleneck of b k channels, G groups"
    unit: Literal["dense"] = "dense"
    residual: Literal[False] = False
    growth: Width
    bottleneck: Annotated[int, Field(ge=1, le=64)] | None = None
    transition: Width | None = None
    groups: Groups = 1
    select: bool | None = None

    @model_validator(mode="after")
    def _transition_strides(self) -> Self:
        if self.stride > 2 or (self.stride == 1 and self.transition):
            raise ValueError("a transition is of stride 2; other dense stages have stride 1")
        return self

    @property
    def width(self) -> int:
        """Channels that each block's last convolution writes; `out_width` tells what leaves the stage."""
        return self.growth

    def entry_width(self, in_width: int) -> int:
        """Channels behind the transition."""
        return self.transition or in_width

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        inner = self.growth * (self.bottleneck or 1)
        return _divide(self.groups, **{"the input width": self.entry_width(in_width)}, growth=self.growth, inner=inner)


class DualPathStage(_Stage):
    """DPN (arXiv 1707.01629): `width` channels are summed, `growth` more are appended by each block (2 by the first).

    With `inner` a block is a bottleneck (1x1 to `inner`, kxk in `groups` groups, 1x1), BN and ReLU behind each
    convolution and a ReLU behind the join. Without it, a block is BN, ReLU and a convolution, twice; its first one is
    that of a wide ResNet beside a kxk convolution to 2 * growth channels (DualPathNet28-10).
    """

    letters = "C channels summed, k growth, in inner channels, G groups"
    unit: Literal["dualpath"] = "dualpath"
    residual: Literal[False] = False
    width: Width
    growth: Width
    inner: Width | None = None
    groups: Groups = 1

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        if self.inner is None and self.groups > 1:
            return "groups are of bottleneck blocks; add inner"
        return _divide(self.groups, inner=self.inner or self.groups)


class ShuffleV1Stage(_Stage):
    """ShuffleNetV1 (arXiv 1707.01083): grouped 1x1 to `inner`, interleave, depthwise kxk, grouped 1x1, input added.

    With stride 2 an average pool 3x3 of the input stands in front of the block's output instead, behind it with
    `pool_last`. `input_groups` are those of the first 1x1 (its input may be the stem); `depthwise_activation` and
    `bias` are deviations of public code from the paper.
    """

    letters = "C channels, in inner channels, G groups"
    unit: Literal["shufflenetv1"] = "shufflenetv1"
    residual: Literal[False] = False
    width: Width
    inner: Width
    groups: Groups
    input_groups: Groups | None = None
    pool_last: bool | None = None
    depthwise_activation: bool | None = None
    bias: bool | None = None

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        written = self.width if self.stride == 1 else self.width - in_width
        if written < 1 or (self.stride == 1 and in_width != self.width):
            return f"width (={self.width}) of a block of stride {self.stride} cannot follow {in_width} channels"
        first = self.input_groups or self.groups
        return _divide(first, **{"the input width": in_width, "inner": self.inner}) or _divide(
            self.groups, inner=self.inner, written=written
        )


class ShuffleV2Stage(_Stage):
    """ShuffleNetV2 (arXiv 1807.11164): half of the channels pass; 1x1, depthwise kxk, 1x1 of the others; interleave(2).

    Where the shape changes, both branches read all channels: depthwise, 1x1 beside 1x1, depthwise, 1x1.
    """

    unit: Literal["shufflenetv2"] = "shufflenetv2"
    residual: Literal[False] = False
    width: Width

    def problem(self, in_width: int) -> str | None:
        """Why this stage cannot follow `in_width` channels; None where it can."""
        return f"width (={self.width}) must be even; use {self.width + 1}" if self.width % 2 else None


class XceptionStage(_Stage):
    """Xception (arXiv 1610.02357): `depth` times ReLU, depthwise kxk, 1x1, BN around a shortcut.

    A stage's first block has a max-pool 3x3 of the stage's stride at the end of its body, and a 1x1 shortcut (with a
    bias, as public code has it), where the shape changes; its first convolution changes the width, with `late` its
    last one.
    """

    letters = "C channels, d separable convolutions"
    unit: Literal["xception"] = "xception"
    residual: Literal[True] = True
    width: Width
    depth: Annotated[int, Field(ge=1, le=16)] = 2
    late: bool | None = None


def _pad_problem(stage: _ResidualUnit, in_width: int) -> str | None:
    width: int = getattr(stage, "width")  # noqa: B009 (each of these units has one)
    if stage.shortcut != "pad" or width >= in_width:
        return None
    return f"a shortcut that pads cannot narrow {in_width} channels to width (={width}); use shortcut = 'conv'"


def _divide(groups: int, **widths: int) -> str | None:
    """None where `groups` divides all of `widths`, else why not."""
    reasons = (divides("", groups, name.replace("_", " "), width) for name, width in widths.items())
    return next((reason.replace("groups  (", "groups (", 1) for reason in reasons if reason), None)


AnyStage = (
    Igcv1Stage
    | Igcv2Stage
    | Igcv3Stage
    | ConvStage
    | BsconvStage
    | BottleneckStage
    | SeparableStage
    | InvertedStage
    | DenseStage
    | DualPathStage
    | ShuffleV1Stage
    | ShuffleV2Stage
    | XceptionStage
)
STAGE_OF_UNIT: dict[str, type[AnyStage]] = {stage.model_fields["unit"].default: stage for stage in get_args(AnyStage)}


def _has_unit(stage: object) -> object:
    """Refuse a stage without a unit, listing the units: pydantic's own message does not."""
    if isinstance(stage, Mapping) and "unit" not in stage:
        raise ValueError(f"no unit; use one of {', '.join(STAGE_OF_UNIT)}")
    return stage


StageConfig = Annotated[AnyStage, Field(discriminator="unit"), BeforeValidator(_has_unit)]


def out_width(stage: StageConfig, in_width: int) -> int:
    """Channels that leave a stage behind `in_width` channels."""
    match stage:
        case DenseStage():
            return stage.entry_width(in_width) + stage.blocks * stage.growth
        case DualPathStage():
            return stage.width + (stage.blocks + 1) * stage.growth
        case _:
            return stage.width


def out_side(stage: StageConfig, side: int) -> int:
    """Pixels of a side of a stage's output, for `side` pixels of its input; 0 where a pool finds too few."""
    if isinstance(stage, DenseStage):
        return side // stage.stride
    if isinstance(stage, ConvStage) and stage.pool:
        for number in range(stage.blocks):
            side = stage.pool.out_side(side if number else -(-side // stage.stride))
        return side
    return -(-side // stage.stride)


def describe_stage(stage: StageConfig) -> str:
    """One stage on one line, in the papers' letters: `igcv1 L24 M2 k3 x2 res`."""
    stride = f" s{stage.stride}" if stage.stride > 1 else ""
    se, activation = stage.squeeze_excitation, stage.activation
    extras = [
        *(["res"] if stage.residual else []),
        *([f"se{se.ratio}"] if se else []),
        *([activation] if activation else []),
        *_said(stage),
    ]
    return " ".join([f"{stage.unit} {_letters(stage)} k{stage.kernel} x{stage.blocks}{stride}", *extras])


def _letters(stage: StageConfig) -> str:
    match stage:
        case Igcv1Stage():
            return f"L{stage.L} M{stage.M}"
        case Igcv2Stage():
            return f"C{stage.width} d{stage.depth}" + (f" K{stage.K}" if stage.K else "")
        case Igcv3Stage():
            return f"C{stage.width} t{stage.expand} G{stage.G1},{stage.G2}"
        case BsconvStage():
            return f"C{stage.width}" + (f" p1/{stage.reduce}" if stage.reduce else "")
        case BottleneckStage():
            return f"C{stage.width} in{stage.inner}" + (f" G{stage.groups}" if stage.groups > 1 else "")
        case InvertedStage():
            return f"C{stage.width} " + (f"t{stage.expand}" if stage.expand else f"in{stage.inner}")
        case DenseStage():
            inner = f" b{stage.bottleneck}" if stage.bottleneck else ""
            grouped = f" G{stage.groups}" if stage.groups > 1 else ""
            return f"k+{stage.growth}{inner}{grouped}"
        case DualPathStage():
            inner = f" in{stage.inner} G{stage.groups}" if stage.inner else ""
            return f"C{stage.width} k+{stage.growth}{inner}"
        case ShuffleV1Stage():
            return f"C{stage.width} in{stage.inner} G{stage.groups}"
        case XceptionStage():
            return f"C{stage.width} d{stage.depth}"
        case _:
            return f"C{stage.width}"


def _said(stage: StageConfig) -> list[str]:
    """The words of a stage's own yes-or-no fields and shortcut."""
    names = ("preact", "linear", "always_expand", "project", "select", "late", "bias")
    said = [name for name in names if getattr(stage, name, None)]
    pad = ["pad"] if getattr(stage, "shortcut", None) == "pad" else []
    groups = [f"G{stage.groups}"] if isinstance(stage, ConvStage) and stage.groups else []
    return [*said, *pad, *groups]


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
