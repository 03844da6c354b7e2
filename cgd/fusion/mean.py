"""Mean fusion: what the teachers say on average."""

from __future__ import annotations

import numpy as np

from cgd.fusion import of_similarities
from cgd.registry import plugin


@plugin
@of_similarities
def mean(similarities: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(K, B, B) to (B, B): the mean over teachers (methods.md 1.4)."""
    return similarities.mean(axis=0)
