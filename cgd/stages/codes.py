"""Binary codes of stored embeddings, kept as an artifact of their own, and how images are ranked by them; no torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cgd.progress import progress
from cgd.retrieval.hamming import pack, ranked, ranks_of
from cgd.retrieval.metrics import average_precision_at, precision_and_recall_at
from cgd.stages.descriptors import Fused, computed, identity_of, keys_of
from cgd.store.feature_store import FeatureStore
from cgd.types import Key

VERSION = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Codes:
    """Packed codes (N, bytes) of some images, and which of them have one, `valid` (N,)."""

    bits: int
    packed: np.ndarray
    valid: np.ndarray


def encode(store: FeatureStore, images: Key | Fused, whitening: Key | None) -> Key:
    """The stored signs of the vectors of some images, a bit for each dimension; made where they are missing."""
    identity = identity_of("codes", VERSION, store, images, whitening)
    if store.is_sealed(identity.key):
        return identity.key
    vectors, parts, zeros = computed(store, images, whitening), [], 0
    for rows in vectors.parts:
        values, valid = vectors.read(rows), vectors.valid[rows.start : rows.stop]
        parts.append(pack(values))
        zeros += int((values[valid] == 0).sum())
    if zeros:
        log.warning("%s: %d outputs are exactly 0, which has no sign: they count as below 0", identity.key, zeros)
    ids = store.get(keys_of(images)[0]).read("ids")
    arrays = {"ids": ids, "codes": np.concatenate(parts), "valid": vectors.valid}
    return store.write_whole(identity, arrays, attributes={"bits": vectors.dim, "zeros": zeros})


def read_codes(store: FeatureStore, key: Key) -> Codes:
    """Codes as `encode` kept them."""
    artifact = store.get(key)
    return Codes(artifact.attributes["bits"], artifact.read("codes"), artifact.read("valid"))


@dataclass(frozen=True)
class Scored:
    """Fractions: `average_precision` (Q, 3) as ties are, at best and at worst; mean `precision` and `recall` (K,)."""

    average_precision: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def score_codes(
    queries: np.ndarray,
    gallery: Sequence[Codes],
    wanted: Mapping[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
    top: int | None,
    depths: Sequence[int],
    what: str = "",
) -> dict[str, Scored]:
    """Every query ranked by Hamming distance among images that have a code, scored by protocol (methods.md 8.6).

    `queries` (Q, bytes) are packed; `gallery` are image sets one after the other. `wanted` are the positives and
    ignored images of each query, as rows of the first set. AP is among the first `top` or all, precision and recall
    among the first K `depths`.
    """
    valid = np.concatenate([codes.valid for codes in gallery])
    packed = np.concatenate([codes.packed for codes in gallery])[valid]
    precisions = {protocol: np.zeros((len(queries), 3)) for protocol in wanted}
    found = {protocol: np.zeros((2, len(depths), len(queries))) for protocol in wanted}
    with progress(len(queries), what) as bar:
        for query, (distances, rows) in enumerate(ranked(queries, packed)):
            for protocol, (positives, ignored) in wanted.items():
                relevant, kept = np.zeros(len(valid), bool), np.ones(len(valid), bool)
                relevant[positives[query]], kept[ignored[query]] = True, False
                ranks = ranks_of(distances, rows, relevant[valid], kept[valid])
                precisions[protocol][query] = [average_precision_at(r, top) for r in ranks]
                for place, k in enumerate(depths):
                    found[protocol][:, place, query] = precision_and_recall_at([ranks[0]], [positives[query]], k)
            bar.update(1)
    return {p: Scored(precisions[p], *found[p].mean(axis=2)) for p in wanted}
