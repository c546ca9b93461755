import math
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from igc_nas.errors import UsageError
from igc_nas.io.units import (
    exact_count,
    fixed_count,
    format_count,
    format_ms,
    format_seconds,
    parse_count,
    parse_count_range,
    parse_ms,
    parse_seconds,
)
from igc_nas.study.study import parse_limits
from tests.support.builders import one_line

PARSERS = (parse_count, parse_ms, parse_seconds)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("650000", 650_000),
        ("650k", 650_000),
        ("650K", 650_000),
        ("2M", 2_000_000),
        ("1.5G", 1_500_000_000),
        ("1B", 10**9),
        ("0.001k", 1),
        ("2.50M", 2_500_000),
        (" 2M ", 2_000_000),
        ("007", 7),
        ("999999999999999999", 10**18 - 1),
    ],
)
def test_count(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("500k..2M", (500_000, 2_000_000)),
        ("..2M", (None, 2_000_000)),
        ("500k..", (500_000, None)),
        ("2M", (None, 2_000_000)),
        ("1.5k..1.5k", (1500, 1500)),
    ],
)
def test_a_range(text: str, ends: tuple[int | None, int | None]) -> None:
    assert parse_count_range(text) == ends


@pytest.mark.parametrize("text", ["..", "", "2M..1M", "1..2..3", "1...2", "a..b", "1M-2M", "..5ms"])
def test_text_that_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_count_range(text)


@pytest.mark.parametrize(
    ("text", "ms"), [("5ms", 5.0), ("800us", 0.8), ("0.1s", 100.0), ("1.25ms", 1.25), ("10s", 10_000.0)]
)
def test_ms(text: str, ms: float) -> None:
    assert parse_ms(text) == ms


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("10min", 600.0), ("2h", 7200.0), ("0.5h", 1800)]
)
def test_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["2e6", "2E6", "2e+6", "2,000,000", "2_000_000", "2 M", "2000000", "0.002e9", "2,000k"]
)
def test_a_count_as_people_write_it(text: str) -> None:
    assert parse_count(text) == 2_000_000
    assert parse_limits(f"params={text},latency=5 ms") == {"params": 2_000_000, "latency": 5.0}


@given(st.integers(1, 10**11))
def test_a_column_of_counts_has_two_decimals_and_a_suffix(value: int) -> None:
    text = fixed_count(value)
    if value < 1000:
        assert text == str(value)
    else:
        assert re.fullmatch(r"[0-9]{1,3}\.[0-9]{2}[kMG]", text)
        scale = {"k": 1e3, "M": 1e6, "G": 1e9}[text[-1]]
        assert float(text[:-1]) * scale == pytest.approx(value, abs=0.006 * scale)


NO_QUANTITY = [
    "", " ", "k", "M", "ms", ".", "-", "+", "0", "0.0", "0k", "0ms", "-1", "-5ms", "+1", "+2M", "--1", "inf",
    "Infinity", "-inf", "nan", "NaN", "1e", "1e-", "2e400", "0x10", "0b1", "0o7", "1_00", "1,00", "1,000,00", "1 000",
    "2  M", "1,5", "1__000", "1,000k2", "2e", "e6",
    "1.", ".5", "1..5", "1.2.3", "2MM", "2kk", "2MB", "2 Mio", "1/2", "2*3", "1m2", "two", "None", "True", "[1]", "2M;",
    "2M\x00", "2M\n3", "\x1b[31m2M", "\u0662M", "\u0664\u0665ms", "\uff12", "\u00b2", "\u2160", "\u00bd", "2\u039c",
    "5\u00b5s", "\u22125", "\u200b2", "9" * 19, "9" * 5000, "0." + "1" * 13, "1." + "0" * 5000, "M2", "%s", "${HOME}",
]  # fmt: skip


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("text", NO_QUANTITY, ids=lambda text: ascii(text)[:12])
def test_text_that_is_no_quantity_is_refused(parse: Callable[..., float], text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text, "--budget")
    assert one_line(raised).startswith("--budget ")
    assert "write it as" in str(raised.value)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_count, "1.5"),
        (parse_count, "0.0005k"),
        (parse_count, "1.2345k"),
        (parse_count, "5ms"),
        (parse_count, "2m"),
        (parse_count, "2g"),
        (parse_ms, "5"),
        (parse_ms, "5M"),
        (parse_ms, "5m"),
        (parse_ms, "5MS"),
        (parse_ms, "5h"),
        (parse_seconds, "5ms"),
        (parse_seconds, "5us"),
        (parse_seconds, "1d"),
        (parse_seconds, "2H"),
    ],
)
def test_a_quantity_of_another_kind(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@given(st.text())
def test_text_is_a_quantity_or_a_usage_error(text: str) -> None:
    for parse in PARSERS:
        try:
            value = parse(text)
        except UsageError:
            continue
        assert value > 0
        assert math.isfinite(value)


@given(st.integers(1, 10**18 - 1))
def test_exact_count_is_read_back(value: int) -> None:
    assert parse_count(exact_count(value)) == value


@given(st.integers(1, 9999), st.integers(0, 12))
def test_exact_count_is_no_longer_than_the_digits(digits: int, zeros: int) -> None:
    value = digits * 10**zeros
    assert len(exact_count(value)) <= len(str(value))
    assert parse_count(exact_count(value)) == value


@pytest.mark.parametrize(
    ("value", "text"), [(1, "1"), (999, "999"), (2_000_000, "2M"), (1500, "1.5k"), (549_652, "549652"), (10**9, "1G")]
)
def test_exact_count(value: int, text: str) -> None:
    assert exact_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999, "999"),
        (1000, "1k"),
        (999_949, "999.9k"),
        (999_950, "1M"),
        (999_999, "1M"),
        (999_949_999, "999.9M"),
        (999_950_000, "1G"),
        (10**12 - 1, "1000G"),
    ],
)
def test_a_count_that_rounds_up_has_the_next_suffix(value: int, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize("text", ["9223372036854776k", "10000000000G", "999999999999999999G"])
def test_a_count_beyond_64_bits_is_refused(text: str) -> None:
    """A study.toml with a larger integer could be written, but not read again."""
    with pytest.raises(UsageError, match="is more than a study can hold") as raised:
        parse_count(text, "--budget-params")
    one_line(raised)


@given(st.integers(1, 10**12 - 1))
@example(999_999)
def test_format_count_has_four_correct_digits(value: int) -> None:
    text = format_count(value)
    assert sum(c.isdigit() for c in text.strip("0.")) <= 4
    assert float(text.rstrip("kMG")) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1) == pytest.approx(value, rel=6e-4)


@given(st.floats(1e-6, 1e7))
def test_format_ms_has_three_correct_digits(value: float) -> None:
    number, unit = format_ms(value).split(" ")
    assert unit == "ms"
    assert float(number) == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.2, "4.2 s"), (59.4, "59 s"), (60, "1 min"), (95, "1 min 35 s"), (3600, "1 h"), (7300, "2 h 1 min")],
)
def test_format_seconds(value: float, text: str) -> None:
    assert format_seconds(value) == text
