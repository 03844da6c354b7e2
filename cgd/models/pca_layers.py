"""The whitening layers that Whiten-MTD distributes (`pca_weights/*.pt`) as `Whitening` values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgd.errors import WeightsError
from cgd.types import Whitening

_TYPES = {
    **dict.fromkeys(("dim1", "dim2", "n_0"), torch.int64),
    **dict.fromkeys(("whit", "d", "v", "mean", "dvt"), torch.float32),
}
UNUSED = ("v", "whit")  # `dvt` holds both
FLOOR = 1e-5  # eigenvalues below this share of the largest were raised to it


def is_pca_layer(content: Mapping[str, Any]) -> bool:
    """Whether the content of a torch file is such a layer, whole or not."""
    return {"dvt", "mean"} <= content.keys()


def pca_layer(content: Mapping[str, Any], path: Path) -> Whitening:
    """`dvt (x - mean)` for l2-normalised rows; the file says neither how many rows were fitted nor on which views.

    The published recipe is 10,000 random crops of GLDv2-clean (methods.md 1.3), hence the view kind. Raises
    `WeightsError` where an array is missing, unknown, of another type or shape, or not finite.
    """
    missing, unknown = sorted(_TYPES.keys() - content.keys()), sorted(map(str, content.keys() - _TYPES.keys()))
    if missing or unknown:
        told = f"missing {', '.join(missing) or 'nothing'}, unknown {', '.join(unknown) or 'nothing'}"
        raise WeightsError(f"{path} is no whitening of Whiten-MTD: {told}.")
    for name, kind in _TYPES.items():
        tensor = content[name]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise WeightsError(f"{path} is no whitening of Whiten-MTD: {name} is no plain tensor.")
        if tensor.dtype != kind:
            raise WeightsError(f"{path} is no whitening of Whiten-MTD: {name} has the type {tensor.dtype}.")
    scalars = {name: content[name].item() for name in ("dim1", "dim2", "n_0", "whit") if content[name].ndim == 0}
    wide, narrow = (scalars.get(name, 0) for name in ("dim1", "dim2"))
    if not 0 < narrow <= wide or scalars.get("n_0", -1) < 0 or scalars.get("whit") != 0.5:
        raise WeightsError(f"{path} is damaged: dim1, dim2, n_0 and whit are {[*scalars.values()]}.")
    shapes = {"d": (wide,), "v": (wide, wide), "mean": (1, wide), "dvt": (narrow, wide)}
    for name, shape in shapes.items():
        if content[name].shape != shape:
            raise WeightsError(
                f"{path} is damaged: {name} has the shape {tuple(content[name].shape)}, expected {shape}."
            )
        if not bool(torch.isfinite(content[name]).all()):
            raise WeightsError(f"{path} is damaged: {name} holds values that are not finite.")
    values = np.sort(content["d"].numpy())[::-1].astype(np.float64)
    if not values[0] > 0:
        raise WeightsError(f"{path} is damaged: its largest eigenvalue is not positive.")
    return Whitening(
        mean=content["mean"].numpy()[0].astype(np.float64),
        projection=content["dvt"].numpy().astype(np.float64),
        eigenvalues=np.maximum(values, FLOOR * values[0]),
        n_fit=0,
        n_clamped=scalars["n_0"],
        view_kind="crop",
    )
