"""Frozen records: validated when they are read, refused in one line, compared key by key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from igc_nas.errors import ConfigError
from igc_nas.io.text import printable

M_ = TypeVar("M_", bound="Frozen")


class Frozen(BaseModel):
    """A strict, immutable record: unknown keys, inf, nan and look-alike types are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str = "") -> Self:
        """Validate plain data (TOML, JSON) or raise `ConfigError` with the first place that is wrong."""
        try:
            return cls.model_validate(dict(value))
        except ValidationError as error:
            raise ConfigError(first_problem(error, where)) from None


def first_problem(error: ValidationError, where: str = "") -> str:
    """The first entry of a validation error as one line: `where: stage.1.igcv2.width: message`."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part + 1) if isinstance(part, int) else key_text(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
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
    """What TOML leaves to the reader: integers are of 64 bits, and nesting ends somewhere."""
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
    """A key from a file for a message of one line: as it is, or quoted where it could be taken for something else."""
    return key if len(key) <= 60 and key.isprintable() else f"{key[:60]!r}"


def differences(
    asked: Mapping[str, Any], has: Mapping[str, Any], prefix: str = "", where: str = "in the study"
) -> Iterator[str]:
    """Each key whose values in `asked` and `has` differ, as `recipe.epochs: 3 asked for, 2 in the study`."""
    for key in [*asked, *(key for key in has if key not in asked)]:
        wants, there = asked.get(key), has.get(key)
        if isinstance(wants, Mapping) and isinstance(there, Mapping):
            yield from differences(wants, there, f"{prefix}{key_text(key)}.", where)
        elif wants != there:
            yield f"{prefix}{key_text(key)}: {_shown(wants)} asked for, {_shown(there)} {where}"


def restricted(record: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with the keys of `keys` only, through all tables of both."""
    return {
        key: restricted(record[key], value)
        if isinstance(value, Mapping) and isinstance(record.get(key), Mapping)
        else record.get(key)
        for key, value in keys.items()
    }


def _shown(value: Any) -> str:
    return "none" if value is None else printable(f"{value!s:.60}", lines=False)
