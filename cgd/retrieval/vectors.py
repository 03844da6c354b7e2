"""Normalising descriptors and joining those of several scales."""

from __future__ import annotations

import numpy as np


def l2(vectors: np.ndarray) -> np.ndarray:
    """Rows along the last axis divided by max(norm, 1e-12), in the input's precision."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def combine_scales(vectors: np.ndarray, rule: str) -> np.ndarray:
    """Descriptors at S scales (M, S, D) to one (M, D): l2 of each, then `mean` or the signed power mean `gem3`."""
    unit = l2(vectors)
    if rule == "gem3":
        return np.cbrt((unit**3).mean(axis=1))
    return unit.mean(axis=1)
