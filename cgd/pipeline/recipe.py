"""Recipes: YAML to dataclasses and back, strict, with `section.key=value` overrides."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cgd.config import Recipe
from cgd.errors import InputError, unknown
from cgd.registry import slug


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; every problem is one line that names the key.

    `base: FILE` begins from another recipe in the same folder, and changes what else the file says.
    """
    content = _read_yaml(path)
    if isinstance(content, Mapping) and "base" in content:
        content = dict(content)
        beginning = path.parent / str(content.pop("base"))
        base = _read_yaml(beginning)
        if isinstance(base, Mapping) and "base" in base:
            raise InputError(f"{path} begins from {beginning}, which has a base of its own: begin from that one.")
        content = merged(base, content) if isinstance(base, Mapping) else base
    return build_recipe(content, str(path))


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}.") from error


def merged(content: Mapping[Any, Any], changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Sections of `content` with the keys that `changes` sets in them."""
    merged = dict(content)
    for section, values in changes.items():
        both = isinstance(values, Mapping) and isinstance(merged.get(section), Mapping)
        merged[section] = {**merged[section], **values} if both else values
    return merged


def build_recipe(content: Any, where: str) -> Recipe:
    """A recipe from plain values; `where` begins every error."""
    recipe: Recipe = _convert(content, Recipe, where, "")
    folders: dict[str, str] = {}
    for name in recipe.rows:
        row(recipe, name, where)
        other = folders.setdefault(slug(name), name)
        if other != name:
            raise InputError(f"{where}: rows: '{other}' and '{name}' would share the folder {slug(name)}: rename one.")
    return recipe


def row(recipe: Recipe, name: str, where: str = "the recipe") -> Recipe:
    """The experiment of one row: `recipe` with what the row sets; teachers and images are those of all rows."""
    content = to_plain(recipe)
    content.pop("rows", None)
    changes = recipe.rows[name] or {}
    if not isinstance(changes, Mapping):
        raise InputError(f"{where}: rows: {name}: expected sections, got {changes!r}.")
    for section in ("data", "extract", "rows"):
        if section in changes:
            raise InputError(f"{where}: rows: {name}: '{section}' is one for all rows: set it above them.")
    if isinstance(changes.get("distill"), Mapping) and "seed" in changes["distill"]:
        raise InputError(f"{where}: rows: {name}: seeds are the same for all rows: give --seeds.")
    return build_recipe(merged(content, changes), f"{where}: rows: {name}")


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """`recipe` with each `section.key=value` applied; a list is written as in YAML, `[a, b]`."""
    content = to_plain(recipe)
    for item in settings:
        path, equals, text = item.partition("=")
        section, dot, key = path.partition(".")
        if not equals or not dot:
            raise InputError(f"--set {item}: expected section.key=value, e.g. distill.epochs=5.")
        if section not in content:
            raise InputError(f"--set {item}: {unknown('section', section, content)}")
        if key not in content[section]:
            raise InputError(f"--set {item}: {unknown('key', key, content[section])}")
        try:
            content[section][key] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise InputError(f"--set {item}: '{text}' is not a YAML value.") from error
    return build_recipe(content, "--set")


def change(recipe: Recipe, section: str, **values: Any) -> Recipe:
    """`recipe` with the values of one section that are not None."""
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **given)})


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """Sections and keys as a recipe file spells them; rows only where there are some."""
    return {_section(name): {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}
            for name, section in dataclasses.asdict(recipe).items() if section or name != "rows"}  # fmt: skip


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults included."""
    return yaml.safe_dump(to_plain(recipe), sort_keys=False)


def _section(field: str) -> str:
    """A method's section has the method's name."""
    return field.replace("_", "-")


def _convert(value: Any, hint: Any, where: str, key: str) -> Any:
    """`value` as the type `hint`, or an error that names the key and what was expected."""
    if dataclasses.is_dataclass(hint):
        return _convert_section(value, hint, where, key)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise InputError(f"{where}: {key}: {unknown('value', str(value), map(str, arguments))}")
    if origin is Mapping:
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return dict(value)
        raise InputError(f"{where}: {key}: expected names and what each sets, got {value!r}.")
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (Ellipsis not in arguments and len(value) != len(arguments)):
            count = "a list" if Ellipsis in arguments else f"a list of {len(arguments)} values"
            raise InputError(f"{where}: {key}: expected {count}, got {value!r}.")
        return tuple(_convert(v, arguments[0], where, key) for v in value)
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except (TypeError, ValueError):
            pass
    if type(value) is hint:
        return value
    raise InputError(f"{where}: {key}: expected {hint.__name__}, got {value!r}.")


def _convert_section(value: Any, hint: Any, where: str, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {key or 'the file'}: expected keys and values, got {value!r}.")
    hints = typing.get_type_hints(hint)
    spelled = {(_section(name) if not key else name): name for name in hints}
    for name in value:
        if name not in spelled:
            raise InputError(
                f"{where}: {f'{key}: ' if key else ''}{unknown('key' if key else 'section', str(name), spelled)}"
            )
    return hint(
        **{spelled[n]: _convert(v, hints[spelled[n]], where, f"{key}.{n}" if key else n) for n, v in value.items()}
    )
