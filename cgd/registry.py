"""Plug-ins: one decorated function per file, looked up by file name, with options in its name.

`timm:resnet50?weights=r50.safetensors&pool=gem` is the plug-in `timm`, its argument `resnet50` and two options.
The options are the keyword parameters of the decorated function, so there is no second list of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cgd.errors import InputError, unknown

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


def find(package: str, name: str) -> Callable[..., Any]:
    """The plug-in called `name`; an unknown name offers the nearest ones."""
    if name not in names(package):
        raise unknown(package.rpartition(".")[2].removesuffix("s"), name, names(package))
    module = f"{package}.{name.replace('-', '_')}"
    importlib.import_module(module)
    return _plugins[module]


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
    hints = typing.get_type_hints(function)
    parameters = {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    bound: dict[str, Any] = {}
    for key, value in options.items():
        if key not in parameters:
            raise InputError(f"'{text}': {unknown('option', key, parameters)}")
        converted = convert(value, hints[key], f"'{text}': option '{key}'")
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
