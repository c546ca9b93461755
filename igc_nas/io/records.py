"""Frozen records: validated when they are read, with errors of one line; plain data compared key by key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from igc_nas.errors import ConfigError
from igc_nas.io.text import printable, with_nearest

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # it has no public name


class _Documented(ModelMetaclass):
    """The class of records: `help` and pydoc show a record's own methods, not pydantic's 80 attributes."""

    def __dir__(cls) -> list[str]:  # noqa: N805 - a metaclass
        own = (vars(base) for base in cls.__mro__ if base.__module__.partition(".")[0] not in ("pydantic", "builtins"))
        return sorted({name for names in own for name in names if not name.startswith(("_", "model_"))})


class Frozen(BaseModel, metaclass=_Documented):
    """A strict, immutable record: unknown keys, inf, nan and values of another type are refused, never converted."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Show the types of the keys as they are written, with their limits: pydantic's own signature is unreadable."""
        super().__pydantic_init_subclass__(**options)
        written = {name: text for base in reversed(cls.__mro__) for name, text in _annotations(base).items()}
        keys = [
            Parameter(field.alias or name, Parameter.KEYWORD_ONLY, default=_default(field), annotation=shown)
            for name, field in cls.model_fields.items()
            for shown in (written.get(name, field.annotation),)
        ]
        cls.__signature__ = Signature(keys)

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str = "") -> Self:
        """Validate plain data (TOML, JSON). Raises `ConfigError` for the first wrong key."""
        try:
            return cls.model_validate(dict(value))
        except ValidationError as error:
            raise ConfigError(first_problem(error, where, cls)) from None


def _annotations(base: type) -> dict[str, Any]:
    return vars(base).get("__annotations__", {}) if base.__module__ != "pydantic.main" else {}


def _default(field: FieldInfo) -> Any:
    return Parameter.empty if field.is_required() else field.get_default(call_default_factory=False)


def first_problem(error: ValidationError, where: str = "", model: type[BaseModel] | None = None) -> str:
    """The first entry of a validation error as one line: `where: stage.1.igcv2.width: message`.

    An unknown key comes before missing ones: it is the misspelt one of them. `model` is the record that was validated;
    the nearest of its keys at that place is named.
    """
    entries = error.errors(include_url=False)
    unknown = [entry for entry in entries if entry["type"] == "extra_forbidden"]
    first = unknown[0] if unknown and entries[0]["type"] == "missing" else entries[0]
    place = ".".join(str(part + 1) if isinstance(part, int) else key_text(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        keys = _keys_at(model, first["loc"][:-1]) if model else ()
        message = with_nearest("unknown key", str(first["loc"][-1]), keys)
    elif first["type"] == "union_tag_invalid":
        tag = first["ctx"]
        name, expected = tag["discriminator"].strip("'"), tag["expected_tags"].replace("'", "")
        message = with_nearest(
            f"unknown {name} {tag['tag']!r:.40}; use one of {expected}", tag["tag"], expected.split(", ")
        )
    elif first["type"] == "literal_error" and isinstance(first["input"], str):
        words = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        message = with_nearest(f"{message} (got {first['input']!r:.60})", first["input"], words)
    elif first["type"] == "tuple_type" and isinstance(first["input"], Mapping):
        message = f"one table where there is a list of them; write [[{place}]]"
    elif first["type"] in ("dict_type", "model_type") and isinstance(first["input"], list):
        message = f"a list where there is one table; write [{place}]"
    elif isinstance(first.get("input"), str | int | float | bool) and not _is_huge(first["input"]):
        message = f"{message} (got {first['input']!r:.60})" if first["type"] != "value_error" else message
    rest = error.error_count() - 1
    more = f" (and {rest} more)" if rest else ""
    return ": ".join(part for part in (where, place, message + more) if part)


def _keys_at(model: type[BaseModel], place: Iterable[int | str]) -> list[str]:
    """The keys of the records that a validation error's `place` in a record leads to; of a union those with its tag."""
    found = [model]
    for part in (part for part in place if isinstance(part, str)):
        fields = [field for record in found if (field := _fields(record).get(part))]
        inner = [record for field in fields for record in _models(field.annotation)]
        tagged = [m for m in found if any(part in get_args(field.annotation) for field in m.model_fields.values())]
        found = inner or tagged or found
    return [key for record in found for key in _fields(record)]


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models(annotation: object) -> list[type[BaseModel]]:
    """The records in a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


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
