"""Pictures to the nearest images of a gallery: queries embedded on the spot, searched in stored descriptors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import ExtractConfig, IndexConfig
from cgd.data.views import CROPPED, FIXED
from cgd.errors import InputError
from cgd.retrieval.search import Scorer, nearest
from cgd.retrieval.vectors import combine_scales, l2
from cgd.stages.descriptors import Gallery
from cgd.stages.index import Index, open_index
from cgd.store.feature_store import FeatureStore
from cgd.types import ImageList

if TYPE_CHECKING:
    from cgd.models.devices import Compute
    from cgd.models.encoder import EncoderSource

COMPARED = (10, 256)  # nearest images, and queries, by which an index is compared with exact search


@dataclass(frozen=True)
class Found:
    """Nearest images of Q queries: `scores` (Q, k), `rows` (Q, k) of the gallery, -1 where there are fewer."""

    scores: np.ndarray
    rows: np.ndarray
    seconds: float


def embed_queries(source: EncoderSource, images: ImageList, config: ExtractConfig, compute: Compute) -> np.ndarray:
    """Unit descriptors (Q, D) float32 of image files, cut to their boxes where they have some; nothing is stored."""
    import torch

    from cgd.stages.embed import Look, Meter, embed_rows

    encoder = source.build().to(compute.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    if images.boxes and encoder.input_spec.query_crop == "none":
        raise InputError(f"{source.label} ignores boxes (query_crop=none): cut the picture, and search for it whole.")
    look = Look(encoder, CROPPED if images.boxes else FIXED)
    (block,) = embed_rows(range(len(images)), [look], images, config, compute, Meter())
    if not block["valid"].all():
        row = int(np.argmin(block["valid"]))
        raise InputError(f"the image {images.paths[row]} cannot be decoded ({block['reasons'][row]}).")
    vectors = block["vectors"].astype(np.float64)
    return l2(combine_scales(vectors, encoder.input_spec.combine)).astype(np.float32)


def search(
    gallery: Gallery, queries: np.ndarray, k: int, scorer: Callable[[np.ndarray], Scorer], index: Index | None = None
) -> Found:
    """The `k` nearest images to each of `queries` (Q, D): exact, or those that an `index` finds."""
    started = time.perf_counter()
    k = min(k, gallery.size)
    scores, rows = nearest(scorer(queries), gallery.blocks, k) if index is None else index.search(queries, k)
    return Found(scores, rows, time.perf_counter() - started)


def index_of(store: FeatureStore, gallery: Gallery, title: Sequence[str], kind: str, config: IndexConfig) -> Index:
    """The index of a gallery of one model, built or extended where it is not there yet."""
    (vectors,) = gallery.sets[0]
    return open_index(
        store=store,
        kind=kind,
        descriptors=gallery.keys,
        gallery=gallery.blocks,
        dim=vectors.dim,
        config=config,
        title=title,
    )


@dataclass(frozen=True)
class Comparison:
    """How an index compares with exact search: share of the `k` nearest it finds, and its speed."""

    k: int
    queries: int
    recall: float
    queries_per_second: float


def compare_with_exact(
    gallery: Gallery, index: Index, scorer: Callable[[np.ndarray], Scorer], seed: int = 0
) -> Comparison:
    """Search for images drawn from the gallery; each finds itself, which does not count."""
    k, most = COMPARED
    (vectors,) = gallery.sets[0]
    usable = np.flatnonzero(vectors.valid)
    chosen = np.sort(np.random.default_rng(seed).choice(usable, min(most, len(usable)), replace=False))
    queries = _gather(gallery, chosen).astype(np.float32)
    exact = search(gallery, queries, k + 1, scorer)
    found = search(gallery, queries, k + 1, scorer, index)
    shares = []
    for own, right, seen in zip(chosen, exact.rows, found.rows, strict=True):
        right = right[(right != own) & (right >= 0)][:k]
        if len(right):
            shares.append(np.isin(right, seen).mean())
    recall = float(np.mean(shares)) if shares else float("nan")
    return Comparison(k, len(chosen), recall, len(chosen) / found.seconds)


def _gather(gallery: Gallery, rows: np.ndarray) -> np.ndarray:
    parts = []
    for block in gallery.blocks:
        here = rows[(rows >= block.rows.start) & (rows < block.rows.stop)]
        if len(here):
            parts.append(block.read()[here - block.rows.start])
    return np.concatenate(parts)
