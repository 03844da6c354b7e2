"""CGD's fusion of two teachers: the second one's weight is the correlation of the two."""

from __future__ import annotations

import numpy as np

from cgd.errors import InputError
from cgd.fusion import of_vectors
from cgd.fusion._correlation import correlation
from cgd.registry import plugin


@plugin
@of_vectors
def cgd_two(vectors: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(2, B, D) to (B, D) and weights (B, 2): `(1 - |rho|) v1 + |rho| v2` (methods.md 2.2). The order matters.

    Vectors in unrelated bases hardly correlate, so nearly all weight can fall to the first teacher.
    """
    if len(vectors) != 2:
        raise InputError(f"the fusion cgd-two is for two teachers, not {len(vectors)}: use cgd-pairwise.")
    rho = np.abs(correlation(*vectors))
    weights = np.stack([1 - rho, rho], axis=1)
    return np.einsum("kbd,bk->bd", vectors, weights), weights
