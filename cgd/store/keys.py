"""Names of artifacts from everything that determined them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cgd.registry import slug
from cgd.types import MARK_DIGITS, ImageList, Key, Settings


@dataclass(frozen=True)
class Identity:
    """A key with all that went into its mark; stands in the artifact's attributes and is compared on opening.

    `version` is the stage's: it rises when behaviour changes under equal settings. `inputs` are keys as text.
    """

    key: Key
    digest: str
    version: int
    settings: Settings
    inputs: tuple[str, ...]


def identify(kind: str, label: Sequence[str], version: int, settings: Settings, inputs: Iterable[Key] = ()) -> Identity:
    """The identity of the artifact of `kind` that `settings` and `inputs` determine; `label` is cosmetic."""
    settings = json.loads(canonical(settings))
    names = tuple(str(key) for key in inputs)
    digest = sha256(canonical({"kind": kind, "version": version, "settings": settings, "inputs": names}))
    key = Key(kind, ".".join(slug(part) for part in label), digest[:MARK_DIGITS])
    return Identity(key, digest, version, settings, names)


def settings_of(config: Any) -> dict[str, Any]:
    """The fields of a frozen dataclass as settings.

    A field added after version 1 carries its neutral value in its metadata (`{"neutral": value}`) and is left
    out at that value, so that marks made before it existed stay valid.
    """
    absent = object()
    values = {f.name: (getattr(config, f.name), f.metadata.get("neutral", absent)) for f in dataclasses.fields(config)}
    return {name: value for name, (value, neutral) in values.items() if value != neutral}


def images_identity(images: ImageList) -> Identity:
    """Identity of an image list as an artifact: ids, paths, labels, groups and boxes."""
    settings = {
        "dataset": images.name,
        "split": images.split,
        "ids": ids_digest(images),
        "paths": _digest(images.paths),
        "labels": labels_digest(images),
        "groups": groups_digest(images),
        "boxes": images.boxes and _digest(images.boxes),
    }
    return identify("images", [images.title], 1, settings)


def ids_digest(images: ImageList) -> str:
    """What names the rows: the data set's name and its ids in order, not their labels.

    The name is part of it because unrelated folders often hold the same file names.
    """
    return _digest([images.name, *images.ids])


def ids_digest_of(dataset: str, parts: Iterable[Iterable[str]]) -> str:
    """As `ids_digest`, of ids that come in parts and are never all in memory."""
    found = hashlib.sha256(b"[" + canonical(dataset))
    for part in parts:
        if text := canonical(list(part))[1:-1]:
            found.update(b"," + text)
    found.update(b"]")
    return found.hexdigest()


def labels_digest(images: ImageList) -> str | None:
    """Digest of the labels; enters only what is made from labels: targets, students and scores."""
    return None if images.labels is None else _digest(images.labels)


def groups_digest(images: ImageList) -> str | None:
    """Digest of the groups; enters only what is made from them."""
    return None if images.groups is None else _digest(images.groups)


def canonical(value: Any) -> bytes:
    """One byte string for one JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(values: Sequence[Any]) -> str:
    return sha256(canonical(list(values)))
