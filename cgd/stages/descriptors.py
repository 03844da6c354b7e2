"""Unit descriptors from stored embeddings, and the scores of queries with them: arrays only, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cgd import registry
from cgd.methods.cgd import fuse_vectors
from cgd.retrieval.vectors import combine_scales, l2
from cgd.retrieval.whitening import whiten
from cgd.stages.fuse import read_codebook
from cgd.stages.whiten import read_whitening
from cgd.store.feature_store import FeatureStore
from cgd.types import Key, Whitening

RANDOM_BLOCK = 65_536


@dataclass(frozen=True)
class Fused:
    """Several teachers' embeddings of the same images, each through its whitening, as one vector per image (CGD)."""

    teachers: tuple[Key, ...]
    whitenings: tuple[Key, ...]
    fusion: str
    codebook: Key


@dataclass(frozen=True)
class Member:
    """One encoder's embeddings of a benchmark, raw or through a whitening; or a gallery of fused teachers."""

    label: str
    gallery: Key | Fused
    queries: Key
    whitening: Key | None = None
    distractors: tuple[Key | Fused, ...] = ()


def keys_of(images: Key | Fused) -> tuple[Key, ...]:
    """The artifacts that vectors of some images come from."""
    return (images,) if isinstance(images, Key) else (*images.teachers, *images.whitenings, images.codebook)


@dataclass(frozen=True)
class RandomDistractors:
    """`count` unit vectors from a seed: for speed and tests, never for a published number."""

    count: int
    seed: int = 0


def descriptors(
    store: FeatureStore, keys: Sequence[Key | Fused], whitenings: Sequence[Whitening | None]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Unit descriptors (N, D_k) float32 of each member, and (N,) which images all of them could read."""
    found, valid = [], []
    for key, whitening in zip(keys, whitenings, strict=True):
        blocks = list(_blocks(store, key, whitening))
        found.append(np.concatenate([v for v, _ in blocks]))
        valid.append(np.concatenate([ok for _, ok in blocks]))
    return found, np.logical_and.reduce(valid)


def _blocks(
    store: FeatureStore, key: Key | Fused, whitening: Whitening | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shard by shard: unit descriptors (M, D) float32, zero where invalid, and (M,) valid."""
    if isinstance(key, Fused):
        yield from _fused_blocks(store, key)
        return
    artifact = store.get(key)
    combine = artifact.attributes["input"]["combine"]
    for _, (vectors, valid) in artifact.blocks("vectors", "valid"):
        known = np.where(valid[:, None, None], vectors, 0).astype(np.float64)
        joined = combine_scales(known, combine) if whitening is None else whiten(known, whitening, combine)
        yield (l2(joined) * valid[:, None]).astype(np.float32), valid


def _fused_blocks(store: FeatureStore, fused: Fused) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `_blocks`: every teacher whitened as in training, fused, l2-normalised."""
    artifacts = [store.get(key) for key in fused.teachers]
    whitenings = [read_whitening(store, key) for key in fused.whitenings]
    fusion, codebook = registry.find("cgd.fusion", fused.fusion), read_codebook(store, fused.codebook)
    for shard in range(artifacts[0].shard_count):
        rows = np.array(artifacts[0].shard_range(shard))
        valid = np.logical_and.reduce([a.gather("valid", rows) for a in artifacts])
        vectors = [
            whiten(np.where(valid[:, None, None], a.gather("vectors", rows), 0), w, a.attributes["input"]["combine"])
            for a, w in zip(artifacts, whitenings, strict=True)
        ]
        joined, _, _ = fuse_vectors(vectors, codebook, fusion, np.random.default_rng(0))
        yield (l2(joined) * valid[:, None]).astype(np.float32), valid


def similarity(queries: Sequence[np.ndarray], gallery: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over members of the cosines, (Q, G) float32."""
    total: np.ndarray = queries[0] @ gallery[0].T
    for q, g in zip(queries[1:], gallery[1:], strict=True):
        total = total + q @ g.T
    return total / len(queries)


@dataclass
class DistractorCount:
    """How many were searched and how many could not be read."""

    valid: int = 0
    invalid: int = 0


def distractor_scores(
    store: FeatureStore,
    queries: Sequence[np.ndarray],
    members: Sequence[Member],
    whitenings: Sequence[Whitening | None],
    random: RandomDistractors | None,
    counts: DistractorCount,
) -> Iterator[np.ndarray]:
    """Blocks (Q, M) of the queries' scores with every distractor set; unreadable distractors are left out."""
    for number in range(len(members[0].distractors)):
        streams = [_blocks(store, m.distractors[number], w) for m, w in zip(members, whitenings, strict=True)]
        for parts in zip(*streams, strict=True):
            valid = np.logical_and.reduce([ok for _, ok in parts])
            counts.valid += int(valid.sum())
            counts.invalid += int((~valid).sum())
            yield similarity(queries, [v[valid] for v, _ in parts])
    if random is not None:
        generator = np.random.default_rng(random.seed)
        for start in range(0, random.count, RANDOM_BLOCK):
            rows = min(RANDOM_BLOCK, random.count - start)
            counts.valid += rows
            yield similarity(queries, [l2(generator.standard_normal((rows, q.shape[1]), np.float32)) for q in queries])
