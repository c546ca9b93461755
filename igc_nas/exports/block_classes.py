"""Blocks of a plan as PyTorch classes in text: one class for all blocks that differ in their numbers only.

A number that is the same in all blocks of a class is written as it is; the others become arguments, one for all numbers
that are of one kind and equal in every block (the input width of a convolution and the width of its BN). The lines are
those that `ruff format` would write.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby

from igc_nas.arch.layers import (
    Act,
    AvgPool,
    Branched,
    Concat,
    Conv,
    DualPath,
    Flatten,
    Interleave,
    Layer,
    Linear,
    MaxPool,
    Named,
    Norm,
    Pool,
    PRelu,
    Residual,
    Select,
    Split,
    SqueezeExcite,
    Subsample,
)
from igc_nas.arch.plan import BlockPlan
from igc_nas.arch.stages import STAGE_OF_UNIT, StageConfig

WIDTH = 88
"""Line length: the default of ruff and black."""

HELPERS: dict[str, str] = {
    "interleave": '''
def interleave(x: Tensor, groups: int) -> Tensor:
    """out[j * groups + i] = in[i * (C / groups) + j], as torch's ChannelShuffle."""
    n, c, h, w = x.shape
    x = x.reshape(n, groups, c // groups, h, w)
    return x.transpose(1, 2).reshape(n, c, h, w)
''',
    "conv": '''
def conv(
    in_channels, out_channels, kernel=1, stride=1, groups=1, padding=None, bias=False
):
    """A convolution, padded by kernel // 2 if nothing else is said."""
    padding = kernel // 2 if padding is None else padding
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias
    )
''',
    "SqueezeExcite": '''
class SqueezeExcite(nn.Module):
    """A factor per channel, computed from the means of the channels (arXiv 1709.01507)."""

    def __init__(self, channels, squeeze, gate, bias=True):
        super().__init__()
        self.reduce = nn.Linear(channels, squeeze, bias=bias)
        self.expand = nn.Linear(squeeze, channels, bias=bias)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        factors = self.gate(self.expand(F.relu(self.reduce(x.mean((2, 3))))))
        return x * factors[:, :, None, None]
''',
    "Select": '''
class Select(nn.Module):
    """Channels by a stored index."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        index = torch.arange(out_channels) * in_channels // out_channels
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)
''',
}
"""What the classes call, by the words that call it."""
_ENDS = {
    "stem": ("Stem", "The first layers."),
    "head": ("Head", "The layers behind the last stage."),
    "classifier": ("Classifier", "Features to logits."),
}


@dataclass(frozen=True)
class BlockClass:
    """A class: its text, and for each of its blocks, by the block's name in the plan, the arguments in order."""

    name: str
    text: str
    arguments: Mapping[str, tuple[str, ...]]


def block_classes(blocks: Sequence[BlockPlan], stages: Sequence[StageConfig]) -> list[BlockClass]:
    """The classes of a plan's blocks, in the order in which they first occur."""
    kinds: dict[tuple[str, object], list[tuple[BlockPlan, _Anatomy]]] = {}
    for block in blocks:
        place, dot, _ = block.name.partition(".")
        unit = stages[int(place.removeprefix("stage")) - 1].unit if dot else place
        anatomy = _Anatomy.of(block.layers, is_last=block is blocks[-1])
        kinds.setdefault((unit, anatomy.form), []).append((block, anatomy))
    found: list[BlockClass] = []
    numbers: dict[str, int] = {}
    for (unit, _), members in kinds.items():
        numbers[unit] = numbers.get(unit, 0) + 1
        if unit in _ENDS:
            name, doc = _ENDS[unit]
        else:
            stage = STAGE_OF_UNIT[unit]
            name, doc = stage.__name__.replace("Stage", "Block"), _first_sentence(stage.__doc__ or "")
        name += str(numbers[unit]) if numbers[unit] > 1 else ""
        found.append(_class(name, doc, members))
    return found


def stage_rows(classes: Sequence[BlockClass], blocks: Sequence[BlockPlan]) -> Iterator[str]:
    """The lines of `STAGES`: of each stage the class and the arguments of its blocks."""
    row_of = {
        block: f"({', '.join([each.name, *arguments])}{'' if arguments else ','})"
        for each in classes
        for block, arguments in each.arguments.items()
    }
    in_stages = (block.name for block in blocks if "." in block.name)
    for _, names in groupby(in_stages, key=lambda name: name.partition(".")[0]):
        runs = [(row, len(list(equal))) for row, equal in groupby(row_of[name] for name in names)]
        items = [row if count == 1 else f"*[{row}] * {count}" for row, count in runs]
        yield from wrapped_call("[", items, "],", 4)


def wrapped_call(head: str, items: Sequence[str], tail: str, indent: int) -> Iterator[str]:
    """`head items tail` on one line; or with the items on a line of their own; or with a line for each."""
    space = " " * indent
    line = f"{space}{head}{', '.join(items)}{tail}"
    if len(line) <= WIDTH:
        yield line
        return
    yield f"{space}{head}"
    if len(inner := f"{space}    {', '.join(items)}") <= WIDTH and not head.endswith("["):
        yield inner
    else:
        yield from (f"{space}    {item}," for item in items)
    yield f"{space}{tail}"


# What a block is made of.


@dataclass(frozen=True)
class _Number:
    """A number of a layer: numbers of one kind may share an argument; `name` is what an argument would be called."""

    kind: str
    name: str
    value: int


@dataclass
class _Part:
    """A layer, the places of its numbers in `_Anatomy.numbers` by field, and the parts of its branches."""

    layer: Layer
    places: dict[str, int] = field(default_factory=dict)
    branches: list[list[_Part]] = field(default_factory=list)


_STRUCTURE = (Act, MaxPool, AvgPool, Pool, Flatten)
"""Kinds of layers whose numbers belong to the form of a block."""


@dataclass
class _Anatomy:
    """The layers of a block as a form, which a class has, and numbers, which a block has."""

    parts: list[_Part] = field(default_factory=list)
    numbers: list[_Number] = field(default_factory=list)
    form: object = None

    @classmethod
    def of(cls, layers: tuple[Layer, ...], is_last: bool) -> _Anatomy:
        """Take layers apart; the last linear layer of the last block writes `num_classes`."""
        found = cls()
        found.parts, found.form = found._walk(layers)
        last = found.parts[-1] if found.parts else None
        if is_last and last is not None and isinstance(last.layer, Linear):
            place = last.places["out_features"]
            found.numbers[place] = _Number("classes", "num_classes", last.layer.out_features)
        return found

    def _walk(self, layers: tuple[Layer, ...]) -> tuple[list[_Part], object]:
        parts: list[_Part] = []
        forms: list[object] = []
        for layer in layers:
            if isinstance(layer, Interleave) and layer.is_identity:
                continue
            part = _Part(layer)
            form: list[object] = [type(layer).__name__]
            for each in fields(layer):
                value = getattr(layer, each.name)
                if type(value) is int and not isinstance(layer, _STRUCTURE):
                    if each.name == "padding" and isinstance(layer, Conv) and layer.pad == layer.kernel // 2:
                        continue
                    part.places[each.name] = len(self.numbers)
                    self.numbers.append(_number(layer, each.name, value))
                elif not isinstance(layer, Branched):
                    form.append(value)
            if isinstance(layer, Conv):
                form.append((layer.pad == layer.kernel // 2, layer.in_channels == layer.groups > 1))
            if isinstance(layer, Branched):
                for branch in layer.branches:
                    inner, inner_form = self._walk(branch)
                    part.branches.append(inner)
                    form.append(inner_form)
            parts.append(part)
            forms.append(tuple(form))
        return parts, tuple(forms)


def _number(layer: Layer, name: str, value: int) -> _Number:
    own = f"{layer.name}_" if isinstance(layer, Named) else ""
    match layer, name:
        case Conv(), "kernel" | "stride" | "padding":
            return _Number(name, name, value)
        case Conv(), "groups":
            depthwise = layer.groups == layer.in_channels > 1
            return _Number("channels" if depthwise else "groups", "groups", value)
        case Interleave(), "groups":
            return _Number("groups", "groups", value)
        case Conv() | Select(), "in_channels":
            return _Number("channels", "in_channels", value)
        case Linear(), "in_features":
            return _Number("channels", "features", value)
        case Subsample(), "stride":
            return _Number("stride", "stride", value)
        case Subsample(), _:
            return _Number("zeros", "zeros", value)
        case SqueezeExcite(), "squeeze":
            return _Number("squeeze", "squeeze", value)
        case Split(), _:
            return _Number("channels", "first_channels", value)
        case DualPath(), _:
            return _Number("channels", "summed_channels", value)
        case _:
            return _Number("channels", f"{own}channels", value)


# Text.


def _class(name: str, doc: str, members: Sequence[tuple[BlockPlan, _Anatomy]]) -> BlockClass:
    _, shape = members[0]
    columns = list(zip(*([number.value for number in anatomy.numbers] for _, anatomy in members), strict=True))
    names: dict[tuple[str, tuple[int, ...]], str] = {}
    words: list[str] = []
    taken = set(_layer_names(shape.parts))
    for number, values in zip(shape.numbers, columns, strict=True):
        if len(set(values)) == 1 and number.kind != "classes":
            words.append(str(values[0]))
            continue
        key = number.kind, values
        if key not in names:
            names[key] = next(word for word in _numbered(number.name) if word not in taken)
            taken.add(names[key])
        words.append(names[key])
    arguments = list(names.values())
    writer = _Writer(words)
    body = writer.forward(shape.parts)
    kept = [word for word in arguments if word in writer.kept]
    lines = [
        f"class {name}(nn.Module):",
        *_docstring(doc),
        "",
        *wrapped_call("def __init__(", ["self", *arguments], "):", 4),
        "        super().__init__()",
        *(f"        self.{word} = {word}" for word in kept),
        *writer.modules(shape.parts),
        "",
        "    def forward(self, x: Tensor) -> Tensor:",
        *body,
    ]
    values_of = {block.name: tuple(str(values[at]) for _, values in names) for at, (block, _) in enumerate(members)}
    return BlockClass(name, "\n".join(lines) + "\n", values_of)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}{number}"
        number += 1


def _layer_names(parts: Sequence[_Part]) -> Iterator[str]:
    for part in parts:
        if isinstance(part.layer, Named):
            yield part.layer.name
        for branch in part.branches:
            yield from _layer_names(branch)


def _docstring(text: str) -> list[str]:
    lines = textwrap.wrap(f'"""{text}"""', WIDTH - 4)
    return [f"    {line}" for line in lines]


def _first_sentence(doc: str) -> str:
    """The first paragraph of a stage's docstring, without its line breaks and marks."""
    first = " ".join(doc.strip().split("\n\n")[0].split())
    return first.replace("`", "").replace('"', "'")


_ACTS = {"relu": "F.relu({})", "relu6": "F.relu6({})", "hswish": "F.hardswish({})"}
_GATES = {"sigmoid": "torch.sigmoid", "hsigmoid": "F.hardsigmoid"}


@dataclass
class _Writer:
    """Writes the lines of a class; `words` has the text of each number, `kept` collects what `forward` needs."""

    words: Sequence[str]
    kept: set[str] = field(default_factory=set)

    def modules(self, parts: Sequence[_Part]) -> Iterator[str]:
        """The lines that make the submodules, in the plan's order."""
        for part in parts:
            for branch in part.branches:
                yield from self.modules(branch)
            if isinstance(part.layer, Named):
                head, items = self._made(part)
                yield from wrapped_call(f"self.{part.layer.name} = {head}(", items, ")", 8)

    def _made(self, part: _Part) -> tuple[str, list[str]]:
        """(constructor, its arguments) of a layer with parameters."""
        of = {name: self.words[place] for name, place in part.places.items()}
        match part.layer:
            case Conv() as conv:
                usual = {"kernel": "1", "stride": "1", "groups": "1"}
                items = [of["in_channels"], of["out_channels"], *(of[name] for name in usual)]
                while len(items) > 2 and items[-1] == "1":
                    items.pop()
                padding = [f"padding={of['padding']}"] if "padding" in of else []
                return "conv", [*items, *padding, *(["bias=True"] if conv.bias else [])]
            case Norm():
                return "nn.BatchNorm2d", [of["channels"]]
            case PRelu():
                return "nn.PReLU", [of["channels"]]
            case Select():
                return "Select", [of["in_channels"], of["out_channels"]]
            case SqueezeExcite(gate=gate, bias=bias):
                return "SqueezeExcite", [
                    of["channels"],
                    of["squeeze"],
                    _GATES[gate],
                    *([] if bias else ["bias=False"]),
                ]
            case Linear(bias=bias):
                return "nn.Linear", [of["in_features"], of["out_features"], *([] if bias else ["bias=False"])]
        raise AssertionError(part.layer)

    def forward(self, parts: Sequence[_Part]) -> list[str]:
        """The lines of `forward`."""
        lines: list[str] = []
        result = self._run(parts, "x", "x", lines, 0)
        if lines and lines[-1].startswith(f"{result} = "):
            result = lines.pop().removeprefix(f"{result} = ")
        return [f"        {line}" for line in (*lines, f"return {result}")]

    def _run(self, parts: Sequence[_Part], given: str, out: str, lines: list[str], depth: int) -> str:
        """Append the lines that compute `parts` of the variable `given` in `out`; returns what holds the result."""
        now = given
        for part in parts:
            if isinstance(part.layer, Branched):
                if not now.isidentifier():
                    lines.append(f"{out} = {now}")
                    now = out
                now = self._join(part, now, lines, depth)
                if isinstance(part.layer, Residual) or len(now) > WIDTH // 2:
                    lines.append(f"{out} = {now}")
                    now = out
                continue
            after = self._called(part, now)
            if len(f"        return {after}") > WIDTH and not now.isidentifier():
                lines.append(f"{out} = {now}")
                after = self._called(part, out)
            now = after
            if isinstance(part.layer, Act):
                lines.append(f"{out} = {now}")
                now = out
        return now

    def _called(self, part: _Part, value: str) -> str:
        match part.layer:
            case Act(kind):
                return _ACTS[kind].format(value)
            case Interleave():
                return f"interleave({value}, {self._kept(part, 'groups')})"
            case MaxPool(kernel, stride, padding):
                return f"F.max_pool2d({value}, {kernel}, {stride}, {padding})"
            case AvgPool(kernel, stride, padding):
                return f"F.avg_pool2d({value}, {kernel}, {stride}, {padding})"
            case Subsample(_, before, after):
                step = self._kept(part, "stride")
                taken = value if step == "1" else f"{value}[:, :, ::{step}, ::{step}]"
                if not before and not after:
                    return taken
                return f"F.pad({taken}, (0, 0, 0, 0, {self._kept(part, 'before')}, {self._kept(part, 'after')}))"
            case Pool():
                return f"{value}.mean((2, 3))"
            case Flatten():
                return f"{value}.flatten(1)"
        assert isinstance(part.layer, Named)
        return f"self.{part.layer.name}({value})"

    def _join(self, part: _Part, given: str, lines: list[str], depth: int) -> str:
        """Run the branches; returns the expression that joins them."""
        layer, mark = part.layer, str(depth) if depth else ""
        names = [f"{letter}{mark}" for letter in "abcdefghijklmnop"[: len(part.branches)]]
        starts = [given] * len(names)
        if isinstance(layer, Split):
            n = self._local(part, "n", lines)
            starts = names
            lines.append(f"{', '.join(names)} = {given}[:, :{n}], {given}[:, {n}:]")
        results = []
        for branch, start, name in zip(part.branches, starts, names, strict=True):
            result = self._run(branch, start, name, lines, depth + 1)
            if not result.isidentifier():
                lines.append(f"{name} = {result}")
                result = name
            results.append(result)
        if isinstance(layer, Residual):
            return f"{results[0]} + {results[1]}"
        if isinstance(layer, Concat | Split):
            return f"torch.cat([{', '.join(results)}], 1)"
        d, (body, shortcut) = self._local(part, "d", lines), results
        lines.append(f"{names[0]}_sum = {shortcut}[:, :{d}] + {body}[:, :{d}]")
        return f"torch.cat([{names[0]}_sum, {shortcut}[:, {d}:], {body}[:, {d}:]], 1)"

    def _local(self, part: _Part, letter: str, lines: list[str]) -> str:
        """The number of channels of a layer, by a short name where it is an argument."""
        word = self._kept(part, "channels")
        if word.isdigit():
            return word
        lines.append(f"{letter} = {word}")
        return letter

    def _kept(self, part: _Part, name: str) -> str:
        """A number in `forward`."""
        word = self.words[part.places[name]]
        if word.isdigit():
            return word
        self.kept.add(word)
        return f"self.{word}"
