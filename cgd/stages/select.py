"""Which stored artifacts a name typed by a user means."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cgd.data.views import FIXED
from cgd.errors import CgdError, InputError, MissingError
from cgd.registry import Spec
from cgd.store.artifact import Artifact
from cgd.store.feature_store import Entry, FeatureStore
from cgd.store.keys import canonical
from cgd.store.layout import WEIGHTS
from cgd.types import InputSpec, Key, title_of

MAPS = "maps"  # the teacher whose descriptors are feature maps: for layers beside a method, not for fusing


def embeddings_of(
    store: FeatureStore, dataset: str, split: str | None, teacher: str | None = None
) -> dict[str, dict[str, Key]]:
    """Sealed embeddings of a data set by the teacher's label and the view; refuses an ambiguous choice.

    `teacher` is a label, or a name with any of the options it was extracted with. Embeddings of all images come before
    those of a budget.
    """
    fitting: dict[str, dict[str, list[Entry]]] = {}
    for entry in store.entries("embeddings"):
        if not entry.sealed or entry.settings["dataset"] != dataset or split not in (None, entry.settings["split"]):
            continue
        if teacher is None or fits(teacher, entry):
            fitting.setdefault(entry.attributes["label"], {}).setdefault(entry.settings["view"], []).append(entry)
    found = {label: {view: _widest(entries) for view, entries in views.items()} for label, views in fitting.items()}
    title = title_of(dataset, split)
    if not found:
        whose = f" of {teacher}" if teacher else ""
        command = f"cgd extract-teachers --dataset {title} --teachers {teacher or '…'}"
        raise MissingError(f"the store {store.files.url} has no embeddings of {title}{whose}: run `{command}` first.")
    for label, views in found.items():
        for view, keys in views.items():
            if len(keys) > 1:
                raise MissingError(
                    f"{title} has {len(keys)} embeddings of {label} ({view}); name one of: {', '.join(map(str, keys))}."
                )
    return {label: {view: keys[0] for view, keys in views.items()} for label, views in found.items()}


def _widest(entries: Sequence[Entry]) -> list[Key]:
    """Those of all images where there are some, else all."""
    return [e.key for e in entries if "asked" not in e.settings] or [e.key for e in entries]


def fits(teacher: str, entry: Entry) -> bool:
    """Whether an embeddings artifact is by the teacher a user typed: its key, its label, or its name and options."""
    if teacher in (str(entry.key), entry.attributes["label"]):
        return True
    spec = Spec.parse(teacher)
    encoder: dict[str, Any] = entry.settings["encoder"]
    stored = {**encoder["options"], **encoder["input"]}
    if (spec.name, spec.argument) != (encoder["name"], encoder["argument"]):
        return False
    wanted = {k: v for k, v in spec.options.items() if k not in ("weights", "sha256")}
    if spec.options.get("sha256", encoder["weights"]) != encoder["weights"]:
        return False
    return all(k in stored and _text(stored[k]) == v for k, v in wanted.items())


def teachers_of(
    store: FeatureStore, dataset: str, split: str | None, teachers: Sequence[str]
) -> dict[str, dict[str, Key]]:
    """Embeddings by label and view of the `teachers` named, in that order, or of all there are but students'."""
    if not teachers:
        found, trained = embeddings_of(store, dataset, split), _weights_of_students(store)
        encoders = {label: store.get(next(iter(views.values()))).settings["encoder"] for label, views in found.items()}
        left = {k: v for k, v in found.items() if "seed" not in encoders[k] and encoders[k]["weights"] not in trained}
        left = {k: v for k, v in left.items() if encoders[k]["name"] != MAPS}
        if not left:  # what students were scored on teaches nobody
            title = title_of(dataset, split)
            raise MissingError(
                f"the store {store.files.url} has embeddings of {title} by students only: run "
                f"`cgd extract-teachers --dataset {title} --teachers …` first."
            )
        return left
    chosen: dict[str, dict[str, Key]] = {}
    for teacher in teachers:
        found = embeddings_of(store, dataset, split, teacher)
        if len(found) > 1:
            exact = _label(teacher)
            if exact not in found:
                raise MissingError(f"'{teacher}' fits {', '.join(found)}; name one of them.")
            found = {exact: found[exact]}
        for label, views in found.items():
            chosen.setdefault(label, {}).update(views)
    return chosen


def maps_of(store: FeatureStore, dataset: str, split: str | None, kind: str) -> dict[str, Key]:
    """Stored feature maps of a data set by view, of the `kind` that a `maps` teacher gives; there is to be one."""
    found: dict[str, dict[str, Key]] = {}
    every = embeddings_of(store, dataset, split)
    for label, views in every.items():
        encoder = store.get(next(iter(views.values()))).settings["encoder"]
        if encoder["name"] == MAPS and encoder["options"].get("kind", "features") == kind:
            found[label] = views
    title = title_of(dataset, split)
    if not found:
        raise MissingError(
            f"{title} has no {kind} maps for that layer: run `cgd extract-teachers --dataset {title} "
            f"--teachers 'maps:TEACHER?kind={kind}&weights=FILE'` first."
        )
    if len(found) > 1:
        raise InputError(
            f"{title} has {kind} maps of {', '.join(found)}, and a layer compares one: keep one to a store."
        )
    return next(iter(found.values()))


def _weights_of_students(store: FeatureStore) -> set[str]:
    """SHA-256 of the weights of every student here; a damaged one is nobody's concern but its own."""
    found = set()
    for entry in store.entries("students"):
        with suppress(CgdError):
            found |= {store.get(entry.key).digest(WEIGHTS)} if entry.sealed else set()
    return found


def _label(teacher: str) -> str:
    """The label of the teacher whose only options are those typed, without those of its input."""
    spec = Spec.parse(teacher)
    inputs = {field.name for field in dataclasses.fields(InputSpec)} | {"weights", "sha256"}
    return dataclasses.replace(spec, options={k: v for k, v in spec.options.items() if k not in inputs}).label()


def training_vectors(
    store: FeatureStore, dataset: str, split: str | None, teachers: Sequence[str], whitening: str | None, space: str
) -> dict[str, dict[str, Key]]:
    """What a student trains against, by teacher and view: whitened vectors, or embeddings as they came (`raw`)."""
    if space == "raw":
        return teachers_of(store, dataset, split, teachers)
    return whitened_of(store, dataset, split, teachers, whitening)


def embeddings_behind(store: FeatureStore, vectors: Key) -> Artifact:
    """The embeddings that a teacher's `vectors` are, or were whitened from."""
    artifact = store.get(vectors)
    return artifact if vectors.kind == "embeddings" else store.get(artifact.inputs[0])


def fused_teachers(store: FeatureStore, inputs: Sequence[Key]) -> tuple[list[Key], Key]:
    """The whitening of each teacher a student was trained with, in their order, and its codebook.

    `inputs` are the student's; a student without a codebook has no space in common with its teachers.
    """
    codebooks = [key for key in inputs if key.kind == "codebooks"]
    if not codebooks:
        raise InputError(
            "asymmetric search needs a student whose vectors are compared with its teachers', as the method cgd makes "
            "them; this one was trained another way: use --mode symmetric."
        )
    found = dict.fromkeys(store.get(key).inputs[1] for key in inputs if key.kind == "whitened")
    return list(found), codebooks[0]


def whitened_of(
    store: FeatureStore, dataset: str, split: str | None, teachers: Sequence[str], whitening: str | None = None
) -> dict[str, dict[str, Key]]:
    """Whitened vectors by teacher and view; `whitening` is part of a key, where there are several to choose from."""
    embeddings = teachers_of(store, dataset, split, teachers)
    owner = {str(key): (label, view) for label, views in embeddings.items() for view, key in views.items()}
    chosen: dict[str, dict[str, Key]] = {label: {} for label in embeddings}
    for entry in store.entries("whitened"):
        source, through = entry.attributes["inputs"] if entry.sealed else ("", "")
        if source not in owner or (whitening is not None and whitening not in through):
            continue
        label, view = owner[source]
        if view in chosen[label]:
            raise MissingError(
                f"{label} ({view}) of {dataset} is whitened in more than one way; choose one with --whitening, "
                f"e.g. --whitening {Key.parse(through).mark}."
            )
        chosen[label][view] = entry.key
    title = title_of(dataset, split)
    for label, views in chosen.items():
        if not views:
            raise MissingError(
                f"{title} is not whitened for {label}: run `cgd fit-whitening --dataset {title}` first, or name the "
                "teachers to use with --teachers."
            )
    return chosen


def whitening_of(store: FeatureStore, label: str, encoder: Mapping[str, Any], wanted: str) -> Key:
    """The whitening of full images for one encoder, fitted on the data set `wanted`, or with that in its key."""
    name, _, split = wanted.partition("@")
    identity = json.loads(canonical(encoder))
    found = []
    for key in store.find("whitening", encoder=identity, view_kind=FIXED):
        settings = store.get(key).settings
        if wanted in str(key) or (settings["dataset"] == name and split in ("", settings["split"])):
            found.append(key)
    if not found:
        raise MissingError(
            f"no whitening of {label} fits '{wanted}': run `cgd fit-whitening --dataset {wanted}` first."
        )
    if len(found) > 1:
        raise MissingError(
            f"'{wanted}' fits {len(found)} whitenings of {label}; name one of: {', '.join(map(str, found))}."
        )
    return found[0]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
