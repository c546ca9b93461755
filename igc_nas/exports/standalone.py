"""An architecture as one readable, trainable PyTorch file that does not import igc_nas.

The file holds the architecture as data and the classes of the blocks it uses. Its modules have the names, shapes and
order of `igc_nas.nn.network`, so the two share weights files; `igc_nas.exports.verify` runs the file to check that.
The units of IGC networks and regular convolutions have their classes here; those of all others are written from the
plan (`block_classes`).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from igc_nas._version import __version__
from igc_nas.arch.config import ArchConfig, Head, Stem
from igc_nas.arch.plan import plan
from igc_nas.arch.stages import Igcv1Stage, Igcv2Stage, Igcv3Stage, StageConfig
from igc_nas.exports.block_classes import HELPERS, WIDTH, block_classes, stage_rows
from igc_nas.exports.source import Source, comments, facts
from igc_nas.io.text import printable


def standalone_text(source: Source) -> str:
    """The file's text, formatted as `ruff format` would."""
    return _of_templates(source) if _has_templates(source.arch) else _of_plan(source)


def _has_templates(arch: ArchConfig) -> bool:
    """Whether all of an architecture is in the classes below."""
    ends = [part for part in (arch.stem, arch.head) if part is not None]
    return (
        all(stage.unit in UNIT_CLASSES for stage in arch.stages)
        and all(stage.model_dump(exclude_none=True).keys() <= _STAGE_FIELDS for stage in arch.stages)
        and all(part.model_dump(exclude_none=True).keys() <= _END_FIELDS for part in ends)
        and all(part.activation in _ACTS and part.width for part in ends)
    )


_END_FIELDS = {"width", "kernel", "stride", "activation"}
_STAGE_FIELDS = {
    "unit",
    "blocks",
    "kernel",
    "stride",
    "residual",
    "width",
    "L",
    "M",
    "depth",
    "K",
    "expand",
    "G1",
    "G2",
}


def _of_plan(source: Source) -> str:
    whole = plan(source.arch)
    classes = block_classes(whole.blocks, source.arch.stages)
    of_block = {block: each for each in classes for block in each.arguments}
    has_classes = any("num_classes" in each.text for each in classes)
    code = "\n".join(each.text for each in classes)
    ends = []
    for block in whole.blocks:
        if "." not in block.name and block.name != "stem":
            each = of_block[block.name]
            arguments = [*each.arguments[block.name]]
            if block is whole.blocks[-1] and has_classes:
                arguments[-1] = "num_classes"
            ends.append(f"        self.{block.name} = {each.name}({', '.join(arguments)})")
    network = _PLAN_NETWORK.replace("SUMMARY", _wrapped(str(source.arch))).replace("ENDS", "\n".join(ends))
    if not has_classes:
        network = network.replace("self, num_classes=NUM_CLASSES", "self")
    used = [text.strip("\n") for word, text in HELPERS.items() if f"{word}(" in code]
    stages = "\n".join(
        [
            "# For each block of a stage its class and the numbers that it is made with.",
            "STAGES = [",
            *stage_rows(classes, whole.blocks),
            "]",
        ]
    )
    parts = [*used, *(each.text.strip("\n") for each in classes), f"{stages}\n\n\n{_MAKE_STAGE.strip()}", network, _USE]
    body = "\n\n\n".join(part.strip("\n") for part in parts)
    imported = ("import sys\nfrom collections import OrderedDict" + _IMPORTS).strip("\n")
    if "F." not in body:
        imported = imported.removesuffix("\nfrom torch.nn import functional as F")
    return f"{_header(source)}\n\n{imported}\n\n" + "\n".join(_facts(source)) + f"\n\n\n{body}\n"


def _of_templates(source: Source) -> str:
    arch = source.arch
    units = [_unit(stage) for stage in arch.stages]
    classes = [name for name in _CLASSES if name in _used(arch, units)]
    imports = ["from collections import OrderedDict", *(["from math import gcd"] if _needs_gcd(units) else [])]
    parts = [
        _header(source),
        "import sys\n" + "\n".join(imports) + _IMPORTS,
        _data(source, units),
        *([HELPERS["interleave"]] if any(unit.startswith("igcv") for unit in units) else []),
        _CONV,
        *(_CLASSES[name].strip("\n") for name in classes),
        _blocks(units),
        _NETWORK.replace("SUMMARY", _wrapped(str(arch))).replace("HEAD_LINES", _HEAD if arch.head else _NO_HEAD),
        _USE,
    ]
    header, imported, data, *code = (part.strip("\n") for part in parts)
    body = "\n\n\n".join(code)
    if "F." not in body:
        imported = imported.removesuffix("\nfrom torch.nn import functional as F")
    return f"{header}\n\n{imported}\n\n{data}\n\n\n{body}\n"


def _header(source: Source) -> str:
    channels, height, width = source.arch.input
    lines = [wrapped for fact in facts(source) for wrapped in textwrap.wrap(printable(fact, lines=False), WIDTH - 4)]
    return (
        comments(tuple(lines))
        + "#\n"
        + comments((f"Written by igc-nas {__version__}, under igc-nas's own licence, MIT.",))
        + f'"""Network {source.id}: images of {channels} x {height} x {width} to {source.arch.classes} classes.\n\n'
        + "It needs PyTorch only (and safetensors, to read weights):\n\n"
        + '    model = load_weights(Network(), "model.safetensors").eval()\n'
        + '"""'
    )


def _facts(source: Source) -> list[str]:
    """Lines of data on images and classes."""
    arch = source.arch
    lines = [f"INPUT = {arch.input!r}  # channels, height, width of an image", f"NUM_CLASSES = {arch.classes}"]
    dataset, statistics = source.dataset, source.statistics
    if statistics is not None and arch.input[0] == len(statistics[0]):
        name = printable(dataset, lines=False).partition(" ")[0]
        lines += [
            f"# Inputs have values from 0 to 1, normalised per channel with these statistics of {name}.",
            f"MEAN, STD = {statistics[0]!r}, {statistics[1]!r}",
        ]
    if source.images:
        names = [_quoted(printable(name, lines=False)) for name in source.images.classes]
        row = f"CLASSES = ({', '.join(names)})"
        parts = ["CLASSES = (", *(f"    {name}," for name in names), ")"]
        lines += ["# The classes in the order of the outputs.", *([row] if len(row) <= WIDTH else parts)]
    return lines


def _data(source: Source, units: list[str]) -> str:
    arch = source.arch
    return "\n".join(
        [
            *_facts(source),
            "",
            f"STEM = {_stem(arch.stem)}",
            "# unit, blocks, stride of the first block (which also changes the width), kernel, options",
            "STAGES = [",
            *(_row(unit, stage) for unit, stage in zip(units, arch.stages, strict=True)),
            "]",
            *([f"HEAD = {_head(arch.head)}"] if arch.head else []),
        ]
    )


def _quoted(text: str) -> str:
    """Printable text as a literal, in the quotes that `ruff format` prefers."""
    return repr(text) if '"' in text and "'" not in text else json.dumps(text, ensure_ascii=False)


def _stem(stem: Stem) -> str:
    sizes = f'"width": {stem.width}, "kernel": {stem.kernel}, "stride": {stem.stride}'
    return f'{{{sizes}, "act": {_ACTS[stem.activation]}}}'


def _head(head: Head) -> str:
    return f'{{"width": {head.width}, "act": {_ACTS[head.activation]}}}'


_ACTS = {"relu": "nn.ReLU", "relu6": "nn.ReLU6"}


def _row(unit: str, stage: StageConfig) -> str:
    """A stage as a tuple, on one line or, if that is too long for `ruff format`, one line per item."""
    options: dict[str, object]
    match stage:
        case Igcv1Stage():
            options = {"L": stage.L, "M": stage.M}
        case Igcv2Stage():
            options = {"width": stage.width, "K": stage.channels_per_group}
        case Igcv3Stage():
            options = {"width": stage.width, "expand": stage.expand, "G1": stage.G1, "G2": stage.G2}
        case _:
            options = {"width": stage.width}
    items = (f'"{unit}"', str(stage.blocks), str(stage.stride), str(stage.kernel), repr(options).replace("'", '"'))
    line = f"    ({', '.join(items)}),"
    return line if len(line) <= WIDTH else "    (\n" + "".join(f"        {item},\n" for item in items) + "    ),"


def _unit(stage: StageConfig) -> str:
    """The key of a stage in `BLOCKS`. In a residual IGCV3 stage every block but the first adds its input."""
    residual = stage.residual and not (isinstance(stage, Igcv3Stage) and stage.blocks == 1)
    return f"{stage.unit}-res" if residual else stage.unit


UNIT_CLASSES: dict[str, tuple[str, str]] = {
    "igcv1": ("Igcv1Block", "Igcv1Block"),
    "igcv1-res": ("Igcv1ResidualBlock", "Igcv1ResidualBlock"),
    "igcv2": ("Igcv2Block", "Igcv2Block"),
    "igcv2-res": ("Igcv2ResidualBlock", "Igcv2ResidualBlock"),
    "igcv3": ("Igcv3Block", "Igcv3Block"),
    "igcv3-res": ("Igcv3Block", "Igcv3ResidualBlock"),
    "conv": ("ConvBlock", "ConvBlock"),
    "conv-res": ("ConvResidualBlock", "ConvResidualBlock"),
}
"""(class of a stage's first block, class of its other blocks)."""


def _used(arch: ArchConfig, units: list[str]) -> set[str]:
    return {name for unit in units for name in _needed(unit)} | {"ConvBlock", "Classifier"}


def _needed(unit: str) -> Iterator[str]:
    yield from UNIT_CLASSES[unit]
    if unit.endswith("-res") and unit != "igcv3-res":
        yield "Shortcut"


def _needs_gcd(units: list[str]) -> bool:
    return any(unit.startswith("igcv2") for unit in units)


def _blocks(units: list[str]) -> str:
    used = [unit for unit in UNIT_CLASSES if unit in units]
    lines = "".join(f'    "{unit}": ({UNIT_CLASSES[unit][0]}, {UNIT_CLASSES[unit][1]}),\n' for unit in used)
    return f"BLOCKS = {{  # the first block of a stage, the others\n{lines}}}\n\n\n{_STAGE.strip()}"


def _wrapped(text: str) -> str:
    return "\n    ".join(textwrap.wrap(text, WIDTH - 4))


_IMPORTS = """

import torch
from torch import Tensor, nn
from torch.nn import functional as F
"""

_FORWARDS = '''
    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the feature map before the pooling."""
        *body, _ = self.children()
        for module in body:
            x = module(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images, normalised per channel, to logits."""
        return self.classifier(self.forward_features(x))
'''

_PLAN_NETWORK = (
    '''
class Network(nn.Module):
    """SUMMARY"""

    def __init__(self, num_classes=NUM_CLASSES):
        super().__init__()
        self.stem = Stem()
        for number, rows in enumerate(STAGES, start=1):
            self.add_module(f"stage{number}", make_stage(rows))
ENDS
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
'''
    + _FORWARDS
)
_MAKE_STAGE = '''
def make_stage(rows) -> nn.Sequential:
    """The blocks of a stage: block1, block2, ..."""
    stage = OrderedDict()
    for number, (block, *numbers) in enumerate(rows, start=1):
        stage[f"block{number}"] = block(*numbers)
    return nn.Sequential(stage)
'''

_CONV = '''
def conv(in_channels, out_channels, kernel=1, stride=1, groups=1):
    """A convolution without bias; a side of H pixels becomes ceil(H / stride)."""
    padding = kernel // 2
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False
    )
'''

_CLASSES: dict[str, str] = {
    "ConvBlock": '''
class ConvBlock(nn.Module):
    """Convolution, normalisation, activation."""

    def __init__(self, in_channels, width, kernel=1, stride=1, act=nn.ReLU):
        super().__init__()
        self.width = width
        self.conv = conv(in_channels, width, kernel, stride)
        self.norm = nn.BatchNorm2d(width)
        self.act = act(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))
''',
    "Shortcut": '''
class Shortcut:
    """The shortcut of a residual block: the identity, or where the shape changes a 1x1
    group convolution."""

    changes_shape = False

    def add_shortcut(self, in_channels, width, stride, groups):
        if stride > 1 or in_channels != width:
            self.changes_shape = True
            self.shortcut = conv(in_channels, width, 1, stride, groups)
            self.shortcut_norm = nn.BatchNorm2d(width)

    def take_shortcut(self, x: Tensor) -> Tensor:
        return self.shortcut_norm(self.shortcut(x)) if self.changes_shape else x
''',
    "ConvResidualBlock": '''
class ConvResidualBlock(nn.Module, Shortcut):
    """Two regular convolutions around a shortcut."""

    def __init__(self, in_channels, width, kernel, stride):
        super().__init__()
        self.width = width
        self.conv1 = conv(in_channels, width, kernel, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, kernel)
        self.norm2 = nn.BatchNorm2d(width)
        self.add_shortcut(in_channels, width, stride, groups=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.take_shortcut(x))
''',
    "Igcv1Block": '''
class Igcv1Block(nn.Module):
    """IGCV1 (arXiv 1707.02725): a primary kxk convolution, L groups of M channels, and a
    secondary 1x1 convolution, M groups of L channels, with interleaves."""

    def __init__(self, in_channels, L, M, kernel, stride):
        super().__init__()
        self.L, self.M, self.width = L, M, L * M
        self.primary = conv(in_channels, L * M, kernel, stride, groups=L)
        self.secondary = conv(L * M, L * M, groups=M)
        self.norm = nn.BatchNorm2d(L * M)

    def forward(self, x: Tensor) -> Tensor:
        x = interleave(self.primary(x), self.L)
        x = interleave(self.secondary(x), self.M)
        return F.relu(self.norm(x))
''',
    "Igcv1ResidualBlock": '''
class Igcv1ResidualBlock(nn.Module, Shortcut):
    """Two IGCV1 units (arXiv 1707.02725) around a shortcut. A unit is a primary kxk
    convolution, L groups of M channels, and a secondary 1x1 convolution, M groups of L
    channels, with interleaves."""

    def __init__(self, in_channels, L, M, kernel, stride):
        super().__init__()
        self.L, self.M, self.width = L, M, L * M
        self.primary1 = conv(in_channels, L * M, kernel, stride, groups=L)
        self.secondary1 = conv(L * M, L * M, groups=M)
        self.norm1 = nn.BatchNorm2d(L * M)
        self.primary2 = conv(L * M, L * M, kernel, groups=L)
        self.secondary2 = conv(L * M, L * M, groups=M)
        self.norm2 = nn.BatchNorm2d(L * M)
        self.add_shortcut(in_channels, L * M, stride, groups=L)

    def forward(self, x: Tensor) -> Tensor:
        y = interleave(self.primary1(x), self.L)
        y = interleave(self.secondary1(y), self.M)
        y = F.relu(self.norm1(y))
        y = interleave(self.primary2(y), self.L)
        y = interleave(self.secondary2(y), self.M)
        return F.relu(self.norm2(y) + self.take_shortcut(x))
''',
    "Igcv2Block": '''
class Igcv2Block(nn.Module):
    """IGCV2 (arXiv 1804.06202): a depthwise kxk convolution, then 1x1 convolutions of K
    channels per group, each with an interleave."""

    def __init__(self, in_channels, width, K, kernel, stride):
        super().__init__()
        self.width = width
        self.groups = [width // k for k in K]
        groups = gcd(in_channels, width)
        self.depthwise = conv(in_channels, width, kernel, stride, groups)
        for number, groups in enumerate(self.groups, start=1):
            self.add_module(f"pointwise{number}", conv(width, width, groups=groups))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)
        for number, groups in enumerate(self.groups, start=1):
            x = interleave(self.get_submodule(f"pointwise{number}")(x), groups)
        return F.relu(self.norm(x))
''',
    "Igcv2ResidualBlock": '''
class Igcv2ResidualBlock(nn.Module, Shortcut):
    """Two IGCV2 units (arXiv 1804.06202) around a shortcut. A unit is a depthwise kxk
    convolution, then 1x1 convolutions of K channels per group, each with an interleave."""

    def __init__(self, in_channels, width, K, kernel, stride):
        super().__init__()
        self.width = width
        self.groups = [width // k for k in K]
        self.add_unit(1, in_channels, kernel, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.add_unit(2, width, kernel, 1)
        self.norm2 = nn.BatchNorm2d(width)
        self.add_shortcut(in_channels, width, stride, groups=gcd(in_channels, width))

    def add_unit(self, unit, in_channels, kernel, stride):
        groups = gcd(in_channels, self.width)
        depthwise = conv(in_channels, self.width, kernel, stride, groups)
        self.add_module(f"depthwise{unit}", depthwise)
        for number, groups in enumerate(self.groups, start=1):
            pointwise = conv(self.width, self.width, groups=groups)
            self.add_module(f"pointwise{unit}_{number}", pointwise)

    def run_unit(self, unit: int, x: Tensor) -> Tensor:
        x = self.get_submodule(f"depthwise{unit}")(x)
        for number, groups in enumerate(self.groups, start=1):
            x = interleave(self.get_submodule(f"pointwise{unit}_{number}")(x), groups)
        return x

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.run_unit(1, x)))
        y = self.norm2(self.run_unit(2, y))
        return F.relu(y + self.take_shortcut(x))
''',
    "Igcv3Block": '''
class Igcv3Block(nn.Module):
    """IGCV3 (arXiv 1806.00178): a 1x1 convolution in G1 groups to `expand` times the
    channels, an interleave, a depthwise kxk one, a 1x1 one in G2 groups; ReLU6 only after
    the depthwise."""

    def __init__(self, in_channels, width, expand, G1, G2, kernel, stride):
        super().__init__()
        inner = expand * in_channels
        self.G1, self.width = G1, width
        self.expand = conv(in_channels, inner, groups=G1)
        self.expand_norm = nn.BatchNorm2d(inner)
        self.depthwise = conv(inner, inner, kernel, stride, groups=inner)
        self.depthwise_norm = nn.BatchNorm2d(inner)
        self.project = conv(inner, width, groups=G2)
        self.project_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = interleave(self.expand_norm(self.expand(x)), self.G1)
        x = F.relu6(self.depthwise_norm(self.depthwise(x)))
        return self.project_norm(self.project(x))
''',
    "Igcv3ResidualBlock": '''
class Igcv3ResidualBlock(Igcv3Block):
    """An IGCV3 block that adds its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x
''',
    "Classifier": '''
class Classifier(nn.Module):
    """Global average pooling and the linear layer."""

    def __init__(self, features, num_classes):
        super().__init__()
        self.linear = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))
''',
}

_STAGE = '''
def make_stage(in_channels, unit, blocks, stride, kernel, options) -> nn.Sequential:
    """The blocks of a stage: block1, block2, ..."""
    first, other = BLOCKS[unit]
    block = first(in_channels, kernel=kernel, stride=stride, **options)
    stage = OrderedDict(block1=block)
    for number in range(2, blocks + 1):
        stage[f"block{number}"] = other(block.width, kernel=kernel, stride=1, **options)
    return nn.Sequential(stage)
'''

_HEAD = """
        self.head = ConvBlock(width, **HEAD)
        self.classifier = Classifier(HEAD["width"], num_classes)
""".strip("\n")

_NO_HEAD = "        self.classifier = Classifier(width, num_classes)"

_NETWORK = (
    '''
class Network(nn.Module):
    """SUMMARY"""

    def __init__(self, num_classes=NUM_CLASSES):
        super().__init__()
        self.stem = ConvBlock(INPUT[0], **STEM)
        width = STEM["width"]
        for number, row in enumerate(STAGES, start=1):
            stage = make_stage(width, *row)
            self.add_module(f"stage{number}", stage)
            width = stage.block1.width
HEAD_LINES
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
'''
    + _FORWARDS
)

_USE = '''
def load_weights(model: Network, path) -> Network:
    """The model with the weights of a safetensors file."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("to read weights: pip install safetensors") from error
    model.load_state_dict(load_file(path))
    return model


if __name__ == "__main__":
    model = Network().eval()
    for path in sys.argv[1:]:
        load_weights(model, path)
    with torch.inference_mode():
        logits = model(torch.randn(1, *INPUT))
    params = sum(parameter.numel() for parameter in model.parameters())
    print(f"{params:,} parameters, output {tuple(logits.shape)}")
'''
