"""How fast image files are read here, a store is written and read, and rows are summed up; without torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cgd.data.images import image_bytes
from cgd.retrieval.vectors import l2
from cgd.retrieval.whitening import Moments
from cgd.store import layout
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify
from cgd.types import ImageList, Key

SHARDS, ROWS = 4, layout.INNER_ROWS
SUMMED = 1.0  # seconds of adding rows up
READ = 256  # image files, at most


@dataclass(frozen=True)
class StoreRates:
    """A second's bytes read and checked, bytes and files written, operations in double precision."""

    fetch: float
    write: float
    files: float
    flops: float


def drawn_photographs(folder: Path, count: int, size: tuple[int, int]) -> ImageList:
    """JPEG files of `size` (width, height) that are as smooth as a picture, in `folder`."""
    draw = np.random.default_rng(0)
    names = tuple(f"{number:03d}.jpg" for number in range(count))
    for name in names:
        small = Image.fromarray(draw.integers(0, 255, (24, 32, 3), np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / name, quality=90)
    return ImageList("drawn", None, names, names, folder)


def measure_reading(images: ImageList) -> tuple[float, float]:
    """Bytes of an image's file on average, and bytes a second, of some images spread over the list."""
    rows = np.unique(np.linspace(0, len(images) - 1, READ).astype(int)).tolist()
    started = time.perf_counter()
    size = sum(len(image_bytes(images.root, images.paths[row])) for row in rows)
    return size / len(rows), size / max(time.perf_counter() - started, 1e-9)


def measure_store(folder: str, dim: int) -> StoreRates:
    """Write and read artifacts of vectors of `dim` values in an empty store at `folder`; the caller removes it."""
    store = FeatureStore.open(folder, write=True)
    _written(store, "warm-up", 1)
    _, small = _written(store, "small", 1)
    key, large = _written(store, "large", dim)
    files, size = SHARDS * 6, SHARDS * ROWS * dim * 4
    artifact = store.get(key)
    started = time.perf_counter()
    for shard in range(SHARDS):
        vectors = artifact.read_shard("vectors", shard)
    fetch = time.perf_counter() - started
    return StoreRates(size / fetch, size / max(large - small, large / 100), files / small, _summed(vectors[:, 0]))


def _written(store: FeatureStore, name: str, dim: int) -> tuple[Key, float]:
    """An artifact of a few shards of random vectors, and the seconds that it took."""
    rows = SHARDS * ROWS
    draw = np.random.default_rng(0)
    arrays = {
        "ids": np.array([f"{n:016d}" for n in range(rows)], object),
        "vectors": draw.standard_normal((rows, 1, dim), np.float32),
        "valid": np.ones(rows, bool),
        "digests": np.zeros((rows, 32), np.uint8),
        "reasons": np.full(rows, "", object),
    }
    shapes = {name: a.shape for name, a in arrays.items()}
    started = time.perf_counter()
    writer = store.writer(identify("embeddings", ["plan", name], 1, {}), shapes, shard_rows=ROWS)
    for shard in range(SHARDS):
        part = writer.shard_range(shard)
        writer.write(shard, {name: a[part.start : part.stop] for name, a in arrays.items()})
    writer.seal()
    return writer.key, time.perf_counter() - started


def _summed(vectors: np.ndarray) -> float:
    """Operations a second of `Moments`, which whitening is fitted with, on a block of `vectors` (M, D)."""
    moments, taken, blocks = Moments(), 0.0, 0
    moments.add(l2(vectors.astype(np.float64)))
    while taken < SUMMED:
        started = time.perf_counter()
        moments.add(l2(vectors.astype(np.float64)))
        taken += time.perf_counter() - started
        blocks += 1
    return 2 * blocks * vectors.shape[0] * vectors.shape[1] ** 2 / taken
