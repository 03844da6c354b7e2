"""Trained students: which ones a store holds, and one as a single file that runs without this package."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cgd.errors import CgdError, InputError, StoreError
from cgd.pipeline.steps import Session, find_student, load_student
from cgd.store.feature_store import Entry, FeatureStore
from cgd.store.files import replace_file
from cgd.store.layout import RECIPE
from cgd.types import Key

SAMPLE = "sample.py"
SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors", "pt2": ".pt2"}
_OURS = "Written by `cgd students export`"


def list_students(session: Session) -> dict[str, Any]:
    """Every finished student of the store: its network, and how it was trained."""
    store = session.store()
    found = [_entry(store, entry) for entry in store.entries("students") if entry.sealed]
    return {"store": str(store.files.url), "students": found}


def _entry(store: FeatureStore, entry: Entry) -> dict[str, Any]:
    """What a student's recipe says of it, or why it cannot be used."""
    try:
        about = json.loads(store.get(entry.key).blob(RECIPE))
        training = about["distill"]
        return {
            "key": str(entry.key),
            "student": about["student"],
            "dimensions": about["embed_dim"],
            "parameters": about.get("parameters"),
            "method": training["method"],
            "fusion": training["fusion"],
            "teachers": about["teachers"],
            "epochs": training["epochs"],
            "seed": training["seed"],
        }
    except (CgdError, ValueError, KeyError, TypeError) as error:
        return {"key": str(entry.key), "problem": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def export_student(
    session: Session, where: str, form: str, out: Path | None = None, scales: Sequence[float] = ()
) -> dict[str, Any]:
    """Write the student `where` (a folder or a key) as a file of the format `form`, and `sample.py` beside it.

    `out` is the file or its folder, by default the student's. Nothing is written unless the file was reopened and gave
    the student's descriptors. Of `safetensors` there is no sample: tensors alone describe nothing.
    """
    from cgd.models.export import TOLERANCE, export, in_words, sample_for

    folder, _ = find_student(session, where)
    target = _target(where, folder, form, out)
    sample = None if form == "safetensors" else target.with_name(SAMPLE)
    _refuse_what_is_in_the_way(target, sample)
    source = load_student(session, where, scales)
    encoder = source.build()
    about = {
        "name": source.label,
        "student": source.text,
        "dimensions": encoder.embed_dim,
        "input": dataclasses.asdict(encoder.input_spec),
        "preparation": in_words(encoder.input_spec),
        "made_with": {name: version(name) for name in ("cgd", "torch")},
    }
    exported = export(encoder, about, form)
    replace_file(target, exported.data)
    if sample:
        replace_file(sample, sample_for(target.name, encoder.input_spec).encode())
    return {
        **about,
        "format": form,
        "file": str(target),
        "bytes": len(exported.data),
        "sha256": hashlib.sha256(exported.data).hexdigest(),
        "sample": None if sample is None else str(sample),
        "differences": dict(exported.differences),
        "max_relative_difference": exported.worst,
        "tolerance": TOLERANCE,
    }


def _target(where: str, folder: Path, form: str, out: Path | None) -> Path:
    """The file that `out` means."""
    suffix = SUFFIXES[form]
    if out is None:
        if Key.is_name(folder.name) and folder.parent.name == "students":
            raise InputError(f"'{where}' stands in a store, where nothing is added: say with --out where to write.")
        out = folder
    if out.suffix == suffix and not out.is_dir():
        return out
    if out.suffix in SUFFIXES.values() and not out.is_dir():
        raise InputError(f"--out {out}: a file of the format {form} ends in {suffix}.")
    return out / f"student{suffix}"


def _refuse_what_is_in_the_way(target: Path, sample: Path | None) -> None:
    """Before minutes are spent: somebody's own sample, and a folder that cannot be written."""
    if sample and sample.exists() and not (sample.is_file() and _OURS.encode() in sample.read_bytes()):
        raise StoreError(f"{sample} is there already and was not written by an export: name another place with --out.")
    nearest = next(folder for folder in target.absolute().parents if folder.exists())
    if target.is_dir() or not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write {target}: name another place with --out.")


def students_text(r: Mapping[str, Any]) -> str:
    """Two lines per student, or which command makes one."""
    if not r["students"]:
        return f"{r['store']} holds no student: `cgd distill --dataset NAME --out DIR` trains one"
    return "\n".join(line for entry in r["students"] for line in _lines(entry))


def _lines(entry: Mapping[str, Any]) -> list[str]:
    if "problem" in entry:
        return [entry["key"], f"  {entry['problem']}"]
    size = "" if entry["parameters"] is None else f", {entry['parameters']:,} parameters"
    return [
        entry["key"],
        f"  {entry['student']}: {entry['dimensions']} dimensions{size}; {entry['method']} with {entry['fusion']} of "
        f"{', '.join(entry['teachers'])}, {entry['epochs']} epochs, seed {entry['seed']}",
    ]


def export_text(r: Mapping[str, Any]) -> str:
    """What was written, how far it is from the student, and how it is used."""
    lines = [
        f"{r['file']}: {r['bytes'] / 1e6:.1f} MB, {r['dimensions']} dimensions",
        f"  largest difference from the student {r['max_relative_difference']:.1e}, allowed {r['tolerance']:.0e}",
        f"  {r['preparation']}",
    ]
    if r["sample"] is None:
        return "\n".join([*lines, "  tensors alone need their architecture; --format onnx and pt2 run by themselves"])
    return "\n".join([*lines, f"next: python {r['sample']} IMAGE"])
