"""CGD's fusion of any number of teachers: each weighs less the more it resembles the others."""

from __future__ import annotations

import numpy as np

from cgd.fusion import of_vectors
from cgd.fusion._correlation import correlations
from cgd.registry import plugin


@plugin
@of_vectors
def cgd_pairwise(vectors: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(K, B, D) to (B, D) and weights (B, K): one minus the mean |rho| with the other teachers (methods.md 2.2).

    The weights do not sum to one, as in the released code. A single teacher is left as it is.
    """
    others = max(len(vectors) - 1, 1)
    weights = 1 - correlations(vectors).sum(axis=1).T / others  # (B, K)
    return np.einsum("kbd,bk->bd", vectors, weights), weights
