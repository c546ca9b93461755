"""Frozen records: validated when they are read, with errors of one line; plain data compared key by key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from igc_nas.errors import ConfigError
from igc_nas.io.text import nearest, printable


class Frozen(BaseModel):
    """A strict, immutable record: unknown keys, inf, nan and values of another type are refused, never converted."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str = "") -> Self:
        """Validate plain data (TOML, JSON). Raises `ConfigError` for the first wrong key."""
        try:
            return cls.model_validate(dict(value))
        except ValidationError as error:
            keys = [field.alias or name for name, field in cls.model_fields.items()]
            raise ConfigError(first_problem(error, where, keys)) from None


def first_problem(error: ValidationError, where: str = "", fields: Iterable[str] = ()) -> str:
    """The first entry of a validation error as one line: `where: stage.1.igcv2.width: message`.

    An unknown key comes before missing ones: it is the misspelt one of them. `fields` are the record's own keys.
    """
    entries = error.errors(include_url=False)
    unknown = [entry for entry in entries if entry["type"] == "extra_forbidden"]
    first = unknown[0] if unknown and entries[0]["type"] == "missing" else entries[0]
    place = ".".join(str(part + 1) if isinstance(part, int) else key_text(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        near = nearest(str(first["loc"][-1]), fields, "") if len(first["loc"]) == 1 else ""
        message = f"unknown key; {near}" if near else "unknown key"
    elif first["type"] == "union_tag_invalid":
        tag = first["ctx"]
        name, expected = tag["discriminator"].strip("'"), tag["expected_tags"].replace("'", "")
        message = f"unknown {name} {tag['tag']!r:.40}; use one of {expected}"
    elif isinstance(first.get("input"), str | int | float | bool) and not _is_huge(first["input"]):
        message = f"{message} (got {first['input']!r:.60})" if first["type"] != "value_error" else message
    rest = error.error_count() - 1
    more = f" (and {rest} more)" if rest else ""
    return ": ".join(part for part in (where, place, message + more) if part)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """TOML text as plain data. Raises `ConfigError` with `where`, the line and the column."""
    try:
        data = tomllib.loads(text)
        _check_size(data)
    except RecursionError:
        raise ConfigError(f"{where}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of more digits than Python reads
        raise ConfigError(f"{where}: not valid TOML: {str(error)[:200]}") from None
    return data


def _check_size(data: object) -> None:
    """Refuse what TOML leaves open: integers of more than 64 bits, and nesting deeper than 64 levels."""
    found = [("", data, 0)]
    while found:
        key, value, depth = found.pop()
        if isinstance(value, dict | list):
            if depth == 64:
                raise RecursionError
            parts = value.items() if isinstance(value, dict) else ((key, part) for part in value)
            found.extend((inner, part, depth + 1) for inner, part in parts)
        elif isinstance(value, int) and value.bit_length() > 63:
            raise ValueError(f"{key_text(key)}: an integer of more than 64 bits")


def _is_huge(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() > 64


def key_text(key: str) -> str:
    """A key from a file for a message of one line, quoted and cut where it is long or not printable."""
    return key if len(key) <= 60 and key.isprintable() else f"{key[:60]!r}"


def differences(
    asked: Mapping[str, Any], has: Mapping[str, Any], prefix: str = "", where: str = "in the study"
) -> Iterator[str]:
    """A line for each key whose values differ: `recipe.epochs: 3 asked for, 2 in the study`."""
    for key in [*asked, *(key for key in has if key not in asked)]:
        wanted, found = asked.get(key), has.get(key)
        if isinstance(wanted, Mapping) and isinstance(found, Mapping):
            yield from differences(wanted, found, f"{prefix}{key_text(key)}.", where)
        elif wanted != found:
            yield f"{prefix}{key_text(key)}: {_shown(wanted)} asked for, {_shown(found)} {where}"


def restricted(record: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with the keys of `keys` only, in nested tables too."""
    return {
        key: restricted(record[key], value)
        if isinstance(value, Mapping) and isinstance(record.get(key), Mapping)
        else record.get(key)
        for key, value in keys.items()
    }


def _shown(value: Any) -> str:
    return "none" if value is None else printable(f"{value!s:.60}", lines=False)
