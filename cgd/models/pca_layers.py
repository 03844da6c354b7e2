"""The whitening layers that Whiten-MTD distributes (`pca_weights/*.pt`) as `Whitening` values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cgd.errors import WeightsError
from cgd.types import Whitening

_NAMES = ("dim1", "dim2", "whit", "d", "v", "n_0", "mean", "dvt")
FLOOR = 1e-5  # eigenvalues below this share of the largest were raised to it


def is_pca_layer(content: Mapping[str, Any]) -> bool:
    """Whether the content of a torch file is such a layer, whole or not."""
    return {"dvt", "mean"} <= content.keys()


def pca_layer(content: Mapping[str, Any], path: Path) -> Whitening:
    """`dvt (x - mean)` for l2-normalised rows; the file says neither how many rows were fitted nor on which views.

    The published recipe is 10,000 random crops of GLDv2-clean (methods.md 1.3), hence the view kind. Raises
    `WeightsError` where an array is missing, unknown, of another shape, or not finite.
    """
    missing, unknown = sorted(set(_NAMES) - content.keys()), sorted(map(str, content.keys() - set(_NAMES)))
    if missing or unknown:
        raise WeightsError(
            f"{path} is no whitening of Whiten-MTD: missing {missing or 'none'}, unknown {unknown or 'none'}."
        )
    arrays = {name: _array(content[name], name, path) for name in _NAMES}
    wide, narrow = (int(arrays[name].item()) if arrays[name].ndim == 0 else 0 for name in ("dim1", "dim2"))
    shapes = {"d": (wide,), "v": (wide, wide), "mean": (1, wide), "dvt": (narrow, wide), "whit": (), "n_0": ()}
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not wide or not narrow:
            raise WeightsError(f"{path} is damaged: {name} has the shape {arrays[name].shape}, expected {shape}.")
    values = np.sort(arrays["d"])[::-1].astype(np.float64)
    return Whitening(
        mean=arrays["mean"][0].astype(np.float64),
        projection=arrays["dvt"].astype(np.float64),
        eigenvalues=np.maximum(values, FLOOR * values[0]),
        n_fit=0,
        n_clamped=int(arrays["n_0"]),
        view_kind="crop",
    )


def _array(value: Any, name: str, path: Path) -> np.ndarray:
    if not isinstance(value, Tensor):
        raise WeightsError(f"{path} is no whitening of Whiten-MTD: {name} is no tensor.")
    array: np.ndarray = value.detach().numpy()
    if not np.isfinite(array).all():
        raise WeightsError(f"{path} is damaged: {name} holds values that are not finite.")
    return array
