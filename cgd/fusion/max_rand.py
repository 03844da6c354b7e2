"""Max-rand fusion: positives as similar as any teacher says, negatives as a teacher drawn for each says."""

from __future__ import annotations

import numpy as np

from cgd.fusion import of_similarities
from cgd.fusion._similarities import drawn, maximum_on_the_diagonal
from cgd.registry import plugin


@plugin
@of_similarities
def max_rand(similarities: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(K, B, B) to (B, B): the maximum over teachers on the diagonal, a drawn teacher's elsewhere (methods.md 1.4)."""
    return maximum_on_the_diagonal(drawn(similarities, generator), similarities)
