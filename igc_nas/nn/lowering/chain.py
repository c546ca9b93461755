"""Linear chains of a plan, and the forms in which each may run. No torch here.

A chain is a maximal run of convolutions and interleaves with nothing nonlinear between them: a product of sparse
matrices, so any contiguous part of it may be multiplied out into one convolution (as RepVGG and ExpandNets do with
dense ones). A *form* is a cut of the chain into pieces; a piece is some of its convolutions, multiplied out into one
that runs in a number of groups: 1 is dense, the convolution's own is as the papers write it, a divisor of it lies
between (block-diagonal, with zeros).

Interleaves cost nothing at run time where a dense piece stands beside them: they permute its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from igc_nas.arch.plan import Conv, Interleave, Norm

WIDEST_GROUP = 16
"""Groups of fewer channels than a vector register holds may run faster merged with their neighbours."""
MOST_TIMES_MACS = 64
"""A form that executes more than this times the MACs of the factored chain is not tried."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A normalisation with fixed statistics, as part of a chain: a factor and a shift per channel.

    It stands right behind a convolution; `behind` are the interleaves that the plan has between the two.
    """

    norm: Norm
    behind: tuple[Interleave, ...] = ()


Step = Conv | Interleave | Scale


@dataclass(frozen=True, slots=True)
class Chain:
    """Convolutions and interleaves in order, that read `height` x `width` pixels; the first is a convolution."""

    steps: tuple[Step, ...]
    height: int
    width: int

    @property
    def convs(self) -> tuple[Conv, ...]:
        """The convolutions in order."""
        return tuple(step for step in self.steps if isinstance(step, Conv))

    @property
    def key(self) -> str:
        """What the chain computes at which size, without names: equal for chains that run alike."""
        return f"{'-'.join(map(_step_key, self.steps))}@{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `convs` convolutions of a chain as one that runs in `groups` groups."""

    convs: int
    groups: int


Form = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece laid out on its chain: the steps that its one convolution computes, and what is left to permute after.

    `steps` are the piece's convolutions and the interleaves that it takes into its weights; `after` are interleaves
    that stay as permutations of activations, because the piece runs in groups.
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
        """Height and width that it writes."""
        stride = self.as_conv.stride
        return -(-self.height // stride), -(-self.width // stride)

    @property
    def as_conv(self) -> Conv:
        """The one convolution that the segment runs as."""
        convs = self.convs
        spatial = max(convs, key=lambda conv: conv.kernel)
        stride = max(conv.stride for conv in convs)
        name = "*".join(conv.name for conv in convs)
        return Conv(name, convs[0].in_channels, convs[-1].out_channels, spatial.kernel, stride, self.groups)


def factored(chain: Chain) -> Form:
    """The form of the papers: every convolution by itself, in its own groups."""
    return tuple(Piece(1, conv.groups) for conv in chain.convs)


def forms_of(chain: Chain) -> list[Form]:
    """The forms that are worth timing, the factored one first, those that no machine would like left out."""
    found = [factored(chain), semidense(chain), _merged(chain), dense(chain)]
    most = MOST_TIMES_MACS * form_macs(chain, found[0])
    return [form for form in dict.fromkeys(found) if form_macs(chain, form) <= most]


def is_form(chain: Chain, form: Form) -> bool:
    """Whether a form (from a file, say) computes the chain: what is multiplied out is dense, groups only merge."""
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
    """Everything multiplied out, a lone depthwise convolution excepted: as few dense convolutions as can be."""
    convs = chain.convs
    if _one_spatial(convs) and len(convs) > 1:
        return (Piece(len(convs), 1),)
    return tuple(Piece(1, conv.groups if _is_depthwise(conv) else 1) for conv in convs)


def semidense(chain: Chain) -> Form:
    """The spatial convolution in its own groups, the pointwise ones around it multiplied out."""
    runs = _pointwise_runs(chain.convs)
    return tuple(Piece(len(run), run[0].groups if run[0].kernel > 1 else 1) for run in runs)


def _merged(chain: Chain) -> Form:
    """As semidense, with narrow groups of the spatial convolution merged to wider ones."""
    runs = _pointwise_runs(chain.convs)
    return tuple(Piece(len(run), _merged_groups(run[0]) if run[0].kernel > 1 else 1) for run in runs)


def layout(chain: Chain, form: Form) -> tuple[Segment, ...]:
    """The segments of a form in the order in which they run. The interleaves beside dense pieces go into them."""
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
    """Multiply-adds that a form executes for one image."""
    return sum(segment_macs(segment) for segment in layout(chain, form))


def segment_macs(segment: Segment) -> int:
    """Multiply-adds that one segment executes for one image."""
    height, width = segment.output_size
    return segment_weights(segment) * height * width


def segment_weights(segment: Segment) -> int:
    """Weights of the convolution that a segment runs as."""
    conv = segment.as_conv
    return conv.out_channels * (conv.in_channels // conv.groups) * conv.kernel**2


def form_params(chain: Chain, form: Form) -> int:
    """Parameters that a form holds: weights, and biases where it has normalisations in it (a map is one per pixel)."""
    return sum(segment_weights(segment) + _biases(segment) for segment in layout(chain, form))


def has_map(segment: Segment) -> bool:
    """Whether a shift comes before a padded convolution: then the bias of the segment is a map over its pixels."""
    shifted = False
    for step in segment.steps:
        if isinstance(step, Conv) and step.kernel > 1 and shifted:
            return True
        shifted = shifted or isinstance(step, Scale)
    return False


def _biases(segment: Segment) -> int:
    if not any(isinstance(step, Scale) for step in segment.steps):
        return 0
    height, width = segment.output_size
    return segment.as_conv.out_channels * (height * width if has_map(segment) else 1)


def describe(chain: Chain, form: Form) -> str:
    """A form for people: `3x3/24 + 1x1` is a 3x3 convolution in 24 groups, then a dense 1x1."""
    return " + ".join(_describe_conv(segment.as_conv) for segment in layout(chain, form))


def _describe_conv(conv: Conv) -> str:
    return f"{conv.kernel}x{conv.kernel}" + (f"/{conv.groups}" if conv.groups > 1 else "")


def _take(steps: Sequence[Step], at: int, convs: int) -> tuple[tuple[Step, ...], tuple[Interleave, ...], int]:
    """(steps up to the last of `convs` convolutions, the interleaves after it, where the next piece starts)."""
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
    """Whether convolutions may be multiplied out: two that look beside a pixel would differ at the border."""
    return sum(conv.kernel > 1 or conv.stride > 1 for conv in convs) <= 1


def _is_depthwise(conv: Conv) -> bool:
    return conv.kernel > 1 and conv.groups == conv.in_channels == conv.out_channels


def _pointwise_runs(convs: tuple[Conv, ...]) -> tuple[tuple[Conv, ...], ...]:
    """Spatial convolutions alone, the pointwise ones between them together."""
    runs: list[tuple[Conv, ...]] = []
    for conv in convs:
        spatial = conv.kernel > 1 or conv.stride > 1
        if runs and not spatial and not (runs[-1][0].kernel > 1 or runs[-1][0].stride > 1):
            runs[-1] += (conv,)
        else:
            runs.append((conv,))
    return tuple(runs)


def _merged_groups(conv: Conv) -> int:
    """Groups of at least `WIDEST_GROUP` channels; the own ones where they are that wide, or depthwise."""
    if _is_depthwise(conv):
        return conv.groups
    channels = min(conv.in_channels, conv.out_channels) // conv.groups
    divisors = (groups for groups in range(conv.groups, 0, -1) if conv.groups % groups == 0)
    return next((groups for groups in divisors if channels * (conv.groups // groups) >= WIDEST_GROUP), 1)


def _step_key(step: Step) -> str:
    if isinstance(step, Scale):
        return "b"
    if isinstance(step, Interleave):
        return f"p{step.groups}of{step.channels}"
    stride = f"s{step.stride}" if step.stride > 1 else ""
    return f"c{step.kernel}{stride}g{step.groups}i{step.in_channels}o{step.out_channels}"


# What a block runs, with its chains found.
