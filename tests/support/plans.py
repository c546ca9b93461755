"""Plans that no unit writes: every kind of layer behind every other, in branches of branches."""

from __future__ import annotations

from math import prod

from hypothesis import strategies as st

from igc_nas.arch.cost import layers_cost
from igc_nas.arch.layers import (
    Act,
    AvgPool,
    Concat,
    Conv,
    DualPath,
    Flatten,
    Interleave,
    Layer,
    Linear,
    MaxPool,
    Norm,
    Pool,
    PRelu,
    Residual,
    Select,
    Split,
    SqueezeExcite,
    Subsample,
)
from igc_nas.arch.plan import BlockPlan, Plan
from igc_nas.arch.shapes import Shape
from tests.support.builders import divisors

ACTS = ("relu", "relu6", "hswish")
CLASSES = 5


@st.composite
def plans(draw: st.DrawFn, most_layers: int = 5) -> Plan:
    """A stem, one or two blocks of anything, a classifier with hidden layers or without."""
    shape: Shape = (draw(st.sampled_from([1, 3])), draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    image = shape
    width = draw(st.sampled_from([4, 6, 8, 12]))
    blocks = [BlockPlan("stem", (Conv("conv", shape[0], width, 3), Norm("norm", width), Act("relu")))]
    shape = (width, *shape[1:])
    for number in range(1, draw(st.integers(1, 2)) + 1):
        layers, shape = draw(runs(shape, f"b{number}", most_layers))
        blocks.append(BlockPlan(f"stage1.block{number}", layers))
    blocks.append(BlockPlan("classifier", draw(ends(shape))))
    return Plan(image, CLASSES, tuple(blocks))  # type: ignore[arg-type]


@st.composite
def ends(draw: st.DrawFn, shape: Shape) -> tuple[Layer, ...]:
    """Pooling, or the map as it is, then linear layers."""
    layers: list[Layer] = [Flatten()] if prod(shape) <= 300 and draw(st.booleans()) else [Pool()]
    features = prod(shape) if isinstance(layers[0], Flatten) else shape[0]
    if draw(st.booleans()):
        layers += [Linear("hidden", features, 6, draw(st.booleans())), Act(draw(st.sampled_from(ACTS)))]
        features = 6
    return (*layers, Linear("linear", features, CLASSES))


@st.composite
def runs(draw: st.DrawFn, shape: Shape, name: str, most: int, depth: int = 0) -> tuple[tuple[Layer, ...], Shape]:
    """(layers in a row, the shape of their output); within branches they keep height and width."""
    layers: list[Layer] = []
    for number in range(draw(st.integers(0 if depth else 1, most))):
        layer = draw(one(shape, f"{name}_{number}", depth))
        layers.append(layer)
        shape = layers_cost([layer], shape)[1]
    return tuple(layers), shape


@st.composite
def one(draw: st.DrawFn, shape: Shape, name: str, depth: int) -> Layer:
    """One layer that fits the shape."""
    channels, height, width = shape
    stride = 1 if depth else draw(st.sampled_from([1, 2]))
    kinds = ["conv", "conv", "conv", "norm", "norm", "act", "act", "interleave", "prelu", "se", "select", "subsample"]
    kinds += ["pool", "pool"] + (["residual", "concat", "split", "dual"] if depth < 2 else [])
    match draw(st.sampled_from(kinds)):
        case "conv":
            return draw(convs(shape, name, keeps=depth > 0))
        case "act":
            return Act(draw(st.sampled_from(ACTS)))
        case "interleave":
            return Interleave(channels, draw(divisors(channels)))
        case "prelu":
            return PRelu(name, channels)
        case "se":
            gate = draw(st.sampled_from(["sigmoid", "hsigmoid"]))
            return SqueezeExcite(name, channels, draw(st.integers(1, 4)), gate, draw(st.booleans()))
        case "select":
            return Select(name, channels, draw(st.integers(1, 12)))
        case "subsample":
            return Subsample(1 if depth else 2, draw(st.integers(0, 3)), draw(st.integers(0, 3)))
        case "pool":
            kernel, stride = (3, 1) if depth else (draw(st.integers(1, min(3, height, width))), draw(st.integers(1, 2)))
            padding = 1 if depth else draw(st.integers(0, kernel // 2))
            return draw(st.sampled_from([MaxPool, AvgPool]))(kernel, stride, padding)
        case "residual":
            body, after = draw(branches(shape, f"{name}b", depth, stride))
            shortcuts = [(Conv(f"{name}s", channels, after[0], 1, stride), Norm(f"{name}n", after[0]))]
            if after == shape:
                shortcuts.append(())
            elif after[0] >= channels:
                shortcuts.append((Subsample(stride, (after[0] - channels) // 2, (after[0] - channels + 1) // 2),))
            return Residual(body, draw(st.sampled_from(shortcuts)))
        case "concat":
            count = draw(st.integers(1, 3))
            return Concat(tuple(draw(branches(shape, f"{name}{i}", depth, stride))[0] for i in range(count)))
        case "split" if channels > 1:
            n = draw(st.integers(1, channels - 1))
            first = draw(branches((n, height, width), f"{name}a", depth, stride))[0]
            return Split(n, first, draw(branches((channels - n, height, width), f"{name}c", depth, stride))[0])
        case "dual":
            body, after = draw(branches(shape, f"{name}b", depth, stride))
            shared = draw(st.integers(1, after[0]))
            shortcut = Conv(f"{name}s", channels, shared + draw(st.integers(0, 2)), 1, stride)
            return DualPath(shared, body, draw(st.sampled_from([(shortcut,), (Act("relu"), shortcut)])))
    return Norm(name, channels)


@st.composite
def branches(draw: st.DrawFn, shape: Shape, name: str, depth: int, stride: int) -> tuple[tuple[Layer, ...], Shape]:
    """(layers of a branch, the shape of their output), which has 1 / stride of the height and width, rounded up."""
    if stride == 1:
        return draw(runs(shape, name, 3, depth + 1))
    before, after = draw(runs(shape, f"{name}x", 1, depth + 1))
    convs = [Conv(f"{name}r", after[0], width, kernel, 2) for width in (4, 6) for kernel in (1, 3)]
    reduced = draw(st.sampled_from([*convs, MaxPool(3, 2, 1), AvgPool(3, 2, 1), Subsample(2)]))
    behind, end = draw(runs(layers_cost([reduced], after)[1], name, 2, depth + 1))
    return (*before, reduced, *behind), end


@st.composite
def convs(draw: st.DrawFn, shape: Shape, name: str, keeps: bool) -> Conv:
    """Dense, grouped and depthwise ones; with a bias or another padding than usual now and then."""
    channels, height, width = shape
    out = draw(st.sampled_from([channels, 4, 6, 12]))
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0 and out % g == 0]))
    bias = draw(st.sampled_from([False, False, True]))
    if keeps:
        return Conv(name, channels, out, draw(st.sampled_from([1, 1, 3, 5])), 1, groups, bias=bias)
    kernel = draw(st.integers(1, 5))
    least = max(0, -(-(kernel - min(height, width)) // 2))
    padding = draw(st.sampled_from([None, least])) if kernel % 2 else least
    return Conv(name, channels, out, kernel, draw(st.sampled_from([1, 1, 2])), groups, padding, bias)
