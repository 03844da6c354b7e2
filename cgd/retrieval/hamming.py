"""Binary codes: packed into bytes, ranked by Hamming distance with FAISS, and scored however ties fall."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

COUNTERS = 1 << 28  # bytes that FAISS may take to sort by distance


def pack(vectors: np.ndarray) -> np.ndarray:
    """Codes (N, ceil(D / 8)) uint8 of `vectors` (N, D): a bit is 1 where a value is above 0; the last bits are 0.

    The published sign of an exact 0 is 0, which is no bit (methods.md 8.6): here it counts as below.
    """
    return np.packbits(vectors > 0, axis=1)


def ranked(queries: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For one query after the other the distances (G,) int64 to all of `gallery`, ascending, and its rows (G,) int64.

    Both are packed codes; equal distances are in the order of the rows.
    """
    count, bits = len(gallery), 8 * gallery.shape[1]
    index: Any = faiss.IndexBinaryFlat(bits)
    index.use_heap = False  # counts distances instead, which is faster where the whole gallery is ranked
    index.add(np.ascontiguousarray(gallery))
    at_once = max(1, COUNTERS // ((bits + 1) * max(count, 1) * 8))
    for start in range(0, len(queries), at_once):
        found, rows = index.search(np.ascontiguousarray(queries[start : start + at_once]), count)
        order = found.astype(np.int64) * count + rows
        order.sort(axis=1)  # FAISS promises nothing of ties
        yield from zip(*np.divmod(order, count), strict=True)


def ranks_of(
    distances: np.ndarray, rows: np.ndarray, relevant: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted 0-based ranks of one query's positives in a list as `ranked` gives it: three ways to order what ties.

    As it is; every positive before all other images at its distance; after them. `relevant` and `kept` (G,) bool are
    by row; what is not kept is taken out.
    """
    left = kept[rows]
    hits, distances = relevant[rows][left], distances[left]
    best, worst = np.sort(2 * distances + ~hits), np.sort(2 * distances + hits)
    return np.flatnonzero(hits), np.flatnonzero(best % 2 == 0), np.flatnonzero(worst % 2 == 1)
