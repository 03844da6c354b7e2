"""Codebooks of cosine product quantisation: spherical k-means for every sub-vector, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from cgd.errors import InputError
from cgd.retrieval.vectors import l2

Blocks = Callable[[], Iterable[np.ndarray]]
"""Gives the same blocks of rows (M, D) whenever it is called."""
Step = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]


def split(vectors: np.ndarray, positions: int) -> np.ndarray:
    """Rows (M, D) as unit sub-vectors (m, M, c), zero where a sub-vector is zero; refuses a D that does not divide."""
    rows, width = vectors.shape
    if width % positions:
        raise InputError(f"vectors of {width} values cannot be cut into {positions} equal parts: set cgd.positions.")
    return np.ascontiguousarray(l2(vectors.reshape(rows, positions, -1)).transpose(1, 0, 2))


def assign_and_sum(parts: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, float]:
    """Sums (m, n, c) of the unit sub-vectors (m, M, c) nearest to each centroid, and the sum of their cosines.

    A sub-vector of zeros belongs to none. Computed in the precision of `centroids`.
    """
    sums = np.zeros_like(centroids)
    total = 0.0
    for position, (part, own) in enumerate(zip(parts.astype(centroids.dtype), centroids, strict=True)):
        cosines = part @ own.T  # (M, n)
        nearest = cosines.argmax(axis=1)
        present = part.any(axis=1)
        np.add.at(sums[position], nearest[present], part[present])
        total += float(cosines[np.arange(len(part)), nearest][present].sum())
    return sums, total


def spherical_kmeans(
    blocks: Blocks, initial: np.ndarray, iterations: int, step: Step = assign_and_sum
) -> tuple[np.ndarray, list[float]]:
    """Centroids (m, n, c) after `iterations` updates from `initial` (m, n, c), and the mean cosine before each.

    Every row is assigned to the centroid of largest cosine; a centroid becomes the direction of its members' sum, and
    keeps its own where it has none (methods.md 2.3). `step` may do a block's work elsewhere, on a GPU say.
    """
    centroids = l2(initial)
    history = []
    for _ in range(iterations):
        sums, total, count = np.zeros_like(centroids), 0.0, 0
        for block in blocks():
            parts = split(block, len(centroids))
            found, cosines = step(parts, centroids)
            sums += found
            total += cosines
            count += int(parts.any(axis=2).sum())
        members = np.linalg.norm(sums, axis=2, keepdims=True) > 0
        centroids = np.where(members, l2(sums), centroids)
        history.append(total / max(count, 1))
    return centroids, history


def draw_initial(rows: np.ndarray, positions: int, anchors: int, generator: np.random.Generator) -> np.ndarray:
    """Sub-vectors of distinct random rows (M, D) that are not zero: (m, n, c); refuses where there are too few."""
    parts = split(rows, positions)
    chosen = []
    for part in parts:
        present = np.flatnonzero(part.any(axis=1))
        if len(present) < anchors:
            raise InputError(
                f"{anchors} anchors need as many images, there are {len(present)}: lower cgd.bits, or use more images."
            )
        chosen.append(part[generator.choice(present, anchors, replace=False)])
    return np.stack(chosen)


def euclidean(rows: np.ndarray, positions: int, bits: int, iterations: int, restarts: int, seed: int) -> np.ndarray:
    """Centroids (m, n, c) of plain product quantisation of `rows` (M, D) by FAISS, as SSP fits them; not normalised."""
    import faiss

    width = rows.shape[1]
    if width % positions:
        raise InputError(f"vectors of {width} values cannot be cut into {positions} equal parts: set cgd.positions.")
    quantiser = faiss.ProductQuantizer(width, positions, bits)
    quantiser.cp.niter, quantiser.cp.nredo, quantiser.cp.seed = iterations, restarts, seed + 1
    quantiser.cp.max_points_per_centroid = max(1, len(rows))
    quantiser.train(np.ascontiguousarray(rows, np.float32))
    found: np.ndarray = faiss.vector_to_array(quantiser.centroids).reshape(positions, 1 << bits, -1)
    return found


def procrustes(cross: np.ndarray) -> np.ndarray:
    """The orthogonal R (D, D) that brings `R v` nearest to `u` in the mean; `cross` is the sum of `u v^T`."""
    left, _, right = np.linalg.svd(cross)
    turned: np.ndarray = left @ right
    return turned
