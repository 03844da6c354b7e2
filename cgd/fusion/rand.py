"""Rand fusion: what a teacher drawn for each element says."""

from __future__ import annotations

import numpy as np

from cgd.fusion import of_similarities
from cgd.fusion._similarities import drawn
from cgd.registry import plugin


@plugin
@of_similarities
def rand(similarities: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(K, B, B) to (B, B): each element by a teacher drawn for it, positives too (methods.md 1.4)."""
    return drawn(similarities, generator)
