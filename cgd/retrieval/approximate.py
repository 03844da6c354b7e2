"""Approximate search with FAISS: indexes by inner product, built from blocks, searched on a GPU where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np

from cgd.config import IndexConfig
from cgd.errors import InputError

TRAINING_PER_LIST = 64  # k-means wants at least 39 points for each of its centres
CODE_BITS = 8


def lists_for(rows: int, config: IndexConfig) -> int:
    """Cells of an inverted file over `rows` vectors: as told, or the power of two nearest to their square root."""
    wanted = config.lists or 1 << round(np.log2(max(rows, 1)) / 2)
    return max(1, min(wanted, rows // 39))


def training_rows(kind: str, rows: int, config: IndexConfig) -> int:
    """How many vectors `make` wants to be trained on."""
    if kind != "ivf-pq":
        return 0
    return min(rows, TRAINING_PER_LIST * max(lists_for(rows, config), 1 << CODE_BITS))


def make(kind: str, dim: int, rows: int, config: IndexConfig, training: np.ndarray) -> Any:
    """An empty FAISS index for about `rows` vectors of `dim`, trained on `training` (T, dim) where its kind needs it.

    HNSW keeps vectors in half precision, as the descriptors it is built from; `flat` keeps single.
    """
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        half: Any = faiss.ScalarQuantizer.QT_fp16
        index: Any = faiss.IndexHNSWSQ(dim, half, config.links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = config.build_breadth
        index.train(np.zeros((1, dim), np.float32))  # nothing to learn in half precision, but FAISS insists
        return index
    if dim % config.code_bytes:
        raise InputError(
            f"index.code_bytes is {config.code_bytes}, which does not divide the {dim} dimensions: choose a divisor."
        )
    if rows < 1 << CODE_BITS:
        raise InputError(f"ivf-pq learns {1 << CODE_BITS} codes, but the gallery has {rows} images: use exact search.")
    rotation = {"random": f"RR{dim}", "opq": f"OPQ{config.code_bytes}"}[config.rotation]
    layout = f"{rotation},IVF{lists_for(rows, config)},PQ{config.code_bytes}"
    index = faiss.index_factory(dim, layout, faiss.METRIC_INNER_PRODUCT)
    cells: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
    cells.do_polysemous_training = False  # minutes of reordering codes for a search by Hamming distance, unused here
    cells.cp.seed = cells.pq.cp.seed = 1234 + config.seed
    cells.cp.min_points_per_centroid = cells.pq.cp.min_points_per_centroid = 1  # small galleries are no news
    cells.pq.cp.max_points_per_centroid = TRAINING_PER_LIST
    on_device = on_gpus(index)
    on_device.train(training)
    return faiss.index_gpu_to_cpu(on_device) if on_device is not index else index


def extend(index: Any, blocks: Iterable[np.ndarray]) -> None:
    """Add the vectors (M, dim) of each block, in order."""
    for vectors in blocks:
        index.add(np.ascontiguousarray(vectors, np.float32))


def to_bytes(index: Any) -> bytes:
    return bytes(faiss.serialize_index(index).data)


def from_bytes(data: bytes) -> Any:
    return faiss.deserialize_index(np.frombuffer(data, np.uint8))


def ready(index: Any, config: IndexConfig) -> Any:
    """The index set to be searched, on every GPU where there is one."""
    with contextlib.suppress(RuntimeError):  # FAISS's answer where there are no cells
        faiss.extract_index_ivf(index).nprobe = config.probes
    return on_gpus(index)


def search(index: Any, queries: np.ndarray, k: int, config: IndexConfig) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q, k) float32 and positions (Q, k) int64 of the nearest vectors found; -1 where there are fewer.

    Scores of ivf-pq are those of its codes. Equal scores come in the order of their positions.
    """
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = max(config.breadth, k)
    scores, positions = index.search(np.ascontiguousarray(queries, np.float32), min(k, max(1, index.ntotal)))
    order = np.lexsort((positions, -scores), axis=-1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)


def on_gpus(index: Any) -> Any:
    """The index on every GPU where there is one and its kind can be there; else itself."""
    if faiss.get_num_gpus() == 0 or hasattr(index, "hnsw"):
        return index
    return faiss.index_cpu_to_all_gpus(index)
