"""Teachers and students from their names: options checked, weights found, nothing built before it is needed."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cgd import registry
from cgd.errors import InputError
from cgd.models.checkpoints import WeightsFile, file_digest, fill, fill_below_head, locate, with_digest
from cgd.models.encoder import Encoder, EncoderSource
from cgd.models.published import TEACHERS, imported_name, publication_of
from cgd.registry import Found, Spec
from cgd.types import InputSpec

STUDENTS = "cgd.models.students"
DIGEST = "sha256"
RANDOM = "random"  # `weights=random`: an untrained network, always the same one
_INPUT = typing.get_type_hints(InputSpec)


def teacher(text: str, weights_folder: Path | None) -> EncoderSource:
    """The teacher called `text`; its weights are `weights=FILE` below `weights_folder`, or its imported file.

    With `sha256=…` the file need not be there as long as nothing has to be embedded.
    """
    spec = Spec.parse(text)
    found = registry.resolve(TEACHERS, spec, text)
    parameter = registry.foreign(f"'{text}'", inspect.signature, found.function).parameters.get("weights")
    if parameter is None or parameter.kind is not parameter.KEYWORD_ONLY or not isinstance(parameter.default, str):
        raise InputError(f"'{text}': a teacher's function has a keyword parameter 'weights', the name of its file.")
    options, overrides = _split(found, spec, text)
    file = options.pop("weights", parameter.default)
    if not file and DIGEST in spec.options:  # as a store names it, which knows no file names
        found_file = with_digest(spec.options[DIGEST], weights_folder)
        file = found_file.name if found_file else f"with SHA-256 {spec.options[DIGEST]}"  # not needed until it is read
    if not file:
        raise InputError(f"'{text}' needs weights: name a file with ?weights=FILE, or ask for ?weights=random.")
    digest, hint = spec.options.get(DIGEST), _how_to_import(found.function, spec.name, file)
    weights = None if file == RANDOM else locate(file, digest, weights_folder, hint)

    identity = _identity(spec, found, options, overrides, weights)
    build = partial(_built_teacher, text, weights, options, overrides)
    return EncoderSource(text, _label(spec, options), identity, weights, build)


def _built_teacher(
    text: str, weights: WeightsFile | None, options: dict[str, Any], overrides: dict[str, Any]
) -> Encoder:
    found = registry.resolve(TEACHERS, Spec.parse(text), text)
    return _build(found, weights, options, overrides, text).eval()


def _how_to_import(function: Callable[..., Any], name: str, file: str) -> str:
    """What to do about a published teacher's weights that are not there."""
    publication = publication_of(function)
    if publication is None or file != imported_name(function):
        return ""
    made = f"`cgd teachers import {name} FILE --weights DIR` makes it from {publication.file}"
    return f" ({made}, published at {publication.where})"


def student(text: str, init: WeightsFile | None, seed: int = 0) -> EncoderSource:
    """The untrained student called `text`, its trunk from the file `init`; the rest is drawn from `seed`.

    `init` is a trunk as its authors publish it, or a student that was distilled: of that everything but the head has
    to match, and the head is taken where it has the shape asked for.
    """
    spec = Spec.parse(text)
    found = registry.resolve(STUDENTS, spec, text)
    options, overrides = _split(found, spec, text)

    identity = {**_identity(spec, found, options, overrides, init), "seed": seed}
    build = partial(_begun_student, text, init, options, overrides, seed)
    return EncoderSource(text, f"{_label(spec, options)}-seed{seed}", identity, init, build)


def _begun_student(
    text: str, init: WeightsFile | None, options: dict[str, Any], overrides: dict[str, Any], seed: int
) -> Encoder:
    found = registry.resolve(STUDENTS, Spec.parse(text), text)
    if init is None or found.origin:  # who brings a network brings its way of reading files
        return _build(found, init, options, overrides, text, seed)
    drawn, begun = _build(found, None, options, overrides, text, seed), init.read()
    if drawn.network.state_dict().keys().isdisjoint(begun.state):
        return _build(found, init, options, overrides, text, seed)
    fill_below_head(drawn.network, begun)
    return drawn


def trained_student(text: str, path: Path) -> EncoderSource:
    """A distilled student: the network called `text` with every tensor of the file at `path`."""
    untrained = student(text, None)
    weights = WeightsFile(path.name, file_digest(path), path)

    identity = {**untrained.identity, "weights": weights.digest}
    del identity["seed"]
    label = f"{untrained.label.removesuffix('-seed0')}-{weights.digest[:8]}"
    return EncoderSource(text, label, identity, weights, partial(_trained, untrained.build, weights))


def _trained(untrained: Callable[[], Encoder], weights: WeightsFile) -> Encoder:
    encoder = untrained()
    fill(encoder.network, weights.read())
    return encoder.eval()


def degraded(source: EncoderSource, pixels: int) -> EncoderSource:
    """The same encoder, shown images shrunk to `pixels` on the longer side and enlarged again; 0: as it is."""
    if not pixels:
        return source
    identity = {**source.identity, "input": {**source.identity["input"], "degrade": pixels}}

    return dataclasses.replace(source, identity=identity, build=partial(_degraded, source.build, pixels))


def _degraded(build: Callable[[], Encoder], pixels: int) -> Encoder:
    encoder = build()
    encoder.input_spec = dataclasses.replace(encoder.input_spec, degrade=pixels)
    return encoder


def named(identity: Mapping[str, Any]) -> str:
    """A teacher's name from what a store says of it; its weights are known by their SHA-256."""
    options = {**identity["options"], **identity["input"]}
    given = [f"{key}={_option(value)}" for key, value in options.items()]
    weights = identity["weights"]
    given.append(f"weights={RANDOM}" if weights == RANDOM else f"{DIGEST}={weights}")
    head = identity["name"] if identity["argument"] is None else f"{identity['name']}:{identity['argument']}"
    return f"{head}?{'&'.join(given)}"


def _option(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_option, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def pinned(source: EncoderSource) -> str:
    """The name of a teacher with the digest of its weights, as a saved recipe has it."""
    if source.weights is None or f"{DIGEST}=" in source.text:
        return source.text
    return f"{source.text}{'&' if '?' in source.text else '?'}{DIGEST}={source.weights.digest}"


def _split(found: Found, spec: Spec, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the network itself, and those that override its input specification."""
    own = inspect.signature(found.function).parameters  # an option of the network's own wins over the input's
    given = {k: v for k, v in spec.options.items() if k in _INPUT and k not in own}
    overrides = {k: registry.convert(v, _INPUT[k], f"'{text}': option '{k}'") for k, v in given.items()}
    rest = {k: v for k, v in spec.options.items() if k not in given and k != DIGEST}
    if spec.argument is None and spec.name == "timm":
        raise InputError(f"'{text}' names no network: write timm:NAME, e.g. timm:resnet50.")
    if found.argument is not None and not found.origin and spec.name not in ("timm", "maps"):
        raise InputError(f"'{text}': {spec.name} takes options after '?', not an argument after ':'.")
    return registry.bind(found.function, rest, text), overrides


def _label(spec: Spec, options: Mapping[str, Any]) -> str:
    """A slug of the options that differ from their defaults, however they were typed."""
    return dataclasses.replace(spec, options={name: str(value) for name, value in options.items()}).label()


def _identity(
    spec: Spec, found: Found, options: Mapping[str, Any], overrides: Mapping[str, Any], weights: WeightsFile | None
) -> dict[str, Any]:
    identity = {
        "name": spec.name,
        "argument": spec.argument,
        "options": dict(options),
        "input": dict(overrides),
        "weights": RANDOM if weights is None else weights.digest,
    }
    return {**identity, "origin": dict(found.origin)} if found.origin else identity


def _build(
    found: Found,
    weights: WeightsFile | None,
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
    text: str,
    seed: int = 0,
) -> Encoder:
    with torch.random.fork_rng(devices=[]):  # an untrained part is always drawn alike and disturbs nobody's numbers
        torch.manual_seed(seed)
        checkpoint = None if weights is None else weights.read()
        if found.origin:
            encoder = registry.foreign(f"'{text}'", found.function, found.argument, checkpoint, **options)
        else:
            encoder = found.function(found.argument, checkpoint, **options)
    if not isinstance(encoder, Encoder):
        raise InputError(f"'{text}' gave a {type(encoder).__name__}, not a cgd.models.encoder.Encoder.")
    if overrides:
        encoder.input_spec = dataclasses.replace(encoder.input_spec, **overrides)
    if encoder.single_scale and len(encoder.input_spec.scales) > 1:
        raise InputError(f"'{text}' takes one scale only: its whitening comes after scales are joined.")
    return encoder
