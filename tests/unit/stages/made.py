"""Embeddings and benchmarks made of given vectors, as an extraction leaves them."""

from __future__ import annotations

import numpy as np

from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify, ids_digest
from cgd.types import Benchmark, GroundTruth, ImageList, Key

SPEC = {"combine": "mean", "scales": [1.0], "size": 64, "resize": "longest", "filter": "bilinear"}


def image_list(name: str, split: str | None, count: int, labels: tuple[str, ...] | None = None) -> ImageList:
    ids = tuple(f"{split or name}-{n:05d}" for n in range(count))
    return ImageList(name, split, ids, ids, labels=labels)


def embeddings(
    store: FeatureStore,
    images: ImageList,
    vectors: np.ndarray,
    valid: np.ndarray | None = None,
    encoder: str = "net",
    shard_rows: int | None = None,
) -> Key:
    """An `embeddings` artifact of `vectors` (N, S, D) or (N, D); NaN where not valid."""
    vectors = vectors.astype(np.float32).reshape(len(images), -1, vectors.shape[-1])
    known = np.ones(len(images), bool) if valid is None else valid
    settings = {"dataset": images.name, "split": images.split, "ids": ids_digest(images), "view": "fixed",
                "encoder": {"name": encoder}, "precision": "fp32"}  # fmt: skip
    arrays = {
        "ids": np.array(images.ids, object),
        "vectors": np.where(known[:, None, None], vectors, np.nan),
        "valid": known,
        "digests": np.zeros((len(images), 32), np.uint8),
        "reasons": np.array([""] * len(images), object),
    }
    about = {"label": encoder, "dim": vectors.shape[-1], "input": SPEC}
    identity = identify("embeddings", [images.title, encoder, "fixed"], 1, settings)
    writer = store.writer(identity, {n: a.shape for n, a in arrays.items()}, attributes=about, shard_rows=shard_rows)
    for shard in writer.missing():
        rows = writer.shard_range(shard)
        writer.write(shard, {n: a[rows.start : rows.stop] for n, a in arrays.items()})
    writer.seal()
    return identity.key


def benchmark(name: str, gallery: int, truth: GroundTruth) -> Benchmark:
    return Benchmark(name, image_list(name, "gallery", gallery), image_list(name, "query", len(truth.easy)), truth)
