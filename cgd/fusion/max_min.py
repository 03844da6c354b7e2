"""Max-min fusion: positives as similar as any teacher says, negatives as dissimilar (Whiten-MTD's default)."""

from __future__ import annotations

import numpy as np

from cgd.registry import plugin


@plugin
def max_min(similarities: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(K, B, B) to (B, B): the maximum over teachers on the diagonal, the minimum elsewhere (methods.md 1.4)."""
    fused = similarities.min(axis=0)
    np.fill_diagonal(fused, similarities.diagonal(axis1=1, axis2=2).max(axis=0))
    return fused
