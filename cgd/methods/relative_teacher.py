"""Relative teacher (Yu et al., CVPR 2019): metric learning by triplets, the student's distances like its teachers'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import RelativeTeacherConfig
from cgd.methods import Fusion, Needs
from cgd.methods._metric import distances, numbered, student_distances, triplet
from cgd.methods._softmax import unit
from cgd.registry import plugin
from cgd.retrieval.vectors import l2
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class RelativeTeacher:
    """Section 3.2 of methods.md; the paper has one teacher, of several, of any widths, the terms are averaged."""

    config: RelativeTeacherConfig
    fusion: Fusion
    codebook: None = None
    needs = Needs(batches="classes", labels=True, maps=True)
    tells = ()

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """Distances `distances` (K, B, B) between unit vectors, and `labels` (B,), -1 of none."""
        found = np.stack([distances(l2(t[:, 0])) for t in teachers])
        return {"distances": found, "labels": numbered(batch.labels, found)}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Weighted triplet term, plus the weighted difference of all distances, reduced as configured."""
        own = student_distances(unit(student[:, 0]))  # (B, B)
        total = self.config.weight * self._difference(own - target["distances"])
        if self.config.triplet:
            total = total + self.config.triplet * triplet(own, target["labels"], self.config.margin)
        return total

    def _difference(self, difference: Tensor) -> Tensor:
        """(K, B, B), zero on the diagonals, to the mean over K of the norm, growing with B, or of the pairs' mean."""
        if self.config.relative_reduction == "frobenius":
            return difference.flatten(1).norm(dim=1).mean()
        pairs = difference.shape[1] * (difference.shape[1] - 1)
        return difference.abs().sum() / (len(difference) * pairs)
