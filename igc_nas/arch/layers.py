"""The kinds of layers that plans are made of: frozen records that cost, network, lowering and exports read.

Shapes are those of one image: (channels, height, width), or (features,) behind a `Pool` or a `Flatten`. A layer with
parameters or stored data has a `name`, unique in its block. Layers that hold other layers (`Residual`, `Concat`,
`Split`, `DualPath`) have `branches`; an empty branch is the identity.

    Interleave(g): out[j*g + i] = in[i*(C/g) + j], 0 <= i < g, 0 <= j < C/g   (IGCV1 eq. 3; torch's ChannelShuffle(g))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu", "relu6", "hswish"]
Gate = Literal["sigmoid", "hsigmoid"]


@dataclass(frozen=True, slots=True)
class Conv:
    """A kernel x kernel convolution; `groups` divides both widths. `padding` zeros on each side, None: kernel // 2.

    A side of H pixels becomes (H + 2 pad - kernel) // stride + 1: ceil(H / stride) for odd kernels and the usual
    padding. Global depthwise convolution (GDC) is a kernel as large as the map with padding 0.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    padding: int | None = None
    bias: bool = False

    @property
    def pad(self) -> int:
        """Zeros added on each side."""
        return self.kernel // 2 if self.padding is None else self.padding


@dataclass(frozen=True, slots=True)
class Interleave:
    """The papers' channel permutation over `channels` channels in `groups` groups."""

    channels: int
    groups: int

    @property
    def is_identity(self) -> bool:
        """One group, or groups of one channel: no channel moves."""
        return self.groups in (1, self.channels)


@dataclass(frozen=True, slots=True)
class Select:
    """`out_channels` channels by a stored index, repeats allowed: out[i] = in[index[i]] (converted CondenseNet).

    The index is data, no parameter: a new network has index[i] = i * in_channels // out_channels.
    """

    name: str
    in_channels: int
    out_channels: int


@dataclass(frozen=True, slots=True)
class Norm:
    """Batch normalisation with gamma and beta."""

    name: str
    channels: int


@dataclass(frozen=True, slots=True)
class Act:
    """`relu`, `relu6` or `hswish` (x * relu6(x + 3) / 6, MobileNetV3 section 5.2)."""

    kind: Activation


@dataclass(frozen=True, slots=True)
class PRelu:
    """max(0, x) + slope * min(0, x), one learned slope per channel, 0.25 at first (He et al., arXiv 1502.01852)."""

    name: str
    channels: int


@dataclass(frozen=True, slots=True)
class SqueezeExcite:
    """x * gate(expand(relu(reduce(mean of x over its pixels)))), a factor per channel (SENet, arXiv 1709.01507).

    `reduce` is linear from `channels` to `squeeze` features, `expand` back, both with a bias or both without.
    `gate` is `sigmoid`, or `hsigmoid` = relu6(x + 3) / 6.
    """

    name: str
    channels: int
    squeeze: int
    gate: Gate = "sigmoid"
    bias: bool = True


@dataclass(frozen=True, slots=True)
class MaxPool:
    """The maximum of kernel x kernel pixels; a side becomes (H + 2 padding - kernel) // stride + 1."""

    kernel: int
    stride: int
    padding: int = 0


@dataclass(frozen=True, slots=True)
class AvgPool:
    """The mean of kernel x kernel pixels, padded zeros counted; sides as `MaxPool`'s."""

    kernel: int
    stride: int
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Subsample:
    """x[:, ::stride, ::stride] with `before` and `after` zero channels around it (ResNet's shortcut A)."""

    stride: int
    before: int = 0
    after: int = 0


@dataclass(frozen=True, slots=True)
class Residual:
    """body(x) + shortcut(x); an empty shortcut is the identity."""

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    @property
    def branches(self) -> tuple[tuple[Layer, ...], ...]:
        """Body and shortcut."""
        return self.body, self.shortcut


@dataclass(frozen=True, slots=True)
class Concat:
    """The channels of every branch(x), in the order of the branches; an empty branch is x itself."""

    branches: tuple[tuple[Layer, ...], ...]


@dataclass(frozen=True, slots=True)
class Split:
    """The channels of first(x[:channels]), then those of second(x[channels:]) (ShuffleNetV2)."""

    channels: int
    first: tuple[Layer, ...]
    second: tuple[Layer, ...]

    @property
    def branches(self) -> tuple[tuple[Layer, ...], ...]:
        """First and second."""
        return self.first, self.second


@dataclass(frozen=True, slots=True)
class DualPath:
    """DPN (arXiv 1707.01629): with r = body(x), s = shortcut(x), d = channels: s[:d] + r[:d], then s[d:], then r[d:].

    The first d channels are a residual path, the others a dense path that grows by what r and s have beyond d.
    """

    channels: int
    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    @property
    def branches(self) -> tuple[tuple[Layer, ...], ...]:
        """Body and shortcut."""
        return self.body, self.shortcut


@dataclass(frozen=True, slots=True)
class Pool:
    """Global average pooling; (channels, height, width) becomes (channels,)."""


@dataclass(frozen=True, slots=True)
class Flatten:
    """(channels, height, width) becomes (channels * height * width,)."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A dense layer over features: the classifier, or a hidden layer in front of it."""

    name: str
    in_features: int
    out_features: int
    bias: bool = True


Branched = Residual | Concat | Split | DualPath
Named = Conv | Norm | Linear | SqueezeExcite | PRelu | Select
"""Those with parameters or stored data."""
Layer = (
    Conv
    | Interleave
    | Select
    | Norm
    | Act
    | PRelu
    | SqueezeExcite
    | MaxPool
    | AvgPool
    | Subsample
    | Branched
    | Pool
    | Flatten
    | Linear
)


def convolutions(layers: Iterable[Layer]) -> int:
    """The number of convolutions, those of all branches included."""
    return sum(
        sum(map(convolutions, layer.branches)) if isinstance(layer, Branched) else isinstance(layer, Conv)
        for layer in layers
    )
