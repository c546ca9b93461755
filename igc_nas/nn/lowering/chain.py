"""Linear chains, the forms in which a chain may run, and what a form costs. No torch; `parts` finds a plan's chains.

A chain is a maximal sequence of convolutions and interleaves without a nonlinearity: a product of sparse matrices. Any
contiguous part of it can be multiplied out into one convolution, as RepVGG (Ding et al. 2021) and ExpandNets (Guo et
al. 2020) do with dense convolutions. A *form* cuts the chain into pieces; a piece is one or more convolutions,
multiplied out into one with a number of groups: 1 is dense, the convolution's own number is as in the papers, and a
divisor of that number merges groups (block-diagonal, padded with zeros).

An interleave beside a dense piece costs nothing at run time: it permutes the weights of that piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from igc_nas.arch.layers import Conv, Interleave, Norm

WIDEST_GROUP = 16
"""Channels in a vector register (float32, AVX-512). Narrower groups may run faster when merged with others."""
MOST_TIMES_MACS = 64
"""Forms with more than this many times the MACs of the factored form are not timed."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A batch normalisation at inference, as a step of a chain: a factor and a shift per channel.

    It directly follows a convolution; `behind` are the interleaves that stand between the two in the plan.
    """

    norm: Norm
    behind: tuple[Interleave, ...] = ()


Step = Conv | Interleave | Scale


@dataclass(frozen=True, slots=True)
class Chain:
    """Convolutions and interleaves in order, the first a convolution, on images of `height` x `width` pixels."""

    steps: tuple[Step, ...]
    height: int
    width: int

    @property
    def convs(self) -> tuple[Conv, ...]:
        """The convolutions in order."""
        return tuple(step for step in self.steps if isinstance(step, Conv))

    @property
    def key(self) -> str:
        """The shapes of the steps and of the image: equal for two chains that differ only in their layers' names.

        `forms.json` and the timing caches on disk hold it: it must not change.
        """
        return f"{steps_key(self.steps)}@{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class ConvKey:
    """The shape of a convolution and of the image that it reads, as a key of the timing caches.

    The caches on disk hold `str(key)`: it must not change.
    """

    conv: Conv
    height: int
    width: int

    def __str__(self) -> str:
        c = self.conv
        shape = f"c{c.kernel}s{c.stride}{_padding_key(c)}g{c.groups}i{c.in_channels}o{c.out_channels}"
        return f"{shape}@{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `convs` convolutions of a chain, run as one convolution in `groups` groups."""

    convs: int
    groups: int


Form = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece with the steps of its chain that it computes, on images of `height` x `width` pixels.

    `steps` are the piece's convolutions and the interleaves that go into its weights; `after` are the interleaves that
    remain as permutations of activations, because the piece runs in groups.
    """

    steps: tuple[Step, ...]
    after: tuple[Interleave, ...]
    groups: int
    height: int
    width: int

    @property
    def convs(self) -> tuple[Conv, ...]:
        """The convolutions that are multiplied out."""
        return tuple(step for step in self.steps if isinstance(step, Conv))

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the image that it writes."""
        return output_size([self.as_conv], self.height, self.width)

    @property
    def as_conv(self) -> Conv:
        """The convolution that computes `steps`."""
        convs = self.convs
        spatial = next(filter(is_spatial, convs), convs[0])
        name, ends = "*".join(conv.name for conv in convs), (convs[0].in_channels, convs[-1].out_channels)
        return Conv(name, *ends, spatial.kernel, spatial.stride, self.groups, spatial.padding)

    @property
    def key(self) -> ConvKey:
        """The key of that convolution."""
        return ConvKey(self.as_conv, self.height, self.width)


def factored(chain: Chain) -> Form:
    """The form in the papers: every convolution alone, in its own groups."""
    return tuple(Piece(1, conv.groups) for conv in chain.convs)


def forms_of(chain: Chain) -> list[Form]:
    """The distinct forms worth timing, the factored one first; without those above `MOST_TIMES_MACS`."""
    found = [factored(chain), semidense(chain), _merged(chain), dense(chain)]
    most = MOST_TIMES_MACS * form_macs(chain, found[0])
    return [form for form in dict.fromkeys(found) if form_macs(chain, form) <= most]


def is_form(chain: Chain, form: Form) -> bool:
    """Whether a form, for example from a file, computes the chain.

    It must have all convolutions; a piece of several must be dense, with at most one spatial convolution; a piece of
    one may only merge groups.
    """
    convs = chain.convs
    if sum(piece.convs for piece in form) != len(convs) or not all(piece.convs > 0 < piece.groups for piece in form):
        return False
    at = 0
    for piece in form:
        part = convs[at : at + piece.convs]
        at += piece.convs
        if len(part) > 1 and (piece.groups > 1 or not _one_spatial(part)):
            return False
        if part[0].groups % piece.groups and piece.groups > 1:
            return False
    return True


def dense(chain: Chain) -> Form:
    """All convolutions multiplied out if possible; else each alone and dense, except depthwise ones."""
    convs = chain.convs
    if _one_spatial(convs) and len(convs) > 1:
        return (Piece(len(convs), 1),)
    return tuple(Piece(1, conv.groups if _is_depthwise(conv) else 1) for conv in convs)


def semidense(chain: Chain) -> Form:
    """Spatial convolutions in their own groups, each run of pointwise ones between them multiplied out."""
    runs = _pointwise_runs(chain.convs)
    return tuple(Piece(len(run), run[0].groups if run[0].kernel > 1 else 1) for run in runs)


def _merged(chain: Chain) -> Form:
    """As `semidense`, but with narrow groups of the spatial convolutions merged (`WIDEST_GROUP`)."""
    runs = _pointwise_runs(chain.convs)
    return tuple(Piece(len(run), _merged_groups(run[0]) if run[0].kernel > 1 else 1) for run in runs)


def layout(chain: Chain, form: Form) -> tuple[Segment, ...]:
    """The segments of a form in order. An interleave beside a dense piece goes into that piece's weights."""
    assert sum(piece.convs for piece in form) == len(chain.convs)
    height, width = chain.height, chain.width
    segments: list[Segment] = []
    at = 0
    pending: tuple[Step, ...] = ()
    for piece, following in pairwise([*form, None]):
        assert piece is not None
        own, after, at = _take(chain.steps, at, piece.convs)
        steps, pending = (*pending, *own), ()
        if piece.groups == 1:
            steps, after = (*steps, *after), ()
        elif following is not None and following.groups == 1:
            pending, after = after, ()
        segments.append(Segment(steps, after, piece.groups, height, width))
        height, width = segments[-1].output_size
    return tuple(segments)


def form_macs(chain: Chain, form: Form) -> int:
    """Multiply-adds of a form for one image."""
    return sum(segment_macs(segment) for segment in layout(chain, form))


def segment_macs(segment: Segment) -> int:
    """Multiply-adds of a segment for one image."""
    height, width = segment.output_size
    return segment_weights(segment) * height * width


def segment_weights(segment: Segment) -> int:
    """Weights of a segment's convolution, zeros included."""
    conv = segment.as_conv
    return conv.out_channels * (conv.in_channels // conv.groups) * conv.kernel**2


def form_params(chain: Chain, form: Form) -> int:
    """Parameters of a form: weights, and the biases of folded normalisations (a bias map has one per pixel)."""
    return sum(segment_weights(segment) + _biases(segment) for segment in layout(chain, form))


def has_bias(segment: Segment) -> bool:
    """Whether a segment adds anything: a normalisation's shift, or a convolution's own bias."""
    return any(isinstance(step, Scale) or (isinstance(step, Conv) and step.bias) for step in segment.steps)


def has_map(segment: Segment) -> bool:
    """Whether the bias of a segment is a map over pixels: if a shift comes before a padded convolution.

    The padding is not shifted, so what the shift contributes differs at the border.
    """
    shifted = False
    for step in segment.steps:
        if isinstance(step, Conv) and step.pad and shifted:
            return True
        shifted = shifted or isinstance(step, Scale) or (isinstance(step, Conv) and step.bias)
    return False


def _biases(segment: Segment) -> int:
    if not has_bias(segment):
        return 0
    height, width = segment.output_size
    return segment.as_conv.out_channels * (height * width if has_map(segment) else 1)


def _take(steps: Sequence[Step], at: int, convs: int) -> tuple[tuple[Step, ...], tuple[Interleave, ...], int]:
    """From `at` on: (steps up to the last of `convs` convolutions, the interleaves after it, the next position).

    A `Scale` belongs to the convolution before it.
    """
    own: list[Step] = []
    while convs or (at < len(steps) and isinstance(steps[at], Scale)):
        own.append(steps[at])
        convs -= isinstance(steps[at], Conv)
        at += 1
    after: list[Interleave] = []
    while at < len(steps) and isinstance(step := steps[at], Interleave):
        after.append(step)
        at += 1
    return tuple(own), tuple(after), at


def _one_spatial(convs: Sequence[Conv]) -> bool:
    """Whether at most one of the convolutions is spatial or strided, so that they can be multiplied out.

    The product of two padded spatial convolutions is another function at the border.
    """
    return sum(map(is_spatial, convs)) <= 1


def is_spatial(conv: Conv) -> bool:
    """Whether a convolution is more than a product of each pixel's channels."""
    return conv.kernel > 1 or conv.stride > 1 or conv.pad > 0


def output_size(convs: Sequence[Conv], height: int, width: int) -> tuple[int, int]:
    """Height and width behind convolutions in a row."""
    for conv in convs:
        height, width = ((side + 2 * conv.pad - conv.kernel) // conv.stride + 1 for side in (height, width))
    return height, width


def _is_depthwise(conv: Conv) -> bool:
    return conv.kernel > 1 and conv.groups == conv.in_channels == conv.out_channels


def _pointwise_runs(convs: tuple[Conv, ...]) -> tuple[tuple[Conv, ...], ...]:
    """The convolutions in runs: each spatial one alone, adjacent pointwise ones together."""
    runs: list[tuple[Conv, ...]] = []
    for conv in convs:
        if runs and not is_spatial(conv) and not is_spatial(runs[-1][0]):
            runs[-1] += (conv,)
        else:
            runs.append((conv,))
    return tuple(runs)


def _merged_groups(conv: Conv) -> int:
    """The most groups that have `WIDEST_GROUP` channels or more; for a depthwise convolution its own number."""
    if _is_depthwise(conv):
        return conv.groups
    channels = min(conv.in_channels, conv.out_channels) // conv.groups
    divisors = (groups for groups in range(conv.groups, 0, -1) if conv.groups % groups == 0)
    return next((groups for groups in divisors if channels * (conv.groups // groups) >= WIDEST_GROUP), 1)


def steps_key(steps: Sequence[Step]) -> str:
    """The shapes of steps, without the names of layers: `c3s2g4i8o12-p4of12-b`. On disk, as `Chain.key`."""
    return "-".join(map(_step_key, steps))


def form_key(form: Form) -> str:
    """A form as an alternative in the timing caches: `1g4/2g1`. On disk, as `Chain.key`."""
    return "/".join(f"{piece.convs}g{piece.groups}" for piece in form)


def _step_key(step: Step) -> str:
    if isinstance(step, Scale):
        return "b"
    if isinstance(step, Interleave):
        return f"p{step.groups}of{step.channels}"
    stride = f"s{step.stride}" if step.stride > 1 else ""
    bias = "+" if step.bias else ""
    return f"c{step.kernel}{stride}{_padding_key(step)}g{step.groups}i{step.in_channels}o{step.out_channels}{bias}"


def _padding_key(conv: Conv) -> str:
    return "" if conv.pad == conv.kernel // 2 else f"z{conv.pad}"
