"""Pearson correlation of vectors, which CGD's fusions weigh teachers by (methods.md 2.2)."""

from __future__ import annotations

import numpy as np


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows (B, D) and (B, D) to (B,): correlation over the D components; 0 where a row is constant."""
    x, y = (v - v.mean(axis=-1, keepdims=True) for v in (a, b))
    scale = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    product = (x * y).sum(axis=-1)
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)


def correlations(vectors: np.ndarray) -> np.ndarray:
    """(K, B, D) to (K, K, B): |correlation| of every pair of teachers, 0 between a teacher and itself."""
    count = len(vectors)
    found = np.zeros((count, count, vectors.shape[1]), vectors.dtype)
    for i in range(count):
        for j in range(i):
            found[i, j] = found[j, i] = np.abs(correlation(vectors[i], vectors[j]))
    return found
