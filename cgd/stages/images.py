"""Image lists as artifacts, and proof that the files at hand are the ones the store speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cgd.data.images import read_image
from cgd.errors import InputError
from cgd.store.artifact import Artifact
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import images_identity
from cgd.types import ImageList, Key

SAMPLES = 8


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


def check_same_images(images: ImageList, artifact: Artifact) -> None:
    """Compare a few files with the digests recorded when the teachers saw them.

    Different folders often hold the same file names; what a name stands for may not silently change.
    """
    if images.root is None:
        return
    for row in np.unique(np.linspace(0, len(images) - 1, SAMPLES).astype(int)):
        check_digest(
            images,
            int(row),
            read_image(images.root, images.paths[row]).digest,
            artifact.gather("digests", np.array([row]))[0],
        )


def check_digest(images: ImageList, row: int, found: np.ndarray, stored: np.ndarray) -> None:
    """Refuse an image whose bytes are not those the teachers saw."""
    if not np.array_equal(found, stored):
        raise InputError(
            f"the image '{images.ids[row]}' of {images.title} below {images.root} is not the one in the store: "
            "it changed, or another data set has this name; give the images at hand another --name and extract them."
        )


def _text(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=object)
