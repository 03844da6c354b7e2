"""Whitening and its relatives: fitted in one streaming pass, applied block by block, one interface (methods.md 1.3)."""

from __future__ import annotations

import numpy as np

from cgd.errors import InputError
from cgd.retrieval.vectors import combine_scales, l2
from cgd.types import Whitening


class Moments:
    """Count, mean and second moment of rows in float64, one block at a time.

    Memory is D x D and one block, whatever the number of rows. Sums are taken about `shift` (D,), or the first block's
    mean, so that a large mean does not cancel the variance away.
    """

    def __init__(self, shift: np.ndarray | None = None) -> None:
        self.count = 0
        self.shift: np.ndarray | None = None
        self._first: np.ndarray
        self._second: np.ndarray
        if shift is not None:
            self._begin(shift)

    def _begin(self, shift: np.ndarray) -> None:
        self.shift = shift
        self._first = np.zeros(len(shift))
        self._second = np.zeros((len(shift), len(shift)))

    def add(self, rows: np.ndarray) -> None:
        """Count the rows of a block (M, D); it is not changed."""
        if not len(rows):
            return
        if self.shift is None:
            self._begin(rows.mean(axis=0, dtype=np.float64))
        centred = rows - self.shift  # float64
        self.count += len(rows)
        self._first += centred.sum(axis=0)
        self._second += centred.T @ centred

    def merge(self, other: Moments) -> None:
        """Count in the rows of `other`, whose sums are about the same shift."""
        self.count += other.count
        self._first += other._first
        self._second += other._second

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and covariance (D, D), divided by the number of rows."""
        assert self.shift is not None
        offset = self._first / self.count
        return self.shift + offset, self._second / self.count - np.outer(offset, offset)


def whitening_from(moments: Moments, kind: str, dim: int, floor: float, view_kind: str, seed: int = 0) -> Whitening:
    """The whitening of `kind` from the moments of l2-normalised rows; `whiten(x) = projection (x - mean)`.

    `pca` keeps `dim` dimensions; the others keep all: `zca`, `standardise` (each component by its own deviation),
    `phi-s` (equal variance along a Hadamard basis of the eigenvectors; where there is no Hadamard matrix, a random
    orthogonal one from `seed`, which spreads the variance less evenly), `centre` (the mean alone). Eigenvalues below
    `floor` times the largest are raised to it. Raises `InputError` where there are too few rows.
    """
    width = 0 if not moments.count else len(moments._first)
    dim = dim if kind == "pca" else width
    if not width or (kind == "pca" and dim > min(width, moments.count)):
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
    if kind == "pca":
        projection = _pca(raised[:dim], vectors[:, :dim])
    elif kind == "zca":
        projection = (vectors / np.sqrt(raised)) @ vectors.T
    elif kind == "standardise":
        projection = np.diag(1 / np.sqrt(np.maximum(np.diag(covariance), least)))
    elif kind == "phi-s":
        projection = _spreading(width, seed) @ vectors.T / np.sqrt(raised.mean())
    elif kind == "centre":
        projection = np.eye(width)
    else:
        raise ValueError(kind)
    return Whitening(mean, np.ascontiguousarray(projection), raised.copy(), moments.count, clamped, view_kind)


def _pca(values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Rows `v / sqrt(lambda)`, their largest-magnitude entry positive, so that equal data give equal signs."""
    projection = (vectors / np.sqrt(values)).T
    largest = np.abs(projection).argmax(axis=1)
    signed: np.ndarray = projection * np.sign(projection[np.arange(len(projection)), largest])[:, None]
    return signed


def _spreading(width: int, seed: int) -> np.ndarray:
    """An orthonormal (D, D) whose entries are all equally large where D is a power of two (arXiv 2410.01680)."""
    if width & (width - 1) == 0:
        matrix = np.ones((1, 1))
        while len(matrix) < width:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])  # Sylvester
        return matrix / np.sqrt(width)
    orthogonal, triangular = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    return orthogonal * np.sign(np.diag(triangular))


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
