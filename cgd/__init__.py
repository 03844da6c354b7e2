"""cgd: distil several heavy image-retrieval networks into one light network, offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cgd.errors import CgdError
from cgd.store.feature_store import FeatureStore

if TYPE_CHECKING:
    from cgd.pipeline.embedder import Student

__all__ = ["CgdError", "FeatureStore", "load_student"]


def load_student(
    where: str | Path,
    *,
    store: str | Path = "./features.zarr",
    device: str = "auto",
    scales: Sequence[float] = (),
) -> Student:
    """The student in a folder that `cgd distill` wrote, or under its key in `store`: `.embed(paths)` gives descriptors.

    `scales` replace the student's own, e.g. (1, 0.7071, 0.5). Raises `MissingError` where there is none.
    """
    from cgd.pipeline.embedder import load  # torch only where a student is used

    return load(where, store=store, device=device, scales=scales)
