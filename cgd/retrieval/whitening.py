"""Whitening fitted in one streaming pass and applied block by block (methods.md 1.3)."""

from __future__ import annotations

import numpy as np

from cgd.errors import InputError
from cgd.retrieval.vectors import combine_scales, l2
from cgd.types import Whitening


class Moments:
    """Count, mean and second moment of rows in float64, one block at a time.

    Memory is D x D and one block, whatever the number of rows. Sums are taken about the first block's mean, so
    that a large mean does not cancel the variance away.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift: np.ndarray | None = None
        self._first: np.ndarray
        self._second: np.ndarray

    def add(self, rows: np.ndarray) -> None:
        """Count the rows of a block (M, D); it is not changed."""
        if not len(rows):
            return
        if self._shift is None:
            self._shift = rows.mean(axis=0, dtype=np.float64)
            self._first = np.zeros(rows.shape[1])
            self._second = np.zeros((rows.shape[1], rows.shape[1]))
        centred = rows - self._shift  # float64
        self.count += len(rows)
        self._first += centred.sum(axis=0)
        self._second += centred.T @ centred

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and covariance (D, D), divided by the number of rows."""
        assert self._shift is not None
        offset = self._first / self.count
        return self._shift + offset, self._second / self.count - np.outer(offset, offset)


def fit_pca(moments: Moments, dim: int, floor: float, view_kind: str) -> Whitening:
    """PCA whitening to `dim` dimensions from the moments of l2-normalised rows.

    Eigenvalues below `floor` times the largest are raised to it. Each row of the projection has its
    largest-magnitude entry positive, so that equal data give equal signs. Raises `InputError` where there are
    fewer rows or columns than `dim`.
    """
    width = 0 if not moments.count else len(moments._first)
    if dim > width or dim > moments.count:
        raise InputError(
            f"cannot whiten {moments.count} rows of {width} values to {dim} dimensions: "
            f"set whiten.dim to at most {min(width, moments.count)} (--dim)."
        )
    mean, covariance = moments.mean_and_covariance()
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    least = floor * values[0]
    if not least > 0:
        raise InputError(f"cannot whiten {moments.count} rows that are all alike.")
    clamped = int((values < least).sum())
    raised = np.maximum(values, least)
    projection = (vectors[:, :dim] / np.sqrt(raised[:dim])).T
    largest = np.abs(projection).argmax(axis=1)
    projection = projection * np.sign(projection[np.arange(dim), largest])[:, None]
    return Whitening(mean, np.ascontiguousarray(projection), raised.copy(), moments.count, clamped, view_kind)


def energy_kept(whitening: Whitening) -> float:
    """Share of the variance in the dimensions kept."""
    return float(whitening.eigenvalues[: len(whitening.projection)].sum() / whitening.eigenvalues.sum())


def whiten(vectors: np.ndarray, whitening: Whitening, combine: str = "mean") -> np.ndarray:
    """Raw descriptors (M, S, D) of one view to whitened ones (M, D') float64.

    Each scale is l2-normalised and projected. One scale stays un-normalised, because some fusions weight by
    magnitude; several are l2-normalised and combined, since combining and whitening do not commute.
    """
    projected = (l2(vectors.astype(np.float64)) - whitening.mean) @ whitening.projection.T  # (M, S, D')
    return projected[:, 0] if projected.shape[1] == 1 else combine_scales(projected, combine)
