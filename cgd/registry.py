"""Plug-ins: one decorated function per file, looked up by file name, with options in its name.

`timm:resnet50?weights=r50.safetensors&pool=gem` is the plug-in `timm`, its argument `resnet50` and two options.
The options are the keyword parameters of the decorated function, so there is no second list of them.

Others add plug-ins without touching the package: an installed distribution by an entry point in the group
`cgd.teachers`, `cgd.students`, …, and anybody by naming a function of theirs, `module:function`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from cgd.errors import CgdError, InputError, unknown

F = TypeVar("F", bound=Callable[..., Any])
_plugins: dict[str, Callable[..., Any]] = {}


def plugin(function: F) -> F:
    """Declare `function` as the plug-in of the file it stands in."""
    if function.__module__ in _plugins and _plugins[function.__module__].__qualname__ != function.__qualname__:
        raise RuntimeError(f"{function.__module__} declares two plug-ins")
    _plugins[function.__module__] = function
    return function


def names(package: str) -> list[str]:
    """Names of the plug-ins of a package such as `cgd.fusion`, without importing one."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations is not None, package
    found = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return sorted(m.name.replace("_", "-") for m in found if not m.name.startswith("_"))


def find(package: str, name: str) -> Any:
    """The plug-in called `name`, of the package or of an entry point; an unknown name offers the nearest ones."""
    if name in names(package):
        module = f"{package}.{name.replace('-', '_')}"
        importlib.import_module(module)
        return _plugins[module]
    entries = installed(package)
    if name not in entries:
        raise unknown(_part(package).removesuffix("s"), name, [*names(package), *entries])
    return foreign(f"the plug-in '{name}' of {entries[name].value}", entries[name].load)


def installed(package: str) -> dict[str, EntryPoint]:
    """Plug-ins that other distributions declare in the group `cgd.` and the package's last name."""
    return {entry.name: entry for entry in entry_points(group=f"cgd.{_part(package)}")}


@dataclass(frozen=True)
class Found:
    """A plug-in as a name means it: its function, the argument it is called with, and what its code is.

    `origin` names foreign code, by the version of its distribution or the SHA-256 of its module: it determines a
    result as much as the weights do. It is empty for the package's own plug-ins.
    """

    function: Callable[..., Any]
    argument: str | None
    origin: Mapping[str, str]


def resolve(package: str, spec: Spec, text: str) -> Found:
    """What a name means; `module:function` is looked for where no plug-in has that name."""
    if spec.name in names(package):
        return Found(find(package, spec.name), spec.argument, {})
    entries = installed(package)
    if spec.name in entries:
        distribution = entries[spec.name].dist
        version = f"{distribution.name} {distribution.version}" if distribution else "unknown"
        return Found(find(package, spec.name), spec.argument, {"distribution": version})
    if not spec.argument:
        find(package, spec.name)  # raises, and offers the nearest names
    return _named_function(spec.name, str(spec.argument), text)


def _named_function(module_name: str, function_name: str, text: str) -> Found:
    """A function of the user's, its module in the working directory or installed."""
    sys.path.insert(0, os.getcwd())
    try:
        if module_name.startswith(".") or importlib.util.find_spec(module_name.partition(".")[0]) is None:
            raise InputError(
                f"'{text}': there is no plug-in and no module '{module_name}', neither in {os.getcwd()} nor installed."
            )
        module = foreign(f"the module {module_name}", importlib.import_module, module_name)
    finally:
        sys.path.remove(os.getcwd())
    function, file = getattr(module, function_name, None), getattr(module, "__file__", None)
    if not callable(function) or file is None:
        raise InputError(f"'{text}': the module {module_name} has no function '{function_name}'.")
    return Found(function, None, {"code": hashlib.sha256(Path(file).read_bytes()).hexdigest()})


def foreign(what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call code of others'; whatever it raises becomes one sentence, with the cause behind it."""
    try:
        return function(*arguments, **options)
    except CgdError:
        raise
    except (Exception, SystemExit) as error:  # their code may raise anything
        reason = " ".join(str(error).split()) or "no reason given"
        raise InputError(f"{what} failed ({type(error).__name__}: {reason[:200]}); --debug shows where.") from error


def _part(package: str) -> str:
    return package.rpartition(".")[2]


@dataclass(frozen=True)
class Spec:
    """A plug-in's name as typed: `name`, `name:argument`, `name?option=value&option=value`."""

    name: str
    argument: str | None
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Spec:
        head, _, tail = text.partition("?")
        name, colon, argument = head.partition(":")
        options: dict[str, str] = {}
        for item in filter(None, tail.split("&")):
            key, equals, value = item.partition("=")
            if not equals or not key:
                raise InputError(f"'{text}': an option is written name=value, got '{item}'.")
            if key in options:
                raise InputError(f"'{text}' gives the option '{key}' twice.")
            options[key] = value
        if not name:
            raise InputError(f"'{text}' has no name in front of its options.")
        return cls(name, argument if colon else None, options)

    @property
    def typed(self) -> str:
        """The text that `parse` reads as this."""
        head = self.name if self.argument is None else f"{self.name}:{self.argument}"
        tail = "&".join(f"{key}={value}" for key, value in self.options.items())
        return f"{head}?{tail}" if tail else head

    def label(self) -> str:
        """A slug of name, argument and option values for people to read in keys and tables."""
        parts = [
            self.name,
            self.argument or "",
            *(f"{k}-{v}" for k, v in sorted(self.options.items())),
        ]
        return slug("-".join(filter(None, parts)))


def slug(text: str) -> str:
    """`text` in `[a-z0-9.-]`."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"


def bind(function: Callable[..., Any], options: Mapping[str, str], text: str) -> dict[str, Any]:
    """Options as values of the types `function` declares; values equal to a default are left out."""
    hints = foreign(f"'{text}'", typing.get_type_hints, function)
    parameters = {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    bound: dict[str, Any] = {}
    for key, value in options.items():
        if key not in parameters:
            raise InputError(f"'{text}': {unknown('option', key, parameters)}")
        default = parameters[key].default
        hint = hints.get(key, str if default is None else type(default))  # others' functions may lack annotations
        converted = convert(value, hint, f"'{text}': option '{key}'")
        if converted != parameters[key].default:
            bound[key] = converted
    return bound


def convert(value: str, hint: Any, where: str) -> Any:
    """A typed value from text: numbers, booleans, choices, comma-separated tuples, `none` for an optional."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value == "none":
            return None
        return convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{where} is one of {', '.join(arguments)}, got '{value}'.")
        return value
    if origin is tuple:
        return tuple(convert(v, arguments[0], where) for v in value.split(","))
    if hint is bool:
        if value.lower() not in ("true", "false"):
            raise InputError(f"{where} is true or false, got '{value}'.")
        return value.lower() == "true"
    try:
        return hint(value)
    except ValueError:
        raise InputError(f"{where} should be {hint.__name__}, got '{value}'.") from None
