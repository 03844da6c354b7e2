"""The rules that similarity fusions are made of (methods.md 1.4)."""

from __future__ import annotations

import numpy as np


def drawn(similarities: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Element by element what one teacher says, each drawn uniformly and anew: (K, B, B) to (B, B)."""
    chosen = generator.integers(0, len(similarities), similarities.shape[1:])
    return np.take_along_axis(similarities, chosen[None], axis=0)[0]


def maximum_on_the_diagonal(fused: np.ndarray, similarities: np.ndarray) -> np.ndarray:
    """`fused` (B, B), positives being as similar as any teacher says."""
    positives = similarities.diagonal(axis1=1, axis2=2).max(axis=0)
    return np.where(np.eye(len(fused), dtype=bool), positives, fused)
