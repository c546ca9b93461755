"""Keyword arguments of a function as options of a command: names, types, defaults and their documentation are its own.

`--budget-params 2M` is `budget_params="2M"` or `budget_params=2_000_000`; None is what is not given. An option that may
be repeated takes one value or several, `--recipe` a dictionary, too.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import click

from igc_nas.arch.config import ArchConfig
from igc_nas.cli.options import Quantity
from igc_nas.cli.program import program
from igc_nas.errors import UsageError
from igc_nas.io.records import Frozen
from igc_nas.io.text import with_nearest
from igc_nas.study.records import Candidate
from igc_nas.study.study import Study

Request = TypeVar("Request")
Function = TypeVar("Function", bound=Callable[..., Any])


def request_of(command: click.Command, kind: type[Request], given: Mapping[str, Any]) -> Request:
    """The request of a command from Python's arguments. Raises `UsageError` as the command does, `TypeError`.

    An architecture in memory stays what it is; everything else becomes text, and is read as the command reads it.
    """
    parameters = parameters_of(command)
    if unknown := given.keys() - parameters.keys():
        text = f"{command.name}() got an unexpected keyword argument {min(unknown)!r}"
        raise TypeError(with_nearest(text, min(unknown), parameters))
    options: list[str] = []
    arguments: list[str] = []
    objects: dict[str, ArchConfig] = {}
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(value, ArchConfig) and isinstance(parameters[name], click.Argument):
            objects[str(parameters[name].name)] = value
            arguments.append("")
        elif isinstance(parameters[name], click.Option):
            options += _words(parameters[name], value)
        else:
            arguments.append(str(value))
    try:
        parent = click.Context(program, **program.context_settings)  # click keeps what it makes of these settings
        context = command.make_context(command.name, [*options, "--", *arguments], parent=parent)
    except click.ClickException as error:
        raise UsageError(error.format_message()) from None
    return kind(**(context.params | objects))


def parameters_of(command: click.Command) -> dict[str, click.Parameter]:
    """The options and arguments of a command by their names in Python; an option has one for each of its spellings."""
    return {
        spelling.lstrip("-").replace("-", "_"): parameter for parameter in command.params for spelling in parameter.opts
    }


def _words(option: click.Parameter, value: Any) -> list[str]:
    """An option with a value as on the command line; several words for one that is repeated."""
    assert isinstance(option, click.Option)
    if option.is_flag:
        if isinstance(value, str):  # any text is true in Python, "no" too
            raise UsageError(f"{option.name}: {value!r:.40} is text", "give True or False")
        return option.opts[:1] if value else option.secondary_opts[:1]
    values = [value]
    if isinstance(value, Mapping):
        values = [f"{key}={json.dumps(item, default=_plain)}" for key, item in value.items()]
    elif isinstance(value, Iterable) and not isinstance(value, str | Frozen):
        values = [*value] if option.multiple else [_joined(option, value)]
    spelling = next(spelling for spelling in option.opts if spelling.startswith("--"))
    return [f"{spelling}={_text(option, each)}" for each in values]


def _joined(option: click.Option, values: Iterable[Any]) -> str:
    """Several values of an option that takes one: names, or the two ends of a range."""
    texts = ("" if value is None else _text(option, value) for value in values)
    return (".." if isinstance(option.type, Quantity) else ",").join(texts)


def _plain(value: Any) -> Any:
    """A value of NumPy as JSON knows it. Raises `UsageError`."""
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise UsageError(f"{value!r:.80} is no value of a recipe", "give numbers, text, true or false, or lists of them")


def _text(option: click.Option, value: Any) -> str:
    """A value as text; numbers are in the unit of the option. Raises `UsageError` for a record: an architecture."""
    if isinstance(value, Frozen):
        hint = "name it: STUDY:N for a trial, or a file that igc_nas.export writes"
        raise UsageError(f"{option.name} takes names and files, and no {type(value).__name__}", hint)
    if not isinstance(option.type, Quantity) or not isinstance(value, Real):
        return str(name_of(value))
    return f"{value if isinstance(value, int) else format(float(value), 'f')}{option.type.unit}"


def name_of(value: Any) -> Any:
    """A study by its folder; any other value as it is. Raises `UsageError` for a study without a folder."""
    if not isinstance(value, Study):
        return value
    if value.folder is None:
        raise UsageError(f"study {value.spec.name} has no folder", "name it, with its storage")
    return str(value.folder.absolute())


def arch_of(value: ArchConfig | Candidate | Study | str | Path) -> ArchConfig | str:
    """An architecture: that of a candidate, one in memory, or the name or file of one. Raises `UsageError`."""
    if isinstance(value, Study):
        raise UsageError(f"{value!r} is not an architecture", "give one of its candidates, such as study.best()")
    if isinstance(value, Candidate):
        return value.arch
    return value if isinstance(value, ArchConfig) else str(value)


def documented(command: click.Command, options: type) -> Callable[[Function], Function]:
    """A decorator: the function's signature and docstring list the command's `options`, a `TypedDict`."""
    parameters = parameters_of(command)
    names = list(options.__annotations__)

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(parameters[name]))
            for name in names
        ]
        function.__dict__["__signature__"] = signature.replace(parameters=[*own, *keywords])
        lines = (f"        {name}: {getattr(parameters[name], 'help', None) or ''}".rstrip() for name in names)
        text = inspect.cleandoc(function.__doc__ or "").replace("\n", "\n    ")
        function.__doc__ = "\n".join([text, "", f"    Options, those of `igc-nas {command.name}`:", *lines, "    "])
        return function

    return decorate


def _default(parameter: click.Parameter) -> Any:
    """The default to show; None for an option that the command works out itself."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return bool(parameter.default is True)
    return parameter.default if isinstance(parameter.default, str | int | float | Path) else None


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Keep this process's torch settings and OpenMP variables, which a command sets for itself."""
    import torch

    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    variables = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
