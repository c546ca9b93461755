import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.factors import balanced_factors, prime_factors
from igc_nas.arch.stages import Igcv2Stage
from igc_nas.errors import ConfigError
from tests.support.builders import architectures, one_line, taken

TOML = """
input = [3, 32, 32]
classes = 10
[stem]
width = 24
[[stage]]
unit = "igcv1"
L = 12
M = 2
blocks = 2
[[stage]]
unit = "igcv3"
width = 32
expand = 4
blocks = 1
stride = 2
[head]
width = 64
"""


def test_a_file_reads_like_the_papers() -> None:
    arch = ArchConfig.from_toml(TOML)
    assert str(arch) == "24 | igcv1 L12 M2 k3 x2 | igcv3 C32 t4 G2,2 k3 x1 s2 res | 64"
    assert [stage.width for stage in arch.stages] == [24, 32]
    assert arch.with_classes(100).classes == 100


@given(architectures())
def test_toml_round_trip(arch: ArchConfig) -> None:
    again = ArchConfig.from_toml(arch.to_toml())
    assert again == arch
    assert hash(again) == hash(arch)
    assert again.to_toml() == arch.to_toml()


def test_load_reads_a_file_or_gives_the_reason_of_the_failure(tmp_path: Path) -> None:
    good = tmp_path / "good.toml"
    good.write_text(TOML)
    assert ArchConfig.load(good) == ArchConfig.from_toml(TOML)
    for name, content in {
        "latin1": f"# \xe9\n{TOML}".encode("latin-1"),
        "large": b"#" * 5_000_000,
        "png": b"\x89PNG\r\n",
    }.items():
        bad = tmp_path / name
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            ArchConfig.load(bad)
    for missing in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError):
            ArchConfig.load(missing)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"unit": "igcv2", "width": 30, "depth": 3, "K": 4},
            "stage.1.igcv2: groups K (=4) must divide width (=30); use 28 or 32",
        ),
        ({"unit": "igcv1", "L": 5, "M": 2}, "stage 1: groups L (=5) must divide the input width (=24); use 20 or 25"),
        ({"unit": "igcv1", "L": 30, "M": 2}, "stage 1: groups L (=30) must divide the input width (=24); use 30"),
        (
            {"unit": "igcv3", "width": 30, "expand": 2, "G2": 4},
            "stage.1.igcv3: groups G2 (=4) must divide width (=30); use 28 or 32",
        ),
        (
            {"unit": "igcv3", "width": 32, "expand": 2, "G1": 16, "blocks": 1},
            "stage 1: groups G1 (=16) must divide the input width (=24); use 16 or 32",
        ),
        (
            {"unit": "igcv3", "width": 35, "expand": 1, "G1": 1, "G2": 5},
            "stage 1: groups G2 (=5) must divide expand * the input width (=24); use 20 or 25",
        ),
        (
            {"unit": "igcv2", "width": 12, "depth": 5},
            "stage.1.igcv2: depth (=5) needs width (=12) to be a product of 4 factors; use depth 4 or less",
        ),
        (
            {"unit": "igcv1", "L": 24, "M": 4096},
            "stage.1.igcv1: L (=24) * M (=4096) is a width of 98304; at most 65536",
        ),
        ({"unit": "igcv2", "width": 0, "depth": 2}, "stage.1.igcv2.width: Input should be greater than or equal to 1"),
        ({"unit": "igcv9", "width": 8}, "stage.1: unknown unit 'igcv9'; use one of igcv1, igcv2, igcv3, conv"),
        ({"width": 8}, "stage.1: no unit; use one of igcv1, igcv2, igcv3, conv"),
        ({"unit": "conv", "width": 8, "dilation": 2}, "stage.1.conv.dilation: unknown key"),
        ({"unit": "conv", "width": 8, "kernel": 4}, "stage.1.conv.kernel: Input should be 1, 3, 5, 7, 9 or 11 (got 4)"),
    ],
)
def test_a_message_names_the_place_the_problem_and_a_remedy(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ArchConfig.parse({"stem": {"width": 24}, "stage": [{"blocks": 2} | stage]}, "net.toml")
    assert one_line(raised).startswith(f"net.toml: {message}")


def test_the_width_that_a_message_proposes_is_valid() -> None:
    for width in (28, 32):
        assert Igcv2Stage(width=width, depth=3, K=4, blocks=1).channels_per_group == (4, 4)


STEM, CONV = "[stem]\nwidth = 8\n", '[[stage]]\nunit = "conv"\nwidth = 8\nblocks = 1\n'
V1 = '[[stage]]\nunit = "igcv1"\nL = 4\nM = 2\nblocks = 1\n'
V2 = '[[stage]]\nunit = "igcv2"\nwidth = 8\ndepth = 2\nblocks = 1\n'
V3 = '[[stage]]\nunit = "igcv3"\nwidth = 8\nexpand = 2\nblocks = 1\n'
BIG = "9" * 5000

NOT_TOML = [
    "\x00", "[", "[[stage]", "=", "a", "a =", "a = [1", 'a = "x', "a = 1 b = 2", "a = 1\na = 2", "[a]\n[a]", "\ufeff",
    f"classes = {BIG}", f"classes = 0x{'f' * 5000}", "classes = 9223372036854775808", "x = " + "[" * 3000 + "]" * 3000,
    "x = " + "[" * 90 + "]" * 90, "a." * 3000 + "a = 1", "x = " + "{a=" * 500 + "1" + "}" * 500,
    "classes = 1979-99-99", "\x1b[31m = 1", "a = '\x07'", "classes = 010", "classes = 1__0", 'a = "\\ud800"', "<html>",
    '{"stem": {"width": 8}}',
]  # fmt: skip

WRONG = [
    "", STEM, CONV, "stage = []\n" + STEM, "stage = 3\n" + STEM, 'stage = "conv"\n' + STEM, "stage = [[]]\n" + STEM,
    "stage = [3]\n" + STEM, "[stage]\nunit = 'conv'\n" + STEM, "stem = 8\n" + CONV, "stem = []\n" + CONV,
    "[stem]\n" + CONV, "[stem]\nwidth = 0\n" + CONV, "[stem]\nwidth = -8\n" + CONV, "[stem]\nwidth = 8.0\n" + CONV,
    "[stem]\nwidth = true\n" + CONV, "[stem]\nwidth = '8'\n" + CONV, "[stem]\nwidth = [8]\n" + CONV,
    "[stem]\nwidth = inf\n" + CONV, "[stem]\nwidth = nan\n" + CONV, "[stem]\nwidth = 65537\n" + CONV,
    "[stem]\nwidth = 1979-05-27\n" + CONV, STEM + "kernel = 2\n" + CONV, STEM + "kernel = true\n" + CONV,
    STEM + "kernel = 3.0\n" + CONV, STEM + "stride = 3\n" + CONV, STEM + "stride = true\n" + CONV,
    STEM + "activation = 'gelu'\n" + CONV, STEM + "activation = 6\n" + CONV, STEM + "bias = 1\n" + CONV,
    "classes = 0\n" + STEM + CONV, "classes = 1000001\n" + STEM + CONV, "classes = '10'\n" + STEM + CONV,
    "classes = 10.0\n" + STEM + CONV, "input = 32\n" + STEM + CONV, "input = [3, 32]\n" + STEM + CONV,
    "input = [3, 32, 32, 1]\n" + STEM + CONV, "input = [3, 32, 0]\n" + STEM + CONV,
    "input = [3, 32, -1]\n" + STEM + CONV, "input = [3, 32, 4097]\n" + STEM + CONV,
    "input = ['3', 32, 32]\n" + STEM + CONV, "input = 'abc'\n" + STEM + CONV, "depth = 20\n" + STEM + CONV,
    '"a\\nb" = 1\n' + STEM + CONV, '"\\u001b[31mred" = 1\n' + STEM + CONV, "k" * 9000 + " = 1\n" + STEM + CONV,
    '"" = 1\n' + STEM + CONV, STEM + CONV + "[head]\n", STEM + CONV + "[head]\nwidth = 0\n",
    STEM + CONV + "[head]\nwidth = 8\ngroups = 2\n", STEM + CONV + "[[head]]\nwidth = 8\n", STEM + CONV * 33,
    STEM + CONV + "blocks = 2\n", STEM + CONV.replace("blocks = 1", ""),
    STEM + CONV.replace("blocks = 1", "blocks = 0"), STEM + CONV.replace("blocks = 1", "blocks = 257"),
    STEM + CONV.replace('"conv"', '"Conv"'),
    STEM + CONV.replace('"conv"', "3"), STEM + CONV.replace('"conv"', '"a\\nb"'), STEM + CONV.replace('"conv"', "[]"),
    STEM + CONV.replace('"conv"', '"os.system"'), STEM + CONV + "residual = 1\n", STEM + CONV + "residual = 'no'\n",
    STEM + CONV + "L = 4\n", STEM + CONV + '"__class__" = 1\n', STEM + V1 + "width = 8\n", STEM + V1 + "K = 2\n",
    STEM + V1.replace("L = 4", "L = 3"), STEM + V1.replace("L = 4", "L = 0"), STEM + V1.replace("M = 2", "M = 0"),
    STEM + V1.replace("M = 2", "m = 2"), STEM + V1.replace("M = 2", "M = 65536"), STEM + V2.replace("depth = 2", ""),
    STEM + V2.replace("depth = 2", "depth = 1"), STEM + V2.replace("depth = 2", "depth = 5"),
    STEM + V2.replace("depth = 2", "depth = 18"), STEM + V2.replace("width = 8", "width = 1"), STEM + V2 + "K = 3\n",
    STEM + V2 + "K = 0\n", STEM + V2 + "K = 16\n", STEM + V2 + "K = [2, 4]\n", STEM + V3.replace("expand = 2", ""),
    STEM + V3.replace("expand = 2", "expand = 0"), STEM + V3.replace("expand = 2", "expand = 0.5"),
    STEM + V3.replace("expand = 2", "expand = 33"), STEM + V3 + "G1 = 3\n", STEM + V3 + "G2 = 3\n",
    STEM + V3 + "G1 = -2\n", STEM + V3 + "G = 2\n", STEM + V2 + V1.replace("L = 4", "L = 6"),
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_TOML + WRONG, ids=lambda text: ascii(text)[-24:])
def test_bad_configs_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ArchConfig.from_toml(text, "net.toml")
    assert one_line(raised).startswith("net.toml: ")


def test_the_common_parts_of_the_bad_configs_are_valid() -> None:
    for stage in (CONV, V1, V2, V3):
        ArchConfig.from_toml(STEM + stage)


KEYS = st.sampled_from(
    [
        "input",
        "classes",
        "stem",
        "stage",
        "stages",
        "head",
        "unit",
        "width",
        "L",
        "M",
        "K",
        "depth",
        "expand",
        "G1",
        "G2",
        "blocks",
        "kernel",
        "stride",
        "residual",
        "activation",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.integers()
    | st.just(16**3000)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["igcv1", "igcv2", "igcv3", "conv", "relu"])
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5),
    max_leaves=25,
)


@given(st.dictionaries(KEYS | st.text(max_size=3), JUNK, max_size=6))
@example({"stem": {"width": 8}, "stage": [{"unit": "conv", "width": 8, "blocks": {"unit": "igcv1"}}]})
def test_nested_junk_is_refused(junk: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        ArchConfig.parse(junk)
    one_line(raised)


def test_an_integer_too_long_to_print_is_refused() -> None:
    for bad in (
        {"classes": 16**5000},
        {"stem": {"width": -(16**5000)}},
        {"head": {"width": 8, "activation": 16**5000}},
    ):
        with pytest.raises(ConfigError) as raised:
            ArchConfig.parse({"stem": {"width": 8}, "stage": [{"unit": "conv", "width": 8, "blocks": 1}]} | bad)
        one_line(raised)


@given(junk=JUNK, at=st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_a_good_config_with_junk_inside_is_read_or_refused(junk: Any, at: list[int]) -> None:
    data = ArchConfig.from_toml(TOML).to_dict()
    inner: Any = data
    for step in at:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        key = keys[step % len(keys)]
        if not isinstance(inner[key], dict | list) or step == at[-1]:
            inner[key] = junk
            break
        inner = inner[key]
    arch = taken(lambda: ArchConfig.parse(data))
    assert arch is None or ArchConfig.from_toml(arch.to_toml()) == arch


@given(
    st.integers(0, len(TOML)),
    st.integers(0, 20),
    st.text(alphabet=st.characters() | st.sampled_from('[]="\n0'), max_size=8),
)
def test_a_damaged_text_is_read_or_refused(start: int, length: int, put: str) -> None:
    arch = taken(lambda: ArchConfig.from_toml(TOML[:start] + put + TOML[start + length :]))
    assert arch is None or ArchConfig.from_toml(arch.to_toml()) == arch


@given(st.text(alphabet=st.sampled_from("[]{}=.,\"'#\n ae19-_\\\x00\u00b2"), max_size=60))
def test_junk_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ArchConfig.from_toml(text)
    one_line(raised)


@given(st.integers(2, 600))
def test_prime_factors(number: int) -> None:
    factors = prime_factors(number)
    assert math.prod(factors) == number
    assert all(all(p % d for d in range(2, p)) for p in factors)


@given(st.integers(2, 200), st.integers(1, 4))
@example(48, 2)
@example(384, 4)
def test_balanced_factors_have_the_least_sum(width: int, count: int) -> None:
    every = _factorizations(width, count)
    if not every:
        assert len(prime_factors(width)) < count
        return
    best = balanced_factors(width, count)
    assert best == tuple(sorted(best, reverse=True))
    assert best in every
    assert sum(best) == min(map(sum, every))


def _factorizations(width: int, count: int) -> set[tuple[int, ...]]:
    """By brute force over the multiset of primes: every way to put them into `count` factors."""
    primes = prime_factors(width)
    found = set()
    for places in itertools.product(range(count), repeat=len(primes)):
        parts = [math.prod(p for p, place in zip(primes, places, strict=True) if place == i) for i in range(count)]
        found.add(tuple(sorted(parts, reverse=True)))
    return {parts for parts in found if parts[-1] > 1}


def test_balanced_factors_of_the_papers_widths() -> None:
    assert balanced_factors(48, 2) == (8, 6)
    assert balanced_factors(48, 3) == (4, 4, 3)
    assert balanced_factors(144, 2) == (12, 12)
    assert Counter(balanced_factors(2**16, 16)) == {2: 16}
