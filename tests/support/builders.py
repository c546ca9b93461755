"""What several test files build from: drawn architectures, spaces small enough to list, one-line errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.factors import prime_factors
from igc_nas.arch.stages import Igcv1Stage, Igcv2Stage, Igcv3Stage, StageConfig
from igc_nas.errors import ConfigError, IgcNasError
from igc_nas.io.records import parse_toml
from igc_nas.space.search_space import SearchSpace, SpaceFile, find_space, search_space

T = TypeVar("T")

CLASHING = """
[stem]
width = [8, 12]
[[stage]]
blocks = [1, 2]
[stage.igcv1]
L = [4, 6, 8]
M = [1, 2, 3]
[[stage]]
stride = 2
blocks = [1, 2]
[stage.igcv3]
width = [8, 12]
expand = [1, 2]
G1 = [1, 2, 3, 4]
G2 = [2, 3]
[stage.igcv1]
L = [4, 6]
M = 2
"""
"""Many stages do not fit behind many others."""

MERGING = """
[stem]
width = [16, 32]
[[stage]]
blocks = [1, 2]
residual = [false, true]
[stage.igcv1]
L = [8, 16]
M = [1, 2]
[stage.igcv2]
width = [16, 32]
depth = [2, 3]
[[stage]]
stride = 2
blocks = [1, 2]
residual = [false, true]
[stage.igcv2]
width = 16
depth = [2, 3]
K = [4, 16]
[stage.igcv3]
width = 16
expand = [1, 2]
[stage.conv]
width = [8, 16]
"""
"""Units write the same network twice: IGCV1 with M = 1 and IGCV2 of depth 2, an IGCV3 block residual or plain."""

MERGING_BY_WIDTH = """
[stem]
width = [3, 8, 16]
[[stage]]
blocks = [1, 2]
[stage.igcv1]
L = 1
M = 8
[stage.igcv2]
width = 8
depth = 2
K = [1, 2]
[stage.conv]
width = [3, 4]
[[stage]]
stride = 2
blocks = 1
[stage.igcv1]
L = 1
M = [8, 16]
[stage.igcv2]
width = [8, 16]
depth = 2
K = 1
"""
"""Two units write the same network behind 3 channels (gcd(3, 8) = 1) and different ones behind 4 or 8."""

ONE_STAGE = """
[stem]
width = [8, 12]
[[stage]]
blocks = [1, 2, 3]
[stage.igcv1]
L = [4, 6]
M = [1, 2, 4]
[stage.conv]
width = [4, 8]
kernel = [1, 3]
"""

FOUR_STAGES = """
[stem]
width = [4, 8]
[[stage]]
blocks = 1
[stage.conv]
width = [4, 6]
[[stage]]
blocks = [1, 2]
[stage.igcv1]
L = [2, 4]
M = 2
[[stage]]
blocks = 1
stride = 2
[stage.igcv3]
width = [8, 12]
expand = 2
[stage.igcv2]
width = [8, 16]
depth = 2
[[stage]]
blocks = [1, 3]
stride = 2
[stage.igcv1]
L = [4, 8]
M = 1
[stage.conv]
width = 8
"""

WITH_CHOICES = """
[stem]
width = 8
[[stage]]
blocks = 1
se = [0, 2]
[stage.igcv1]
L = [4, 8]
M = 1
activation = ["relu", "hswish"]
[stage.conv]
width = 8
residual = [false, true]
[[stage]]
stride = 2
blocks = 1
[stage.igcv3]
width = 8
expand = 2
se = [0, 4]
activation = ["relu6", "relu"]
[head]
width = 8
pool = ["average", "gdc"]
"""
"""SE, activations and the head are choices."""

DEAD_END = """
[stem]
width = [8, 9]
[[stage]]
blocks = 1
[stage.conv]
width = [8, 9, 12]
[[stage]]
blocks = [1, 2]
stride = 2
[stage.igcv1]
L = 4
M = [2, 3]
"""
"""Nothing follows 9 channels behind the first stage."""

WITH_TABLES = """
[stem]
width = [8, 12]
pool = {kind = "max", kernel = 3, stride = 2, padding = 1}
[[stage]]
blocks = 1
[stage.conv]
width = [8, 12]
pool = [{kind = "max", kernel = 2, stride = 2}, {kind = "average", kernel = 2, stride = 2}]
[[stage]]
blocks = [1, 2]
[stage.igcv1]
L = 4
M = 2
se = {ratio = 4}
[head]
pool = ["average", "flatten"]
hidden = [16, 12]
"""
"""Pools and SE are tables, without the keys that have defaults; hidden layers are a list and no choice."""

MERGING_FRAMES = """
[stem]
width = 8
unit = "bsconv"
reduce = [2, 4]
[[stage]]
blocks = [1, 2]
[stage.conv]
width = [8, 12]
[head]
pool = ["average", "flatten"]
activation = ["relu", "relu6"]
"""
"""Of three channels any `reduce` leaves three; a head that only pools has no activation."""

SMALL_SPACES = {
    "clashing": CLASHING,
    "merging": MERGING,
    "merging-by-width": MERGING_BY_WIDTH,
    "one-stage": ONE_STAGE,
    "four-stages": FOUR_STAGES,
    "with-choices": WITH_CHOICES,
    "dead-end": DEAD_END,
    "with-tables": WITH_TABLES,
    "merging-frames": MERGING_FRAMES,
}


def space_of(text: str, classes: int = 10) -> SearchSpace:
    return SearchSpace(SpaceFile.parse(parse_toml(text, "space.toml"), "space.toml"), classes, "small")


def shipped_space(name: str, classes: int = 10) -> SearchSpace:
    """A space of igc_nas, which specs share: it is counted once."""
    return search_space(SpaceFile.load(find_space(name)), classes, name)


def every_architecture(space: SearchSpace) -> Iterator[ArchConfig]:
    """All that a space file says, tried one by one; nothing of the space's own walk is used."""
    file = space.file
    per_stage = [
        [{"unit": unit} | option for unit, option in _stage_options(table)]
        for table in (stage for stage in file.stages)
    ]
    heads = list(_each(file.head)) if isinstance(file.head, dict) else [file.head]
    common = {"input": file.input, "classes": space.classes}
    for head, stem, *stages in itertools.product(heads, _each(file.stem), *per_stage):
        try:
            yield ArchConfig.parse(common | {"stem": stem, "stage": stages, "head": head})
        except ConfigError:
            continue


def _stage_options(table: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    shared = {key: value for key, value in table.items() if not isinstance(value, dict)}
    for unit, own in table.items():
        if isinstance(own, dict):
            yield from ((unit, option) for option in _each(shared | own))


def _each(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    lists = [value if isinstance(value, list) and key != "hidden" else [value] for key, value in table.items()]
    return (dict(zip(table, values, strict=True)) for values in itertools.product(*lists))


@st.composite
def architectures(draw: st.DrawFn) -> ArchConfig:
    """Valid architectures of all units: one to four stages, odd widths and unequal groups included."""
    width = draw(st.sampled_from([1, 3, 8, 12, 16, 30]))
    stem = {"width": width, "kernel": draw(st.sampled_from([1, 3, 5])), "stride": draw(st.sampled_from([1, 2, 4]))}
    stages = []
    for _ in range(draw(st.integers(1, 4))):
        stages.append(draw(stages_behind(width)))
        width = stages[-1].width
    return ArchConfig.parse(
        {
            "input": (draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.integers(1, 40))),
            "classes": draw(st.integers(1, 200)),
            "stem": stem | {"activation": draw(st.sampled_from(["relu", "relu6", "hswish"]))},
            "stage": tuple(stages),
            "head": draw(st.sampled_from(HEADS)),
        }
    )


HEADS = (
    None, {"width": 20}, {"width": 7, "activation": "relu", "se": 2}, {"norm": True, "activation": "hswish"},
    {"width": 6, "hidden": (5,), "hidden_bias": False}, {"pool": "average"},
)  # fmt: skip


@st.composite
def stages_behind(draw: st.DrawFn, in_width: int) -> StageConfig:
    """A stage that fits behind `in_width` channels."""
    common: dict[str, Any] = {
        "blocks": draw(st.integers(1, 3)),
        "kernel": draw(st.sampled_from([1, 3, 5, 7])),
        "stride": draw(st.sampled_from([1, 2, 4])),
        "residual": draw(st.booleans()),
        "se": draw(st.sampled_from([None, None, 0, 2, 16])),
        "activation": draw(st.sampled_from([None, None, "relu", "relu6", "hswish"])),
    }
    width = draw(st.sampled_from([2, 4, 6, 12, 16, 30, 48]))
    match draw(st.sampled_from(["igcv1", "igcv2", "igcv2 K", "igcv3", "conv"])):
        case "igcv1":
            return Igcv1Stage(L=draw(divisors(in_width)), M=draw(st.integers(1, 6)), **common)
        case "igcv2":
            depth = draw(st.integers(2, 1 + len(prime_factors(width))))
            return Igcv2Stage(width=width, depth=depth, **common)
        case "igcv2 K":
            return Igcv2Stage(width=width, depth=draw(st.integers(2, 6)), K=draw(divisors(width)), **common)
        case "igcv3":
            expand = draw(st.integers(1, 6))
            G1, G2 = draw(divisors(math.gcd(in_width, width))), draw(divisors(math.gcd(width, expand * in_width)))
            return Igcv3Stage(width=width, expand=expand, G1=G1, G2=G2, **common)
    return ArchConfig.parse(
        {"stem": {"width": in_width}, "stage": [{"unit": "conv", "width": width, **common}]}
    ).stages[0]


def divisors(number: int) -> st.SearchStrategy[int]:
    return st.sampled_from([d for d in range(1, number + 1) if number % d == 0])


def taken(read: Callable[[], T]) -> T | None:
    """What `read` returns; None where it refuses in one line. Any other exception escapes."""
    try:
        return read()
    except IgcNasError as error:
        message = error.message
    assert message.isprintable(), message
    return None


def refusal_of(do: Callable[[], object]) -> str | None:
    """The kind and the one line of the error in which `do` is refused; None where it is done."""
    try:
        do()
    except IgcNasError as error:
        refused = error
    else:
        return None
    return f"{type(refused).__name__} {_line_of(refused)}"


def one_line(raised: pytest.ExceptionInfo[IgcNasError]) -> str:
    """The message of an error, once it is known to be one short printable line, hint included."""
    return _line_of(raised.value)


def _line_of(error: IgcNasError) -> str:
    for text in (error.message, error.hint or ""):
        assert text.isprintable(), text
        assert len(text) < 400, text
    assert error.message
    return error.message


def chi_square_z(counts: Sequence[int], chances: Sequence[float] | None = None) -> float:
    """How far counts of outcomes are from their `chances`, equal ones unless told, in standard deviations.

    Wilson and Hilferty 1931.
    """
    total, k = sum(counts), len(counts) - 1
    expected = [total * chance for chance in chances or [1 / len(counts)] * len(counts)]
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    return ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))
