"""Teachers and students from their names: options checked, weights found, nothing built before it is needed."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cgd import registry
from cgd.errors import InputError, WeightsError
from cgd.models.checkpoints import Checkpoint, file_digest, fill, read_checkpoint
from cgd.models.encoder import Encoder, EncoderSource
from cgd.registry import Spec
from cgd.types import InputSpec

TEACHERS, STUDENTS = "cgd.models.teachers", "cgd.models.students"
RANDOM = "random"  # `weights=random`: an untrained network, always the same one
_INPUT = typing.get_type_hints(InputSpec)


def teacher(text: str, weights_folder: Path | None) -> EncoderSource:
    """The teacher called `text`; its weights are `weights=FILE` below `weights_folder`, or its published file."""
    spec = Spec.parse(text)
    function = registry.find(TEACHERS, spec.name)
    options, overrides = _split(function, spec, text)
    file = options.pop("weights", inspect.signature(function).parameters["weights"].default)
    if not file:
        raise InputError(f"'{text}' needs weights: name a file with ?weights=FILE, or ask for ?weights=random.")
    path = None if file == RANDOM else _locate(file, weights_folder, text)
    digest = RANDOM if path is None else file_digest(path)

    def build() -> Encoder:
        checkpoint = None if path is None else read_checkpoint(path)
        return _build(function, spec.argument, checkpoint, options, overrides).eval()

    label = spec.label(without={"weights", *_INPUT})
    return EncoderSource(text, label, _identity(spec, options, overrides, digest), path, digest, build)


def student(text: str, init: Path | None, seed: int = 0) -> EncoderSource:
    """The untrained student called `text`, its trunk from the file `init` or drawn from `seed`."""
    spec = Spec.parse(text)
    function = registry.find(STUDENTS, spec.name)
    options, overrides = _split(function, spec, text)
    digest = RANDOM if init is None else file_digest(init)

    def build() -> Encoder:
        checkpoint = None if init is None else read_checkpoint(init)
        return _build(function, spec.argument, checkpoint, options, overrides, seed)

    # Whatever the file does not fill is drawn from the seed.
    identity = {**_identity(spec, options, overrides, digest), "seed": seed}
    return EncoderSource(text, f"{spec.label(without=_INPUT)}-seed{seed}", identity, init, digest, build)


def trained_student(text: str, weights: Path) -> EncoderSource:
    """A distilled student: the network called `text` with every tensor of `weights`."""
    untrained = student(text, None)
    digest = file_digest(weights)

    def build() -> Encoder:
        encoder = untrained.build()
        fill(encoder.network, read_checkpoint(weights))
        return encoder.eval()

    identity = {**untrained.identity, "weights": digest}
    del identity["seed"]
    label = untrained.label.removesuffix("-seed0")
    return EncoderSource(text, f"{label}-{digest[:8]}", identity, weights, digest, build)


def _split(function: Callable[..., Any], spec: Spec, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the network itself, and those that override its input specification."""
    given = {k: v for k, v in spec.options.items() if k in _INPUT}
    overrides = {k: registry.convert(v, _INPUT[k], f"'{text}': option '{k}'") for k, v in given.items()}
    rest = {k: v for k, v in spec.options.items() if k not in _INPUT}
    if spec.argument is None and spec.name == "timm":
        raise InputError(f"'{text}' names no network: write timm:NAME, e.g. timm:resnet50.")
    if spec.argument is not None and spec.name != "timm":
        raise InputError(f"'{text}': {spec.name} takes options after '?', not an argument after ':'.")
    return registry.bind(function, rest, text), overrides


def _identity(spec: Spec, options: Mapping[str, Any], overrides: Mapping[str, Any], digest: str) -> dict[str, Any]:
    return {
        "name": spec.name,
        "argument": spec.argument,
        "options": dict(options),
        "input": dict(overrides),
        "weights": digest,
    }


def _locate(file: str, folder: Path | None, text: str) -> Path:
    if folder is None and not Path(file).is_file():
        raise WeightsError(f"'{text}' needs the weights file {file}: give the folder that holds it with --weights DIR.")
    path = Path(file) if folder is None else folder / file
    if not path.is_file():
        raise WeightsError(f"'{text}' needs the weights file {file}, which is not in {folder}.")
    return path


def _build(
    function: Callable[..., Any],
    argument: str | None,
    checkpoint: Checkpoint | None,
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
    seed: int = 0,
) -> Encoder:
    with torch.random.fork_rng(devices=[]):  # an untrained part is always drawn alike and disturbs nobody's numbers
        torch.manual_seed(seed)
        encoder = function(argument, checkpoint, **options)
    if overrides:
        encoder.input_spec = dataclasses.replace(encoder.input_spec, **overrides)
    return encoder
