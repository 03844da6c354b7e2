"""What the two teachers of metric learning share: distances, and a triplet loss over the hardest pairs of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LEAST_SQUARE = 1e-12  # squared distances are at least this, those of a vector to itself exactly this


def distances(vectors: np.ndarray) -> np.ndarray:
    """Euclidean distances (B, B) between unit vectors (B, D), as `student_distances` takes them."""
    squared = np.maximum(2 - 2 * (vectors @ vectors.T), LEAST_SQUARE)
    np.fill_diagonal(squared, LEAST_SQUARE)
    found: np.ndarray = np.sqrt(squared)
    return found


def student_distances(vectors: Tensor) -> Tensor:
    """The same of a student; nothing flows back from the diagonal, where single precision has noise only."""
    import torch

    squared = 2 - 2 * vectors @ vectors.T
    same = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    return squared.masked_fill(same, LEAST_SQUARE).clamp(min=LEAST_SQUARE).sqrt()


def numbered(labels: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    """Labels (B, 1) as small numbers (B,) in the precision of `like`; -1 stays, for images without one."""
    assert labels is not None, "who trains by class asks for labels"
    _, numbers = np.unique(np.append(labels[:, 0], -1), return_inverse=True)  # -1 comes first
    return (numbers[:-1] - 1).astype(like.dtype)


def hardest(distance: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Largest distance to the own class, itself included, and least to others, (B',) each, of images with a label.

    `distance` (B, B), `labels` (B,); infinity where the batch holds no other class.
    """
    known = labels >= 0
    among = distance[known][:, known]  # (B', B')
    same = labels[known, None] == labels[None, known]
    farthest = among.masked_fill(~same, -float("inf")).max(dim=1).values
    nearest = among.masked_fill(same, float("inf")).min(dim=1).values
    return farthest, nearest


def triplet(distance: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean over images with a label of max(0, farthest of its own - nearest of another + margin) (methods.md 3.2)."""
    farthest, nearest = hardest(distance, labels)
    return (farthest - nearest + margin).relu().sum() / max(len(farthest), 1)
