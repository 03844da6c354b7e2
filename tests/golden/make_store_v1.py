"""Write the store of format version 1 that stands beside this file: `python tests/golden/make_store_v1.py`.

It is written once and then only read: what an older version wrote must open for ever. Its numbers come from a
seed, by the generator whose stream NumPy never changes.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity, identify, images_identity
from cgd.types import ImageList

SEED, IMAGES, CUT, DIM, OUT, SCALES = 1, 5, 2, 6, 3, 2
STORE = Path(__file__).with_name("store_v1")
Arrays = dict[str, np.ndarray]


def image_list() -> ImageList:
    ids = tuple(f"Zürich/寺院 {n}" for n in range(IMAGES))
    boxes = (None, (0.5, 1.0, 20.25, 30.0), None, (0.0, 0.0, 7.0, 7.0), None)
    paths, labels, groups = (tuple(f"{kind}{n // 2}" for n in range(IMAGES)) for kind in ("Bild/é", "label ", "film "))
    return ImageList("small", "train", ids, paths, None, labels, groups, boxes)


def contents() -> dict[str, tuple[Identity, Arrays, dict[str, Any], dict[str, bytes]]]:
    """Identity, arrays, attributes and other files of one artifact per kind."""
    images, draw = image_list(), np.random.RandomState(SEED)
    ids, valid = _text(images.ids), np.array([True, True, False, True, True])
    digests = draw.randint(0, 256, (IMAGES, 32)).astype(np.uint8)
    views = draw.uniform(size=(IMAGES, 5)).astype(np.float32)
    vectors = draw.uniform(-1, 1, (IMAGES, SCALES, DIM)).astype(np.float32)
    vectors[~valid], views[~valid] = np.nan, np.nan
    fitted = {
        "mean": draw.uniform(-1, 1, DIM),
        "projection": draw.uniform(-1, 1, (OUT, DIM)),
        "eigenvalues": np.sort(draw.uniform(size=DIM))[::-1],
    }
    whitened = draw.uniform(-4, 4, (IMAGES, OUT)).astype(np.float16)
    whitened[~valid] = np.nan
    precision = draw.uniform(size=(3, 2))
    precision[2, 1] = np.nan
    listed = {
        "ids": ids, "paths": _text(images.paths), "labels": _text(images.labels), "groups": _text(images.groups),
        "boxes": np.array([box or (np.nan,) * 4 for box in images.boxes or ()]),
    }  # fmt: skip
    seen = {"ids": ids, "valid": valid, "digests": digests, "views": views}
    reasons = _text(["", "", "cannot identify image file “é”", "", ""])

    about = {"dataset": "small", "split": "train", "view": "crop-1"}
    embeddings = identify("embeddings", ["small@train", "net", "crop-1"], 1, {**about, "scales": [1.0, 0.5]})
    whitening = identify("whitening", ["small@train", "net", "crop"], 1, {"dim": OUT, "floor": 1e-5}, [embeddings.key])
    applied = identify("whitened", ["small@train", "net", "crop-1"], 1, about, [embeddings.key, whitening.key])
    student = identify("students", ["small@train", "light"], 1, {"epochs": 2, "student": "light"}, [applied.key])
    score = identify("scores", ["small", "net"], 1, {"card": {"ap": "trapezoid", "title": "é"}}, [embeddings.key])
    return {
        "images": (images_identity(images), listed, {}, {}),
        "embeddings": (embeddings, {**seen, "vectors": vectors, "reasons": reasons}, {"label": "net", "dim": DIM}, {}),
        "whitening": (whitening, fitted, {"n_fit": 4, "n_clamped": 0, "view_kind": "crop"}, {}),
        "whitened": (applied, {**seen, "vectors": whitened}, {"label": "net"}, {}),
        "students": (student, {}, {"label": "light"}, {"model.safetensors": bytes(range(64)), "log.jsonl": b"{}\n"}),
        "scores": (score, {"queries": _text(["ä", "b"]), "average_precision": precision}, {"model": "net"}, {}),
    }


def make(root: Path) -> None:
    """Write and seal every artifact at `root`, row-wise ones in shards of two rows."""
    store = FeatureStore.open(root, write=True)
    for identity, arrays, attributes, blobs in contents().values():
        shapes = {name: a.shape for name, a in arrays.items()}
        writer = store.writer(identity, shapes, attributes=attributes, shard_rows=CUT)
        for shard in writer.missing():
            rows = writer.shard_range(shard)
            part = {n: a[rows.start : rows.stop] for n, a in arrays.items()} if writer.shard_count > 1 else arrays
            writer.write(shard, part, blobs)
        writer.seal()
    shutil.rmtree(root / ".cgd/provenance")  # who made it, and where, concerns nobody
    (root / ".cgd/tmp").rmdir()


def _text(values: Any) -> np.ndarray:
    return np.array(values, dtype=object)


if __name__ == "__main__":
    if STORE.exists():
        sys.exit(f"{STORE} exists: a store of an earlier version is never written again.")
    make(STORE)
