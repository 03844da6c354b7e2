"""Max-mean fusion: positives as similar as any teacher says, negatives as teachers say on average."""

from __future__ import annotations

import numpy as np

from cgd.fusion import of_similarities
from cgd.fusion._similarities import maximum_on_the_diagonal
from cgd.registry import plugin


@plugin
@of_similarities
def max_mean(similarities: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(K, B, B) to (B, B): the maximum over teachers on the diagonal, the mean elsewhere (methods.md 1.4)."""
    return maximum_on_the_diagonal(similarities.mean(axis=0), similarities)
