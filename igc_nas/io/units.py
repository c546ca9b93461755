"""Quantities as people write them: `2M`, `1.5k`, `5ms`, `2h`. One strict parser and one printer each.

Inside the program a count is an int, a latency a float in milliseconds, a duration a float in seconds; other units are
read and printed at the command line only.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from igc_nas.errors import UsageError

COUNT_SUFFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
MS_SUFFIXES = {"us": Decimal("0.001"), "ms": Decimal(1), "s": Decimal(1000)}
SECOND_SUFFIXES = {"": Decimal(1), "s": Decimal(1), "m": Decimal(60), "min": Decimal(60), "h": Decimal(3600)}

_DIGITS = r"[0-9]{1,18}|[0-9]{1,3}(?:[,_][0-9]{3}){1,5}"
_QUANTITY = re.compile(
    rf"(?P<number>(?:{_DIGITS})(?:\.[0-9]{{1,12}})?(?:[eE]\+?[0-9]{{1,2}})?) ?(?P<suffix>[A-Za-z]*)", re.ASCII
)


def _split(text: str) -> tuple[Decimal, str] | None:
    """(number, suffix) of `2.5M`, `2 M`, `2e6`, `2,000,000` or `2_000_000`; None for other text."""
    match = _QUANTITY.fullmatch(text.strip())
    return (Decimal(match["number"].replace(",", "").replace("_", "")), match["suffix"]) if match else None


def parse_count(text: str, what: str = "count") -> int:
    """`"2M"` -> 2_000_000. Whole and positive; suffixes k, M, G. Raises `UsageError`."""
    parts = _split(text)
    if parts is not None and parts[1] in COUNT_SUFFIXES:
        value = parts[0] * COUNT_SUFFIXES[parts[1]]
        if value >= 2**63:
            raise UsageError(
                f"{what} {text!r:.80} is more than a study can hold", "write it as 650000, 650k, 2M or 1.5G"
            )
        if value == value.to_integral_value() and value > 0:
            return int(value)
    raise UsageError(f"{what} {text!r:.80} is not a positive whole number", "write it as 650000, 650k, 2M or 1.5G")


def parse_count_range(text: str, what: str = "range") -> tuple[int | None, int | None]:
    """`"500k..2M"` -> (500_000, 2_000_000); `"..2M"` and `"2M"` have no lower, `"500k.."` no upper end.

    Raises `UsageError`.
    """
    low, _, high = text.strip().rpartition("..")
    if not (low or high):
        raise UsageError(f"{what} {text!r:.80} has no end", "write it as 500k..2M, ..2M or 500k..")
    found = (parse_count(low, what) if low else None, parse_count(high, what) if high else None)
    if found[0] and found[1] and found[0] > found[1]:
        raise UsageError(f"{what} {text!r:.80} ends before it begins", "write the smaller number first: 500k..2M")
    return found


def parse_ms(text: str, what: str = "latency") -> float:
    """`"5ms"` -> 5.0 (milliseconds); suffixes us, ms, s, always given. Raises `UsageError`."""
    parts = _split(text)
    if parts is not None and parts[1] in MS_SUFFIXES and parts[0] > 0:
        return float(parts[0] * MS_SUFFIXES[parts[1]])
    raise UsageError(f"{what} {text!r:.80} is not a time with its unit", "write it as 800us, 5ms or 0.1s")


def parse_seconds(text: str, what: str = "duration") -> float:
    """`"2h"` -> 7200.0 (seconds); suffixes s (the default), m, min, h. Raises `UsageError`."""
    parts = _split(text)
    if parts is not None and parts[1] in SECOND_SUFFIXES and parts[0] > 0:
        return float(parts[0] * SECOND_SUFFIXES[parts[1]])
    raise UsageError(f"{what} {text!r:.80} is not a duration", "write it as 90s, 10m or 2h")


def format_count(value: int) -> str:
    """At most four significant digits: 2_000_000 -> `"2M"`, 549_652 -> `"549.7k"`."""
    for suffix, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= scale - scale // 20_000:  # from here on four digits round up to 1 of this unit
            return f"{value / scale:.4g}{suffix}" if value / scale < 1000 else f"{value // scale}{suffix}"
    return str(value)


def fixed_count(value: int) -> str:
    """Two decimals with the suffix, for columns whose decimals align: 177_178 -> `"177.18k"`; whole below 1,000."""
    for suffix, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= scale - scale // 200_000:  # from here on two decimals round up to 1 of this unit
            return f"{value / scale:.2f}{suffix}"
    return str(value)


def exact_count(value: int) -> str:
    """The shortest text that `parse_count` reads back to `value`: 2_000_000 -> `"2M"`, 549_652 -> `"549652"`."""
    scales = (("G", 9), ("M", 6), ("k", 3), ("", 0))
    texts = [f"{Decimal(value).scaleb(-power).normalize():f}{suffix}" for suffix, power in scales if value >= 10**power]
    return min(texts, key=len, default=str(value))


def format_ms(value: float) -> str:
    """Three significant digits with the unit: 1.4567 -> `"1.46 ms"`."""
    if not math.isfinite(value) or value == 0:
        return f"{value} ms"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f} ms"


def format_seconds(value: float) -> str:
    """A duration for people: 4.2 -> `"4.2 s"`, 95 -> `"1 min 35 s"`, 7300 -> `"2 h 1 min"`."""
    if value < 10:
        return f"{value:.1f} s"
    seconds = round(value)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
