"""The published teachers: which there are, their weights from published files, and proof that they are right."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd import registry
from cgd.errors import InputError, StoreError, WeightsError
from cgd.models import selfcheck
from cgd.models.checkpoints import file_digest, read_checkpoint, read_header
from cgd.models.load import teacher
from cgd.models.pca_layers import UNUSED, is_pca_layer, pca_layer
from cgd.models.published import TEACHERS, Publication, convert, imported_name, published_teachers, read_published
from cgd.pipeline.steps import Session
from cgd.registry import Spec
from cgd.stages.whiten import import_whitening
from cgd.store.files import replace_file
from cgd.types import Whitening

if TYPE_CHECKING:
    from cgd.models.encoder import Encoder


def list_teachers(weights: Path | None) -> dict[str, Any]:
    """Every published teacher with its file, sizes and weights; and what else may be named as a teacher."""
    published = published_teachers()
    entries = [_entry(name, function, about, weights) for name, (function, about) in published.items()]
    others = [n for n in (*registry.names(TEACHERS), *registry.installed(TEACHERS)) if n not in published]
    return {"teachers": entries, "others": others}


def _entry(name: str, function: Callable[..., Encoder], about: Publication, weights: Path | None) -> dict[str, Any]:
    folder = weights or Path()
    path = folder / imported_name(function)
    found: dict[str, Any] = {"present": path.is_file(), "file": path.name}
    if path.is_file():
        found |= {"sha256": file_digest(path), **_origin(path, name)}
    elif (folder / about.file).is_file():
        found["published_file"] = str(folder / about.file)
    return {
        "name": name,
        "file": about.file,
        "where": about.where,
        "dimensions": _dimensions(function),
        "weights": found,
        "digest_known": about.sha256 is not None,
    }


def _origin(path: Path, teacher: str) -> dict[str, Any]:
    """What an imported file says of the file it was made from, or why it cannot be used."""
    try:
        header = read_header(path)
    except WeightsError as error:
        return {"problem": str(error)}
    source = header.get("source")
    if header.get("teacher") != teacher or not isinstance(source, dict) or not isinstance(source.get("sha256"), str):
        return {"problem": f"it was not made by `cgd teachers import {teacher} FILE`"}
    return {"source": source}


def _dimensions(function: Callable[..., Encoder]) -> dict[str, int]:
    """Size of the descriptor by form."""
    import torch

    form = typing.get_type_hints(function).get("form")
    with torch.device("meta"):
        if form is None:
            return {"faithful": function(None, None).embed_dim}
        return {f: function(None, None, form=f).embed_dim for f in typing.get_args(form)}


def import_weights(session: Session, text: str, file: Path, folder: Path | None) -> dict[str, Any]:
    """Weights of the teacher `text` from its published file, as a safetensors file in `folder` (the file's own).

    A whitening layer of Whiten-MTD goes into the store instead. Nothing is written unless all of it is right.
    """
    spec = Spec.parse(text)
    if spec.argument is None:
        registry.find(TEACHERS, spec.name)  # a wrong name is told before a large file is read
    content = read_published(file)
    target = folder or file.parent
    if is_pca_layer(content):
        return _import_whitening(session, spec, text, file, pca_layer(content, file), target)
    if spec.argument is not None:
        raise InputError(f"'{text}' has no published file: give its weights with {text}?weights=FILE.")
    if spec.options:
        raise InputError(f"'{text}': all forms share one weights file; import it as {spec.name}.")
    imported = convert(spec.name, content, file)
    path = target / imported_name(registry.find(TEACHERS, spec.name))
    data = imported.serialise()
    _keep(path, data)
    return {
        "teacher": spec.name,
        "written": str(path),
        "sha256": file_digest(path),
        "tensors": len(imported.tensors),
        "facts": dict(imported.facts),
        "dropped": list(imported.dropped),
        "source": dict(imported.source),
    }


def _keep(path: Path, data: bytes) -> None:
    """Write a weights file, unless other weights stand there under its name."""
    if path.is_file():
        if path.read_bytes() != data:
            raise StoreError(
                f"{path} is there already and holds other weights; nothing was written: "
                "move it away, or name another folder with --weights."
            )
        return
    replace_file(path, data)


def _import_whitening(
    session: Session, spec: Spec, text: str, file: Path, whitening: Whitening, folder: Path
) -> dict[str, Any]:
    forms = "form" in inspect.signature(registry.find(TEACHERS, spec.name)).parameters
    if forms and "form" not in spec.options:  # it was fitted on that form of the teacher
        text += f"{'&' if spec.options else '?'}form=whiten-mtd"
    source = teacher(text, folder)
    dim = source.build().embed_dim
    if dim != len(whitening.mean):
        raise InputError(f"{file} whitens {len(whitening.mean)} values, '{text}' gives {dim}: it belongs to another.")
    origin = {"file": file.name, "sha256": file_digest(file)}
    keys = import_whitening(
        store=session.store(write=True), whitening=whitening, label=source.label, encoder=source.identity, source=origin
    )
    return {
        "teacher": text,
        "whitening": {kind: str(key) for kind, key in keys.items()},
        "dim_in": dim,
        "dim_out": len(whitening.projection),
        "dropped": list(UNUSED),
        "source": origin,
    }


def check_teachers(session: Session, names: Sequence[str]) -> list[dict[str, Any]]:
    """Compare each teacher on this machine's device with what its published code gave."""
    known = list(selfcheck.expectations())
    for name in names:
        if name not in known:
            registry.find(TEACHERS, Spec.parse(name).name)  # an unknown one is refused with the nearest names
            raise InputError(f"there is nothing to compare {name} with; published teachers are {', '.join(known)}.")
    return [_check(session, name) for name in names or known]


def _check(session: Session, name: str) -> dict[str, Any]:
    """Weights by the rule against the published code's descriptors; other imported weights against double precision."""
    device = session.compute().device
    about = selfcheck.expectations()[name]
    path = (session.weights or Path()) / imported_name(registry.find(TEACHERS, name))
    stored = read_checkpoint(path) if path.is_file() else None
    tensors = {} if stored is None else {n: t for n, t in stored.state.items() if not n.startswith("pca.")}
    stored_by_rule = selfcheck.tensors_digest(tensors) == about["tensors_sha256"]
    tensors = tensors if stored_by_rule else selfcheck.filled(name)
    as_published = stored_by_rule or selfcheck.tensors_digest(tensors) == about["tensors_sha256"]
    differences = selfcheck.check(name, device, tensors)
    worst = max(differences.values())
    weights = None
    if stored is not None:
        single = None if stored_by_rule else selfcheck.against_double(name, stored, device)
        weights = {"file": str(path), "by_rule": stored_by_rule, "single_against_double": single}
        worst = max(worst, single or 0.0)
    return {
        "teacher": name,
        "device": _device_name(device),
        "expected": about["source"],
        "tensors_as_published": as_published,
        "differences": differences,
        "weights": weights,
        "max_relative_difference": worst,
        "tolerance": selfcheck.TOLERANCE,
        "passed": as_published and worst <= selfcheck.TOLERANCE,
    }


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
