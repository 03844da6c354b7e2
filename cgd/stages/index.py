"""Approximate indexes over stored descriptors: built in a stream, kept in the store, extended when images are added."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cgd.config import IndexConfig
from cgd.errors import DamageError
from cgd.progress import progress
from cgd.retrieval import approximate
from cgd.retrieval.search import Block
from cgd.store.artifact import Artifact
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity, identify
from cgd.types import Key

VERSION = 1
FILE, ROWS, MARKS = "index.faiss", "rows.npy", "marks.npy"


@dataclass(frozen=True)
class Index:
    """A FAISS index whose position p is row `rows[p]` of the gallery, -1 for an image that is there no more."""

    kind: str
    faiss: Any
    rows: np.ndarray
    config: IndexConfig
    key: Key | None
    bytes_per_vector: float

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) and gallery rows (Q, k) of the nearest images found; -inf and -1 where there are fewer."""
        gone = int((self.rows < 0).sum())
        scores, positions = approximate.search(self.faiss, queries, k + min(gone, k), self.config)
        rows = np.where(positions >= 0, self.rows[positions], -1)
        order = np.argsort(rows < 0, axis=1, kind="stable")[:, :k]  # what is gone comes last
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        missing = ((0, 0), (0, k - rows.shape[1]))
        rows = np.pad(rows, missing, constant_values=-1)
        return np.where(rows < 0, -np.inf, np.pad(scores, missing)), rows


def open_index(
    *,
    store: FeatureStore,
    kind: str,
    descriptors: Sequence[Key],
    gallery: Sequence[Block],
    dim: int,
    config: IndexConfig,
    title: Sequence[str],
    extra: dict[str, Any] | None = None,
) -> Index:
    """The index of `gallery`, whose blocks are those of the stored `descriptors`; built where it is missing.

    One that was built for most of these images is extended by the new ones. `flat` needs no file: the descriptors
    are it. `extra` are settings that also determine the gallery.
    """
    if kind == "flat":
        flat = approximate.ready(approximate.make(kind, dim, 0, config, np.zeros((0, dim), np.float32)), config)
        rows = np.concatenate([_valid_rows(block) for block in gallery])
        approximate.extend(flat, (_vectors(block) for block in _watched(gallery, "flat index")))
        return Index(kind, flat, rows, config, None, 4.0 * dim)
    settings = {"kind": kind, "dim": dim, **config.built_with(kind), **(extra or {})}
    identity = identify("indexes", [*title, kind], VERSION, settings, descriptors)
    if not store.is_sealed(identity.key):
        _build(store, identity, kind, gallery, dim, config)
    artifact = store.get(identity.key)
    data = artifact.blob(FILE)
    found, rows = approximate.from_bytes(data), _numbers(artifact, ROWS)
    if (found.d, found.ntotal) != (dim, len(rows)):
        raise DamageError(
            f"{identity.key}/{FILE} holds {found.ntotal} vectors of {found.d} numbers, its gallery {len(rows)} of "
            f"{dim}: it is the index of another gallery; take the artifact out of the store and repeat the command."
        )
    return Index(kind, approximate.ready(found, config), rows, config, identity.key, len(data) / max(1, len(rows)))


def _build(
    store: FeatureStore, identity: Identity, kind: str, gallery: Sequence[Block], dim: int, config: IndexConfig
) -> None:
    started = time.perf_counter()
    rows = np.concatenate([_valid_rows(block) for block in gallery])
    marks = np.concatenate([_marks(_vectors(block)) for block in _watched(gallery, "comparing")])
    old = _extensible(store, identity, marks)
    if old is None:
        wanted = approximate.training_rows(kind, len(rows), config)
        training = _sample(gallery, wanted, config.seed, dim)
        index = approximate.make(kind, dim, len(rows), config, training)
        positions, position_marks, added, trained = rows[:0], marks[:0], np.arange(len(rows)), len(rows)
    else:
        artifact, matched = old
        index = approximate.from_bytes(artifact.blob(FILE))
        positions = np.where(matched >= 0, rows[matched], -1)
        position_marks, trained = _numbers(artifact, MARKS), artifact.attributes["trained_on"]
        added = np.setdiff1d(np.arange(len(rows)), matched)
    new = np.zeros(gallery[-1].rows.stop, bool)
    new[rows[added]] = True
    wanted_blocks = [b for b in gallery if new[b.rows.start : b.rows.stop].any()]
    approximate.extend(index, (_vectors(b, new) for b in _watched(wanted_blocks, f"index {identity.key.label}")))
    all_rows, all_marks = np.concatenate([positions, rows[added]]), np.concatenate([position_marks, marks[added]])
    about = {
        "trained_on": trained,
        "vectors": len(all_rows),
        "extends": str(old[0].key) if old else None,
        "added": len(added),
        "gone": int((positions < 0).sum()),
    }
    blobs = {FILE: approximate.to_bytes(index), ROWS: _npy(all_rows), MARKS: _npy(all_marks)}
    store.write_whole(identity, {}, attributes=about, blobs=blobs, notes={"seconds": time.perf_counter() - started})


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def _numbers(artifact: Artifact, name: str) -> np.ndarray:
    values: np.ndarray = np.load(io.BytesIO(artifact.blob(name)), allow_pickle=False)
    return values


def _extensible(store: FeatureStore, identity: Identity, marks: np.ndarray) -> tuple[Artifact, np.ndarray] | None:
    """The index with most of these vectors that is worth extending, and which of `marks` each position has, or -1.

    Cells and codes fit what they were trained on: at twice as many images, or a quarter of them gone, it is better
    to build anew.
    """
    best: tuple[Artifact, np.ndarray] | None = None
    for entry in store.entries("indexes"):
        if not entry.sealed or entry.settings != identity.settings:
            continue
        artifact = store.get(entry.key)
        matched = _match(_numbers(artifact, MARKS), marks)
        kept = int((matched >= 0).sum())
        if kept < 0.75 * len(matched) or len(marks) > 2 * artifact.attributes["trained_on"]:
            continue
        if best is None or kept > int((best[1] >= 0).sum()):
            best = artifact, matched
    return best


def _match(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each of `old` the position of an equal one in `new`, each used once, or -1."""
    waiting: dict[int, list[int]] = {}
    for position in reversed(range(len(new))):
        waiting.setdefault(int(new[position]), []).append(position)
    return np.array([places.pop() if (places := waiting.get(int(m))) else -1 for m in old], np.int64)


def _marks(vectors: np.ndarray) -> np.ndarray:
    """64 bits of a digest of each vector (M, dim)."""
    rows = np.ascontiguousarray(vectors)
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, np.int64)


def _sample(gallery: Sequence[Block], count: int, seed: int, dim: int) -> np.ndarray:
    """`count` valid vectors drawn from all blocks."""
    if not count:
        return np.zeros((0, dim), np.float32)
    rows = np.concatenate([_valid_rows(block) for block in gallery])
    chosen = np.zeros(gallery[-1].rows.stop, bool)
    chosen[np.random.default_rng(seed).choice(rows, count, replace=False)] = True
    return np.concatenate([_vectors(block, chosen) for block in _watched(gallery, "training vectors")]).astype(
        np.float32
    )


def _valid_rows(block: Block) -> np.ndarray:
    rows = np.arange(block.rows.start, block.rows.stop)
    return rows if block.valid is None else rows[block.valid]


def _vectors(block: Block, chosen: np.ndarray | None = None) -> np.ndarray:
    """The valid vectors of a block, of those rows of the gallery that are `chosen`."""
    kept = np.ones(len(block.rows), bool) if block.valid is None else block.valid
    if chosen is not None:
        kept = kept & chosen[block.rows.start : block.rows.stop]
    vectors = block.read()
    return vectors if kept.all() else vectors[kept]


def _watched(blocks: Sequence[Block], what: str) -> Iterator[Block]:
    with progress(sum(len(b.rows) for b in blocks), what) as bar:
        for block in blocks:
            yield block
            bar.update(len(block.rows))
