"""Small `scores` artifacts written as stage evaluate writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify
from cgd.types import Key

RANDOM = {"name": "random:50", "images": 50, "note": "synthetic unit vectors: not a published protocol"}
MILLION = {"name": "r1m", "images": 1_001_001}


def card(model: str, **changes: Any) -> dict[str, Any]:
    """A card of today; a change to `...` leaves a field out, as older cards do."""
    fields = {
        "members": [model],
        "query_crop": True,
        "scales": [1.0, 0.5],
        "image_size": 1024,
        "resize": "longest",
        "filter": "lanczos",
        "combine": "mean",
        "precision": "fp32",
        "dim": 512,
        "similarity": "cosine",
        "whitening": None,
        "relevance": "ground truth",
        "ap": "trapezoid",
        "ties": "score, then index",
        "descriptors": "float16",
        "index": "exact",
        "distractors": [],
        "artifacts": [],
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def write_score(
    store: FeatureStore,
    model: str,
    values: Mapping[str, Sequence[float]],
    *,
    benchmark: str = "lm",
    truth: str = "aaaaaaaa",
    queries: Sequence[str] | None = None,
    inputs: Sequence[Key] = (),
    **changes: Any,
) -> Key:
    """A score with the average precisions (fractions; NaN: no positive) of each protocol; `changes` are the card's."""
    about = card(model, **changes)
    precisions = np.array([list(v) for v in values.values()], np.float64)
    ids = queries if queries is not None else [f"q{n}" for n in range(precisions.shape[1])]
    protocols = {}
    for name, each in zip(values, precisions, strict=True):
        scored = each[~np.isnan(each)]
        protocols[name] = {"mAP": 100 * float(scored.mean()) if len(scored) else None, "queries": len(scored)}
    result = {
        "benchmark": benchmark,
        "model": model,
        "mode": about.get("mode", "symmetric"),
        "queries": len(ids),
        "gallery": 1000,
        "distractors": sum(d["images"] for d in about.get("distractors", [])),
        "invalid_distractors": 0,
        "invalid_gallery": 0,
        "card": about,
        "protocols": protocols,
    }
    identity = identify("scores", [benchmark, model], 2, {"card": about, "truth": truth}, inputs)
    arrays = {"queries": np.array(ids, dtype=object), "average_precision": precisions}
    return store.write_whole(identity, arrays, attributes={"model": model, "result": result})


def write_embeddings(store: FeatureStore, ids: str, weights: str) -> Key:
    """Embeddings of two images; `ids` stands for the digest of their names, `weights` for that of the network's."""
    settings = {"dataset": "lm", "split": None, "view": "fixed", "ids": ids, "encoder": {"weights": weights}}
    arrays = {
        "ids": np.array(["a", "b"], dtype=object),
        "vectors": np.zeros((2, 1, 2), np.float32),
        "valid": np.ones(2, bool),
        "digests": np.zeros((2, 32), np.uint8),
        "reasons": np.array(["", ""], dtype=object),
    }
    return store.write_whole(identify("embeddings", ["lm", "net"], 1, settings), arrays)
