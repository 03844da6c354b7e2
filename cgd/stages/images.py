"""Image lists as artifacts, and proof that the files at hand are the ones the store speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cgd.data.images import digest_of, image_bytes
from cgd.errors import InputError
from cgd.progress import progress
from cgd.store.artifact import Artifact
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import ids_digest, images_identity
from cgd.types import ImageList, Key

SAMPLES = 4


def store_images(store: FeatureStore, images: ImageList) -> Key:
    """Write ids, paths, labels, groups and boxes as an `images` artifact, unless they are stored."""
    arrays: dict[str, Any] = {"ids": _text(images.ids), "paths": _text(images.paths)}
    if images.labels is not None:
        arrays["labels"] = _text(images.labels)
    if images.groups is not None:
        arrays["groups"] = _text(images.groups)
    if images.boxes is not None:
        arrays["boxes"] = np.array([b or (np.nan,) * 4 for b in images.boxes], np.float64).reshape(-1, 4)
    return store.write_whole(images_identity(images), arrays)


def check_same_images(store: FeatureStore, images: ImageList) -> None:
    """Compare a few files with the digests recorded when any model saw images of this name.

    Different folders often hold the same file names; what a name stands for may not silently change.
    """
    if images.root is None:
        return
    ids = ids_digest(images)
    for entry in store.entries("embeddings"):
        if entry.attributes.get("settings", {}).get("ids") != ids:
            continue
        for rows, read in store.finished_shards(entry.key, ends=True):
            digests = read("digests")
            known = np.flatnonzero(digests.any(axis=1))  # the others are beyond a budget, and were never read
            for place in known[np.unique(np.linspace(0, max(len(known) - 1, 0), SAMPLES).astype(int))[: len(known)]]:
                row = rows[place]
                found = digest_of(image_bytes(images.root, images.paths[row]))
                check_digest(images, row, found, digests[place])


def changed_images(artifact: Artifact, images: ImageList) -> list[str]:
    """The ids of images that an embeddings artifact holds and whose files are not the ones its rows were made from.

    Those that the data set at hand has no longer are among them. Raises `InputError` where a file is missing.
    """
    changed = []
    places = {name: row for row, name in enumerate(images.ids)}
    with progress(artifact.rows, f"{artifact.key}, images") as bar:
        for _, (ids, digests) in artifact.blocks("ids", "digests"):
            for name, digest in zip(ids, digests, strict=True):
                row = places.get(name)
                if not digest.any():  # never read: beyond the budget of the extraction
                    continue
                if row is None or not np.array_equal(digest_of(image_bytes(images.root, images.paths[row])), digest):
                    changed.append(name)
                bar.update(1)
    return changed


def check_digest(images: ImageList, row: int, found: np.ndarray, stored: np.ndarray) -> None:
    """Refuse an image whose bytes are not those the teachers saw."""
    if not np.array_equal(found, stored):
        raise InputError(
            f"the image '{images.ids[row]}' of {images.title} below {images.root} is not the one in the store: "
            "it changed, or another data set has this name; give the images at hand another --name and extract them."
        )


def _text(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=object)
